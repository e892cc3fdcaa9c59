"""Tasks of lm-eval put to every model; imported only when asked for, since it needs the extra `tasks`."""

from __future__ import annotations

import functools
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...engines import opening
from ...engines.transformers import Engine
from ...progress import progress
from .. import harness, results, tallies
from ..evaluation import Evaluation
from ..pieces import Piece


def add(
    evaluation: Evaluation, asked: Sequence[harness.Asked], limit: int | None, sheets: results.Sheets
) -> None:
    """Every model on the tasks, one loaded at a time. A GGUF file is dequantised for them."""
    job, scores = evaluation.job, evaluation.scores
    opening.close()
    if evaluation.on:
        _fan_out(evaluation, asked)
    # (family, metric) → model → language → rows
    rows: dict[tuple[str, str], dict[str, dict[str, list[Any]]]] = {}
    better: dict[tuple[str, str], bool] = {}
    count = sum(one.requests for one in asked)
    with progress(f"evaluate {job.out.name}: lm-eval", count * len(evaluation.local)) as bar:
        for index, model in enumerate(evaluation.local):
            assert model.folder is not None
            step = functools.partial(bar.step, 1, model.name)
            file = _file(evaluation, index)
            asker = harness.Model(functools.partial(Engine, model.folder), file, step)
            bar.skip(len(asker.kept))
            found, by_task = harness.run(asker, asked, limit)
            sheets[model.name][0].append(found)
            for one in asked:
                result = by_task[one.name]
                key = one.family, result.metric
                rows.setdefault(key, {}).setdefault(model.name, {})[one.language] = result.rows
                better[key] = result.higher_is_better
                sheets[model.name][1][one.name] = result.samples
            for family in dict.fromkeys(one.family for one in asked):
                evaluation.ran(model, family, "states")
            del asker
            gc.collect()
            job.tick()
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


def _fan_out(evaluation: Evaluation, asked: Sequence[harness.Asked]) -> None:
    """Have every model's responses ready, each task by itself; lm-eval's rest then finds them kept."""
    requests = harness.requests_of(asked)
    evaluation.complete(
        "lm-eval",
        [
            Piece(
                f"{model.name} {name}",
                model.source,
                "states",
                [request.id for request in own],
                functools.partial(harness.respond, own),
                _file(evaluation, index),
            )
            for index, model in enumerate(evaluation.local)
            for name, own in requests.items()
        ],
    )


def _file(evaluation: Evaluation, index: int) -> Path:
    """Where the responses of the model of that number are kept, to all tasks."""
    return evaluation.job.partial / f"lm-eval-{index}.jsonl"
