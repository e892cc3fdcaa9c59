"""Scores from sums: the measures by hand, the verdicts, and labels that mean nothing."""

import math

import numpy as np
import pytest

from onggi.evaluate.measure import Measured
from onggi.evaluate.summary import summarise

LANGUAGES = ("en", "ko", "km", "ar")


def results(
    count: int = 40, loss: float = 0.0, kls: tuple[float, float] = (0.3, 0.3), seed: int = 0
) -> dict[str, dict[str, Measured]]:
    """A reference and two variants in four languages; `loss` is added to the first's nats per passage."""
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, Measured]] = {}
    for language, tokens in zip(LANGUAGES, (50, 60, 170, 70), strict=True):
        lengths = rng.integers(tokens - 15, tokens + 15, count)
        nll = lengths * rng.lognormal(0.7, 0.2, count)
        agree = (lengths * 0.9).astype(int)
        found[language] = {"base": Measured(lengths.tolist(), nll.tolist())}
        for name, added, kl in (("a", loss, kls[0]), ("b", 0.0, kls[1])):
            noise = rng.normal(0, 0.01, count) * nll
            damage = lengths * kl * rng.lognormal(0, 0.4, count)
            found[language][name] = Measured(
                lengths.tolist(),
                (nll * (1 + added) + noise).tolist(),
                damage.tolist(),
                agree.tolist(),
                kl * 0.7,
                kl * 5,
            )
    return found


SIZES = {"en": [250] * 40, "ko": [300] * 40, "km": [700] * 40, "ar": [400] * 40}


def test_every_measure_by_hand() -> None:
    made = results()
    scores = summarise(made, SIZES, "base", 0.01, parallel=True)
    korean, entry = made["ko"]["a"], scores["models"]["a"]["languages"]["ko"]
    assert korean.kl is not None and korean.agree is not None
    tokens = sum(korean.tokens)
    assert entry["kl"]["value"] == pytest.approx(sum(korean.kl) / tokens)
    assert entry["kl_per_passage"]["value"] == pytest.approx(sum(korean.kl) / 40)
    assert entry["nll_per_passage"]["value"] == pytest.approx(sum(korean.nll) / 40)
    assert entry["bits_per_byte"]["value"] == pytest.approx(sum(korean.nll) / math.log(2) / 12_000)
    assert entry["top1_agreement"]["value"] == pytest.approx(sum(korean.agree) / tokens)
    assert entry["parity"]["value"] == pytest.approx(tokens / sum(made["en"]["a"].tokens))
    assert entry["kl"]["median"] == korean.kl_median and entry["kl"]["p99"] == korean.kl_p99
    for metric in entry.values():
        assert metric["low"] <= metric["value"] <= metric["high"]
        assert metric["n"] == 40 and metric["tokens"] == tokens
    assert "kl" not in scores["models"]["base"]["languages"]["ko"]
    assert "parity" not in scores["models"]["a"]["languages"]["en"]


def test_the_worst_language_depends_on_the_measure() -> None:
    """Khmer's passages have more tokens: its text suffers most even where its tokens do not."""
    made = results()
    for language in LANGUAGES:
        lengths = made[language]["a"].tokens
        each = 0.5 if language == "en" else 0.3
        made[language]["a"] = Measured(
            lengths, made[language]["a"].nll, [each * n for n in lengths], lengths, each, each
        )
    worst = summarise(made, SIZES, "base", 0.01, parallel=True)["models"]["a"]["worst"]
    assert worst == {"kl": "en", "kl_per_passage": "km"}


def test_a_planted_loss_is_found_and_no_loss_is_not() -> None:
    scores = summarise(results(loss=0.05), SIZES, "base", 0.01, parallel=True)["models"]
    for language in LANGUAGES:
        hurt = scores["a"]["languages"][language]["nll_per_passage"]
        assert hurt["verdict"] == "worse" and hurt["margin"] == 0.01
        assert hurt["relative_change"] == pytest.approx(0.05, abs=0.01)
        assert scores["b"]["languages"][language]["nll_per_passage"]["verdict"] in (
            "equivalent within 1%",
            "no significant difference",
        )


def test_variants_are_compared_by_the_change_of_kl() -> None:
    made = summarise(results(kls=(0.8, 0.2)), SIZES, "base", 0.01, parallel=True)["comparisons"]
    assert [(pair["first"], pair["second"]) for pair in made] == [("a", "b")]
    assert {entry["verdict"] for entry in made[0]["languages"].values()} == {"better"}
    same = summarise(results(kls=(0.3, 0.3)), SIZES, "base", 0.01, parallel=True)["comparisons"]
    assert "worse" not in {entry["verdict"] for entry in same[0]["languages"].values()}


def test_swapped_labels_are_told_apart_no_more_often_than_chance() -> None:
    """Two variants with labels swapped at random per passage, 1,000 times (DESIGN §4)."""
    from onggi.statistics import sign_flip

    made = results(kls=(0.8, 0.2))["km"]
    first, second = np.array(made["a"].kl), np.array(made["b"].kl)
    assert sign_flip(second - first) < 0.001
    rng = np.random.default_rng(1)
    signs = rng.choice([-1, 1], (1000, 40))
    found = sum(sign_flip(sign * (second - first), draws=999) <= 0.05 for sign in signs)
    assert 37 <= found <= 64


def test_one_passage_has_values_but_no_interval() -> None:
    made = {
        language: {
            name: Measured(m.tokens[:1], m.nll[:1], m.kl and m.kl[:1], m.agree and m.agree[:1], 0.1, 0.2)
            for name, m in by_model.items()
        }
        for language, by_model in results().items()
    }
    scores = summarise(made, {tag: sizes[:1] for tag, sizes in SIZES.items()}, "base", 0.01, parallel=True)
    entry = scores["models"]["a"]["languages"]["ko"]["kl"]
    assert entry["value"] > 0 and entry["low"] is None and entry["high"] is None
