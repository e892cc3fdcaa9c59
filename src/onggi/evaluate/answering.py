"""Tasks put to an engine, each item's result kept as it comes."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..engines import protocol
from ..engines.protocol import Answer, Generates, Sampling, Scored, Scores
from ..text import confusion
from ..text.prompts import Prompt
from .tasks import Choice, Item, Open, Task, chrf

# What is known of one item under one model: `item`, its id, and `value` by the task's metric, always.
Row = Mapping[str, Any]
_LONGEST = 512  # tokens of an answer to an open item


def ask(engine: Any, task: Task, items: Sequence[Item], chat: bool = False) -> Iterator[Row]:
    """The result of each item as it is known, in no order. chat: what is answered freely is asked as a chat."""
    if task.kind == "choice":
        yield from _choose(engine, task, [item for item in items if isinstance(item, Choice)])
    else:
        yield from _answer(engine, task, [item for item in items if isinstance(item, Open)], chat)


def _choose(engine: Scores, task: Task, items: Sequence[Choice]) -> Iterator[Row]:
    """Each item's choices by log-probability: as it is (`acc`), per byte of the choice (`acc_norm`), or
    less what the choice has without the question (`acc_mutual_info`), which takes off how common it is.
    """
    apart = task.metric == "acc_mutual_info"
    pairs: dict[tuple[str, str], None] = {}
    for item in items:
        for choice in item.choices:
            pairs[item.context, choice] = None
            if apart and item.prior is not None:
                pairs[item.prior, choice] = None
    order = list(pairs)
    # Which items wait for a pair: a prior's is shared by many.
    waiting: dict[tuple[str, str], list[int]] = {}
    left = [0] * len(items)
    for i, item in enumerate(items):
        own = {(item.context, choice) for choice in item.choices}
        if apart and item.prior is not None:
            own |= {(item.prior, choice) for choice in item.choices}
        left[i] = len(own)
        for pair in own:
            waiting.setdefault(pair, []).append(i)
    scores: dict[tuple[str, str], Scored] = {}
    for number, scored in engine.score(order):
        pair = order[number]
        scores[pair] = scored
        for i in waiting[pair]:
            left[i] -= 1
            if left[i] == 0:
                yield _chosen(task, items[i], scores)


def _chosen(task: Task, item: Choice, scores: Mapping[tuple[str, str], Scored]) -> Row:
    own = [scores[item.context, choice] for choice in item.choices]
    logprobs = [scored.logprob for scored in own]
    row: dict[str, Any] = {
        "item": item.id,
        "logprobs": [round(nats, 6) for nats in logprobs],
        "tokens": sum(scored.tokens for scored in own),
    }
    ranked = logprobs
    if task.metric == "acc_norm":
        ranked = [n / len(choice.encode()) for n, choice in zip(logprobs, item.choices, strict=True)]
    elif task.metric == "acc_mutual_info" and item.prior is not None:
        priors = [scores[item.prior, choice].logprob for choice in item.choices]
        row["priors"] = [round(nats, 6) for nats in priors]
        ranked = [nats - prior for nats, prior in zip(logprobs, priors, strict=True)]
    # Equal scores are no knowledge: the first of them, which stands anywhere.
    chosen = ranked.index(max(ranked))
    return {**row, "value": float(chosen == item.answer), "chosen": chosen, "answer": item.answer}


def _answer(engine: Generates, task: Task, items: Sequence[Open], chat: bool) -> Iterator[Row]:
    """Each item answered in free text, greedily, up to the task's stop."""
    # A translation is about as long as what it should be; a model that goes on and on is cut.
    longest = max((len(item.answer.encode()) for item in items), default=0) // 2 + 32
    sampling = Sampling(max_tokens=min(longest, _LONGEST), stop=task.stop)
    prompts: list[protocol.Prompt] = [
        [{"role": "user", "content": item.prompt}] if chat else item.prompt for item in items
    ]
    for number, said in engine.generate(prompts, sampling):
        item = items[number]
        yield {
            "item": item.id,
            "value": chrf(said.text.strip(), item.answer),
            "output": said.text,
            "finish": said.finish,
            "tokens": said.tokens,
            "prompt_tokens": said.prompt_tokens,
            "seconds": round(said.seconds, 3),
            "error": said.error,
        }


def answer(
    engine: Generates, prompts: Sequence[Prompt], sampling: Sampling, kept: Mapping[str, Row]
) -> Iterator[Row]:
    """A row for each turn of each prompt, but for those `kept` (`read` finds them), as it is answered: all
    first turns together, then all second ones with the model's own answers before them.

    `values` hold whether the answer is in the language asked for, what leaks into it, how it ends
    (`text.confusion`), and, where the turn has a reference, `exact` (the same text, but for case, spaces and a
    full stop) and `chrf`. Where the engine failed (`finish` "error") there are none, and the prompt's later
    turns are not asked but fail with it.
    """
    told = dict(kept)
    for turn in range(1, max((len(prompt.turns) for prompt in prompts), default=0) + 1):
        asked, chats = [], []
        for prompt in prompts:
            if turn > len(prompt.turns) or prompt.keys[turn - 1] in told:
                continue
            before = [told[key] for key in prompt.keys[: turn - 1]]
            if before and before[-1]["finish"] == "error":
                row = _answered(prompt, turn, Answer("", "error", 0, 0, 0.0, "the turn before has no answer"))
                told[row["item"]] = row
                yield row
            else:
                asked.append(prompt)
                chats.append(prompt.chat([row["output"] for row in before]))
        if chats:
            for number, said in engine.generate(chats, sampling):
                row = _answered(asked[number], turn, said)
                told[row["item"]] = row
                yield row


def _answered(prompt: Prompt, turn: int, said: Answer) -> Row:
    values: dict[str, float] = {}
    if said.finish != "error":
        values = confusion.check(said.text, prompt.lang, prompt.text(turn), finish=said.finish).values()
        if right := prompt.references[turn - 1]:
            values["exact"] = float(_plain(said.text) == _plain(right))
            values["chrf"] = chrf(said.text.strip(), right)
    return {
        "item": prompt.keys[turn - 1],
        "_id": prompt.id,
        "turn": turn,
        "output": said.text,
        "finish": said.finish,
        "tokens": said.tokens,
        "prompt_tokens": said.prompt_tokens,
        "seconds": round(said.seconds, 3),
        "error": said.error,
        "values": values,
    }


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).rstrip(".。।។؟?! ")


def read(file: Path) -> dict[str, Row]:
    """Item → row, of what a run has kept, without what failed (`finish` "error"), which is to be asked again:
    the server may have come back. The line that a run was stopped in is none.
    """
    if not file.is_file():
        return {}
    lines = file.read_bytes().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return {row["item"]: row for row in rows if row.get("finish") != "error"}


def line(row: Row) -> bytes:
    """A row as a line of its file."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
