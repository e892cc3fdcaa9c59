"""Tasks made from a parallel text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onggi import text
from onggi.errors import OnggiError
from onggi.evaluate.tasks import TASKS, Choice, Open, chrf, chrf_signature
from onggi.evaluate.tasks.passages import cut

PROBE = text.load("probe")
NAMES = ("next_passage", "fill_gap")


@pytest.mark.parametrize("name", NAMES)
def test_the_right_choice_completes_the_passage(name: str) -> None:
    found = TASKS[name].items(PROBE.languages)
    assert {len(items) for items in found.values()} == {35}
    for tag, items in found.items():
        passages = PROBE.passages(tag)
        for item in items:
            assert isinstance(item, Choice)
            key = item.id.removeprefix(f"{name}-")
            wholes = [item.context + choice for choice in item.choices]
            assert [whole == passages[key] for whole in wholes] == [i == item.answer for i in range(4)]
            assert len(set(item.choices)) == 4


@pytest.mark.parametrize("name", NAMES)
def test_the_same_passages_stand_against_each_other_in_every_language(name: str) -> None:
    found = TASKS[name].items(("ko", "de", "th", "ar"))

    def sources(tag: str, item: Choice) -> list[str]:
        passages = PROBE.passages(tag)
        parts = {key: cut(passage, 2 if name == "next_passage" else 3) for key, passage in passages.items()}
        return [
            next(key for key, part in parts.items() if part and choice.startswith(part[1]))
            for choice in item.choices
        ]

    for number in range(35):
        korean = sources("ko", found["ko"][number])
        assert korean == sources("de", found["de"][number]) == sources("th", found["th"][number])
        assert korean == sources("ar", found["ar"][number])


def test_shots_are_whole_passages_that_are_never_asked() -> None:
    bare = TASKS["next_passage"].items(("ja", "km"))
    shown = TASKS["next_passage"].items(("ja", "km"), shots=2)
    for tag in shown:
        passages = list(PROBE.passages(tag).values())[:2]
        for before, after in zip(bare[tag], shown[tag], strict=True):
            assert isinstance(before, Choice) and isinstance(after, Choice)
            assert after.context == f"{passages[0]}\n\n{passages[1]}\n\n{before.context}"
            assert not any(before.context in passage for passage in passages)


@pytest.mark.parametrize(
    ("passage", "parts"),
    [
        ("Der Bus fährt vom 3. bis 17. Mai nicht. Bitte gehen Sie zur Post.", ["Der Bus fährt vom 3. bis 17. Mai nicht.", " Bitte gehen Sie zur Post."]),
        ("비가 온다. 우산을 챙기자.", ["비가 온다.", " 우산을 챙기자."]),
        ("雨が降ります。傘をお持ちください。", ["雨が降ります。", "傘をお持ちください。"]),
        ("ฝนจะตกก่อนเจ็ดโมง อุณหภูมิ 18 องศา", ["ฝนจะตกก่อนเจ็ดโมง", " อุณหภูมิ 18 องศา"]),
        ("هل ستمطر غدًا؟ خذ مظلتك معك.", ["هل ستمطر غدًا؟", " خذ مظلتك معك."]),
        ("ថ្ងៃនេះភ្លៀង។ សូមយកឆ័ត្រ។", ["ថ្ងៃនេះភ្លៀង។", " សូមយកឆ័ត្រ។"]),
    ],
)  # fmt: skip
def test_a_passage_is_cut_where_a_sentence_ends(passage: str, parts: list[str]) -> None:
    assert cut(passage, 2) == parts


def test_what_is_too_short_is_not_cut() -> None:
    assert cut("네.", 2) is None and cut("안녕하세요", 2) is None and cut("Ja. Nein.", 2) is None


def parallel(tmp_path: Path, rows: list[dict[str, str]]) -> text.Text:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return text.load(str(path))


def test_any_parallel_text_will_do(tmp_path: Path) -> None:
    """Also one with line breaks and with a passage that is missing in one language, or that stands twice."""
    rows = [
        {
            "_id": f"p{n}",
            "en": f"This is room {n}.\nIts door has the colour number {n * 7}.",
            "ko": f"여기는 {n}호실입니다.\n문의 색은 {n * 7}번입니다.",
            "he": f"זה חדר מספר {n}.\nהצבע של הדלת הוא {n * 7}.",
        }
        for n in range(12)
    ]
    del rows[7]["he"]
    rows.append({**rows[9], "_id": "again"})
    mine = parallel(tmp_path, rows)
    found = TASKS["next_passage"].items(("ko", "he"), text=mine)
    assert (
        len(found["ko"]) == len(found["he"]) == 12 - 5
    )  # 13 passages, one not in Hebrew, five kept as shots
    assert "next_passage-p7" not in {item.id for item in found["ko"]}
    for item in found["he"]:
        assert isinstance(item, Choice)
        assert len(set(item.choices)) == 4 and "\n" not in item.context + "".join(item.choices)
    assert [item.id for item in found["ko"]] == [item.id for item in found["he"]]
    assert len(TASKS["next_passage"].items(("ko", "en"), text=mine)["en"]) == 13 - 5


def test_translation_both_ways() -> None:
    into, back = (
        TASKS[name].items(("ko", "zh-Hans", "ar"), shots=1) for name in ("translate_into", "translate_from")
    )
    for tag, called in {"ko": "한국어", "zh-Hans": "中文（简体）", "ar": "العربية"}.items():
        for item in into[tag]:
            assert isinstance(item, Open)
            key = item.id.removeprefix("translate_into-")
            english, other = PROBE.passages("en")[key], PROBE.passages(tag)[key]
            assert item.prompt.endswith(f"\n\nEnglish: {english}\n{called}:") and item.answer == other
            assert item.prompt.count(f"{called}:") == 2  # the shot and the question
        for item in back[tag]:
            assert isinstance(item, Open)
            key = item.id.removeprefix("translate_from-")
            assert item.answer == PROBE.passages("en")[key]
            assert item.prompt.endswith("\nEnglish:") and PROBE.passages(tag)[key] in item.prompt
    assert TASKS["translate_into"].stop == ("\n",)
    assert "en" not in TASKS["translate_into"].languages()


def test_chrf_is_sacrebleus() -> None:
    assert chrf("서울은 한국의 수도이다.", "서울은 한국의 수도이다.") == 100.0
    assert chrf("", "สวัสดีครับ") == 0.0
    # By hand, of `ab` against `abc`: of the letters 2/2 and 2/3, of the pairs 1/1 and 1/2, and no longer
    # ones in `ab`; F with recall twice as heavy, of the means 1 and 7/12: 5 · 1 · 7/12 / (4 · 1 + 7/12).
    assert chrf("ab", "abc") == pytest.approx(100 * (5 * 7 / 12) / (4 + 7 / 12))
    assert "nc:6" in chrf_signature() and "version" in chrf_signature()


@pytest.mark.parametrize("name", [*NAMES, "translate_from"])
def test_rows_that_are_not_parallel_are_refused(name: str) -> None:
    with pytest.raises(OnggiError, match="needs a parallel text"):
        TASKS[name].items(("ko",), text=text.load("starter"))


def test_a_text_too_small_says_so(tmp_path: Path) -> None:
    row = {
        "en": "It rains today. Take your umbrella with you.",
        "ko": "오늘은 비가 온다. 우산을 챙겨 나가자.",
    }
    with pytest.raises(OnggiError, match="kept as shots"):
        TASKS["translate_into"].items(("ko",), text=parallel(tmp_path, [{"_id": "a", **row}]))
    with pytest.raises(OnggiError, match="kept as shots"):
        TASKS["next_passage"].items(("ko",), text=parallel(tmp_path, [{"_id": "a", **row}]))
