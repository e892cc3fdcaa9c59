"""What was said is there once, in its order, whoever sends it how often."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from onggi.errors import OnggiError
from onggi.rate.store import Event, Rater, Store


def rater(name: str, slot: int | None = 0, kind: str = "person") -> Rater:
    return Rater(name, "ko", slot, kind, 0, 1.0, 2**31)  # type: ignore[arg-type]


def rated(pair: str, key: str, choice: str | None = "left") -> Event:
    return Event("r", pair, key, choice, ("language",), ("fact", "repetition"), 1.5, 7.0)


def test_events_come_back_as_they_went_in(tmp_path: Path) -> None:
    store = Store(tmp_path / "r.sqlite", "study")
    store.put(rater("r"))
    assert store.add([rated("a", "1"), rated("b", "2", "bad")]) == [True, True]
    again = Store(tmp_path / "r.sqlite", "study")
    assert list(again.events("r")) == [rated("a", "1"), rated("b", "2", "bad")]
    assert again.rater("r") == rater("r") and again.rater("x") is None


def test_a_key_counts_once_and_undoing_takes_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "r.sqlite", "study")
    store.put(rater("r"))
    assert store.add([rated("a", "1"), rated("a", "1", "right")]) == [True, False]
    assert store.add([rated("a", "1")]) == [False]
    assert store.said("r").ratings["a"].choice == "left"
    undone = Event("r", "a", "2", None)
    assert store.add([rated("b", "3"), undone]) == [True, True]
    assert list(store.said("r").ratings) == ["b"]
    store.add([rated("a", "4", "good")])
    assert [event.choice for event in store.said("r").ratings.values()] == ["left", "good"]
    assert store.all_said()["r"] == store.said("r")


def test_nothing_is_added_after_the_close(tmp_path: Path) -> None:
    store = Store(tmp_path / "r.sqlite", "study")
    store.put(rater("r"))
    Store(tmp_path / "r.sqlite", "study").note("closed", "now")  # another process
    assert store.add([rated("a", "1")]) is None and not list(store.events())


def test_a_list_has_one_person_and_any_number_of_tests(tmp_path: Path) -> None:
    store = Store(tmp_path / "r.sqlite", "study")
    store.put(rater("one"))
    store.put(rater("test", kind="test"))
    with pytest.raises(OnggiError, match="given to another just now"):
        store.put(rater("two"))
    assert [found.id for found in store.raters()] == ["one", "test"]


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "r.sqlite", "study")
    store.put(rater("r"))
    broken = Event("r", "b", "2", "left", at=object())  # type: ignore[arg-type]
    with pytest.raises(sqlite3.Error):
        store.add([rated("a", "1"), broken])
    assert not list(store.events()) and store.add([rated("a", "1")]) == [True]


def test_two_writers_at_once(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    Store(path, "study").put(rater("r"))

    def write(first: int) -> None:
        store = Store(path, "study")
        for number in range(first, first + 60):  # the second half is the other's first half
            store.add([rated(f"p{number}", f"k{number}")])

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(Store(path, "study").events())) == 90


def test_a_file_of_another_study_or_of_none(tmp_path: Path) -> None:
    Store(tmp_path / "r.sqlite", "study").close()
    with pytest.raises(OnggiError, match="holds the ratings of another study"):
        Store(tmp_path / "r.sqlite", "other")
    (tmp_path / "no.sqlite").write_bytes("데이터베이스가 아님 · not one".encode() * 99)
    with pytest.raises(OnggiError, match="cannot be opened"):
        Store(tmp_path / "no.sqlite", "study")
