"""Choices that are written: what is asked, and which choice an answer names."""

from __future__ import annotations

import pytest

from onggi.evaluate import written
from onggi.evaluate.tasks import TASKS, Choice

KO = Choice("k", "국가: 페루\n수도:", (" 리마", " 키토", " 보고타", " 라파스"), 0)
AR = Choice("a", "الدولة: مصر\nالعاصمة:", (" تونس", " القاهرة", " الرباط", " دمشق"), 1)
TH = Choice("t", "สิบ + เก้า =", ("สิบเก้า", "ยี่สิบเก้า", "เก้า", "ยี่สิบ"), 0)


def test_shots_are_turns_that_were_answered() -> None:
    for language, items in TASKS["capitals"].items(("ko", "th", "ar"), shots=2, limit=3).items():
        for item in items:
            assert isinstance(item, Choice)
            chat = written.messages(item)
            assert [turn["role"] for turn in chat] == ["user", "assistant", "user", "assistant", "user"]
            assert chat[1]["content"] in "ABCD" and len(chat[1]["content"]) == 1, language
            assert chat[-1]["content"].endswith("(A / B / C / D)")
            assert all(choice.strip() in chat[-1]["content"] for choice in item.choices)


@pytest.mark.parametrize(
    ("item", "text", "found"),
    [
        (KO, "A", 0),
        (KO, " (B) 키토", 1),
        (KO, "C입니다", 2),
        (KO, "정답은 C입니다.", 2),
        (KO, "정답: C", 2),
        (KO, "答えはＣです。", 2),
        (KO, "选B", 1),
        (KO, "คำตอบคือ B ครับ", 1),
        (KO, "`B`", 1),
        (KO, "D. 라파스입니다. A가 아닙니다.", 3),
        (KO, "정답은 리마입니다.", 0),
        (KO, "리마 아니면 키토", None),
        (KO, "정답은 A 또는 B", None),
        (KO, "(A / B / C / D)\n(A / B / C / D)", None),  # the question again
        (KO, "A friend of mine", None),
        (KO, "Apples", None),
        (AR, "**B**", 1),
        (AR, "الجواب: القاهرة", 1),
        (AR, "لا أعرف", None),
        (AR, "", None),
        (AR, "H", None),
        (TH, "คำตอบคือ ยี่สิบเก้า", 1),
        (TH, "เก้า", 2),
    ],
)
def test_which_choice_an_answer_names(item: Choice, text: str, found: int | None) -> None:
    assert written.chosen(text, item) == found
