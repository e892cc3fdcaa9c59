"""Rows of a scripted engine in a file, as an evaluation keeps those of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from onggi import ledger
from onggi.evaluate import pieces
from onggi.evaluate.pieces import Piece, Row


def kept(
    file: Path, keys: Sequence[str], ask: Callable[[Mapping[str, Row]], Iterator[Row]]
) -> dict[str, Row]:
    """Item → row, of what `file` has and of what `ask` is asked for then."""
    piece = Piece("scripted", "scripted", "generate", keys, lambda _, rows: ask(rows), file)
    with (
        pytest.MonkeyPatch.context() as patch,
        ledger.begin(file.with_suffix(".job"), "evaluate", {}, {}) as job,
    ):
        patch.setattr(pieces, "engine", lambda *_: None)  # `ask` has its own
        return pieces.complete(job, "answers", [piece])[0]
