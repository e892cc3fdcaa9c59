"""Calibration text with its weights, so that no language pays for another.

The text is drawn by `text.draw`, an equal share for each language; here each token gets its share in
the second moments, so that a language whose text runs short keeps its weight all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..text import draw as drawing
from ..text.draw import LENGTH

# Weight of a sequence's start token in the second moments, where another token's is 1 on average. A
# model sees it before every text and attends to it from everywhere, so an error there is an error
# everywhere. It counts as if texts were 64 tokens long, not 512.
_START = 8.0


@dataclass(frozen=True)
class Calibration:
    """ids: (sequences, length) int64, padded on the right with the start token. weights: the same
    shape, fp32, each token's share in the second moments: 0 for padding, `_START` for start tokens,
    an average of 1 over the others. counts: tokens of each language, start tokens included. names: the
    languages, and owner (sequences,) int64 which of them each sequence is in; one name, `pooled`, where
    sequences mix them. watched: the last so many sequences weigh nothing and only go along, for what becomes
    of them.
    """

    ids: Tensor
    weights: Tensor
    counts: dict[str, int]
    names: tuple[str, ...]
    owner: Tensor
    short: dict[str, int] = field(default_factory=dict)  # language → tokens asked for but not there
    watched: int = 0

    def weighted(self, shares: Mapping[str, float]) -> Calibration:
        """The same with `shares` (any positive numbers, λ of DESIGN §5) of each language in the moments."""
        of_sequence = torch.tensor([shares[name] for name in self.names])[self.owner].unsqueeze(1)
        content = self.weights.clone()
        content[:, 0] = 0
        weights = content * of_sequence
        weights *= content.sum() / weights.sum()
        weights[:, 0] = self.weights[:, 0]
        return replace(self, weights=weights)

    def portion(self, shares: Mapping[str, float], tokens: int) -> Calibration:
        """`tokens` of it, of each language as many as its share (any positive number) of all asks for, and
        with that weight in the moments: where a language has fewer, each of its tokens weighs more.
        """
        rows: list[tuple[int, int, int]] = []  # row, its tokens, its language
        counts = dict.fromkeys(self.names, 0)
        short: dict[str, int] = {}
        lengths = (self.weights > 0).sum(dim=1).tolist()
        total = sum(shares[name] for name in self.names)
        for number, name in enumerate(self.names):
            room = max(2, round(tokens * shares[name] / total))
            for row in (self.owner == number).nonzero().squeeze(1).tolist():
                taken = min(lengths[row], room - counts[name])
                if taken < 2:
                    break
                rows.append((row, taken, number))
                counts[name] += taken
            else:
                if counts[name] < room:
                    short[name] = room - counts[name]
        picked = torch.tensor([row for row, _, _ in rows])
        owner = torch.tensor([number for _, _, number in rows])
        there = torch.arange(self.ids.shape[1]) < torch.tensor([[taken] for _, taken, _ in rows])
        width = int(there.sum(dim=1).max())
        ids = self.ids[picked].masked_fill(~there, int(self.ids[0, 0]))[:, :width]
        weights = _evenly(there[:, :width], owner)
        return Calibration(ids, weights, counts, self.names, owner, short).weighted(shares)

    def watching(self, held_out: Calibration) -> Calibration:
        """The same text with `held_out`, of the same languages, going along behind it."""
        width = max(self.ids.shape[1], held_out.ids.shape[1])

        def wide(rows: Tensor, fill: float) -> Tensor:
            return torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=fill)

        prefix = int(self.ids[0, 0])
        return replace(
            self,
            ids=torch.cat([wide(self.ids, prefix), wide(held_out.ids, prefix)]),
            weights=torch.cat([wide(self.weights, 0), wide(torch.zeros_like(held_out.weights), 0)]),
            owner=torch.cat([self.owner, held_out.owner]),
            watched=len(held_out.ids),
        )


def draw(
    passages: Mapping[str, Mapping[str, str]],
    encode: Callable[[str], list[int]],
    prefix: int,
    tokens: int,
    *,
    balanced: bool,
    share: str = "tokens",
    seed: int = 0,
    length: int = LENGTH,
    beside: Mapping[str, Mapping[str, str]] | None = None,
    beside_share: float = 0.0,
    spare: int = 1,
) -> Calibration:
    """Draw `tokens` tokens of calibration from `passages` (language → id → text); see `text.draw`.

    spare: so many times as many, for `Calibration.portion` to choose from. beside: other passages of the same
    languages, of which that share of the tokens is drawn. Raises OnggiError where a language has no text or
    gets no token.
    """
    own = {name: texts for name, texts in (beside or {}).items() if beside_share}
    # A language without a text beside has all of its share from the first.
    sources = [
        (passages, own.keys(), 1 - beside_share),
        (passages, passages.keys() - own.keys(), 1.0),
        (own, own.keys(), beside_share),
    ]
    parts = []
    for source, names, part in sources:
        texts = {name: source[name] for name in passages if name in names}
        room = round(tokens * part * len(texts) / len(passages))
        if texts and part:  # and where that is no token, the draw says so
            parts.append(
                drawing.draw(
                    texts,
                    encode,
                    prefix,
                    room,
                    balanced=balanced,
                    share=share,
                    seed=seed,
                    length=length,
                    spare=spare,
                )
            )
    drawn = _together(parts, list(passages))
    rows = [row for run in drawn.runs.values() for row in run]
    owner = torch.tensor([number for number, run in enumerate(drawn.runs.values()) for _ in run])
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), prefix, dtype=torch.int64)
    there = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        there[i, : len(row)] = True
    return Calibration(ids, _evenly(there, owner), drawn.counts, tuple(drawn.runs), owner, drawn.short)


def _evenly(there: Tensor, owner: Tensor) -> Tensor:
    """Weights (sequences, length) of the tokens that are `there`: λ_l / n_l each, λ equal, 1 on average; start tokens
    have their own.
    """
    weights = there.float()
    weights[:, 0] = 0
    for number in owner.unique().tolist():
        own = owner == number
        weights[own] *= 1 / float(weights[own].sum())
    weights /= weights[weights > 0].mean()
    weights[:, 0] = _START
    return weights


def _together(parts: Sequence[drawing.Sequences], order: Sequence[str]) -> drawing.Sequences:
    """Several draws as one, languages in `order`."""
    if len(parts) == 1:
        return parts[0]

    def added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
        return {name: total for name in names if (total := sum(one.get(name, 0) for one in counts))}

    # What is not of a language is `pooled`.
    names = [*order, *dict.fromkeys(name for part in parts for name in part.runs if name not in order)]
    own = [name for name in names if any(name in part.runs for part in parts)]
    runs = {name: [row for part in parts for row in part.runs.get(name, ())] for name in own}
    return drawing.Sequences(
        runs, added([part.counts for part in parts]), added([part.short for part in parts])
    )
