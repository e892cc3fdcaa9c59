"""N-grams as numbers agree with n-grams as text, in scripts with spaces and without."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from onggi.text import load
from onggi.text.corpus.shingles import Shingled, simplify, spaced


@pytest.mark.parametrize("language", ["en", "ko", "th", "km", "ar", "zh-Hans", "hi"])
@pytest.mark.parametrize("n", [2, 5])
def test_as_many_as_there_are(language: str, n: int) -> None:
    text = simplify(" ".join(load("probe").passages(language).values()))
    words = spaced(language)
    tokens = text.split() if words else list(text.replace(" ", ""))
    expected = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    hashes, begins, ends = Shingled(text, words).grams(n)
    assert len(np.unique(hashes)) == len(expected)
    whole = text if words else text.replace(" ", "")
    separator = " " if words else ""
    assert [whole[b:e] for b, e in zip(begins, ends, strict=True)][:50] == [
        separator.join(tokens[i : i + n]) for i in range(len(hashes))
    ][:50]
    assert len(Shingled(text, words).shingles(n)) == len(expected)


def test_a_piece_has_one_hash_wherever_it_stands() -> None:
    one, other = Shingled("비가 온다 비가 온다", True), Shingled("오늘 비가 온다", True)
    assert one.grams(2)[0][0] == one.grams(2)[0][2] == other.grams(2)[0][1]
    assert one.grams(2)[0][1] not in other.grams(2)[0]


def test_spaces_count_where_they_part_words() -> None:
    assert Shingled("ab c", True).grams(2)[0] != Shingled("a bc", True).grams(2)[0]
    assert (
        Shingled("ខ្មែរ ភាសា", False).shingles(3).tolist() == Shingled("ខ្មែរភាសា", False).shingles(3).tolist()
    )


@pytest.mark.parametrize(
    ("language", "text"),
    [("en", "buy it now "), ("ko", "지금 바로 사세요 "), ("th", "ซื้อเลยตอนนี้"), ("ar", "اشتر الآن فورا ")],
)
def test_repetition(language: str, text: str) -> None:
    words = spaced(language)
    n = 3 if words else 12
    again, once = Shingled(simplify(text * 20), words), Shingled(simplify(text), words)
    assert again.repeated(n) > 0.8 and again.top(n) > 0.25
    assert once.repeated(n) == once.top(n) == 0.0


def test_by_hand() -> None:
    # 19 characters; the second "a b c" (5) is the only 3-gram that stood before.
    found = Shingled("a b c d a b c e f g", True)
    assert found.repeated(3) == pytest.approx(5 / 19)
    assert found.top(1) == 0.0  # "a" stands twice only
    assert Shingled("a b a b a b", True).top(2) == pytest.approx(9 / 11)
    assert Shingled("", True).repeated(3) == Shingled("", False).top(2) == 0.0


def test_simplify() -> None:
    assert simplify("Ｈello,  World!") == "hello world"
    assert simplify("«مرحبًا»، يا عالم") == "مرحبًا يا عالم"
    assert simplify("ភាសា\u200bខ្មែរ។") == "ភាសាខ្មែរ"
