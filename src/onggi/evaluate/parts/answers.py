"""What each model answers to prompts: in which language, how it ends, whether it is right."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...engines.protocol import Sampling
from ...text.prompts import Prompt
from .. import answering, tallies
from ..evaluation import Evaluation
from ..pieces import Piece, Row

# model → language → rows, in the order of the prompts
Answered = dict[str, dict[str, list[Row]]]


def add(
    evaluation: Evaluation, prompts: Mapping[str, Sequence[Prompt]], source: str, max_tokens: int
) -> Answered:
    """Every model's answers to `prompts` (language → prompts) of `source`."""
    sampling = Sampling(max_tokens=max_tokens)
    keys = {language: [key for prompt in own for key in prompt.keys] for language, own in prompts.items()}
    todo: dict[tuple[str, str], Piece] = {}
    for index, model in enumerate(evaluation.models):
        for language, own in prompts.items():
            todo[model.name, language] = Piece(
                f"{model.name} {language}",
                model.source,
                "generate",
                keys[language],
                functools.partial(_ask, own, sampling),
                evaluation.job.partial / f"answers-{index}-{language}.jsonl",
            )
        evaluation.ran(model, "prompts", "generate")
    found = dict(zip(todo, evaluation.complete("prompts", list(todo.values())), strict=True))
    rows: Answered = {
        model.name: {
            language: [found[model.name, language][key] for key in own] for language, own in keys.items()
        }
        for model in evaluation.models
    }
    for model_name, entries in tallies.tally_answers(rows, evaluation.reference, evaluation.margin).items():
        for language, metrics in entries.items():
            for metric, entry in metrics.items():
                evaluation.add(f"prompts/{metric}", {model_name: {language: entry}})
    evaluation.scores["prompts"] = {
        "source": source,
        "languages": {language: len(own) for language, own in prompts.items()},
        "sampling": {"max_tokens": max_tokens, "temperature": 0.0},
    }
    for name, by_language in rows.items():
        for language, answered in by_language.items():
            for row in answered:
                evaluation.items.add_answer(name, language, row)
    return rows


def write(
    evaluation: Evaluation,
    prompts: Mapping[str, Sequence[Prompt]],
    rows: Answered,
    grades: Mapping[tuple[str, str, str], float],
) -> None:
    """Write answers.jsonl. grades: (model, language, key of the turn) → the judge's, where there is one."""
    with (evaluation.job.work / "answers.jsonl").open("w", encoding="utf-8") as out:
        for name, by_language in rows.items():
            terms = evaluation.scores["models"][name]["about"].get("terms")
            for language, answered in by_language.items():
                own = {row["item"]: row for row in answered}
                for prompt in prompts[language]:
                    for turn, key in enumerate(prompt.keys, 1):
                        row = own[key]
                        before = [own[earlier]["output"] for earlier in prompt.keys[: turn - 1]]
                        said: dict[str, Any] = {
                            "_id": prompt.id,
                            "messages": prompt.chat(before),
                            "lang": language,
                        }
                        said |= {"model": name, "answer": row["output"], "finish": row["finish"]}
                        said |= {"terms": terms}
                        if len(prompt.keys) > 1:
                            said["turn"] = turn
                        if (name, language, key) in grades:
                            said["score"] = grades[name, language, key]
                        out.write(json.dumps(said, ensure_ascii=False) + "\n")
    evaluation.outputs.append("answers.jsonl")


def _ask(
    prompts: Sequence[Prompt], sampling: Sampling, engine: Any, kept: Mapping[str, Row]
) -> Iterator[Row]:
    yield from answering.answer(engine, prompts, sampling, kept)
