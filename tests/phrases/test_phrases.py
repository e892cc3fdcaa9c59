"""Every language says the same things, and Korean particles fit the word before them."""

from __future__ import annotations

import string
from collections.abc import Iterator

import pytest

from onggi.errors import OnggiError
from onggi.phrases import Phrases, available, with_particle


def fields(template: str) -> Iterator[str]:
    return (name for _, name, _, _ in string.Formatter().parse(template) if name)


FILES = [(of, language) for of in ("", "rate") for language in available(of)]


@pytest.mark.parametrize(("of", "language"), FILES)
def test_every_file_has_the_same_keys_and_fields(of: str, language: str) -> None:
    english, own = Phrases("en", of).templates, Phrases(language, of).templates
    assert own.keys() == english.keys()
    # A language may say less of a field (Korean has no plural), never one that is not given.
    extra = {key: set(fields(own[key])) - set(fields(english[key])) for key in own}
    assert not any(extra.values())
    lost = {key: set(fields(english[key])) - set(fields(own[key])) for key in own}
    assert not any(lost.values())


@pytest.mark.parametrize(("of", "language"), [file for file in FILES if file[1] != "en"])
def test_no_english_sentence_is_left_in_another_language(of: str, language: str) -> None:
    english, korean = Phrases("en", of).templates, Phrases(language, of).templates
    same = {key for key in english if english[key] == korean[key]}
    assert all(not any(c.isalpha() for c in "".join(_literals(english[key]))) for key in same)


def _literals(template: str) -> Iterator[str]:
    return (literal for literal, _, _, _ in string.Formatter().parse(template))


@pytest.mark.parametrize(
    ("word", "topic", "by"),
    [
        ("크메르어", "크메르어는", "크메르어로"),
        ("독일", "독일은", "독일로"),
        ("한글", "한글은", "한글로"),
        ("영문", "영문은", "영문으로"),
        ("크메르어(km)", "크메르어(km)는", "크메르어(km)로"),
        ("7", "7은", "7로"),
        ("2", "2는", "2로"),
        ("10", "10은", "10으로"),
        ("balanced", "balanced은(는)", "balanced(으)로"),
        ("ภาษาไทย", "ภาษาไทย은(는)", "ภาษาไทย(으)로"),
        ("", "은(는)", "(으)로"),
    ],
)
def test_particles(word: str, topic: str, by: str) -> None:
    assert with_particle(word, "은", "는") == topic
    assert with_particle(word, "으로", "로") == by


def test_numbers_and_names() -> None:
    say = Phrases("en")
    assert say("measured.passages", count=1) == "1 passage"
    assert say("measured.passages", count=1200) == "1,200 passages"
    assert Phrases("kor_Hang").name("km") == "크메르어"
    with pytest.raises(KeyError):
        say("measured.passages")


def test_the_page_of_rate_speaks_languages_of_its_own() -> None:
    assert available("rate") == ["en", "ja", "ko"] and available() == ["en", "ko"]
    assert Phrases("ja", "rate")("pair.title", number=2, count=9) == "9組中 2組目"


def test_a_language_without_phrases() -> None:
    with pytest.raises(OnggiError, match=r"no phrases in Khmer \(km\), only in en, ko"):
        Phrases("km")
