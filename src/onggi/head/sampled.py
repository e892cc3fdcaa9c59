"""Divergences estimated from tokens drawn once, for when there are hundreds of models to compare.

With x the change of a token's logit from P to Q,

    KL(P ‖ Q) = log E_P[exp x] − E_P[x]

is an expectation under P alone. So tokens are drawn from P once for each position, and every further Q needs
the logits of these only. The estimate is never negative, exact as more are drawn, and a little low with few
(by about Var(x) / 2K of K tokens); every Q sees the same tokens, so their order is far surer than their values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .chunks import Head

# Numbers of one chunk: logits when drawing, rows of the head when comparing.
_ROOM = 48 << 20
# Entries of the vocabulary whose rows of the head are in fp32 at a time.
_TILE = 8192


def drawn(hidden: Tensor, head: Head, count: int, seed: int) -> Tensor:
    """`count` tokens of each position, drawn with replacement from what `hidden` (positions, hidden size)
    predicts: (positions, count) int64. The same for the same seed on one device.
    """
    generator = torch.Generator(hidden.device).manual_seed(seed)
    step = max(1, _ROOM // head.vocabulary)
    found = []
    for part in hidden.split(step):
        logits = torch.empty(len(part), head.vocabulary, device=hidden.device)
        # A tile at a time: all of a head at once would be in fp32 beside what it is stored in.
        for start in range(0, head.vocabulary, _TILE):
            stop = min(start + _TILE, head.vocabulary)
            logits[:, start:stop] = head.logits(part, start, stop)
        found.append(torch.multinomial(logits.softmax(-1), count, replacement=True, generator=generator))
    return torch.cat(found) if found else torch.zeros(0, count, dtype=torch.int64)


def drawn_kl(before: Tensor, after: Tensor, head: Head, tokens: Tensor, other: Head | None = None) -> Tensor:
    """KL(before ‖ after) in nats at each position, (positions,) fp32, estimated on `tokens` (positions,
    count) that were `drawn` from `before`. before, after: (positions, hidden size), through the same head, or
    the second through `other`.
    """
    other = other or head
    if not before.shape == after.shape or len(tokens) != len(before):
        raise ValueError(
            f"states {tuple(before.shape)}, {tuple(after.shape)} and {len(tokens)} rows of tokens."
        )
    step = max(1, _ROOM // (tokens.shape[1] * head.weight.shape[1]))
    found = []
    for first, second, own in zip(before.split(step), after.split(step), tokens.split(step), strict=True):
        rows = other.weight[own].float()  # (positions, count, hidden)
        x = other.finished(torch.einsum("ph,pch->pc", second.float(), rows), own)
        rows = rows if other is head else head.weight[own].float()
        x -= head.finished(torch.einsum("ph,pch->pc", first.float(), rows), own)
        x = x.double()
        found.append((x.logsumexp(-1) - math.log(x.shape[1]) - x.mean(-1)).clamp_min(0).float())
    return torch.cat(found) if found else torch.zeros(0)
