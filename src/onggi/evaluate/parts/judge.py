"""What another model thinks of the answers: a grade for each, or which of two is better."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from ...engines import opening
from ...models.references import Reference
from ...text.prompts import Prompt
from .. import judge
from ..evaluation import Evaluation
from ..pieces import Piece, Row
from .answers import Answered

Judging = Literal["grade", "compare", "both"]


def add(
    evaluation: Evaluation,
    by: Reference,
    prompts: Mapping[str, Sequence[Prompt]],
    answered: Answered,
    judging: Judging,
) -> dict[tuple[str, str, str], float]:
    """Verdicts of the model `by` on the answers to `prompts` (language → prompts); into verdicts.jsonl too.

    Returns (model, language, key of the turn) → grade.
    """
    grades, pairs = judging != "compare", judging != "grade"
    names = [model.name for model in evaluation.models]
    answers = {
        (name, language): {row["item"]: row for row in rows}
        for name, by_language in answered.items()
        for language, rows in by_language.items()
    }
    todo: list[Piece] = []
    for language, own in prompts.items():
        keys = [key for prompt in own for key in prompt.keys]
        for index, name in enumerate(names if grades else ()):
            ask = functools.partial(_grade, own, answers[name, language], name, by.name)
            file = evaluation.job.partial / f"grades-{index}-{language}.jsonl"
            todo.append(Piece(f"{by.name} on {name} {language}", by.source, "generate", keys, ask, file))
        for (i, one), (k, other) in itertools.combinations(enumerate(names), 2) if pairs else ():
            both = (one, answers[one, language]), (other, answers[other, language])
            orders = [judge.order(key, first) for key in keys for first in (one, other)]
            file = evaluation.job.partial / f"pairs-{i}-{k}-{language}.jsonl"
            label = f"{by.name} on {one} and {other} {language}"
            ask = functools.partial(_compare, own, *both, by.name)
            todo.append(Piece(label, by.source, "generate", orders, ask, file))
    # In the order of the prompts, whatever came first.
    found = evaluation.complete("judge", todo)
    rows = [kept[key] for piece, kept in zip(todo, found, strict=True) for key in piece.keys]
    graded = [row for row in rows if "model" in row]
    compared = [row for row in rows if "model" not in row]
    evaluation.add("judge/score", judge.tally_grades(graded, evaluation.reference, evaluation.margin))
    every = [prompt for own in prompts.values() for prompt in own]
    scorers: dict[Literal["single", "pair"], str] = {}
    if grades:
        scorers["single"] = "a grade from 1 to 10; 0 in the wrong language"
    if pairs:
        scorers["pair"] = "which of two is better, in both orders"
    evaluation.scores["judge"] = {
        "model": by.name,
        "source": by.source,
        "engine": opening.how(by.source, "generate"),
        "records": {
            kind: judge.record(by.source, judge.SAMPLING, every, judge.Template(kind), scorer)
            for kind, scorer in scorers.items()
        },
        "languages": judge.tally_pairs(compared, evaluation.reference) if pairs else {},
    }
    for row in graded:
        evaluation.items.add_grade(row)
    with (evaluation.job.work / "verdicts.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    evaluation.outputs.append("verdicts.jsonl")
    return {
        (row["model"], row["lang"], row["item"]): row["score"] for row in graded if row["score"] is not None
    }


def _grade(
    prompts: Sequence[Prompt],
    answers: Mapping[str, Row],
    model: str,
    by: str,
    engine: Any,
    kept: Mapping[str, Row],
) -> Iterator[Row]:
    yield from judge.grade(engine, prompts, answers, model, judge=by, kept=kept)


def _compare(
    prompts: Sequence[Prompt],
    first: tuple[str, Mapping[str, Row]],
    second: tuple[str, Mapping[str, Row]],
    by: str,
    engine: Any,
    kept: Mapping[str, Row],
) -> Iterator[Row]:
    yield from judge.compare(engine, prompts, first, second, judge=by, kept=kept)
