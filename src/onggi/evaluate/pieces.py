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
from ..engines import opening, server
from ..engines.spending import Options, Rehearsal
from ..errors import OnggiError
from ..progress import progress, say
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


def complete(
    job: ledger.Job, label: str, pieces: Sequence[Piece], options: Options | None = None
) -> list[dict[str, Row]]:
    """Item → row of every piece, in their order: what is kept and, asked for now, what is missing.

    What failed (`finish` is `error`) is asked for again: a server may have come back.
    label: what the bar calls them. options: how servers are treated; what they may cost is said before
    anything is sent, and OnggiError raised where it is over the budget.
    """
    found: list[dict[str, Row]] = []
    for piece in pieces:
        rows = read(piece.file)
        found.append(rows)
        with ledger.writing(piece.file) as aside:
            aside.write_bytes(b"".join(map(line, rows.values())))
    todo = [n for n, piece in enumerate(pieces) if not found[n].keys() >= set(piece.keys)]
    for source in dict.fromkeys(pieces[n].source for n in todo):
        if opening.how(source, "generate") == "server":
            own = [(pieces[n], found[n]) for n in todo if pieces[n].source == source]
            _announce(source, own, options or Options())
    calls = [
        functools.partial(_rows, pieces[n].source, pieces[n].need, pieces[n].ask, found[n], options)
        for n in todo
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


def _announce(source: str, own: Sequence[tuple[Piece, Mapping[str, Row]]], options: Options) -> None:
    """Say what a server's pieces may cost. Raises OnggiError where that is more than the budget."""
    rehearsal = Rehearsal(server.Engine(source, options))
    for piece, kept in own:
        for _ in piece.ask(rehearsal, dict(kept)):
            pass
    if (estimate := rehearsal.estimate) is None:
        return
    say(f"{source}: {estimate}")
    if options.budget is not None and (estimate.money or 0.0) > options.budget:
        raise OnggiError(
            f"budget: {source} may cost {estimate.money:.4g}, more than {options.budget:g}; "
            "ask less (--limit, --max_tokens) or allow more."
        )


def _rows(
    source: str, need: opening.Need, ask: Ask, kept: Mapping[str, Row], options: Options | None
) -> Iterator[Row]:
    yield from ask(opening.engine(source, need, options), dict(kept))
