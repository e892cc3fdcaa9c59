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
from typing import Any

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
    each = {language: _Share(language, own, tokens[language], count) for language, own in starts.items()}
    while wanted := {
        key: (share.language, text) for share in each.values() for key, text in share.asked().items()
    }:
        kept = dict.fromkeys(each, 0)  # tokens of this round, as it is told of them

        def tell(row: Mapping[str, Any], kept: dict[str, int] = kept) -> None:
            share = each[row["lang"]]
            if not row["left_out"]:
                size = min(count(row["text"]), share.wanted - share.have - kept[share.language])
                kept[share.language] += size
                step(size)

        for key in wanted.keys() & rows.keys():
            tell(rows[key])
        with file.open("a", encoding="utf-8") as out:
            for row in _continued(engine, {k: own for k, own in wanted.items() if k not in rows}, seed):
                out.write(_line(row))
                out.flush()
                rows[row["_id"]] = row
                tell(row)
        for share in each.values():
            share.take(rows)
    return {language: share.found for language, share in each.items()}


@dataclass
class _Share:
    """One language's part of it: tokens wanted and had; starts tried, counted on past the last one, and those of them that
    brought something; keys of those asked for.
    """

    language: str
    starts: Sequence[str]
    wanted: int
    count: Callable[[str], int]
    have: int = 0
    tried: int = 0
    kept: int = 0
    pending: list[str] = field(default_factory=list)
    found: dict[str, str] = field(default_factory=dict)

    def asked(self) -> dict[str, str]:
        """key → start, of as many as it takes by what came so far; none once there is enough, or where too few bring anything."""
        few = self.tried >= len(self.starts) and self.kept < _YIELD * self.tried
        if few or self.have >= self.wanted:
            return {}
        each = self.have / self.kept if self.kept else _LENGTH
        share = max(self.kept / self.tried, _YIELD) if self.tried else 1.0
        count = min(math.ceil((self.wanted - self.have) / (each * share)), len(self.starts))
        turns = [divmod(number, len(self.starts)) for number in range(self.tried, self.tried + count)]
        asked = {f"{self.language}-{turn}-{n}": self.starts[n] for turn, n in turns}
        self.pending = list(asked)
        return asked

    def take(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep what serves of the rows that were asked for, until there is enough."""
        for key in self.pending:
            if not rows[key]["left_out"]:
                self.kept += 1
                if self.have < self.wanted:
                    self.found[key] = rows[key]["text"]
                    self.have += self.count(rows[key]["text"])
        self.tried += len(self.pending)
        self.pending = []


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
