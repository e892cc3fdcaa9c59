"""Items put to a real (tiny) model: the choice it finds likeliest, kept row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from onggi.engines.protocol import Answer, Sampling
from onggi.engines.transformers import Engine
from onggi.evaluate import answering
from onggi.evaluate.tasks import TASKS, Choice
from onggi.text.prompts import Prompt

LANGUAGES = ("ko", "th", "ar", "de")


def alone(engine: Engine, context: str, choice: str) -> float:
    [(_, scored)] = engine.score([(context, choice)])
    return scored.logprob


@pytest.mark.parametrize("name", ["capitals", "sums", "next_passage"])
def test_the_likeliest_choice_by_each_metric(tiny: Path, name: str) -> None:
    engine, task = Engine(tiny), TASKS[name]
    for items in task.items(LANGUAGES, shots=1, limit=3).values():
        rows = {row["item"]: row for row in answering.ask(engine, task, items)}
        assert sorted(rows) == sorted(item.id for item in items)
        for item in items:
            assert isinstance(item, Choice)
            values = [alone(engine, item.context, choice) for choice in item.choices]
            assert rows[item.id]["logprobs"] == pytest.approx(values, abs=1e-3)
            if task.metric == "acc_norm":
                values = [v / len(choice.encode()) for v, choice in zip(values, item.choices, strict=True)]
            elif task.metric == "acc_mutual_info":
                assert item.prior
                values = [v - alone(engine, item.prior, c) for v, c in zip(values, item.choices, strict=True)]
            best = values.index(max(values))
            assert rows[item.id]["chosen"] == best
            assert rows[item.id]["value"] == float(best == item.answer)


def test_translations_are_scored_by_chrf_and_stop_at_the_line(tiny: Path) -> None:
    engine, task = Engine(tiny), TASKS["translate_into"]
    items = task.items(("ko", "km"), shots=1, limit=2)["km"]
    for row in answering.ask(engine, task, items):
        assert 0 <= row["value"] <= 100
        assert "\n" not in row["output"]


class Scripted:
    """Says what it was told to, in an order of its own; counts what it is asked."""

    def __init__(self, said: Sequence[str], fails: int | None = None):
        self.said, self.fails, self.asked = said, fails, 0

    def generate(self, prompts: Sequence[Any], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        for number in reversed(range(len(prompts))):
            self.asked += 1
            if self.asked == self.fails:
                raise KeyboardInterrupt
            yield number, Answer(self.said[number % len(self.said)], "stop", 3, 5, 0.1)


PROMPTS = [
    Prompt("1", "ko", ({"role": "user", "content": "대한민국의 수도는?"},), "서울"),
    Prompt("2", "ko", ({"role": "user", "content": "봄에 피는 꽃은?"},)),
    Prompt("3", "ko", ({"role": "user", "content": "가장 긴 강은?"},)),
]


def test_what_an_answer_is_checked_for() -> None:
    said = ["서울.", "봄에는 桜が 많이 핍니다.", "The longest river in Korea is the Amnok river."]
    rows = {row["item"]: row["values"] for row in answering.answer(Scripted(said), PROMPTS, Sampling())}
    assert rows["1"]["exact"] == 1.0 and rows["1"]["script"] == 1.0
    assert rows["2"]["script"] == 0.0 and rows["2"]["script/Hira"] == 1.0
    assert rows["3"]["line"] == 0.0 and rows["3"]["line/en"] == 1.0
    assert "exact" not in rows["2"]


def test_a_run_that_is_stopped_goes_on_after_its_last_row(tmp_path: Path) -> None:
    file, steps = tmp_path / "rows.jsonl", []

    def run(engine: Scripted) -> dict[str, Any]:
        def ask(prompts: Sequence[Prompt]) -> Iterator[answering.Row]:
            return answering.answer(engine, prompts, Sampling())

        return answering.complete(file, answering.read(file), PROMPTS, ask, lambda: steps.append(1))

    with pytest.raises(KeyboardInterrupt):
        run(Scripted(["옹기"], fails=3))
    assert len(answering.read(file)) == 2
    # Killed in the middle of a line, and of a character in it.
    file.write_bytes(file.read_bytes()[:-40] + "옹".encode()[:2])
    assert len(answering.read(file)) == 1
    engine = Scripted(["장독"])
    found = run(engine)
    assert engine.asked == 2 and len(steps) == 4
    assert [found[key]["output"] for key in "321"] == ["옹기", "장독", "장독"]
    assert answering.read(file) == found
