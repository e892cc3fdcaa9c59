"""The curves of a training: its loss, and bits per byte of each language, over its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len

from .. import languages as tags
from .figures import _COLOURS, _FAINT, _FONT, _INK, _LETTER, _SHAPES, _WIDTH, _drawing, _plot, _svg

_HIGH = 210  # of the loss's plot, in CSS pixels
_SMOOTH = 50  # the loss is drawn as means of about a fiftieth of the steps


def curves(lines: Sequence[Mapping[str, Any]]) -> str:
    """An SVG of `metrics.jsonl`'s lines, to stand alone or in a page. Languages are named at the end of their
    curves, which also differ by their marks.
    """
    steps = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    measured = [(line["step"], line["bits_per_byte"]) for line in lines if "bits_per_byte" in line]
    names = list(dict.fromkeys(language for _, bits in measured for language in bits))
    wide = max([cell_len(tags.name(name)) for name in names] or [0]) * _LETTER + 20
    below = max(_HIGH, (_FONT + 5) * len(names) + 20) if names else 0
    height = 26 + _HIGH + 40 + (below + 66 if names else 0)
    with _drawing(_WIDTH, height) as figure:
        right = max((step for step, _ in steps), default=1)
        if names:
            plot = _plot(figure, (44, 26, _WIDTH - 44 - wide, below), height)
            plot.grid(axis="y", color=_FAINT, lw=0.8)
            ends = []
            for i, name in enumerate(names):
                own = [(step, bits[name]) for step, bits in measured if name in bits]
                plot.plot(
                    *zip(*own, strict=True),
                    color=_COLOURS[i % len(_COLOURS)],
                    marker=_SHAPES[i % len(_SHAPES)][1],
                    ms=4,
                    lw=1.4,
                    clip_on=False,
                )
                ends.append((own[-1][1], i, tags.name(name)))
            plot.set_xlim(0, right)
            low, high = plot.get_ylim()
            plot.set_ylim(min(low, 0.0) if low < 0 else low, high)
            _named(plot, ends, right, below)
            _title(plot, "bits per byte by language")
        top = 26 + (below + 66 if names else 0)
        plot = _plot(figure, (44, top, _WIDTH - 44 - (wide if names else 14), _HIGH), height)
        plot.grid(axis="y", color=_FAINT, lw=0.8)
        each = max(len(steps) // _SMOOTH, 1)
        groups = [steps[at : at + each] for at in range(0, len(steps), each)]
        plot.plot(
            [group[-1][0] for group in groups],
            [sum(loss for _, loss in group) / len(group) for group in groups],
            color=_INK,
            lw=1.4,
        )
        for line in lines:
            if "went_back_from" in line:
                plot.axvline(line["went_back_from"], color=_COLOURS[1], lw=1, ls=":")
        plot.set_xlim(0, right)
        _title(plot, "loss of training, nats a token")
        figure.text(
            (_WIDTH - 14) / _WIDTH, 4 / height, "steps", ha="right", va="bottom", color=_INK, fontsize=_FONT
        )
        drawn = _svg(figure, "curves")
    return drawn.replace("<svg", '<svg font-family="sans-serif"', 1)


def _title(plot: Any, words: str) -> None:
    plot.text(0, 1.03, words, transform=plot.transAxes, color=_INK, fontsize=_FONT)


def _named(plot: Any, ends: Sequence[tuple[float, int, str]], right: float, pixels: int) -> None:
    """Names at the ends of curves, pushed apart where they would lie on each other."""
    low, high = plot.get_ylim()
    line = (high - low) * (_FONT + 4) / pixels
    places: list[float] = []
    ordered = sorted(ends)
    for y, _, _ in ordered:
        places.append(max(y, places[-1] + line if places else low + line / 2))
    ceiling = high
    for i in reversed(range(len(places))):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - line
    for (_, number, name), place in zip(ordered, places, strict=True):
        plot.annotate(
            name,
            (right, place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
            color=_COLOURS[number % len(_COLOURS)],
            fontsize=_FONT,
        )
