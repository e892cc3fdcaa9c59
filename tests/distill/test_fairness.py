"""Weights of languages that follow their gaps, and the share of a lead that was closed."""

from __future__ import annotations

import pytest

from onggi.distill.fairness import closed, gaps, measurements, weights

TAGS = ["ko", "el", "km"]
TEACHER = {"ko": 1.0, "el": 2.0, "km": 0.5}


def test_gaps_are_shares_of_the_teachers_bits() -> None:
    """Greek is half a bit behind and Khmer a quarter: of what their teacher needs Khmer is further behind."""
    found = gaps({"ko": 1.0, "el": 2.5, "km": 0.75}, TEACHER)
    assert found == {"ko": 0.0, "el": 0.25, "km": 0.5}


def test_the_one_furthest_behind_leads() -> None:
    behind = {"ko": 1.2, "el": 2.2, "km": 0.9}
    found = weights("minimax", TAGS, [behind], TEACHER)
    assert found["km"] > found["ko"] > found["el"]
    assert sum(found.values()) == pytest.approx(3, abs=1e-5)
    again = weights("minimax", TAGS, [behind, behind], TEACHER)
    assert again["km"] > found["km"] and again["el"] < found["el"]
    # Once Khmer has caught up and Greek has not, the lead goes over.
    later = {"ko": 1.0, "el": 2.6, "km": 0.5}
    assert weights("minimax", TAGS, [behind, later, later, later], TEACHER)["el"] > 1
    many = weights("minimax", TAGS, [behind] * 500, TEACHER)
    assert max(many.values()) / min(many.values()) <= 16 + 1e-3


def test_balanced_and_nothing_measured_weigh_the_same() -> None:
    behind = {"ko": 1.2, "el": 2.2, "km": 0.9}
    even = dict.fromkeys(TAGS, 1.0)
    assert weights("balanced", TAGS, [behind], TEACHER) == even
    assert weights("minimax", TAGS, [], TEACHER) == even
    assert weights("minimax", TAGS, [TEACHER], TEACHER) == even
    # A language that nothing was measured in stays at the mean of the others or near it.
    found = weights("minimax", [*TAGS, "th"], [behind], TEACHER)
    assert found["km"] > found["th"] > found["el"]


def test_the_share_of_the_lead() -> None:
    found = closed(
        {"ko": 1.5, "el": 3.0, "km": 0.5, "th": 1.0}, {"ko": 1.25, "el": 3.5, "km": 0.4, "th": 0.9}, TEACHER
    )
    assert found == {"ko": 0.5, "el": -0.5, "km": None}


def test_measurements_are_those_of_the_metrics() -> None:
    lines = [{"step": 0, "bits_per_byte": {"ko": 2.0}}, {"step": 1, "loss": 3.0}]
    assert measurements(lines) == [{"ko": 2.0}]
