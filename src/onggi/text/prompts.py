"""Prompts to be answered: what is asked, in which language, and perhaps what a right answer is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import languages
from ..errors import OnggiError


@dataclass(frozen=True)
class Prompt:
    """One prompt. lang: the language the answer must be in. messages: what a chat model is asked.
    answer: a right one, where the row has it.
    """

    id: str
    lang: str
    messages: tuple[Mapping[str, str], ...]
    answer: str | None = None

    @property
    def text(self) -> str:
        """All that was said to the model, for what an answer may take up from it."""
        return "\n".join(message["content"] for message in self.messages)


def load(path: str, wanted: Sequence[str] | None = None) -> list[Prompt]:
    """Prompts of a JSONL file, rows `{"_id", "prompt" or "messages", "lang", "answer"?}`, in its order.

    wanted: languages to keep (canonical tags). Raises OnggiError naming file, line and field for what
    is not well formed, an `_id` that is there twice, and a wanted language without a prompt.
    """
    try:
        content = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise OnggiError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise OnggiError(f"{path}: is not UTF-8 (byte {error.start}); convert it first.") from error
    found: dict[str, Prompt] = {}
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        prompt = _prompt(f"{path}:{number}", line)
        if prompt.id in found:
            raise OnggiError(f"{path}:{number}: _id {prompt.id!r} is there twice; each needs its own.")
        found[prompt.id] = prompt
    kept = [prompt for prompt in found.values() if wanted is None or prompt.lang in wanted]
    missing = [tag for tag in wanted or () if tag not in {prompt.lang for prompt in kept}]
    if missing or not kept:
        raise OnggiError(f"{path}: has no prompts in {', '.join(missing) or 'any language'}.")
    return kept


def _prompt(place: str, line: str) -> Prompt:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise OnggiError(f"{place}: is not JSON ({error}).") from error
    if not isinstance(row, dict):
        raise OnggiError(f'{place}: is not an object with "_id", "prompt" and "lang".')
    for field in ("_id", "lang"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise OnggiError(f"{place}: {field} is not a text; each row needs one.")
    try:
        lang = languages.canonical(row["lang"])
    except OnggiError as error:
        raise OnggiError(f"{place}: lang: {error}") from error
    if ("prompt" in row) == ("messages" in row):
        raise OnggiError(f"{place}: needs either prompt (a text) or messages (a list of turns).")
    messages = _messages(place, row)
    answer = row.get("answer")
    if answer is not None and (not isinstance(answer, str) or not answer.strip()):
        raise OnggiError(f"{place}: answer is not a text; leave it out where there is none.")
    return Prompt(row["_id"], lang, messages, answer)


def _messages(place: str, row: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
    if "prompt" in row:
        if not isinstance(row["prompt"], str) or not row["prompt"].strip():
            raise OnggiError(f"{place}: prompt is empty or not a text.")
        return ({"role": "user", "content": row["prompt"]},)
    turns = row["messages"]
    if not isinstance(turns, list) or not turns:
        raise OnggiError(f"{place}: messages is not a list of turns.")
    for turn in turns:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(k), str) for k in ("role", "content")):
            raise OnggiError(f'{place}: messages: each turn is {{"role": …, "content": …}}.')
    if turns[-1]["role"] != "user":
        raise OnggiError(f"{place}: messages: the last turn must be the user's, to be answered.")
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)
