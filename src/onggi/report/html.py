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
from .blocks import Block, Code, Figure, Heading, Items, Paragraph, Table


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
    kinds = {kind: kind.__name__ for kind in (Heading, Paragraph, Items, Code, Table, Figure)}
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "inline": _inline,
        "kind": lambda block: kinds[type(block)],
        "number": _number,
        "script": lambda tag: "latin" if languages.is_latin(tag) else "other",
        "own_name": lambda tag: languages.name(tag, tag),
        "direction": lambda tag: "rtl" if languages.script(tag) in _RIGHT_TO_LEFT else "ltr",
    }
    return environment.from_string(source)


_RIGHT_TO_LEFT = {"Arab", "Hebr", "Thaa", "Syrc", "Nkoo", "Adlm", "Rohg", "Mand", "Samr"}


@functools.cache
def _reader() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("zero").enable(["escape", "emphasis", "backticks"])


def _inline(text: str) -> Any:
    """Inline Markdown (emphasis, code, escapes; no HTML, links or pictures) as HTML."""
    from markupsafe import Markup

    return Markup(_reader().renderInline(text))


def _number(cell: str) -> str:
    """What a cell is sorted by, where it holds a number: the change in brackets, else the first one."""
    found = re.search(r"\(([+-]?\d+(?:\.\d+)?)%\)", cell) or re.match(r"\W*(\d[\d,]*(?:\.\d+)?)", cell)
    return found[1].replace(",", "").lstrip("+") if found else ""
