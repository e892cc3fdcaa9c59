"""Tasks put to an engine, each item's result kept as it comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..engines.protocol import Generates, Sampling, Scores
from .tasks import Choice, Item, Open, Task, chrf

# What is known of one item under one model: `item`, its id, and `value` by the task's metric, always.
Row = Mapping[str, Any]
_LONGEST = 512  # tokens of an answer to an open item


def ask(engine: Any, task: Task, items: Sequence[Item]) -> Iterator[Row]:
    """The result of each item as it is known, in no order."""
    if task.kind == "choice":
        yield from _choose(engine, task, [item for item in items if isinstance(item, Choice)])
    else:
        yield from _answer(engine, task, [item for item in items if isinstance(item, Open)])


def _choose(engine: Scores, task: Task, items: Sequence[Choice]) -> Iterator[Row]:
    """Each item's choices by log-probability; `acc_norm` counts it per byte of the choice."""
    pairs = [(item.context, choice) for item in items for choice in item.choices]
    places = [(i, k) for i, item in enumerate(items) for k in range(len(item.choices))]
    found: dict[int, dict[int, float]] = {}
    for number, scored in engine.score(pairs):
        i, k = places[number]
        item, scores = items[i], found.setdefault(i, {})
        scores[k] = scored.logprob
        if len(scores) < len(item.choices):
            continue
        del found[i]
        logprobs = [scores[k] for k in range(len(item.choices))]
        sizes = [len(choice.encode()) for choice in item.choices] if task.metric == "acc_norm" else None
        ranked = [nats / size for nats, size in zip(logprobs, sizes, strict=True)] if sizes else logprobs
        # Equal scores are no knowledge: the first of them, which stands anywhere.
        chosen = ranked.index(max(ranked))
        yield {
            "item": item.id,
            "value": float(chosen == item.answer),
            "chosen": chosen,
            "answer": item.answer,
            "logprobs": [round(nats, 6) for nats in logprobs],
        }


def _answer(engine: Generates, task: Task, items: Sequence[Open]) -> Iterator[Row]:
    """Each item answered in free text, greedily, up to the task's stop."""
    sampling = Sampling(max_tokens=_LONGEST, stop=task.stop)
    for number, said in engine.generate([item.prompt for item in items], sampling):
        item = items[number]
        yield {
            "item": item.id,
            "value": chrf(said.text.strip(), item.answer),
            "output": said.text,
            "finish": said.finish,
            "tokens": said.tokens,
        }


def kept(
    file: Path, items: Sequence[Item], ask: Callable[[Sequence[Item]], Iterator[Row]], step: Callable[[], None]
) -> list[Row]:
    """Rows of all `items` in their order: those that `file` (JSON lines) has, the others asked for and
    added to it one by one. `step` is called for each.
    """
    found: dict[str, Row] = {}
    whole = 0
    if file.is_file():
        for line in file.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):  # the run was stopped while it wrote this one
                break
            row = json.loads(line)
            found[row["item"]] = row
            whole += len(line)
            step()
    missing = [item for item in items if item.id not in found]
    if missing:
        with file.open("ab") as out:
            out.truncate(whole)
            for row in ask(missing):
                out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                out.flush()
                found[row["item"]] = row
                step()
    return [found[item.id] for item in items]
