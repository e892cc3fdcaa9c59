"""What the numbers say, in sentences and in cells; shared by the page and the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .. import languages as tags
from ..phrases import Phrases
from .blocks import isolated, plain

Scores = Mapping[str, Any]


def titled(tag: str, say: Phrases) -> str:
    """`Khmer (km)`, as inline Markdown."""
    return plain(f"{say.name(tag)} ({tag})")


def variants(scores: Scores) -> list[str]:
    """Names of the models that have a divergence from the reference in every language of the text, in order."""
    return [
        name
        for name, model in scores["models"].items()
        if scores["languages"] and all("kl" in model["languages"].get(tag, {}) for tag in scores["languages"])
    ]


def kl(scores: Scores, name: str, language: str) -> dict[str, Any]:
    """The KL entry of one variant in one language."""
    entry: dict[str, Any] = scores["models"][name]["languages"][language]["kl"]
    return entry


def worst(scores: Scores, name: str) -> str:
    """The language in which a variant has drifted most, by KL per token."""
    tag: str = scores["models"][name]["worst"]["kl"]
    return tag


def at_worst(scores: Scores, name: str) -> str:
    """A variant's KL in the language in which it has drifted most, and that language: `0.68 (km)`."""
    tag = worst(scores, name)
    return f"{value(scores, name, tag)} ({tag})"


def means(scores: Scores, name: str) -> dict[str, str]:
    """A variant's mean KL over languages of Latin script, of others and all, by the name of their phrase; all alone where
    the languages are of one kind.
    """
    order = by_damage(scores)
    latin = [tag for tag in order if tags.is_latin(tag)]
    groups = {"damage.mean_latin": latin, "damage.mean_other": [tag for tag in order if tag not in latin]}
    if not all(groups.values()):
        groups = {}
    groups["damage.mean_all"] = order
    places = digits(scores, name)
    return {
        key: f"{mean([kl(scores, name, tag)['value'] for tag in group]):.{places}f}"
        for key, group in groups.items()
    }


def headline(scores: Scores, say: Phrases) -> str:
    """The finding in a sentence or two: who pays most, against English, and which variant mends it.

    Variants that were calibrated are set against each other where there are two: what the choice of
    text does is the finding, not that rounding is worse. A mend is claimed only where the paired
    change of KL between the two variants is significant in that language.
    """
    names = variants(scores)
    if set(scores["models"]) == {scores["reference"]}:
        return say("headline.reference", reference=isolated(scores["reference"]))
    if not names:
        return say("headline.none")
    if all(kl(scores, name, worst(scores, name))["value"] <= 1e-9 for name in names):
        return say("headline.zero", reference=isolated(scores["reference"]))
    informed = [name for name in names if calibrated(scores, name)]
    pool = informed if len(informed) > 1 else names
    bad = max(pool, key=lambda name: kl(scores, name, worst(scores, name))["value"])
    good = min(pool, key=lambda name: kl(scores, name, worst(scores, name))["value"])
    language = worst(scores, bad)
    spoken = say.name(language)
    drift = _drift(scores, bad, language, say)
    key = "headline.alone" if len(scores["languages"]) > 1 else "headline.single"
    first = say(key, language=spoken, variant=isolated(bad), drift=drift)
    if good == bad:
        return first
    verdict = _verdict_between(scores, bad, good, language)
    if verdict is None:
        return first
    names_of = {"bad": isolated(bad), "good": isolated(good)}
    if verdict != "better":
        found = said(verdict, say)
        return f"{first} {say('headline.between', verdict=found, language=spoken, **names_of)}"
    drift, last = _drift(scores, good, language, say), worst(scores, good)
    if last == language:
        return f"{first} {say('headline.mend', good=isolated(good), drift=drift)}"
    elsewhere = say(
        "headline.mend_elsewhere",
        good=isolated(good),
        drift=drift,
        last=say.name(last),
        value=value(scores, good, last),
    )
    return f"{first} {elsewhere}"


def value(scores: Scores, name: str, language: str) -> str:
    """A variant's KL in one language, with as many decimals as the variant's smallest needs."""
    return f"{kl(scores, name, language)['value']:.{digits(scores, name)}f}"


def digits(scores: Scores, name: str) -> int:
    """Decimals that show two figures of a variant's smallest KL: 2 to 4, the same in all languages."""
    entries = scores["models"][name]["languages"].values()
    smallest = min(entry["kl"]["value"] for entry in entries if "kl" in entry)
    return min(4, max(2, 1 - math.floor(math.log10(smallest)))) if smallest > 0 else 2


def _drift(scores: Scores, name: str, language: str, say: Phrases) -> str:
    """`2.98 nats a token, 8.1× what English pays`."""
    number = value(scores, name, language)
    if language == "en" or "en" not in scores["languages"]:
        return say("headline.drift", value=number)
    english = kl(scores, name, "en")["value"]
    if english <= 1e-9:
        return say("headline.drift_many", value=number)
    times = kl(scores, name, language)["value"] / english
    return say("headline.drift_times", value=number, times=f"{times:.1f}")


def _verdict_between(scores: Scores, first: str, second: str, language: str) -> str | None:
    for pair in scores["comparisons"]:
        entry = pair["languages"].get(language)
        if entry and (pair["first"], pair["second"]) == (first, second):
            return str(entry["verdict"])
        if entry and (pair["first"], pair["second"]) == (second, first):
            return {"worse": "better", "better": "worse"}.get(entry["verdict"], str(entry["verdict"]))
    return None


def said(verdict: str, say: Phrases) -> str:
    """A verdict of `scores.json` in the reader's language."""
    kind, _, margin = verdict.partition(" within ")
    key = "same" if kind == "no significant difference" else kind
    return say(f"verdict.{key}", margin=margin)


def cell(scores: Scores, name: str, language: str) -> str:
    """A variant's KL in one language with its interval: `0.37 [0.34, 0.41]`."""
    entry, places = kl(scores, name, language), digits(scores, name)
    if entry.get("low") is None:
        return f"{entry['value']:.{places}f}"
    return f"{entry['value']:.{places}f} [{entry['low']:.{places}f}, {entry['high']:.{places}f}]"


def called(kind: str, value: str, say: Phrases) -> str:
    """A method's name in words; as it stands where a later onggi has one that this one does not know."""
    return say(f"{kind}.{value}") if f"{kind}.{value}" in say else plain(value)


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


def uncalibrated(scores: Scores, name: str, language: str) -> bool:
    """True where the variant was calibrated, and not on this language."""
    known = calibrated(scores, name)
    return bool(known) and language not in known
