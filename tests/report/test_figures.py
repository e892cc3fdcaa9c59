"""The drawings show the numbers, and can be read without colour."""

from __future__ import annotations

import itertools
import math
import re

import pytest

from onggi.phrases import Phrases
from onggi.report import figures
from scores_examples import BALANCED, ENGLISH, model, scores

EN, KO = Phrases("en"), Phrases("ko")
CALIBRATED = {"text": "starter", "tokens": {"en": 50, "ko": 50}}


def placed(svg: str) -> list[tuple[float, float]]:
    """Where the marks stand, in the order they were drawn."""
    return [(float(x), float(y)) for x, y in re.findall(r'<use [^>]*?x="([\d.]+)" y="([\d.]+)"', svg)]


def words(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg)


def test_marks_stand_where_the_values_are() -> None:
    whole = scores({"english": model(ENGLISH), "balanced": model(BALANCED)})
    latin, other = figures.damage(whole, EN)
    # As drawn: variant by variant, the languages by falling damage.
    values = [table[tag] for table in (ENGLISH, BALANCED) for tag in ("km", "el", "ko")]
    marks = placed(other.svg)
    assert len(marks) == len(values) == 6
    scale = (marks[0][0] - marks[1][0]) / (values[0] - values[1])
    for (x, _), value in zip(marks, values, strict=True):
        assert x - marks[0][0] == pytest.approx(scale * (value - values[0]), abs=0.01)
    # One scale for both panels, so that a Latin mark and another can be compared by eye.
    english, balanced = placed(latin.svg)
    assert english[0] - marks[0][0] == pytest.approx(scale * (ENGLISH["en"] - values[0]), abs=0.01)
    assert balanced[1] > english[1]
    assert [word for word in words(other.svg) if word.isalpha()] == ["Khmer", "Greek", "Korean"]
    assert words(latin.svg)[-1] == "KL from the reference, nats a token"


def test_korean_labels_stay_text() -> None:
    whole = scores({"english": model(ENGLISH)})
    _, other = figures.damage(whole, KO)
    assert {"크메르어", "그리스어", "한국어"} <= set(words(other.svg))
    assert other.title == "그 밖의 문자를 쓰는 언어"


def test_a_language_not_calibrated_on_has_a_hollow_mark() -> None:
    whole = scores({"balanced": model(BALANCED, calibration=CALIBRATED)})
    _, other = figures.damage(whole, EN)
    fills = re.findall(r"<use [^>]*?fill: (#\w+)", other.svg)
    assert fills == ["#ffffff", "#ffffff", figures.marks(["balanced"])["balanced"].colour]  # km, el, ko


def test_variants_differ_without_colour_and_dozens_with_it() -> None:
    marks = figures.marks([f"v{i}" for i in range(42)])
    symbols = [mark.symbol for mark in marks.values()]
    assert len(set(symbols[:11])) == 11
    assert len(set(marks.values())) == 42
    nine = {f"v{i}": model({tag: kl + i for tag, kl in BALANCED.items()}) for i in range(9)}
    _, other = figures.damage(scores(nine), EN)
    assert len(placed(other.svg)) == 9 * 3


def test_a_wide_spread_is_drawn_on_a_logarithmic_scale() -> None:
    small = {tag: 0.001 * (i + 1) for i, tag in enumerate(ENGLISH)}
    whole = scores({"w8": model(small), "w2": model(ENGLISH)})
    latin, other = figures.damage(whole, EN)
    assert "(logarithmic)" in other.svg
    x = [place[0] for place in placed(other.svg)]
    km, el, ko = x[3:]  # w2
    ratio = math.log(2.98 / 1.26) / math.log(1.26 / 0.88)
    assert (km - el) / (el - ko) == pytest.approx(ratio, rel=1e-3)
    assert len(placed(latin.svg)) == 2


def test_size_against_the_worst_language() -> None:
    whole = scores({"w4": model(ENGLISH), "other": model(None), "w8": model(BALANCED)})
    whole["models"]["w8"]["bytes"] = 600_000_000
    whole["models"]["base"]["bytes"] = 1_200_000_000
    panel = figures.size(whole, EN)
    base, w4, w8 = placed(panel.svg)
    assert (w8[0] - w4[0]) / (base[0] - w8[0]) == pytest.approx(300 / 600, abs=1e-3)
    assert (base[1] - w4[1]) / (base[1] - w8[1]) == pytest.approx(2.98 / 0.68, rel=1e-3)
    assert {"base", "w4 · Khmer 2.98", "w8 · Khmer 0.68"} <= set(words(panel.svg))


def test_names_do_not_lie_on_each_other() -> None:
    same = {f"variant-{i}": model(dict.fromkeys(ENGLISH, 1 + i / 500)) for i in range(5)}
    svg = figures.size(scores(same), EN).svg
    heights = sorted(float(y) for y in re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>variant', svg))
    assert len(heights) == 5
    assert all(b - a >= 13 for a, b in itertools.pairwise(heights))


def test_the_same_drawing_twice_is_the_same_and_ids_are_its_own() -> None:
    whole = scores({"english": model(ENGLISH), "balanced": model(BALANCED)})
    panels = [*figures.damage(whole, EN), figures.size(whole, EN)]
    again = [*figures.damage(whole, EN), figures.size(whole, EN)]
    assert [panel.svg for panel in panels] == [panel.svg for panel in again]
    ids = [set(re.findall(r' id="([^"]+)"', panel.svg)) for panel in panels]
    assert all(ids) and len(set().union(*ids)) == sum(map(len, ids))
    for panel, own in zip(panels, ids, strict=True):
        assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', panel.svg)) == own


def test_a_single_passage_has_no_interval() -> None:
    whole = scores({"w4": model(BALANCED, n=1)})
    assert len(placed(figures.damage(whole, EN)[1].svg)) == 3
