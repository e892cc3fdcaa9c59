"""Tables of a bench's page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def goal(what: str, most: float, measured: float, note: str, *, also: bool = True) -> dict[str, Any]:
    """A row of `goals`. also: what must hold beside the measured ratio, which the note tells."""
    return {"what": what, "goal": most, "measured": measured, "met": measured <= most and also, "note": note}


def goals(found: Sequence[dict[str, Any]], against: str) -> str:
    """Each goal with the measured ratio, met or missed. against: whose figure ours is divided by."""
    rows = [
        [
            g["what"],
            f"≤ {g['goal']}×",
            f"{g['measured']:.2f}×",
            "met" if g["met"] else "**missed**",
            g["note"],
        ]
        for g in found
    ]
    return table([f"what (ours : {against})", "goal", "measured", "", "how"], rows)
