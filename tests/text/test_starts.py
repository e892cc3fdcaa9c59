"""The starts that ship: beginnings of sentences, in enough languages, that a model can write on from."""

from __future__ import annotations

import unicodedata

import pytest

from onggi import languages, text
from onggi.text import identify, scripts

STARTS = text.load("starts")
# Marks that end a sentence or a clause, in the scripts of the starts.
ENDS = ".,;:!?…。、，；：！？·।॥។៕።፣၊။،؛؟։՝-–—"


def test_sixteen_in_each_of_many_languages() -> None:
    assert set(text.load("probe").languages) < set(STARTS.languages)
    assert len(STARTS.languages) >= 44
    assert len({languages.script(tag) for tag in STARTS.languages}) >= 20
    found = [start for tag in STARTS.languages for start in STARTS.passages(tag).values()]
    assert len(found) == len(set(found))


@pytest.mark.parametrize("tag", STARTS.languages)
def test_each_is_a_beginning_in_its_language(tag: str) -> None:
    assert languages.canonical(tag) == tag
    starts = list(STARTS.passages(tag).values())
    assert len(starts) >= 16
    for start in starts:
        assert start == unicodedata.normalize("NFC", start) == start.strip()
        assert start[-1] not in ENDS and "  " not in start
        assert not {unicodedata.category(char) for char in start} & {"Cc", "Cn", "Co", "Cs"}, start
        # Uzbek's ʻ is a letter of no script's.
        assert scripts.own_share(start, tag) > (0.85 if tag == "uz" else 0.95), start
        assert 8 <= len(start) <= 80, start
        assert identify.known(tag) and identify.identify(start, expected=tag).language == tag, start
    assert identify.identify("\n".join(starts)).language == tag


def test_measurement_shares_no_four_words_with_a_start() -> None:
    """Four between spaces, so whole starts of the languages that write without them."""
    probe = text.load("probe")
    for tag in probe.languages:
        measured = " ".join(" ".join(probe.passages(tag).values()).split())
        for start in STARTS.passages(tag).values():
            words = start.split()
            for first in range(max(1, len(words) - 3)):
                assert " ".join(words[first : first + 4]) not in measured, start
