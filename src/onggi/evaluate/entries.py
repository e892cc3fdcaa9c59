"""A number of `scores.json`: its value, its interval over passages, how many passages and tokens it is of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import statistics


def mean(values: Sequence[float], tokens: int) -> dict[str, Any]:
    """The mean of `values`, one a passage, none below 0; `tokens` in all of them."""
    return _entry(statistics.interval(values, bounds=(0.0, math.inf)), tokens)


def ratio(
    values: Sequence[float],
    denominators: Sequence[float],
    tokens: int,
    bounds: tuple[float, float] = (0.0, math.inf),
) -> dict[str, Any]:
    """Σ values / Σ denominators, one of each a passage; `tokens` in all of them."""
    return _entry(statistics.interval(values, denominators, bounds=bounds), tokens)


def parity(tokens: Sequence[int], english: Sequence[int]) -> dict[str, Any]:
    """Tokens of passages for each token that English takes for the same passages (DESIGN §4)."""
    return ratio(tokens, english, sum(tokens))


def number(value: float) -> float | None:
    """JSON has no NaN: an interval that cannot be had (one passage) is null."""
    return None if math.isnan(value) else value


def _entry(interval: statistics.Interval, tokens: int) -> dict[str, Any]:
    return {
        "value": interval.value,
        "low": number(interval.low),
        "high": number(interval.high),
        "n": interval.n,
        "tokens": tokens,
    }
