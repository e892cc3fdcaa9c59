"""From rows of items to a task's scores: value with interval, floor, flips and verdict by language."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .. import statistics
from .answering import Row
from .tasks import Choice, Item, Task, floor

# model → language → rows, in the order of the items
Rows = Mapping[str, Mapping[str, Sequence[Row]]]


def tally(
    task: Task, items: Mapping[str, Sequence[Item]], rows: Rows, reference: str, margin: float
) -> dict[str, dict[str, dict[str, Any]]]:
    """model → language → the entry `TASK/METRIC` of `scores.json`.

    margin: a loss of accuracy (a share) or, times 100, of chrF, that does not matter. A model's entry
    has its verdict against the reference on the same items: for choices by McNemar's test (flips both
    ways), for chrF by the paired sign-flip test; Holm over the languages of the task. `unread` counts
    written answers that name none of the choices, and so are wrong.
    """
    choices = task.kind == "choice"
    floors: dict[str, dict[str, float]] = {}
    for language, own in items.items():
        if asked := [item for item in own if isinstance(item, Choice)]:
            under = floor(asked)
            floors[language] = {"chance": under.chance, "majority": under.majority}
    bounds = (0.0, 1.0) if choices else (0.0, 100.0)
    verdicts = functools.partial(_flips if choices else _changes, margin=margin)
    found = _entries(rows, reference, bounds, floors, verdicts)
    for model, by_language in rows.items():
        for language, answered in by_language.items():
            if any("output" in row and "chosen" in row for row in answered):
                found[model][language]["unread"] = sum(row["chosen"] is None for row in answered)
    return found


def tally_metric(
    rows: Rows,
    reference: str,
    margin: float,
    floors: Mapping[str, Mapping[str, float]],
    higher_is_better: bool,
) -> dict[str, dict[str, dict[str, Any]]]:
    """The same for any metric of items: one of right and wrong by flips, another by its paired change, in
    which `margin` is a share of the reference's value. floors: language → what to add, as `chance`.
    """
    values = [row["value"] for by_language in rows.values() for own in by_language.values() for row in own]
    if set(values) <= {0.0, 1.0} and higher_is_better:
        return _entries(rows, reference, (0.0, 1.0), floors, functools.partial(_flips, margin=margin))
    verdicts = functools.partial(_relative, margin=margin, sign=1 if higher_is_better else -1)
    return _entries(rows, reference, (-math.inf, math.inf), floors, verdicts)


def tokens(rows: Iterable[Row]) -> int | None:
    """Tokens of all `rows`: scored, or written; None where a row does not tell, as those of lm-eval."""
    own: list[Any] = [row.get("tokens") for row in rows]
    return None if None in own else sum(own)


def mean_of_turns(values: Iterable[tuple[str, float]], bounds: tuple[float, float]) -> dict[str, Any]:
    """`value`, `low`, `high` and `n` of (prompt, value) of its turns: the mean of turns; the interval draws
    prompts, since the turns of one share their fate, and n counts them. Without values the value is None.
    """
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for prompt, value in values:
        by_prompt[prompt].append(value)
    if not by_prompt:
        return {"value": None, "low": None, "high": None, "n": 0}
    return _interval(
        [sum(own) for own in by_prompt.values()], bounds, [len(own) for own in by_prompt.values()]
    )


def _interval(
    values: Sequence[float], bounds: tuple[float, float], turns: Sequence[int] | None = None
) -> dict[str, Any]:
    found = statistics.interval(values, turns, bounds=bounds)
    return {"value": found.value, "low": _number(found.low), "high": _number(found.high), "n": found.n}


def _entries(
    rows: Rows,
    reference: str,
    bounds: tuple[float, float],
    floors: Mapping[str, Mapping[str, float]],
    verdicts: Callable[..., dict[str, dict[str, Any]]],
) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for model, by_language in rows.items():
        found[model] = {}
        for language, own in by_language.items():
            entry = _interval([row["value"] for row in own], bounds)
            entry["tokens"] = tokens(own)
            found[model][language] = entry | dict(floors.get(language, {}))
    for model in rows:
        if model != reference and reference in rows:
            for language, verdict in verdicts(rows[reference], rows[model]).items():
                found[model][language] |= verdict
    return found


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _losses(
    before: Mapping[str, Sequence[Row]], after: Mapping[str, Sequence[Row]]
) -> dict[str, list[float]]:
    """Language → what each item lost."""
    return {
        language: [a["value"] - b["value"] for a, b in zip(before[language], rows, strict=True)]
        for language, rows in after.items()
    }


def _flips(
    before: Mapping[str, Sequence[Row]], after: Mapping[str, Sequence[Row]], margin: float
) -> dict[str, dict[str, Any]]:
    losses = _losses(before, after)
    flips = {
        language: statistics.flips(
            [row["value"] == 1 for row in before[language]], [r["value"] == 1 for r in own]
        )
        for language, own in after.items()
    }
    different = statistics.holm([flip.p for flip in flips.values()])
    equivalent = statistics.holm([statistics.equivalence(values, margin) for values in losses.values()])
    found = {}
    for (language, flip), p, q in zip(flips.items(), different.tolist(), equivalent.tolist(), strict=True):
        loss = sum(losses[language]) / len(losses[language])
        share = (flip.right_to_wrong + flip.wrong_to_right) / flip.n
        found[language] = {
            "change": -loss,
            "right_to_wrong": flip.right_to_wrong,
            "wrong_to_right": flip.wrong_to_right,
            "p": p,
            "p_equivalent": _number(q),
            "margin": margin,
            "verdict": statistics.verdict(p, q, loss, margin, within=f"{100 * margin:g}%"),
            # What a loss must be to be seen with so many items, of which so many flip, in so many languages.
            "detectable": statistics.minimum_detectable_loss(flip.n, share, alpha=0.05 / len(flips))
            if 0 < share < 1
            else None,
        }
    return found


def _changes(
    before: Mapping[str, Sequence[Row]], after: Mapping[str, Sequence[Row]], margin: float
) -> dict[str, dict[str, Any]]:
    losses = _losses(before, after)
    return paired(losses, dict.fromkeys(losses, 100 * margin), f"{100 * margin:g} chrF", 1)


def _relative(
    before: Mapping[str, Sequence[Row]], after: Mapping[str, Sequence[Row]], margin: float, sign: int
) -> dict[str, dict[str, Any]]:
    losses = {language: [sign * loss for loss in own] for language, own in _losses(before, after).items()}
    means = {
        language: abs(sum(r["value"] for r in before[language]) / len(own))
        for language, own in losses.items()
    }
    # A share of nothing is no margin: then the margin itself.
    margins = {language: margin * mean or margin for language, mean in means.items()}
    return paired(losses, margins, f"{100 * margin:g}%", sign)


def paired(
    losses: Mapping[str, Sequence[float]], margins: Mapping[str, float], within: str, sign: int
) -> dict[str, dict[str, Any]]:
    """The verdict of each language on its paired losses; sign: -1 where a higher value is the loss."""
    verdicts = statistics.paired_verdicts(losses, margins, within=within)
    return {
        language: {
            "change": -sign * found.difference,
            "p": found.p,
            "p_equivalent": _number(found.p_equivalent),
            "margin": found.margin,
            "verdict": found.verdict,
        }
        for language, found in verdicts.items()
    }


def tally_answers(
    rows: Mapping[str, Mapping[str, Sequence[Row]]], reference: str, margin: float
) -> dict[str, dict[str, dict[str, Any]]]:
    """model → language → metric → entry, of answers to prompts: the mean of each of their `values`.

    A metric is there for the answers it is defined for, and `n` says of how many prompts; one that only marks what
    was found (`script/Hani`, `line/en`) counts the others as 0. Answers that failed are left out and
    counted in `failed`. Where there are right answers, `exact` and `chrf` have a verdict against the reference on
    what both answered: the paired sign-flip test over prompts, Holm over languages. margin: a share of the
    answers, or times 100 of chrF.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for model, by_language in rows.items():
        found[model] = {}
        for language, own in by_language.items():
            good = [row for row in own if row["finish"] != "error"]
            entries: dict[str, Any] = {"failed": {"value": len(own) - len(good), "n": len(own)}}
            for metric in sorted({metric for row in good for metric in row["values"]}):
                there = [row for row in good if "/" in metric or metric in row["values"]]
                entries[metric] = mean_of_turns(
                    [(row["_id"], row["values"].get(metric, 0.0)) for row in there],
                    (0.0, 100.0 if metric == "chrf" else 1.0),
                ) | {"tokens": tokens(there)}
            found[model][language] = entries
    for metric, own_margin, within in (
        ("exact", margin, f"{100 * margin:g}%"),
        ("chrf", 100 * margin, f"{100 * margin:g} chrF"),
    ):
        for model, by_language in rows.items():
            if model == reference:
                continue
            losses = {
                language: lost
                for language, own in by_language.items()
                if (lost := _lost(rows[reference][language], own, metric))
            }
            for language, verdict in paired(losses, dict.fromkeys(losses, own_margin), within, 1).items():
                found[model][language][metric] |= verdict
    return found


def _lost(before: Sequence[Row], after: Sequence[Row], metric: str) -> list[float]:
    """What each prompt lost, a mean over its turns that both answered."""
    base = {row["item"]: row["values"].get(metric) for row in before}
    lost: dict[str, list[float]] = defaultdict(list)
    for row in after:
        value, known = row["values"].get(metric), base.get(row["item"])
        if value is not None and known is not None:
            lost[row["_id"]].append(known - value)
    return [sum(own) / len(own) for own in lost.values()]
