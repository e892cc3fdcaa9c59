"""Rows that say what another says: the same letters, nearly the same shingles, or an evaluation's text.

MinHash as datatrove and most others set it up (14 groups of 8 hashes over shingles of 5 words), in numpy:
of the groups' hashes of all rows those that are equal are found by sorting, group by group, so that the
memory is some 150 bytes a row. datatrove's own blocks do the same by merging files a record at a time, which
scales past the memory and takes ten times the CPU (20,000 signatures: 0.54 s and 0.06 s); what decides against
them is that their words are one package a language, that none of those is for Khmer or Thai as installed, and
that their default hash fails with xxhash 4.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import OnggiError
from .config import Cleaning
from .measures import window
from .scale import Scale
from .shingles import Shingled, mixed, simplify, spaced

KEEP, EXACT, NEAR = 0, 1, 2
_CHUNK = 4096  # shingles hashed at once


def morphemes(config: Cleaning) -> bool:
    """True where Korean is cut into morphemes. Raises OnggiError where that is asked for and cannot be."""
    there = importlib.util.find_spec("kiwipiepy") is not None
    if config.korean == "morphemes" and not there:
        raise OnggiError("korean: morphemes need pip install 'onggi[corpus]' (or korean: characters).")
    return there and config.korean != "characters"


@functools.cache
def _kiwi() -> Any:
    from kiwipiepy import Kiwi

    logging.getLogger("kiwipiepy").setLevel(logging.ERROR)
    return Kiwi(num_workers=1)


def exact(simplified: str) -> bytes:
    """16 bytes, the same for texts of the same letters and digits."""
    return hashlib.blake2b(simplified.replace(" ", "").encode(), digest_size=16).digest()


def shingles(text: str, simplified: str, lang: str, config: Cleaning, scale: Scale, kiwi: bool) -> np.ndarray:
    """The set of a text's shingles, uint64: of words, of Korean morphemes, else of characters."""
    if lang == "ko" and kiwi:
        tokens = (
            token.form for line in text.split("\n") for token in _kiwi().tokenize(line) if token.tag[0] != "S"
        )
        return Shingled(simplify(" ".join(tokens)), True).shingles(config.shingle)
    words = spaced(lang) and lang != "ko"
    return Shingled(simplified, words).shingles(window(config.shingle, words, scale))


@functools.lru_cache(maxsize=4)
def _parameters(count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    drawn = random.integers(0, 1 << 63, size=(2, count), dtype=np.uint64)
    return drawn[0] | np.uint64(1), drawn[1]


def signature(found: np.ndarray, config: Cleaning) -> np.ndarray:
    """One uint64 for each group of hashes: equal where all the least hashes of the group are."""
    a, b = _parameters(config.buckets * config.hashes)
    least = np.full(len(a), np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(found), _CHUNK):
        part = found[start : start + _CHUNK, None]
        np.minimum(least, (part * a + b).min(axis=0), out=least)
    weights = _parameters(config.hashes)[0]
    return mixed((least.reshape(config.buckets, config.hashes) * weights).sum(axis=1, dtype=np.uint64))


def duplicates(exact_hashes: np.ndarray, groups: Iterable[np.ndarray], near: bool, same: bool) -> np.ndarray:
    """KEEP, EXACT or NEAR for each row (uint8). Of rows that are alike the first is kept.

    exact_hashes: (rows, 2) uint64. groups: one array of uint64 a group, by row; row order is source order.
    """
    rows = len(exact_hashes)
    found = np.zeros(rows, np.uint8)
    if same and rows:
        order = np.lexsort((np.arange(rows), exact_hashes[:, 1], exact_hashes[:, 0]))
        ordered = exact_hashes[order]
        found[order[1:][(ordered[1:] == ordered[:-1]).all(axis=1)]] = EXACT
    if not near:
        return found
    left = np.flatnonzero(found == KEEP)
    parent = np.arange(rows)

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = int(parent[row])
        return row

    for group in groups:
        values = group[left]
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        for place in np.flatnonzero(ordered[1:] == ordered[:-1]):
            one, other = root(int(left[order[place]])), root(int(left[order[place + 1]]))
            parent[max(one, other)] = min(one, other)
    for row in left:
        if root(int(row)) != row:
            found[row] = NEAR
    return found


# ── evaluation sets ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Exam:
    """An evaluation set: language → its texts."""

    name: str
    texts: Mapping[str, Sequence[str]]


class Contamination:
    """Finds pieces of evaluation sets in a row: windows of as many characters as `overlap` English words."""

    def __init__(self, exams: Iterable[Exam], config: Cleaning, scales: Mapping[str, Scale]):
        """Index every text in a language of `scales`. `short`: exam → texts too short to tell."""
        self._width = {tag: window(config.overlap, False, scale) for tag, scale in scales.items()}
        self.items: list[str] = []
        self.short: dict[str, int] = {}
        gathered: dict[str, list[tuple[np.ndarray, int]]] = {}
        for exam in exams:
            self.short[exam.name] = 0
            for language, texts in exam.texts.items():
                if language not in scales:
                    continue
                for number, text in enumerate(texts, 1):
                    hashes = Shingled(simplify(text), False).grams(self._width[language])[0]
                    if not len(hashes):
                        self.short[exam.name] += 1
                        continue
                    gathered.setdefault(language, []).append((hashes, len(self.items)))
                    self.items.append(f"{exam.name} {language} {number}")
        self._index: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for language, found in gathered.items():
            hashes = np.concatenate([part for part, _ in found])
            owners = np.concatenate([np.full(len(part), item) for part, item in found])
            order = np.argsort(hashes, kind="stable")
            self._index[language] = hashes[order], owners[order]

    def find(self, simplified: str, lang: str) -> list[str]:
        """The evaluation items that `simplified` has a window of; none for most rows."""
        if lang not in self._index:
            return []
        hashes, owners = self._index[lang]
        own = Shingled(simplified, False).grams(self._width[lang])[0]
        places = np.searchsorted(hashes, own)
        places[places == len(hashes)] = 0
        hit = places[hashes[places] == own]
        return sorted({self.items[owners[place]] for place in hit})
