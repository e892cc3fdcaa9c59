"""All models in all languages on one table, and which of them to ship in each language, with the evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from ..phrases import Phrases
from . import choice, items
from .blocks import Block, Heading, Items, Paragraph, Table, isolated, named, plain
from .wording import Scores, megabytes, said, titled

_TONES: Mapping[choice.Word, Literal["good", "bad"]] = {
    "best": "good",
    "better": "good",
    "damaged": "bad",
    "mixed": "bad",
}


def ship(scores: Scores, say: Phrases) -> list[Block]:
    """The matrix of languages by models, and a sentence for each language; nothing for a single model."""
    tags, names = choice.languages(scores), list(scores["models"])
    if len(names) < 2 or not tags:
        return []
    rows: list[list[str]] = []
    tones: dict[tuple[int, int], Literal["good", "bad"]] = {}
    for i, tag in enumerate(tags):
        words = [choice.word(scores, name, tag) for name in names]
        cells = [cell(scores, name, tag, word, say) for name, word in zip(names, words, strict=True)]
        pick = choice.choose(scores, tag).pick
        rows.append([titled(tag, say), plain(pick) if pick else say("ship.undecided"), *cells])
        tones |= {(i, 2 + j): _TONES[word] for j, word in enumerate(words) if word in _TONES}
    header = [say("damage.language"), say("ship.column"), *map(plain, names)]
    return [
        Heading(say("ship.title")),
        Paragraph(f"**{plain(summary(scores, say))}**"),
        Paragraph(say("ship.about", reference=named(scores["reference"]))),
        Table(header, rows, note=_note(scores, say), languages=tags, tones=tones),
        Items([plain(sentence(scores, tag, say)) for tag in tags]),
    ]


def summary(scores: Scores, say: Phrases) -> str:
    """Which model in which languages, in a line; plain text."""
    groups: dict[str | None, list[str]] = {}
    for tag in choice.languages(scores):
        groups.setdefault(choice.choose(scores, tag).pick, []).append(say.name(tag))
    parts = [
        say("ship.undecided_in", languages=", ".join(names))
        if pick is None
        else say("ship.in", pick=isolated(pick), languages=", ".join(names))
        for pick, names in groups.items()
    ]
    whole = next(iter(groups))
    if len(groups) == 1 and whole is not None:
        return say("ship.summary_all", pick=isolated(whole), count=len(groups[whole]))
    return say("ship.summary", groups="; ".join(parts))


def cell(scores: Scores, name: str, tag: str, word: str, say: Phrases) -> str:
    """A word, the change of nats (of the reference: its nats), the mean of the tasks and the judge's grade."""
    found = choice.entries(scores, name, tag)
    lines = [f"**{say(f'ship.word_{word}')}**"]
    if text := found.get(choice.TEXT):
        unit = f" {say('ship.nats')}" if name == scores["reference"] else ""
        lines.append(nats(scores, text, name, tag) + unit)
    if mean := _tasks(scores, found):
        lines.append(f"{mean} {say('ship.tasks')}")
    if grade := found.get(choice.GRADE):
        lines.append(f"{_range(grade, '.1f')} {say('ship.judge')}")
    if preferred := found.get(choice.PEOPLE):
        lines.append(f"{_range(preferred, '.0%')} {say('ship.people')}")
    return "\n".join(lines) if found else "–"


def nats(scores: Scores, entry: Mapping[str, Any], name: str, tag: str) -> str:
    """The change of nats against the reference, with its interval; for the reference itself, its nats."""
    base = choice.entries(scores, scores["reference"], tag).get(choice.TEXT)
    if name == scores["reference"] or not base or "relative_change" not in entry:
        return _range(entry, ".0f")
    words = f"{100 * entry['relative_change']:+.1f}%"
    if entry.get("change_low") is None:
        return words
    low, high = (100 * entry[key] / base["value"] for key in ("change_low", "change_high"))
    return f"{words} [{low:+.1f}, {high:+.1f}]"


def _range(entry: Mapping[str, Any], form: str) -> str:
    words = f"{entry['value']:{form}}"
    if entry.get("low") is None:
        return words
    return f"{words} [{entry['low']:{form}}, {entry['high']:{form}}]"


def _tasks(scores: Scores, found: Mapping[str, Mapping[str, Any]]) -> str:
    """The mean of the tasks that are shares, in percent. Their items are others, so variances add up."""
    keys = [
        key for name, key in choice.tasks(scores).items() if items.is_share(scores["tasks"][name]["metric"])
    ]
    own = [found[key] for key in keys if key in found]
    if not own:
        return ""
    mean = 100 * sum(entry["value"] for entry in own) / len(own)
    if any(entry.get("low") is None for entry in own):
        return f"{mean:.0f}%"
    reach = [
        100 * math.hypot(*(entry["value"] - entry[end] for entry in own)) / len(own)
        for end in ("low", "high")
    ]
    return f"{mean:.0f}% [{max(mean - reach[0], 0):.0f}, {min(mean + reach[1], 100):.0f}]"


def _note(scores: Scores, say: Phrases) -> str:
    """What stands under the matrix: what the words mean, and whose numbers are not of its own engine."""
    notes = [say("ship.words")]
    if any("nll_per_passage" in e for e in scores["models"][scores["reference"]]["languages"].values()):
        notes.append(say("ship.numbers"))
    for name, model in scores["models"].items():
        if choice.unpacked(scores, name):
            notes.append(say("ship.unpacked", name=named(name)))
        parts = [part for part, engine in (model.get("engines") or {}).items() if engine == "dequantised"]
        if parts:
            whole = len(parts) == len(model["engines"])
            key = "ship.dequantised" if whole else "ship.dequantised_parts"
            notes.append(say(key, name=named(name), parts=", ".join(map(plain, parts))))
    return " ".join(notes)


# ── the sentence ───────────────────────────────────────────────────────────────────────────────


def sentence(scores: Scores, tag: str, say: Phrases) -> str:
    """Which model to ship in a language and why, or that the evidence cannot decide; plain text."""
    found, spoken = choice.choose(scores, tag), say.name(tag)
    if found.pick is None:
        return say("ship.all_guess" if found.chance else "ship.nothing", language=spoken)
    if found.pick == scores["reference"]:
        key = "ship.smaller_worse" if found.smaller_worse else "ship.none_better"
        text = say("ship.pick", language=spoken, pick=isolated(found.pick), evidence=say(key))
    else:
        why = ", ".join(evidence(scores, found.pick, tag, say))
        text = say("ship.pick", language=spoken, pick=isolated(found.pick), evidence=why)
    if found.loss:
        bare = found.pick == scores["reference"]
        key = "ship.loss" if bare and found.smaller_worse else "ship.loss_smaller"
        why = ", ".join(_brief(scores, found.loss, tag, say, bare))
        text += say(key, name=isolated(found.loss), evidence=why)
    if found.here and found.here.pick:
        pick = found.here.pick
        own = [say("ship.is_reference")] if pick == scores["reference"] else _brief(scores, pick, tag, say)
        text += say("ship.here", name=isolated(pick), evidence=", ".join(own))
    return say("ship.end", sentence=text)


def evidence(scores: Scores, name: str, tag: str, say: Phrases) -> list[str]:
    """What is known of a variant in a language: size, nats, tasks, grade, leaks of other scripts."""
    reference = scores["reference"]
    own, base = choice.entries(scores, name, tag), choice.entries(scores, reference, tag)
    told = choice.verdicts(scores, name, tag)
    parts = [_size(scores, name, say)]
    if (text := own.get(choice.TEXT)) and "relative_change" in text:
        words = say("ship.text", change=f"{100 * text['relative_change']:+.1f}%")
        parts.append(say("ship.with_verdict", words=words, verdict=said(text["verdict"], say)))
    parts += _of_tasks(scores, own, told, tag, say)
    grade, other = own.get(choice.GRADE), base.get(choice.GRADE)
    if grade and other and "verdict" in grade:
        values = {"value": f"{grade['value']:.1f}", "base": f"{other['value']:.1f}"}
        parts.append(say("ship.grade", verdict=said(grade["verdict"], say), **values))
    if preferred := own.get(choice.PEOPLE):
        share, verdict = f"{preferred['value']:.0%}", said(preferred["verdict"], say)
        parts.append(say("ship.preferred", share=share, verdict=verdict, reference=isolated(reference)))
    for key in choice.RATES:
        if key in own and key in base and (key == "prompts/script" or told.get(key) == "worse"):
            parts.append(_rate(key, own[key], base[key], reference, say))
    return parts


def _brief(scores: Scores, name: str, tag: str, say: Phrases, bare: bool = False) -> list[str]:
    """As `evidence`, shorter: of a model that is named beside the pick. bare: the sentence names the reference."""
    reference = scores["reference"]
    own, base = choice.entries(scores, name, tag), choice.entries(scores, reference, tag)
    worse = [key for key, verdict in choice.verdicts(scores, name, tag).items() if verdict == "worse"]
    parts = [_size(scores, name, say, bare)]
    if (text := own.get(choice.TEXT)) and "relative_change" in text:
        parts.append(say("ship.text", change=f"{100 * text['relative_change']:+.1f}%"))
    asked = {task: key for task, key in choice.tasks(scores).items() if key in own}
    if names := [task for task, key in asked.items() if key in worse]:
        parts.append(say("ship.tasks_worse", names=", ".join(names)))
    elif asked:
        parts.append(say("ship.tasks_none"))
    if choice.GRADE in worse:
        values = {key: f"{e[choice.GRADE]['value']:.1f}" for key, e in (("value", own), ("base", base))}
        parts.append(say("ship.grade", verdict=say("verdict.worse"), **values))
    parts += [_rate(key, own[key], base[key], reference, say) for key in choice.RATES if key in worse]
    return parts


def _rate(key: str, own: Mapping[str, Any], base: Mapping[str, Any], reference: str, say: Phrases) -> str:
    """The share of a model's answers that fail, and of the reference's."""
    rate = key.removeprefix("prompts/")
    share, other = (1 - e["value"] if rate in ("script", "line") else e["value"] for e in (own, base))
    return say(f"ship.rate_{rate}", share=f"{share:.0%}", base=f"{other:.0%}", reference=isolated(reference))


def _size(scores: Scores, name: str, say: Phrases, bare: bool = False) -> str:
    own, whole = choice.size(scores, name), choice.size(scores, scores["reference"])
    reference = isolated(scores["reference"])
    if own is None:
        return say("ship.served")
    if whole is None:
        return megabytes(own)
    if own < 0.98 * whole:
        share = f"{own / whole:.0%}"
        return say("ship.smaller_bare" if bare else "ship.smaller", reference=reference, share=share)
    if own > 1.02 * whole:
        return say("ship.larger", times=f"{own / whole:.1f}", reference=reference)
    return say("ship.as_large", reference=reference)


def _of_tasks(
    scores: Scores,
    own: Mapping[str, Mapping[str, Any]],
    told: Mapping[str, str],
    tag: str,
    say: Phrases,
) -> list[str]:
    """On which tasks a sound model is shown to be better, on how many it is not, and what could not be seen."""
    asked = {name: key for name, key in choice.tasks(scores).items() if key in own}
    guessed = [name for name, key in asked.items() if choice.at_chance(scores, tag, key)]
    judged = {name: told[key] for name, key in asked.items() if key in told}
    parts = []
    if better := [name for name, found in judged.items() if found == "better"]:
        parts.append(say("ship.tasks_better", names=", ".join(better)))
    if rest := [name for name, found in judged.items() if found in ("same", "equivalent")]:
        words = say("ship.tasks_others" if parts else "ship.tasks_same", count=len(rest))
        unsure = [own[asked[name]].get("detectable") for name in rest if judged[name] == "same"]
        if seen := [points for points in unsure if points]:
            words += say("ship.detectable", points=f"{100 * max(seen):.1f}")
        parts.append(words)
    if guessed:
        parts.append(say("ship.guessed", count=len(guessed)))
    return parts
