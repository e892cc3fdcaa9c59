"""Means over the languages of a kind of script: the numbers by hand, paired, with what cannot be told left out."""

import json

import numpy as np
import pytest

from onggi.evaluate.measure import Measured
from onggi.evaluate.records import Items
from onggi.evaluate.scripts import by_script

LOSSES = {"en": 0.02, "de": 0.04, "ko": 0.10, "km": 0.20, "ar": 0.30}  # four scripts


def text(items: Items, losses: dict[str, float], count: int = 20) -> None:
    """A reference and a variant whose nats grow by about a share in each language, on passages alike in all."""
    rng = np.random.default_rng(0)
    hard = rng.lognormal(4, 0.5, count)
    measured, passages = {}, {}
    for tag, loss in losses.items():
        nats = hard * rng.lognormal(0, 0.1, count)
        after = nats * (1 + loss * rng.lognormal(0, 0.3, count))
        tokens = (hard / 2).astype(int).tolist()
        measured[tag] = {
            "base": Measured(tokens, nats.tolist()),
            "w4": Measured(tokens, after.tolist(), (after - nats).tolist(), tokens),
        }
        passages[tag] = {f"p{i}": "글 text ខ្មែរ" for i in range(count)}
    items.add_text(measured, passages, "probe")


def test_changes_of_a_text_are_means_of_each_languages_own() -> None:
    items = Items()
    text(items, LOSSES)
    found = by_script(items, "probe", "base")
    sums: dict[tuple[str, str, str], float] = {}
    for model, language, _, _, metric, value, _, _ in items.rows():
        sums[model, language, metric] = sums.get((model, language, metric), 0.0) + value
    change = {tag: sums["w4", tag, "nll"] / sums["base", tag, "nll"] - 1 for tag in LOSSES}
    own = found["relative_change"]["nll_per_passage"]["w4"]
    assert own["latin"]["value"] == pytest.approx((change["en"] + change["de"]) / 2)
    assert own["other"]["value"] == pytest.approx((change["ko"] + change["km"] + change["ar"]) / 3)
    assert own["gap"]["value"] == pytest.approx(own["other"]["value"] - own["latin"]["value"])
    for entry in own.values():
        assert 0 < entry["low"] < entry["value"] < entry["high"] and entry["n"] == 20
    assert own["other"]["languages"] == ["ko", "km", "ar"]
    assert set(found["mean"]) == {"kl", "top1_agreement"}
    assert found["mean"]["kl"]["w4"]["latin"]["low"] >= 0
    assert found["mean"]["top1_agreement"]["w4"]["other"]["value"] == 1
    assert not found["left_out"] and "base" not in found["mean"]["kl"]
    json.dumps(found, allow_nan=False)


def answered(value: float | None, item: str, prompt: str) -> dict[str, object]:
    values = {} if value is None else {"line": value, "loop": 1.0}
    return {"item": item, "_id": prompt, "tokens": 5, "values": values}


def test_tasks_answers_and_grades_and_what_cannot_be_told() -> None:
    items = Items()

    def rows(right: dict[str, list[int]]) -> dict[str, list[dict[str, object]]]:
        return {
            tag: [{"item": f"q{i}", "value": float(value), "tokens": 3} for i, value in enumerate(own)]
            for tag, own in right.items()
        }

    before = {"en": [1, 1, 1, 0], "ko": [1, 1, 0, 0], "km": [0, 0, 0, 0]}
    after = {"en": [1, 1, 0, 0], "ko": [1, 0, 0, 0], "km": [1, 0, 0, 0]}
    items.add_task("capitals", "acc", {"base": rows(before), "w4": rows(after)})
    for model, shares in {"base": (1.0, 1.0, 1.0), "w4": (1.0, 0.0, None)}.items():
        for tag in ("en", "ko"):
            for n, share in enumerate(shares):  # two turns of one prompt, and another prompt
                prompt = "a" if n < 2 else "b"
                items.add_answer(model, tag, answered(share, f"{prompt}#{n}", prompt))
                row = {"model": model, "lang": tag, "item": f"{prompt}#{n}", "_id": prompt, "tokens": 1}
                items.add_grade({**row, "score": None if share is None else 5 + 5 * share})
    found = by_script(items, None, "base")
    changes = found["relative_change"]
    assert set(changes) == {"capitals/acc", "prompts/line", "judge/score"}  # no share of loops
    assert changes["capitals/acc"]["w4"]["latin"]["value"] == pytest.approx(-1 / 3)
    # Khmer, in which the reference scores nothing, has no relative change.
    assert changes["capitals/acc"]["w4"]["other"]["languages"] == ["ko"]
    assert changes["capitals/acc"]["w4"]["other"]["value"] == pytest.approx(-1 / 2)
    assert found["left_out"] == {"capitals/acc": ["km"]}
    # The turn that one of them has no value of is left out; the turns of a prompt are one.
    line = changes["prompts/line"]["w4"]["other"]
    assert line["value"] == pytest.approx(-1 / 2) and (line["n"], line["low"]) == (1, None)
    assert changes["judge/score"]["w4"]["latin"]["value"] == pytest.approx(-1 / 4)


def test_one_kind_of_script_has_no_gap_and_a_reference_alone_nothing() -> None:
    items = Items()
    text(items, {"ko": 0.1, "th": 0.2})
    own = by_script(items, "probe", "base")["relative_change"]["nll_per_passage"]["w4"]
    assert set(own) == {"other"}
    assert by_script(items, "probe", "w9")["relative_change"] == {}
