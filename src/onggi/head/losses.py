"""Losses over the whole vocabulary, forward and backward, a chunk of positions at a time.

Autograd would keep the logits of every token until the backward pass. But the gradient of the cross-entropy
with respect to the logits is known as soon as they are, so each chunk's logits are turned into what they
give to the gradients of the hidden states and of the head's weight, and are gone before the next
chunk comes. What is kept is as large as the head and as the hidden states, whatever the number of tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .chunks import Head
from .gradients import add, given_away, multiplied

# Positions of one chunk at most, and bytes of its products: in fp32 192 positions with a vocabulary of 262,144. Each
# chunk reads and writes the gradient of the head once, so smaller ones are slower.
_POSITIONS, _PRODUCTS = 2048, 192 << 20
# Logits that are gone over together between two products, a dozen times: on a CPU as many as its cache holds.
_BLOCK = 1 << 19


def chunk(vocabulary: int, dtype: torch.dtype) -> int:
    """Positions of one chunk, where nothing else is said."""
    return max(min(_POSITIONS, _PRODUCTS // (vocabulary * dtype.itemsize)), 1)


def cross_entropy(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    z: float = 0.0,
    positions: int | None = None,
    dtype: torch.dtype = torch.float32,
    rows: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Σ weights · −log p(target), nats, a scalar whose backward pass reaches `hidden` and the head.

    hidden: (positions, hidden size), the states that predict `targets` (positions,), token ids.
    weights: (positions,), by default 1 / positions each: the mean. A token of weight 0 costs nothing. positions:
    of a chunk, by default as many as keep its logits within 200 MB, at most 2,048. dtype: of
    the matrix products; everything between them is fp32 (or wider, where `dtype` is). The head's
    bias, softcap and scale are honoured. Gradients are those of the hidden states, the weight and the
    bias; they can be gone back through once, and not differentiated again. z: with it Σ weights · z ·
    (log Σ exp logits)² is added, which keeps logits from drifting away together (z-loss; PaLM,
    arXiv 2204.02311, section 5, has 1e-4). rows: (ids, values) of a few rows of the head's weight, which is frozen and
    holds these values already: the gradient of the loss reaches `values` (ids, hidden size) without one for the
    whole weight.
    Raises `ValueError` where shapes differ or a target is not in the vocabulary.
    """
    count = len(targets)
    if hidden.shape != (count, head.weight.shape[1]):
        raise ValueError(f"hidden states {tuple(hidden.shape)} do not fit {count} targets and the head.")
    if weights is None:
        weights = torch.full((count,), 1.0 / max(count, 1), device=hidden.device)
    if weights.shape != targets.shape:
        raise ValueError(f"{len(weights)} weights for {count} targets.")
    trained = weights != 0
    if not bool(trained.all()):
        hidden, targets, weights = hidden[trained], targets[trained], weights[trained]
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < head.vocabulary:
        raise ValueError(f"a target is not among the {head.vocabulary} of the vocabulary.")
    if positions is None:
        positions = chunk(head.vocabulary, dtype)
    ids, values = rows or (None, None)
    loss: Tensor = _CrossEntropy.apply(
        hidden,
        head.weight,
        head.bias,
        values,
        targets,
        weights,
        head,
        z,
        positions,
        dtype,
        torch.is_grad_enabled(),
        ids,
    )
    return loss


class _CrossEntropy(torch.autograd.Function):
    """See `cross_entropy`; the gradients are made in the forward pass and only scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        values: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        head: Head,
        z: float,
        positions: int,
        dtype: torch.dtype,
        backward: bool,
        ids: Tensor | None,
    ) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            wanted = [backward and needed for needed in ctx.needs_input_grad[:4]]
            kept = [
                torch.zeros_like(tensor, dtype=wide) if need and tensor is not None else None
                for need, tensor in zip(wanted, (hidden, weight, bias, values), strict=True)
            ]
            states, rows = hidden.to(dtype), weight.to(dtype)
            room = _Room(min(positions, len(targets)), rows, wide, kept[1] is not None)
            loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
            for start in range(0, len(targets), positions):
                own = slice(start, start + positions)
                loss += _chunk(
                    states[own],
                    rows,
                    targets[own],
                    weights[own].to(wide),
                    head,
                    z,
                    kept,
                    own,
                    room,
                    ids,
                )
        ctx.gradients = kept
        return loss.to(wide)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return (*given_away(ctx, outer[0]), *[None] * 8)


class _Room:
    """Memory that every chunk uses again: to be given new pages for each costs as much as the arithmetic.

    block: positions whose logits are gone over together. trained: whether the head's weight is.
    """

    def __init__(self, positions: int, rows: Tensor, wide: torch.dtype, trained: bool):
        self.block = positions if rows.is_cuda else max(min(positions, _BLOCK // len(rows)), 1)
        self.products = torch.empty(positions, len(rows), dtype=rows.dtype, device=rows.device)
        self.logits: Tensor | None = None
        self.of_weight: Tensor | None = None
        if rows.dtype != wide:
            self.logits = torch.empty(self.block, len(rows), dtype=wide, device=rows.device)
            self.of_weight = torch.empty_like(rows) if trained else None


def _chunk(
    states: Tensor,
    rows: Tensor,
    targets: Tensor,
    weights: Tensor,
    head: Head,
    z: float,
    kept: list[Tensor | None],
    own: slice,
    room: _Room,
    ids: Tensor | None,
) -> Tensor:
    """The loss of one chunk; adds to the gradients in `kept` (of hidden states, weight, bias, some rows)."""
    products = multiplied(states, rows, room.products[: len(targets)])  # (chunk, vocab)
    loss = torch.zeros((), dtype=torch.float64, device=states.device)
    for start in range(0, len(targets), room.block):
        part = slice(start, start + room.block)
        loss += _slopes(products[part], targets[part], weights[part], head, z, kept, room.logits)
    of_hidden, of_weight, _, of_rows = kept
    if of_rows is not None and ids is not None:
        of_rows.addmm_(products[:, ids].T.to(of_rows.dtype), states.to(of_rows.dtype))
    add(products, states, rows, own, of_hidden, of_weight, room.of_weight)
    return loss


def _slopes(
    products: Tensor,
    targets: Tensor,
    weights: Tensor,
    head: Head,
    z: float,
    kept: list[Tensor | None],
    room: Tensor | None,
) -> Tensor:
    """The loss at some positions; where gradients are kept, `products` (positions, vocab) become the loss's slopes."""
    count = len(targets)
    logits = products if room is None else room[:count].copy_(products)
    logits = head.finished(logits, slice(None))
    target = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    training = any(grad is not None for grad in kept)
    slope = 1 - (logits / head.softcap) ** 2 if head.softcap is not None and training else None
    top = logits.amax(dim=1)
    gradient = logits.sub_(top.unsqueeze(1)).exp_()
    total = gradient.sum(dim=1)
    log_sum = total.log() + top
    loss = (weights * (log_sum - target + z * log_sum**2)).double().sum()
    if not training:
        return loss
    # weight · p, and at the target weight · (p − 1); the square's slope is 2 · log_sum · p
    gradient *= (weights * (1 + 2 * z * log_sum) / total).unsqueeze(1)
    gradient[torch.arange(count, device=targets.device), targets] -= weights
    if slope is not None:
        gradient *= slope
    of_bias = kept[2]
    if of_bias is not None:
        of_bias += gradient.sum(dim=0)
    if head.scale != 1.0:
        gradient *= head.scale
    if gradient.data_ptr() != products.data_ptr():
        products.copy_(gradient)
    return loss
