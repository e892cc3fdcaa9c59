"""What is left out of a teacher's answers, and why; the best of several; pairs; new prompts."""

from __future__ import annotations

from typing import Any

import pytest

from onggi.distill import prompting
from onggi.distill.answers import REASONS, Candidate, Rules, alike, counted, pairs, refusal, sift
from onggi.text.corpus import Cleaning
from onggi.text.corpus.duplicates import Contamination, Exam
from onggi.text.corpus.scale import scales
from onggi.text.prompts import Prompt

GOOD = {
    "ko": "옹기는 찰흙으로 빚어 가마에서 구운 그릇입니다. 숨을 쉬기 때문에 간장과 된장을 오래 두기에 좋습니다.",
    "en": "A jar of this kind is made of clay and fired in a kiln. It breathes, so it keeps soy sauce well for years.",
    "th": "ไหชนิดนี้ทำจากดินเหนียวและเผาในเตา มันระบายอากาศได้ จึงเก็บซีอิ๊วไว้ได้นานหลายปีโดยไม่เสีย",
}
ASKED = {"ko": "옹기는 무엇으로 만듭니까?", "en": "What is an onggi made of?", "th": "องกีทำจากอะไร"}


def candidate(lang: str, said: str, number: int = 1, sample: int = 0, **row: Any) -> Candidate:
    prompt = Prompt(f"{lang}-{number}", lang, (f"{ASKED[lang]} {number}",), (None,))
    score = row.pop("score", None)
    given = {"output": said, "finish": "stop", "tokens": 30, "error": None, **row}
    return Candidate(prompt, sample, [given], score)


def reason(one: Candidate, **rules: Any) -> str | None:
    sift([one], Rules(**rules))
    return one.reason


@pytest.mark.parametrize("lang", GOOD)
def test_what_is_sound_is_kept(lang: str) -> None:
    assert reason(candidate(lang, GOOD[lang])) is None


def test_each_fault_has_its_reason() -> None:
    assert reason(candidate("ko", "", finish="error", error="timeout")) == "failed"
    assert reason(candidate("th", " \n")) == "empty"
    assert reason(candidate("ko", GOOD["ko"][:20], finish="length")) == "cut"
    assert reason(candidate("ko", GOOD["en"])) == "language"
    assert reason(candidate("th", GOOD["th"] + "\n" + GOOD["en"])) == "language"
    assert reason(candidate("ko", "옹기는 粘土로 만든 甕器입니다.")) == "language"
    assert reason(candidate("en", "It is made of clay. " * 20)) == "broken"
    assert reason(candidate("ko", "옹기는 찰\ufffd흙으로 빚은 그릇입니다.")) == "broken"
    assert reason(candidate("th", "ขออภัย ฉันไม่สามารถตอบคำถามนี้ได้")) == "refusal"
    assert reason(candidate("th", "ขออภัย ฉันไม่สามารถตอบคำถามนี้ได้"), refusals=False) is None
    assert reason(candidate("en", GOOD["en"], score=4.0), judged=True, score=6.0) == "judge"
    assert reason(candidate("en", GOOD["en"]), judged=True, score=6.0) == "judge"
    assert reason(candidate("en", GOOD["en"], score=6.0), judged=True, score=6.0) is None


@pytest.mark.parametrize(
    ("lang", "text"),
    [
        ("ko", "죄송하지만 그 요청에는 도움을 드릴 수 없습니다."),
        ("ja", "申し訳ありませんが、その質問にはお答えできません。"),
        ("ar", "آسف، لا أستطيع مساعدتك في ذلك."),
        ("zh-Hans", "抱歉，我无法回答这个问题。"),
        ("sw", "I'm sorry, but I can't help with that."),
        ("ru", "Извините, я не могу помочь с этим."),
    ],
)
def test_refusals_in_their_languages(lang: str, text: str) -> None:
    assert refusal(text, lang)


def test_what_is_no_refusal() -> None:
    letter = "늦어서 죄송하다는 말을 담은 편지입니다. " + GOOD["ko"] * 20
    assert refusal(letter, "ko") is None
    for lang, text in GOOD.items():
        assert refusal(text, lang) is None


def test_the_best_of_several_and_pairs() -> None:
    own = [
        candidate("ko", GOOD["ko"], sample=0, score=6.0),
        candidate("ko", GOOD["ko"] + " 여름에도 서늘합니다.", sample=1, score=9.0),
        candidate("ko", GOOD["en"], sample=2, score=8.0),
        candidate("th", GOOD["th"], sample=0, score=9.0),
        candidate("th", GOOD["th"] + " และทนทาน", sample=1, score=5.0),
        candidate("en", GOOD["en"], sample=0, score=8.0),
        candidate("en", GOOD["en"] + " It is heavy.", sample=1, score=8.0),
    ]
    sift(own, Rules(judged=True, score=5.0))
    assert [one.reason for one in own] == ["second", None, "language", None, "second", None, "second"]
    found = pairs(own, gap=2.0)
    assert [(pair.chosen.prompt.lang, pair.rejected.sample, pair.why) for pair in found] == [
        ("ko", 2, "language"),
        ("th", 1, "score"),
    ]
    assert counted(own)["ko"] == {"asked": 3, "kept": 1, "language": 1, "second": 1}
    assert set(REASONS) >= {one.reason for one in own if one.reason}


def test_answers_that_agree() -> None:
    other = "모르겠습니다. 아마 유리로 만든 병을 말씀하시는 것 같은데 자세한 내용은 잘 모릅니다."
    own = [candidate("ko", GOOD["ko"] + end, sample=n) for n, end in enumerate(("", " 무겁습니다."))]
    own.append(candidate("ko", other, sample=2))
    sift(own, Rules(agreement=0.3))
    assert own[2].reason == "agreement" and {own[0].reason, own[1].reason} == {None, "second"}
    for lang, text in GOOD.items():
        assert alike(text, text, lang) == 1 and alike(text, "zzz qqq", lang) == 0


def test_duplicates_and_evaluated_text() -> None:
    twice = GOOD["ko"] * 3
    own = [candidate("ko", twice, 1), candidate("ko", twice, 1, sample=0), candidate("th", GOOD["th"], 1)]
    own[1].prompt = Prompt("ko-9", "ko", own[0].prompt.turns, (None,))
    sift(own, Rules())
    assert [one.reason for one in own] == [None, "duplicate", None]
    exams = [Exam("시험", {"ko": [GOOD["ko"]], "th": ["อีกเรื่องหนึ่งที่ไม่เกี่ยวกันเลยแม้แต่น้อย"]})]
    index = Contamination(exams, Cleaning(), scales(["ko", "th"], {}))
    again = [candidate("ko", "답: " + GOOD["ko"]), candidate("th", GOOD["th"])]
    sift(again, Rules(), index)
    assert (again[0].reason, again[0].evidence) == ("contaminated", "시험 ko 1") and again[1].reason is None


def test_new_prompts() -> None:
    seeds = {
        lang: [Prompt(f"{lang}-{n}", lang, (f"{text} {n}",), (None,)) for n in range(4)]
        for lang, text in ASKED.items()
    }
    for lang, own in seeds.items():
        asked = prompting.asking(own, lang, 6, seed=1)
        assert asked == prompting.asking(own, lang, 6, seed=1) != prompting.asking(own, lang, 6, seed=2)
        assert len({prompt.turns for prompt in asked}) == 6 and all(ASKED[lang] in p.turns[0] for p in asked)
        assert [prompt.category for prompt in asked] == ["new", "evolved"] * 3
        assert "{" not in asked[0].turns[0]
        said = [
            GOOD[lang],
            f'"{GOOD[lang]}"',
            GOOD["en" if lang != "en" else "ko"],
            own[0].turns[0],
            "",
            GOOD[lang],
        ]
        ends = ["stop"] * 5 + ["length"]
        rows = {
            prompt.id: {"output": text, "finish": end}
            for prompt, text, end in zip(asked, said, ends, strict=True)
        }
        found = prompting.grown(own, asked, rows)
        # The second says what the first does, the third is in another language, the fourth is a seed.
        assert [(prompt.id, prompt.turns) for prompt in found] == [(asked[0].id, (GOOD[lang],))]
    assert prompting.asking(seeds["ko"][:1], "ko", 1, 0)  # one seed will do
