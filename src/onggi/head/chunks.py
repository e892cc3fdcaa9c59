"""Log-probabilities and divergences of one or several models, a tile of the vocabulary at a time.

With logits a (reference) and b (model) at one position,

    KL(P ‖ Q) = Σ p·(a − b) − log Σ exp a + log Σ exp b,       p = exp(a) / Σ exp(a)

so one walk over the vocabulary that keeps, per position, the running maxima and the sums of
exp(a − max a), exp(b − max b) and exp(a − max a)·(a − b) yields the likelihoods and the
divergence together. The products are fp32, the sums over tiles fp64: the result equals the naive
fp32 computation to 1e-5 nats and is steadier where the divergence is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Positions × vocabulary entries of one fp32 tile: 4 MiB stays near the cores and is wide
# enough for the matrix product to run at its peak.
_POSITIONS = 512
_TILE = 2048


@dataclass(frozen=True)
class Head:
    """What turns a hidden state into logits: `softcap(scale · (h Wᵀ + bias))`.

    weight: (vocab, hidden); bias: (vocab,) or None; softcap: `c·tanh(x / c)` as Gemma 2 has it.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    @property
    def vocabulary(self) -> int:
        """Number of entries."""
        return self.weight.shape[0]

    def part(self, count: int) -> Head:
        """The head of the vocabulary's first `count` entries alone."""
        bias = None if self.bias is None else self.bias[:count]
        return Head(self.weight[:count], bias, self.softcap, self.scale)

    def logits(self, hidden: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """(positions, stop − start) logits of `hidden` (positions, hidden), in fp32."""
        stop = self.vocabulary if stop is None else stop
        return self.finished(hidden.float() @ self.weight[start:stop].float().T, slice(start, stop))

    def logits_of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(positions,) logits in fp32: at each position of `hidden` (positions, hidden) that of its own
        token, `tokens` (positions,).
        """
        return self.finished(torch.linalg.vecdot(hidden.float(), self.weight[tokens].float()), tokens)

    def finished(self, products: Tensor, entries: slice | Tensor) -> Tensor:
        """The logits that products of hidden states and rows of the weight become; entries: which
        of the vocabulary's the last dimension is.
        """
        logits = products
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.bias is not None:
            logits = logits + self.bias[entries].to(logits.dtype)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


@dataclass(frozen=True)
class Scores:
    """Per position, fp32 on the CPU. nll: −log p of the target, nats. kl: KL(reference ‖ model),
    nats, None for the reference itself and where vocabularies differ. top1: the likeliest token.
    """

    nll: Tensor  # (positions,)
    top1: Tensor  # (positions,) int64
    kl: Tensor | None  # (positions,)


class _Running:
    """Running log-sum-exp, arg-max and target logit of one model over the tiles."""

    def __init__(self, positions: int, device: torch.device):
        self.max = torch.full((positions,), -torch.inf, device=device)
        self.sum = torch.zeros(positions, dtype=torch.float64, device=device)
        self.cross = torch.zeros(positions, dtype=torch.float64, device=device)  # Σ exp(a − max a)(a − b)
        self.top1 = torch.zeros(positions, dtype=torch.int64, device=device)
        self.target = torch.zeros(positions, device=device)

    def raise_max(self, logits: Tensor, start: int) -> Tensor:
        """Take the tile into the running maximum; returns what earlier sums shrink by, (positions,)."""
        best, index = logits.max(dim=1)
        higher = best > self.max
        self.top1 = torch.where(higher, index + start, self.top1)
        new = torch.where(higher, best, self.max)
        shrink = torch.exp((self.max - new).double())
        self.sum *= shrink
        self.max = new
        return shrink

    def take_target(self, logits: Tensor, targets: Tensor, start: int) -> None:
        local = targets - start
        inside = (local >= 0) & (local < logits.shape[1])
        value = logits.gather(1, local.clamp(0, logits.shape[1] - 1).unsqueeze(1)).squeeze(1)
        self.target = torch.where(inside, value, self.target)

    @property
    def log_sum(self) -> Tensor:
        return self.sum.log() + self.max.double()


def compare(
    hidden: Sequence[Tensor],
    heads: Sequence[Head],
    targets: Tensor,
    *,
    positions: int = _POSITIONS,
    tile: int = _TILE,
) -> list[Scores]:
    """Scores of several models at the same positions; the first is the reference.

    hidden: for each model (positions, its hidden size), the states that predict `targets`
    (positions,), token ids; on any device: `positions` of them at a time go to that of the heads.
    All heads share one vocabulary. Memory is bounded by `positions × tile` logits a model,
    whatever the text and the vocabulary.
    Raises `ValueError` where shapes or vocabularies differ.
    """
    size = heads[0].vocabulary
    if any(head.vocabulary != size for head in heads):
        raise ValueError("compare() needs one vocabulary; use score() for models apart.")
    if any(len(states) != len(targets) for states in hidden):
        raise ValueError("every model needs one hidden state per target.")
    parts: list[list[Scores]] = [[] for _ in heads]
    device = heads[0].weight.device
    for begin in range(0, len(targets), positions):
        there = slice(begin, begin + positions)
        chunk = _compare_chunk(
            [states[there].to(device) for states in hidden], heads, targets[there].to(device), tile
        )
        for part, scores in zip(parts, chunk, strict=True):
            part.append(scores)
    return [_join(part, reference=i == 0) for i, part in enumerate(parts)]


def _compare_chunk(
    hidden: Sequence[Tensor], heads: Sequence[Head], targets: Tensor, tile: int
) -> list[Scores]:
    count, device = len(targets), hidden[0].device
    running = [_Running(count, device) for _ in heads]
    reference = running[0]
    for start in range(0, heads[0].vocabulary, tile):
        stop = min(start + tile, heads[0].vocabulary)
        first = heads[0].logits(hidden[0], start, stop)  # (chunk, tile)
        shrink = reference.raise_max(first, start)
        reference.take_target(first, targets, start)
        weights = torch.exp(first - reference.max.unsqueeze(1))  # (chunk, tile)
        added = weights.sum(dim=1, dtype=torch.float64)
        reference.sum += added
        for model, states, head in zip(running[1:], hidden[1:], heads[1:], strict=True):
            logits = head.logits(states, start, stop)
            model.raise_max(logits, start)
            model.take_target(logits, targets, start)
            # Σ w·(a − b), as the difference of the logits: their common part cancels before summing.
            # The weights w are the reference's, and so is the maximum that they are relative to.
            model.cross = model.cross * shrink + torch.linalg.vecdot(weights, first - logits).double()
            logits.sub_(model.max.unsqueeze(1)).exp_()
            model.sum += logits.sum(dim=1, dtype=torch.float64)
    scores = []
    for index, model in enumerate(running):
        kl = None
        if index:
            kl = model.cross / reference.sum - reference.log_sum + model.log_sum
            # Exactly 0 for equal models; the rounding of the sums may otherwise leave −1e-8.
            kl = kl.clamp_min(0).float().cpu()
        nll = (model.log_sum - model.target.double()).float().cpu()
        scores.append(Scores(nll, model.top1.cpu(), kl))
    return scores


def _join(parts: list[Scores], reference: bool) -> Scores:
    if not parts:
        empty = torch.zeros(0)
        return Scores(empty, torch.zeros(0, dtype=torch.int64), None if reference else empty)
    kls = [part.kl for part in parts if part.kl is not None]
    return Scores(
        torch.cat([part.nll for part in parts]),
        torch.cat([part.top1 for part in parts]),
        torch.cat(kls) if kls else None,
    )


def score(
    hidden: Tensor, head: Head, targets: Tensor, *, positions: int = _POSITIONS, tile: int = _TILE
) -> Scores:
    """Scores of one model alone: `compare` without a second one, so `kl` is None."""
    return compare([hidden], [head], targets, positions=positions, tile=tile)[0]
