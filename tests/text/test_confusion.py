from __future__ import annotations

import dataclasses
import random

import pytest

from onggi import languages, text
from onggi.errors import OnggiError
from onggi.text.confusion import Confusion, check, loops, rates, repetition

PROBE = text.load("probe")
ANSWERS = {tag: list(PROBE.passages(tag).values()) for tag in PROBE.languages}


def test_every_passage_of_the_probe_is_clean() -> None:
    """12 languages, 10 scripts: no exceptions. Units (250g, 6.5km) are Latin in Korean and Japanese."""
    for tag, answers in ANSWERS.items():
        for answer in answers:
            found = check(answer, tag)
            assert found.line_pass and found.script_pass and found.word_pass is not False, found
            assert not found.foreign and not found.lookalikes and not found.broken
            assert not (found.loop or found.empty or found.cut) and found.repetition < 0.05
    assert check(PROBE.passages("ko")["trail-34"], "ko").excused["unit"] >= 2


@pytest.mark.parametrize("asked", PROBE.languages)
@pytest.mark.parametrize("given", PROBE.languages)
def test_an_answer_in_another_language_is_found(asked: str, given: str) -> None:
    if asked == given:
        return
    found = check(ANSWERS[given][3], asked, prompt=ANSWERS[asked][3])
    assert found.line_pass is False and found.identified == (given,)
    if languages.script(asked) != languages.script(given):
        # Of Chinese in Japanese only the characters that Japanese does not have.
        least = 0.1 if (asked, given) == ("ja", "zh-Hans") else 0.5
        assert found.script_pass is False and sum(found.foreign.values()) > least * found.letters


@pytest.mark.parametrize("asked", PROBE.languages)
@pytest.mark.parametrize("leaked", ["en", "ru", "ko", "ja", "ar", "th"])
def test_one_passage_of_another_language_among_three(asked: str, leaked: str) -> None:
    if asked == leaked:
        return
    rows = random.Random(f"{asked}{leaked}").sample(range(40), 3)
    lines = [ANSWERS[asked][rows[0]], ANSWERS[leaked][rows[1]], ANSWERS[asked][rows[2]]]
    found = check("\n".join(lines), asked)
    assert found.identified == (asked, leaked, asked) and found.line_pass is False
    assert found.values()[f"line/{leaked}"] == 1
    same = languages.script(asked) == languages.script(leaked)
    assert found.foreign_lines == (0 if same else 1) and found.lines == 3


# language, what leaks in, the scripts it is seen as. Each is planted within a passage of the probe.
LEAKS = [
    ("ko", "漢字", {"Hani": 2}),
    ("ko", "とても", {"Hira": 3}),
    ("ko", "データ", {"Kana": 2}),  # ー is of no one script
    ("ko", "слово", {"Cyrl": 5}),
    ("ko", "however", {"Latn": 7}),
    ("th", "very good", {"Latn": 8}),
    ("zh-Hans", "좋아요", {"Hang": 3}),
    ("zh-Hans", "這個", {"Hant": 2}),
    ("ja", "我们说", {"Hans": 2}),  # 我 is Japanese too
    ("ru", "because", {"Latn": 7}),
    ("de", "привет", {"Cyrl": 6}),
    ("es", "中文", {"Hani": 2}),
    ("el", "नमस्ते", {"Deva": 4}),
    ("ar", "with", {"Latn": 4}),
    ("hi", "ไทย", {"Thai": 3}),
    ("km", "ខ្មែរ មនុស្ស มาก", {"Thai": 3}),
    ("en", "사람", {"Hang": 2}),
]


@pytest.mark.parametrize(("tag", "leak", "foreign"), LEAKS)
def test_a_planted_leak_is_found(tag: str, leak: str, foreign: dict[str, int]) -> None:
    for answer in ANSWERS[tag][:5]:
        middle = answer.find(" ", len(answer) // 2) if " " in answer[len(answer) // 2 :] else len(answer) // 2
        found = check(f"{answer[:middle]} {leak} {answer[middle:]}", tag)
        assert found.foreign == foreign and found.script_pass is False
        assert found.line_pass  # the lines are still in the language: what the benchmark does not see
        assert found.word_pass is (None if languages.is_latin(tag) else not {"Latn"} & set(foreign))


def test_an_english_answer_to_a_korean_question() -> None:
    found = check("The capital of Korea is Seoul.", "ko", "한국의 수도는 어디입니까?")
    assert found.identified == ("en",) and found.foreign == {"Latn": 24}
    assert (
        check("Seoul", "ko", "한국의 수도는?").script_pass is False
    )  # too short for a line, and all there is
    assert check("서울(Seoul)입니다. Samsung 본사가 있습니다.", "ko").excused == {"gloss": 5, "name": 7}


@pytest.mark.parametrize(
    ("tag", "answer", "prompt", "reason"),
    [
        ("ko", "다음을 보세요.\n```python\nfor word in lines: print(word)\n```\n끝입니다.", "", "code"),
        ("ja", "`print(word)` を使います。", "", "code"),
        ("th", "ดูที่ https://example.com/path?x=words หรือ a.user@mail.example.org", "", "code"),
        ("el", r"Ισχύει \(\frac{a}{b} = velocity\) πάντα.", "", "code"),
        ("zh-Hans", "编辑 config.yaml 文件。", "", "code"),
        ("ko", "무게는 250g, 거리는 6.5km, 속도는 5 km/h입니다.", "", "unit"),
        ("ru", "Нагрев до 5 kWh и pH 7.", "", "unit"),
        ("ar", "يستخدم النموذج GPU و KL و CO2.", "", "acronym"),
        ("km", "ម៉ូដែល GPU នេះលឿន។", "", "acronym"),
        ("ko", "hamilton 경로는 kernel이 찾습니다.", "hamilton 경로와 kernel을 설명해 줘.", "prompt"),
        ("ko", "大學은 큰 학교라는 뜻입니다.", "大學의 뜻이 무엇입니까?", "prompt"),
        ("en", "The word привет is a greeting.", "What does привет mean?", "prompt"),
        ("ko", "이해(理解)와 '정의'(正義)", "", "gloss"),
        ("ja", "人工知能（artificial intelligence）です。", "", "gloss"),
        ("en", "He lives in Moscow (Москва) now.", "", "gloss"),
        ("hi", "वह Samsung और iPhone बेचता है।", "", "name"),
        ("ko", "영어로는 “thank you”라고 합니다.", "", "quoted"),
        ("de", "Auf Koreanisch heißt das „감사합니다“.", "", "quoted"),
    ],
)
def test_what_may_stand_in_another_script(tag: str, answer: str, prompt: str, reason: str) -> None:
    found = check(answer, tag, prompt)
    assert found.script_pass and found.line_pass is not False and found.word_pass is not False
    assert reason in found.excused


def test_what_the_prompt_excuses_and_what_it_does_not() -> None:
    answer = "kernel은 중요합니다."
    assert not check(answer, "ko").script_pass
    assert check(answer, "ko", "kernel이 무엇입니까?").script_pass
    # Asked in English for Korean, the prompt's everyday words are no terms; its names are.
    request = "Explain in Korean what the kernel of FreeBSD does and why."
    assert check(answer, "ko", request).foreign == {"Latn": 6}
    assert check("FreeBSD는 좋습니다.", "ko", request).excused == {"prompt": 7}


def test_hanja_in_parentheses_is_counted_apart() -> None:
    glossed, bare = check("한자(漢字)를 씁니다.", "ko"), check("漢字를 씁니다.", "ko")
    assert glossed.script_pass and glossed.glossed_han == 2 and glossed.values()["gloss"] == 1
    assert not bare.script_pass and bare.glossed_han == 0 and bare.leaks == ("漢字",)
    assert "gloss" not in check("한자（漢字）", "ja").values()


@pytest.mark.parametrize(
    ("tag", "answer", "word"),
    [
        ("en", "Log in to pаypal now.", "pаypal"),  # Cyrillic а
        ("ru", "Это прoстой текст.", "прoстой"),  # Latin o
        ("el", "Η λέξη κaι αυτή.", "κaι"),
        ("ko", "pаypal에 접속하세요.", "pаypal"),
    ],
)
def test_lookalikes_within_a_word(tag: str, answer: str, word: str) -> None:
    found = check(answer, tag)
    assert found.lookalikes == (word,) and found.foreign
    assert check("The change Δt is 5 μm, α and β.", "en").lookalikes == ()


def test_half_a_character() -> None:
    for tag, answer in (("ko", "서울은 큰 도시입니다"), ("th", "กรุงเทพเป็นเมืองใหญ่"), ("ru", "Москва столица")):
        data = answer.encode()
        inside = (data[:4] + data[5:]).decode(errors="replace")
        assert check(inside, tag).broken >= 1 and not check(inside, tag).cut
        half = data[:-1].decode(errors="replace")
        assert check(half, tag).broken == 1 and check(half, tag).cut
        assert check(half, tag, finish="length").broken == 0  # the limit's doing, not the model's
        assert check(answer, tag).broken == 0
    for bad in ("\ud800", "\ue000", "\x00", "<0xEA><0xB0>"):
        assert check(f"서울{bad}입니다", "ko").broken == 1
    assert check("가족 👨‍👩‍👧 नमस्ते क्ष", "ko").broken == 0  # joiners are text


@pytest.mark.parametrize(
    "unit", ["반복합니다. ", "and so on ", "そして、", "ซ้ำอีก", "ម្ដងទៀត", "и так далее, "]
)
def test_a_loop_at_the_end(unit: str) -> None:
    tag = {"반": "ko", "a": "en", "そ": "ja", "ซ": "th", "ម": "km", "и": "ru"}[unit[0]]
    answer = ANSWERS[tag][0] + "\n" + unit * 12
    assert loops(answer) and loops(answer[:-3]) and repetition(answer) > 0.1
    assert not loops(unit * 12 + ANSWERS[tag][0]) and repetition(unit * 12) > 0.5
    assert not loops(ANSWERS[tag][0])
    found = check(answer, tag, finish="length")
    assert found.loop and found.cut and found.line_pass


def test_what_is_no_loop() -> None:
    assert not loops("정말 웃기네요 ㅋㅋㅋㅋㅋㅋ") and not loops("ok " * 3)
    assert not loops("표\n" + "-" * 60) and not loops("|---|---|---|---|---|---|---|---|")
    assert loops("0" * 30) and not loops("")


def test_empty_and_cut_off() -> None:
    for blank in ("", "  \n", "...", "\u200b"):
        found = check(blank, "ar")
        assert found.empty and found.line_pass is found.script_pass is None
    assert not check("42", "el").empty and check("42", "el").script_pass is None
    assert check("다음과 같습니다.\n```\nx = 1", "ko").cut and not check("좋아요", "ko").cut


def test_lines_too_short_or_unknown_to_the_identifier_are_left_to_the_script() -> None:
    assert check("Good morning\nto you", "ko").identified == ()
    assert check("Good morning\nto you", "ko").foreign_lines == 2
    yiddish = check("דאָס איז אַ גוטער טאָג פֿאַר אַלעמען", "yi")
    assert yiddish.line_pass is None and yiddish.script_pass
    assert check("Dies ist\n\nein Satz mit sechs kurzen Wörtern.", "de").lines == 2


def test_tags_are_canonical_and_wrong_ones_refused() -> None:
    assert check("这是中文。", "zh-cn").language == "zh-Hans"
    with pytest.raises(OnggiError):
        check("a", "klingonish")


def test_rates_per_language() -> None:
    korean = [*ANSWERS["ko"][:7], "The answer is in English, all of it.", "짧은 漢字", ""]
    found = [check(answer, "ko") for answer in korean]
    found += [check(answer, tag) for tag in ("ja", "en") for answer in ANSWERS[tag][:4]]
    table = rates(found)
    assert list(table) == ["ko", "ja", "en"]
    ko = table["ko"]
    assert ko["line"] == {"value": 7 / 8, "n": 8} and ko["line/en"] == {"value": 1 / 8, "n": 8}
    assert ko["word"] == {"value": 1.0, "n": 7}  # of those that pass the line rate
    assert ko["script"] == {"value": 7 / 9, "n": 9} and ko["script/Hani"] == {"value": 1 / 9, "n": 9}
    assert ko["script_letters"]["n"] == 9 and 7 / 9 < ko["script_letters"]["value"] < 1
    assert ko["empty"] == {"value": 0.1, "n": 10} and "script/Cyrl" not in ko
    assert table["en"]["line"]["value"] == table["ja"]["script"]["value"] == 1 and "word" not in table["en"]
    assert rates([]) == {}


def test_a_result_is_frozen() -> None:
    found = check("네, 좋습니다.", "ko")
    assert isinstance(found, Confusion)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.lines = 3  # type: ignore[misc]
