"""What a report says of tasks, of answers to prompts and of their grades: a table of models by language for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..phrases import Phrases
from . import choice, wording
from .blocks import Block, Heading, Paragraph, Table, isolated, named, plain
from .wording import Scores, said, titled

_RATES = ("line", "script", "word", "loop", "empty", "cut", "exact", "chrf")


def lead(scores: Scores, say: Phrases) -> str:
    """The finding of an evaluation, whatever was measured: of the text where one was scored, else of the tasks."""
    if scores["text"]:
        return wording.headline(scores, say)
    return headline(scores, say) if scores.get("tasks") else say("tasks.headline_answers")


def tasks(scores: Scores, say: Phrases) -> list[Block]:
    """Every task's scores with verdicts, and how many items flipped."""
    if not scores.get("tasks"):
        return []
    margin = f"{100 * scores['margin']:g}%"
    about = say("tasks.about", reference=named(scores["reference"]), margin=margin)
    blocks: list[Block] = [Heading(say("tasks.title")), Paragraph(about)]
    for name, task in scores["tasks"].items():
        metric = f"{name}/{task['metric']}"
        header = [say("damage.language"), *map(plain, scores["models"])]
        found = {tag: _entries(scores, tag, metric) for tag in task["languages"]}
        chance = any("chance" in entry for entries in found.values() for entry in entries.values())
        header += [say("tasks.chance")] if chance else []
        rows = []
        for tag, entries in found.items():
            cells = [cell(entries.get(model), task["metric"], say) for model in scores["models"]]
            # All models have the same items, and so the same floor.
            floor = next((entry["chance"] for entry in entries.values() if "chance" in entry), None)
            if chance:
                cells.append("–" if floor is None else number(floor, task["metric"]))
            rows.append([titled(tag, say), *cells])
        note = [say("tasks.what", about=plain(task["about"]), metric=task["metric"], shots=task["shots"])]
        if f"tasks.{task.get('form')}" in say:
            note.append(say(f"tasks.{task['form']}"))
        if unread := sum(e.get("unread", 0) for own in found.values() for e in own.values()):
            total = sum(e["n"] for own in found.values() for e in own.values() if "unread" in e)
            note.append(say("tasks.unread", count=unread, total=total))
        if out := sum((task.get("left_out") or {}).values()):
            note.append(say("tasks.left_out", count=out))
        seen = [e["detectable"] for own in found.values() for e in own.values() if e.get("detectable")]
        if seen:
            note.append(say("tasks.detectable", points=f"{100 * max(seen):.1f}"))
        blocks += [
            Paragraph(f"**{plain(name)}**"),
            Table(header, rows, note=" ".join(note), languages=list(found)),
        ]
    return [*blocks, *_flips(scores, say)]


def _flips(scores: Scores, say: Phrases) -> list[Block]:
    """Items of all tasks together that were lost and won, by language and model; where there are two tasks."""
    keys = choice.tasks(scores).values()
    names = [name for name in scores["models"] if name != scores["reference"]]
    rows, tags = [], []
    for tag in choice.languages(scores):
        found = [
            [entry for key in keys if "right_to_wrong" in (entry := own.get(key, {}))]
            for own in (scores["models"][name]["languages"].get(tag, {}) for name in names)
        ]
        if any(found):
            tags.append(tag)
            rows.append([titled(tag, say), *map(_flipped, found)])
    if len(keys) < 2 or not rows:
        return []
    header = [say("damage.language"), *map(plain, names)]
    about = Paragraph(say("flips.about", reference=named(scores["reference"])))
    return [Heading(say("flips.title")), about, Table(header, rows, languages=tags)]


def _flipped(entries: Sequence[Mapping[str, Any]]) -> str:
    if not entries:
        return "–"
    lost, won, asked = (sum(e[key] for e in entries) for key in ("right_to_wrong", "wrong_to_right", "n"))
    return f"{(lost + won) / asked:.1%} (−{lost} +{won} / {asked})"


def headline(scores: Scores, say: Phrases) -> str:
    """The largest loss that is shown, of any model on any task in any language."""
    losses = []
    for name, task in scores["tasks"].items():
        metric = f"{name}/{task['metric']}"
        for tag in task["languages"]:
            for model, entry in _entries(scores, tag, metric).items():
                if entry.get("verdict") == "worse":
                    # Tasks differ in unit: a loss is set against what the reference has.
                    base = scores["models"][scores["reference"]]["languages"][tag][metric]["value"]
                    relative = abs(entry["change"]) / abs(base) if base else 0.0
                    losses.append((-relative, model, tag, name, metric, entry))
    reference = scores["reference"]
    if not losses:
        return say("tasks.headline_none", reference=isolated(reference))
    _, model, tag, name, metric, entry = min(losses, key=lambda loss: loss[0])
    base = scores["models"][reference]["languages"][tag][metric]
    return say(
        "tasks.headline",
        variant=isolated(model),
        language=say.name(tag),
        task=name,
        value=number(entry["value"], scores["tasks"][name]["metric"]),
        base=number(base["value"], scores["tasks"][name]["metric"]),
        reference=isolated(reference),
    )


def _entries(scores: Scores, tag: str, metric: str) -> dict[str, Mapping[str, Any]]:
    """Model → its entry, where it has one."""
    return {
        model: about["languages"][tag][metric]
        for model, about in scores["models"].items()
        if metric in about["languages"].get(tag, {})
    }


def number(value: float, metric: str) -> str:
    """Shares as percents, any other number (chrF, perplexity) as it is."""
    return f"{value:.1%}" if is_share(metric) else f"{value:.4g}"


def is_share(metric: str) -> bool:
    """True for a metric that is a share of the items."""
    return metric.startswith(("acc", "exact"))


def cell(entry: Mapping[str, Any] | None, metric: str, say: Phrases, between: str = " ") -> str:
    """`62.0% [52.1%, 71.0%] worse (−12 +3)`, or a line each."""
    if entry is None:
        return "–"
    words = number(entry["value"], metric)
    if entry["low"] is not None:
        words += f" [{number(entry['low'], metric)}, {number(entry['high'], metric)}]"
    parts = [words]
    if "verdict" in entry:
        parts.append(said(entry["verdict"], say))
    if entry.get("unread"):
        parts.append(f"({say('tasks.unread_short', count=entry['unread'])})")
    if "right_to_wrong" in entry:
        parts.append(f"(−{entry['right_to_wrong']} +{entry['wrong_to_right']})")
    return between.join(parts)


def answers(scores: Scores, say: Phrases) -> list[Block]:
    """How the answers to prompts fared, by language and model."""
    if not scores.get("prompts"):
        return []
    rows, tags = [], []
    rates = rates_of(scores)
    for tag in scores["prompts"]["languages"]:
        for model in scores["models"]:
            if cells := answered(scores, model, tag, rates, say):
                rows.append([titled(tag, say), plain(model), *cells])
                tags.append(tag)
    names = [say("damage.language"), say("answers.model"), say("answers.n")]
    header = [*names, *(rate_name(rate, say) for rate in rates)]
    return [
        Heading(say("answers.title")),
        Paragraph(say("answers.about")),
        Table(header, rows, languages=tags),
    ]


def rates_of(scores: Scores) -> list[str]:
    """The rates that some answers have."""
    found = {
        key
        for model in scores["models"].values()
        for entries in model["languages"].values()
        for key in entries
    }
    return [rate for rate in _RATES if f"prompts/{rate}" in found]


def rate_name(rate: str, say: Phrases) -> str:
    """What a column of a rate is called."""
    return "chrF" if rate == "chrf" else say(f"answers.{rate}")


def answered(scores: Scores, model: str, tag: str, rates: Sequence[str], say: Phrases) -> list[str]:
    """Cells of one model's answers in a language: how many, and each rate; none where it gave none."""
    entries = scores["models"][model]["languages"].get(tag, {})
    if "prompts/failed" not in entries:
        return []
    total, failed = entries["prompts/failed"]["n"], entries["prompts/failed"]["value"]
    count = f"{total}" + (f" ({say('answers.failed')}: {failed})" if failed else "")
    return [count, *(_rate(rate, entries.get(f"prompts/{rate}")) for rate in rates)]


def _rate(rate: str, entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "–"
    form = (lambda value: f"{value:.1f}") if rate == "chrf" else (lambda value: f"{value:.0%}")
    if entry["low"] is None:
        return form(entry["value"])
    return f"{form(entry['value'])} [{form(entry['low'])}, {form(entry['high'])}]"
