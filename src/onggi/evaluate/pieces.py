"""What an evaluation is made of: pieces that need nothing of each other, kept row by row.

A piece is one model asked one thing in one language. Its rows are added to a file as they come: a run
that is killed loses the batch in hand and asks only for what is missing.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import fanout, ledger
from ..engines import opening, server
from ..engines.spending import Estimate, Options, Rehearsal
from ..errors import OnggiError
from ..models import references
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
    job: ledger.Job,
    label: str,
    pieces: Sequence[Piece],
    options: Options | None = None,
    estimates: dict[str, Estimate] | None = None,
    on: fanout.On | None = None,
    memory: int = 0,
) -> list[dict[str, Row]]:
    """Item → row of every piece, in their order: what is kept and, asked for now, what is missing.

    What failed (`finish` is `error`) is asked for again: a server may have come back.
    label: what the bar calls them. options: how servers are treated. What a server may cost is said before
    anything of these pieces is sent, added to its earlier `estimates` of the run, and OnggiError raised where
    the sum is over the budget. on, memory: as `fanout.each` has them.
    """
    found: list[dict[str, Row]] = []
    for piece in pieces:
        rows = read(piece.file)
        found.append(rows)
        with ledger.writing(piece.file) as aside:
            aside.write_bytes(b"".join(map(line, rows.values())))
    todo = [n for n, piece in enumerate(pieces) if not found[n].keys() >= set(piece.keys)]
    served = [n for n in todo if references.served(pieces[n].source)]
    for source in dict.fromkeys(pieces[n].source for n in served):
        own = [(pieces[n], found[n]) for n in served if pieces[n].source == source]
        _announce(source, own, options or Options(), {} if estimates is None else estimates)
    # A server is asked from here, where its limits are kept and its key is.
    far = [n for n in todo if on and n not in served]
    done = sum(len(rows.keys() & set(piece.keys)) for rows, piece in zip(found, pieces, strict=True))
    with progress(f"{job.verb} {job.out.name}: {label}", sum(len(piece.keys) for piece in pieces)) as bar:
        bar.skip(done)
        if todo:
            bar.step(0, f"loading {pieces[todo[0]].label}")
        last = None
        for numbers, where in ((far, on), ([n for n in todo if n not in far], None)):
            calls = [_call(pieces[n], found[n], options) for n in numbers]
            for number, row in fanout.each(calls, where, memory):
                n = numbers[number]
                with pieces[n].file.open("ab") as out:
                    out.write(line(row))
                found[n][row["item"]] = row
                bar.step(1, pieces[n].label)
                if last != n:
                    job.tick()
                last = n
    return found


def _announce(
    source: str,
    own: Sequence[tuple[Piece, Mapping[str, Row]]],
    options: Options,
    estimates: dict[str, Estimate],
) -> None:
    """Say what a server's pieces may cost. Raises OnggiError where that is more than the budget."""
    rehearsal = Rehearsal(server.Engine(source, options))
    for piece, kept in own:
        for _ in piece.ask(rehearsal, dict(kept)):
            pass
    if (estimate := rehearsal.estimate) is None:
        return
    say(f"{source}: {estimate}")
    if source in estimates:
        estimate += estimates[source]
    estimates[source] = estimate
    if options.budget is not None and (estimate.money or 0.0) > options.budget:
        raise OnggiError(
            f"budget: {source} may cost {estimate.money:.4g} in all, more than {options.budget:g}; "
            "ask less (--limit, --max_tokens) or allow more."
        )


def _call(piece: Piece, kept: Mapping[str, Row], options: Options | None) -> Callable[[], Iterator[Row]]:
    """`kept` grows while rows come in: a call that is sent again asks for what is missing by then."""
    return functools.partial(_rows, references.absolute(piece.source), piece.need, piece.ask, kept, options)


def _rows(
    source: str, need: opening.Need, ask: Ask, kept: Mapping[str, Row], options: Options | None
) -> Iterator[Row]:
    yield from ask(engine(source, need, options), dict(kept))


def engine(source: str, need: opening.Need, options: Options | None = None) -> Any:
    """As `opening.engine`, in a process that may be on another machine than the one that named `source`.

    Raises OnggiError where a path is not there.
    """
    if Path(source).is_absolute() and not Path(source).exists():
        raise OnggiError(
            f"{source}: is not on {platform.node()}, a machine of the cluster; name a folder that all of them "
            "share, or a model that each can get by itself (owner/name, package:NAME)."
        )
    return opening.engine(source, need, options)
