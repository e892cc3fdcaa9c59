"""Pairs go out blind and ratings come in once, as JSON lines and as Label Studio has them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from onggi.errors import OnggiError
from onggi.rate.store import Store
from onggi.rate.study import Study
from onggi.stages.rate_people import (
    CloseConfig,
    ExportConfig,
    ImportConfig,
    StatusConfig,
    close,
    export,
    status,
    take,
)
from rate_examples import MODELS, answers, study


@pytest.fixture
def made(tmp_path: Path) -> Study:
    said = {f"ko-0 {MODELS[0]}": "반쪽 글자 \ud83d 와 </Text>", f"ar-0 {MODELS[1]}": "عربي \u202e"}
    return study(tmp_path, answers(tmp_path, ("ko", "ar", "th"), 4, said=said), raters=2)


def test_what_goes_out_is_blind(made: Study, tmp_path: Path) -> None:
    out = tmp_path / "쌍.jsonl"
    told = export(ExportConfig(str(made.path), str(out), languages=("ko", "th")))  # type: ignore[arg-type]
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert told["assignments"] == len(rows) == sum(len(m) for t in ("ko", "th") for m in made.schedule[t])
    assert {row["lang"] for row in rows} == {"ko", "th"}
    assert not any(model in out.read_text(encoding="utf-8") for model in MODELS)
    for row in rows:
        shown = made.shown(row["assignment"])
        pair = made.pairs[shown.pair]
        left, right = (pair["second"], pair["first"]) if shown.swapped else (pair["first"], pair["second"])
        assert [row["left"], row["right"]] == [*left, *right] and row["prompt"] == pair["turns"][0]


def annotated(tasks: list[dict[str, Any]], by: int) -> list[dict[str, Any]]:
    """What Label Studio gives back for its tasks: here the left one is better in each, and some skipped."""
    for number, task in enumerate(tasks):
        results = [
            {"from_name": name, "to_name": "left", "type": "choices", "value": {"choices": chosen}}
            for name, chosen in (("choice", ["left"]), ("right_reasons", ["register", "fact"]))
        ]
        skipped = number % 5 == 4
        task["annotations"] = [
            {
                "id": number,
                "completed_by": by if number % 2 else {"id": by, "email": f"{by}@example.org"},
                "was_cancelled": skipped,
                "lead_time": 4.25,
                "result": [] if skipped else results,
            }
        ]
        task["predictions"] = [{"result": results}]
    return tasks


def test_there_and_back_through_label_studio(made: Study, tmp_path: Path) -> None:
    out = tmp_path / "tasks.json"
    export(ExportConfig(str(made.path), str(out), "label-studio", ("ar",)))  # type: ignore[arg-type]
    labels = ElementTree.parse(out.with_suffix(".xml")).getroot()
    assert {e.get("name") for e in labels.iter("Choices")} == {"choice", "left_reasons", "right_reasons"}
    fields = {e.get("value") for e in labels.iter() if (e.get("value") or "").startswith("$")}
    tasks = json.loads(out.read_text(encoding="utf-8"))
    assert all({field[1:] for field in fields if field} <= task["data"].keys() for task in tasks)
    lists = [[task for task in tasks if task["data"]["list"] == number] for number in (1, 2)]
    back = tmp_path / "back.json"
    back.write_text(json.dumps(annotated(lists[0], 7) + annotated(lists[1], 8)), encoding="utf-8")
    told = take(ImportConfig(str(made.path), str(back)))
    given = sum(not task["annotations"][0]["was_cancelled"] for own in lists for task in own)
    assert told["new"] == given and told["twice"] == 0
    assert take(ImportConfig(str(made.path), str(back))) == {**told, "new": 0, "known": given}
    store = Store(made.ratings, made.id)
    events = list(store.events())
    assert {event.right for event in events} == {("register", "fact")} and {e.left for e in events} == {()}
    assert {event.seconds for event in events} == {4.25} and {e.choice for e in events} == {"left"}
    kinds = {(own["kind"], own["of"]) for own in status(StatusConfig(str(made.path)))["raters"]}
    assert kinds == {("imported", None)}


def rows_of(made: Study, tag: str, slot: int, rater: str) -> list[dict[str, Any]]:
    return [
        {"assignment": shown.id, "choice": "bad", "rater": rater, "seconds": 3, "left_reasons": ["language"]}
        for shown in made.schedule[tag][slot]
    ]


def write(path: Path, rows: list[Any]) -> ImportConfig:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return ImportConfig(str(path.parent / "study"), str(path))


def test_one_person_on_two_lists_counts_once_a_pair(made: Study, tmp_path: Path) -> None:
    rows = rows_of(made, "ko", 0, "하나") + rows_of(made, "ko", 1, "하나")
    told = take(write(tmp_path / "r.jsonl", rows))
    pairs = {shown.pair for mine in made.schedule["ko"] for shown in mine}
    assert (told["new"], told["twice"]) == (len(pairs), len(rows) - len(pairs)) and told["twice"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"assignment": "x"}, "line 2: assignment 'x' is not of this study"),
        ({"assignment": ["x"]}, "line 2: assignment ['x'] is not of this study"),
        ({"choice": "왼쪽"}, "line 2: choice is '왼쪽', not one of left, right, good, bad"),
        ({"choice": None}, "line 2: choice is None"),
        ({"rater": " "}, "line 2: rater says who rated"),
        ({"left_reasons": ["ugly"]}, "line 2: left_reasons is ['ugly'], not a list of language,"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_kept(
    made: Study, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    rows = rows_of(made, "th", 0, "ก")
    with pytest.raises(OnggiError, match=re.escape(said)):
        take(write(tmp_path / "r.jsonl", [rows[0], rows[1] | change]))
    assert not list(Store(made.ratings, made.id).events())


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "is not valid JSON"), ("{}", "is no export of Label Studio's"), ("[3]", "task 1: has no data")],
)
def test_files_that_are_no_export(made: Study, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(OnggiError, match=said):
        take(ImportConfig(str(made.path), str(tmp_path / "x.json")))


def test_nothing_comes_in_after_the_close(made: Study, tmp_path: Path) -> None:
    close(CloseConfig(str(made.path)))
    with pytest.raises(OnggiError, match="is closed; what was rated after that does not count"):
        take(write(tmp_path / "r.jsonl", rows_of(made, "ko", 0, "하나")))
