"""Dialogues as batches: packed whole, languages in equal turns, a share of plain text among them, the loss on answers.

A row of a batch is a sequence of `length` places with whole dialogues of one language, none seeing another (positions
begin anew; see `text.packing`). Plain text that is gone over beside them, so that what is not trained on is not
forgotten, is packed the same way. Which row is which follows from its number alone, so a run that is resumed reads what it would have read.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..engines.transformers import head_of
from ..head import score
from ..text.chat import Taught
from ..text.packing import best_fit
from .tokens import Batch

# Positions in one pass of a measurement, padding included.
_BATCH = 4096


@dataclass(frozen=True)
class Row:
    """One row: token ids, positions that begin anew with each document, and where the loss is; (places,) each."""

    ids: np.ndarray
    positions: np.ndarray
    learnt: np.ndarray


def packed(documents: Sequence[Taught], length: int) -> list[Row]:
    """`documents`, each at most `length` tokens, in as few sequences as best fit makes. Nothing predicts the first
    token of a document, so it is never learnt.
    """
    made = []
    for numbers in best_fit([len(document.ids) for document in documents], length):
        parts = [documents[number] for number in numbers]
        learnt = np.concatenate([np.array(part.learnt) for part in parts])
        positions = np.concatenate([np.arange(len(part.ids)) for part in parts])
        made.append(
            Row(np.concatenate([np.array(p.ids) for p in parts]), positions, learnt & (positions > 0))
        )
    return made


class DialogueBatches:
    """`size` sequences a step (`train.tokens.Source`): dialogues of each language in turn, in an order shuffled anew for
    each turn and each time that they are gone over, and among them a share of plain text.

    The loss of a step is the mean over the tokens that are learnt, of dialogues and of text apart, weighted by
    how many rows of the step are which.
    """

    def __init__(
        self,
        dialogues: Mapping[str, Sequence[Row]],
        replay: Mapping[str, Sequence[Row]],
        size: int,
        share: float,
        pad: int,
        seed: int,
    ):
        """dialogues, replay: language → its sequences; share: of `replay` among the rows, until `raise_to`."""
        self.dialogues = {language: list(own) for language, own in dialogues.items()}
        self.replay = {language: list(own) for language, own in replay.items()}
        self.size, self._pad, self._seed = size, pad, seed
        self.shares: list[tuple[int, float]] = [(0, share)]  # (first row, share from there on)
        self._order = functools.lru_cache(maxsize=64)(self._shuffled)

    @property
    def share(self) -> float:
        """Of plain text among the rows to come."""
        return self.shares[-1][1]

    def raise_to(self, share: float, step: int) -> None:
        """Make `share` that of plain text from `step` on."""
        self.shares.append((step * self.size, share))

    def _replayed(self, row: int) -> int:
        """How many of the first `row` rows are plain text."""
        if not self.replay:
            return 0
        count = 0
        ends = [first for first, _ in self.shares[1:]] + [row]
        for (first, share), end in zip(self.shares, ends, strict=True):
            count += int(max(min(end, row) - first, 0) * share + 1e-9)
        return count

    def _shuffled(self, key: int, times: int, count: int) -> np.ndarray:
        return np.random.default_rng([self._seed, key, times]).permutation(count)

    def _pick(self, groups: Mapping[str, Sequence[Row]], number: int, key: int) -> tuple[str, Row]:
        """The `number`th sequence that is ever read of `groups`: of each group one in turn."""
        names = list(groups)
        turn, place = divmod(number, len(names))
        chosen = int(self._order(key, turn, len(names))[place])
        own = groups[names[chosen]]
        times, within = divmod(turn, len(own))
        return names[chosen], own[int(self._order(key + 1 + chosen, times, len(own))[within])]

    def row(self, number: int) -> tuple[str, bool, Row]:
        """(language, whether it is plain text, the sequence) of a row, counted from the first step on."""
        before = self._replayed(number)
        if self._replayed(number + 1) > before:
            language, found = self._pick(self.replay, before, 1 << 20)
            return language, True, found
        language, found = self._pick(self.dialogues, number - before, 0)
        return language, False, found

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Rows start to stop of a step; the weights of all its rows add up to 1 where there is anything to learn."""
        first = step * self.size
        found = [self.row(first + number) for number in range(self.size)]
        weight = {}
        for plain in (False, True):
            own = [sequence for _, is_plain, sequence in found if is_plain == plain]
            tokens = sum(int(sequence.learnt.sum()) for sequence in own)
            weight[plain] = len(own) / self.size / max(tokens, 1)
        # A process whose share is smaller than its passes has one without a row, and takes part all the same.
        mine = found[start:stop] or [("", False, Row(*(np.zeros(2, np.int64) for _ in range(3))))]
        width = max(len(row.ids) for _, _, row in mine)
        ids = np.full((len(mine), width), self._pad)
        positions = np.tile(np.arange(width), (len(mine), 1))
        weights = np.zeros((len(mine), width), np.float32)
        for i, (_, plain, row) in enumerate(mine):
            count = len(row.ids)
            ids[i, :count], positions[i, :count] = row.ids, row.positions
            positions[i, count:] = np.arange(width - count)  # padding is a document of its own
            weights[i, :count] = row.learnt * weight[plain]
        return {
            "ids": torch.from_numpy(ids),
            "positions": torch.from_numpy(positions),
            "weights": torch.from_numpy(weights),
        }

    def tokens(self, first: int, stop: int) -> dict[str, dict[str, int]]:
        """Language → `tokens` of steps `first` to `stop`, how many of them are `learnt`, and `replayed`, of plain text."""
        counts: dict[str, dict[str, int]] = {}
        for number in range(first * self.size, stop * self.size):
            language, plain, sequence = self.row(number)
            own = counts.setdefault(language, {"tokens": 0, "learnt": 0, "replayed": 0})
            own["tokens"] += len(sequence.ids)
            own["replayed" if plain else "learnt"] += (
                len(sequence.ids) if plain else int(sequence.learnt.sum())
            )
        return counts


class AnswerLoss:
    """Loss on the answers of dialogues that are held out: `AnswerLoss(documents)(model)` → language → nats a token.

    documents: language → dialogues as they are taught.
    """

    def __init__(self, documents: Mapping[str, Sequence[Taught]]):
        self.languages = list(documents)
        self._documents = [
            (number, document)
            for number, own in enumerate(documents.values())
            for document in own
            if any(document.learnt)
        ]
        order = sorted(range(len(self._documents)), key=lambda i: -len(self._documents[i][1].ids))
        self._batches: list[list[int]] = []
        for place in order:
            last = self._batches[-1] if self._batches else []
            if last and (len(last) + 1) * len(self._documents[last[0]][1].ids) <= _BATCH:
                last.append(place)
            else:
                self._batches.append([place])

    @torch.no_grad()
    def each(self, model: Any) -> dict[str, list[tuple[float, int]]]:
        """Language → (nats, tokens) of the answers of each dialogue, in their order."""
        device = next(model.parameters()).device
        body = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        was, nats = model.training, [0.0] * len(self._documents)
        model.eval()
        for batch in self._batches:
            width = len(self._documents[batch[0]][1].ids)
            ids = torch.zeros(len(batch), width, dtype=torch.int64)
            learnt = torch.zeros(len(batch), width, dtype=torch.bool)
            for row, place in enumerate(batch):
                document = self._documents[place][1]
                ids[row, : len(document.ids)] = torch.tensor(document.ids)
                learnt[row, : len(document.ids)] = torch.tensor(document.learnt)
            learnt[:, 0] = False
            # Padding stands on the right, where a causal model cannot see it: no mask is needed.
            states = body(input_ids=ids.to(device), use_cache=False).last_hidden_state[:, :-1]
            chosen = learnt[:, 1:]
            found = score(states[chosen.to(device)], head_of(model), ids[:, 1:][chosen]).nll
            for place, part in zip(batch, found.split(chosen.sum(1).tolist()), strict=True):
                nats[place] = float(part.double().sum())
        model.train(was)
        result: dict[str, list[tuple[float, int]]] = {language: [] for language in self.languages}
        for (number, document), value in zip(self._documents, nats, strict=True):
            result[self.languages[number]].append((value, sum(document.learnt[1:])))
        return result

    def __call__(self, model: Any) -> dict[str, float]:
        """Language → nats a token; with several processes each measures all, for it is little."""
        return {
            language: round(sum(nats for nats, _ in own) / max(sum(count for _, count in own), 1), 5)
            for language, own in self.each(model).items()
        }


def plain(ids: Sequence[int], prefix: int, end: int | None, length: int) -> list[Taught]:
    """A text as documents to go over: parts of at most `length` tokens, each after the start token, all of them learnt;
    the last ends with the end token where there is one.
    """
    body = [*ids, *([] if end is None else [end])]
    parts = [[prefix, *body[at : at + length - 1]] for at in range(0, max(len(body), 1), length - 1)]
    return [Taught(part, [True] * len(part)) for part in parts]
