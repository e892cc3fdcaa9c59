"""The report as a table on the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import languages as tags
from ..phrases import Phrases
from . import compare, grades, items
from .blocks import Block, Paragraph
from .blocks import Table as Rows
from .wording import Scores, at_worst, by_damage, cell, headline, means, variants


def show(console: Console, scores: Scores, say: Phrases) -> None:
    """Print headline and damage table of one evaluation. Names are Text: they may hold brackets,
    which are markup to rich.
    """
    if not scores["text"]:
        console.print(items.lead(scores, say), markup=False, soft_wrap=True)
        for part in (items.tasks, items.answers, grades.judge):
            for block in part(scores, say):
                _show(console, block)
        _ship(console, scores, say)
        return
    names = variants(scores)
    if names:
        table = _languages(scores, names, say)
        wide = console.measure(table, options=console.options.update(max_width=10_000)).maximum
        console.print(table if wide <= console.width else _means(scores, names, say))
    console.print(f"\n{headline(scores, say)}", markup=False, soft_wrap=True)
    _ship(console, scores, say)


def _titled(scores: Scores, say: Phrases) -> Table:
    title = Text(say("terminal.title", reference=scores["reference"], text=scores["text"]))
    return Table(title=title, title_justify="left")


def _languages(scores: Scores, names: Sequence[str], say: Phrases) -> Table:
    """A row for each language, a column for each variant."""
    table = _titled(scores, say)
    table.add_column(say("damage.language"))
    for name in names:
        table.add_column(Text(name), justify="right", no_wrap=True)
    previous: bool | None = None
    for tag in by_damage(scores):
        if previous is not None and previous != tags.is_latin(tag):
            table.add_section()
        previous = tags.is_latin(tag)
        table.add_row(f"{say.name(tag)} ({tag})", *(Text(cell(scores, name, tag)) for name in names))
    table.add_section()
    table.add_row(
        say("damage.worst"),
        *(at_worst(scores, name) for name in names),
    )
    return table


def _means(scores: Scores, names: Sequence[str], say: Phrases) -> Table:
    """A row for each variant, where they are too many to stand side by side: its worst language, and its means."""
    table = _titled(scores, say)
    for title in ("", say("damage.worst"), *map(say, means(scores, names[0]))):
        table.add_column(title, justify="right" if title else "left")
    for name in names:
        table.add_row(Text(name), at_worst(scores, name), *means(scores, name).values())
    return table


def _ship(console: Console, scores: Scores, say: Phrases) -> None:
    if len(scores["models"]) > 1:
        console.print(f"\n{compare.summary(scores, say)}", markup=False, soft_wrap=True)


def _show(console: Console, block: Block) -> None:
    """A table of a report, or a heading above one, on a terminal."""
    if isinstance(block, Rows):
        table = Table()
        for cell in block.header:
            table.add_column(Text(_bare(cell)))
        for row in block.rows:
            table.add_row(*(Text(_bare(cell)) for cell in row))
        console.print(table)
    elif isinstance(block, Paragraph) and block.text.startswith("**"):
        console.print(f"\n{_bare(block.text)}", markup=False, soft_wrap=True)


def _bare(text: str) -> str:
    """Inline Markdown without its marks."""
    return re.sub(r"\\(.)", r"\1", text.replace("**", ""))
