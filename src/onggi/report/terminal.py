"""The report as a table on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import languages as tags
from ..phrases import Phrases
from .wording import Scores, by_damage, cell, headline, value, variants, worst


def show(console: Console, scores: Scores, say: Phrases) -> None:
    """Print headline and damage table of one evaluation. Names are Text: they may hold brackets,
    which are markup to rich.
    """
    names = variants(scores)
    table = Table(
        title=Text(say("terminal.title", reference=scores["reference"], text=scores["text"])),
        title_justify="left",
    )
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
        *(f"{value(scores, name, worst(scores, name))} ({worst(scores, name)})" for name in names),
    )
    if names:
        console.print(table)
    console.print(f"\n{headline(scores, say)}", markup=False, soft_wrap=True)
