"""Are the intervals wide enough, the tests honest, the verdicts what the numbers say?

`python tests/test_statistics.py` prints the table of coverage that `interval`'s docstring quotes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy import optimize, special, stats

from onggi import statistics
from onggi.errors import OnggiError
from onggi.statistics import Interval, equivalence, holm, interval, paired_verdicts, sign_flip, verdict

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], tuple[Floats, Floats | None]]


def lognormal(sigma: float) -> tuple[Draw, float]:
    """A number per passage, as skewed as per-passage KL."""
    return lambda rng, n: (rng.lognormal(0, sigma, n), None), math.exp(sigma**2 / 2)


def gamma(shape: float) -> tuple[Draw, float]:
    return lambda rng, n: (rng.gamma(shape, 1, n), None), shape


def normal() -> tuple[Draw, float]:
    return lambda rng, n: (rng.normal(10, 2, n), None), 10.0


def lengths(rng: np.random.Generator, n: int) -> Floats:
    return np.round(100 * rng.lognormal(0, 0.5, n)) + 5


def per_token(sigma: float) -> tuple[Draw, float]:
    """Nats and tokens: lengths vary, and passages differ in their rate."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
        tokens = lengths(rng, n)
        return tokens * rng.lognormal(-(sigma**2) / 2, sigma, n), tokens

    return draw, 1.0


def agreements(share: float) -> tuple[Draw, float]:
    """Agreeing tokens and tokens, passages differing in their share."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
        tokens = lengths(rng, n)
        each = rng.beta(20 * share, 20 * (1 - share), n)
        return rng.binomial(tokens.astype(int), each).astype(np.float64), tokens

    return draw, share


def coverage(
    case: tuple[Draw, float],
    n: int,
    trials: int,
    method: Callable[[Floats, Floats | None], tuple[float, float]],
    seed: int = 1,
) -> tuple[float, float, float]:
    """Per cent of intervals that hold the truth, that lie above it, that lie below it."""
    draw, truth = case
    rng = np.random.default_rng(seed)
    limits = np.array([method(*draw(rng, n)) for _ in range(trials)])
    above, below = 100 * np.mean(limits[:, 0] > truth), 100 * np.mean(limits[:, 1] < truth)
    return float(100 - above - below), float(above), float(below)


def ours(draws: int = 4000) -> Callable[[Floats, Floats | None], tuple[float, float]]:
    def method(x: Floats, y: Floats | None) -> tuple[float, float]:
        found = interval(x, y, draws=draws)
        return found.low, found.high

    return method


CASES = {
    "normal": normal(),
    "gamma, shape 4": gamma(4),
    "gamma, shape 1": gamma(1),
    "lognormal, sigma 0.5": lognormal(0.5),
    "lognormal, sigma 0.75": lognormal(0.75),
    "lognormal, sigma 1": lognormal(1),
    "ratio, sigma 0.3": per_token(0.3),
    "ratio, sigma 0.5": per_token(0.5),
    "ratio, sigma 0.75": per_token(0.75),
    "ratio, sigma 1": per_token(1),
    "agreement, 80%": agreements(0.8),
    "agreement, 95%": agreements(0.95),
}


# --- intervals ---------------------------------------------------------------------------------


# The least is a standard error or two of 1,500 trials under the coverage in `interval`'s docstring, and
# more than Student's t reaches in seven of the eight and BCa in all.
@pytest.mark.parametrize(
    ("case", "n", "least"),
    [
        ("lognormal, sigma 0.5", 12, 93.0),
        ("lognormal, sigma 0.5", 40, 94.0),
        ("lognormal, sigma 0.75", 12, 92.0),
        ("lognormal, sigma 0.75", 40, 94.0),
        ("ratio, sigma 0.5", 12, 92.5),
        ("ratio, sigma 0.5", 40, 94.0),
        ("agreement, 95%", 12, 93.0),
        ("agreement, 95%", 40, 94.0),
    ],
)
def test_interval_holds_the_truth_about_95_times_in_100(case: str, n: int, least: float) -> None:
    held, _, _ = coverage(CASES[case], n, trials=1500, method=ours(draws=1000))
    assert least <= held <= 97


def test_coverage_follows_the_confidence_asked_for() -> None:
    def method(x: Floats, y: Floats | None) -> tuple[float, float]:
        found = interval(x, y, confidence=0.8, draws=500)
        return found.low, found.high

    held, _, _ = coverage(CASES["gamma, shape 4"], 40, trials=1500, method=method)
    assert 78 <= held <= 86


def test_interval_is_nowhere_narrower_than_student_and_little_wider() -> None:
    rng = np.random.default_rng(3)
    for n, most in ((3, math.inf), (12, 1.12), (40, 1.05)):
        widths = []
        for _ in range(100):
            x = rng.normal(10, 2, n)
            student = stats.t.interval(0.95, n - 1, x.mean(), stats.sem(x))
            found = interval(x, draws=1000)
            assert found.low <= student[0] + 1e-9 and found.high >= student[1] - 1e-9
            widths.append((found.high - found.low) / (student[1] - student[0]))
        assert 1 < np.mean(widths) < most


def test_skewed_data_reach_further_up_than_down() -> None:
    x = np.random.default_rng(5).lognormal(0, 1, 40)
    found = interval(x)
    assert found.high - found.value > 1.2 * (found.value - found.low)


def test_ratio_is_of_sums_and_its_error_the_jackknife_one() -> None:
    x, y = CASES["ratio, sigma 0.5"][0](np.random.default_rng(7), 400)
    assert y is not None
    found = interval(x, y)
    assert found.value == pytest.approx(x.sum() / y.sum())
    assert found.n == 400
    without = (x.sum() - x) / (y.sum() - y)
    error = math.sqrt(399 / 400 * np.sum((without - without.mean()) ** 2))
    assert (found.high - found.low) / 2 == pytest.approx(1.97 * error, rel=0.08)
    # Passages twice as long with the same rates: the same interval.
    assert interval(2 * x, 2 * y).high == pytest.approx(found.high)
    # And a denominator of one is the mean.
    assert interval(x, np.ones(400)) == interval(x)


def test_bootstrap_t_is_its_definition() -> None:
    """Passage by passage: the resample's ratio less the sample's, over the resample's own error."""
    x, y = CASES["ratio, sigma 0.5"][0](np.random.default_rng(7), 12)
    assert y is not None

    def estimate(a: Floats, b: Floats) -> tuple[float, float]:
        ratio = a.sum() / b.sum()
        return ratio, np.std(a - ratio * b, ddof=1) / math.sqrt(len(a)) / b.mean()

    value, error, t = statistics._studentised(x, y, 50, seed=0)
    assert (value, error) == pytest.approx(estimate(x, y))
    naive = []
    for picks in np.random.default_rng(0).integers(0, 12, (50, 12)):
        ratio, own = estimate(x[picks], y[picks])
        naive.append((ratio - value) / own)
    assert t.tolist() == pytest.approx(naive)


def test_interval_is_the_same_each_time_and_moves_with_the_seed() -> None:
    x = np.random.default_rng(1).lognormal(0, 1, 20)
    assert interval(x) == interval(x) == interval(x.tolist())
    assert interval(x).high != interval(x, seed=1).high


def test_blocks_do_not_change_what_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(1).lognormal(0, 1, 20)
    whole, p = interval(x), sign_flip(x - 1.4, exact_up_to=0)
    monkeypatch.setattr(statistics, "_BLOCK", 1000)
    pieces = interval(x)
    assert pieces.low == pytest.approx(whole.low, rel=0.05)
    assert pieces.high == pytest.approx(whole.high, rel=0.05)
    assert sign_flip(x - 1.4, exact_up_to=0) == pytest.approx(p, abs=0.03)
    assert list(statistics._blocks(120, 20)) == [50, 50, 20]


def test_bounds_cut_the_limits_and_never_the_value() -> None:
    x, y = [9.0, 10.0, 8.0], [10.0, 10.0, 10.0]
    assert interval(x, y).high > 1
    assert interval(x, y, bounds=(0, 1)).high == 1
    assert interval([0.1, 0.0, 3.0]).low < 0
    assert interval([0.1, 0.0, 3.0], bounds=(0, math.inf)).low == 0
    found = interval([-1e-9, -2e-9], bounds=(0, math.inf))
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize("values", [[0.0] * 12, [0.1] * 7, [0.1, 0.1]])
def test_passages_that_agree_have_an_interval_of_no_width(values: list[float]) -> None:
    found = interval(values)
    assert found.low == found.high == found.value == pytest.approx(values[0])
    assert interval([3.0, 6.0, 30.0], [1.0, 2.0, 10.0]) == Interval(3.0, 3.0, 3.0, 3)


def test_few_passages() -> None:
    one = interval([2.5])
    assert one.value == 2.5 and one.n == 1 and math.isnan(one.low) and math.isnan(one.high)
    two = interval([1.0, 2.0])
    student = stats.t.interval(0.95, 1, 1.5, 0.5)
    assert (two.low, two.high) == pytest.approx(student)
    assert interval([1.0, 2.0], draws=1, seed=0).high == pytest.approx(student[1])
    # Many resamples of one odd passage among many equal ones have no variation of their own.
    odd = interval([1.0] * 11 + [0.9])
    assert math.isfinite(odd.low) and odd.low < odd.value < odd.high


@pytest.mark.parametrize(
    ("values", "denominators", "says"),
    [
        ([], None, "at least one"),
        ([[1.0, 2.0]], None, "shape"),
        ([1.0, math.nan], None, "number 1"),
        ([1.0, math.inf], None, "not finite"),
        ([1.0, 2.0], [1.0], "2 values but 1 denominators"),
        ([1.0, 2.0], [1.0, 0.0], "positive"),
        ([1.0, 2.0], [1.0, math.nan], "denominators"),
    ],
)
def test_what_is_not_a_number_per_passage_is_refused(
    values: list[float], denominators: list[float], says: str
) -> None:
    with pytest.raises(OnggiError, match=says):
        interval(values, denominators)


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(OnggiError, match="confidence"):
        interval([1.0, 2.0], confidence=95)
    with pytest.raises(OnggiError, match="draws"):
        interval([1.0, 2.0], draws=0)


# --- sign flips --------------------------------------------------------------------------------


def variants(n: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Nats per passage of two quantised variants: most of it shared, the damage skewed."""
    rng = np.random.default_rng(seed)
    reference = rng.lognormal(5, 0.4, n)
    return reference + rng.lognormal(1, 0.8, n), reference + rng.lognormal(1, 0.8, n)


def swapped(a: Floats, b: Floats, rng: np.random.Generator) -> Floats:
    swap = rng.random(len(a)) < 0.5
    return np.where(swap, b - a, a - b)


def test_swapped_labels_are_told_apart_one_time_in_twenty() -> None:
    rng = np.random.default_rng(11)
    a, b = variants(40)
    told = [sign_flip(swapped(a, b, rng), draws=1999, seed=k) <= 0.05 for k in range(1000)]
    assert 0.037 <= np.mean(told) <= 0.064


def test_swapped_labels_are_told_apart_no_more_often_when_exact() -> None:
    rng = np.random.default_rng(12)
    a, b = variants(12)
    told = [sign_flip(swapped(a, b, rng)) <= 0.05 for _ in range(1000)]
    assert 0.03 <= np.mean(told) <= 0.064


@pytest.mark.parametrize("n", [12, 40])
def test_a_planted_loss_is_found(n: int) -> None:
    a, b = variants(n)
    loss = 0.03 * b  # 3% of the nats: more than the noise between the variants
    found = paired_verdicts({"ko": a + loss - b}, {"ko": 0.001})["ko"]
    assert found.p <= 0.05 and found.verdict == "worse"
    assert paired_verdicts({"ko": b - loss - a}, {"ko": 0.001})["ko"].verdict == "better"


def test_exact_is_every_sign() -> None:
    d = np.array([1.0, 2.0, -0.5, 4.0, 3.0])
    sums = [abs(np.dot(s, d)) for s in itertools.product([1, -1], repeat=5)]
    assert sign_flip(d) == np.mean([s >= abs(d.sum()) - 1e-9 for s in sums])
    assert sign_flip([1.0, 2.0, 3.0]) == 0.25  # only + + + and - - - reach 6
    assert sign_flip(-d) == sign_flip(d)


def test_exact_counts_ties_that_rounding_parts() -> None:
    # 0.1 + 0.2 - 0.3 is 5e-17, not 0: all 8 assignments reach a sum of 0.
    assert sign_flip([0.1, 0.2, -0.3]) == 1.0
    # Of the sums of four equal numbers 2 of 16 reach 0.4, whatever the order of adding.
    assert sign_flip([0.1] * 4) == 0.125


def test_monte_carlo_agrees_with_exact() -> None:
    for seed in range(5):
        d = np.random.default_rng(seed).normal(0.4, 1, 12)
        exact = sign_flip(d)
        sampled = sign_flip(d, draws=20_000, exact_up_to=0)
        assert sampled == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def test_sign_flip_at_the_edges() -> None:
    assert sign_flip([3.0]) == 1.0
    assert sign_flip([0.0] * 5) == 1.0
    assert sign_flip([0.0] * 50, draws=99) == 1.0
    # 2**40 assignments, so none of the draws reaches it; the observed one still counts.
    assert sign_flip(np.arange(1.0, 41.0), draws=999) == 1 / 1000
    with pytest.raises(OnggiError, match="not finite"):
        sign_flip([1.0, math.nan])


# --- equivalence -------------------------------------------------------------------------------


def test_small_noise_is_equivalent_and_wide_noise_is_not() -> None:
    rng = np.random.default_rng(2)
    assert equivalence(rng.normal(0, 0.1, 40), 1.0) < 0.001
    assert equivalence(rng.normal(0, 10, 40), 1.0) > 0.05
    assert equivalence(rng.normal(3, 0.1, 40), 1.0) > 0.99
    assert equivalence(rng.normal(-3, 0.1, 40), 1.0) > 0.99


def test_equivalence_is_the_larger_side_and_no_smaller_than_student() -> None:
    rng = np.random.default_rng(4)
    for n in (2, 5, 40):
        d = rng.normal(0.1, 1, n)
        below = stats.ttest_1samp(d, 0.6, alternative="less").pvalue
        above = stats.ttest_1samp(d, -0.6, alternative="greater").pvalue
        p = equivalence(d, 0.6)
        assert p >= max(below, above) - 1e-12
        assert p == pytest.approx(max(below, above), abs=0.03)
        assert equivalence(-d, 0.6) == pytest.approx(p, abs=0.02)


def test_equivalence_agrees_with_the_90_per_cent_interval() -> None:
    d = np.random.default_rng(6).lognormal(0, 1, 12) - 1.3
    found = interval(d, confidence=0.9)
    edge = max(abs(found.low), abs(found.high))
    for sign in (1, -1):
        assert equivalence(sign * d, 1.02 * edge) < 0.05 < equivalence(sign * d, 0.98 * edge)


@pytest.mark.parametrize(("n", "sigma", "most"), [(12, 0.5, 0.1), (12, 0.75, 0.13), (40, 0.75, 0.09)])
def test_equivalence_of_skewed_damage_is_claimed_less_often_than_by_student(
    n: int, sigma: float, most: float
) -> None:
    """The truth lies on the margin, so claiming equivalence (at 5%) is always wrong."""
    rng = np.random.default_rng(8)
    truth = math.exp(sigma**2 / 2)
    samples = rng.lognormal(0, sigma, (500, n))
    claimed = np.mean([equivalence(d, truth, draws=1000) <= 0.05 for d in samples])
    student = np.mean([stats.ttest_1samp(d, truth, alternative="less").pvalue <= 0.05 for d in samples])
    assert 0.02 < claimed < most
    assert claimed < student - 0.015


def test_equivalence_at_the_edges() -> None:
    assert equivalence([0.0] * 5, 0.1) == 0.0
    assert equivalence([0.1] * 5, 0.2) == 0.0
    assert equivalence([0.2] * 5, 0.1) == 1.0
    assert math.isnan(equivalence([0.0], 0.1))
    for margin in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(OnggiError, match="margin"):
            equivalence([0.0, 1.0], margin)
    with pytest.raises(OnggiError, match="not finite"):
        equivalence([math.nan, 1.0], 1.0)


# --- Holm --------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    # sorted .005 .01 .03 .04, times 4 3 2 1 = .02 .03 .06 .04, and no later one smaller than an earlier
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_by_its_definition() -> None:
    """An adjusted p-value is the smallest level at which Holm's step-down procedure still rejects."""

    def rejected(p: Floats, alpha: float) -> set[int]:
        out: set[int] = set()
        for k, i in enumerate(np.argsort(p)):
            if p[i] > alpha / (len(p) - k):
                break
            out.add(int(i))
        return out

    rng = np.random.default_rng(9)
    for _ in range(20):
        p = rng.random(8) ** 3
        adjusted = holm(p)
        for alpha in rng.random(20):
            assert rejected(p, alpha) == set(np.flatnonzero(adjusted <= alpha))


def test_holm_at_the_edges() -> None:
    assert holm([]).tolist() == []
    assert holm([0.03]).tolist() == [0.03]
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    # A nan is no test: the other two are corrected as two.
    assert holm([0.01, math.nan, 0.2]).tolist() == pytest.approx([0.02, math.nan, 0.2], nan_ok=True)
    with pytest.raises(OnggiError, match="between 0 and 1"):
        holm([0.1, 1.5])


# --- verdicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("different", "equivalent", "mean", "says"),
    [
        (0.01, 0.9, 2.0, "worse"),
        (0.01, 0.9, -2.0, "better"),
        (0.4, 0.4, 2.0, "no significant difference"),
        (0.4, 0.01, 0.2, "equivalent within 1.5"),
        (0.01, 0.01, 0.2, "equivalent within 1.5"),  # surely not zero, and surely too small to matter
        (0.01, 0.01, -0.2, "equivalent within 1.5"),
        (math.nan, math.nan, 2.0, "no significant difference"),
        (0.01, math.nan, 2.0, "worse"),
    ],
)
def test_verdict(different: float, equivalent: float, mean: float, says: str) -> None:
    assert verdict(different, equivalent, mean, 1.5) == says


def test_verdict_follows_alpha_and_names_the_margin_as_given() -> None:
    assert verdict(0.03, 0.9, 1.0, 1.5, alpha=0.01) == "no significant difference"
    assert verdict(0.9, 0.03, 1.0, 1.5, alpha=0.01) == "no significant difference"
    assert verdict(0.9, 0.01, 1.0, 1.5, within="1%") == "equivalent within 1%"


def test_verdicts_of_several_languages_at_once() -> None:
    rng = np.random.default_rng(13)
    differences = {
        "km": rng.lognormal(2, 0.5, 40),
        "en": rng.normal(0, 0.05, 40),
        "ko": rng.normal(0, 20, 40),
        "el": -rng.lognormal(2, 0.5, 40),
    }
    margins = dict.fromkeys(differences, 1.0)
    found = paired_verdicts(differences, margins, within="1%")
    assert {name: v.verdict for name, v in found.items()} == {
        "km": "worse",
        "en": "equivalent within 1%",
        "ko": "no significant difference",
        "el": "better",
    }
    assert list(found) == list(differences)
    assert [v.p for v in found.values()] == holm([sign_flip(d) for d in differences.values()]).tolist()
    alone = [equivalence(d, 1.0, draws=9999) for d in differences.values()]
    assert [v.p_equivalent for v in found.values()] == holm(alone).tolist()
    km = found["km"]
    assert km.difference == pytest.approx(differences["km"].mean()) and km.low < km.difference < km.high
    assert km.margin == 1.0 and km.n == 40


def test_correction_takes_back_what_one_language_alone_would_claim() -> None:
    rng = np.random.default_rng(14)
    noise = {f"x{k}": rng.normal(0, 1, 12) for k in range(11)}
    faint = np.array([0.9, 1.1, 0.2, -0.4, 1.5, 0.8, -0.1, 1.2, 0.3, 0.6, -0.7, 1.0])
    alone = paired_verdicts({"ko": faint}, {"ko": 0.1})["ko"]
    among = paired_verdicts({"ko": faint, **noise}, dict.fromkeys(["ko", *noise], 0.1))["ko"]
    assert alone.verdict == "worse" and among.verdict == "no significant difference"
    assert (among.low, among.high) == (alone.low, alone.high)


def test_identical_models_one_passage_and_no_languages() -> None:
    same = paired_verdicts({"en": [0.0] * 12}, {"en": 0.5})["en"]
    assert (same.verdict, same.p, same.p_equivalent) == ("equivalent within 0.5", 1.0, 0.0)
    one = paired_verdicts({"en": [9.0]}, {"en": 0.5})["en"]
    assert one.verdict == "no significant difference" and math.isnan(one.low)
    assert paired_verdicts({}, {}) == {}


def test_an_error_names_the_language() -> None:
    with pytest.raises(OnggiError, match="ko: there is no margin"):
        paired_verdicts({"ko": [1.0, 2.0]}, {"en": 1.0})
    with pytest.raises(OnggiError, match=r"ko: .*not finite"):
        paired_verdicts({"en": [1.0, 2.0], "ko": [1.0, math.nan]}, {"en": 1.0, "ko": 1.0})


# --- right and wrong ---------------------------------------------------------------------------


def test_mcnemar_is_the_binomial_test_of_the_flips() -> None:
    for lost, won in itertools.product(range(13), repeat=2):
        expected = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
        assert statistics.mcnemar(lost, won) == pytest.approx(expected)
    # The example of Agresti's approval ratings (Categorical Data Analysis, table 10.1): 150 and 86 flips.
    assert statistics.mcnemar(150, 86) == pytest.approx(3.7e-5, rel=0.01)
    with pytest.raises(OnggiError, match="below 0"):
        statistics.mcnemar(-1, 3)


def test_flips_are_counted_both_ways() -> None:
    before = [True] * 10 + [False] * 6
    after = [False] * 7 + [True] * 3 + [True] + [False] * 5
    found = statistics.flips(before, after)
    assert (found.right_to_wrong, found.wrong_to_right, found.n) == (7, 1, 16)
    assert found.p == pytest.approx(stats.binomtest(1, 8).pvalue)
    for wrong in (after[:-1], []):
        with pytest.raises(OnggiError, match="same items"):
            statistics.flips(before, wrong)


@pytest.mark.parametrize(("n", "discordance"), [(42, 0.2), (200, 0.08), (1000, 0.05)])
def test_a_loss_that_can_just_be_seen_is_seen_four_times_in_five(n: int, discordance: float) -> None:
    loss = statistics.minimum_detectable_loss(n, discordance)
    assert loss is not None
    rng = np.random.default_rng(0)
    shares = [(discordance + loss) / 2, (discordance - loss) / 2, 1 - discordance]
    drawn = rng.multinomial(n, shares, 4000)
    found = np.mean([lost > won and statistics.mcnemar(lost, won) <= 0.05 for lost, won, _ in drawn])
    assert found == pytest.approx(0.8, abs=0.02)
    # The textbook formula is near (Connor 1987), and never needs more.
    a, b = stats.norm.ppf([0.975, 0.8])
    needed = (a * math.sqrt(discordance) + b * math.sqrt(discordance - loss**2)) ** 2 / loss**2
    assert 0.9 * n < needed <= n


def test_what_so_many_items_cannot_show() -> None:
    # Two hundred items, hardly any flips: at least six must go one way, and do so four times in five.
    few = statistics.minimum_detectable_loss(200, 0.0)
    assert few == pytest.approx(0.0392, abs=1e-4)
    assert stats.binom.sf(5, 200, few) == pytest.approx(0.8, abs=1e-3)
    assert statistics.minimum_detectable_loss(5, 0.5) is None  # 2 * 0.5**5 is more than 5%
    assert statistics.minimum_detectable_loss(6, 0.5) is not None
    losses = [statistics.minimum_detectable_loss(n, 0.1) for n in (50, 200, 800, 10_000)]
    assert losses == sorted(losses, reverse=True)
    with pytest.raises(OnggiError, match="discordance"):
        statistics.minimum_detectable_loss(100, 1.5)
    with pytest.raises(OnggiError, match="n is 0"):
        statistics.minimum_detectable_loss(0, 0.5)


def test_agreement_is_cohens() -> None:
    # Two readers of 50 grant proposals: 20 both yes, 15 both no, 5 and 10 apart: kappa is 0.4.
    first = ["예"] * 25 + ["아니요"] * 25
    second = ["예"] * 20 + ["아니요"] * 5 + ["예"] * 10 + ["아니요"] * 15
    found = statistics.agreement(first, second)
    assert (found.share, found.n) == (0.7, 50) and found.kappa == pytest.approx(0.4)
    assert statistics.agreement(["a", "b"], ["a", "b"]).kappa == 1
    assert statistics.agreement(["a", "b"], ["b", "a"]).kappa == -1
    assert math.isnan(statistics.agreement(["a", "a"], ["a", "a"]).kappa)
    for wrong in ([], ["a"]):
        with pytest.raises(OnggiError, match="two labels"):
            statistics.agreement(["a", "b"] if wrong else [], wrong)


# --- ratings -----------------------------------------------------------------------------------

Game = tuple[str, str, float]


def test_two_models_are_rated_by_hand() -> None:
    """Firth's half game to each: log((wins + 0.5) / (losses + 0.5)), ties as half wins."""
    games: list[Game] = [("a", "b", 1.0)] * 7 + [("b", "a", 1.0)] * 2 + [("a", "b", 0.5)] * 2
    found = statistics.bradley_terry(games, reference="b")
    assert found["a"].value == pytest.approx(math.log(8.5 / 3.5))
    assert found["b"] == Interval(0, 0, 0, 11) and found["a"].n == 11
    assert list(found) == ["a", "b"]


def test_ratings_are_the_likeliest_where_there_are_many_games() -> None:
    """Against a general optimiser on the plain likelihood, which the added games no longer move."""
    rng = np.random.default_rng(0)
    true = {"큰 모델": 1.0, "small": 0.0, "β": -0.7}
    games: list[Game] = []
    for one, other in itertools.combinations(true, 2):
        p = 1 / (1 + math.exp(true[other] - true[one]))
        games += [(one, other, float(s)) for s in rng.random(4000) < p]
    found = statistics.bradley_terry(games, reference="small")

    def surprise(x: Floats) -> float:
        at = {"큰 모델": x[0], "small": 0.0, "β": x[1]}
        return sum(math.log1p(math.exp((at[b] - at[a]) * (2 * s - 1))) for a, b, s in games)

    best = optimize.minimize(surprise, np.zeros(2), method="BFGS").x
    assert [found["큰 모델"].value, found["β"].value] == pytest.approx(best.tolist(), abs=2e-3)


def test_the_order_of_names_and_games_changes_nothing() -> None:
    games: list[Game] = [("a", "b", 1), ("b", "c", 1), ("c", "a", 0.5), ("a", "b", 0), ("c", "b", 0.5)]
    turned: list[Game] = [(b, a, 1 - s) for a, b, s in reversed(games)]
    one, other = statistics.bradley_terry(games), statistics.bradley_terry(turned)
    assert sum(i.value for i in one.values()) == pytest.approx(0, abs=1e-9)
    for name, found in one.items():
        assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(other[name]))


def test_a_perfect_winner_is_rated_and_uncertain() -> None:
    games: list[Game] = [("a", "b", 1.0)] * 10 + [("b", "c", 1.0)] * 10
    found = statistics.bradley_terry(games)
    assert list(found) == ["a", "b", "c"]
    assert found["a"].value == pytest.approx(math.log(10.5 / 0.5))
    assert all(math.isfinite(i.low) and i.high - i.low > 1 for i in found.values())
    more = statistics.bradley_terry(games * 4)
    assert more["a"].value > found["a"].value


def test_models_that_never_met_are_not_rated_together() -> None:
    games: list[Game] = [("가", "나", 1.0), ("x", "y", 0.0)]
    with pytest.raises(OnggiError, match="가, 나 and x, y were never compared"):
        statistics.bradley_terry(games)
    assert len(statistics.bradley_terry([*games, ("나", "y", 0.5)])) == 4
    for wrong, message in (
        ([], "no comparisons"),
        ([("a", "a", 1.0)], "two models"),
        ([("a", "b", 0.7)], "0, 0.5 or 1"),
    ):
        with pytest.raises(OnggiError, match=message):
            statistics.bradley_terry(wrong)
    with pytest.raises(OnggiError, match="z: was compared with no model"):
        statistics.bradley_terry(games[:1], reference="z")
    with pytest.raises(OnggiError, match="1 comparisons but 2 items"):
        statistics.bradley_terry(games[:1], ["q1", "q2"])


def test_intervals_of_ratings_hold_the_truth_where_games_of_an_item_hang_together() -> None:
    """Three models, 42 questions of two turns, ties; a question favours a model in both of its turns.

    Without `items` the same intervals would hold it far less often.
    """
    rng = np.random.default_rng(0)
    names, true = ("a", "b", "c"), np.array([0.0, 0.6, 1.2])
    held, alone, trials = 0, 0, 200
    # What the ratings estimate is the expected score over questions, a little flatter than `true`.
    shifts = rng.normal(0, 1.0, (20_000, 2))
    target = [special.logit(np.mean(special.expit(t + shifts @ [1, -1]))) for t in true[1:]]
    for _ in range(trials):
        games: list[Game] = []
        items = []
        for question in range(42):
            favour = rng.normal(0, 1.0, 3)
            for (i, one), (j, other) in itertools.combinations(enumerate(names), 2):
                p = special.expit(true[i] + favour[i] - true[j] - favour[j])
                for _ in range(2):
                    tie = 0.4 * min(p, 1 - p)
                    draw = rng.random()
                    games.append((one, other, 0.5 if draw < tie else float(draw < tie / 2 + p)))
                    items.append(question)
        found = statistics.bradley_terry(games, items, reference="a")
        single = statistics.bradley_terry(games, reference="a")
        held += sum(found[n].low <= t <= found[n].high for n, t in zip("bc", target, strict=True))
        alone += sum(single[n].low <= t <= single[n].high for n, t in zip("bc", target, strict=True))
    assert 0.92 <= held / (2 * trials) <= 0.985
    assert alone < held - 10


# --- the table of coverage, for the docstring --------------------------------------------------


def student_t(x: Floats, y: Floats | None) -> tuple[float, float]:
    y = np.ones_like(x) if y is None else y
    value, n = x.sum() / y.sum(), len(x)
    error = math.sqrt(np.sum((x - value * y) ** 2) / (n - 1) * n) / y.sum()
    reach = stats.t.ppf(0.975, n - 1) * error
    return value - reach, value + reach


def bca(x: Floats, y: Floats | None) -> tuple[float, float]:
    def ratio(a: Floats, b: Floats, axis: int = -1) -> Floats:
        return np.asarray(a.sum(axis) / b.sum(axis))

    data = (x, np.ones_like(x) if y is None else y)
    found = stats.bootstrap(
        data, ratio, paired=True, n_resamples=4000, method="BCa", rng=0
    ).confidence_interval
    return float(found.low), float(found.high)


def bootstrap_t(x: Floats, y: Floats | None) -> tuple[float, float]:
    value, error, t = statistics._studentised(x, np.ones_like(x) if y is None else y, 4000, 0)
    near, far = np.quantile(t, [0.025, 0.975])
    return value - far * error, value - near * error


def main(trials: int = 2000) -> None:
    methods = {"interval": ours(), "bootstrap-t": bootstrap_t, "Student's t": student_t, "BCa": bca}
    print("Coverage, % (% of intervals wholly above the truth / wholly below it)")
    for n in (12, 40):
        print(f"\n{n} passages".ljust(24), *(name.rjust(18) for name in methods))
        for case, definition in CASES.items():
            found = [coverage(definition, n, trials, method, seed=2) for method in methods.values()]
            cells = (f"{held:.1f} ({above:.1f}/{below:.1f})".rjust(18) for held, above, below in found)
            print(case.ljust(23), *cells, flush=True)
    for n, shared in ((12, True), (40, True), (12, False), (40, False)):
        found_of_means = coverage_of_means(n, shared, trials, draws=4000)
        print(
            f"mean of five ratios, {n} passages, {'shared' if shared else 'each its own'}: {found_of_means:.1f}"
        )


RATES = np.array([0.01, 0.02, 0.05, 0.08, 0.14])  # what five languages lose of their nats


def languages(rng: np.random.Generator, n: int, shared: bool) -> tuple[Floats, Floats]:
    """Losses and nats (languages, passages): a passage that is hard, or suffers, does so in all languages. Not
    shared: each language has passages of its own, and 0 for the others'.
    """
    common = n if shared else (5, n)
    hard = rng.lognormal(0, 0.4, common) * rng.lognormal(0, 0.2, (5, n))
    suffers = 0.75 * (0.5**0.5 * rng.normal(size=common) + 0.5**0.5 * rng.normal(size=(5, n)))
    losses = hard * RATES[:, None] * np.exp(suffers - 0.75**2 / 2)
    return (losses, hard) if shared else (apart(losses), apart(hard))


def apart(values: Floats) -> Floats:
    """(groups, items) with items of each group's own: (groups, groups × items)."""
    return np.tile(values, len(values)) * np.kron(np.eye(len(values)), np.ones(values.shape[1]))


def coverage_of_means(n: int, shared: bool, trials: int, draws: int = 1000) -> float:
    rng, held = np.random.default_rng(3), 0
    for trial in range(trials):
        found = statistics.mean_ratio(*languages(rng, n, shared), draws=draws, seed=trial)
        held += found.low <= RATES.mean() <= found.high
    return 100 * held / trials


@pytest.mark.parametrize(("n", "shared", "least"), [(12, True, 90), (40, True, 93), (12, False, 90)])
def test_a_mean_of_ratios_over_languages_holds_the_truth(n: int, shared: bool, least: float) -> None:
    assert least <= coverage_of_means(n, shared, trials=400, draws=400) <= 98.5


def test_one_group_is_an_interval_and_a_difference_is_seen() -> None:
    losses, nats = languages(np.random.default_rng(0), 12, shared=True)
    one, alone = statistics.mean_ratio(losses[:1], nats[:1]), interval(losses[0], nats[0])
    assert [one.value, one.low, one.high] == pytest.approx([alone.value, alone.low, alone.high])
    halves = [-0.5, -0.5, 1 / 3, 1 / 3, 1 / 3]
    gap = statistics.mean_ratio(losses, nats, halves)
    ratios = losses.sum(axis=1) / nats.sum(axis=1)
    assert gap.value == pytest.approx(ratios[2:].mean() - ratios[:2].mean()) and gap.low > 0 and gap.n == 12
    # Drawn together, what a passage does to all languages cancels.
    suffers = 0.1 * np.random.default_rng(1).lognormal(0, 0.75, 12)
    close, loose = (
        statistics.mean_ratio(x, y, halves)
        for x, y in ((suffers * nats, nats), (apart(suffers * nats), apart(nats)))
    )
    assert loose.value == pytest.approx(close.value)
    assert close.high - close.low < 0.5 * (loose.high - loose.low)
    same = statistics.mean_ratio(0.1 * nats, nats)
    assert (same.low, same.value, same.high) == pytest.approx((0.1, 0.1, 0.1))
    assert math.isnan(statistics.mean_ratio([[1.0], [2.0]], [[3.0], [4.0]]).low)


def test_a_mean_of_ratios_refuses_what_has_none() -> None:
    for values, denominators in ([[1.0]], [[0.0]]), ([[1.0, 2.0]], [[1.0]]), ([[math.nan]], [[1.0]]):
        with pytest.raises(OnggiError):
            statistics.mean_ratio(values, denominators)
    with pytest.raises(OnggiError, match="2 weights"):
        statistics.mean_ratio([[1.0]], [[1.0]], [0.5, 0.5])


def test_collapse_tells_a_few_ruined_passages_from_damage_everywhere() -> None:
    even = statistics.collapse([0.1] * 40, threshold=0.5)
    few = statistics.collapse([0.0] * 38 + [2.0, 2.0], threshold=0.5)
    assert even.carried == pytest.approx(0.1) and even.above == 0 and even.n == 40
    assert few.carried == 1 and few.above == 0.05
    assert few.worst == 0.1 and few.threshold == 0.5


def test_collapse_counts_parts_of_passages_and_no_gains() -> None:
    # The worst 10% of 12 are one passage and a fifth of the next.
    assert statistics.collapse([1.0] * 12).carried == pytest.approx(0.1)
    assert statistics.collapse([6.0, 2.0] + [0.2] * 10).carried == pytest.approx((6 + 0.2 * 2) / 10)
    assert statistics.collapse([3.0, 1.0, -50.0, 0.0], worst=0.25).carried == pytest.approx(0.75)
    assert math.isnan(statistics.collapse([-1.0, 0.0]).carried)
    assert statistics.collapse([1.0]).above is None


@pytest.mark.parametrize(("values", "worst"), [([], 0.1), ([math.nan], 0.1), ([1.0], 0.0), ([1.0], 1.0)])
def test_collapse_refuses_what_is_no_sample(values: list[float], worst: float) -> None:
    with pytest.raises(OnggiError):
        statistics.collapse(values, worst=worst)


if __name__ == "__main__":
    main()


# ── agreement of many raters, and what pairs can show ───────────────────────────────────────────

# Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, §C and §D: four observers, twelve units, gaps (0).
OBSERVED = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3),
    (0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0),
)
UNITS = [[value for value in unit if value] for unit in zip(*OBSERVED, strict=True)]


@pytest.mark.parametrize(("metric", "alpha"), [("nominal", 0.743), ("interval", 0.849)])
def test_krippendorffs_own_example(metric: str, alpha: float) -> None:
    found = statistics.krippendorff(UNITS, metric)  # type: ignore[arg-type]
    assert round(found.value, 3) == alpha and found.n == 11  # the last unit has one value
    assert found.low < found.value < found.high <= 1


def test_alpha_at_its_ends() -> None:
    assert statistics.krippendorff([[1, 1], [0, 0], [1, 1, 1]]).value == 1
    opposite = statistics.krippendorff([[0, 1]] * 40, "interval")
    assert opposite.value < -0.9
    rng = np.random.default_rng(0)
    chance = statistics.krippendorff(rng.integers(0, 3, (400, 3)).tolist())
    assert chance.low < 0 < chance.high and chance.high - chance.low < 0.2
    for nothing in ([], [[1]], [[1, 1], [1, 1]]):
        assert math.isnan(statistics.krippendorff(nothing).value)


def test_alphas_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Two raters of a fair coin who agree with probability 0.8: alpha is 0.6."""
    rng, held = np.random.default_rng(1), 0
    for trial in range(200):
        first = rng.integers(0, 2, 60)
        second = np.where(rng.random(60) < 0.8, first, 1 - first)
        found = statistics.krippendorff(np.stack([first, second], 1).tolist(), draws=400, seed=trial)
        held += found.low <= 0.6 <= found.high
    assert 178 <= held <= 199


def test_what_pairs_can_show() -> None:
    one, three = statistics.detectable_preference(120), statistics.detectable_preference(120, tests=3)
    assert one.seen is not None and three.seen is not None and three.found is not None
    # By the binomial: 72 of 120 have p = 0.035, 71 have 0.055; with three languages it takes 74.
    assert (round(one.seen * 120), round(three.seen * 120)) == (72, 74)
    assert stats.binomtest(72, 120).pvalue <= 0.05 < stats.binomtest(71, 120).pvalue
    assert stats.binomtest(74, 120).pvalue <= 0.05 / 3 < stats.binomtest(73, 120).pvalue
    assert abs(stats.binom.sf(73, 120, three.found) - 0.8) < 1e-3
    assert statistics.detectable_preference(5).seen is None and statistics.detectable_preference(6).seen == 1
    # The same test as the verdicts': a sign flip of differences that are all of one size.
    halves = [0.5] * 48 + [-0.5] * 72
    assert abs(statistics.sign_flip(halves, draws=20000) - stats.binomtest(72, 120).pvalue) < 0.01
    with pytest.raises(OnggiError, match="at least one of each"):
        statistics.detectable_preference(0)
