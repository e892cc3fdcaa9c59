"""What a report says of tasks and of answers to prompts: a table of models by language for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..phrases import Phrases
from .blocks import Block, Heading, Paragraph, Table, plain
from .wording import Scores, said

_RATES = ("line", "script", "word", "loop", "empty", "cut", "exact", "chrf")


def tasks(scores: Scores, say: Phrases) -> list[Block]:
    """Every task's scores with verdicts; where no text was scored, the finding first."""
    if not scores.get("tasks"):
        return []
    margin = f"{100 * scores['margin']:g}%"
    blocks: list[Block] = [] if scores["text"] else [Paragraph(plain(headline(scores, say)), lead=True)]
    about = say("tasks.about", reference=plain(scores["reference"]), margin=margin)
    blocks += [Heading(say("tasks.title")), Paragraph(about)]
    for name, task in scores["tasks"].items():
        metric = f"{name}/{task['metric']}"
        header = [say("damage.language"), *map(plain, scores["models"])]
        found = {tag: _entries(scores, tag, metric) for tag in task["languages"]}
        chance = any("chance" in entry for entries in found.values() for entry in entries.values())
        header += [say("tasks.chance")] if chance else []
        rows = []
        for tag, entries in found.items():
            cells = [_cell(entries.get(model), task["metric"], say) for model in scores["models"]]
            # All models have the same items, and so the same floor.
            floor = next((entry["chance"] for entry in entries.values() if "chance" in entry), None)
            if chance:
                cells.append("–" if floor is None else _number(floor, task["metric"]))
            rows.append([plain(f"{say.name(tag)} ({tag})"), *cells])
        what = say("tasks.what", about=plain(task["about"]), metric=task["metric"], shots=task["shots"])
        seen = [e["detectable"] for own in found.values() for e in own.values() if e.get("detectable")]
        note = what
        if seen:
            note = f"{what} {say('tasks.detectable', points=f'{100 * max(seen):.1f}')}"
        blocks += [
            Paragraph(f"**{plain(name)}**"),
            Table(header, rows, note=note, languages=list(found)),
        ]
    return blocks


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
        return say("tasks.headline_none", reference=reference)
    _, model, tag, name, metric, entry = min(losses, key=lambda loss: loss[0])
    base = scores["models"][reference]["languages"][tag][metric]
    return say(
        "tasks.headline",
        variant=model,
        language=say.name(tag),
        task=name,
        value=_number(entry["value"], scores["tasks"][name]["metric"]),
        base=_number(base["value"], scores["tasks"][name]["metric"]),
        reference=reference,
    )


def _entries(scores: Scores, tag: str, metric: str) -> dict[str, Mapping[str, Any]]:
    """Model → its entry, where it has one."""
    return {
        model: about["languages"][tag][metric]
        for model, about in scores["models"].items()
        if metric in about["languages"].get(tag, {})
    }


def _number(value: float, metric: str) -> str:
    """Shares as percents, any other number (chrF, perplexity) as it is."""
    return f"{value:.1%}" if _is_share(metric) else f"{value:.4g}"


def _is_share(metric: str) -> bool:
    return metric.startswith(("acc", "exact"))


def _cell(entry: Mapping[str, Any] | None, metric: str, say: Phrases) -> str:
    """`62.0% [52.1%, 71.0%] worse (−12 +3)`."""
    if entry is None:
        return "–"
    words = _number(entry["value"], metric)
    if entry["low"] is not None:
        words += f" [{_number(entry['low'], metric)}, {_number(entry['high'], metric)}]"
    if "verdict" in entry:
        words += f" {said(entry['verdict'], say)}"
    if "right_to_wrong" in entry:
        words += f" (−{entry['right_to_wrong']} +{entry['wrong_to_right']})"
    return words


def answers(scores: Scores, say: Phrases) -> list[Block]:
    """How the answers to prompts fared, by language and model."""
    if not scores.get("prompts"):
        return []
    found = {
        (tag, model): {
            key.removeprefix("prompts/"): entry
            for key, entry in about["languages"].get(tag, {}).items()
            if key.startswith("prompts/")
        }
        for tag in scores["prompts"]["languages"]
        for model, about in scores["models"].items()
    }
    rates = [rate for rate in _RATES if any(rate in entries for entries in found.values())]
    rows = []
    for (tag, model), entries in found.items():
        total, failed = entries["failed"]["n"], entries["failed"]["value"]
        count = f"{total}" + (f" ({say('answers.failed')}: {failed})" if failed else "")
        cells = [_rate(rate, entries.get(rate)) for rate in rates]
        rows.append([plain(f"{say.name(tag)} ({tag})"), plain(model), count, *cells])
    names = [say("damage.language"), say("answers.model"), say("answers.n")]
    alone = not scores["text"] and not scores.get("tasks")
    lead = [Paragraph(say("tasks.headline_answers"), lead=True)] if alone else []
    return [
        *lead,
        Heading(say("answers.title")),
        Paragraph(say("answers.about")),
        Table(
            [*names, *("chrF" if rate == "chrf" else say(f"answers.{rate}") for rate in rates)],
            rows,
            languages=[tag for tag, _ in found],
        ),
    ]


def _rate(rate: str, entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "–"
    form = (lambda value: f"{value:.1f}") if rate == "chrf" else (lambda value: f"{value:.0%}")
    if entry["low"] is None:
        return form(entry["value"])
    return f"{form(entry['value'])} [{form(entry['low'])}, {form(entry['high'])}]"
