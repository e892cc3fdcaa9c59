"""Choices that a model picks by writing: the only way to ask a model behind a server, which does not tell
how likely a given text is.

The choices stand below the question with letters, and the model is to write one. No word of instruction
is added, so that the form is the same in every language and no translation of it is measured; solved
items before it show what is wanted. What is measured differs from likelihoods (a base model may know an
answer and not the form), so a table is made in one form or the other, for all its models.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..engines.protocol import Generates, Sampling
from .tasks import Choice

LETTERS = "ABCDEFGH"
# A letter by itself in any script's sentence: `B`, `(B)`, `정답은 B입니다.`, `答えはBです`. Not the article of "A friend".
_LETTER = re.compile(r"(?<![A-Za-z0-9])([A-H])(?![A-Za-z0-9]|(?<=A) [a-z])")
_FIRST = re.compile(r"\W*" + _LETTER.pattern)


def messages(item: Choice) -> list[dict[str, str]]:
    """The item as a chat: its shots as turns that were answered, then the item itself."""
    said = []
    for shot in item.shots:
        said += [
            {"role": "user", "content": _asked(shot)},
            {"role": "assistant", "content": LETTERS[shot.answer]},
        ]
    return [*said, {"role": "user", "content": _asked(item)}]


def _asked(item: Choice) -> str:
    lines = [f"{letter}. {choice.strip()}" for letter, choice in zip(LETTERS, item.choices, strict=False)]
    return "\n".join([item.question.rstrip(), *lines, _which(item)])


def _which(item: Choice) -> str:
    return f"({' / '.join(LETTERS[: len(item.choices)])})"


def chosen(text: str, item: Choice) -> int | None:
    """The choice that an answer names: by the letter it begins with or the only one in it, else by the one
    choice it quotes. None where it names none, or several.
    """
    text = unicodedata.normalize("NFKC", text).replace(
        _which(item), " "
    )  # a base model may go on with the question
    first = _FIRST.match(text)
    letters = {first[1]} if first else set(_LETTER.findall(text))
    if letters:
        found = LETTERS.index(min(letters))
        return found if len(letters) == 1 and found < len(item.choices) else None
    quoted = [n for n, choice in enumerate(item.choices) if choice.strip().casefold() in text.casefold()]
    # A choice may be part of another: "445" of "1445", "Guinea" of "Guinea-Bissau".
    longest = [
        n
        for n in quoted
        if not any(n != m and item.choices[n].strip() in item.choices[m].strip() for m in quoted)
    ]
    return longest[0] if len(longest) == 1 else None


def ask(engine: Generates, items: Sequence[Choice], max_tokens: int) -> Iterator[Mapping[str, Any]]:
    """Each item's row as it is answered; one that names no choice is wrong, and `chosen` is None."""
    sampling = Sampling(max_tokens=max_tokens)
    for number, said in engine.generate([messages(item) for item in items], sampling):
        item = items[number]
        picked = chosen(said.text, item)
        yield {
            "item": item.id,
            "value": float(picked == item.answer),
            "chosen": picked,
            "answer": item.answer,
            "output": said.text,
            "finish": said.finish,
            "tokens": said.tokens,
            "prompt_tokens": said.prompt_tokens,
            "seconds": round(said.seconds, 3),
            "error": said.error,
        }
