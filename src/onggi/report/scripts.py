"""What a report says of languages of Latin script and of others apart: the table of arXiv 2407.03211."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..phrases import Phrases
from . import choice, items
from .blocks import Block, Heading, Items, Paragraph, Table, named, plain
from .wording import Scores, digits

_GROUPS = ("latin", "other")
_MEANS = ("kl", "top1_agreement")
Entry = Mapping[str, Any]


def changes(scores: Scores, say: Phrases) -> list[Block]:
    """The relative change of every score, on the mean of the languages of each kind of script, a row for each
    variant and kind; and where other scripts are shown to lose more, or less. Nothing where only one kind of
    script was measured, or only the reference.
    """
    found = scores.get("by_script") or {}
    relative: Mapping[str, Any] = found.get("relative_change") or {}
    if not any("gap" in own for by_model in relative.values() for own in by_model.values()):
        return []
    means = {key: own for key in _MEANS if (own := (found.get("mean") or {}).get(key))}
    names = [name for name in scores["models"] if any(name in own for own in relative.values())]
    rows = [
        [
            plain(name),
            say(f"scripts.{group}"),
            *(_change(relative[key].get(name, {}).get(group)) for key in relative),
            *(_mean(scores, key, name, means[key].get(name, {}).get(group)) for key in means),
        ]
        for name in names
        for group in _GROUPS
        if any(group in own.get(name, {}) for own in relative.values())
    ]
    header = [say("answers.model"), say("damage.script")]
    # With an arrow the way that is better.
    header += [f"{_measure(key, say)} {'↓' if _falling(scores, key) else '↑'}" for key in relative]
    header += [say(f"scripts.{key}") for key in means]
    return [
        Heading(say("scripts.title")),
        Paragraph(say("scripts.about", reference=named(scores["reference"]))),
        Table(header, rows, note=_note(relative, found.get("left_out") or {}, say)),
        Paragraph(say("scripts.gap_about")),
        Items([_gap(scores, key, own, say) for key, own in relative.items()]),
    ]


def _measure(key: str, say: Phrases) -> str:
    """What a measure is called."""
    if key == choice.TEXT:
        return say("scripts.nats")
    if key == choice.GRADE:
        return say("judge.grade")
    if key.startswith("prompts/"):
        return items.rate_name(key.removeprefix("prompts/"), say)
    return plain(key.rpartition("/")[0])


def _falling(scores: Scores, key: str) -> bool:
    """Whether less is better."""
    task = (scores.get("tasks") or {}).get(key.rpartition("/")[0]) or {}
    return key == choice.TEXT or task.get("higher_is_better") is False


def _change(entry: Entry | None) -> str:
    return "–" if not entry else f"{100 * entry['value']:+.1f}%" + _limits(entry, "+.1f", 100)


def _mean(scores: Scores, key: str, name: str, entry: Entry | None) -> str:
    if not entry:
        return "–"
    if key == "kl":
        places = digits(scores, name)
        return f"{entry['value']:.{places}f}" + _limits(entry, f".{places}f", 1)
    return f"{100 * entry['value']:.1f}%" + _limits(entry, ".1f", 100)


def _limits(entry: Entry, form: str, times: float) -> str:
    if entry.get("low") is None:
        return ""
    return f" [{times * entry['low']:{form}}, {times * entry['high']:{form}}]"


def _note(relative: Mapping[str, Any], left_out: Mapping[str, list[str]], say: Phrases) -> str:
    """Which languages each mean is over, and which it could not be."""
    every = [entry for own in relative.values() for found in own.values() for entry in found.items()]
    groups = {
        group: list(dict.fromkeys(tag for key, entry in every if key == group for tag in entry["languages"]))
        for group in _GROUPS
    }
    latin, other = (", ".join(map(say.name, groups[group])) for group in _GROUPS)
    notes = [say("scripts.languages", latin=latin, other=other)]
    for key, tags in left_out.items():
        spoken = ", ".join(map(say.name, tags))
        notes.append(say("scripts.left_out", measure=_measure(key, say), languages=spoken))
    return " ".join(notes)


def _gap(scores: Scores, key: str, by_model: Mapping[str, Mapping[str, Entry]], say: Phrases) -> str:
    """With which variants the other scripts lose more by a measure, and with which Latin script does."""
    sign = 1 if _falling(scores, key) else -1  # above 0 the other scripts lose more
    sides: dict[str, list[str]] = {"more": [], "less": []}
    for name, found in by_model.items():
        gap = found.get("gap")
        if gap and gap.get("low") is not None and gap["low"] * gap["high"] > 0:
            side = "more" if sign * gap["value"] > 0 else "less"
            points = f"{100 * abs(gap['value']):.1f}"
            sides[side].append(say("scripts.gap_of", name=named(name), points=points))
    parts = [say(f"scripts.gap_{side}", names=", ".join(own)) for side, own in sides.items() if own]
    found_words = "; ".join(parts) or say("scripts.gap_none")
    return say("scripts.gap", measure=_measure(key, say), found=found_words)
