"""A study as it lies in its folder. What the page is served from knows no model; the key is a file of its own.

study.json     what the study is: languages, raters, what can be seen with so many pairs
pairs.jsonl    what is shown, without a name
schedule.json  who sees which pair, on which side, in which order
key.json       which answer is whose; read by `results`, after the study is closed, and by nothing else
answers.jsonl  the answers with their models, as they were made
ratings.sqlite the raters and what they said; made when the first is invited
"""

from __future__ import annotations

import functools
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import languages, ledger
from ..errors import OnggiError
from ..text import jsonl

RATINGS = "ratings.sqlite"
CHOICES = ("left", "right", "good", "bad")
REASONS = ("language", "script", "broken", "unnatural", "register", "fact", "repetition")
_SECONDS = 30  # about what a pair takes a rater


@dataclass(frozen=True)
class Shown:
    """One place of a rater's list: the pair and whether its second answer stands on the left."""

    id: str
    pair: str
    swapped: bool


@dataclass(frozen=True)
class Place:
    """Where an assignment stands: of which language and rater, and the how-manieth."""

    lang: str
    slot: int
    number: int


class Study:
    """What is served and counted, of the finished study in `path`. Raises OnggiError where there is none."""

    def __init__(self, path: Path):
        found = ledger.artifact(path)
        if found is None or found.record.get("verb") != "rate":
            raise OnggiError(f"{path}: is not a finished study of `onggi rate plan`.")
        self.path, self.artifact = path, found
        self.about: dict[str, Any] = ledger.read_json(path / "study.json")
        self.id: str = self.about["study"]
        self.schedule: dict[str, list[list[Shown]]] = {
            lang: [[Shown(**entry) for entry in mine] for mine in lists]
            for lang, lists in ledger.read_json(path / "schedule.json").items()
        }
        self.places = {
            shown.id: Place(lang, slot, number)
            for lang, lists in self.schedule.items()
            for slot, mine in enumerate(lists)
            for number, shown in enumerate(mine)
        }

    @functools.cached_property
    def pairs(self) -> dict[str, dict[str, Any]]:
        """Pair → what is shown of it."""
        rows = jsonl.read(self.path / "pairs.jsonl", str(self.path / "pairs.jsonl"))
        return {row["pair"]: row for _, row in rows}

    @property
    def languages(self) -> list[str]:
        """The languages that are rated."""
        return list(self.schedule)

    @property
    def ratings(self) -> Path:
        """The file of raters and ratings."""
        return self.path / RATINGS

    def shown(self, assignment: str) -> Shown:
        """The place of a list that has this id."""
        place = self.places[assignment]
        return self.schedule[place.lang][place.slot][place.number]

    def language(self, tag: str) -> str:
        """`tag`, where the study has it. Raises OnggiError naming those that it has."""
        if tag not in self.schedule:
            raise OnggiError(f"{self.path}: has no pairs in {tag}, only in {', '.join(self.schedule)}.")
        return tag

    def name(self, tag: str, page: str) -> str:
        """What a page in `page` calls the language. Of the study itself: the world's names of languages take 20 MB."""
        named: dict[str, dict[str, str]] = self.about.get("names", {})
        return named.get(page, {}).get(tag) or languages.name(tag, page)

    def key(self) -> dict[str, Any]:
        """Which answer is whose. Whoever calls this sees to it that the study is closed."""
        found: dict[str, Any] = ledger.read_json(self.path / "key.json")
        return found


def minutes(pairs: int) -> int:
    """About what so many pairs take a rater."""
    return max(1, round(pairs * _SECONDS / 60))


def check_fresh(out: Path) -> None:
    """Raises OnggiError for a folder whose study has raters: planning another one there would lose them. A file of
    ratings without any is removed.
    """
    file = out / RATINGS
    if not file.exists():
        return
    try:
        db = sqlite3.connect(file)
        raters = db.execute("SELECT count(*) FROM raters").fetchone()[0]
        db.close()
    except sqlite3.Error:
        raters = 1  # whatever it is, it is not ours to remove
    if raters:
        raise OnggiError(
            f"{out}: holds the ratings of a study that was planned otherwise; name another --out, "
            "or go on with that one by the options it was planned with."
        )
    for name in (RATINGS, f"{RATINGS}-wal", f"{RATINGS}-shm"):
        (out / name).unlink(missing_ok=True)
