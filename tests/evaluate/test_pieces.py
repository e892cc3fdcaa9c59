"""Pieces of an evaluation: each row is kept as it comes and never asked for twice."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from onggi import ledger
from onggi.engines import opening
from onggi.evaluate import pieces
from onggi.evaluate.answering import read
from onggi.evaluate.pieces import Piece, Row

WORDS = {"ko": ["항아리", "된장"], "el": ["πιθάρι", "λάδι"], "km": ["ក្អម", "ទឹក"], "en": ["jar", "salt"]}


def ask(words: list[str], fails: str | None, engine: Any, kept: Mapping[str, Row]) -> Iterator[Row]:
    for word in words:
        if word == fails:
            raise KeyboardInterrupt
        if word not in kept:
            nats = [scored.logprob for _, scored in engine.score([("옹기 ", word)])]
            yield {"item": word, "nats": nats[0]}


def work(tiny: Path, folder: Path, fails: str | None = None) -> list[Piece]:
    return [
        Piece(tag, str(tiny), "score", words, functools.partial(ask, words, fails), folder / f"{tag}.jsonl")
        for tag, words in WORDS.items()
    ]


def test_a_stopped_run_goes_on_and_ends_the_same(tiny: Path, tmp_path: Path) -> None:
    with ledger.begin(tmp_path / "whole", "evaluate", {}, {}) as job:
        whole = pieces.complete(job, "words", work(tiny, job.partial))
    assert [list(rows) for rows in whole] == list(WORDS.values())
    with (
        pytest.raises(KeyboardInterrupt),
        ledger.begin(tmp_path / "stopped", "evaluate", {}, {}) as job,
    ):
        pieces.complete(job, "words", work(tiny, job.partial, fails="λάδι"))
    with ledger.begin(tmp_path / "stopped", "evaluate", {}, {}) as job:
        assert list(read(job.partial / "el.jsonl")) == ["πιθάρι"]
        (job.partial / "km.jsonl").write_bytes('{"item": "ក្អម", "na'.encode())  # killed in the middle
        assert pieces.complete(job, "words", work(tiny, job.partial)) == whole
        assert list(read(job.partial / "km.jsonl").values()) == list(whole[2].values())
    opening.close()


def test_what_failed_is_asked_again(tiny: Path, tmp_path: Path) -> None:
    with ledger.begin(tmp_path / "out", "evaluate", {}, {}) as job:
        (job.partial / "ko.jsonl").write_text(
            '{"item": "항아리", "finish": "error"}\n{"item": "된장", "finish": "stop", "nats": 7}\n', "utf-8"
        )
        rows = pieces.complete(job, "words", work(tiny, job.partial)[:1])[0]
    assert rows["항아리"]["nats"] < 0 and rows["된장"]["nats"] == 7
    opening.close()


def test_one_engine_is_open_at_a_time(tiny: Path, tiny_gemma: Path) -> None:
    first = opening.engine(str(tiny), "score")
    assert opening.engine(str(tiny), "generate") is first
    second = opening.engine(str(tiny_gemma), "score")
    assert second is not first and opening.engine(str(tiny), "score") is not first
    opening.close()
