"""What the numbers say, in sentences and in cells; shared by the page and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import languages as tags

Scores = Mapping[str, Any]


def variants(scores: Scores) -> list[str]:
    """Names of the models that have a divergence from the reference in every language, in order."""
    return [
        name
        for name, model in scores["models"].items()
        if all("kl" in entry for entry in model["languages"].values())
    ]


def kl(scores: Scores, name: str, language: str) -> dict[str, Any]:
    """The KL entry of one variant in one language."""
    entry: dict[str, Any] = scores["models"][name]["languages"][language]["kl"]
    return entry


def worst(scores: Scores, name: str) -> str:
    """The language in which a variant has drifted most, by KL per token."""
    tag: str = scores["models"][name]["worst"]["kl"]
    return tag


def headline(scores: Scores) -> str:
    """The finding in a sentence or two: who pays most, against English, and which variant mends it.

    Variants that were calibrated are set against each other where there are two: what the choice of
    text does is the finding, not that rounding is worse. A mend is claimed only where the paired
    change of KL between the two variants is significant in that language.
    """
    names = variants(scores)
    if not names:
        return "No variant shares the reference's vocabulary, so there is no divergence to report."
    informed = [name for name in names if calibrated(scores, name)]
    pool = informed if len(informed) > 1 else names
    bad = max(pool, key=lambda name: kl(scores, name, worst(scores, name))["value"])
    best = min(pool, key=lambda name: kl(scores, name, worst(scores, name))["value"])
    language = worst(scores, bad)
    text = f"{tags.name(language)} pays most: with {bad} it drifts {_drift(scores, bad, language)}."
    if best == bad:
        return text
    verdict = _verdict_between(scores, bad, best, language)
    if verdict != "better":
        return f"{text} Between {bad} and {best}: {verdict or 'not compared'} in {tags.name(language)}."
    last = worst(scores, best)
    text += f" With {best} it drifts {_drift(scores, best, language)}"
    if last != language:
        text += f"; the worst language there is {tags.name(last)} at {_value(scores, best, last)}"
    return f"{text}."


def _value(scores: Scores, name: str, language: str) -> str:
    return f"{kl(scores, name, language)['value']:.2f}"


def _drift(scores: Scores, name: str, language: str) -> str:
    """`2.98 nats a token, 8.1× what English pays`."""
    text = f"{_value(scores, name, language)} nats a token"
    if language == "en" or "en" not in scores["languages"]:
        return text
    return f"{text}, {_times(scores, name, language, 'en')} what English pays"


def _times(scores: Scores, name: str, language: str, english: str) -> str:
    base = kl(scores, name, english)["value"]
    return f"{kl(scores, name, language)['value'] / base:.1f}×" if base > 1e-9 else "many times"


def _verdict_between(scores: Scores, first: str, second: str, language: str) -> str | None:
    for pair in scores["comparisons"]:
        entry = pair["languages"].get(language)
        if entry and (pair["first"], pair["second"]) == (first, second):
            return str(entry["verdict"])
        if entry and (pair["first"], pair["second"]) == (second, first):
            return {"worse": "better", "better": "worse"}.get(entry["verdict"], str(entry["verdict"]))
    return None


def cell(entry: Mapping[str, Any] | None, digits: int = 2) -> str:
    """`0.37 [0.34, 0.41]`, or a dash where there is none."""
    if not entry:
        return "–"
    value = f"{entry['value']:.{digits}f}"
    if entry.get("low") is None:
        return value
    return f"{value} [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"


def megabytes(size: float) -> str:
    """Bytes in words: `421 MB`."""
    return f"{size / 1e6:,.0f} MB"


def by_damage(scores: Scores) -> list[str]:
    """The languages, those of Latin script first, each part by falling damage of the worst variant."""
    names = variants(scores)
    if not names:
        return list(scores["languages"])
    bad = max(names, key=lambda name: kl(scores, name, worst(scores, name))["value"])
    return sorted(
        scores["languages"],
        key=lambda tag: (not tags.is_latin(tag), -kl(scores, bad, tag)["value"]),
    )


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def calibrated(scores: Scores, name: str) -> set[str]:
    """Languages the variant was calibrated on."""
    calibration = (scores["models"][name].get("about") or {}).get("calibration") or {}
    return set(calibration.get("tokens", {}))
