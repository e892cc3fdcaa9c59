from __future__ import annotations

import pytest

from onggi.errors import OnggiError
from onggi.text import scripts


@pytest.mark.parametrize(
    ("text", "script", "expected"),
    [
        ("한국어", "Kore", 1.0),
        ("한국 漢字", "Kore", 1.0),
        ("한국 漢字", "Hang", 0.5),
        ("コーヒーを飲む", "Jpan", 1.0),  # the long vowel mark belongs to kana, though not to one of them
        ("人々", "Hans", 1.0),
        ("語", "Hant", 1.0),
        ("注音ㄅㄆ", "Hanb", 1.0),
        ("Ελλάς", "Grek", 1.0),
        ("Straße naïve", "Latn", 1.0),
        ("Straße", "Latf", 1.0),
        ("Привет", "Cyrl", 1.0),
        ("مرحبا بكم", "Arab", 1.0),
        ("हिन्दी", "Deva", 1.0),  # vowel signs are marks, not letters
        ("ភាសាខ្មែរ", "Khmr", 1.0),
        ("ภาษาไทย", "Thai", 1.0),
        ("ქართული", "Geor", 1.0),
        ("Writer 문서", "Kore", 0.25),
        ("Ctrl + E", "Kore", 0.0),
        ("១២៣ 123 !?", "Khmr", 0.0),  # no letters, so no share of them
        ("", "Latn", 0.0),
    ],
)
def test_share(text: str, script: str, expected: float) -> None:
    assert scripts.share(text, script) == pytest.approx(expected)


def test_own_share_knows_the_script_of_a_language() -> None:
    assert scripts.own_share("안녕 hello", "ko") == pytest.approx(2 / 7)
    assert scripts.own_share("안녕 hello", "en") == pytest.approx(5 / 7)
    assert scripts.own_share("Zdravo свете", "sr") == pytest.approx(5 / 11)
    assert scripts.own_share("Zdravo свете", "sr-Latn") == pytest.approx(6 / 11)


def test_counts() -> None:
    assert scripts.count("a1 б2 가3") == 3
    assert scripts.count_in("a1 б2 가3", "Kore") == 1


def test_the_scripts_that_a_code_stands_for() -> None:
    assert scripts.unicode_scripts("Jpan") == ("Hira", "Kana", "Hani")
    assert scripts.unicode_scripts("Khmr") == ("Khmr",)


@pytest.mark.parametrize("script", ["Zyyy", "Zzzz", "Qaaa", "Xyzw", "", "Lat}", "]"])
def test_an_unknown_script_is_an_error(script: str) -> None:
    with pytest.raises(OnggiError, match="not a script"):
        scripts.share("a", script)


def test_each_letter_counts_in_its_one_script() -> None:
    found = scripts.counts("한글 漢字 かな カナー Latin ქართ हिन्दी 12 µ!")
    assert found == {"Hang": 2, "Hani": 2, "Hira": 2, "Kana": 2, "Latn": 5, "Geor": 4, "Deva": 3}
    assert scripts.counts("123 ー") == {}
