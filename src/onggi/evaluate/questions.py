"""Questions of one or more turns, and a model's answers to them.

What ships was written for onggi, 42 questions in each of three languages, none translated from another:
a good question about honorifics has no English. A question's turns are put to a model as one chat with
its own earlier answers in it, since the second turn usually asks it to mend or build on the first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from .. import languages
from ..engines.protocol import Generates, Sampling
from ..errors import OnggiError

SHIPPED = ("en", "ja", "ko")

# (question, turn counted from 1): what an answer is the answer to.
Key = tuple[str, int]
Answers = Mapping[Key, str]
Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """Turns asked one after another. references: a right answer to each turn, or None. lang: the
    language that the answers must be in.
    """

    id: str
    lang: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str | None, ...]

    @property
    def keys(self) -> list[Key]:
        """One for each turn."""
        return [(self.id, turn) for turn in range(1, len(self.turns) + 1)]


def load_questions(source: str, wanted: Sequence[str] | None = None) -> list[Question]:
    """Questions to ask: `shipped` (42 of two turns in each of en, ja, ko), or a JSONL file of
    `{"_id", "lang", "category", "turns": […], "references": […]}`. wanted: languages (canonical tags).

    `references` may be left out. Raises OnggiError, naming file, line and field, for what is not
    well formed, and where a wanted language has no question.
    """
    if source == "shipped":
        folder = resources.files("onggi.evaluate") / "data" / "judge"
        texts = {tag: (folder / f"{tag}.jsonl").read_text(encoding="utf-8") for tag in SHIPPED}
        rows = [row for tag, text in texts.items() for row in _rows(text, f"{tag}.jsonl")]
    else:
        try:
            rows = list(_rows(Path(source).read_text(encoding="utf-8-sig"), source))
        except OSError as error:
            raise OnggiError(
                f"{source}: cannot be read ({error.strerror}); --questions takes a JSONL file or 'shipped'."
            ) from error
        except UnicodeDecodeError as error:
            raise OnggiError(f"{source}: is not UTF-8 (byte {error.start}); convert it first.") from error
    questions: dict[str, Question] = {}
    for place, row in rows:
        question = _question(place, row)
        if question.id in questions:
            raise OnggiError(f"{place}: _id {question.id!r} is there twice; each question needs its own.")
        questions[question.id] = question
    found = [q for q in questions.values() if wanted is None or q.lang in wanted]
    missing = [tag for tag in wanted or () if tag not in {q.lang for q in found}]
    if missing or not found:
        there = ", ".join(dict.fromkeys(q.lang for q in questions.values())) or "none"
        raise OnggiError(
            f"{source}: has no questions in {', '.join(missing) or 'any language'} (it has {there})."
        )
    return found


def _rows(content: str, source: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                yield f"{source}, line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise OnggiError(f"{source}, line {number}: is not JSON ({error}).") from error


def _question(place: str, row: Any) -> Question:
    if not isinstance(row, dict):
        raise OnggiError(f"{place}: is not an object with _id, lang, category and turns.")
    for field in ("_id", "lang", "category"):
        if not (isinstance(row.get(field), str) and row[field].strip()):
            raise OnggiError(f"{place}: {field} must be text, not {row.get(field)!r}.")
    turns = row.get("turns")
    if not (isinstance(turns, list) and turns and all(isinstance(t, str) and t.strip() for t in turns)):
        raise OnggiError(f"{place}: turns must be a list of one or more texts.")
    references = row.get("references")
    if references is None:
        references = [None] * len(turns)
    if not (
        isinstance(references, list)
        and len(references) == len(turns)
        and all(r is None or isinstance(r, str) for r in references)
    ):
        raise OnggiError(f"{place}: references must be a list with a text or null for each of the turns.")
    try:
        tag = languages.canonical(row["lang"])
    except OnggiError as error:
        raise OnggiError(f"{place}: lang: {error}") from error
    return Question(row["_id"], tag, row["category"], tuple(turns), tuple(references))


def ask(
    engine: Generates,
    questions: Sequence[Question],
    sampling: Sampling,
    model: str,
    done: Answers | None = None,
) -> Iterator[Row]:
    """Each question's turns put to `engine` as a chat, its own answers before the next turn.

    Yields a row an answer as it comes: `_id, turn, lang, category, model, answer, finish, tokens,
    seconds, error`. All first turns go in one batch, then all second turns. `done` are answers there
    are already: they are not asked again and take their place in the chat. Where the engine fails
    (`finish` "error"), `answer` is None and the later turns of that question are not asked.
    """
    told = dict(done or {})
    for turn in range(1, max((len(q.turns) for q in questions), default=0) + 1):
        batch = [
            q
            for q in questions
            if turn <= len(q.turns)
            and (q.id, turn) not in told
            and all((q.id, before) in told for before in range(1, turn))
        ]
        if not batch:
            continue
        chats = [_chat(q, turn, told) for q in batch]
        for index, answer in engine.generate(chats, sampling):
            q = batch[index]
            failed = answer.finish == "error"
            if not failed:
                told[q.id, turn] = answer.text
            yield {
                "_id": q.id,
                "turn": turn,
                "lang": q.lang,
                "category": q.category,
                "model": model,
                "answer": None if failed else answer.text,
                "finish": answer.finish,
                "tokens": answer.tokens,
                "seconds": answer.seconds,
                "error": answer.error,
            }


def answers_of(rows: Iterable[Row]) -> dict[Key, str]:
    """The answers in `ask`'s rows, without those that failed."""
    return {(row["_id"], row["turn"]): row["answer"] for row in rows if row["answer"] is not None}


def _chat(question: Question, turn: int, told: Answers) -> list[dict[str, str]]:
    chat: list[dict[str, str]] = []
    for before in range(1, turn):
        chat.append({"role": "user", "content": question.turns[before - 1]})
        chat.append({"role": "assistant", "content": told[question.id, before]})
    return [*chat, {"role": "user", "content": question.turns[turn - 1]}]
