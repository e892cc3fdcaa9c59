"""Calibration text that a model writes itself, for languages in which the user has none.

From short natural starts in each language the model goes on by itself; what it writes is kept where it is
still in that language and has not run into a loop. A model that drifts into English from a Khmer start is
not calibrated for Khmer by what it wrote, so a language may end with little text or none, and is said so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import ledger
from ..engines.protocol import Generates, Sampling
from ..text import confusion
from ..text.identify import alike, identify

# Tokens of one continuation. Long ones wander off; short ones are mostly their start.
_LENGTH = 96
# Drawn, not greedy: greedy text repeats itself. The far tail of a small model is other languages.
_TEMPERATURE, _TOP_P = 1.0, 0.95
# Of a language's starts the share that must bring something, or it is given up; n-grams that stood before
# and letters of foreign scripts at most.
_YIELD, _REPETITION, _FOREIGN = 0.125, 0.3, 0.2


def write(
    engine: Generates,
    starts: Mapping[str, Sequence[str]],
    tokens: Mapping[str, int],
    count: Callable[[str], int],
    file: Path,
    seed: int,
    step: Callable[[int], None],
) -> dict[str, dict[str, str]]:
    """language → id → text, about its `tokens` of each language or as many as it brings.

    Every start is continued in turn, all of them again with other draws while tokens lack. count: tokens of a
    text. file: JSON lines of everything that was written, kept or not and why, so that a killed run does not
    write it again. step: is told of the tokens that were kept.
    """
    rows = _read(file)
    with ledger.writing(file) as aside:
        aside.write_text("".join(map(_line, rows.values())), encoding="utf-8")
    found: dict[str, dict[str, str]] = {language: {} for language in starts}
    for language, own in starts.items():
        have, turn = 0, 0
        while have < tokens[language]:
            wanted = {f"{language}-{turn}-{n}": text for n, text in enumerate(own)}
            with file.open("a", encoding="utf-8") as out:
                for row in _continued(
                    engine, language, {k: t for k, t in wanted.items() if k not in rows}, seed
                ):
                    out.write(_line(row))
                    out.flush()
                    rows[row["_id"]] = row
            kept = {key: rows[key]["text"] for key in wanted if not rows[key]["left_out"]}
            for key, text in kept.items():
                size = count(text)
                if have < tokens[language]:
                    found[language][key] = text
                    step(min(size, tokens[language] - have))
                have += size
            if len(kept) < _YIELD * len(own):
                break
            turn += 1
    return found


def why_not(continuation: str, language: str, finish: str | None = None) -> str:
    """Why a continuation is no text to calibrate `language` on; empty where it is."""
    checked = confusion.check(continuation, language, finish=finish)
    if checked.empty or not checked.letters:
        return "no words"
    if checked.broken:
        return "broken characters"
    if checked.loop or checked.repetition > _REPETITION:
        return "repeats itself"
    if sum(checked.foreign.values()) > _FOREIGN * checked.letters:
        return f"letters in {', '.join(checked.foreign)}"
    guess = identify(continuation, expected=language).language
    if guess is None or not alike(guess, language):
        return f"is in {guess}" if guess else "is in no language known here"
    return ""


def _continued(
    engine: Generates, language: str, wanted: Mapping[str, str], seed: int
) -> Iterator[dict[str, Any]]:
    keys = list(wanted)
    if not keys:
        return
    sampling = Sampling(
        _LENGTH,
        _TEMPERATURE,
        _TOP_P,
        # By the row, so that what a killed run has left is drawn as it would have been.
        seeds=tuple(int(hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()[:7], 16) for key in keys),
    )
    for number, said in engine.generate([wanted[key] for key in keys], sampling):
        written = said.text.rstrip("\ufffd")  # cut within a character
        yield {
            "_id": keys[number],
            "lang": language,
            "text": wanted[keys[number]] + written,
            "left_out": why_not(written, language, said.finish),
        }


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """The rows of an earlier run; the line that it was stopped in is none."""
    if not file.is_file():
        return {}
    lines = file.read_bytes().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return {row["_id"]: row for row in rows}
