"""Next-token prediction: batches of sequences in which languages have their share, and the loss on them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..head import Head, cross_entropy
from .loop import Loss


@dataclass(frozen=True)
class Batches:
    """ids: (steps, sequences, length) int64. weights: the same shape, fp32; those of a step add up to 1.
    tokens: language → tokens trained on, start tokens included.
    """

    ids: Tensor
    weights: Tensor
    tokens: dict[str, int]


def batches(
    runs: Mapping[str, Sequence[Sequence[int]]], prefix: int, steps: int, size: int, seed: int
) -> Batches:
    """`size` sequences a step: of each language the same number, give or take one, and languages in turns,
    in an order shuffled by `seed` anew each turn, so that a step mixes them and none comes first or last.

    runs: language → its sequences, which are gone over again where they run short. prefix: the start
    token that each begins with; short ones are filled up with it. Neither filling nor start tokens,
    which nothing predicts, have a weight.
    """
    count = steps * size
    generator = random.Random(seed)
    endless = {language: itertools.cycle(run) for language, run in runs.items()}
    rows: list[Sequence[int]] = []
    tokens = dict.fromkeys(runs, 0)
    while len(rows) < count:
        turn = list(runs)
        generator.shuffle(turn)
        for language in turn[: count - len(rows)]:
            rows.append(next(endless[language]))
            tokens[language] += len(rows[-1])
    width = max(len(row) for row in rows)
    ids = torch.full((count, width), prefix, dtype=torch.int64)
    weights = torch.zeros(count, width)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        weights[i, 1 : len(row)] = 1.0
    ids, weights = ids.view(steps, size, width), weights.view(steps, size, width)
    return Batches(ids, weights / weights.sum(dim=(1, 2), keepdim=True), tokens)


def next_token(body: Any, head: Head, dtype: torch.dtype) -> Loss:
    """The loss: cross-entropy of each token given those before it, Σ weights · nats.

    body: ids → hidden states. dtype: of the matrix products; the weights themselves stay as they are.
    """

    def loss(ids: Tensor, weights: Tensor) -> Tensor:
        device = head.weight.device
        ids, weights = ids.to(device), weights.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            states = body(input_ids=ids, use_cache=False).last_hidden_state
        return cross_entropy(
            states[:, :-1].flatten(0, 1), head, ids[:, 1:].flatten(), weights[:, 1:].flatten(), dtype=dtype
        )

    return loss
