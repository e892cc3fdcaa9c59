"""What raters with known habits say comes out: preferences, verdicts, reasons, agreement, failed attention."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onggi.rate import results as counting
from onggi.rate.store import Event, Rater, Store
from onggi.rate.study import Study
from onggi.stages.rate_people import CloseConfig, close
from onggi.stages.rate_results import ResultsConfig, results
from rate_examples import MODELS, answers, invited, study

BASE, RTN, BALANCED = MODELS
Says = Callable[[str, str, str | None], str]  # left, right, check → choice


def prefers(order: list[str], dice: random.Random, sure: float = 1.0) -> Says:
    """A rater who likes models in this order, some of the time, and reads."""

    def says(left: str, right: str, check: str | None) -> str:
        if check == "same":
            return "good"
        if dice.random() >= sure:
            return dice.choice(["left", "right", "good", "bad"])
        return "left" if order.index(left) < order.index(right) else "right"

    return says


def rated(found: Study, tag: str, slot: int, says: Says, kind: str = "person", reasons: Any = ()) -> None:
    """Everything of a list, said by a rater."""
    store, key = Store(found.ratings, found.id), found.key()["pairs"]
    name = f"{tag}-{slot}-{kind}"
    store.put(Rater(name, tag, slot, kind, 0, float(slot), 2**31))  # type: ignore[arg-type]
    events = []
    for number, shown in enumerate(found.schedule[tag][slot]):
        about = key[shown.pair]
        sides = about["models"][::-1] if shown.swapped else about["models"]
        check = None if about["kind"] == "pair" else about["kind"]
        choice = says(*sides, check)
        if check == "broken" and choice in ("left", "right"):  # who reads sees which one is whole
            choice = "right" if shown.swapped else "left"
        marks = tuple(tuple(reasons) if side == RTN else () for side in sides)
        events.append(Event(name, shown.id, str(number), choice, marks[0], marks[1], 10.0 + number))
    store.add(events)
    store.close()


def counted(found: Study, out: Path, **options: Any) -> dict[str, Any]:
    close(CloseConfig(str(found.path)))
    made = results(ResultsConfig(str(found.path), **options), out)
    tallied: dict[str, Any] = json.loads((made.path / "results.json").read_text(encoding="utf-8"))
    return tallied


@pytest.fixture
def made(tmp_path: Path) -> Study:
    return study(tmp_path, answers(tmp_path, ("ko", "en", "ar"), 24), raters=4, overlap=2)


def test_a_clear_preference_is_found_and_no_other(made: Study, tmp_path: Path) -> None:
    dice = random.Random(1)
    for slot in range(4):
        rated(made, "ko", slot, prefers([BASE, BALANCED, RTN], dice, 0.9), reasons=("unnatural",))
        rated(made, "en", slot, prefers([BASE, RTN], dice, 0.0))
        rated(made, "ar", slot, lambda left, right, check: "bad")
    found = counted(made, tmp_path / "out")
    assert (found["by"], found["reference"], found["tests_left_out"]) == ("people", BASE, 0)
    korean, english, arabic = (found["languages"][tag] for tag in ("ko", "en", "ar"))
    worst = korean["models"][RTN]["preference"]
    assert worst["verdict"] == "worse" and worst["high"] < 0.3 and worst["n"] == 24
    assert worst["low"] <= worst["value"] <= worst["high"] and worst["without_inattentive"] is None
    assert english["models"][RTN]["preference"]["verdict"] == "no significant difference"
    # All alike in a tie: shown to be the same.
    assert arabic["models"][RTN]["preference"]["verdict"] == "equivalent within 5 points"
    assert arabic["models"][RTN]["preference"]["value"] == 0.5
    ratings = {name: korean["models"][name]["rating"]["value"] for name in MODELS}
    assert ratings[BASE] == 0 and ratings[RTN] < ratings[BALANCED] < 0
    assert korean["models"][RTN]["rating"]["high"] < 0
    # Two raters a pair, 24 prompts, two pairs in which a model stands.
    assert [korean["models"][name]["shown"] for name in MODELS] == [96, 96, 96]
    assert korean["models"][RTN]["reasons"] == {"unnatural": 96} and not korean["models"][BASE]["reasons"]
    assert korean["models"][BASE]["accepted"]["value"] > 0.8 > korean["models"][RTN]["accepted"]["value"]
    assert korean["agreement"]["preference"]["value"] > 0.5 > english["agreement"]["preference"]["low"]
    assert arabic["agreement"]["preference"]["value"] is None  # nothing varied, so nothing is known
    assert abs(korean["left"] - 0.5) < 0.12 and arabic["left"] is None
    pairs = {tuple(pair["models"]): pair for pair in korean["pairs"]}
    assert pairs[BASE, RTN]["wins"][BASE] > 35 and pairs[BASE, RTN]["prompts"] == 24
    assert (
        sum(sum(p["wins"].values()) + p["both_good"] + p["both_bad"] for p in korean["pairs"])
        == korean["ratings"]
        == 144
    )
    assert korean["planned"]["raters"] == korean["invited"] == 4


def test_attention_failures_are_counted_and_nobody_is_dropped(made: Study, tmp_path: Path) -> None:
    dice = random.Random(2)
    for slot in range(3):
        rated(made, "ko", slot, prefers([BASE, BALANCED, RTN], dice))
    rated(
        made,
        "ko",
        3,
        lambda left, right, check: "left" if check == "same" else "right" if left == BASE else "left",
    )
    found = counted(made, tmp_path / "out")["languages"]["ko"]
    raters = found["raters"]
    assert [raters[f"ko-{slot}-person"]["failed"] for slot in range(3)] == [0, 0, 0]
    same = sum(made.key()["pairs"][s.pair]["kind"] == "same" for s in made.schedule["ko"][3])
    assert raters["ko-3-person"]["failed"] == same == found["attention"]["same"]["failed"]
    assert sum(rater["ratings"] for rater in raters.values()) == found["ratings"] == 144
    assert raters["ko-0-person"]["median_seconds"] > 10


def test_what_is_found_without_the_inattentive_stands_beside(made: Study, tmp_path: Path) -> None:
    dice = random.Random(3)
    for slot in range(3):
        rated(made, "ar", slot, prefers([BASE, BALANCED, RTN], dice))
    store, name = Store(made.ratings, made.id), "careless"
    store.put(Rater(name, "ar", 3, "person", 0, 9.0, 2**31))
    key = made.key()["pairs"]
    store.add(
        [
            Event(
                name,
                shown.id,
                str(i),
                ("left" if shown.swapped else "right") if key[shown.pair]["kind"] == "broken" else "left",
            )
            for i, shown in enumerate(made.schedule["ar"][3])
        ]
    )
    own = counted(made, tmp_path / "out")["languages"]["ar"]
    careless = own["raters"][name]
    assert careless["failed"] == careless["checks"] > 1
    preference = own["models"][RTN]["preference"]
    assert preference["without_inattentive"]["raters"] == 1
    assert preference["without_inattentive"]["value"] == 0.0 < preference["value"]


def test_a_tests_ratings_are_marked_and_give_way_to_peoples(made: Study, tmp_path: Path) -> None:
    dice = random.Random(4)
    for slot in range(2):
        rated(made, "en", slot, prefers([RTN, BALANCED, BASE], dice), kind="test")
    store = Store(made.ratings, made.id)
    said, raters = store.all_said(), store.raters()
    tests = counting.tally(counting.rows(made, raters, said), made.key(), made.languages, 0.05)
    assert tests["by"] == "test" and tests["languages"]["en"]["models"][RTN]["preference"]["value"] == 1.0
    rated(made, "en", 0, prefers([BASE, BALANCED, RTN], dice))
    found = counted(made, tmp_path / "out")
    assert found["by"] == "people" and found["tests_left_out"] == len(made.schedule["en"][0]) + len(
        made.schedule["en"][1]
    )
    assert found["languages"]["en"]["models"][RTN]["preference"]["value"] == 0.0
    assert found["languages"]["en"]["invited"] == 1


def test_answers_that_are_the_same_count_as_ties(tmp_path: Path) -> None:
    same = {
        f"ko-{n} {model}": "똑같은 답변입니다. 김치는 배추로 만든 한국의 음식이에요."
        for n in range(6)
        for model in (BASE, RTN)
    }
    found = study(tmp_path, answers(tmp_path, ("ko",), 12, said=same), raters=2)
    for slot in range(2):
        rated(found, "ko", slot, prefers([BASE, BALANCED, RTN], random.Random(5)))
    own = counted(found, tmp_path / "out")["languages"]["ko"]
    assert own["identical"] == 6 and own["models"][RTN]["preference"]["value"] == 0.25
    assert own["models"][RTN]["preference"]["n"] == 12


def test_every_rating_is_in_the_rows(made: Study, tmp_path: Path) -> None:
    rated(made, "ar", 2, prefers([BASE, BALANCED, RTN], random.Random(6)), reasons=("register",))
    counted(made, tmp_path / "out")
    lines = (tmp_path / "out" / "ratings.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == len(made.schedule["ar"][2])
    shown = {(row["left"], row["right"]) for row in rows if row["check"] is None}
    assert len(shown) == 6 and {row["winner"] for row in rows if row["check"] is None} <= set(MODELS)
    assert all(row["passed"] for row in rows if row["check"]) and {row["list"] for row in rows} == {3}


def test_the_judge_beside_people(made: Study) -> None:
    """A judge who says the same, the opposite, or nothing at all."""
    for slot in range(4):
        rated(made, "ko", slot, prefers([BASE, BALANCED, RTN], random.Random(slot)))
    store = Store(made.ratings, made.id)
    rows = counting.rows(made, store.raters(), store.all_said())
    order = [BASE, BALANCED, RTN]
    agrees = {
        ("ko", f"ko-{n}", one, other): float(order.index(one) < order.index(other))
        for n in range(24)
        for one in MODELS
        for other in MODELS
        if one < other
    }
    opposite = {key: 1 - value for key, value in agrees.items()}
    for judged, share, positive in ((agrees, 1.0, True), (opposite, 0.0, False)):
        found = counting.tally(rows, made.key(), made.languages, 0.05, judged)["languages"]["ko"]["judge"]
        assert (found["agreement"], found["n"]) == (share, 72)
        assert found["kappa"] == 1 if positive else found["kappa"] < -0.7
    turned = {(lang, key, other, one): 1 - value for (lang, key, one, other), value in agrees.items()}
    assert (
        counting.tally(rows, made.key(), made.languages, 0.05, turned)["languages"]["ko"]["judge"][
            "agreement"
        ]
        == 1
    )
    assert "judge" not in counting.tally(rows, made.key(), made.languages, 0.05, {})["languages"]["ko"]


def test_the_same_ratings_make_the_same_bytes(made: Study, tmp_path: Path) -> None:
    rated(made, "ko", 0, prefers([BASE, BALANCED, RTN], random.Random(8)))
    counted(made, tmp_path / "one")
    first = results(ResultsConfig(str(made.path)), tmp_path / "one").record
    again = results(ResultsConfig(str(made.path)), tmp_path / "two").record
    assert first["outputs"] == again["outputs"]


def test_links_name_the_languages_there_are(made: Study) -> None:
    assert len(invited(made, "kor_Hang")) == 1
