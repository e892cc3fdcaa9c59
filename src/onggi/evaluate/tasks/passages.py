"""How a passage goes on, and what stands in its gap: from any parallel text, in any language.

A passage is cut where a sentence ends, as near to the middle (or the thirds) as may be, else where a
clause ends; in Thai, which marks neither, where it leaves a space. The wrong answers are the same parts of other
passages, the same ones in every language. Nothing is said to the model: it reads text and scores
what could follow.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from ... import text as texts
from .items import Choice, Item, Task, _parallel

# Where to cut, best first: after a sentence (not after an ordinal, `3. Mai`), after a clause (in the
# scripts that write spaces there, but not within `อุณหภูมิ 18`), between words.
_CUTS = (
    regex.compile(r"(?<![\p{Thai}\p{Lao}\p{N}])[.!?;…؟]['\"”’»)]*\s+|[。！？।॥។៕؟][」』”’)]*\s*"),
    regex.compile(
        r"[,:،–—]\s+|[、，：；]|(?<=[\p{Thai}\p{Khmer}\p{Lao}\p{Myanmar}])(?<!\p{N})\s+(?![\p{N}ๆ])"
    ),
    regex.compile(r"\s+"),
)
_SHORTEST = 6  # characters of a part


def cut(passage: str, parts: int) -> list[str] | None:
    """`passage` in that many parts of about the same length, or None where there is no place to cut.

    A part begins with the space before it: joined, they are the passage.
    """
    for pattern in _CUTS:
        places = [match.start() + len(match.group().rstrip()) for match in pattern.finditer(passage)]
        places = [place for place in places if 0 < place < len(passage)]
        chosen = [
            min(places, key=lambda place: abs(place - len(passage) * part / parts), default=0)
            for part in range(1, parts)
        ]
        edges = [0, *chosen, len(passage)]
        lengths = [b - a for a, b in itertools.pairwise(edges)]
        if min(lengths) >= max(_SHORTEST, len(passage) / parts / 3):
            return [passage[a:b] for a, b in itertools.pairwise(edges)]
    return None


@dataclass(frozen=True)
class Passages(Task):
    """The passage in `parts`; part number 1 (from 0) is asked for, what follows it is given away."""

    parts: int = 2

    def languages(self, text: texts.Text | None = None) -> tuple[str, ...]:
        """Those of the text."""
        return _parallel(self.name, text).languages

    def _all(self, languages: Sequence[str], text: texts.Text | None) -> dict[str, list[Item]]:
        source = _parallel(self.name, text)
        cuts = {
            language: {
                key: parts
                for key, passage in texts_of.items()
                if (parts := cut(" ".join(passage.split()), self.parts))
            }
            for language, texts_of in source.common(languages).items()
        }
        shared = [key for key in cuts[languages[0]] if all(key in found for found in cuts.values())]
        items: dict[str, list[Item]] = {language: [] for language in languages}
        for number, key in enumerate(shared):
            others = self._others(key, shared, cuts)
            if len(others) < 3:
                continue
            place = number % 4
            for language, found in cuts.items():
                before, _, *after = found[key]
                keys = [*others[:place], key, *others[place:]]
                choices = tuple("".join([found[other][1], *after]) for other in keys)
                items[language].append(Choice(f"{self.name}-{key}", before, choices, place))
        return items

    def _others(self, key: str, shared: list[str], cuts: dict[str, dict[str, list[str]]]) -> list[str]:
        """Three passages whose part differs from this one's, and from each other, in every language."""
        taken = [key]
        # By the hash of the pair: what another passage adds to the text does not reorder the rest.
        for other in sorted(shared, key=lambda other: hashlib.sha256(f"{key}/{other}".encode()).digest()):
            if all(found[other][1] != found[earlier][1] for found in cuts.values() for earlier in taken):
                taken.append(other)
            if len(taken) == 4:
                break
        return taken[1:]


PASSAGES: tuple[Task, ...] = (
    Passages("next_passage", "the first half of a passage → the second", "acc_norm", parallel=True),
    Passages("fill_gap", "a passage without its middle → the middle", "acc_norm", parallel=True, parts=3),
)
