"""Prompts are read as they stand, and a mistake names its line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onggi.errors import OnggiError
from onggi.text import prompts
from onggi.text.prompts import load

ROWS: list[dict[str, Any]] = [
    {"_id": "1", "prompt": "오늘 날씨 어때요?", "lang": "kor_Hang"},
    {"_id": "2", "prompt": "ما عاصمة مصر؟", "lang": "ar", "answer": "القاهرة"},
    {
        "_id": "3",
        "lang": "th",
        "messages": [{"role": "system", "content": "สั้น ๆ"}, {"role": "user", "content": "สวัสดี"}],
        "category": "การทักทาย",
    },
    {"_id": "4", "lang": "ja", "turns": ["一文で。", "もっと短く。"], "references": [None, "短い。"]},
]


def write(path: Path, *rows: Any) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\ufeff" + "\r\n".join(lines) + "\n\n", encoding="utf-8")
    return str(path)


def test_a_prompt_a_chat_and_turns(tmp_path: Path) -> None:
    korean, arabic, thai, japanese = load(write(tmp_path / "p.jsonl", *ROWS))
    assert [each.lang for each in (korean, arabic, thai, japanese)] == ["ko", "ar", "th", "ja"]
    assert korean.chat([]) == [{"role": "user", "content": "오늘 날씨 어때요?"}]
    assert (korean.references, arabic.references, japanese.references) == (
        (None,),
        ("القاهرة",),
        (None, "短い。"),
    )
    assert thai.chat([]) == ROWS[2]["messages"] and thai.category == "การทักทาย"
    assert thai.text(1) == "สั้น ๆ\nสวัสดี" and japanese.text(1) == "一文で。"
    assert (thai.keys, japanese.keys) == (("3",), ("4", "4/2"))
    assert [(m["role"], m["content"]) for m in japanese.chat(["はい。"])] == [
        ("user", "一文で。"),
        ("assistant", "はい。"),
        ("user", "もっと短く。"),
    ]
    assert [prompt.id for prompt in load(str(tmp_path / "p.jsonl"), ("ar",))] == ["2"]


def test_the_sets_that_ship() -> None:
    found = load("questions")
    assert len(found) == 126 and all(len(prompt.turns) == 2 for prompt in found)
    assert {prompt.lang for prompt in load("questions", ["ja", "en"])} == {"en", "ja"}
    with pytest.raises(OnggiError, match=r"questions: has no prompts in km \(it has en, ja, ko\)"):
        load("questions", ["ko", "km"])
    with pytest.raises(OnggiError, match="Did you mean 'questions'"):
        prompts.file("question")


GOOD = {"_id": "1", "prompt": "질문", "lang": "ko"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "not an object"),
        ('{"_id": "2", "_id": "3"}', "'_id' stands twice"),
        ({**GOOD, "_id": 7}, "_id is empty or not a text"),
        ({"_id": "2", "prompt": "질문"}, "lang is empty or not a text"),
        ({**GOOD, "_id": "2", "lang": "klingonish"}, "lang: .*not a"),
        ({"_id": "2", "lang": "ko"}, "needs one of prompt"),
        ({**GOOD, "_id": "2", "messages": []}, "needs one of prompt"),
        ({**GOOD, "_id": "2", "prompt": " "}, "prompt is empty"),
        ({"_id": "2", "lang": "ko", "messages": []}, "messages is not a list"),
        ({"_id": "2", "lang": "ko", "messages": [{"role": "user"}]}, "messages: each"),
        (
            {"_id": "2", "lang": "ko", "messages": [{"role": "assistant", "content": "네"}]},
            "messages: the last",
        ),
        ({**GOOD, "_id": "2", "answer": ""}, "answer is empty"),
        ({**GOOD, "_id": "2", "references": ["ج"]}, "references does not go .* say answer"),
        ({**GOOD, "_id": "2", "category": 3}, "category is empty or not"),
        ({"_id": "2", "lang": "ar", "turns": []}, "turns is not a list"),
        ({"_id": "2", "lang": "ar", "turns": "سؤال"}, "turns is not a list"),
        ({"_id": "2", "lang": "ar", "turns": ["س", ""]}, "turns is empty"),
        ({"_id": "2", "lang": "ar", "turns": ["س"], "answer": "ج"}, "answer does not go .* say references"),
        ({"_id": "2", "lang": "ar", "turns": ["س"], "references": ["ج", "ج"]}, "references is not a list"),
        ({"_id": "2", "lang": "ar", "turns": ["س"], "references": [7]}, "references is empty or not"),
        (GOOD, "_id '1' is there twice"),
        ({**GOOD, "_id": "0/2"}, "_id '0/2' is there twice"),
    ],
)
def test_what_is_wrong_with_a_row(tmp_path: Path, row: Any, said: str) -> None:
    turns = {"_id": "0", "lang": "ja", "turns": ["一", "二"]}
    with pytest.raises(OnggiError, match=f"p.jsonl, line 3: .*{said}"):
        load(write(tmp_path / "p.jsonl", turns, GOOD, row))


def test_a_file_that_is_no_text_or_lacks_a_language(tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match="there is no such file"):
        load(str(tmp_path / "none.jsonl"))
    (tmp_path / "cp949.jsonl").write_bytes("질문".encode("cp949"))
    with pytest.raises(OnggiError, match="is not UTF-8"):
        load(str(tmp_path / "cp949.jsonl"))
    with pytest.raises(OnggiError, match="is empty"):
        load(write(tmp_path / "empty.jsonl"))
    with pytest.raises(OnggiError, match="has no prompts in km"):
        load(write(tmp_path / "p.jsonl", GOOD), ("ko", "km"))


def test_the_first_few_are_of_many_kinds() -> None:
    for lang in ("ko", "ja", "en"):
        questions = load("questions", [lang])
        first = prompts.spread(questions)[:6]
        assert len({prompt.category for prompt in first}) == 6
        assert sorted(p.id for p in prompts.spread(questions)) == sorted(p.id for p in questions)
    assert prompts.spread(load("everyday", ["km"]))[0].lang == "km"
