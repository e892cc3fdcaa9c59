"""Limits come from each language's own rows, within what the configuration allows."""

from __future__ import annotations

import numpy as np
import pytest

from onggi.text import load
from onggi.text.corpus import measures, scale
from onggi.text.corpus.config import Cleaning
from onggi.text.corpus.measures import NAMES, limits, measure, pairs, tell

PROBE = load("probe")
SCALES = scale.scales(PROBE.languages, {})
CONFIG = Cleaning()


def test_what_parallel_text_says() -> None:
    assert SCALES["en"].bytes == SCALES["en"].letters == 1.0
    assert 0.4 < SCALES["ko"].letters < 0.55 < SCALES["th"].letters
    assert SCALES["km"].bytes > 2.5 and SCALES["ko"].content == pytest.approx(1 / SCALES["ko"].bytes)
    others = scale.scales(["cs", "ka", "he", "ko"], {"ka": scale.Scale(2.0, 0.9, "own")})
    assert others["cs"].known_from == "mean of 3 languages in Latn"
    assert others["ka"].known_from == "own" and others["ko"].known_from == "probe"
    assert others["he"].known_from == "nothing; taken as English"


def test_no_passage_of_the_probe_is_dropped_in_any_language() -> None:
    values = {}
    for language in PROBE.languages:
        found = []
        for text in PROBE.passages(language).values():
            lang, sure = tell(text, language, PROBE.languages)
            assert lang == language
            found.append(measure(text, language, sure, SCALES[language]))
        values[language] = {name: np.array([one[name] for one in found], np.float32) for name in NAMES}
    chosen = limits(values, CONFIG, SCALES)
    for language, own in values.items():
        rows = [{name: float(own[name][i]) for name in NAMES} for i in range(len(own["length"]))]
        failed = [measures.fails(row, chosen[language]) for row in rows]
        assert not any(failed), (language, failed)


@pytest.mark.parametrize(
    ("language", "text", "reason"),
    [
        ("en", "Too short.", "length"),
        ("ko", "너무 짧다.", "length"),
        ("th", "สั้นมาก", "length"),
        ("en", "이 글은 한국어로 쓰여 있고 영어가 아니다. 그래서 걸러져야 한다.", "language"),
        ("ko", "This text is in English, though its row says that it is Korean.", "language"),
        ("km", "นี่คือข้อความภาษาไทยที่ติดป้ายว่าเป็นภาษาเขมรโดยผิดพลาด", "language"),
        (
            "de",
            "Dieser Text ist kaputt: Gr\ufffd\ufffde aus M\ufffdnchen und K\ufffdln, sch\ufffdne Tage.",
            "broken",
        ),
        (
            "ko",
            "이것은 한국어 문장이 맞지만 기호가 많다 === ### *** ||| ||| ||| %%% @@@ !!! ((( ))) ### ***",
            "letters",
        ),
        ("ar", "الأرقام هي 123456 789012 345678 901234 567890 123456 789012 345678", "letters"),
        ("ko", "지금 바로 구매하세요 " * 30, "top_2"),
        ("th", "ซื้อเลยตอนนี้ราคาถูกมาก" * 30, "top_2"),
        ("en", "The first line of all is here.\n" * 9 + "And one that differs from the others.", "lines"),
        ("hi", "- यह पहली पंक्ति है\n- यह दूसरी है और लंबी\n- तीसरी कुछ और कहती\n- चौथी अंतिम", "bullets"),
        (
            "en",
            "\n".join(
                f"{word} can be read in full on our own page …" for word in ("Rain", "Snow", "Wind", "Hail")
            ),
            "ellipses",
        ),
        (
            "de",
            "Die Donaudampfschifffahrtsgesellschaftskapitänsmütze, die "
            "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetze",
            "word_length",
        ),
    ],
)
def test_each_filter(language: str, text: str, reason: str) -> None:
    """A clean corpus, and one row that is not."""
    rows = [*PROBE.passages(language).values(), text] if language in PROBE.languages else [text]
    found = [
        measure(row, language, tell(row, language, PROBE.languages)[1], SCALES[language]) for row in rows
    ]
    values = {language: {name: np.array([one[name] for one in found], np.float32) for name in NAMES}}
    chosen = limits(values, CONFIG, SCALES)[language]
    failed = [measures.fails(one, chosen) for one in found]
    assert failed[:-1] == [None] * (len(rows) - 1)
    assert failed[-1] == reason, found[-1]


def test_a_language_sets_its_own_limit() -> None:
    drawn = np.random.default_rng(0)
    quiet = {name: np.zeros(500, np.float32) for name in NAMES}
    loud = {**quiet, "symbols": drawn.normal(0.2, 0.02, 500).astype(np.float32)}
    junk = {**quiet, "symbols": drawn.uniform(0.3, 1.0, 500).astype(np.float32)}
    found = limits({"en": quiet, "ko": loud, "ar": junk}, CONFIG, SCALES)
    assert (found["en"]["symbols"].value, found["en"]["symbols"].chosen) == (0.15, "from")
    assert found["ko"]["symbols"].chosen == "fence" and 0.25 < found["ko"]["symbols"].value < 0.33
    assert found["ar"]["symbols"].chosen == "to"
    assert found["ar"]["symbols"].value == pairs(CONFIG, SCALES["ar"])["symbols"][1]


def test_the_pairs_of_shares_follow_the_letters_of_a_language() -> None:
    english, korean = (pairs(CONFIG, SCALES[tag]) for tag in ("en", "ko"))
    assert english["symbols"] == pytest.approx((0.15, 0.4)) and english["letters"] == pytest.approx(
        (0.4, 0.6)
    )
    odds = korean["symbols"][0] / (1 - korean["symbols"][0])
    assert odds == pytest.approx(0.15 / 0.85 / SCALES["ko"].letters)
    assert korean["letters"][0] < english["letters"][0]
    assert korean["top_2"] == english["top_2"] == (0.2, 0.4)


def test_few_rows_share_their_script() -> None:
    rows = {name: np.zeros(10, np.float32) for name in NAMES}
    many = {
        **{name: np.zeros(300, np.float32) for name in NAMES},
        "symbols": np.linspace(0.1, 0.2, 300, dtype=np.float32),
    }
    found = limits({"en": many, "de": rows, "ko": rows}, CONFIG, SCALES)
    assert found["de"]["symbols"].of == "all rows in Latn" and found["de"]["symbols"].rows == 310
    assert found["de"]["symbols"].chosen == "fence"
    assert found["ko"]["symbols"].of == "ko"


def test_an_override_is_the_limit() -> None:
    config = Cleaning(overrides={"ko": {"symbols": 0.01, "top_2": 0.9}})
    rows = {name: np.zeros(200, np.float32) for name in NAMES}
    found = limits({"en": rows, "ko": rows}, config, SCALES)
    assert (found["ko"]["symbols"].value, found["ko"]["symbols"].chosen) == (0.01, "override")
    assert found["ko"]["top_2"].value == 0.9 and found["en"]["symbols"].value == 0.15
