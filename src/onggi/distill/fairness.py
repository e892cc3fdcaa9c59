"""How much each language weighs while a student learns, by how far behind its teacher it still is in it.

The gap of a language is how many more bits per byte the student needs than its teacher on text held out, as a share of
the teacher's own: UTF-8 charges scripts differently, so bits themselves could not be compared. With minimax
the languages play against the student with multiplicative weights (Freund and Schapire 1999): after each
measurement a language's weight grows with its gap, so that the one that is furthest behind leads. What weights there
are follows from the measurements alone, which a run that goes on has on disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Fairness = Literal["balanced", "minimax"]
# How fast weights follow the gap: one measurement with a gap twice the mean turns 1 into e^0.5 beside the mean.
_RATE = 0.5
# No language weighs more than so many times its equal share, nor less than one such part of it.
_MOST = 4.0


def gaps(student: Mapping[str, float], teacher: Mapping[str, float]) -> dict[str, float]:
    """Language → the student's bits per byte over the teacher's, as a share of the teacher's."""
    return {
        language: student[language] / bits - 1 for language, bits in teacher.items() if language in student
    }


def closed(
    before: Mapping[str, float], after: Mapping[str, float], teacher: Mapping[str, float]
) -> dict[str, float | None]:
    """Language → the share of the teacher's lead that was taken over, by bits per byte: 1 where the student is as
    good as the teacher now, below 0 where it has fallen further behind. None where the teacher had no lead.
    """
    return {
        language: round((before[language] - after[language]) / (before[language] - bits), 4)
        if before[language] > bits
        else None
        for language, bits in teacher.items()
        if language in before and language in after
    }


def weights(
    kind: Fairness,
    languages: Sequence[str],
    measured: Sequence[Mapping[str, float]],
    teacher: Mapping[str, float],
) -> dict[str, float]:
    """Language → its weight, 1 on average. measured: the student's bits per byte at each measurement so far.

    A language that is not measured weighs what the mean does.
    """
    logs = dict.fromkeys(languages, 0.0)
    for student in measured if kind == "minimax" else ():
        behind = {language: gap for language, gap in gaps(student, teacher).items() if language in logs}
        mean = sum(max(gap, 0.0) for gap in behind.values()) / max(len(behind), 1)
        if mean > 0:
            for language, gap in behind.items():
                logs[language] += _RATE * (max(gap, 0.0) / mean - 1)
    found = {language: math.exp(value - max(logs.values(), default=0.0)) for language, value in logs.items()}
    mean = sum(found.values()) / max(len(found), 1)
    # Held within bounds one after another; the mean is put right after, so bounds are about.
    found = {language: min(max(value / mean, 1 / _MOST), _MOST) for language, value in found.items()}
    mean = sum(found.values()) / max(len(found), 1)
    return {language: round(value / mean, 6) for language, value in found.items()}


def measurements(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, float]]:
    """Those in the lines of `metrics.jsonl`."""
    return [line["bits_per_byte"] for line in lines if "bits_per_byte" in line]
