"""Shares of content, reached by repeating and leaving out."""

from __future__ import annotations

import numpy as np
import pytest

from onggi.text.corpus.config import Cleaning
from onggi.text.corpus.mix import copies, portions
from onggi.text.corpus.scale import scales

SCALES = scales(("en", "ko", "km"), {})
SIZES = {
    "en": 8_000_000,
    "ko": round(1_000_000 * SCALES["ko"].bytes),
    "km": round(1_000_000 * SCALES["km"].bytes),
}


def test_as_it_is() -> None:
    found = portions({**SIZES, "ar": 0}, SCALES, Cleaning())
    assert {tag: one.epochs for tag, one in found.items()} == {"en": 1.0, "ko": 1.0, "km": 1.0}
    assert [one.share for one in found.values()] == pytest.approx([0.8, 0.1, 0.1], abs=1e-5)
    assert found["km"].content == pytest.approx(1_000_000, rel=1e-5)


def test_temperature() -> None:
    found = portions(SIZES, SCALES, Cleaning(temperature=3.0))
    weights = np.array([8, 1, 1]) ** (1 / 3)
    assert [one.share for one in found.values()] == pytest.approx(weights / weights.sum(), abs=1e-4)
    assert found["en"].epochs < 1 < found["ko"].epochs and not found["ko"].short
    assert sum(one.content * one.epochs for one in found.values()) == pytest.approx(10_000_000, rel=1e-5)


def test_shares_and_what_cannot_be_reached() -> None:
    found = portions(SIZES, SCALES, Cleaning(shares={"en": 1, "ko": 2, "km": 1}))
    assert found["ko"].epochs == 4.0 and found["ko"].short
    assert found["km"].epochs == pytest.approx(2.5, rel=1e-5) and not found["km"].short
    assert found["ko"].share == pytest.approx(4 / 9, rel=1e-4)


def test_a_budget() -> None:
    found = portions(SIZES, SCALES, Cleaning(content=1_000_000))
    assert sum(one.content * one.epochs for one in found.values()) == pytest.approx(1_000_000, rel=1e-4)
    assert portions({"en": 0}, SCALES, Cleaning()) == {}


def test_copies() -> None:
    drawn = np.random.default_rng(0).random(100_000)
    for epochs in (0.25, 1.0, 2.5, 4.0):
        made = copies(drawn, epochs)
        assert made.mean() == pytest.approx(epochs, abs=0.01)
        assert made.max() - made.min() <= 1
