"""The report as a table on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import languages as tags
from .wording import Scores, by_damage, cell, headline, kl, variants, worst


def show(console: Console, scores: Scores) -> None:
    """Print headline and damage table of one evaluation. Names are Text: they may hold brackets,
    which are markup to rich.
    """
    names = variants(scores)
    table = Table(
        title=Text(f"KL from {scores['reference']}, nats a token [95% interval], {scores['text']}"),
        title_justify="left",
    )
    table.add_column("language")
    for name in names:
        table.add_column(Text(name), justify="right", no_wrap=True)
    previous: bool | None = None
    for tag in by_damage(scores):
        if previous is not None and previous != tags.is_latin(tag):
            table.add_section()
        previous = tags.is_latin(tag)
        table.add_row(f"{tags.name(tag)} ({tag})", *(Text(cell(kl(scores, name, tag))) for name in names))
    table.add_section()
    table.add_row(
        "worst",
        *(f"{kl(scores, name, worst(scores, name))['value']:.2f} ({worst(scores, name)})" for name in names),
    )
    if names:
        console.print(table)
    console.print(f"\n{headline(scores)}", markup=False, soft_wrap=True)
