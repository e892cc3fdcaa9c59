"""Prompts to be answered freely: what is asked, in which language, and perhaps what right answers are.

A prompt has one turn of the user's or several. Each is said once the model has answered the one before, since a
second turn usually asks it to mend or build on the first. Two sets ship, both written for onggi: `everyday`, the same
twelve in each of the probe's languages, and `questions`, 42 of two turns in each of English, Japanese and Korean,
none translated from another: a good question about honorifics has no English.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import languages
from ..errors import OnggiError, nearest
from . import jsonl

SHIPPED = ("everyday", "questions")


@dataclass(frozen=True)
class Prompt:
    """What a model is asked. lang: the language that its answers must be in. turns: what the user says, one
    after another. references: a right answer to each turn, or None. before: messages before the first turn.
    """

    id: str
    lang: str
    turns: tuple[str, ...]
    references: tuple[str | None, ...]
    category: str | None = None
    before: tuple[Mapping[str, str], ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """What the answer to each turn is kept by: the id, for later turns with their number (`ko-1/2`)."""
        return (self.id, *(f"{self.id}/{turn}" for turn in range(2, len(self.turns) + 1)))

    def chat(self, answers: Sequence[str]) -> list[Mapping[str, str]]:
        """The messages that ask for the next answer of a model that has given these."""
        said = list(self.before)
        for turn, answer in zip(self.turns, answers, strict=False):
            said += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
        return [*said, {"role": "user", "content": self.turns[len(answers)]}]

    def text(self, turn: int) -> str:
        """All that was said to the model up to a turn (from 1), for what an answer may take up from it."""
        return "\n".join([*(message["content"] for message in self.before), *self.turns[:turn]])


def file(source: str) -> Path:
    """Where the rows of a shipped set are, or of a file. Raises OnggiError where there is neither."""
    path = Path(__file__).parent / "data" / f"{source}.jsonl" if source in SHIPPED else Path(source)
    if not path.is_file():
        raise OnggiError(
            f"prompts: {source}: there is no such file; prompts are a JSONL file or one of: "
            f"{', '.join(SHIPPED)}.{nearest(source, SHIPPED)}"
        )
    return path


def load(source: str, wanted: Sequence[str] | None = None) -> list[Prompt]:
    """The prompts of a shipped set or of a JSONL file, in its order. Rows are one of

    - `{"_id", "lang", "prompt", "answer"?, "category"?}`
    - `{"_id", "lang", "messages", "answer"?, "category"?}`, the last message the user's
    - `{"_id", "lang", "turns": […], "references"?: […], "category"?}`, a reference or null for each turn

    wanted: languages to keep (canonical tags). Raises OnggiError naming file, line and field for what
    is not well formed, an `_id` that is there twice, and a wanted language without a prompt.
    """
    found: list[Prompt] = []
    keys: set[str] = set()
    for number, row in jsonl.read(file(source), source):
        place = f"{source}, line {number}"
        prompt = _prompt(place, row)
        if twice := keys & set(prompt.keys):
            raise OnggiError(f"{place}: _id {min(twice)!r} is there twice; each needs its own.")
        keys |= set(prompt.keys)
        found.append(prompt)
    have = dict.fromkeys(prompt.lang for prompt in found)
    if missing := [tag for tag in wanted or () if tag not in have]:
        raise OnggiError(f"{source}: has no prompts in {', '.join(missing)} (it has {', '.join(have)}).")
    return [prompt for prompt in found if wanted is None or prompt.lang in wanted]


def spread(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same prompts, one of each category in turn: the first few then are of many kinds."""
    seen: Counter[str | None] = Counter()
    places = []
    for prompt in prompts:
        places.append(seen[prompt.category])
        seen[prompt.category] += 1
    return [prompt for _, prompt in sorted(zip(places, prompts, strict=True), key=lambda pair: pair[0])]


def _prompt(place: str, row: Mapping[str, Any]) -> Prompt:
    for field in ("_id", "lang"):
        _text(place, field, row.get(field))
    try:
        lang = languages.canonical(row["lang"])
    except OnggiError as error:
        raise OnggiError(f"{place}: lang: {error}") from error
    if sum(field in row for field in ("prompt", "messages", "turns")) != 1:
        raise OnggiError(
            f"{place}: needs one of prompt (a text), messages (a chat) and turns (a list of texts)."
        )
    right, other = ("references", "answer") if "turns" in row else ("answer", "references")
    if row.get(other) is not None:
        raise OnggiError(f"{place}: {other} does not go with these fields; say {right}.")
    before: Sequence[Mapping[str, str]] = ()
    turns, references = row.get("turns"), row.get(right)
    if "messages" in row:
        *before, last = _messages(place, row["messages"])
        turns = [last["content"]]
    elif "prompt" in row:
        turns = [_text(place, "prompt", row["prompt"])]
    if not isinstance(turns, list) or not turns:
        raise OnggiError(f"{place}: turns is not a list of one or more texts.")
    if right == "answer" or references is None:
        references = [references] * len(turns)
    if not isinstance(references, list) or len(references) != len(turns):
        raise OnggiError(f"{place}: references is not a list with a text or null for each of the turns.")
    for field, value in [*((right, each) for each in references), ("category", row.get("category"))]:
        if value is not None:
            _text(place, field, value)
    texts = tuple(_text(place, "turns", turn) for turn in turns)
    return Prompt(row["_id"], lang, texts, tuple(references), row.get("category"), tuple(before))


def _messages(place: str, messages: Any) -> list[Mapping[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise OnggiError(f"{place}: messages is not a list of messages.")
    for each in messages:
        if not isinstance(each, dict) or not all(isinstance(each.get(k), str) for k in ("role", "content")):
            raise OnggiError(f'{place}: messages: each is {{"role": …, "content": …}}.')
    if messages[-1]["role"] != "user":
        raise OnggiError(f"{place}: messages: the last must be the user's, to be answered.")
    return [{"role": each["role"], "content": each["content"]} for each in messages]


def _text(place: str, field: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise OnggiError(f"{place}: {field} is empty or not a text.")
    return value
