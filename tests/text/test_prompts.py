"""Prompts are read as they stand, and a mistake names its line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onggi.errors import OnggiError
from onggi.text.prompts import load

ROWS: list[dict[str, Any]] = [
    {"_id": "1", "prompt": "오늘 날씨 어때요?", "lang": "kor_Hang"},
    {"_id": "2", "prompt": "ما عاصمة مصر؟", "lang": "ar", "answer": "القاهرة"},
    {
        "_id": "3",
        "lang": "th",
        "messages": [{"role": "system", "content": "สั้น ๆ"}, {"role": "user", "content": "สวัสดี"}],
    },
]


def write(path: Path, *rows: Any) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\ufeff" + "\r\n".join(lines) + "\n\n", encoding="utf-8")
    return str(path)


def test_prompts_and_messages(tmp_path: Path) -> None:
    korean, arabic, thai = load(write(tmp_path / "p.jsonl", *ROWS))
    assert (korean.lang, arabic.lang, thai.lang) == ("ko", "ar", "th")
    assert korean.messages == ({"role": "user", "content": "오늘 날씨 어때요?"},)
    assert arabic.answer == "القاهرة" and korean.answer is None
    assert thai.text == "สั้น ๆ\nสวัสดี"
    assert [prompt.id for prompt in load(str(tmp_path / "p.jsonl"), ("ar",))] == ["2"]


GOOD = {"_id": "1", "prompt": "질문", "lang": "ko"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "p.jsonl:2: is not JSON"),
        ("[1]", "p.jsonl:2: is not an object"),
        ({**GOOD, "_id": 7}, "p.jsonl:2: _id is not a text"),
        ({"_id": "2", "prompt": "질문"}, "p.jsonl:2: lang is not a text"),
        ({**GOOD, "_id": "2", "lang": "klingonish"}, "p.jsonl:2: lang: .*not a"),
        ({"_id": "2", "lang": "ko"}, "p.jsonl:2: needs either prompt"),
        ({**GOOD, "_id": "2", "messages": []}, "p.jsonl:2: needs either prompt"),
        ({**GOOD, "_id": "2", "prompt": " "}, "p.jsonl:2: prompt is empty"),
        ({"_id": "2", "lang": "ko", "messages": [{"role": "user"}]}, "p.jsonl:2: messages: each turn"),
        (
            {"_id": "2", "lang": "ko", "messages": [{"role": "assistant", "content": "네"}]},
            "p.jsonl:2: messages: the last turn",
        ),
        ({**GOOD, "_id": "2", "answer": ""}, "p.jsonl:2: answer is not a text"),
        (GOOD, "p.jsonl:2: _id '1' is there twice"),
    ],
)
def test_what_is_wrong_with_a_row(tmp_path: Path, row: Any, said: str) -> None:
    with pytest.raises(OnggiError, match=said):
        load(write(tmp_path / "p.jsonl", GOOD, row))


def test_a_file_that_is_no_text_or_lacks_a_language(tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match="cannot be read"):
        load(str(tmp_path / "none.jsonl"))
    (tmp_path / "cp949.jsonl").write_bytes("질문".encode("cp949"))
    with pytest.raises(OnggiError, match="is not UTF-8"):
        load(str(tmp_path / "cp949.jsonl"))
    with pytest.raises(OnggiError, match="has no prompts in km"):
        load(write(tmp_path / "p.jsonl", GOOD), ("ko", "km"))
