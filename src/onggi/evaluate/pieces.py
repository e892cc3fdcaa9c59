"""What an evaluation is made of: pieces that need nothing of each other, kept row by row.

A piece is one model asked one thing in one language. Its rows are added to a file as they come: a run
that is killed loses the batch in hand and asks only for what is missing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import fanout, ledger
from ..engines import opening
from ..progress import progress
from .answering import Row, line, read

Ask = Callable[[Any, Mapping[str, Row]], Iterator[Row]]


@dataclass(frozen=True)
class Piece:
    """`source` is to give a row for each of `keys`, kept in `file`. ask: engine and the rows that there
    are → those that are missing. label: says what is in hand.
    """

    label: str
    source: str
    need: opening.Need
    keys: Sequence[str]
    ask: Ask
    file: Path


def complete(job: ledger.Job, label: str, pieces: Sequence[Piece]) -> list[dict[str, Row]]:
    """Item → row of every piece, in their order: what is kept and, asked for now, what is missing.

    An answer that failed (`finish` is `error`) is asked for again: a server may have come back.
    label: what the bar calls them.
    """
    found: list[dict[str, Row]] = []
    for piece in pieces:
        rows = {key: row for key, row in read(piece.file).items() if row.get("finish") != "error"}
        found.append(rows)
        with ledger.writing(piece.file) as aside:
            aside.write_bytes(b"".join(map(line, rows.values())))
    todo = [n for n, piece in enumerate(pieces) if not found[n].keys() >= set(piece.keys)]
    calls = [
        functools.partial(_rows, pieces[n].source, pieces[n].need, pieces[n].ask, found[n]) for n in todo
    ]
    with progress(f"evaluate {job.out.name}: {label}", sum(len(piece.keys) for piece in pieces)) as bar:
        bar.skip(sum(map(len, found)))
        if todo:
            bar.step(0, f"loading {pieces[todo[0]].label}")
        last = None
        for number, row in fanout.each(calls):
            piece = pieces[todo[number]]
            with piece.file.open("ab") as out:
                out.write(line(row))
            found[todo[number]][row["item"]] = row
            bar.step(1, piece.label)
            if last != number:
                job.tick()
            last = number
    return found


def _rows(source: str, need: opening.Need, ask: Ask, kept: Mapping[str, Row]) -> Iterator[Row]:
    yield from ask(opening.engine(source, need), dict(kept))
