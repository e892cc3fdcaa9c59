"""A page for each language: which model to ship there, all that was measured, and answers side by side.

Answers are the models' own words and can hold anything. They are text here from beginning to end: what
would act in a page or a terminal (control characters, halves of a surrogate pair) is shown as a sign.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..phrases import Phrases
from ..text.display import cut, direction, shown
from . import choice, compare, grades, items
from .blocks import Answer, Block, Heading, Page, Pages, Paragraph, Sample, Table, plain
from .wording import Scores, digits, said, titled

Row = Mapping[str, Any]
_SHOWN = 3  # prompts of a language, and questions of the judge


def first_answers(file: Path) -> list[Row]:
    """Rows of an evaluation's `answers.jsonl` that a report shows: of each language the first prompts, with
    the answers of all models. The file is read line by line; an evaluation without answers has none.
    """
    if not file.is_file():
        return []
    kept: dict[tuple[str, bool], list[str]] = defaultdict(list)
    rows = []
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            shown = kept[row["lang"], "turn" in row]
            if row["_id"] not in shown and len(shown) < _SHOWN:
                shown.append(row["_id"])
            if row["_id"] in shown:
                rows.append(row)
    return rows


def pages(scores: Scores, answers: Sequence[Row], say: Phrases) -> list[Block]:
    """A page for each language that something was measured in."""
    found = [
        Page(tag, titled(tag, say), blocks)
        for tag in choice.languages(scores)
        if (blocks := _page(scores, tag, [row for row in answers if row["lang"] == tag], say))
    ]
    return [Heading(say("pages.title")), Pages(found)] if found else []


def _page(scores: Scores, tag: str, answers: Sequence[Row], say: Phrases) -> list[Block]:
    blocks: list[Block] = []
    if len(scores["models"]) > 1:
        blocks.append(Paragraph(f"**{plain(compare.sentence(scores, tag, say))}**"))
    blocks += [*_text(scores, tag, say), *_tasks(scores, tag, say), *_answers(scores, tag, say)]
    names = grades.categories(scores, [tag])
    rows = [
        [plain(model), *cells]
        for model in scores["models"]
        if (cells := grades.graded(scores, model, tag, names, say))
    ]
    if rows:
        header = [say("answers.model"), *grades.columns(names, say)]
        blocks += [Paragraph(f"**{say('judge.title')}**"), Table(header, rows)]
    if answers:
        models = list(scores["models"])
        blocks += [Paragraph(f"**{say('samples.title')}**"), *samples(answers, models, say)]
    return blocks


def _text(scores: Scores, tag: str, say: Phrases) -> list[Block]:
    """What the text says of each model in one language; columns that no model has are left out."""
    rows = [
        [plain(name), *_measures(scores, name, tag, say)]
        for name, model in scores["models"].items()
        if choice.TEXT in model["languages"].get(tag, {})
    ]
    if not rows:
        return []
    keys = ("nats", "change", "kl", "p99", "kl_passage", "top1", "collapse")
    header = [say("answers.model"), *(say(f"detail.{key}") for key in keys)]
    used = [i for i in range(len(header)) if any(row[i] != "–" for row in rows)]
    table = Table([header[i] for i in used], [[row[i] for i in used] for row in rows])
    return [Paragraph(f"**{say('detail.title')}**"), table]


def _measures(scores: Scores, name: str, tag: str, say: Phrases) -> list[str]:
    own = scores["models"][name]["languages"][tag]
    text, kl = own[choice.TEXT], own.get("kl") or {}
    places = digits(scores, name) if kl else 2
    change = compare.nats(scores, text, name, tag) if "relative_change" in text else "–"
    if "verdict" in text:
        change += f"\n{said(text['verdict'], say)}"
    return [
        _interval(text, "{:.0f}"),
        change,
        _interval(kl, f"{{:.{places}f}}"),
        "–" if kl.get("p99") is None else f"{kl['p99']:.{places}f}",
        _interval(own.get("kl_per_passage"), "{:.1f}"),
        _interval(own.get("top1_agreement"), "{:.1%}"),
        f"{share:.0%}" if (share := (kl.get("collapse") or {}).get("share")) is not None else "–",
    ]


def _interval(entry: Mapping[str, Any] | None, form: str) -> str:
    if not entry:
        return "–"
    if entry.get("low") is None:
        return form.format(entry["value"])
    return f"{form.format(entry['value'])} [{form.format(entry['low'])}, {form.format(entry['high'])}]"


def _tasks(scores: Scores, tag: str, say: Phrases) -> list[Block]:
    rows = []
    for name, key in choice.tasks(scores).items():
        own = {m: about["languages"].get(tag, {}).get(key) for m, about in scores["models"].items()}
        if any(own.values()):
            metric = scores["tasks"][name]["metric"]
            floor = next((e["chance"] for e in own.values() if e and "chance" in e), None)
            cells = [items.cell(own[m], metric, say, "\n") for m in scores["models"]]
            rows.append([plain(name), *cells, "–" if floor is None else items.number(floor, metric)])
    header = [say("detail.task"), *map(plain, scores["models"]), say("tasks.chance")]
    return [Paragraph(f"**{say('tasks.title')}**"), Table(header, rows)] if rows else []


def _answers(scores: Scores, tag: str, say: Phrases) -> list[Block]:
    rates = items.rates_of(scores)
    rows = [
        [plain(model), *cells]
        for model in scores["models"]
        if (cells := items.answered(scores, model, tag, rates, say))
    ]
    header = [say("answers.model"), say("answers.n"), *(items.rate_name(rate, say) for rate in rates)]
    return [Paragraph(f"**{say('answers.title')}**"), Table(header, rows)] if rows else []


# ── answers side by side ───────────────────────────────────────────────────────────────────────


def samples(rows: Iterable[Row], models: Sequence[str], say: Phrases) -> list[Sample]:
    """The prompts of `rows`, each with every model's answer; models in the order of the evaluation."""
    asked: dict[tuple[str, Any], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        asked[row["_id"], row.get("turn")][row["model"]] = row
    found = []
    for (prompt, turn), by_model in asked.items():
        first = next(iter(by_model.values()))
        title = say("samples.turn", id=plain(prompt), turn=turn) if turn else plain(prompt)
        text = next((m["content"] for m in reversed(first["messages"]) if m["role"] == "user"), "")
        found.append(
            Sample(
                title,
                shown(text),
                first["lang"],
                direction(text, first["lang"]),
                [_answer(name, by_model[name], say) for name in models if name in by_model],
            )
        )
    return found


def _answer(name: str, row: Row, say: Phrases) -> Answer:
    text = shown(row.get("answer") or "")
    head, rest = cut(text)
    notes = [say(f"samples.{row['finish']}")] if f"samples.{row.get('finish')}" in say else []
    if row.get("score") is not None:
        notes.append(say("samples.score", score=f"{row['score']:g}"))
    if not text.strip():
        notes.append(say("answers.empty"))
    return Answer(plain(name), head, rest, direction(text, row["lang"]), "; ".join(notes))
