"""What a model wrote is shown as text, cut between characters, and runs the way its letters do."""

from __future__ import annotations

import unicodedata

import pytest

from onggi.text.display import cut, direction, shown


def test_what_acts_is_shown_as_a_sign() -> None:
    assert shown("한\x00글\r\nไทย\tx\x7f") == "한␀글\nไทย\tx␡"
    assert shown("\x1b[31m\x9b\ud800\uffff\U0001fffe\ufdd0\u202eعربي") == "␛[31m������عربي"
    joined = "ك\u200cم नि\u200dय 👩\u200d💻"
    assert shown(joined) == joined  # joiners are part of how a word is written


@pytest.mark.parametrize("text", ["가" * 900, "ក្រុ" * 300, "नि" * 500, "word " * 200, "é" * 600])
def test_a_long_answer_is_cut_between_characters(text: str) -> None:
    head, rest = cut(text)
    assert head + rest == text and 200 < len(head) <= 400
    assert not unicodedata.combining(rest[0]) and unicodedata.category(rest[0]) not in ("Mn", "Mc")
    assert cut(text[:400]) == (text[:400], "")


@pytest.mark.parametrize(
    ("text", "language", "runs"),
    [
        ("عاصمة كوريا هي سيول، و GPU ليست مدينة.", "ar", "rtl"),
        ("The answer is سيول.", "ar", "ltr"),
        ("1. 42", "ar", "rtl"),
        ("", "he", "rtl"),
        ("서울은 한국의 수도", "ko", "ltr"),
        ("42", "km", "ltr"),
    ],
)
def test_direction_follows_the_letters(text: str, language: str, runs: str) -> None:
    assert direction(text, language) == runs
