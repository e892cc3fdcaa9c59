"""Next-token prediction: batches of sequences, and the loss on them.

A step's batch is `size` sequences. Whoever trains asks for some of its rows (a process has its share, and
takes that in as many pieces as its memory wants), so the weights of the whole step add up to 1, and the sum
of the losses of all pieces is the step's loss, however it was cut.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..engines.transformers import head_of
from ..head import cross_entropy
from ..text.packing import Packed

# Tensors of some rows of a step. ids, weights, languages: (sequences, length), of which languages are numbers in the
# source's own list; positions too where sequences are packed.
Batch = Mapping[str, Tensor]
# (model, batch) → the scalar to go back from.
Loss = Callable[[nn.Module, Batch], Tensor]


class Source(Protocol):
    """What is trained on, by step and row, so that a killed run needs to know nothing but its step."""

    @property
    def size(self) -> int:
        """Sequences of a step."""

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Rows start to stop of a step, counted from 0; the `weights` of all its rows add up to 1."""


@dataclass(frozen=True)
class Batches:
    """ids: (steps, sequences, length) int64. weights: the same shape, fp32; those of a step add up to 1.
    tokens: language → tokens trained on, start tokens included. numbers: (steps, sequences) int64, of each
    sequence's language in the order of `tokens`.
    """

    ids: Tensor
    weights: Tensor
    tokens: dict[str, int]
    numbers: Tensor

    @property
    def languages(self) -> list[str]:
        """What numbers stand for."""
        return list(self.tokens)

    @property
    def size(self) -> int:
        """Sequences of a step."""
        return self.ids.shape[1]

    def counted(self, first: int, stop: int) -> dict[str, int]:
        """Language → tokens of steps `first` to `stop`, start tokens included."""
        lengths = (self.weights[first:stop] > 0).sum(2) + 1
        numbers = self.numbers[first:stop]
        found = {tag: int(lengths[numbers == i].sum()) for i, tag in enumerate(self.languages)}
        return {tag: count for tag, count in found.items() if count}

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Rows start to stop of a step; past the last step they begin anew."""
        step %= len(self.ids)
        ids = self.ids[step, start:stop]
        return {
            "ids": ids,
            "weights": self.weights[step, start:stop],
            "languages": self.numbers[step, start:stop].unsqueeze(1).expand(ids.shape),
        }


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
    tokens, order, numbers = dict.fromkeys(runs, 0), list(runs), []
    while len(rows) < count:
        turn = list(runs)
        generator.shuffle(turn)
        for language in turn[: count - len(rows)]:
            rows.append(next(endless[language]))
            tokens[language] += len(rows[-1])
            numbers.append(order.index(language))
    width = max(len(row) for row in rows)
    ids = torch.full((count, width), prefix, dtype=torch.int64)
    weights = torch.zeros(count, width)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        weights[i, 1 : len(row)] = 1.0
    ids, weights = ids.view(steps, size, width), weights.view(steps, size, width)
    weights /= weights.sum(dim=(1, 2), keepdim=True)
    return Batches(ids, weights, tokens, torch.tensor(numbers).view(steps, size))


class Unending:
    """Batches of a text that is drawn as far as it is read, for a training whose steps are not known when it begins.

    drawn: steps → their batches, of which the first are the same however many are asked for (as `text.draw` and
    `batches` have it). steps: to begin with.
    """

    def __init__(self, drawn: Callable[[int], Batches], steps: int):
        self._drawn, self._now = drawn, drawn(steps)

    def _reach(self, steps: int) -> Batches:
        while len(self._now.ids) < steps:
            self._now = self._drawn(2 * len(self._now.ids))
        return self._now

    @property
    def languages(self) -> list[str]:
        """What the numbers of a batch's languages stand for."""
        return self._now.languages

    @property
    def size(self) -> int:
        """Sequences of a step."""
        return self._now.size

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self._now.ids.shape[-1]

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Rows start to stop of a step."""
        return self._reach(step + 1).rows(step, start, stop)

    def tokens(self, first: int, stop: int) -> dict[str, int]:
        """Language → tokens of steps `first` to `stop`."""
        return self._reach(stop).counted(first, stop)


class PackedBatches:
    """Sequences that `onggi pack` made, `size` a step: in their order at first, then, where the text runs
    short, shuffled anew by `seed` for each time that it is gone over.
    """

    def __init__(self, packed: Packed, size: int, seed: int):
        self.packed, self.size, self._seed = packed, size, seed
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, times: int) -> np.ndarray:
        count = len(self.packed)
        return np.random.default_rng([self._seed, times]).permutation(count) if times else np.arange(count)

    def number(self, place: int) -> int:
        """The sequence that stands at `place` of all that is ever read."""
        times, within = divmod(place, len(self.packed))
        return int(self._order(times)[within])

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Rows start to stop of a step. Weights are those of what is predicted, the same for each token."""
        first = step * self.size
        total = 0
        for place in range(first, first + self.size):
            parts = self.packed.parts(self.number(place))
            total += int((parts["stop"] - parts["start"]).sum()) - len(parts)
        read = [self.packed.batch(self.number(place)) for place in range(first + start, first + stop)]
        predicted = np.concatenate([batch.predicted for batch in read])
        return {
            "ids": torch.from_numpy(np.concatenate([batch.ids for batch in read])),
            "positions": torch.from_numpy(np.concatenate([batch.positions for batch in read])),
            "weights": torch.from_numpy(predicted.astype(np.float32)) / max(total, 1),
            "languages": torch.from_numpy(np.concatenate([batch.languages for batch in read])),
        }

    @property
    def languages(self) -> list[str]:
        """What the numbers of a batch's languages stand for."""
        return self.packed.languages

    def tokens(self, first: int, stop: int) -> dict[str, int]:
        """Language → tokens of steps `first` to `stop`."""
        names, counts = self.packed.languages, np.zeros(len(self.packed.languages), np.int64)
        for place in range(first * self.size, stop * self.size):
            parts = self.packed.parts(self.number(place))
            np.add.at(counts, parts["language"], (parts["stop"] - parts["start"]).astype(np.int64))
        return {name: int(count) for name, count in zip(names, counts, strict=True) if count}


def next_token(dtype: torch.dtype, z: float = 0.0, rows: tuple[Tensor, Tensor] | None = None) -> Loss:
    """The loss: cross-entropy of each token given those before it in its document, Σ weights · nats.

    dtype: of the matrix products; the weights themselves stay as they are. z, rows: see `head.cross_entropy`.
    """

    def loss(model: Any, batch: Batch) -> Tensor:
        states = states_of(model, batch, dtype)
        # The head is read at each step: where weights are sharded, they are other tensors each time.
        return cross_entropy(
            states[:, :-1].flatten(0, 1),
            head_of(model),
            batch["ids"][:, 1:].flatten(),
            batch["weights"][:, 1:].flatten(),
            z=z,
            dtype=dtype,
            rows=rows,
        )

    return loss


def states_of(model: Any, batch: Batch, dtype: torch.dtype) -> Tensor:
    """The last hidden states of a batch, (sequences, length, hidden)."""
    body = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    ids = batch["ids"]
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        # Packed documents are kept apart by positions that begin anew, and only where there is neither
        # a mask nor a cache.
        states: Tensor = body(
            input_ids=ids, position_ids=batch.get("positions"), attention_mask=None, use_cache=False
        ).last_hidden_state
    return states
