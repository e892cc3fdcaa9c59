"""Text drawn as sequences of tokens, in shares that are fair to languages.

A total of tokens is split over the languages: the same number of tokens each (`tokens`), or the
same passages each (`content`, in which Khmer gets about two and a half times English's tokens).
Never one concatenated corpus, and never a filter by token length, which picks by how dearly a
tokenizer charges a language. `pooled` is what other tools do, for comparison: all rows in one pot.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from .. import languages
from ..errors import OnggiError
from ..progress import say

Passages = Mapping[str, Mapping[str, str]]  # language → id → text

# Tokens of one sequence, the start token included.
LENGTH = 512


def hold_out(passages: Passages, one_in: int) -> tuple[Passages, Passages]:
    """(the rest, those held out): of each language one passage in `one_in`, by its id, and one at least. In a
    parallel text a passage that is held out in one language is so in all.

    Raises OnggiError for a language with fewer than two passages, or of which nothing would be left.
    """
    held_out = {}
    for language, texts in passages.items():
        if len(texts) < 2:
            raise OnggiError(
                f"text: {len(texts)} passage in {languages.name(language)} is too little: one is held out; "
                "leave the language out or give more."
            )
        order = sorted(texts, key=lambda key: hashlib.sha256(key.encode()).digest())
        held_out[language] = {key: texts[key] for key in order[: max(1, len(order) // one_in)]}
    apart = {key for texts in held_out.values() for key in texts}
    rest = {
        language: {key: content for key, content in texts.items() if key not in apart}
        for language, texts in passages.items()
    }
    # Passages that are held out for other languages are missing here too.
    bare = [language for language, own in rest.items() if not own]
    if bare:
        names = ", ".join(map(languages.name, bare))
        raise OnggiError(
            f"text: all passages in {names} are held out, since other languages hold the same ones out, and nothing is "
            "left; leave the language out or give more of it."
        )
    return rest, held_out


@dataclass(frozen=True)
class Sequences:
    """runs: language (or `pooled`) → its sequences of token ids, each with the start token before it.
    counts: tokens of each language, start tokens included. short: language → tokens asked for but
    not there.
    """

    runs: dict[str, list[list[int]]]
    counts: dict[str, int]
    short: dict[str, int]


def draw(
    passages: Mapping[str, Mapping[str, str]],
    encode: Callable[[str], list[int]],
    prefix: int,
    tokens: int,
    *,
    balanced: bool = True,
    share: str = "tokens",
    seed: int = 0,
    length: int = LENGTH,
    spare: int = 1,
) -> Sequences:
    """Draw `tokens` tokens from `passages` (language → id → text).

    spare: of a balanced text so many times as many, as far as there are.
    encode gives the ids of a text, prefix is the token before every sequence. Rows are taken in an
    order shuffled by `seed`, joined by line breaks, and cut into sequences of `length`.
    Raises OnggiError where a language has no text or gets no token.
    """
    if tokens < 2 * len(passages):
        raise OnggiError(f"tokens: {tokens} are too few for {len(passages)} languages.")
    empty = [language for language, texts in passages.items() if not texts]
    if empty:
        raise OnggiError(f"no text in {', '.join(empty)}.")
    if not balanced:
        pool = [(language, text) for language, texts in passages.items() for text in texts.values()]
        random.Random(seed).shuffle(pool)
        runs = {"pooled": _take(((lang, encode(text + "\n")) for lang, text in pool), tokens, length)}
        budget = {"pooled": tokens}
    elif share == "content":
        runs = _same_passages(passages, encode, tokens, seed, length)
        budget = {}
    else:
        budget = {
            language: tokens // len(passages) + (i < tokens % len(passages))
            for i, language in enumerate(passages)
        }
        runs = {}
        for language, texts in passages.items():
            rows = list(texts.values())
            # Seeded by the language, so that adding one to the list does not redraw the others.
            random.Random(f"{seed}:{language}").shuffle(rows)
            encoded = ((language, encode(text + "\n")) for text in rows)
            runs[language] = _take(encoded, spare * budget[language], length)
    return _sequences(runs, budget, prefix, length)


_Run = list[tuple[str, int]]  # (language, token id), content only


def _room(tokens: int, length: int) -> int:
    """Content tokens in `tokens` tokens, a start token being spent on each sequence begun."""
    return tokens - -(-tokens // length)


def _take(rows: Iterable[tuple[str, list[int]]], tokens: int, length: int) -> _Run:
    room = _room(tokens, length)
    run: _Run = []
    for language, ids in rows:
        run += [(language, token) for token in ids[: room - len(run)]]
        if len(run) >= room:
            break
    return run


def _same_passages(
    passages: Mapping[str, Mapping[str, str]],
    encode: Callable[[str], list[int]],
    tokens: int,
    seed: int,
    length: int,
) -> dict[str, _Run]:
    first, *others = passages.values()
    keys = [key for key in first if all(key in texts for texts in others)]
    if not keys:
        raise OnggiError("share: content needs passages that are there in every language; there is none.")
    random.Random(seed).shuffle(keys)
    runs: dict[str, _Run] = {language: [] for language in passages}
    spent, whole = 0, True
    for key in keys:
        encoded = {language: encode(texts[key] + "\n") for language, texts in passages.items()}
        spent += sum(len(ids) for ids in encoded.values())
        if spent > _room(tokens, length) and all(runs.values()):
            whole = False
            break
        for language, ids in encoded.items():
            runs[language] += [(language, token) for token in ids]
    if whole:
        say(f"Text runs short: all passages together have {spent} of {tokens} tokens.")
    return runs


def _sequences(runs: Mapping[str, _Run], budget: Mapping[str, int], prefix: int, length: int) -> Sequences:
    rows: dict[str, list[list[int]]] = {}
    counts: dict[str, int] = {}
    short: dict[str, int] = {}
    for name, run in runs.items():
        used = 0
        rows[name] = []
        for start in range(0, len(run), length - 1):
            piece = run[start : start + length - 1]
            rows[name].append([prefix, *(token for _, token in piece)])
            used += len(piece) + 1
            for language, _ in piece:
                counts[language] = counts.get(language, 0) + 1
            counts[piece[0][0]] += 1  # the start token
        if used < budget.get(name, 0):
            short[name] = budget[name] - used
            say(f"Text runs short in {name}: {used} of {budget[name]} tokens are there.")
    return Sequences(rows, counts, short)
