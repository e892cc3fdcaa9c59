"""What people said, once the study is closed: preferences with intervals and verdicts, reasons, agreement.

The unit is the prompt, as everywhere in onggi: several raters of one pair, and the pairs of one prompt, share its
fate, so a prompt has one number for two models, the mean over its ratings (1 for a preferred answer, ½ for both good
or both bad), and prompts are what intervals draw. They speak of other prompts for these raters. Nothing is left
out in silence: attention pairs that went wrong are counted by rater, and what is found without those who failed
most of theirs stands beside what is found with all.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .. import statistics
from ..errors import OnggiError
from ..statistics import Interval
from .store import Rater, Said
from .study import REASONS, Study

Row = Mapping[str, Any]
Judged = Mapping[tuple[str, str, str, str], float]
"""(language, prompt, one model, another) → what the first scored by an automatic judge: 1, ½, 0 or between."""


def rows(study: Study, raters: Sequence[Rater], said: Mapping[str, Said]) -> list[dict[str, Any]]:
    """Every rating that counts, with the models' names: for a closed study only.

    `rater, kind, list, lang, pair, _id, left, right, check, passed, choice, winner, reasons, seconds, at`: left and
    right are models; check is None, or "same" or "broken" of an attention pair, and passed whether its right
    choice was made; winner a model or None; reasons model → what was wrong with its answer.
    """
    key = study.key()["pairs"]
    found = []
    for rater in raters:
        for assignment, event in said[rater.id].ratings.items():
            shown, place = study.shown(assignment), study.places[assignment]
            about, pair = key[shown.pair], study.pairs[shown.pair]
            sides = tuple(reversed(about["models"])) if shown.swapped else tuple(about["models"])
            check = None if about["kind"] == "pair" else about["kind"]
            row: dict[str, Any] = {
                "rater": rater.id,
                "kind": rater.kind,
                "list": place.slot + 1,
                "lang": place.lang,
                "pair": shown.pair,
                "_id": pair["_id"],
                "left": sides[0],
                "right": sides[1],
                "check": check,
                "passed": None if check is None else _passed(check, event.choice, shown.swapped),
                "choice": event.choice,
                "winner": {"left": sides[0], "right": sides[1]}.get(event.choice or "")
                if not check
                else None,
                "reasons": {sides[0]: list(event.left), sides[1]: list(event.right)} if not check else {},
                "seconds": event.seconds,
                "at": event.at,
            }
            if rater.name:
                row["name"] = rater.name
            found.append(row)
    return found


def _passed(check: str, choice: str | None, swapped: bool) -> bool:
    """The same answer twice is neither better; of one and its shuffling the whole one may be, or both be bad."""
    if check == "same":
        return choice in ("good", "bad")
    return choice == "bad" or choice == ("right" if swapped else "left")


def tally(
    rated: Sequence[Row],
    key: Mapping[str, Any],
    languages: Sequence[str],
    margin: float,
    judged: Judged | None = None,
) -> dict[str, Any]:
    """`results.json`: language → `models` (preference against the reference with its verdict, rating, accepted,
    reasons), `pairs`, `agreement`, `left`, `attention`, `raters`, `judge`.

    rated: of `rows`. key: of the study. margin: a preference nearer to one half than this is *equivalent*.
    judged: what an automatic judge said of the same answers.

    Ratings of tests count only where there are no others: `by` says whose they are.
    """
    people = [row for row in rated if row["kind"] != "test"]
    counted = people or list(rated)
    by = {lang: _language(counted, key, lang, judged or {}) for lang in languages}
    names, reference = list(key["models"]), key["reference"]
    for model in names:
        if model == reference:
            continue
        scores = {lang: _scores(counted, key, lang, model, reference) for lang in languages}
        lost = {lang: [0.5 - value for value in own.values()] for lang, own in scores.items() if own}
        verdicts = statistics.paired_verdicts(
            lost, dict.fromkeys(lost, margin), within=f"{100 * margin:g} points"
        )
        for lang, verdict in verdicts.items():
            found = statistics.interval(list(scores[lang].values()), bounds=(0, 1))
            by[lang]["models"][model]["preference"] = {
                **_numbers(found),
                "p": _number(verdict.p),
                "p_equivalent": _number(verdict.p_equivalent),
                "margin": margin,
                "verdict": verdict.verdict,
                "without_inattentive": _without(counted, key, lang, model, reference, by[lang]),
            }
    return {
        "by": "people" if people else "test" if rated else "nobody",
        "tests_left_out": len(rated) - len(counted),
        "reference": reference,
        "models": dict(key["models"]),
        "margin": margin,
        "languages": by,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _numbers(found: Interval) -> dict[str, Any]:
    return {name: _number(value) if name != "n" else value for name, value in asdict(found).items()}


def _scores(
    rated: Iterable[Row], key: Mapping[str, Any], lang: str, one: str, other: str
) -> dict[str, float]:
    """Prompt → what `one` scored against `other` on the mean of its ratings; answers that were the same are ½."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rated:
        if row["lang"] == lang and not row["check"] and {row["left"], row["right"]} == {one, other}:
            found[row["_id"]].append(_score(row, one))
    scores = {prompt: sum(own) / len(own) for prompt, own in found.items()}
    if found:
        for entry in key["identical"]:
            if entry["lang"] == lang and set(entry["models"]) == {one, other}:
                scores[entry["_id"]] = 0.5
    return scores


def _language(rated: Sequence[Row], key: Mapping[str, Any], lang: str, judged: Judged) -> dict[str, Any]:
    own = [row for row in rated if row["lang"] == lang]
    real, checks = [row for row in own if not row["check"]], [row for row in own if row["check"]]
    identical = [entry for entry in key["identical"] if entry["lang"] == lang]
    strengths = _strengths(real, identical, key)
    decided = [row for row in real if row["winner"] is not None]
    found: dict[str, Any] = {
        "ratings": len(real),
        "pairs_rated": len({row["pair"] for row in real}),
        "identical": len(identical),
        "models": {
            model: {
                "rating": strengths.get(model),
                "accepted": _accepted(real, model),
                **_marked(real, model),
            }
            for model in key["models"]
        },
        "pairs": _pairs(real, key, lang),
        "agreement": _agreement(real, key),
        "left": sum(row["choice"] == "left" for row in decided) / len(decided) if decided else None,
        "attention": {
            kind: {
                "shown": sum(row["check"] == kind for row in checks),
                "failed": sum(row["check"] == kind and not row["passed"] for row in checks),
            }
            for kind in ("same", "broken")
        },
        "raters": _raters(own),
    }
    if judge := _judge(real, lang, key, judged):
        found["judge"] = judge
    return found


def _strengths(
    real: Sequence[Row], identical: Sequence[Mapping[str, Any]], key: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Bradley–Terry, with whole prompts as the items; empty where the comparisons do not join the models."""
    games, items = [], []
    for row in real:
        games.append((row["left"], row["right"], _score(row, row["left"])))
        items.append(row["_id"])
    for entry in identical if games else ():
        games.append((*entry["models"], 0.5))
        items.append(entry["_id"])
    if not games:
        return {}
    try:
        found = statistics.bradley_terry(games, items, reference=key["reference"])
    except OnggiError:
        return {}
    return {model: _numbers(rating) for model, rating in found.items()}


def _accepted(real: Iterable[Row], model: str) -> dict[str, Any]:
    """How often an answer of the model was preferred, or good as the other was: its worth to who asked."""
    good: dict[str, list[bool]] = defaultdict(list)
    for row in real:
        if model in (row["left"], row["right"]):
            good[row["_id"]].append(row["winner"] == model or row["choice"] == "good")
    if not good:
        return {"value": None, "low": None, "high": None, "n": 0}
    sums, counts = [sum(own) for own in good.values()], [len(own) for own in good.values()]
    return _numbers(statistics.interval(sums, counts, bounds=(0, 1)))


def _marked(real: Iterable[Row], model: str) -> dict[str, Any]:
    shown = [row for row in real if model in (row["left"], row["right"])]
    marks = Counter(reason for row in shown for reason in row["reasons"][model])
    return {
        "shown": len(shown),
        "reasons": {reason: marks[reason] for reason in REASONS if marks[reason]},
    }


def _pairs(real: Sequence[Row], key: Mapping[str, Any], lang: str) -> list[dict[str, Any]]:
    """Every two models that were set against each other: who was preferred how often, ratings counted."""
    found = []
    for one, other in itertools.combinations(key["models"], 2):
        own = [row for row in real if {row["left"], row["right"]} == {one, other}]
        if own:
            said = Counter(row["winner"] or row["choice"] for row in own)
            found.append(
                {
                    "models": [one, other],
                    "wins": {one: said[one], other: said[other]},
                    "both_good": said["good"],
                    "both_bad": said["bad"],
                    "prompts": len({row["_id"] for row in own}),
                    "identical": sum(
                        entry["lang"] == lang and set(entry["models"]) == {one, other}
                        for entry in key["identical"]
                    ),
                }
            )
    return found


def _agreement(real: Iterable[Row], key: Mapping[str, Any]) -> dict[str, Any]:
    """Krippendorff's alpha over the pairs that several rated: of which answer is better (1, ½ and 0, by the
    squares of their differences), and of the four choices (alike or not).

    Which of a pair's answers counts as 1 is the coin of its design. By a model's name it would be nearly always
    the same one where a model is clearly better, and alpha would be low however well raters agree.
    """
    better: dict[str, list[float]] = defaultdict(list)
    choices: dict[str, list[float]] = defaultdict(list)
    for row in real:
        score = _score(row, key["pairs"][row["pair"]]["models"][0])
        better[row["pair"]].append(score)
        choices[row["pair"]].append({"good": 2.0, "bad": 3.0}.get(row["choice"], score))
    return {
        "preference": _numbers(statistics.krippendorff(list(better.values()), "interval")),
        "choice": _numbers(statistics.krippendorff(list(choices.values()), "nominal")),
    }


def _score(row: Row, model: str) -> float:
    """What a model scored in a rating: 1, ½ or 0."""
    return 0.5 if row["winner"] is None else float(row["winner"] == model)


def _raters(own: Iterable[Row]) -> dict[str, dict[str, Any]]:
    by: dict[str, list[Row]] = defaultdict(list)
    for row in own:
        by[row["rater"]].append(row)
    found = {}
    for rater, mine in by.items():
        checks = [row for row in mine if row["check"]]
        times = sorted(row["seconds"] for row in mine if row["seconds"] is not None)
        found[rater] = {
            "kind": mine[0]["kind"],
            "ratings": len(mine) - len(checks),
            "checks": len(checks),
            "failed": sum(not row["passed"] for row in checks),
            "median_seconds": times[len(times) // 2] if times else None,
        }
    return found


def _without(
    rated: Iterable[Row], key: Mapping[str, Any], lang: str, one: str, other: str, about: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The preference without the raters who failed more than half of their checks; None where there are none."""
    out = [name for name, rater in about["raters"].items() if 2 * rater["failed"] > rater["checks"]]
    if not out:
        return None
    scores = _scores((row for row in rated if row["rater"] not in out), key, lang, one, other)
    value = statistics.interval(list(scores.values()), bounds=(0, 1)) if scores else None
    return {"raters": len(out), **(_numbers(value) if value else {"value": None, "n": 0})}


def _judge(real: Iterable[Row], lang: str, key: Mapping[str, Any], judged: Judged) -> dict[str, Any] | None:
    """How far the automatic judge says what people say of the same answers: one, the other, or neither better."""
    people: dict[str, list[Row]] = defaultdict(list)
    for row in real:
        people[row["pair"]].append(row)
    labels = []
    for pair, own in people.items():
        one, other = key["pairs"][pair]["models"]
        by = judged.get((lang, own[0]["_id"], one, other))
        if by is None and (turned := judged.get((lang, own[0]["_id"], other, one))) is not None:
            by = 1 - turned
        if by is not None:
            labels.append((_label(sum(_score(row, one) for row in own) / len(own)), _label(by)))
    if not labels:
        return None
    found = statistics.agreement(*zip(*labels, strict=True))
    return {"agreement": found.share, "kappa": _number(found.kappa), "n": found.n}


def _label(score: float) -> int:
    return (score > 0.5) - (score < 0.5)
