"""Tasks of ours, and those of lm-eval, put to every model."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, Literal

from ...engines import opening
from ...errors import OnggiError, nearest
from ...languages import Languages
from ...progress import say
from ...text import Text
from .. import answering, results, tallies, written
from ..evaluation import Evaluation
from ..pieces import Piece, Row
from ..tasks import TASKS, Choice, Item, Task, chrf_signature

Form = Literal["scored", "written"]
_LONGEST = 24  # tokens of a choice that a model here writes
# task → language → items
Asked = Mapping[str, Mapping[str, Sequence[Item]]]


def split(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The tasks asked for: ours, and those of lm-eval (a YAML file, and every other name)."""
    return [name for name in names if name in TASKS], [name for name in names if name not in TASKS]


def harness() -> ModuleType:
    """`evaluate.harness`, which needs an extra. Raises OnggiError where that is not installed."""
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise OnggiError("tasks: tasks of lm-eval need it installed: pip install 'onggi[tasks]'.")
    from .. import harness

    return harness


def known(theirs: Sequence[str]) -> None:
    """Refuse a name that is nobody's, before its neighbours' data is fetched."""
    from importlib.util import find_spec

    for name in theirs:
        if name.endswith((".yaml", ".yml")):
            continue
        if find_spec("lm_eval") is None:
            raise OnggiError(
                f"tasks: there is no task {name!r}.{nearest(name, list(TASKS))} See --list-tasks; "
                "tasks of lm-eval need pip install 'onggi[tasks]'."
            )
        if name not in (names := harness().names()):
            raise OnggiError(
                f"tasks: there is no task {name!r}.{nearest(name, [*TASKS, *names])} See --list-tasks."
            )


def items(
    names: Sequence[str], found: Text, languages: Languages | None, shots: int, limit: int | None
) -> dict[str, dict[str, list[Item]]]:
    """Task → language → items, for tasks of ours; `found` is the text of those that are made from one."""
    asked: dict[str, dict[str, list[Item]]] = {}
    for name in names:
        task = TASKS[name]
        text = found if task.parallel else None
        have = task.languages(text)
        wanted = languages or Languages(found.languages)
        own = [language for language in wanted if language in have]
        if not own:
            raise OnggiError(f"tasks: {name} is in none of {','.join(wanted)}; it is in {','.join(have)}.")
        if len(own) < len(wanted):
            say(f"{name} is not asked in {', '.join(tag for tag in wanted if tag not in own)}.")
        asked[name] = task.items(own, shots=shots, limit=limit, text=text)
    return asked


def add(
    evaluation: Evaluation,
    asked: Asked,
    shots: int,
    text: str,
    form: Form,
    max_tokens: int,
    sheets: results.Sheets,
) -> None:
    """Every model on every task of ours. text: the source of those made from one. form: how a choice is
    made, the likeliest of them or the one that the model writes, for all models alike; a server's may take
    `max_tokens` for it, since it may think first.
    """
    # What is written is right or wrong, whatever likelihoods would be corrected for.
    tasks = {
        name: replace(TASKS[name], metric="acc")
        if form == "written" and TASKS[name].kind == "choice"
        else TASKS[name]
        for name in asked
    }
    todo: dict[tuple[str, str, str], Piece] = {}
    for index, model in enumerate(evaluation.models):
        for name, by_language in asked.items():
            task = tasks[name]
            scored = task.kind == "choice" and form == "scored"
            need: opening.Need = "score" if scored else "generate"
            for language, own in by_language.items():
                todo[name, model.name, language] = Piece(
                    f"{model.name} {name} {language}",
                    model.source,
                    need,
                    [item.id for item in own],
                    functools.partial(_ask, task, own, form, _LONGEST if model.folder else max_tokens),
                    evaluation.job.partial / f"task-{index}-{name}-{language}.jsonl",
                )
            evaluation.ran(model, name, need)
    found = dict(zip(todo, evaluation.complete("tasks", list(todo.values())), strict=True))
    for name, every in asked.items():
        task = tasks[name]
        # An item that one of them could not be asked is left out for all: they are compared on the same ones.
        by_language = {
            language: [
                item
                for item in own
                if all(
                    found[name, m.name, language][item.id].get("finish") != "error" for m in evaluation.models
                )
            ]
            for language, own in every.items()
        }
        if lost := [language for language, own in by_language.items() if not own]:
            raise OnggiError(f"{name}: every request failed in {', '.join(lost)}.")
        rows = {
            model.name: {
                language: [found[name, model.name, language][item.id] for item in own]
                for language, own in by_language.items()
            }
            for model in evaluation.models
        }
        for model_name, own_rows in rows.items():
            made, samples = results.ours(task, by_language, own_rows, shots)
            sheets[model_name][0].append(made)
            sheets[model_name][1].update(samples)
        evaluation.add(
            f"{name}/{task.metric}",
            tallies.tally(task, by_language, rows, evaluation.reference, evaluation.margin),
        )
        evaluation.scores.setdefault("tasks", {})[name] = {
            "metric": task.metric,
            "about": task.about,
            "shots": shots,
            "languages": list(by_language),
            "text": text if task.parallel else None,
            "form": form if task.kind == "choice" else None,
            "signature": chrf_signature() if task.metric == "chrf" else None,
            "left_out": {
                tag: count for tag, own in every.items() if (count := len(own) - len(by_language[tag]))
            },
        }
        evaluation.items.add_task(name, task.metric, rows)


def _ask(
    task: Task, items: Sequence[Item], form: Form, max_tokens: int, engine: Any, kept: Mapping[str, Row]
) -> Iterator[Row]:
    missing = [item for item in items if item.id not in kept]
    if task.kind == "choice" and form == "written":
        yield from written.ask(engine, [item for item in missing if isinstance(item, Choice)], max_tokens)
    else:
        yield from answering.ask(engine, task, missing, chat=form == "written")
