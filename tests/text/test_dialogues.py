"""Rows of any shape become dialogues; what would teach a model something nobody wants is named with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onggi.errors import OnggiError
from onggi.text import dialogues
from onggi.text.dialogues import Leaks, cut, hold_out, read, records


def asked(user: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}], **more}


def faults(*rows: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    return [
        (f.kind, str(f))
        for f in read([(f"a, line {n}", row) for n, row in enumerate(rows, 1)], **options).faults
    ]


def test_every_shape_becomes_the_same_dialogue() -> None:
    question, answer = "김치는 어떻게 보관하나요?", "김치는 뚜껑을 꼭 닫아 냉장고에 보관하세요."
    messages = asked(question, answer)["messages"]
    rows: list[dict[str, Any]] = [
        {"messages": messages},
        {"messages": json.dumps(messages)},
        {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]},
        {"instruction": question, "input": "", "output": answer},
        {"prompt": question, "completion": answer},
        {"prompt": messages[:1], "completion": messages[1:], "chosen": None},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": question}]}, messages[1]]},
    ]
    for row in rows:
        [made] = read([("a, line 1", row)]).dialogues
        assert [dict(message) for message in made.messages] == messages and made.lang == "ko"
    [made] = read(
        [
            (
                "a",
                {
                    "instruction": "번역하세요.",
                    "input": "물",
                    "output": "물은 영어로 water입니다.",
                    "system": "짧게 답하세요.",
                },
            )
        ]
    ).dialogues
    assert [m["role"] for m in made.messages] == ["system", "user", "assistant"]
    assert made.messages[1]["content"] == "번역하세요.\n\n물"


def test_preferences_of_every_shape() -> None:
    question, good, bad = "น้ำเดือดที่กี่องศา", "น้ำเดือดที่หนึ่งร้อยองศาเซลเซียส", "ไม่รู้เหมือนกัน"
    user = {"role": "user", "content": question}
    sides = [[{"role": "assistant", "content": text}] for text in (good, bad)]
    rows: list[dict[str, Any]] = [
        {"prompt": question, "chosen": good, "rejected": bad},
        {"prompt": [user], "chosen": sides[0], "rejected": sides[1]},
        {"chosen": [user, *sides[0]], "rejected": [user, *sides[1]]},
        {"prompt": [user], "chosen": [user, *sides[0]], "rejected": [user, *sides[1]]},
    ]
    for row in rows:
        [made] = read([("a", row)]).dialogues
        assert made.is_preference and made.lang == "th" and made.prompt == (user,)
        assert (made.chosen[0]["content"], made.rejected[0]["content"]) == (good, bad)
    assert faults({"prompt": question, "chosen": good})[0][1].endswith(
        "has no rejected; a preference has both"
    )
    assert faults({"prompt": question, "chosen": good, "rejected": good})[0][0] == "duplicate"


def test_tools_are_kept() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "서울"}}}
    row = {
        "messages": [
            {"role": "developer", "content": "도구를 쓸 수 있습니다."},
            {"role": "user", "content": "서울 날씨는 어때요?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "name": "weather", "content": '{"sky": "맑음"}'},
            {"role": "assistant", "content": "서울은 지금 맑습니다."},
        ],
        "tools": json.dumps([{"type": "function", "function": {"name": "weather"}}]),
        "lang": "kor_Hang",
    }
    [made] = read([("a", row)]).dialogues
    assert made.lang == "ko" and made.tools[0]["function"]["name"] == "weather"
    assert made.messages[2]["tool_calls"] == [call] and made.messages[0]["role"] == "system"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (
            [("assistant", "안녕하세요."), ("user", "네.")],
            "begins with assistant (message 1); there should be system or user",
        ),
        ([("user", "Γεια;"), ("user", "Γεια;"), ("assistant", "Γεια.")], "has, after user, user (message 2)"),
        (
            [("user", "Γεια;"), ("assistant", "Γεια."), ("user", "Γεια;")],
            "ends with user; there should be assistant",
        ),
        ([("user", "a"), ("tool", "b"), ("assistant", "c")], "has, after user, tool (message 2)"),
        ([("user", "สวัสดี"), ("assistant", "  \n")], "has an empty answer"),
        ([("user", ""), ("assistant", "สวัสดี")], "has an empty message of user"),
        ([("bot", "hello"), ("assistant", "hello")], "has a message of 'bot'"),
    ],
)
def test_roles_out_of_order_and_empty_answers(messages: list[tuple[str, str]], said: str) -> None:
    row = {"messages": [{"role": role, "content": text} for role, text in messages], "lang": "el"}
    [(_, why)] = faults(row)
    assert why.startswith("a, line 1: ") and said in why


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("한국\ufffd", "U+FFFD"),
        ("값은 <0xEA>입니다", "<0xEA>"),
        ("half \ud83d", "U+D83D"),
        ("\u0301bc", "U+0301"),
        ("ា ខ្មែរ", "U+17B6"),
        ("ខ្មែរ\u17d2", "U+17D2"),
        ("안녕하세\u110b", "U+110B"),
        ("안녕하세ㅇ", "ㅇ"),
    ],
)
def test_cut_in_the_middle_of_a_character(text: str, where: str) -> None:
    why = cut(text)
    assert why and where in why
    assert faults(asked("질문입니다.", text, lang="ko"))[0][0] == "cut"


@pytest.mark.parametrize(
    "text",
    [
        "좋아요ㅋㅋ",
        "슬퍼ㅠ",
        "ㄱ은 기역입니다",
        "안녕",
        "é",
        "a\u0301",
        "नमस्ते",
        "தமிழ்",
        "ខ្មែរ",
        "น้ำ",
        "👩‍👩‍👧",
        "ㄱ",
    ],
)
def test_whole_characters_are_not_taken_for_cut_ones(text: str) -> None:
    assert cut(text) is None


def test_another_language_than_the_tag_says() -> None:
    english = "The museum opens at ten in the morning and closes at six."
    [(kind, why)] = faults(asked("박물관은 언제 여나요?", english, lang="ko"))
    assert kind == "language" and "has an answer in English, but is tagged ko (Korean)" in why
    # A translation names the language, or holds it beside its own.
    assert not faults(asked("영어로 옮겨 주세요. 박물관은 열 시에 엽니다.", english, lang="ko"))
    assert not faults(
        asked("다음 글의 오타를 고쳐 주세요.\nThe museum opens at ten in teh morning.", english, lang="ko")
    )
    assert not faults(
        asked("자료로 주세요.", '{"name": "museum", "opening hours": "ten to six every day"}', lang="ko")
    )
    assert not faults(asked("Wann öffnet das Museum?", "Das Museum öffnet um zehn Uhr morgens.", lang="de"))
    assert faults(asked("?", "123", lang=None))[0][1].endswith(
        'its language is not to be told; give it a "lang"'
    )
    assert "'xx-nowhere' is not" in faults(asked("?", "네", lang="xx-nowhere"))[0][1]


def test_duplicates_and_languages_that_are_not_wanted() -> None:
    rows = [
        asked("수도가 어디죠?", "서울입니다.", lang="ko"),
        asked("수도가  어디죠?", "서울입니다!", lang="ko"),
        asked("수도가 어디죠?", "대한민국의 수도는 서울입니다.", lang="ko"),
        asked("Quelle est la capitale ?", "C'est Paris, bien sûr.", lang="fr"),
    ]
    assert [why for _, why in faults(*rows)] == ["a, line 2: says what a, line 1 says"]
    found = read([(str(n), row) for n, row in enumerate(rows)], wanted=("fr",))
    assert found.languages == ("fr",) and not found.faults


def test_leaks_of_evaluation_sets() -> None:
    from onggi import text

    probe = text.load("probe")
    exams = {
        "probe": {tag: list(probe.passages(tag).values()) for tag in ("ko", "km", "en")},
        "own": {"ko": ["짧은 문제"]},
    }
    leaks = Leaks(exams, ("ko", "km", "en"))
    for language in ("ko", "km", "en"):
        passage = probe.passages(language)["weather-01"]
        assert (leaks(f"… {passage} …", language) or "").startswith(f"probe {language}")
    assert leaks("짧은 문제!", "ko") == "own ko 1" and leaks("짧은 문제가 아닙니다", "ko") is None
    [(kind, why)] = faults(asked("날씨는요?", probe.passages("ko")["weather-01"], lang="ko"), leaks=leaks)
    assert kind == "leaked" and "probe ko 1" in why


def test_files_and_what_is_said_of_them(tmp_path: Path) -> None:
    rows = [asked("안녕?", "안녕하세요.", lang="ko"), asked("Ciao?", "", lang="it"), {"text": "no dialogue"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    pq.write_table(pa.Table.from_pylist(rows[:2]), tmp_path / "a.parquet")
    found = read(records(str(tmp_path / "a.jsonl")))
    said = dialogues.said_of(found.faults, 3)
    assert said.startswith("Left out 2 of 3 rows:")
    assert f"{tmp_path / 'a.jsonl'}, line 2: has an empty answer." in said
    assert "line 3: is no dialogue (it has text)" in said
    found = read(records(str(tmp_path / "a.parquet")))
    assert [d.place for d in found.dialogues] == [f"{tmp_path / 'a.parquet'}, row 1"] and len(
        found.faults
    ) == 1
    with pytest.raises(OnggiError, match=r"data: .*nowhere.jsonl: there is no such file; dialogues are"):
        list(records(str(tmp_path / "nowhere.jsonl")))
    with pytest.raises(OnggiError, match=r"is neither .jsonl nor .parquet"):
        (tmp_path / "a.txt").write_text("안녕")
        list(records(str(tmp_path / "a.txt")))


def test_the_same_question_is_held_out_or_not() -> None:
    rows = [asked(f"문제 {n // 2}", f"답은 {n}번입니다.", lang="ko") for n in range(40)]
    rows += [asked(f"Fråga {n}", f"Svaret är nummer {n}, förstås.", lang="sv") for n in range(3)]
    found = read([(str(n), row) for n, row in enumerate(rows)]).dialogues
    train, held_out = hold_out(found, 0.1)
    assert not {d.key for d in train} & {d.key for d in held_out}
    assert (
        len([d for d in held_out if d.lang == "ko"]) == 4
        and len([d for d in held_out if d.lang == "sv"]) == 1
    )
    assert hold_out(found[::-1], 0.1)[1][::-1] == held_out
    with pytest.raises(OnggiError, match="one dialogue in Swedish is too little"):
        hold_out(found[-1:], 0.1)


def test_the_shipped_dialogues_are_sound() -> None:
    rows = list(records("seed"))
    found = read(rows)
    assert not found.faults, "\n".join(map(str, found.faults))
    assert len(rows) >= 300 and {"ko", "en", "ja", "zh-Hans", "de", "es"} <= set(found.languages)
    assert len({row["_id"] for _, row in rows}) == len(rows)
