"""Translation from and into English over any parallel text, scored by chrF.

The prompt names each language in itself (`English: …`, `한국어: …`), which needs no words of any
other language. chrF (sacrebleu) compares character n-grams, so it needs no words to be split in
Thai or Chinese; it is a number from 0 to 100 that compares systems within one language, not
languages with each other.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ... import languages as tags
from ... import text as texts
from .items import Item, Open, Task, _parallel


@dataclass(frozen=True)
class Translation(Task):
    """Each passage to translate `into` the language, or from it into English."""

    into: bool = False

    def languages(self, text: texts.Text | None = None) -> tuple[str, ...]:
        """Those of the text but English; none where English is not in it."""
        found = _parallel(self.name, text).languages
        return tuple(language for language in found if language != "en") if "en" in found else ()

    def _all(self, languages: Sequence[str], text: texts.Text | None) -> dict[str, list[Item]]:
        passages = _parallel(self.name, text).common(["en", *languages])
        return {
            language: [
                self._item(
                    key, language, " ".join(english.split()), " ".join(passages[language][key].split())
                )
                for key, english in passages["en"].items()
            ]
            for language in languages
        }

    def _item(self, key: str, language: str, english: str, other: str) -> Open:
        source, target = ("en", language) if self.into else (language, "en")
        given, answer = (english, other) if self.into else (other, english)
        return Open(f"{self.name}-{key}", f"{_called(source)}: {given}\n{_called(target)}:", answer)


@functools.cache
def _called(language: str) -> str:
    name = tags.name(language, language)
    return name[0].upper() + name[1:]


@functools.cache
def _metric() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def chrf(answer: str, reference: str) -> float:
    """chrF2 of one answer, 0 to 100 (Popović 2015, as sacrebleu computes it for a sentence).

    The score of a model is the mean over passages, so that passages can be paired and resampled.
    """
    return float(_metric().sentence_score(answer, [reference]).score)


def chrf_signature() -> str:
    """How chrF was computed, in sacrebleu's words; to stand beside every score."""
    # sacrebleu tells its signature only of a metric that has scored.
    chrf("a", "a")
    return str(_metric().get_signature())


TRANSLATIONS: tuple[Task, ...] = (
    Translation("translate_from", "a passage → English", "chrf", parallel=True, stop=("\n",)),
    Translation("translate_into", "English → a passage", "chrf", parallel=True, stop=("\n",), into=True),
)
