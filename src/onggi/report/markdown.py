"""The report as Markdown: reads well as text, renders on any forge. Its figures are in the HTML, and here where
they lie beside the page as files; what the others show stands in the tables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..phrases import Phrases
from .blocks import Block, Code, Figure, Heading, Items, Pages, Paragraph, Sample, Table


def page(sections: Sequence[Sequence[Block]], say: Phrases, title: str = "") -> str:
    """The whole report of one or several evaluations; `title` is the usual one by default."""
    return f"# {title or say('title')}\n\n" + "\n\n---\n\n".join(map(section, sections)) + "\n"


def section(blocks: Sequence[Block]) -> str:
    """The blocks of one evaluation."""
    drawn = [block for block in blocks if not isinstance(block, Figure) or block.file]
    following = [*drawn, Heading("")][1:]
    return "\n\n".join(
        _block(block)
        for block, after in zip(drawn, following, strict=True)
        # A heading over nothing but a figure that is not drawn here says nothing.
        if not (isinstance(block, Heading) and isinstance(after, Heading))
    )


def _block(block: Block) -> str:
    match block:
        case Figure():
            return f"![{block.caption}]({block.file})"
        case Heading():
            return f"## {block.text}"
        case Paragraph():
            return f"**{block.text}**" if block.lead else block.text
        case Items():
            return "\n".join(f"- {item}" for item in block.items)
        case Code():
            return _fenced(block.text)
        case Sample():
            # Of a long answer only its beginning: Markdown folds nothing away.
            answers = [
                f"{answer.model}{f' ({answer.note})' if answer.note else ''}\n\n"
                + _fenced(answer.text + ("…" if answer.rest else ""))
                for answer in block.answers
            ]
            return "\n\n".join([f"**{block.title}**", _fenced(block.prompt), *answers])
        case Pages():
            return "\n\n".join(f"### {page.title}\n\n{section(page.blocks)}" for page in block.pages)
        case Table():
            rows = [block.header, ["---"] * len(block.header), *block.rows, *block.summary]
            table = "\n".join(map(_row, rows))
            return f"{table}\n\n{block.note}" if block.note else table
        case _:
            raise TypeError(block)


def _fenced(text: str) -> str:
    """Text that nothing in it can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _row(cells: Sequence[str]) -> str:
    """A row of a table; a name may hold what would end a cell."""
    return "| " + " | ".join(cell.replace("|", r"\|").replace("\n", "<br>") for cell in cells) + " |"
