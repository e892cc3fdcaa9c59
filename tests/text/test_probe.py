"""The two texts that ship: is each what it claims to be, and do they keep apart?"""

from __future__ import annotations

import json
import re
import unicodedata
from importlib import resources

import pytest

from onggi import languages, text
from onggi.text import scripts

PROBE = ("en", "de", "es", "ru", "el", "ko", "ja", "zh-Hans", "ar", "hi", "th", "km")
STARTER = ("en", "de", "ko", "ja", "zh-Hans", "el", "km", "ru")
# Passages in which the figures matter, so that every language writes them as figures.
FIGURES = "weather-01 recipe-04 bus-05 sum-08 phone-11 door-13 news-14 museum-20 train-21 trail-34"


def test_forty_passages_in_twelve_languages() -> None:
    probe = text.load("probe")
    assert probe.parallel and probe.languages == PROBE
    assert len({languages.script(tag) for tag in PROBE}) == 10
    for tag in PROBE:
        passages = probe.passages(tag)
        assert len(passages) == len(set(passages.values())) == 40
        assert list(passages) == list(probe.passages("en"))


@pytest.mark.parametrize("name", ["probe", "starter"])
def test_the_file_is_clean(name: str) -> None:
    content = (resources.files("onggi.text") / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
    assert content == unicodedata.normalize("NFC", content)
    rows = [json.loads(line) for line in content.splitlines()]
    for row in rows:
        for value in row.values():
            assert value == value.strip() != ""
            # No control characters, nothing unassigned or private, no letter that could not be decoded.
            assert not {unicodedata.category(c) for c in value} & {"Cc", "Cn", "Co", "Cs"}
            assert "\ufffd" not in value and "  " not in value


@pytest.mark.parametrize("name", ["probe", "starter"])
def test_every_passage_is_in_its_script(name: str) -> None:
    found = text.load(name)
    for tag in found.languages:
        for key, passage in found.passages(tag).items():
            assert scripts.own_share(passage, tag) > 0.95, (tag, key)
            if tag == "ja":  # not Chinese
                assert scripts.count_in(passage, "Hrkt") > 10, key
            if tag == "zh-Hans":
                assert scripts.count_in(passage, "Hrkt") == 0, key


def numbers(passage: str) -> set[str]:
    """Numbers in digits of any script, without marks between thousands: ៣៨៤.០០០ → 384000."""
    found = re.findall(r"\d+(?:[.,٬\u00a0\u202f ]\d{3})*", passage)
    return {"".join(str(unicodedata.digit(c)) for c in number if c.isdigit()) for number in found}


def test_the_figures_are_the_same_in_every_language() -> None:
    probe = text.load("probe")
    for key in FIGURES.split():
        wanted = {number for number in numbers(probe.passages("en")[key]) if len(number) > 1}
        assert wanted
        for tag in PROBE:
            assert wanted <= numbers(probe.passages(tag)[key]), (key, tag)


def test_no_language_is_cut_short() -> None:
    """A passage is about as long in each language, the density of its script taken into account."""
    probe = text.load("probe")
    for tag in PROBE:
        ratios = {key: len(t) / len(probe.passages("en")[key]) for key, t in probe.passages(tag).items()}
        middle = sorted(ratios.values())[20]
        assert all(middle / 2 < ratio < middle * 2 for ratio in ratios.values()), (tag, ratios)


def test_starter_is_text_for_eight_languages() -> None:
    starter = text.load("starter")
    assert not starter.parallel
    assert set(starter.languages) == set(STARTER)
    assert starter.licence == text.load("probe").licence == "Apache-2.0"
    for tag in STARTER:
        assert len(starter.passages(tag)) >= 10


def sentences(passage: str) -> set[str]:
    parts = re.split(r"[.!?;·…。！？؟।។៕\n]+", passage)
    return {part.strip(" \"'“”«»「」") for part in parts if len(part.strip()) > 8}


def test_calibration_and_measurement_share_no_sentence() -> None:
    probe, starter = text.load("probe"), text.load("starter")
    for tag in STARTER:
        measured = set().union(*(sentences(passage) for passage in probe.passages(tag).values()))
        whole = "\n".join(starter.passages(tag).values())
        assert len(measured) > 60
        assert [sentence for sentence in measured if sentence in whole] == []
