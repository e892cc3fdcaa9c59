"""Calibration text that a model writes itself, for languages in which the user has none.

From short natural starts in each language the model goes on by itself; what it writes is kept where it is
still in that language and has not run into a loop. A model that drifts into English from a Khmer start is
not calibrated for Khmer by what it wrote, so a language may end with little text or none, and is said so.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from .. import ledger
from ..engines.protocol import Generates, Sampling
from ..text import confusion
from ..text.identify import alike, identify

# Tokens of one continuation. Long ones wander off; short ones are mostly their start.
_LENGTH = 96
# Drawn, not greedy: greedy text repeats itself. The far tail of a small model is other languages.
_TEMPERATURE, _TOP_P = 1.0, 0.95
# The share of a language's starts that must bring something, all of them tried, or it is given up; n-grams that stood before
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

    Starts are continued in turn, as many as lack tokens ask for, again with other draws once all had theirs. count: tokens
    of a text. file: JSON lines of everything that was written, kept or not and why, so that a killed run does not
    write it again. step: is told of the tokens that were kept.
    """
    rows = _read(file)
    with ledger.writing(file) as aside:
        aside.write_text("".join(map(_line, rows.values())), encoding="utf-8")
    shares = {tag: _Share(tag, own, tokens[tag]) for tag, own in starts.items()}
    while wanted := {key: (tag, text) for tag, share in shares.items() for key, text in share.ask().items()}:
        with file.open("a", encoding="utf-8") as out:
            for row in _rows(engine, wanted, rows, seed, out):
                if not row["left_out"]:
                    step(shares[row["lang"]].came(row["_id"], count(row["text"])))
        for share in shares.values():
            share.take()
    return {tag: {key: rows[key]["text"] for key in share.found} for tag, share in shares.items()}


def _rows(
    engine: Generates,
    wanted: Mapping[str, tuple[str, str]],
    rows: dict[str, dict[str, Any]],
    seed: int,
    out: TextIO,
) -> Iterator[dict[str, Any]]:
    """Those of the `wanted` that are among `rows`, then the others as they are written; into `rows` and `out` too."""
    yield from [rows[key] for key in wanted if key in rows]
    for row in _continued(engine, {key: own for key, own in wanted.items() if key not in rows}, seed):
        out.write(_line(row))
        out.flush()
        rows[row["_id"]] = row
        yield row


@dataclass
class _Share:
    """One language's part of it. wanted: tokens. tried: of its starts, counted on past the last one. found: keys of the texts
    that serve, until there is enough, and have: their tokens. kept: all that serve. asked, sizes: keys of this round, and tokens
    of those of them that serve.
    """

    language: str
    starts: Sequence[str]
    wanted: int
    have: int = 0
    tried: int = 0
    kept: int = 0
    found: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    def ask(self) -> dict[str, str]:
        """key → start, as many as it takes by what came so far; none once there is enough, or where too few bring anything."""
        few = self.tried >= len(self.starts) and self.kept < _YIELD * self.tried
        if few or self.have >= self.wanted:
            return {}
        each = self.have / len(self.found) if self.found else _LENGTH
        share = max(self.kept / self.tried, _YIELD) if self.tried else 1.0
        count = min(math.ceil((self.wanted - self.have) / (each * share)), len(self.starts))
        turns = [divmod(number, len(self.starts)) for number in range(self.tried, self.tried + count)]
        asked = {f"{self.language}-{turn}-{n}": self.starts[n] for turn, n in turns}
        self.asked, self.sizes = list(asked), {}
        return asked

    def came(self, key: str, size: int) -> int:
        """A text that serves, of so many tokens; returns how many of these lacked."""
        lacking = max(self.wanted - self.have - sum(self.sizes.values()), 0)
        self.sizes[key] = size
        return min(size, lacking)

    def take(self) -> None:
        """Keep of this round, in the order of the starts whatever came first, until there is enough."""
        for key in (key for key in self.asked if key in self.sizes):
            self.kept += 1
            if self.have < self.wanted:
                self.found.append(key)
                self.have += self.sizes[key]
        self.tried += len(self.asked)
        self.asked = []


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
    engine: Generates, wanted: Mapping[str, tuple[str, str]], seed: int
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
    for number, said in engine.generate([start for _, start in wanted.values()], sampling):
        language, start = wanted[keys[number]]
        written = said.text.rstrip("\ufffd")  # cut within a character
        yield {
            "_id": keys[number],
            "lang": language,
            "text": start + written,
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
