"""Tasks of lm-eval put to every model; imported only when asked for, since it needs the extra `tasks`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from .. import harness, results, tallies
from ..evaluation import Evaluation
from ..pieces import Piece, Row


def add(
    evaluation: Evaluation, asked: Sequence[harness.Asked], limit: int | None, sheets: results.Sheets
) -> None:
    """Every model on the tasks, one loaded at a time. A GGUF file is dequantised for them."""
    scores = evaluation.scores
    # (family, metric) → model → language → rows
    rows: dict[tuple[str, str], dict[str, dict[str, list[Any]]]] = {}
    better: dict[tuple[str, str], bool] = {}
    for model, kept in zip(evaluation.local, _responses(evaluation, asked), strict=True):
        found, by_task = harness.run(harness.Model(kept), asked, limit)
        sheets[model.name][0].append(found)
        for one in asked:
            result = by_task[one.name]
            key = one.family, result.metric
            rows.setdefault(key, {}).setdefault(model.name, {})[one.language] = result.rows
            better[key] = result.higher_is_better
            sheets[model.name][1][one.name] = result.samples
        for family in dict.fromkeys(one.family for one in asked):
            evaluation.ran(model, family, "states")
    for (family, metric), by_model in rows.items():
        own = {one.language: one for one in asked if one.family == family}
        floors = {
            language: {"chance": one.chance}
            for language, one in own.items()
            if one.chance is not None and metric.startswith("acc")
        }
        evaluation.add(
            f"{family}/{metric}",
            tallies.tally_metric(
                by_model, evaluation.reference, evaluation.margin, floors, better[family, metric]
            ),
        )
        scores.setdefault("tasks", {})[family] = {
            "metric": metric,
            "about": f"lm-eval: {', '.join(one.name for one in own.values())}",
            "shots": next(iter(own.values())).shots,
            "languages": list(own),
            "text": None,
            "higher_is_better": better[family, metric],
        }
        evaluation.items.add_task(family, metric, by_model)


def _responses(evaluation: Evaluation, asked: Sequence[harness.Asked]) -> list[dict[str, Row]]:
    """Request → response, of every model: on a cluster each task by itself, here all together."""
    requests = harness.requests_of(asked)
    if not evaluation.on:
        requests = {"lm-eval": [request for own in requests.values() for request in own]}
    pieces = [
        Piece(
            f"{model.name} {name}",
            model.source,
            "states",
            [request.id for request in own],
            functools.partial(harness.respond, own),
            evaluation.job.partial / f"lm-eval-{index}.jsonl",  # of the model, to all tasks
        )
        for index, model in enumerate(evaluation.local)
        for name, own in requests.items()
    ]
    found = iter(evaluation.complete("lm-eval", pieces))
    return [{key: row for _ in requests for key, row in next(found).items()} for _ in evaluation.local]
