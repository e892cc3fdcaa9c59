"""What a tuning changed, by language: the same measures of the model before it and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ledger
from ..progress import Progress

if TYPE_CHECKING:
    from ..text.chat import Taught
    from ..text.dialogues import Dialogue
    from ..text.prompts import Prompt
    from .finetune import FinetuneConfig

MARGIN = 0.01  # of the loss before: so small a change is none
_FEWEST = 6  # answers or passages, for a verdict


@dataclass(frozen=True)
class Measures:
    """What is measured. answers, rejected: language → held-out dialogues as they are taught. probe: language → passages. prompts: to
    be answered.
    """

    answers: Mapping[str, Sequence[Taught]]
    rejected: Mapping[str, Sequence[Taught]]
    probe: Mapping[str, Mapping[str, str]]
    prompts: Sequence[Prompt]

    @property
    def parts(self) -> int:
        """Units of progress that one call takes."""
        return len(self.probe) + len(self.prompts) + 1

    def __call__(self, engine: Any, max_tokens: int, place: Path, bar: Progress, what: str) -> dict[str, Any]:
        """Measure the model of `engine`; kept in `place`, from where it is taken if it is there."""
        from ..engines.protocol import Sampling
        from ..evaluate import answering
        from ..evaluate.measure import measure
        from ..train.dialogues import AnswerLoss

        if place.is_file():
            bar.skip(self.parts)
            found: dict[str, Any] = ledger.read_json(place)
            return found
        found = {"answers": {}, "rejected": {}, "probe": {}, "rows": []}
        for name, own in (("answers", self.answers), ("rejected", self.rejected)):
            for language, each in AnswerLoss(own).each(engine.model).items() if own else ():
                found[name][language] = {
                    "nats": [round(nats, 5) for nats, _ in each],
                    "tokens": [count for _, count in each],
                }
        bar.step(1, f"{what}: held-out answers")
        for language, passages in self.probe.items():
            made = measure(
                {"model": engine.states(list(passages.values()))}, {"model": engine.head}, "model"
            )["model"]
            found["probe"][language] = {"nll": [round(nats, 5) for nats in made.nll], "tokens": made.tokens}
            bar.step(1, f"{what}: the probe in {language}")
        for row in answering.answer(engine, self.prompts, Sampling(max_tokens=max_tokens), {}):
            found["rows"].append(dict(row))
            bar.step(1, f"{what}: answers")
        order = {prompt.id: i for i, prompt in enumerate(self.prompts)}
        found["rows"].sort(key=lambda row: order[row["_id"]])
        ledger.write_json(place, found)
        return found


def prompts(config: FinetuneConfig, languages: Sequence[str], held_out: Sequence[Dialogue]) -> list[Prompt]:
    """What is asked: of each language the shipped everyday prompts, and as many of the dialogues held out."""
    from ..text.prompts import Prompt, load, spread

    shipped = [prompt for prompt in load("everyday") if prompt.lang in languages]
    found: list[Prompt] = []
    for language in languages:
        found += spread([prompt for prompt in shipped if prompt.lang == language])[: config.samples]
        own = [
            dialogue
            for dialogue in held_out
            if dialogue.lang == language and not dialogue.tools and dialogue.prompt[-1]["role"] == "user"
        ]
        for number, dialogue in enumerate(own[: config.samples], 1):
            answer = (dialogue.chosen or dialogue.messages)[-1]["content"]
            before = tuple({"role": m["role"], "content": m["content"]} for m in dialogue.prompt[:-1])
            asked = dialogue.prompt[-1]["content"]
            found.append(
                Prompt(
                    f"held-out-{language}-{number}", language, (asked,), (answer or None,), "held out", before
                )
            )
    return found


def compared(
    measures: Measures, before: Mapping[str, Any], after: Mapping[str, Any], trained: Sequence[str]
) -> dict[str, Any]:
    """`before` and `after` side by side, as `tuning.json` holds it: by language the loss of held-out answers (nats a
    token), that of a passage of the probe (nats) with its verdict, how often an answer was in the language asked for.
    """
    from .. import statistics

    answers: dict[str, Any] = {}
    changes: dict[str, list[float]] = {}
    for language, was in before["answers"].items():
        now = after["answers"][language]
        tokens = max(sum(was["tokens"]), 1)
        answers[language] = {
            "before": round(sum(was["nats"]) / tokens, 5),
            "after": round(sum(now["nats"]) / tokens, 5),
            "dialogues": len(was["nats"]),
            "tokens": tokens,
        }
        changes[language] = [
            (b - a) / max(count, 1)
            for a, b, count in zip(was["nats"], now["nats"], was["tokens"], strict=True)
        ]
        if measures.rejected:
            answers[language]["preferred"] = [
                _preferred(side["answers"][language], side["rejected"][language]) for side in (before, after)
            ]
    margins = {language: MARGIN * own["before"] for language, own in answers.items()}
    for language, verdict in _verdicts(statistics, changes, margins).items():
        answers[language]["verdict"] = verdict
    probe: dict[str, Any] = {}
    changes, margins = {}, {}
    for language, was in before["probe"].items():
        now = after["probe"][language]
        mean = sum(was["nll"]) / len(was["nll"])
        probe[language] = {
            "before": round(mean, 4),
            "after": round(sum(now["nll"]) / len(now["nll"]), 4),
            "passages": len(was["nll"]),
        }
        changes[language] = [b - a for a, b in zip(was["nll"], now["nll"], strict=True)]
        margins[language] = MARGIN * mean
    for language, verdict in _verdicts(statistics, changes, margins).items():
        probe[language]["verdict"] = verdict
    return {
        "trained": list(trained),
        "answers": answers,
        "probe": probe,
        "right": {
            language: {
                when: _right([row for row in side["rows"] if lang.get(row["_id"]) == language])
                for when, side in (("before", before), ("after", after))
            }
            for lang in [{prompt.id: prompt.lang for prompt in measures.prompts if _in_words(prompt)}]
            for language in dict.fromkeys(lang.values())
        },
        "samples": [
            {
                "_id": prompt.id,
                "lang": prompt.lang,
                "prompt": prompt.turns[0],
                "reference": prompt.references[0],
                "answers": {
                    when: {
                        "text": row["output"],
                        "finish": row["finish"],
                        "right": in_language(row["values"]),
                    }
                    for when, row in (("before", was), ("after", now))
                },
            }
            for prompt, was, now in zip(measures.prompts, before["rows"], after["rows"], strict=True)
        ],
    }


def _verdicts(
    statistics: Any, changes: Mapping[str, Sequence[float]], margins: Mapping[str, float]
) -> dict[str, str]:
    enough = {name: own for name, own in changes.items() if len(own) >= _FEWEST}
    if not enough:
        return {}
    found = statistics.paired_verdicts(enough, margins, within=f"{MARGIN:.0%}")
    return {name: verdict.verdict for name, verdict in found.items()}


def _preferred(chosen: Mapping[str, Any], rejected: Mapping[str, Any]) -> float:
    """The share of pairs of which the chosen answer is the likelier by its mean token."""
    pairs = zip(chosen["nats"], chosen["tokens"], rejected["nats"], rejected["tokens"], strict=True)
    won = [a / max(m, 1) < b / max(n, 1) for a, m, b, n in pairs]
    return round(sum(won) / max(len(won), 1), 4)


def in_language(values: Mapping[str, float]) -> bool:
    """Whether an answer is in the language that was asked for: every line that is long enough to tell is identified as it;
    where none is, no letter is of a script that the language is not written in. An empty answer is not.
    """
    if not values or values.get("empty"):
        return False
    return bool(values.get("line", values.get("script", 0.0)))


def _in_words(prompt: Prompt) -> bool:
    """Whether the answer is to be in the prompt's language: one that was written down may be a translation, or code."""
    from ..text import confusion

    written = prompt.references[0] if prompt.references else None
    return written is None or in_language(confusion.check(written, prompt.lang, prompt.text(0)).values())


def _right(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of answers: `right`, the share in the language asked for; `script`, without a letter of another script; `ended`, of
    themselves; `loops`, that repeat to the end; `n`.
    """
    count = max(len(rows), 1)
    script = [row["values"]["script"] for row in rows if "script" in row["values"]]
    return {
        "right": round(sum(in_language(row["values"]) for row in rows) / count, 4),
        "script": round(sum(script) / max(len(script), 1), 4),
        "ended": round(sum(row["finish"] == "stop" for row in rows) / count, 4),
        "loops": round(sum(row["values"].get("loop", 0.0) for row in rows) / count, 4),
        "n": len(rows),
    }
