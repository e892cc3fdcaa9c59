"""How much of a language says what a piece of English says: the unit in which languages are compared.

A byte is not the same amount of text in two languages: UTF-8 charges Khmer three bytes a letter, and
Korean says in four letters what takes English nine. Parallel text tells by how much: the same passages,
counted in each language. From the shipped probe for its twelve languages; from a parallel source of the
user's own where one is; else the mean of the script's known languages.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from ... import languages as tags
from .. import sources
from .shingles import simplify

_ENOUGH = 40  # passages in both languages


@dataclass(frozen=True)
class Scale:
    """bytes, letters: of this language for one of English, for the same content. known_from: the text that
    tells it.
    """

    bytes: float
    letters: float
    known_from: str

    @property
    def content(self) -> float:
        """Bytes of English for a byte."""
        return 1 / self.bytes

    def record(self) -> dict[str, float | str]:
        """As the artifact has it."""
        return {
            key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()
        }


def letters(text: str) -> int:
    """Letters, marks and digits."""
    return len(simplify(text).replace(" ", ""))


@functools.cache
def word() -> float:
    """Letters to an English word, in the probe."""
    passages = sources.load("probe", ("en",)).passages("en").values()
    return sum(map(letters, passages)) / sum(len(simplify(text).split()) for text in passages)


def measured(text: sources.Text) -> dict[str, Scale]:
    """The scale of each language of a parallel text with English in it, where enough passages are shared."""
    if not text.parallel or "en" not in text.languages:
        return {}
    english = text.passages("en")
    found = {}
    for language in text.languages:
        passages = text.passages(language)
        shared = [key for key in english if key in passages]
        if len(shared) < _ENOUGH:
            continue
        size, count = (
            sum(measure(passages[key]) for key in shared) / sum(measure(english[key]) for key in shared)
            for measure in (_bytes, letters)
        )
        found[language] = Scale(size, count, text.name)
    return found


def _bytes(text: str) -> int:
    return len(text.encode())


def scales(languages: Iterable[str], own: Mapping[str, Scale]) -> dict[str, Scale]:
    """The scale of each language; `own` are those that parallel sources tell."""
    probe = _probe()
    known = {**own, **probe}
    found = {}
    for language in languages:
        if language in known:
            found[language] = known[language]
            continue
        script = tags.script(language)
        alike = [scale for tag, scale in known.items() if tags.script(tag) == script]
        if alike:
            size, count = (
                float(np.mean([getattr(one, name) for one in alike])) for name in ("bytes", "letters")
            )
            found[language] = Scale(size, count, f"mean of {len(alike)} languages in {script}")
        else:
            found[language] = Scale(1.0, 1.0, "nothing; taken as English")
    return found


@functools.cache
def _probe() -> dict[str, Scale]:
    return measured(sources.load("probe"))
