"""Languages of Latin script and of other scripts apart: what each model changes there, on the mean.

The table of "How Does Quantization Affect Multilingual LLMs?" (Marchisio et al., arXiv 2407.03211), whose
change is 100·(score − reference's score) / reference's score in each language, averaged over languages. Here
each mean has an interval over items, drawn in pairs and in all languages at once, and so has the difference of
the two means: whether other scripts pay more is the question, and one table of means does not answer it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import languages as tags
from .. import statistics
from .entries import number
from .records import Items

# Of a text: the metric of `items` → its name among the measures. Changes of these are relative; these are means.
_NATS = {"nll": "nll_per_passage"}
_MEANS = {"kl": "kl", "top1_agreement": "top1_agreement"}
# Of answers to prompts: those that a good model has much of. A change relative to hardly any loops says nothing.
_ANSWERS = ("line", "script", "word", "exact", "chrf")

# A change cannot take more than all there is; a gap of two means has no bounds.
_BOUNDS = {"kl": (0.0, math.inf), "top1_agreement": (0.0, 1.0)}
_CHANGE = (-1.0, math.inf)

# language → item → its unit (the prompt of a turn), value and tokens
_Cells = dict[str, dict[str, tuple[str, float, int | None]]]


def by_script(items: Items, text: str | None, reference: str) -> dict[str, Any]:
    """`by_script` of `scores.json`: `relative_change` (measure → model → group → entry), `mean` (the same of KL a
    token and top-1 agreement) and `left_out` (measure → languages in which the reference scores 0).

    A group is `latin`, `other`, or `gap`, the second less the first; an entry has `value` (a share, or the mean
    in its own unit), `low`, `high`, `n` items and `languages`. text: the name of the scored text, whose `task`
    it is in `items`.
    """
    changes: dict[str, Any] = {}
    means: dict[str, Any] = {}
    left_out: dict[str, list[str]] = {}
    for measure, by_model in _gathered(items, text).items():
        if measure in _MEANS.values():
            # KL and agreement are against the reference: their own value is the change.
            rows = {model: _shares(cells) for model, cells in by_model.items()}
            means[measure] = {model: _groups(own, _BOUNDS[measure]) for model, own in rows.items() if own}
            continue
        base = by_model.get(reference, {})
        out = [language for language, own in base.items() if not _usable(own)]
        found = {
            model: _groups(_changes(base, own, out), _CHANGE)
            for model, own in by_model.items()
            if model != reference
        }
        if found := {model: own for model, own in found.items() if own}:
            changes[measure] = found
            left_out |= {measure: out} if out else {}
    return {"relative_change": changes, "mean": means, "left_out": left_out}


def _gathered(items: Items, text: str | None) -> dict[str, dict[str, _Cells]]:
    """measure → model → cells, of what is worth a mean over languages."""
    found: dict[str, dict[str, _Cells]] = {}
    for model, language, task, item, metric, value, tokens, unit in items.rows():
        if task == text and metric in (*_NATS, *_MEANS, "bytes"):
            measure = (_NATS | _MEANS).get(metric)
        elif task == "prompts" and metric not in _ANSWERS:
            measure = None
        else:
            measure = f"{task}/{metric}"
        if measure and value is not None:
            cells = found.setdefault(measure, {}).setdefault(model, {})
            cells.setdefault(language, {})[item] = unit, value, tokens
    return found


def _usable(cells: Mapping[str, tuple[str, float, int | None]]) -> bool:
    """Whether a change can be told as a share of these values."""
    values = [value for _, value, _ in cells.values()]
    return min(values) >= 0 and sum(values) > 0


# language → unit → [numerator, denominator]
_Sums = Mapping[str, Mapping[str, Sequence[float]]]


def _changes(before: _Cells, after: _Cells, left_out: Sequence[str]) -> _Sums:
    """What each unit lost or won, and what it had, of the items that both have."""
    found: dict[str, Any] = {}
    for language, own in after.items():
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for item, (unit, value, _) in own.items():
            if language not in left_out and item in before.get(language, {}):
                base = before[language][item][1]
                sums[unit][0] += value - base
                sums[unit][1] += base
        if sum(had for _, had in sums.values()) > 0:
            found[language] = sums
    return found


def _shares(cells: _Cells) -> _Sums:
    """Nats, or positions that agree, and the tokens that they are of."""
    return {
        language: {unit: (value, float(tokens or 0)) for unit, value, tokens in own.values()}
        for language, own in cells.items()
    }


def _groups(sums: _Sums, bounds: tuple[float, float]) -> dict[str, Any]:
    """The entries of the groups that have a language."""
    parts = {
        "latin": [tag for tag in sums if tags.is_latin(tag)],
        "other": [tag for tag in sums if not tags.is_latin(tag)],
    }
    found = {
        group: _entry(sums, {tag: 1 / len(own) for tag in own}, bounds) for group, own in parts.items() if own
    }
    if len(found) == 2:
        signs = {"latin": -1, "other": 1}
        weights = {tag: signs[group] / len(own) for group, own in parts.items() for tag in own}
        found["gap"] = _entry(sums, weights, (-math.inf, math.inf))
    return found


def _entry(sums: _Sums, weights: Mapping[str, float], bounds: tuple[float, float]) -> dict[str, Any]:
    units = {unit: place for place, unit in enumerate(dict.fromkeys(u for tag in weights for u in sums[tag]))}
    sides = np.zeros((2, len(weights), len(units)))
    for row, tag in enumerate(weights):
        for unit, pair in sums[tag].items():
            sides[:, row, units[unit]] = pair
    found = statistics.mean_ratio(sides[0], sides[1], list(weights.values()), bounds=bounds)
    return {
        "value": found.value,
        "low": number(found.low),
        "high": number(found.high),
        "n": found.n,
        "languages": list(weights),
    }
