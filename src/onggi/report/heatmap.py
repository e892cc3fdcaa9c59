"""What each layer costs each language, and the bits that its parts got: the matrix behind a budget."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len

from ..phrases import Phrases
from .figures import _FONT, _INK, _LETTER, _drawing, _svg

_CELL, _SPACE = 24, 34  # CSS pixels: a cell's side, and what titles take
_WIDE = 720  # more layers than fit make narrower cells, without numbers in them
_BITS = re.compile(r"(?:w|I?Q)(\d+)[a_]")  # of a scheme, w4a16, or of a type of GGUF, Q4_K


def heatmap(matrix: Mapping[str, Any], say: Phrases | None = None) -> str:
    """An SVG of `sensitivity.json`, in the reader's language (default: English): for each language the share of each layer
    in what the coarsest choice costs it, in percent; below, the bits of each part of each layer. Every row sums to 100,
    so that languages are seen apart whatever their damage; the darker, the more.
    """
    say = say or Phrases("en")
    units: Sequence[Mapping[str, Any]] = matrix["units"]
    layers = max(unit["layer"] for unit in units) + 1
    coarsest = min(units[0]["bits"], key=lambda choice: sum(unit["bits"][choice] for unit in units))
    names = list(units[0]["damage"][coarsest])
    damage = {name: [0.0] * layers for name in names}
    for unit in units:
        for name in names:
            damage[name][unit["layer"]] += unit["damage"][coarsest][name]
    shares = {name: [100 * value / (sum(own) or 1.0) for value in own] for name, own in damage.items()}
    parts = _parts(units)
    chosen: dict[str, list[str]] = {part: [""] * layers for part in dict.fromkeys(parts)}
    for unit, part, choice in zip(units, parts, matrix["chosen"], strict=True):
        found = _BITS.match(choice)
        chosen[part][unit["layer"]] = found[1] if found else choice
    left = max(cell_len(say.name(name)) for name in names)
    left = max([left, *map(len, chosen)]) * _LETTER + 14
    cell = min(_CELL, (_WIDE - left) / layers)
    width = left + cell * layers + 10
    height = 2 * _SPACE + _CELL * (len(names) + len(chosen)) + 30
    with _drawing(width, height) as figure:
        top = _SPACE
        numbers = [[f"{value:.0f}" for value in own] for own in shares.values()]
        rows = [say.name(name) for name in names]
        title = say("heatmap.shares", choice=coarsest)
        box = (left, top, cell * layers, _CELL * len(names))
        _cells(figure, (width, height), box, rows, list(shares.values()), numbers, title, cell)
        top += _CELL * len(names) + _SPACE
        bits = [[float(value) if value.isdigit() else 0.0 for value in own] for own in chosen.values()]
        box = (left, top, cell * layers, _CELL * len(chosen))
        _cells(
            figure, (width, height), box, list(chosen), bits, list(chosen.values()), say("heatmap.bits"), cell
        )
        figure.text(
            (left + cell * layers) / width,
            6 / height,
            say("heatmap.layers", count=layers),
            ha="right",
            color=_INK,
            fontsize=_FONT,
        )
        drawn = _svg(figure, "sensitivity")
    return drawn.replace("<svg", '<svg font-family="sans-serif"', 1)


def _parts(units: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each unit is, in the words of its modules: `q, k, v`, `gate, up`."""
    return [
        ", ".join(name.rpartition(".")[2].removesuffix("_proj") for name in unit["names"]) for unit in units
    ]


def _cells(
    figure: Any,
    size: tuple[float, float],
    box: tuple[float, float, float, float],
    rows: Sequence[str],
    values: Sequence[Sequence[float]],
    words: Sequence[Sequence[str]],
    title: str,
    cell: float,
) -> None:
    width, height = size
    left, top, wide, high = box
    plot = figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))
    most = max((max(own) for own in values), default=1.0) or 1.0
    plot.imshow(values, cmap="Blues", vmin=0, vmax=1.25 * most, aspect="auto")
    plot.set_yticks(range(len(rows)), rows, fontsize=_FONT, color=_INK)
    plot.set_xticks([])
    plot.tick_params(length=0)
    for side in plot.spines.values():
        side.set_visible(False)
    if cell >= _CELL * 0.75:
        for y, own in enumerate(words):
            for x, word in enumerate(own):
                dark = values[y][x] > 0.75 * most
                plot.text(
                    x,
                    y,
                    word,
                    ha="center",
                    va="center",
                    fontsize=_FONT - 2,
                    color="#ffffff" if dark else _INK,
                )
    plot.text(0, 1 + 8 / high, title, transform=plot.transAxes, color=_INK, fontsize=_FONT)
