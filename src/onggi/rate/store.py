"""The raters and what they said, in one SQLite file.

What a rater does is added and never changed: a rating, or the undoing of one. A rating counts that is the last
for its pair and was not undone. Every event carries a key that its page drew, unique for the rater, so that one
that is sent again (a lost answer, a press too many, a server that was killed) is there once. A transaction is on
disk when it returns (WAL, synchronous FULL).
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import OnggiError

Kind = Literal["person", "test", "imported"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS raters (
  id TEXT PRIMARY KEY, lang TEXT NOT NULL, slot INTEGER, kind TEXT NOT NULL, epoch INTEGER NOT NULL,
  made REAL NOT NULL, expires INTEGER NOT NULL, page TEXT, name TEXT
) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS people ON raters (lang, slot) WHERE kind = 'person';
CREATE TABLE IF NOT EXISTS events (
  number INTEGER PRIMARY KEY, rater TEXT NOT NULL, assignment TEXT NOT NULL, key TEXT NOT NULL,
  choice TEXT, reasons TEXT, seconds REAL, at REAL NOT NULL, UNIQUE (rater, key)
);
"""


@dataclass(frozen=True)
class Rater:
    """Who rates. slot: which list of the schedule is theirs; None for one who rated elsewhere."""

    id: str
    lang: str
    slot: int | None
    kind: Kind
    epoch: int
    made: float
    expires: int
    page: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Event:
    """A rating; or, without a choice, its undoing. reasons: what was wrong with the answer on the left, and on
    the right. seconds: from the page to the choice, where that is known.
    """

    rater: str
    assignment: str
    key: str
    choice: str | None
    left: tuple[str, ...] = ()
    right: tuple[str, ...] = ()
    seconds: float | None = None
    at: float = 0.0


@dataclass
class Said:
    """What a rater has said so far: the ratings that count, in the order in which they were given, and the keys
    of all events.
    """

    ratings: dict[str, Event] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)

    def add(self, event: Event) -> None:
        """Take up the next event."""
        self.keys.add(event.key)
        self.ratings.pop(event.assignment, None)
        if event.choice is not None:
            self.ratings[event.assignment] = event


class Store:
    """The file of a study. Raises OnggiError where it is not that study's, or cannot be read or made."""

    def __init__(self, path: Path, study: str):
        self.path = path
        try:
            # Its own transactions; a lock of the module's own lets one connection serve several threads.
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
            self._db.execute("INSERT OR IGNORE INTO facts VALUES ('study', ?)", (study,))
        except sqlite3.Error as error:
            raise OnggiError(f"{path}: cannot be opened ({error}).") from error
        if self.fact("study") != study:
            raise OnggiError(f"{path}: holds the ratings of another study.")

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # ── the study ──────────────────────────────────────────────────────────────────────────────

    def fact(self, name: str) -> str | None:
        """`study`, `secret` (the digest of what signs its links) or `closed` (when)."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def note(self, name: str, value: str) -> None:
        """Keep a fact in place of an earlier one."""
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    @property
    def closed(self) -> bool:
        """Whether rating is over."""
        return self.fact("closed") is not None

    # ── raters ─────────────────────────────────────────────────────────────────────────────────

    def raters(self) -> list[Rater]:
        """All of them, in the order in which they came."""
        rows = self._db.execute("SELECT * FROM raters ORDER BY made, id").fetchall()
        return [Rater(*row) for row in rows]

    def rater(self, name: str) -> Rater | None:
        """The one with this id."""
        row = self._db.execute("SELECT * FROM raters WHERE id = ?", (name,)).fetchone()
        return None if row is None else Rater(*row)

    def put(self, rater: Rater) -> None:
        """Add a rater, or keep what has changed of one. Raises OnggiError where another person has the list."""
        values = (rater.id, rater.lang, rater.slot, rater.kind, rater.epoch)
        more = (rater.made, rater.expires, rater.page, rater.name)
        try:
            with self._writing() as db:
                db.execute(
                    "INSERT INTO raters VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                    "epoch = excluded.epoch, expires = excluded.expires, page = excluded.page, "
                    "name = excluded.name",
                    (*values, *more),
                )
        except sqlite3.IntegrityError as error:
            raise OnggiError(
                f"{self.path}: that list of pairs was given to another just now; again."
            ) from error

    # ── what they said ─────────────────────────────────────────────────────────────────────────

    def add(self, events: Sequence[Event]) -> list[bool] | None:
        """Keep events, all in one transaction: for each whether it is new, which one with a known key is not.

        None where the study is closed, and nothing is kept. On disk when this returns.
        """
        with self._writing() as db:
            if self.closed:
                return None
            new = []
            for event in events:
                reasons = json.dumps({"left": event.left, "right": event.right}) if event.choice else None
                done = db.execute(
                    "INSERT OR IGNORE INTO events (rater, assignment, key, choice, reasons, seconds, at) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        event.rater,
                        event.assignment,
                        event.key,
                        event.choice,
                        reasons,
                        event.seconds,
                        event.at or time.time(),
                    ),
                )
                new.append(done.rowcount == 1)
            return new

    def events(self, rater: str | None = None) -> Iterator[Event]:
        """The events of a rater, or of all, in their order."""
        columns = "SELECT rater, assignment, key, choice, reasons, seconds, at FROM events "
        where, values = ("WHERE rater = ? ", (rater,)) if rater else ("", ())
        for row in self._db.execute(f"{columns}{where}ORDER BY number", values):
            reasons: dict[str, Any] = json.loads(row[4]) if row[4] else {}
            left, right = (tuple(reasons.get(side, ())) for side in ("left", "right"))
            yield Event(row[0], row[1], row[2], row[3], left, right, row[5], row[6])

    def said(self, rater: str) -> Said:
        """What a rater has said so far."""
        found = Said()
        for event in self.events(rater):
            found.add(event)
        return found

    def all_said(self) -> dict[str, Said]:
        """The same of every rater there is."""
        found = {rater.id: Said() for rater in self.raters()}
        for event in self.events():
            found[event.rater].add(event)
        return found
