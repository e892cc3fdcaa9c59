"""What a report is made of, whatever it is written as: `content` makes blocks, `markdown` and
`html` write them.

Text in blocks is inline Markdown; what comes from outside (names, paths) goes through `plain` or
`code`, so that no name ends a cell or turns into markup.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..errors import one_line
from ..text.display import Direction


@dataclass(frozen=True)
class Heading:
    """A section's heading."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Running text; `lead` for the finding that everything else supports."""

    text: str
    lead: bool = False


@dataclass(frozen=True)
class Items:
    """A bulleted list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Lines as they are typed."""

    text: str


@dataclass(frozen=True)
class Mark:
    """What stands for a variant in a figure: a character and a CSS colour."""

    symbol: str
    colour: str


@dataclass(frozen=True)
class Table:
    """Rows under a header. languages: the language of each row, where rows are languages; summary:
    rows that stand below whatever the order of the others; marks: what stands for a column's
    variant in the figures; tones: (row, column) of cells whose words say that they are good or bad, for
    who skims by colour. A cell may have several lines.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    summary: Sequence[Sequence[str]] = ()
    note: str = ""
    languages: Sequence[str] = ()
    marks: Mapping[int, Mark] = field(default_factory=dict)
    tones: Mapping[tuple[int, int], Literal["good", "bad"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """One SVG drawing, its heading where it has one, and what it shows, for who cannot see it."""

    svg: str
    title: str
    description: str


@dataclass(frozen=True)
class Figure:
    """Panels side by side, or one under the other where the page is narrow. legend: mark and name. file: name of the
    drawing beside the page, where it lies there too.
    """

    panels: Sequence[Panel]
    caption: str
    legend: Sequence[tuple[Mark, str]] = ()
    file: str | None = None


@dataclass(frozen=True)
class Answer:
    """What one model said. text and rest are the model's own, no Markdown: `rest` is what is folded away."""

    model: str
    text: str
    rest: str
    direction: Direction
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """A prompt in its language and the answers to it, to stand side by side. prompt: no Markdown either."""

    title: str
    prompt: str
    language: str
    direction: Direction
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Page:
    """All that is about one language."""

    language: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Pages:
    """A page for each language, one at a time where scripts run."""

    pages: Sequence[Page]


Block = Heading | Paragraph | Items | Code | Table | Figure | Sample | Pages


def plain(text: str) -> str:
    """`text` as inline Markdown that reads as it stands."""
    escaped = re.sub(r"([\\`*\[\]<>&~])", r"\\\1", one_line(text))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", escaped)  # w4_g128 needs no escape


def isolated(name: str) -> str:
    """`name` so that one written from right to left leaves the sentence around it in order."""
    mixed = any(unicodedata.bidirectional(character) in _TURNS for character in name)
    return f"\u2068{name}\u2069" if mixed else name


_TURNS = {"R", "AL", "AN", "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def named(name: str) -> str:
    """A model's name as inline Markdown, in running text."""
    return plain(isolated(name))


def code(text: str) -> str:
    """`text` as a code span."""
    text = one_line(text)
    runs = [len(run) for run in re.findall(r"`+", text)]
    fence = "`" * next(n for n in range(1, len(runs) + 2) if n not in runs)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"
