"""Items put to a real (tiny) model: the choice it finds likeliest, kept row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from keeping import kept
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
    """Says what `say` makes of each chat, in an order of its own; keeps what it is asked."""

    def __init__(self, say: Callable[[Sequence[Mapping[str, str]]], str | None], stops: int | None = None):
        self.say, self.stops = say, stops
        self.chats: list[Any] = []

    def generate(self, prompts: Sequence[Any], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        for number in reversed(range(len(prompts))):
            self.chats.append(prompts[number])
            if len(self.chats) == self.stops:
                raise KeyboardInterrupt
            said = self.say(prompts[number])
            if said is None:
                yield number, Answer("", "error", 0, 0, 0.1, "timed out")
            else:
                yield number, Answer(said, "stop", 3, 5, 0.1)


def echo(chat: Sequence[Mapping[str, str]]) -> str:
    return f"{len(chat)}: {chat[-1]['content']}"


PROMPTS = [
    Prompt("1", "ko", ("대한민국의 수도는?",), ("서울",)),
    Prompt("2", "ko", ("봄에 피는 꽃은?", "그 밖에는?"), (None, "진달래")),
    Prompt("3", "ja", ("一番長い川は?", "二番目は?", "三番目は?"), (None, None, None)),
    Prompt("4", "th", ("สวัสดี",), (None,), before=({"role": "system", "content": "สั้น ๆ"},)),
]
KEYS = [key for prompt in PROMPTS for key in prompt.keys]


def test_what_an_answer_is_checked_for() -> None:
    said = {
        "대한민국의 수도는?": "서울.",
        "봄에 피는 꽃은?": "봄에는 桜が 많이 핍니다.",
        "그 밖에는?": "진달래",
        "一番長い川は?": "The longest river in Korea is the Amnok river.",
    }
    engine = Scripted(lambda chat: said.get(chat[-1]["content"], "はい。"))
    rows = {row["item"]: row["values"] for row in answering.answer(engine, PROMPTS, Sampling(), {})}
    assert rows["1"]["exact"] == 1.0 and rows["1"]["script"] == 1.0
    assert rows["2"]["script"] == 0.0 and rows["2"]["script/Hira"] == 1.0 and "exact" not in rows["2"]
    assert rows["2/2"]["exact"] == 1.0
    assert rows["3"]["line"] == 0.0 and rows["3"]["line/en"] == 1.0


def test_later_turns_see_the_model_s_own_answers() -> None:
    engine = Scripted(echo)
    rows = list(answering.answer(engine, PROMPTS, Sampling(), {}))
    assert sorted(row["item"] for row in rows) == sorted(KEYS)
    assert [row["turn"] for row in rows] == [1] * 4 + [2] * 2 + [3]
    assert [message["content"] for message in engine.chats[-1]] == [
        "一番長い川は?",
        "1: 一番長い川は?",
        "二番目は?",
        "3: 二番目は?",
        "三番目は?",
    ]
    thai = next(row for row in rows if row["item"] == "4")
    assert thai["output"] == "2: สวัสดี" and thai["_id"] == "4"


def run(file: Path, engine: Scripted) -> dict[str, Any]:
    return kept(file, KEYS, lambda rows: answering.answer(engine, PROMPTS, Sampling(), rows))


@pytest.mark.parametrize("stops", range(1, 8))
def test_a_run_that_is_stopped_goes_on_after_its_last_row(tmp_path: Path, stops: int) -> None:
    file = tmp_path / "rows.jsonl"
    first, second = Scripted(echo, stops), Scripted(echo)
    with pytest.raises(KeyboardInterrupt):
        run(file, first)
    assert len(answering.read(file)) == stops - 1
    found = run(file, second)
    assert len(first.chats) - 1 + len(second.chats) == len(KEYS)
    assert found == {row["item"]: row for row in answering.answer(Scripted(echo), PROMPTS, Sampling(), {})}
    assert answering.read(file) == found
    third = Scripted(echo)
    assert run(file, third) == found and not third.chats


def test_a_line_that_was_cut_is_no_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(file, Scripted(echo, 3))
    # Killed in the middle of a line, and of a character in it.
    file.write_bytes(file.read_bytes()[:-40] + "옹".encode()[:2])
    assert list(answering.read(file)) == ["4"]
    assert set(run(file, Scripted(echo))) == set(answering.read(file)) == set(KEYS)


def test_what_failed_is_asked_again_with_all_that_follows(tmp_path: Path) -> None:
    file, down = (
        tmp_path / "rows.jsonl",
        Scripted(lambda chat: None if "川" in chat[-1]["content"] else echo(chat)),
    )
    found = run(file, down)
    assert len(down.chats) == 5  # neither the second nor the third turn after it
    for key in ("3", "3/2", "3/3"):
        assert found[key]["finish"] == "error" and not found[key]["values"]
    assert found["3"]["error"] == "timed out" and "turn before" in found["3/2"]["error"]
    assert set(answering.read(file)) == {"1", "2", "2/2", "4"}
    up = Scripted(echo)
    again = run(file, up)
    assert len(up.chats) == 3 and again.keys() == found.keys()
    assert {row["finish"] for row in again.values()} == {"stop"}
