"""The report's drawings, as SVG to stand inside a page.

Eleven variants differ by the shape of their marks before they differ by colour, so that a print in grey and
an eye that sees no red tell them apart; more of them need the tables. Text stays text
(`svg.fonttype: none`), drawn by the reader's browser in the page's own font: paths of a font that
lacks Hangul or Khmer would be empty boxes. A drawing is no wider than a phone can show at a legible size; wider pages put several
side by side.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import warnings
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

from .. import languages as tags
from ..phrases import Phrases
from .blocks import Mark, Panel, isolated
from .wording import Scores, by_damage, kl, uncalibrated, value, variants, worst

# Colours that the common kinds of colour blindness keep apart (Okabe and Ito, 2008); their count and
# the marks' share no divisor, so that dozens of variants differ in one or the other.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#333333")
_SHAPES = (
    *(("●", "o"), ("■", "s"), ("◆", "D"), ("▲", "^"), ("▼", "v"), ("★", "*"), ("✚", "P")),
    *(("◀", "<"), ("▶", ">"), ("⬟", "p"), ("⬢", "h")),
)
_INK, _FAINT = "#444444", "#dddddd"

# In CSS pixels of the drawing at its full size.
_WIDTH = 440
_FONT = 13
_LETTER = 7  # width of a Latin letter; a Hangul syllable or a CJK character counts twice
_LOG_FROM = 60  # a largest value so many times the smallest is drawn on a logarithmic scale


def marks(names: Sequence[str]) -> dict[str, Mark]:
    """The mark of each variant, for legends and tables."""
    return {
        name: Mark(_SHAPES[i % len(_SHAPES)][0], _COLOURS[i % len(_COLOURS)]) for i, name in enumerate(names)
    }


def damage(scores: Scores, say: Phrases) -> list[Panel]:
    """KL by language and variant with its intervals; Latin script and other scripts apart, on one scale."""
    names, order = variants(scores), by_damage(scores)
    entries = [kl(scores, name, tag) for name in names for tag in order]
    highest = max(entry["high"] or entry["value"] for entry in entries)
    lowest = min(max(entry["low"] or 0.0, entry["value"] / 3) for entry in entries)
    logarithmic = 0 < lowest * _LOG_FROM < highest
    limits = (lowest / 1.2, highest * 1.2) if logarithmic else (0.0, highest * 1.04 or 1.0)
    groups = {
        "latin": [tag for tag in order if tags.is_latin(tag)],
        "other": [tag for tag in order if not tags.is_latin(tag)],
    }
    margin = max(cell_len(say.name(tag)) for tag in order) * _LETTER + 12
    return [
        _damage(scores, say, key, group, limits, logarithmic, margin)
        for key, group in groups.items()
        if group
    ]


def _damage(
    scores: Scores,
    say: Phrases,
    key: str,
    group: Sequence[str],
    limits: tuple[float, float],
    logarithmic: bool,
    margin: int,
) -> Panel:
    names = variants(scores)
    row = max(24, 11 * len(names) + 8)
    height = row * len(group) + 44
    axis = say("damage.axis_log" if logarithmic else "damage.axis")
    with _drawing(_WIDTH, height) as figure:
        plot = _plot(figure, (margin, 2, _WIDTH - margin - 14, row * len(group)), height)
        for i in range(1, len(group), 2):
            plot.axhspan(i - 0.5, i + 0.5, color="#f6f5f2", lw=0)
        step = 1 / (len(names) + 1)
        for j, name in enumerate(names):
            for i, tag in enumerate(group):
                place = i + (j - (len(names) - 1) / 2) * step
                _mark(plot, kl(scores, name, tag), place, j, uncalibrated(scores, name, tag))
        if logarithmic:
            from matplotlib.ticker import LogLocator, NullLocator

            plot.set_xscale("log")
            plot.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
            plot.xaxis.set_major_formatter("{x:g}")
            plot.xaxis.set_minor_locator(NullLocator())
        plot.set_xlim(*limits)
        plot.set_ylim(len(group) - 0.5, -0.5)
        plot.set_yticks(range(len(group)), [say.name(tag) for tag in group])
        plot.grid(axis="x", color=_FAINT, lw=0.8)
        figure.text(
            (_WIDTH - 14) / _WIDTH, 4 / height, axis, ha="right", va="bottom", color=_INK, fontsize=_FONT
        )
        title = say(f"damage.panel_{key}")
        return Panel(_svg(figure, f"damage-{key}"), title, f"{title}. {axis}.")


def _mark(plot: Any, entry: dict[str, Any], place: float, index: int, hollow: bool) -> None:
    colour, shape = _COLOURS[index % len(_COLOURS)], _SHAPES[index % len(_SHAPES)][1]
    if entry.get("low") is not None:
        plot.plot([entry["low"], entry["high"]], [place, place], color=colour, lw=1.4, solid_capstyle="butt")
    plot.plot(
        [entry["value"]],
        [place],
        shape,
        ms=8 if shape == "*" else 6.5,
        mfc="white" if hollow else colour,
        mec=colour,
        mew=1.4,
        clip_on=False,
    )


def size(scores: Scores, say: Phrases) -> Panel:
    """Weights on disk against KL in the worst language; each variant named, the reference at 0."""
    names, reference = variants(scores), scores["reference"]
    whole = scores["models"][reference]["bytes"] / 1e6
    largest = max([whole, *(scores["models"][name]["bytes"] / 1e6 for name in names)])
    ends = [kl(scores, name, worst(scores, name)) for name in names]
    highest = max(entry["high"] or entry["value"] for entry in ends) or 1.0
    width, height, left, bottom = _WIDTH, max(290, (_FONT + 5) * len(names) + 90), 44, 44
    with _drawing(width, height) as figure:
        plot = _plot(figure, (left, 26, width - left - 12, height - 26 - bottom), height)
        plot.set_xlim(0, largest * 1.06)
        plot.set_ylim(0, highest * 1.06)
        plot.grid(color=_FAINT, lw=0.8)
        spots = [(whole, 0.0, _short(reference))]
        plot.plot([whole], [0], "X", ms=9, mfc="white", mec=_INK, mew=1.4, clip_on=False)
        for i, (name, entry) in enumerate(zip(names, ends, strict=True)):
            x, y = scores["models"][name]["bytes"] / 1e6, entry["value"]
            if entry.get("low") is not None:
                plot.plot([x, x], [entry["low"], entry["high"]], color=_COLOURS[i % len(_COLOURS)], lw=1.4)
            _mark(plot, {"value": x}, y, i, False)
            spots.append(
                (
                    x,
                    y,
                    f"{isolated(_short(name))} · {say.name(worst(scores, name))} {value(scores, name, worst(scores, name))}",
                )
            )
        _labels(plot, spots, largest * 1.06, highest * 1.06, height - 26 - bottom)
        plot.text(0, 1.03, say("size.axis_worst"), transform=plot.transAxes, color=_INK, fontsize=_FONT)
        figure.text(
            (width - 12) / width, 4 / height, say("size.axis_size"), ha="right", color=_INK, fontsize=_FONT
        )
        return Panel(_svg(figure, "size"), "", f"{say('size.title')}.")


def _short(name: str) -> str:
    """A name short enough to stand beside its mark."""
    return name if cell_len(name) <= 18 else f"{set_cell_size(name, 17).rstrip()}…"


def _labels(
    plot: Any, spots: Sequence[tuple[float, float, str]], right: float, top: float, pixels: int
) -> None:
    """Names beside the marks, on the side with room, pushed apart where they would lie on each other."""
    line = top * (_FONT + 4) / pixels
    ordered = sorted(spots, key=lambda spot: spot[1])
    places: list[float] = []
    for _, y, _ in ordered:
        places.append(max(y, places[-1] + line if places else 0.35 * line))
    ceiling = top
    for i in reversed(range(len(places))):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - line
    for (x, y, words), place in zip(ordered, places, strict=True):
        before = x > right / 2
        end = x + (-1 if before else 1) * 0.022 * right
        if abs(place - y) > line / 2:  # pushed away: a line leads back to its mark
            plot.plot([x, end], [y, place], color="#999999", lw=0.8, zorder=1)
        plot.annotate(
            words,
            (x, y),
            xytext=(x + (-1 if before else 1) * 0.025 * right, place),
            ha="right" if before else "left",
            va="center",
            fontsize=_FONT,
            color="black",
        )


class _drawing:
    """A matplotlib figure of so many CSS pixels, with the settings of all drawings here."""

    def __init__(self, width: int, height: int):
        import matplotlib as mpl
        from matplotlib.figure import Figure

        self._quiet = warnings.catch_warnings()
        self._settings = mpl.rc_context(
            {
                "svg.fonttype": "none",
                "font.size": _FONT,
                "axes.unicode_minus": False,
                "text.parse_math": False,
            }
        )
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72)

    def __enter__(self) -> Any:
        # The reader's browser has the letters that this machine's font lacks.
        self._quiet.__enter__()
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        self._settings.__enter__()
        return self.figure

    def __exit__(self, *error: Any) -> None:
        self._settings.__exit__(*error)
        self._quiet.__exit__(*error)


def _plot(figure: Any, box: tuple[float, float, float, float], height: float) -> Any:
    """Axes in the box (left, top, width, height) of CSS pixels."""
    x, y, wide, high = box
    plot = figure.add_axes((x / _WIDTH, 1 - (y + high) / height, wide / _WIDTH, high / height))
    for side in ("top", "right", "left"):
        plot.spines[side].set_visible(False)
    plot.spines["bottom"].set_color(_FAINT)
    plot.tick_params(length=0, labelsize=_FONT, labelcolor="black", pad=5)
    plot.set_axisbelow(True)
    return plot


def _svg(figure: Any, name: str) -> str:
    """The figure as an element for a page: no prolog, no size of its own, only ids that are used."""
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(
            out,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for pattern in (
        r"<metadata>.*?</metadata>",
        r"<!--.*?-->",
        r"<style.*?</style>",
        r" ?font-family: [^;]*;",
    ):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    opening = re.sub(r' (?:height|width|version)="[^"]*"', "", text[: text.index(">")])
    text = opening + text[text.index(">") :]
    # Several drawings stand in one page: an id is kept where it is used, and is this drawing's own.
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', text))
    own = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{own}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\1{own}-", text)
    return re.sub(r">\s+<", "><", text).strip()
