"""Answers that exist already, brought together: the same prompts, answered by each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import languages
from ..errors import OnggiError
from ..text import jsonl
from ..text.prompts import Prompt
from .design import Item


@dataclass(frozen=True)
class Answered:
    """A prompt with one model's answers. terms: what the model's licence asks to pass on."""

    id: str
    lang: str
    before: tuple[Mapping[str, str], ...]
    turns: tuple[str, ...]
    answers: tuple[str, ...]
    terms: str | None = None


def of_prompt(prompt: Prompt, answers: Sequence[str], terms: str | None = None) -> Answered:
    """What a model answered to `prompt`."""
    return Answered(prompt.id, prompt.lang, prompt.before, prompt.turns, tuple(answers), terms)


def read(path: Path, model: str) -> list[Answered]:
    """A model's answers in a file of JSON lines, in its order: `{"_id", "lang", "prompt" or "messages", "answer",
    "model"?, "turn"?}`, as `onggi evaluate --prompts` writes them.

    model: which, where the file has those of several; where all are of one, or none is named, it is that one.
    Answers that failed are left out. Raises OnggiError with line and field for what is not well formed.
    """
    found: dict[str, dict[int, tuple[str, Mapping[str, Any]]]] = {}
    rows = [(f"{path}, line {number}", row) for number, row in jsonl.read(path, str(path))]
    names = list(dict.fromkeys(row["model"] for _, row in rows if row.get("model") is not None))
    if len(names) > 1 and model not in names:
        raise OnggiError(
            f"{path}: has no answers of {model!r}, only of {', '.join(map(str, names))}; name one of these, NAME={path}."
        )
    for place, row in rows:
        if (len(names) > 1 and row.get("model") != model) or row.get("finish") == "error":
            continue
        for name in ("_id", "lang"):
            if not isinstance(row.get(name), str) or not row[name]:
                raise OnggiError(f"{place}: {name} is not a text.")
        if not isinstance(row.get("answer"), str):
            raise OnggiError(f"{place}: answer is not a text.")
        turn = row.get("turn") or 1
        if not isinstance(turn, int) or turn in found.setdefault(row["_id"], {}):
            raise OnggiError(f"{place}: _id {row['_id']!r} is there twice, or its turn is no number.")
        found[row["_id"]][turn] = place, row
    whole = (own for own in found.values() if sorted(own) == list(range(1, len(own) + 1)))
    return [_answered(own) for own in whole]


def _answered(own: Mapping[int, tuple[str, Mapping[str, Any]]]) -> Answered:
    """One prompt's answers, from the rows of its turns."""
    turns: list[str] = []
    before: tuple[Mapping[str, str], ...] = ()
    for turn in sorted(own):
        place, row = own[turn]
        messages = row.get("messages")
        if isinstance(row.get("prompt"), str):
            messages = [{"role": "user", "content": row["prompt"]}]
        if (
            not isinstance(messages, list)
            or not messages
            or not all(
                isinstance(m, dict) and all(isinstance(m.get(k), str) for k in ("role", "content"))
                for m in messages
            )
        ):
            raise OnggiError(f"{place}: needs prompt (a text) or messages (a chat).")
        if turn == 1:
            before = tuple({"role": m["role"], "content": m["content"]} for m in messages[:-1])
        turns.append(messages[-1]["content"])
    first = own[1][1]
    try:
        lang = languages.canonical(first["lang"])
    except OnggiError as error:
        raise OnggiError(f"{own[1][0]}: lang: {error}") from error
    terms = first.get("terms")
    answers = tuple(own[turn][1]["answer"] for turn in sorted(own))
    return Answered(
        first["_id"], lang, before, tuple(turns), answers, terms if isinstance(terms, str) else None
    )


def together(
    by_model: Mapping[str, Sequence[Answered]], wanted: Sequence[str] | None, limit: int | None
) -> tuple[dict[str, list[Item]], int]:
    """Language → prompts that every model answered, in the first one's order, and how many others there are.

    wanted: languages. limit: prompts of each at most. Raises OnggiError where two were not asked the same, or a
    language has no prompt that all answered.
    """
    own = {model: {each.id: each for each in answered} for model, answered in by_model.items()}
    first, *rest = own.values()
    found: dict[str, list[Item]] = {}
    for key, each in first.items():
        if wanted is not None and each.lang not in wanted:
            continue
        if not all(key in other for other in rest):
            continue
        for model, other in own.items():
            same = other[key]
            if (same.lang, same.before, same.turns) != (each.lang, each.before, each.turns):
                raise OnggiError(
                    f"models: {model} was asked {key!r} in other words than {next(iter(own))} was."
                )
        answers = {model: answered[key].answers for model, answered in own.items()}
        items = found.setdefault(each.lang, [])
        if limit is None or len(items) < limit:
            items.append(Item(key, each.lang, each.before, each.turns, answers))
    every = {(k, e.lang) for answered in own.values() for k, e in answered.items()}
    common = {key for key in first if all(key in other for other in rest)}
    missing = [tag for tag in wanted or () if tag not in found]
    if missing or not found:
        raise OnggiError(
            f"prompts: there is none that all models answered{' in ' + ', '.join(missing) if missing else ''}."
        )
    lost = sum(1 for key, lang in every if key not in common and (wanted is None or lang in wanted))
    return ({tag: found[tag] for tag in wanted} if wanted is not None else found), lost
