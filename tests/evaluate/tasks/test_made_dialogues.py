"""Dialogues made from CLDR's facts: true, in the language that they say, and sound as data to train on."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

import pytest

from onggi.errors import OnggiError
from onggi.evaluate.tasks import TASKS
from onggi.evaluate.tasks import dialogues as made
from onggi.text import dialogues


def test_they_are_sound_in_every_language() -> None:
    rows = list(made.rows(None, 40, 0))
    found = dialogues.read(rows)
    assert not found.faults, [str(fault) for fault in found.faults][:5]
    counts = Counter(dialogue.lang for dialogue in found.dialogues)
    assert set(counts) == set(made.languages()) >= {"ko", "en", "ja", "ar", "th", "hi"}
    assert set(counts.values()) == {40}
    for _, row in rows:
        for message in row["messages"]:
            text = message["content"]
            assert text == unicodedata.normalize("NFC", text) and not re.search(r"[{}]|  |None", text)
    kinds = Counter(row["kind"] for _, row in rows if row["lang"] == "ko")
    assert len(kinds) == 6 and max(kinds.values()) - min(kinds.values()) <= 1


def test_the_answers_are_right() -> None:
    names = {row["_id"]: row for _, row in made.rows(("en", "ko"), 2000, 0)}
    capitals = [row for row in names.values() if row["kind"] == "capitals" and row["lang"] == "ko"]
    assert len(capitals) > 80
    told = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in capitals}
    [answer] = [answer for question, answer in told.items() if question.startswith("프랑스")]
    assert "파리입니다." in answer
    right = {item.choices[item.answer].strip() for item in TASKS["capitals"].items(["en"])["en"]}
    for row in names.values():
        if row["kind"] == "capitals" and row["lang"] == "en":
            assert re.search(r"(?:is|called) (.+)\.$", row["messages"][1]["content"])
    said = " ".join(row["messages"][1]["content"] for row in names.values() if row["lang"] == "en")
    assert sum(city in said for city in right) == len(right)


def test_korean_particles_follow_the_last_syllable() -> None:
    questions = [
        row["messages"][0]["content"] for _, row in made.rows(("ko",), 2000, 0) if row["kind"] == "continents"
    ]
    topics = [question.split(" 어느 대륙")[0] for question in questions if " 어느 대륙" in question]
    assert len(topics) > 100
    for topic in topics:
        closed = (ord(topic[-2]) - ord("가")) % 28 > 0
        assert topic[-1] == ("은" if closed else "는"), topic


def test_the_same_facts_by_the_same_seed() -> None:
    first, again, other = (list(made.rows(("th", "de"), 12, seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert [n.replace("th", "de", 1) for n, row in first if row["lang"] == "th"][:4] == [
        n for n, row in first if row["lang"] == "de"
    ][:4]
    with pytest.raises(OnggiError, match="cldr: has no templates in ka; it has ko, en"):
        list(made.rows(("ka",)))
