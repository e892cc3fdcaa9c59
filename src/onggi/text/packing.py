"""Documents packed into sequences of one length, to train on.

Padded batches of short documents are mostly padding, and documents joined end to end and cut at the
length lose their beginnings to one sequence and their ends to the next. Here whole documents are
fitted together (best-fit decreasing, as for bins: each goes where it leaves the least room), and only
one longer than a sequence is cut, into parts as long as a sequence.

**The rule.** Every part begins with the start token, as every passage that onggi scores does; the last
part of a document ends with the end token, where the tokenizer has one. What is left of a sequence is
filled up with the padding token, or the end token where there is none. A document's text is text all
through: `<|im_end|>` in it is no token that ends a turn.

**What is kept.** A shard is two NumPy files, opened as memory maps and without pickle: the tokens,
and a table of the parts with sequence, start, stop, language and document. From it come the positions
that begin anew with each part, which is how a model is told where one ends (transformers keeps packed
documents apart by them), and whose loss is whose language's.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from .. import ledger
from ..errors import OnggiError, one_line
from .tokens import Tokens, special_token
from .vocabulary import fingerprint

INDEX = "index.json"
# One row for each part of a document. row: the document's number in the source; part: 0 for its first.
PART = np.dtype(
    [
        ("sequence", "<u4"),
        ("start", "<u4"),
        ("stop", "<u4"),
        ("language", "<u2"),
        ("row", "<u8"),
        ("part", "<u4"),
    ]
)
_AT_ONCE = 512  # documents tokenised together


@dataclass(frozen=True)
class Marks:
    """The tokens around text: `start` of every part, `end` of a document (None: it has none), `pad`."""

    start: int
    end: int | None
    pad: int


@dataclass(frozen=True)
class Shard:
    """tokens: (sequences, length). parts: a table of `PART`, in the order of the sequences."""

    tokens: np.ndarray
    parts: np.ndarray


def marks(folder: Path, tokens: Tokens) -> Marks:
    """What the tokenizer in `folder` has to set documents apart."""
    named = [special_token(folder, name) for name in ("eos_token", "pad_token")]
    end, pad = (tokens.tokenizer.token_to_id(token) if token else None for token in named)
    pad = next(index for index in (pad, end, tokens.prefix) if index is not None)
    return Marks(tokens.prefix, end, pad)


def encode(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> Iterator[np.ndarray]:
    """Token ids of each text, int64; special tokens in it are text like any other."""
    tokenizer.encode_special_tokens = True
    try:
        for at in range(0, len(texts), _AT_ONCE):
            batch = list(texts[at : at + _AT_ONCE])
            for made in tokenizer.encode_batch(batch, add_special_tokens=False):
                yield np.array(made.ids, np.int64)
    finally:
        tokenizer.encode_special_tokens = False


def shards(sizes: Sequence[int], each: int, seed: int) -> list[list[int]]:
    """Numbers of documents of `sizes` bytes, in an order shuffled by `seed`, in shards of about `each` bytes.

    The last one is as large as the others: a small one could not be filled well.
    """
    order = list(range(len(sizes)))
    random.Random(seed).shuffle(order)
    total = sum(sizes)
    count = max(1, round(total / each))
    found: list[list[int]] = [[] for _ in range(count)]
    before = 0
    for number in order:
        found[min(count - 1, before * count // max(total, 1))].append(number)
        before += sizes[number]
    return [shard for shard in found if shard]


def split(ids: np.ndarray, length: int, marks: Marks) -> list[np.ndarray]:
    """The parts of one document, each at most `length` tokens; see the rule above."""
    body = ids if marks.end is None else np.append(ids, marks.end)
    return [
        np.concatenate(([marks.start], body[at : at + length - 1]))
        for at in range(0, max(len(body), 1), length - 1)
    ]


def best_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Numbers of the parts in each sequence: the largest first, each where it leaves the least room.

    `sizes` are at most `length`. Among equals the earlier comes first, so that the result is one.
    """
    bins: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms = 0  # bit n is set where a sequence has room for n
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        size = sizes[number]
        wide = rooms >> size
        if wide:
            room = size + (wide & -wide).bit_length() - 1
            chosen = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, chosen = length, len(bins)
            bins.append([])
        bins[chosen].append(number)
        left = room - size
        if left:
            by_room.setdefault(left, []).append(chosen)
            rooms |= 1 << left
    return bins


def pack(
    documents: Iterable[tuple[int, int, np.ndarray]],
    length: int,
    marks: Marks,
    dtype: type[np.unsignedinteger[Any]],
    seed: int,
) -> Shard:
    """One shard of `documents` (row, number of its language, token ids), sequences in an order shuffled by
    `seed`: those that fill best came first.
    """
    pieces = [
        (row, language, part, ids)
        for row, language, whole in documents
        for part, ids in enumerate(split(whole, length, marks))
    ]
    bins = best_fit([len(ids) for *_, ids in pieces], length)
    random.Random(seed).shuffle(bins)
    tokens = np.full((len(bins), length), marks.pad, dtype)
    parts = np.zeros(len(pieces), PART)
    count = 0
    for sequence, numbers in enumerate(bins):
        at = 0
        for number in numbers:
            row, language, part, ids = pieces[number]
            tokens[sequence, at : at + len(ids)] = ids
            parts[count] = (sequence, at, at + len(ids), language, row, part)
            at += len(ids)
            count += 1
    return Shard(tokens, parts)


def facts(shard: Shard, languages: Sequence[str]) -> dict[str, Any]:
    """What is in a shard: `sequences`, `fill` (the share of its places that hold a token), and by language
    `documents` (of which it holds the first part), `parts`, `tokens`, `fill`. The padding of a sequence is
    charged to its languages by the tokens they have in it.
    """
    parts = shard.parts
    sequences, length = shard.tokens.shape
    sizes = (parts["stop"] - parts["start"]).astype(np.int64)
    used = np.bincount(parts["sequence"], sizes, minlength=sequences)
    places = sizes * length / used[parts["sequence"]]
    found: dict[str, Any] = {}
    for number, language in enumerate(languages):
        mine = parts["language"] == number
        if mine.any():
            found[language] = {
                "documents": int((parts["part"][mine] == 0).sum()),
                "parts": int(mine.sum()),
                "tokens": int(sizes[mine].sum()),
                "fill": round(float(sizes[mine].sum() / places[mine].sum()), 5),
            }
    total = int(sizes.sum())
    return {
        "sequences": sequences,
        "tokens": total,
        "fill": round(total / (sequences * length), 5),
        "languages": found,
    }


@dataclass(frozen=True)
class Batch:
    """Sequences as a model takes them, each (sequences, length).

    ids: int64. positions: int64, from 0 in every part, and in the padding. predicted: where a token follows
    another of its own part, so that it can be asked for; nothing predicts the first of a part, and padding
    is not predicted. languages: int64, the number of the language in `Packed.languages`; 0 in padding.
    """

    ids: np.ndarray
    positions: np.ndarray
    predicted: np.ndarray
    languages: np.ndarray


class Packed:
    """A folder that `onggi pack` made: `len` sequences of `length` tokens, in `languages`.

    `batch` and `batches` begin at any sequence, so that a run that was killed goes on where it was: they
    read that place alone. The text was shuffled when it was packed; read it in order.

    Raises OnggiError where the folder is not that, or a shard is not the one that was written.
    """

    def __init__(self, folder: Path):
        found = ledger.artifact(folder)
        # `onggi capture` keeps its text in the same way.
        if found is None or found.record["verb"] not in ("pack", "capture"):
            raise OnggiError(f"{folder}: is no packed text; `onggi pack` makes it.")
        self.folder, self._outputs = folder, found.record["outputs"]
        self.index: dict[str, Any] = ledger.read_json(folder / INDEX)
        self.length: int = self.index["length"]
        self.languages: list[str] = self.index["languages"]
        counts = [shard["sequences"] for shard in self.index["shards"]]
        self._ends = np.cumsum(counts)
        self._open: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def check(self, folder: Path) -> None:
        """Refuse a model whose tokenizer is another than the text was packed with: OnggiError."""
        theirs = fingerprint(Tokens(folder).tokenizer)
        ours = self.index["tokenizer"]
        if theirs != ours["fingerprint"]:
            raise OnggiError(
                f"{self.folder}: was packed with the tokenizer of {ours['source']}, and {folder} has another: "
                "the ids would mean other text. Pack it again with --tokenizer "
                f"{folder}."
            )

    def batch(self, start: int, count: int = 1) -> Batch:
        """`count` sequences from number `start` on; IndexError where there are not so many."""
        if not 0 <= start <= start + count <= len(self):
            raise IndexError(f"sequences {start} to {start + count} of {len(self)}")
        rows = [self._row(number) for number in range(start, start + count)]
        return Batch(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))

    def batches(self, size: int, start: int = 0) -> Iterator[Batch]:
        """All sequences from number `start` on, `size` at a time; the last batch may be smaller."""
        for at in range(start, len(self), size):
            yield self.batch(at, min(size, len(self) - at))

    def parts(self, number: int) -> np.ndarray:
        """The parts of documents in sequence `number`, a table of `PART`."""
        shard, within = self._place(number)
        _, parts, first = self._shard(shard)
        return parts[first[within] : first[within + 1]]

    def _place(self, number: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - (int(self._ends[shard - 1]) if shard else 0)

    def _row(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        shard, within = self._place(number)
        ids = self._shard(shard)[0][within].astype(np.int64)
        # Parts lie end to end from the first place on, and the padding behind them.
        parts = self.parts(number)
        stop = int(parts["stop"][-1])
        starts = np.append(parts["start"], stop).astype(np.int64)
        positions = np.arange(self.length) - np.repeat(starts, np.diff(starts, append=self.length))
        predicted = (positions > 0) & (np.arange(self.length) < stop)
        languages = np.zeros(self.length, np.int64)
        languages[:stop] = np.repeat(parts["language"], np.diff(starts))
        return ids, positions, predicted, languages

    def _shard(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, parts, and where the parts of each sequence begin (one more entry than sequences)."""
        if number not in self._open:
            entry = self.index["shards"][number]
            tokens, parts = (self._load(entry[name]) for name in ("tokens_file", "parts_file"))
            first = np.searchsorted(parts["sequence"], np.arange(entry["sequences"] + 1))
            self._open[number] = tokens, parts, first
        return self._open[number]

    def _load(self, name: str) -> np.ndarray:
        return mapped(self.folder / name, self._outputs, "Pack the text again.")


def mapped(path: Path, outputs: Mapping[str, Mapping[str, Any]], mend: str) -> np.ndarray:
    """The array in `path`, as it lies on disk. Raises OnggiError, with the mend, where it is not the one that the
    artifact's record of its `outputs` says.
    """
    try:
        if ledger.sha256(path) != outputs[path.name]["sha256"]:
            raise ValueError("its contents are not those that were written")
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError) as error:
        raise OnggiError(f"{path}: is damaged ({one_line(error)}). {mend}") from error
    return array


def totals(shards: Iterable[dict[str, Any]], length: int) -> dict[str, Any]:
    """What is in all shards together, from the `facts` of each."""
    shards = list(shards)
    counts: dict[str, Counter[str]] = {}
    places: dict[str, float] = {}
    for shard in shards:
        for language, found in shard["languages"].items():
            mine = counts.setdefault(language, Counter())
            for key in ("documents", "parts", "tokens"):
                mine[key] += found[key]
            places[language] = places.get(language, 0.0) + found["tokens"] / found["fill"]
    sequences = sum(shard["sequences"] for shard in shards)
    tokens = sum(shard["tokens"] for shard in shards)
    return {
        "sequences": sequences,
        "tokens": tokens,
        "fill": round(tokens / (sequences * length), 5),
        "languages": {
            language: {**found, "fill": round(found["tokens"] / places[language], 5)}
            for language, found in counts.items()
        },
    }
