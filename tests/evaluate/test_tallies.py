"""From items to scores: the value, what chance gives, the flips, and the verdict over all languages."""

from __future__ import annotations

from typing import Any

import pytest

from onggi import statistics
from onggi.evaluate.tallies import tally, tally_answers
from onggi.evaluate.tasks import TASKS

LANGUAGES = ("ko", "en", "hi")
TASK = TASKS["capitals"]
ITEMS = TASK.items(LANGUAGES, limit=60)


def rows(wrong: int) -> list[dict[str, Any]]:
    """60 items of which the first `wrong` are."""
    return [{"item": str(i), "value": float(i >= wrong), "tokens": 8} for i in range(60)]


def test_flips_and_verdicts() -> None:
    reference = {tag: rows(10) for tag in LANGUAGES}
    variant = {"ko": rows(40), "en": rows(10), "hi": rows(12)}
    found = tally(TASK, ITEMS, {"base": reference, "w4": variant}, "base", 0.01)
    korean, english, hindi = (found["w4"][tag] for tag in LANGUAGES)
    assert korean["value"] == pytest.approx(20 / 60) and korean["n"] == 60
    assert korean["tokens"] == 480
    assert korean["low"] < korean["value"] < korean["high"]
    assert (korean["right_to_wrong"], korean["wrong_to_right"]) == (30, 0)
    assert korean["verdict"] == "worse" and korean["change"] == pytest.approx(-0.5)
    assert korean["p"] == pytest.approx(3 * statistics.mcnemar(30, 0))  # Holm: the smallest of three
    assert english["verdict"] == "equivalent within 1%" and english["detectable"] is None
    assert hindi["verdict"] == "no significant difference"
    assert hindi["detectable"] == statistics.minimum_detectable_loss(60, 2 / 60, alpha=0.05 / 3)
    assert found["base"]["ko"]["chance"] == pytest.approx(0.25)
    assert "verdict" not in found["base"]["ko"]
    better = tally(TASK, ITEMS, {"base": variant, "w4": reference}, "base", 0.01)
    assert better["w4"]["ko"]["verdict"] == "better"


def test_chrf_is_paired_too() -> None:
    task = TASKS["translate_into"]
    items = task.items(("ko", "km"))
    before = {tag: [{"item": str(i), "value": 40.0 + i % 7} for i in range(35)] for tag in items}
    after = {
        tag: [{**row, "value": row["value"] - 9 - i % 3} for i, row in enumerate(before[tag])]
        for tag in items
    }
    found = tally(task, items, {"base": before, "w4": after}, "base", 0.01)["w4"]["km"]
    assert found["verdict"] == "worse" and found["change"] == pytest.approx(-10, abs=0.1)
    assert found["margin"] == 1.0 and "chance" not in found
    assert found["tokens"] is None  # these rows, as lm-eval's, do not tell


def test_answers_to_prompts() -> None:
    def answer(key: str, finish: str = "stop", **values: float) -> dict[str, Any]:
        return {"_id": key, "finish": finish, "values": values, "tokens": len(key.encode())}

    own = [
        answer("가", line=1.0, repetition=0.0),
        answer("は", line=0.0, **{"line/en": 1.0}),
        answer("س", "error"),
    ]
    found = tally_answers({"m": {"ko": own}}, "m", 0.01)["m"]["ko"]
    assert found["line"]["value"] == 0.5 and found["line"]["n"] == 2
    assert found["line"]["tokens"] == 6 and found["repetition"]["tokens"] == 3
    assert found["line/en"]["value"] == 0.5 and found["line/en"]["n"] == 2
    assert found["repetition"]["n"] == 1 and found["repetition"]["low"] is None
    assert found["failed"] == {"value": 1, "n": 3}


def test_turns_of_one_prompt_are_not_so_many_prompts() -> None:
    rows = [{"_id": str(i // 4), "finish": "stop", "values": {"line": float(i // 4 % 2)}} for i in range(40)]
    found = tally_answers({"m": {"th": rows}}, "m", 0.01)["m"]["th"]["line"]
    once = tally_answers({"m": {"th": rows[::4]}}, "m", 0.01)["m"]["th"]["line"]
    assert found == pytest.approx(once) and found["n"] == 10


def test_right_answers_have_verdicts_and_failed_ones_pair_with_nothing() -> None:
    def row(n: int, exact: float | None) -> dict[str, object]:
        values = {} if exact is None else {"exact": exact, "chrf": 100 * exact}
        return {
            "item": str(n),
            "_id": str(n),
            "finish": "error" if exact is None else "stop",
            "values": values,
        }

    languages = ("ko", "el", "hi")
    rows = {
        "whole": {tag: [row(n, 1.0) for n in range(20)] for tag in languages},
        "broken": {tag: [row(n, None if n < 5 else 0.0) for n in range(20)] for tag in languages},
    }
    for tag, entry in tally_answers(rows, "whole", 0.01)["broken"].items():
        assert entry["exact"]["verdict"] == entry["chrf"]["verdict"] == "worse", tag
        assert entry["exact"]["change"] == -1 and entry["failed"]["value"] == 5
