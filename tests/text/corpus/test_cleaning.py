"""What cleaning changes and, as much, what it leaves alone: spelling is not dirt in any script."""

from __future__ import annotations

from collections import Counter

import pytest

from onggi.text import load
from onggi.text.corpus.cleaning import masked, normalised, without_markup
from onggi.text.corpus.config import MASKS

ZWNJ, ZWJ, ZWSP = "\u200c", "\u200d", "\u200b"


@pytest.mark.parametrize(
    ("given", "clean"),
    [
        ("\u1112\u1161\u11ab\u1100\u1173\u11af", "한글"),  # conjoining jamo
        ("cafe\u0301", "café"),
        ("one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour"),
        ("a\x00b\x07c\u00ad\ufeffd\u2060\ue000", "abcd"),
        ("10\u00a0000\u3000원", "10 000 원"),
        ("끝  \n\n\n\n다음", "끝\n\n다음"),
        (f"hel{ZWSP}lo{ZWJ} {ZWNJ}월드{ZWSP}", "hello 월드"),
        ("\u202aleft\u202c \u200emark", "left mark"),
        ("e\u200b\u0301", "é"),  # what is taken out no longer stands between
    ],
)
def test_one_form_of_each_character(given: str, clean: str) -> None:
    assert normalised(given) == clean
    assert normalised(clean) == clean


@pytest.mark.parametrize(
    "text",
    [
        f"می{ZWNJ}خواهم",  # Persian
        f"ශ්{ZWJ}රී ලංකාව",  # Sinhala
        f"क्{ZWJ}ष",  # Hindi
        f"ភាសា{ZWSP}ខ្មែរ",  # Khmer: between words
        f"ภาษา{ZWSP}ไทย",
        "שלום\u200f!",
        f"👩{ZWJ}👩{ZWJ}👧",
        "A tab\tstays, and   so do spaces.",
    ],
)
def test_spelling_stays(text: str) -> None:
    assert normalised(text) == text


def test_nothing_of_the_probe_changes_but_its_spaces() -> None:
    probe = load("probe")
    for language in probe.languages:
        for passage in probe.passages(language).values():
            counts: Counter[str] = Counter()
            clean = masked(normalised(without_markup(passage)), MASKS, counts)
            assert "".join(clean.split()) == "".join(passage.split()), language
            assert not counts, (language, passage)


def test_markup() -> None:
    page = (
        "<!DOCTYPE html><html><head><style>p {color: red}</style></head><body><p>안녕하세요 &amp; <b>반갑습니다</b>.</p>"
        "<!-- 숨김 --><p>សួស្តី</p><script>alert(1)</script></body></html>"
    )
    assert normalised(without_markup(page)) == "안녕하세요 & 반갑습니다.\n\nសួស្តី"


@pytest.mark.parametrize(
    "text", ["Use <b> for bold and <i> for italics.", "1 < 2 및 3 > 2", "<3 مرحبا", "a &lt; b"]
)
def test_prose_about_markup_stays(text: str) -> None:
    assert without_markup(text) == text


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("email", "Write to jane.doe+x@mail.example.co.uk, please."),
        ("email", "문의: hong@example.kr로 보내세요"),
        ("email", "อีเมล ก@example.com หรือ somchai@ตัวอย่าง.ไทย"),
        ("phone", "전화 010-1234-5678로"),
        ("phone", "서울 02-312-4567"),
        ("phone", "휴대폰 01012345678"),
        ("phone", "Call +49 30 123456-78 now"),
        ("phone", "اتصل على +966 50 123 4567"),
        ("phone", "هاتف ٠١٠-١٢٣٤-٥٦٧٨"),
        ("phone", "(212) 555-0123"),
        ("resident", "주민등록번호 900101-1234568"),
        ("resident", "번호 201105-3000001"),  # born when there was no check digit any more
        ("card", "card 4111 1111 1111 1111."),
        ("card", "카드 5500-0000-0000-0004"),
    ],
)
def test_personal_data(kind: str, text: str) -> None:
    counts: Counter[str] = Counter()
    clean = masked(text, MASKS, counts)
    assert counts == {kind: 1}, clean
    assert f"<{kind.upper()}>" in clean
    others = tuple(other for other in MASKS if other != kind)
    if kind == "email":
        assert masked(text, others, Counter()) == text


@pytest.mark.parametrize(
    "text",
    [
        "900101-1234567은 검사 숫자가 틀리다",
        "991332-1234567",
        "2026-11-24 19:41:16",
        "24.12.2026, 01-12-2020",
        "pi is 3.14159265358979 and e 2.71828182845904",
        "4111 1111 1111 1112 fails Luhn",
        "ISBN 978-89-374-6100-3",
        "กรุงเทพฯ 10200 โทร 191",
        "281 474 976 710 656",
        "me@home, @handle, a @ b",
        "كيلو 1234567",
    ],
)
def test_what_only_looks_like_it(text: str) -> None:
    counts: Counter[str] = Counter()
    assert masked(text, MASKS, counts) == text
    assert not counts
