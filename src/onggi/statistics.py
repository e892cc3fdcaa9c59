"""Numbers per passage in, intervals and verdicts out.

A model is scored on a few dozen passages and the question is what those passages say about the
language. Three things go wrong when it is answered carelessly, and this room exists for them:

- **Tokens are not the sample, passages are.** The tokens of one passage share its topic and its
  difficulty, so intervals from resampled tokens are too narrow. Everything here takes one
  number per passage (or one numerator and one denominator) and draws passages.
- **Damage is skewed.** A few passages suffer much more than the rest, and with 12 or 40 of them
  the usual intervals miss high values too often. `interval` was chosen by its measured coverage.
- **Many languages are many chances to be wrong.** `paired_verdicts` corrects across them, and can
  say "no significant difference" and "equivalent" as well as "worse".

Everything is deterministic for a given `seed`, and the same for the same number of passages, so
two models measured on the same passages are drawn the same way. Nothing here knows what a
language, a model or a nat is; a difference is variant minus reference, and more is worse.

For items that are right or wrong there are `flips` and what so many items could have shown at all
(`minimum_detectable_loss`); for verdicts between pairs, `bradley_terry`, what so many pairs could show
(`detectable_preference`), and of those who gave them `agreement` (two) and `krippendorff` (any number).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from .errors import OnggiError

Numbers = Sequence[float] | npt.NDArray[Any]
_Floats = npt.NDArray[np.float64]

WORSE = "worse"
BETTER = "better"
NO_DIFFERENCE = "no significant difference"
EQUIVALENT = "equivalent within"

# Up to so many differences every assignment of signs is tried (2**19 sums, a few milliseconds).
_EXACT = 20

# Resamples are drawn in blocks of at most so many numbers, so memory does not grow with passages.
_BLOCK = 1 << 20

# Residuals below this share of the largest value are rounding, not variation.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate over `n` passages and the limits of its confidence interval."""

    value: float
    low: float
    high: float
    n: int


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the paired differences of one name say; all but the p-values in their own unit."""

    difference: float
    """Mean over passages; positive is worse."""
    low: float
    high: float
    """Limits of `interval` for the mean difference, not corrected for the number of names."""
    p: float
    """Two-sided sign-flip p-value of no difference, Holm-corrected across the names."""
    p_equivalent: float
    """TOST p-value of a difference of `margin` or more, Holm-corrected across the names."""
    verdict: str
    margin: float
    n: int


@dataclasses.dataclass(frozen=True)
class Collapse:
    """How unevenly damage lies over `n` passages."""

    carried: float
    """The share of all damage that the worst passages carry; equal to `worst` where all suffer alike."""
    above: float | None
    """The share of passages above `threshold`; None without one."""
    worst: float
    threshold: float | None
    n: int


def collapse(values: Numbers, *, worst: float = 0.1, threshold: float | None = None) -> Collapse:
    """Is the damage of `values` (passages,) everyone's or a few passages'?

    A mean of 0.1 nats may be 0.1 everywhere or one passage in twenty that fell apart, and only the second
    is what users meet as a broken answer. `carried` is one minus the Lorenz curve (1905, Publications
    of the American Statistical Association 9:209) at 1 - `worst`; a fraction of a passage counts as that
    fraction, so 12 passages and 40 compare. `values` are KL, or changes of nats, where more is worse; a
    passage that gained (below 0) has no damage and offsets none. Without any damage `carried` is nan.
    Raises `OnggiError` for no values, values that are not finite, a `worst` not between 0 and 1.
    """
    x = _checked(values, "values")
    if not 0 < worst < 1:
        raise OnggiError(f"worst is {worst:g}; it must lie between 0 and 1, such as 0.1.")
    damage = np.sort(np.maximum(x, 0))[::-1]
    weights = np.clip(worst * len(x) - np.arange(len(x)), 0, 1)
    total = float(damage.sum())
    return Collapse(
        carried=float(weights @ damage) / total if total else math.nan,
        above=None if threshold is None else float(np.mean(x > threshold)),
        worst=worst,
        threshold=threshold,
        n=len(x),
    )


def interval(
    values: Numbers,
    denominators: Numbers | None = None,
    *,
    confidence: float = 0.95,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    draws: int = 4000,
    seed: int = 0,
) -> Interval:
    """The mean of `values` over passages, or sum(values) / sum(denominators), with its interval.

    `values` (passages,) is one number a passage: its nats, its KL. With `denominators` (passages,),
    positive, it is a ratio of sums: KL / tokens, bits / bytes, agreements / tokens, tokens /
    English tokens; a passage's numerator and denominator are drawn together.
    `bounds` are what the truth cannot pass (0 for a KL, 0 and 1 for a share); the limits are cut there.

    The interval is the bootstrap-t over `draws` resamples of passages (Efron & Tibshirani 1993,
    §12.5; Hall 1988, Annals of Statistics 16:927), on neither side nearer to the value than
    Student's t. A ratio's standard error is the linearised one (Cochran 1977, chapter 6). How many
    in 100 nominal 95% intervals hold the truth, by `python tests/test_statistics.py` (2,000 samples
    each, good to 0.5; `ratio` is over passages of varying length, `sigma` the spread of the log):

                                   12 passages                       40 passages
                            this  bootstrap-t  Student  BCa   this  bootstrap-t  Student  BCa
        normal              96.3     95.4       95.3   92.1   95.2     94.8       94.5   93.4
        gamma, shape 1      94.4     93.7       89.3   87.8   95.1     93.9       92.3   92.0
        lognormal, 0.5      94.8     93.8       92.6   89.5   95.2     93.9       93.5   92.7
        lognormal, 0.75     93.5     92.6       89.4   86.9   95.1     93.2       92.2   91.2
        lognormal, 1        91.4     90.8       84.7   83.8   93.6     92.1       89.3   89.8
        ratio, 0.5          93.8     93.0       91.4   88.2   95.3     94.1       93.5   91.9
        ratio, 0.75         92.6     91.8       87.6   85.8   94.5     93.2       91.3   90.7
        ratio, 1            89.8     89.4       82.2   82.6   93.5     92.5       88.8   89.8
        agreement, 95%      94.2     93.8       90.3   88.9   96.0     95.2       92.8   92.8

    So bootstrap-t and not BCa, whose corrections come too late for a dozen passages. Student's t as
    the floor costs 8% of width at 12 normal passages and 3% at 40. On the side away from the tail it
    holds more than it must and so buys back some of what the tail's side misses; and it carries two to
    five passages, whose resamples are mostly repeats and say little.
    What no method here mends is a dozen very skewed passages: the tail is not in the sample, and the
    interval then misses one time in ten, nearly always by being too low.

    With one passage there is no variation to see: the limits are nan. Where all passages agree
    (identical models, every token right) the limits are the value.
    Raises `OnggiError` for no values, values that are not finite, lengths that differ,
    denominators that are not positive.
    """
    x = _checked(values, "values")
    y = np.ones_like(x) if denominators is None else _checked(denominators, "denominators")
    if len(y) != len(x):
        raise OnggiError(f"{len(x)} values but {len(y)} denominators; give one of each per passage.")
    if y.min() <= 0:
        raise OnggiError(f"denominators: number {int(y.argmin())} is {y.min():g}; each must be positive.")
    if not 0 < confidence < 1:
        raise OnggiError(f"confidence is {confidence:g}; it must lie between 0 and 1, such as 0.95.")
    value, error, t = _studentised(x, y, draws, seed)
    return _bootstrap_t(value, error, t, len(x), confidence, bounds)


def mean_ratio(
    values: Sequence[Numbers] | npt.NDArray[Any],
    denominators: Sequence[Numbers] | npt.NDArray[Any],
    weights: Numbers | None = None,
    *,
    confidence: float = 0.95,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    draws: int = 4000,
    seed: int = 0,
) -> Interval:
    """Σ_g weights_g · Σ_i values_gi / Σ_i denominators_gi, with its interval: a mean of ratios over groups.

    values, denominators: (groups, items), such as what each item lost, and what it had, in each language.
    weights: (groups,), by default an equal share each; +1/a and -1/b compare the means of two sets of groups.
    An item is drawn in all groups at once, since the same passage in twelve languages is hard in all of them;
    a group that lacks an item holds 0 for both. Where no item is shared, this is drawing each group by itself,
    but that its number of items varies too, which its own denominator answers.

    The interval is the bootstrap-t with the linearised standard error and Student's t as its floor, as in
    `interval`, of which this is the same for one group. Of 2,000 nominal 95% intervals of the mean over five
    languages of the relative change of skewed nats, 93.8 in 100 hold the truth with 12 passages that all languages
    share and 94.8 with 40; 92.8 and 94.4 where each has so many of its own (`python tests/test_statistics.py`).
    `n` counts the items. Raises `OnggiError` for shapes that differ, values that are not finite, a group whose
    denominators do not add up to more than 0.
    """
    x, y = (np.asarray(side, dtype=np.float64) for side in (values, denominators))
    if x.ndim != 2 or x.shape != y.shape or not x.size:
        raise OnggiError(
            f"mean_ratio: need values and denominators (groups, items), not {x.shape} and {y.shape}."
        )
    shares = np.full(len(x), 1 / len(x)) if weights is None else _checked(weights, "weights")
    if len(shares) != len(x):
        raise OnggiError(f"mean_ratio: {len(x)} groups but {len(shares)} weights; give one for each.")
    for name, side in (("values", x), ("denominators", y)):
        _checked(side.ravel(), name)
    if y.min() < 0 or y.sum(axis=1).min() <= 0:
        raise OnggiError("denominators: none may be negative, and each group needs one above 0.")
    n = x.shape[1]
    total = y.sum(axis=1)
    ratios = x.sum(axis=1) / total
    value = float(shares @ ratios)
    residuals = x - ratios[:, None] * y
    influence = (shares / total) @ residuals
    if n == 1 or np.abs(influence).max() * n <= _ROUNDING * max(np.abs(ratios).max(), 1e-300):
        return _bootstrap_t(value, 0.0, np.zeros(0), n, confidence, bounds)
    error = float(np.sqrt(np.sum(influence**2) * n / (n - 1)))
    rng = np.random.default_rng(seed)
    parts = []
    for size in _blocks(draws, n * max(1, len(x) // 4)):
        times = _times(rng, size, n)
        of_groups = times @ y.T  # (draws, groups)
        there = (of_groups > 0).all(axis=1)
        times, of_groups = times[there], of_groups[there]
        shift = (times @ residuals.T) / of_groups  # each resample's ratios less the sample's
        part = shares / of_groups
        again = part @ residuals - (part * shift) @ y  # (draws, items)
        own = np.sqrt(np.einsum("di,di->d", times, again**2) * n / (n - 1))
        varied = own > 1e-6 * error
        parts.append((shift @ shares)[varied] / own[varied])
    return _bootstrap_t(value, error, np.concatenate(parts), n, confidence, bounds)


def _bootstrap_t(
    value: float, error: float, t: _Floats, n: int, confidence: float, bounds: tuple[float, float]
) -> Interval:
    """The interval of `value` from its standard error and the studentised deviations of its resamples."""
    if n == 1:
        return Interval(value, math.nan, math.nan, 1)
    if error == 0:
        return Interval(value, value, value, n)
    tail = (1 - confidence) / 2
    student = float(special.stdtrit(n - 1, 1 - tail))
    near, far = np.quantile(t, [tail, 1 - tail]) if t.size else (-student, student)
    low = value - max(float(far), student) * error
    high = value - min(float(near), -student) * error
    # The value itself may lie a rounding beyond the bounds (a KL of -1e-9); the limits still hold it.
    return Interval(value, min(max(low, bounds[0]), value), max(min(high, bounds[1]), value), n)


def sign_flip(differences: Numbers, *, draws: int = 9999, seed: int = 0, exact_up_to: int = _EXACT) -> float:
    """Two-sided p-value of the paired sign-flip test that the mean of `differences` (passages,) is zero.

    If the two models' labels mean nothing, each passage's difference was as likely to have come
    out with the other sign (Fisher 1935, The Design of Experiments, §21). Up to `exact_up_to`
    differences, all 2**n signs are tried; beyond, `draws` random ones with the observed one counted in, so
    that p is never zero (Phipson & Smyth 2010, Statistical Applications in Genetics 9:39).
    One difference, or nothing but zeros, gives 1. The smallest p of n differences is
    2**(1 - n): five passages or fewer are never told apart at 5%, nor 8 across a dozen languages.
    Raises `OnggiError` for no values or values that are not finite.
    """
    d = _checked(differences, "differences")
    observed = abs(float(d.sum()))
    # Sums that are equal in exact arithmetic differ by rounding here; they count as reached.
    reached = observed - 1e-12 * float(np.abs(d).sum())
    if len(d) <= exact_up_to:
        sums = d[:1]  # the first sign stays: flipping all of them changes no |sum|
        for each in d[1:]:
            sums = np.concatenate([sums + each, sums - each])
        return float(np.mean(np.abs(sums) >= reached))
    rng = np.random.default_rng(seed)
    count = 0
    for size in _blocks(draws, len(d)):
        kept = rng.integers(0, 2, (size, len(d)), dtype=np.int8).astype(np.float64)  # 1 keeps, 0 flips
        count += int(np.sum(np.abs(2 * (kept @ d) - d.sum()) >= reached))
    return (1 + count) / (1 + draws)


def equivalence(differences: Numbers, margin: float, *, draws: int = 4000, seed: int = 0) -> float:
    """p-value that the mean of `differences` (passages,) is `margin` or more from zero; small: equivalent.

    Two one-sided tests, the larger of the two p-values (TOST; Schuirmann 1987, Journal of
    Pharmacokinetics and Biopharmaceutics 15:657). Each side's p is the larger of paired Student's t and
    the bootstrap-t, so that p < a exactly when the 1 - 2a `interval` lies inside the margin, up to the
    steps of the bootstrap. With the true mean on the margin and lognormal differences (sigma 0.75), a
    test at 5% claims equivalence in 11% of samples of 12 passages and 7% of 40; t alone in 15% and 11%.

    `margin` is in the unit of the differences. One difference gives nan. Differences that all agree
    give 0 inside the margin and 1 on or outside it.
    Raises `OnggiError` for no values, values that are not finite, a margin that is not positive and finite.
    """
    d = _checked(differences, "differences")
    if not (margin > 0 and math.isfinite(margin)):
        raise OnggiError(f"margin is {margin:g}; it must be a positive number in the differences' own unit.")
    value, error, t = _studentised(d, np.ones_like(d), draws, seed)
    if len(d) == 1:
        return math.nan
    if error == 0:
        return 0.0 if abs(value) < margin else 1.0
    below, above = (value - margin) / error, (value + margin) / error
    return max(
        float(special.stdtr(len(d) - 1, below)),
        float(special.stdtr(len(d) - 1, -above)),
        (1 + int(np.sum(t <= below))) / (1 + len(t)),
        (1 + int(np.sum(t >= above))) / (1 + len(t)),
    )


def holm(pvalues: Numbers) -> _Floats:
    """`pvalues` (tests,) corrected for being several: reject those <= a and a false rejection anywhere
    has probability at most a (Holm 1979, Scandinavian Journal of Statistics 6:65).

    A nan (a test that could not be made) stays nan and does not count as a test. Order is kept.
    Raises `OnggiError` for a p-value outside 0 to 1.
    """
    p = np.asarray(pvalues, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(p))
    if np.any((p[known] < 0) | (p[known] > 1)):
        raise OnggiError(f"p-values must lie between 0 and 1, not {p[known].min():g} to {p[known].max():g}.")
    order = known[np.argsort(p[known], kind="stable")]
    adjusted = np.full_like(p, np.nan)
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def verdict(
    p_different: float,
    p_equivalent: float,
    mean_difference: float,
    margin: float,
    *,
    alpha: float = 0.05,
    within: str | None = None,
) -> str:
    """The first that holds: "equivalent within m", "worse" or "better", "no significant difference".

    Equivalence goes first. The margin is the change the reader has said does not matter; where the
    data show the change to be smaller, that is the answer, even if it is also surely not zero: with
    enough passages everything differs, and a language that lost 0.01% flagged "worse" beside one
    that lost 30% would teach readers to ignore the flag. Nothing is hidden: the difference, its interval
    and both p-values stand beside the verdict. A difference too uncertain for either claim is
    "no significant difference", which is not a claim of sameness.

    `within` is the margin as the reader gave it ("1%"); without it `margin` to three digits.
    A p-value of nan supports nothing.
    """
    if p_equivalent <= alpha:
        return f"{EQUIVALENT} {within if within is not None else format(margin, '.3g')}"
    if p_different <= alpha and mean_difference != 0:
        return WORSE if mean_difference > 0 else BETTER
    return NO_DIFFERENCE


def paired_verdicts(
    differences: Mapping[str, Numbers],
    margins: Mapping[str, float],
    *,
    alpha: float = 0.05,
    confidence: float = 0.95,
    within: str | None = None,
    draws: int = 9999,
    seed: int = 0,
) -> dict[str, Verdict]:
    """A verdict for each name (a language) from its paired differences (passages,), variant minus reference.

    The p-values of difference and those of equivalence are each Holm-corrected across all names, so a
    false "worse" or "better" anywhere, and a false "equivalent" anywhere, each keep to `alpha` however
    many languages were looked at (as well as the single test does: see `equivalence`). The intervals are
    not corrected: they say how well each difference is known. Names keep their order; lengths may differ.
    `draws` is for the tests and the intervals; with L names the p-values can resolve L / `draws`.
    Raises `OnggiError`, naming the name, for a margin that is missing and as `interval`, `sign_flip` and
    `equivalence` do.
    """
    estimates: list[Interval] = []
    different: list[float] = []
    equivalent: list[float] = []
    for name, values in differences.items():
        if name not in margins:
            raise OnggiError(f"{name}: there is no margin for it; give one for each of the differences.")
        try:
            estimates.append(interval(values, confidence=confidence, draws=draws, seed=seed))
            different.append(sign_flip(values, draws=draws, seed=seed))
            equivalent.append(equivalence(values, margins[name], draws=draws, seed=seed))
        except OnggiError as error:
            raise OnggiError(f"{name}: {error}") from error
    corrected = zip(differences, estimates, holm(different).tolist(), holm(equivalent).tolist(), strict=True)
    return {
        name: Verdict(
            difference=e.value,
            low=e.low,
            high=e.high,
            p=p,
            p_equivalent=q,
            verdict=verdict(p, q, e.value, margins[name], alpha=alpha, within=within),
            margin=margins[name],
            n=e.n,
        )
        for name, e, p, q in corrected
    }


@dataclasses.dataclass(frozen=True)
class Flips:
    """Items whose correctness changed, of `n`, and the exact p-value of no difference in accuracy."""

    right_to_wrong: int
    wrong_to_right: int
    n: int
    p: float


def flips(before: Sequence[bool] | npt.NDArray[Any], after: Sequence[bool] | npt.NDArray[Any]) -> Flips:
    """Both ways in which items (items,) flipped from `before` (the reference) to `after`, with `mcnemar`'s p.

    Raises `OnggiError` for no items or lengths that differ.
    """
    a, b = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise OnggiError(
            f"flips: need the same items before and after and at least one, not {a.size} and {b.size}."
        )
    lost, won = int(np.sum(a & ~b)), int(np.sum(~a & b))
    return Flips(lost, won, len(a), mcnemar(lost, won))


def mcnemar(right_to_wrong: int, wrong_to_right: int) -> float:
    """Two-sided exact p-value that a flip goes either way with the same probability.

    The binomial test of McNemar's 1947 table (Psychometrika 12:153): items that did not flip say
    nothing. Without flips it is 1; five flips or fewer never reach 5%. Raises `OnggiError` for counts
    below 0.
    """
    if min(right_to_wrong, wrong_to_right) < 0:
        raise OnggiError(f"flips are counts: {right_to_wrong} and {wrong_to_right} cannot be below 0.")
    smaller, total = min(right_to_wrong, wrong_to_right), right_to_wrong + wrong_to_right
    return min(1.0, 2 * float(special.bdtr(smaller, total, 0.5))) if total else 1.0


def minimum_detectable_loss(
    n: int, discordance: float, *, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """The smallest loss of accuracy that `mcnemar` on `n` paired items finds with probability `power`.

    `discordance` is the share of items that flip, either way (what was observed, or 2p(1-p) for two models
    of accuracy p whose errors have nothing in common). The loss is a share: 0.041 is 4.1 points. A loss
    cannot be larger than the share that flips; where that would be needed, all flips are taken to go one
    way and to be as many as it takes. The power is exact, over both binomials (how many flip; how many of
    them are losses): the usual formula (Connor 1987, Biometrics 43:207) promises a little more than the
    discrete test holds, 5.6 points in place of 5.7 for 200 items of which 8% flip. None where no loss
    would be found, as with five items.
    Raises `OnggiError` for shares outside 0 to 1 and `n` below 1.
    """
    for name, share, closed in (
        ("discordance", discordance, True),
        ("alpha", alpha, False),
        ("power", power, False),
    ):
        if not (0 < share < 1 or (closed and share in (0, 1))):
            raise OnggiError(f"{name} is {share:g}; it must lie between 0 and 1.")
    if n < 1:
        raise OnggiError(f"n is {n}; it must be the number of items, at least 1.")

    totals = np.arange(n + 1)
    # A loss is claimed where fewer than `most` of the flips are gains; 0 where the test cannot claim one.
    most, above = np.zeros(n + 1, dtype=int), totals // 2 + 1
    while np.any(most < above):
        middle = (most + above + 1) // 2
        claimed = (middle > 0) & (2 * special.bdtr(np.maximum(middle - 1, 0), totals, 0.5) <= alpha)
        most, above = np.where(claimed, middle, most), np.where(claimed, above, np.maximum(middle - 1, most))

    def found(loss: float) -> float:
        flipping = max(discordance, loss)
        chance = np.diff(special.bdtr(totals, n, flipping), prepend=0.0)
        gains = (1 - loss / flipping) / 2 if flipping else 0.0
        reached = np.where(most > 0, special.bdtr(np.maximum(most - 1, 0), totals, gains), 0.0)
        return float(np.sum(chance * reached))

    low, high = 0.0, 1.0
    if found(high) < power:
        return None
    while high - low > 1e-5:
        half = (low + high) / 2
        low, high = (low, half) if found(half) >= power else (half, high)
    return high


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How often two labelled the same alike: `share`, and `kappa`, which takes off what chance gives."""

    share: float
    kappa: float
    n: int


def agreement(first: Sequence[Hashable], second: Sequence[Hashable]) -> Agreement:
    """Of two labellings (items,) of the same items: the share alike, and Cohen's kappa.

    kappa is (share - chance) / (1 - chance), chance being what independent labellers with these two
    tallies would share (Cohen 1960, Educational and Psychological Measurement 20:37): 1 where all are alike,
    0 where no more than by chance, nan where both gave one and the same label throughout.
    Raises `OnggiError` for no items or lengths that differ.
    """
    if len(first) != len(second) or not first:
        raise OnggiError(
            f"agreement: need two labels an item and at least one item, not {len(first)} and {len(second)}."
        )
    n = len(first)
    one, other = Counter(first), Counter(second)
    share = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum(count * other[label] for label, count in one.items()) / n**2
    return Agreement(share, (share - chance) / (1 - chance) if chance < 1 else math.nan, n)


def krippendorff(
    units: Sequence[Sequence[float]],
    metric: Literal["nominal", "interval"] = "nominal",
    *,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Krippendorff's alpha: how far raters agree beyond chance, with any number of them and any gaps.

    units: what was rated, each with the values its raters gave, in no order; those with fewer than two say
    nothing. metric: the square of the difference of two values, 1 or 0 for "nominal". alpha is 1 where all
    agree, 0 where no more than by chance, below 0 where less (Krippendorff 2011, Computing Krippendorff's
    Alpha-Reliability, §D; its example is the test). `n` counts the units used. The interval draws units
    (percentile bootstrap), since the ratings of one hang together.
    Value and limits are nan where no unit has two ratings, or all ratings are one and the same value.
    """
    used = [unit for unit in units if len(unit) > 1]
    labels = sorted({value for unit in used for value in unit})
    if len(labels) < 2:
        return Interval(math.nan, math.nan, math.nan, len(used))
    counts = np.array([[unit.count(label) for label in labels] for unit in map(list, used)], dtype=float)
    values = np.asarray(labels, dtype=float)
    apart = (values[:, None] - values[None, :]) ** 2
    if metric == "nominal":
        apart = (apart > 0).astype(float)
    sizes = counts.sum(axis=1)
    # Within a unit every value meets every other one, weighed so that a unit counts as its number of ratings.
    observed = np.einsum("ui,ij,uj->u", counts, apart, counts) / (sizes - 1)

    def alpha(times: _Floats) -> _Floats:
        """times: (draws, units), how often each unit was drawn."""
        total, label = times @ sizes, times @ counts
        expected = np.einsum("di,ij,dj->d", label, apart, label) / (total - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(1 - (times @ observed) / expected)

    value = float(alpha(np.ones((1, len(used))))[0])
    rng, shares = np.random.default_rng(seed), np.full(len(used), 1 / len(used))
    found = np.concatenate(
        [alpha(rng.multinomial(len(used), shares, size).astype(float)) for size in _blocks(draws, len(used))]
    )
    found = found[np.isfinite(found)]
    if len(used) == 1 or not found.size:
        return Interval(value, math.nan, math.nan, len(used))
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(min(low, value)), float(max(high, value)), len(used))


@dataclasses.dataclass(frozen=True)
class Preference:
    """What `n` pairs can show: the least share of them on one side that is told from chance, and the least true
    share that is found with the power asked for. None where none is.
    """

    seen: float | None
    found: float | None
    n: int


def detectable_preference(n: int, *, tests: int = 1, alpha: float = 0.05, power: float = 0.8) -> Preference:
    """What preference `n` decided, independent pairs can show by the sign test, two-sided at `alpha` / `tests`.

    `tests`: how many such verdicts Holm's correction is over, at its most severe. Exact, by the binomial. Ties
    make it harder: n counts the pairs that are decided. Raises OnggiError for fewer than one pair or test.
    """
    if n < 1 or tests < 1:
        raise OnggiError(f"{n} pairs and {tests} tests: there must be at least one of each.")
    wins = np.arange(n + 1)
    p = np.minimum(1.0, 2 * special.bdtrc(wins - 1, n, 0.5))  # of so many wins or more
    p[0] = 1.0  # bdtrc of -1 is nan
    claimed = np.flatnonzero((p <= alpha / tests) & (2 * wins > n))
    if not claimed.size:
        return Preference(None, None, n)
    least = int(claimed[0])
    low, high = 0.5, 1.0
    while high - low > 1e-6:
        half = (low + high) / 2
        reached = float(special.bdtrc(least - 1, n, half))
        low, high = (low, half) if reached >= power else (half, high)
    return Preference(least / n, high, n)


def bradley_terry(
    games: Sequence[tuple[str, str, float]],
    items: Sequence[Hashable] | None = None,
    *,
    reference: str | None = None,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """Ratings from comparisons (one, other, what `one` scored: 1, 0, or 0.5 for a tie), with intervals.

    A rating is in log-odds: `one` is expected to score 1 / (1 + exp(other - one)) against `other`
    (Bradley & Terry 1952, Biometrika 39:324), so 1 apart is 73% and 400 points of Elo are 2.30. `reference` has
    the rating 0; without one the mean is 0. A tie is half a win: what is fitted is the expected score,
    with nothing assumed of how often ties occur. `n` is the games a model was in. Best first.

    Half games are added to mend perfect winners, as Firth's bias reduction has it (1993, Biometrika 80:27):
    each pair is given, for its games, their leverage in the fit, half as wins and half as losses; all
    together models - 1 games. Two models with 10 wins of 10 stand as 10.5 of 11, not infinitely apart.

    Intervals are Wald's, from a variance that is robust to ties and to games that hang together: `items`
    names what was judged in each game (a question in all its turns and pairings), and the variance is
    that of whole items (Liang & Zeger 1986, Biometrika 73:13; the added half games count as items of
    their own, which keeps a perfect winner's interval wide). Without `items` each game is one. The limits use
    Student's t for items - 1.

    Raises `OnggiError` for no games, a game of a model with itself, a score other than 0, 0.5, 1, an
    unknown `reference`, and, naming both groups, where no chain of games joins all models.
    """
    if not games:
        raise OnggiError("bradley_terry: there are no comparisons.")
    if items is not None and len(items) != len(games):
        raise OnggiError(f"bradley_terry: {len(games)} comparisons but {len(items)} items; give one of each.")
    if not 0 < confidence < 1:
        raise OnggiError(f"confidence is {confidence:g}; it must lie between 0 and 1, such as 0.95.")
    for one, other, score in games:
        if one == other or score not in (0, 0.5, 1):
            raise OnggiError(
                f"bradley_terry: ({one}, {other}, {score}): a comparison is of two models and scores 0, 0.5 or 1."
            )
    names = list(dict.fromkeys(name for game in games for name in game[:2]))
    if reference is not None and reference not in names:
        raise OnggiError(f"{reference}: was compared with no model; there are {', '.join(names)}.")
    _joined(names, games)

    place = {name: i for i, name in enumerate(names)}
    design = np.zeros((len(games), len(names)))
    for row, (one, other, _) in enumerate(games):
        design[row, place[one]], design[row, place[other]] = 1, -1
    scores = np.array([game[2] for game in games], dtype=np.float64)
    anchor = np.full(len(names), 1 / len(names))
    if reference is not None:
        anchor = np.eye(len(names))[place[reference]]

    ratings = np.zeros(len(names))
    for _ in range(200):
        expected = special.expit(design @ ratings)
        weight = expected * (1 - expected)
        inverse = np.linalg.pinv(design.T * weight @ design, hermitian=True)
        leverage = weight * np.einsum("gi,ij,gj->g", design, inverse, design)
        step = inverse @ (design.T @ (scores - expected + leverage * (0.5 - expected)))
        step *= min(1.0, 2 / max(float(np.abs(step).max()), 1e-300))  # never so far that it runs away
        ratings = ratings + step
        if np.abs(step).max() < 1e-10:
            break

    # The information with the added games in it, and the variance of the score over items.
    bread = np.linalg.pinv(design.T * (weight * (1 + leverage)) @ design, hermitian=True)
    number = {
        item: i for i, item in enumerate(dict.fromkeys(items if items is not None else range(len(games))))
    }
    of_item = np.zeros((len(number), len(names)))
    np.add.at(
        of_item,
        [number[item] for item in (items if items is not None else range(len(games)))],
        design * (scores - expected)[:, None],
    )
    added = leverage * (expected**2 + (1 - expected) ** 2) / 2
    more = len(number) / (len(number) - 1) if len(number) > 1 else 1.0
    meat = more * of_item.T @ of_item + design.T * added @ design
    contrast = np.eye(len(names)) - anchor  # each rating less the anchor's
    variance = np.einsum("ij,jk,ik->i", contrast, bread @ meat @ bread, contrast)
    reach = float(special.stdtrit(max(len(number) - 1, 1), (1 + confidence) / 2))
    values = contrast @ ratings
    errors = reach * np.sqrt(np.maximum(variance, 0))
    played = np.abs(design).sum(axis=0).astype(int)
    return {
        names[i]: Interval(
            float(values[i]), float(values[i] - errors[i]), float(values[i] + errors[i]), int(played[i])
        )
        for i in np.argsort(-values, kind="stable")
    }


def _joined(names: Sequence[str], games: Sequence[tuple[str, str, float]]) -> None:
    """Raises where the games do not join all `names`: ratings of groups that never met cannot be compared."""
    reached = {names[0]}
    while True:
        more = {
            name for one, other, _ in games if (one in reached) != (other in reached) for name in (one, other)
        }
        if not more:
            break
        reached |= more
    apart = [name for name in names if name not in reached]
    if apart:
        raise OnggiError(
            f"{', '.join(n for n in names if n in reached)} and {', '.join(apart)} were never compared, not even "
            "through a third model; compare one of each to rate them together."
        )


def _studentised(x: _Floats, y: _Floats, draws: int, seed: int) -> tuple[float, float, _Floats]:
    """sum(x) / sum(y), its standard error, and the resampled deviations over their own standard errors.

    Resamples of one passage repeated have no standard error and are left out. The error is 0, and
    nothing is drawn, where all passages agree or there is but one.
    """
    n = len(x)
    value = float(x.sum() / y.sum())
    e = x - value * y  # residuals, taken out first so that squares do not cancel later
    if n == 1 or np.sqrt(np.sum(e**2)) <= _ROUNDING * np.abs(x).max():
        return value, 0.0, np.zeros(0)
    error = float(np.sqrt(np.sum(e**2) / (n - 1) * n) / y.sum())
    rng = np.random.default_rng(seed)
    parts = []
    for size in _blocks(draws, n):
        times = _times(rng, size, n)
        total = times @ y
        shift = (times @ e) / total  # the resample's ratio less `value`
        squares = times @ e**2 - 2 * shift * (times @ (e * y)) + shift**2 * (times @ y**2)
        own = np.sqrt(np.maximum(squares, 0) / (n - 1) * n) / total
        varied = own > 1e-6 * error
        parts.append(shift[varied] / own[varied])
    return value, error, np.concatenate(parts)


def _times(rng: np.random.Generator, draws: int, n: int) -> _Floats:
    """How often each of `n` items is in each of `draws` resamples, (draws, n)."""
    picks = rng.integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(picks.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)


def _blocks(draws: int, n: int) -> Iterator[int]:
    """`draws` in pieces, each small enough that piece x `n` numbers fit in a block."""
    if draws < 1:
        raise OnggiError(
            f"draws is {draws}; it must be at least 1, and a thousand or more to mean something."
        )
    size = max(1, _BLOCK // n)
    for start in range(0, draws, size):
        yield min(size, draws - start)


def _checked(values: Numbers, what: str) -> _Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise OnggiError(f"{what}: need one number per passage and at least one, not shape {array.shape}.")
    wrong = np.flatnonzero(~np.isfinite(array))
    if wrong.size:
        raise OnggiError(
            f"{what}: {wrong.size} of {array.size} are not finite (number {wrong[0]} is {array[wrong[0]]})."
        )
    return array
