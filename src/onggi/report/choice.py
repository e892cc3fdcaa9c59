"""Which model to ship in a language: a rule on what `scores.json` says. No sentence; those are `compare`'s.

A model is *sound* in a language where nothing that was measured there shows it to be worse than the
reference. Of the sound ones, those shown to be better come first, and of these none that another of
them clearly beats; the smallest is taken. What cannot tell models apart does not count: a task on which
all of them guess.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .wording import Scores

Entry = Mapping[str, Any]
Word = Literal["reference", "best", "better", "same", "unshown", "mixed", "damaged", "unmeasured"]

TEXT, GRADE, RATING = "nll_per_passage", "judge/score", "judge/rating"
PEOPLE = "people/preference"
RIGHT = ("prompts/exact", "prompts/chrf")
# Rates of answers that speak against a model where they are clearly worse than the reference's.
RATES = ("prompts/script", "prompts/line", "prompts/loop", "prompts/empty")
_FEWER_IS_BETTER = (TEXT, "prompts/loop", "prompts/empty")
_AS_LARGE = 1.02  # sizes that differ by less are one size


@dataclass(frozen=True)
class Choice:
    """What the rule says in one language.

    pick: None where the evidence cannot decide, and `chance` then says that all models guess on all tasks.
    smaller_worse: every smaller model that was measured is shown to be worse; loss: of these the one that
    loses least. here: where the pick is behind a server, the choice among the models that are not.
    """

    language: str
    pick: str | None
    chance: bool = False
    smaller_worse: bool = False
    loss: str | None = None
    here: Choice | None = None


def languages(scores: Scores) -> list[str]:
    """Every language that something was measured in: those of the text first."""
    found = [tag for model in scores["models"].values() for tag in model["languages"]]
    return list(dict.fromkeys([*scores["languages"], *found]))


def tasks(scores: Scores) -> dict[str, str]:
    """Task → the key of its entries."""
    return {name: f"{name}/{task['metric']}" for name, task in (scores.get("tasks") or {}).items()}


def entries(scores: Scores, name: str, tag: str) -> dict[str, Entry]:
    """What speaks for or against a model in a language, by its key in `scores.json`."""
    own = scores["models"][name]["languages"].get(tag, {})
    keys = [TEXT, *tasks(scores).values(), *RIGHT, GRADE, PEOPLE, *RATES]
    found = {key: own[key] for key in keys if key in own and own[key].get("value") is not None}
    judged = (scores.get("judge") or {}).get("languages", {}).get(tag) or {}
    if rating := (judged.get("ratings") or {}).get(name):
        found[RATING] = rating
    return found


def at_chance(scores: Scores, tag: str, key: str) -> bool:
    """True for a task on which no model is shown to do better than guessing, or than one answer always."""
    found = [entries(scores, name, tag).get(key) for name in scores["models"]]
    return all(
        "chance" in entry
        and (entry.get("low") is None or entry["low"] <= max(entry["chance"], entry.get("majority") or 0.0))
        for entry in found
        if entry
    )


def verdicts(scores: Scores, name: str, tag: str) -> dict[str, str]:
    """Key → worse, better, equivalent or same (no significant difference), of all that tells models apart.

    Rates of answers have no verdict of their own: one is worse where the intervals do not touch. A rating is
    set against the reference's, which is 0.
    """
    base = entries(scores, scores["reference"], tag)
    found = {}
    for key, entry in entries(scores, name, tag).items():
        if key == RATING:
            if name != scores["reference"] and entry.get("low") is not None:
                found[key] = "worse" if entry["high"] < 0 else "better" if entry["low"] > 0 else "same"
        elif key in RATES and name != scores["reference"] and key in base:
            found[key] = "worse" if _above(scores, key, base[key], entry) else "same"
        elif "verdict" in entry and not at_chance(scores, tag, key):
            kind = entry["verdict"].partition(" within ")[0]
            found[key] = "same" if kind == "no significant difference" else kind
    return found


def _above(scores: Scores, key: str, one: Entry, other: Entry) -> bool:
    """True where the interval of `one` lies wholly on the better side of that of `other`."""
    low, high = ("change_low", "change_high") if key == TEXT else ("low", "high")
    if any(entry.get(end) is None for entry in (one, other) for end in (low, high)):
        return False
    task = next((name for name, own in tasks(scores).items() if own == key), None)
    falling = task is not None and scores["tasks"][task].get("higher_is_better") is False
    if key in _FEWER_IS_BETTER or falling:
        return bool(one[high] < other[low])
    return bool(one[low] > other[high])


def _beats(scores: Scores, one: str, other: str, tag: str) -> bool:
    """True where `one` is clearly better than `other` at something and clearly worse at nothing."""
    first, second = entries(scores, one, tag), entries(scores, other, tag)
    shared = [key for key in first if key in second and not at_chance(scores, tag, key)]
    wins = any(_above(scores, key, first[key], second[key]) for key in shared)
    return wins and not any(_above(scores, key, second[key], first[key]) for key in shared)


def best(scores: Scores, tag: str, names: Sequence[str] | None = None) -> list[str]:
    """Of `names` (default: all models) those that none of them is shown to be better than."""
    reference = scores["reference"]
    said = {name: set(verdicts(scores, name, tag).values()) for name in names or scores["models"]}
    sound = [
        name
        for name, kinds in said.items()
        if (kinds or (name == reference and entries(scores, name, tag))) and "worse" not in kinds
    ]
    pool = [name for name in sound if "better" in said[name]] or sound
    # Against the reference there are verdicts, which are of pairs and corrected; intervals say less.
    return [
        name
        for name in pool
        if name == reference
        or not any(other not in (name, reference) and _beats(scores, other, name, tag) for other in pool)
    ]


def word(scores: Scores, name: str, tag: str) -> Word:
    """How a model does in a language, in one word."""
    decided = choose(scores, tag).pick is not None
    if name == scores["reference"]:
        return "best" if decided and name in best(scores, tag) else "reference"
    kinds = set(verdicts(scores, name, tag).values())
    if not kinds:
        return "unmeasured"
    if "worse" in kinds:
        return "mixed" if "better" in kinds else "damaged"
    if "better" in kinds:
        return "best" if name in best(scores, tag) else "better"
    return "same" if kinds == {"equivalent"} else "unshown"


def size(scores: Scores, name: str) -> int | None:
    """Bytes of a model's weights; None behind a server."""
    found: int | None = scores["models"][name].get("bytes") or None
    return found


def unpacked(scores: Scores, name: str) -> bool:
    """True where the size is of weights unpacked to bf16: a package that was a GGUF file."""
    model = scores["models"][name]
    whole = model["source"].endswith(".gguf") or model["about"].get("file")
    return bool(model["about"].get("format") == "gguf" and not whole)


def choose(scores: Scores, tag: str, names: Sequence[str] | None = None) -> Choice:
    """The model to ship in `tag`, of `names` (default: of all)."""
    names = names or list(scores["models"])
    told = {name: verdicts(scores, name, tag) for name in names}
    # In which language and how an answer ends says nothing of whether it is any good.
    if not any(key not in RATES for own in told.values() for key in own):
        asked = [key for key in tasks(scores).values() if any(key in entries(scores, n, tag) for n in names)]
        return Choice(tag, None, chance=any(at_chance(scores, tag, key) for key in asked))
    found = best(scores, tag, names)
    if not found:
        return Choice(tag, None)
    least = min(size(scores, name) or math.inf for name in found)
    light = [name for name in found if (size(scores, name) or math.inf) <= _AS_LARGE * least]
    pick = min(light, key=lambda name: lost(scores, name, tag))
    own = size(scores, pick)
    if own is None:
        local = [name for name in names if size(scores, name)]
        return Choice(tag, pick, here=choose(scores, tag, local) if local else None)
    smaller = [n for n in names if n != pick and _AS_LARGE * (size(scores, n) or math.inf) < own and told[n]]
    worse = [name for name in smaller if "worse" in told[name].values()]
    loss = min(worse, key=lambda name: lost(scores, name, tag), default=None)
    return Choice(tag, pick, smaller_worse=bool(smaller) and worse == smaller, loss=loss)


def lost(scores: Scores, name: str, tag: str) -> tuple[float, float]:
    """What a model loses against the reference, for an order: of nats first, then of tasks on the mean."""
    own = entries(scores, name, tag)
    nats = own.get(TEXT, {}).get("relative_change")
    if nats is None:
        nats = 0.0 if name == scores["reference"] else math.inf
    keys = [key for key in tasks(scores).values() if key in own]
    changes = [relative(scores, key, name, tag) for key in keys]
    return nats, -sum(changes) / len(changes) if changes else 0.0


def relative(scores: Scores, key: str, name: str, tag: str) -> float:
    """The change of a task's score as a share of the reference's; above 0 it is a gain."""
    base = entries(scores, scores["reference"], tag).get(key)
    change = entries(scores, name, tag)[key].get("change") or 0.0
    if not base or not base["value"]:
        return 0.0
    task = next(name for name, own in tasks(scores).items() if own == key)
    sign = -1 if scores["tasks"][task].get("higher_is_better") is False else 1
    return float(sign * change / abs(base["value"]))
