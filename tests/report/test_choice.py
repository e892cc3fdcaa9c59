"""Which model to ship: the rule chooses by what was shown, and the sentence says no more than that."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from onggi.phrases import Phrases
from onggi.report import choice, compare, content, markdown
from scores_examples import (
    BALANCED,
    BASE,
    COMPARED,
    ENGLISH,
    RECORD,
    SERVED,
    W4,
    W8,
    asked,
    compared,
    entry,
    model,
    scores,
)

EN, KO = Phrases("en"), Phrases("ko")


def picks(whole: dict[str, Any]) -> dict[str, str | None]:
    return {tag: choice.choose(whole, tag).pick for tag in choice.languages(whole)}


def test_each_language_gets_its_own_model() -> None:
    whole = compared()
    assert picks(whole) == {"ko": W4, "en": W8, "km": BASE, "ar": SERVED}
    assert choice.choose(whole, "en").loss == W4
    khmer, arabic = choice.choose(whole, "km"), choice.choose(whole, "ar")
    assert khmer.smaller_worse and khmer.loss == W8  # the smaller loss, not the smaller model
    assert arabic.here and arabic.here.pick == W8


def test_words_for_the_matrix() -> None:
    whole = compared()
    words = {tag: [choice.word(whole, name, tag) for name in whole["models"]] for tag in COMPARED}
    assert words == {
        "ko": ["best", "unshown", "unshown", "damaged"],
        "en": ["best", "unshown", "damaged", "damaged"],
        "km": ["best", "damaged", "damaged", "damaged"],
        "ar": ["reference", "unshown", "damaged", "best"],
    }
    own = whole["models"][W4]["languages"]["ko"]
    for key in ("capitals/acc", "sums/acc", "judge/score", "nll_per_passage"):
        own[key]["verdict"] = "equivalent within 1%"
    del own["prompts/script"], own["prompts/line"]
    assert choice.word(whole, W4, "ko") == "same"
    own["sums/acc"]["verdict"] = "better"
    own["judge/score"]["verdict"] = "worse"
    assert choice.word(whole, W4, "ko") == "mixed"
    assert picks(whole)["ko"] == W8


def test_a_single_measure_that_shows_a_loss_is_enough() -> None:
    for key in ("nll_per_passage", "capitals/acc", "judge/score"):
        whole = compared()
        whole["models"][W4]["languages"]["ko"][key]["verdict"] = "worse"
        assert picks(whole)["ko"] == W8, key


def test_other_scripts_in_the_answers_count_where_intervals_do_not_touch() -> None:
    whole = compared()
    script = whole["models"][W4]["languages"]["ko"]["prompts/script"]
    script |= {"value": 0.86, "low": 0.82, "high": 0.92}  # 0.91 is the reference's low
    assert picks(whole)["ko"] == W4
    script["high"] = 0.90
    assert picks(whole)["ko"] == W8
    assert "another script in 14% of its answers (“base”: 5%)" in compare.sentence(whole, "ko", EN)


def test_better_goes_before_smaller_and_the_clearly_best_of_the_better() -> None:
    whole = compared()
    for name, number in ((W8, 0.75), (W4, 0.74)):
        whole["models"][name]["languages"]["ko"]["capitals/acc"] |= entry(number) | {"verdict": "better"}
    assert picks(whole)["ko"] == W4  # both better, neither clearly: the smaller one
    whole["models"][W8]["languages"]["ko"]["capitals/acc"] |= entry(0.9)
    assert picks(whole)["ko"] == W8
    assert choice.word(whole, W4, "ko") == "better" and choice.word(whole, W8, "ko") == "best"
    assert "better on capitals, no loss shown on 1 other" in compare.sentence(whole, "ko", EN)


def test_of_one_size_the_one_that_loses_less() -> None:
    whole = compared()
    whole["models"][W8]["bytes"] = whole["models"][W4]["bytes"] + 1000
    assert picks(whole)["ko"] == W8


def guessing(number: float) -> dict[str, Any]:
    """Base models that know nothing: tasks only, in three scripts."""
    whole = compared()
    whole |= {"text": None, "languages": []}
    del whole["judge"], whole["prompts"]
    for name, about in whole["models"].items():
        verdict = None if name == BASE else "worse"
        keys = ("capitals/acc", "sums/acc")
        about["languages"] = {tag: {key: asked(number, verdict) for key in keys} for tag in COMPARED}
        about["worst"] = {}
    return whole


def test_where_all_models_guess_nothing_is_decided() -> None:
    whole = guessing(0.29)
    assert set(picks(whole).values()) == {None}
    assert choice.choose(whole, "km").chance
    assert compare.sentence(whole, "km", EN) == (
        "In Khmer the evidence cannot decide: on every task, every model does no better than guessing."
    )
    assert "판단할 수 없습니다" in compare.sentence(whole, "km", KO)
    assert {choice.word(whole, name, "km") for name in whole["models"]} == {"reference", "unmeasured"}
    assert picks(guessing(0.33))["km"] == BASE  # shown to be above the 27% of one answer always


def test_nothing_to_set_against_the_reference() -> None:
    whole = scores({"other": model(None)})
    del whole["models"]["other"]["languages"]["ko"]
    assert choice.choose(whole, "ko") == choice.Choice("ko", None)
    assert compare.sentence(whole, "ko", EN).startswith("In Korean the evidence cannot decide: nothing")


def test_the_sentence_names_its_evidence() -> None:
    whole = compared()
    assert compare.sentence(whole, "ko", EN) == (
        "In Korean, ship “w4|작은”: 34% of the size of “base”, +0.6% nats for the same passage (no significant "
        "difference), no loss shown on 2 tasks (a loss under 8.1 points would not be seen), graded 6.5 against 6.5 "
        "(no significant difference), another script in 5% of its answers (“base”: 5%)."
    )
    assert compare.sentence(whole, "km", EN) == (
        "In Khmer, ship “base”: every smaller model is shown to be worse; of those, “w8” loses least (63% of the "
        "size, +3.1% nats for the same passage, no task shown to be worse)."
    )
    arabic = compare.sentence(whole, "ar", EN)
    assert arabic.startswith("In Arabic, ship “\u2068خادم <b>\u2069”: behind a server, better on capitals")
    assert "; of the models that run here, “w8” (63% of the size of “base”" in arabic
    assert compare.sentence(whole, "km", KO) == (
        "크메르어에 배포할 모델은 ‘base’입니다. 근거: 더 작은 모델은 모두 악화가 확인됨; 그중 손해가 가장 적은 것은 "
        "‘w8’(크기 63%, 같은 지문에 필요한 nat +3.1%, 악화가 확인된 과제 없음)."
    )


def test_old_scores_have_their_sentence() -> None:
    """As `evaluate` wrote them before there were engines, costs or judges: text and verdicts only."""
    whole = scores({"english": model(ENGLISH), "balanced": model(BALANCED)})
    whole["models"]["base"]["bytes"] = 536_000_000
    assert set(picks(whole).values()) == {"base"}
    assert "56% of the size, +4.0% nats" in compare.sentence(whole, "km", EN)


@pytest.mark.parametrize("say", [EN, KO])
def test_the_matrix_stands_at_the_top(say: Phrases) -> None:
    page = markdown.section(content.section(compared(), RECORD, "again", say))
    first = page.split("\n## ")[1]
    assert first.startswith(say("ship.title")) and compare.summary(compared(), say) in first.replace("\\", "")
    row = next(line for line in first.split("\n") if line.startswith(f"| {say.name('km')} (km)"))
    assert row.split(" | ")[1] == "base"
    assert f"**{say('ship.word_damaged')}**<br>+14.2% [+13.2, +15.2]<br>43% [39, 47]" in row
    for tag in COMPARED:
        assert markdown.section(compare.ship(compared(), say)).count(say.name(tag)) >= 2
    # The number of its weights, not of llama.cpp's arithmetic.
    assert "llama.cpp" in first and "w4|작은 (text)".replace(" ", "") in first.replace(" ", "")


def test_a_model_alone_has_nothing_to_choose_from() -> None:
    whole = copy.deepcopy(compared())
    whole["models"] = {BASE: whole["models"][BASE]}
    assert compare.ship(whole, EN) == []
