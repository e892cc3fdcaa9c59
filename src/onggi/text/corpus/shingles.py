"""N-grams of a text as numbers, in every script, without a loop over words.

A text is reduced to its letters, marks and digits. Where words are set apart by spaces an n-gram is n
words; where they are not (Thai, Khmer, Chinese …) it is the window of characters that takes the place of
n English words. Each is hashed as a difference of prefix sums of a polynomial, all at once: a document of a
thousand words costs some tens of microseconds where a loop over its words costs milliseconds.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
import regex

from ... import languages as tags
from .. import scripts

_FORMAT = regex.compile(r"\p{Cf}+")
_REST = regex.compile(r"[^\p{L}\p{M}\p{N}]+")
# Scripts in which a space does not end a word.
_UNSPACED = frozenset(
    {"Thai", "Khmr", "Laoo", "Mymr", "Hani", "Hira", "Kana", "Tibt", "Java", "Bali", "Lana"}
)
_BASE = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def spaced(language: str) -> bool:
    """True where words of `language` are set apart by spaces."""
    return not _UNSPACED & set(scripts.unicode_scripts(tags.script(language)))


def simplify(text: str) -> str:
    """Letters, marks and digits in compatibility form and lower case, one space between words."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return str(_REST.sub(" ", _FORMAT.sub("", folded)).strip())


def mixed(values: np.ndarray) -> np.ndarray:
    """uint64 with every bit depending on every bit (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.lru_cache(maxsize=1)
def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """_BASE to the powers 0 … size-1, and their inverses, modulo 2^64."""
    tables = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        table = np.full(size, base, np.uint64)
        table[0] = 1
        tables.append(np.multiply.accumulate(table))
    return tables[0], tables[1]


class Shingled:
    """A simplified text, ready to be cut into n-grams. `letters`: how many characters it has, spaces aside."""

    def __init__(self, simplified: str, words: bool):
        """words: n-grams are of words, else of characters."""
        self.words = words
        text = simplified if words else simplified.replace(" ", "")
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
        size = 1 << max(16, (len(codes) + 1).bit_length())
        self._inverse = _powers(size)[1]
        self._sums = np.zeros(len(codes) + 1, np.uint64)
        np.cumsum((codes + np.uint64(1)) * _powers(size)[0][: len(codes)], out=self._sums[1:])
        self.size = len(codes)
        space = np.flatnonzero(codes == 32)
        self._starts = np.concatenate([[0], space + 1]) if self.size else np.zeros(0, np.int64)
        self._ends = np.concatenate([space, [self.size]]) if self.size else np.zeros(0, np.int64)
        self.letters = self.size - len(space)
        self.tokens = len(self._starts) if words else self.size

    def grams(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hashes (uint64), begins and ends of all n-grams; empty where the text is shorter than n."""
        if self.tokens < n:
            empty = np.zeros(0, np.int64)
            return np.zeros(0, np.uint64), empty, empty
        if self.words:
            begins, ends = self._starts[: len(self._starts) - n + 1], self._ends[n - 1 :]
        else:
            begins = np.arange(self.size - n + 1)
            ends = begins + n
        return mixed((self._sums[ends] - self._sums[begins]) * self._inverse[begins]), begins, ends

    def shingles(self, n: int) -> np.ndarray:
        """The set of n-grams' hashes, sorted; the whole text as one where it is shorter than n."""
        if self.tokens < n:
            return mixed(self._sums[-1:]) if self.size else np.zeros(0, np.uint64)
        return np.unique(self.grams(n)[0])

    def top(self, n: int) -> float:
        """The share of the text that its most frequent n-gram takes; 0 where none stands three times."""
        hashes, begins, ends = self.grams(n)
        if not len(hashes):
            return 0.0
        _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        often = counts > 2
        if not often.any():
            return 0.0
        taken = counts[often] * (ends - begins)[first[often]]
        return float(min(1.0, taken.max() / self.size))

    def repeated(self, n: int) -> float:
        """The share of the text in n-grams that stood before in it, each character counted once."""
        hashes, begins, ends = self.grams(n)
        if not len(hashes):
            return 0.0
        _, first = np.unique(hashes, return_index=True)
        again = np.ones(len(hashes), bool)
        again[first] = False
        if not again.any():
            return 0.0
        edges = np.bincount(begins[again], minlength=self.size + 1).astype(np.int64)
        edges -= np.bincount(ends[again], minlength=self.size + 1)
        return float((np.cumsum(edges)[:-1] > 0).mean())
