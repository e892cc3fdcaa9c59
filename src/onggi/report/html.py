"""The report as one HTML file that can be passed on: styles, script and drawings inside, nothing
fetched, nothing lost where scripts do not run or the page is printed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from .. import __version__, languages
from ..phrases import Phrases
from .blocks import Block, Code, Figure, Heading, Items, Pages, Paragraph, Sample, Table


def page(sections: Sequence[Sequence[Block]], title: str, say: Phrases) -> str:
    """The whole report of one or several evaluations; `title` is the window's."""
    return str(
        _template().render(
            sections=sections, title=title, say=say, language=say.language, version=__version__
        )
    )


@functools.cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    source = (resources.files(__package__) / "page.html").read_text(encoding="utf-8")
    kinds = {kind: kind.__name__ for kind in (Heading, Paragraph, Items, Code, Table, Figure, Sample, Pages)}
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "inline": _inline,
        "kind": lambda block: kinds[type(block)],
        "number": _number,
        "numeric": _numeric,
        "script": lambda tag: "latin" if languages.is_latin(tag) else "other",
        "own_name": lambda tag: languages.name(tag, tag),
        "direction": lambda tag: "rtl" if languages.is_right_to_left(tag) else "ltr",
    }
    return environment.from_string(source)


@functools.cache
def _reader() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("zero").enable(["escape", "emphasis", "backticks"])


def _inline(text: str) -> Any:
    """Inline Markdown (emphasis, code, escapes; no HTML, links or pictures) as HTML, with its line breaks."""
    from markupsafe import Markup

    return Markup("<br>").join(Markup(_reader().renderInline(line)) for line in text.split("\n"))


def _number(cell: str) -> str:
    """What a cell is sorted by, where it holds a number: the change in brackets, else the first one; of a
    cell of several lines that of the first line with one.
    """
    for line in cell.split("\n"):
        found = re.search(r"\(([+-]?\d+(?:\.\d+)?)%\)", line)
        found = found or re.match(r"[^\w+-]*([+-]?\d[\d,]*(?:\.\d+)?)", line)
        if found:
            return found[1].replace(",", "").lstrip("+")
    return ""


def _numeric(table: Table) -> set[int]:
    """Columns whose cells are numbers, where there are any: they stand to the right."""
    columns = enumerate(zip(*table.rows, strict=True))
    return {
        i
        for i, cells in columns
        if any(map(_number, cells)) and all(_number(cell) for cell in cells if cell not in ("", "–"))
    }
