"""What the losses over the whole vocabulary do alike: products, and gradients that are made in the forward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor, mm

# Entries of the vocabulary of one product: of wider ones a CPU's library copies more of the head, for each thread.
_ENTRIES = 1 << 15


def multiplied(states: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    """(chunk, vocab) of `states` (chunk, hidden) and `rows` (vocab, hidden), in `out`."""
    entries = len(rows) if rows.is_cuda else _ENTRIES
    for start in range(0, len(rows), entries):
        own = slice(start, start + entries)
        mm(states, rows[own].T, out=out[:, own])
    return out


def add(
    slopes: Tensor,
    states: Tensor,
    rows: Tensor,
    own: slice,
    of_hidden: Tensor | None,
    of_weight: Tensor | None,
    narrow: Tensor | None,
) -> None:
    """Take in a chunk's `slopes` (chunk, vocab), its gradient at the products of `states` (chunk, hidden) and `rows`
    (vocab, hidden). own: the chunk's positions in `of_hidden`. narrow: room of the products' dtype where that of
    `of_weight` is wider.
    """
    if of_hidden is not None:
        of_hidden[own] = slopes @ rows
    if of_weight is not None and narrow is None:
        of_weight.addmm_(slopes.T, states)
    elif of_weight is not None:
        of_weight += mm(slopes.T, states, out=narrow)


def given_away(ctx: Any, scale: Tensor) -> list[Tensor | None]:
    """The gradients that the forward pass left, times `scale`: not copied, for the head's is as large as the head."""
    gradients: list[Tensor | None]
    gradients, ctx.gradients = ctx.gradients, None
    if float(scale) != 1.0:
        gradients = [None if grad is None else grad.mul_(scale) for grad in gradients]
    return gradients
