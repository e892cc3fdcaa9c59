"""What bench/distill.py is judged by, the goals of issue 9, and its page."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from onggi import statistics as intervals

from . import record, tables
from .tables import goal, table

# Bits per byte of a student of a stored teacher may differ by so much from those of a resident one's.
_SAME = 1.01


def taught_against_alone(items: Path, taught: str, alone: str) -> dict[str, dict[str, float]]:
    """language → bits per byte of both, and their difference with its paired 95% interval over passages. items: the
    `items.parquet` of `onggi evaluate`.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(items, columns=["model", "language", "item", "metric", "value"])
    of: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in table.to_pylist():
        of.setdefault((row["model"], row["metric"], row["language"]), {})[row["item"]] = row["value"]
    found = {}
    for model, metric, tag in of:
        if (model, metric) != (taught, "nll"):
            continue
        first, second, size = (
            of[key] for key in ((taught, "nll", tag), (alone, "nll", tag), (taught, "bytes", tag))
        )
        bits = [size[item] * math.log(2) for item in first]
        own = intervals.mean_ratio([[first[item] - second[item] for item in first]], [bits])
        found[tag] = {
            "taught": sum(first.values()) / sum(bits),
            "alone": sum(second[item] for item in first) / sum(bits),
            "difference": own.value,
            "low": own.low if own.low is not None else -math.inf,
            "high": own.high if own.high is not None else math.inf,
        }
    return found


def ratios(kind: dict[str, Any], way: str) -> dict[str, float]:
    """Ours to another way's: seconds (median over turns), bytes; and by how much loss and gradients differ."""
    own, theirs = kind["onggi"], kind[way]
    return {
        "time": statistics.median(own["seconds"]) / statistics.median(theirs["seconds"]),
        "memory": own["bytes"] / max(theirs["bytes"], 1),
        **kind["apart"][way],
    }


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of issue 9's table but recovery, which is bench/effort.py's. A row whose part was not measured is left out."""
    found: list[dict[str, Any]] = []
    for name, kind in (result["head"] or {"kinds": {}})["kinds"].items():
        for way, said, most_time, most_memory in (
            ("dense", "a dense loss", 0.8, 0.1),
            ("trl", "trl", 1.0, 1.0),
        ):
            if way not in kind:
                continue
            of = ratios(kind, way)
            near = max(of["loss"], of["gradients"]) <= 1e-4
            apart = f"loss {of['loss']:.0e}, gradients {of['gradients']:.0e} apart"
            seconds = f"{statistics.median(kind['onggi']['seconds']):.2f} s against {statistics.median(kind[way]['seconds']):.2f} s"
            size = f"{kind['onggi']['bytes'] / 2**20:.0f} MiB against {kind[way]['bytes'] / 2**20:.0f}"
            found.append(
                goal(f"{name}: time against {said}", most_time, of["time"], f"{seconds}; {apart}", also=near)
            )
            found.append(goal(f"{name}: memory against {said}", most_memory, of["memory"], size, also=near))
    if stored := result["stored"]:
        gained = stored["tokens_per_second"]["stored, bucket"] / stored["tokens_per_second"]["resident"]
        note = f"{gained:.2f} of a resident teacher's tokens a second, where the arithmetic allows {stored['ceiling']:.2f}: "
        note += f"{gained / stored['ceiling']:.2f} of it; one run each"
        found.append(
            goal(
                "the arithmetic's ceiling : what a stored teacher gains",
                1 / 0.9,
                stored["ceiling"] / gained,
                note,
            )
        )
        own = {name: stored["bits_per_byte"][name] for name in ("stored, bucket", "resident")}
        apart = {
            tag: max(value / own["resident"][tag], own["resident"][tag] / value)
            for tag, value in own["stored, bucket"].items()
        }
        tag = max(apart, key=apart.__getitem__)
        note = f"{own['stored, bucket'][tag]:.4f} and {own['resident'][tag]:.4f} bits per byte of held-out text ({tag})"
        found.append(
            goal(
                "bits per byte after, stored and resident, the language furthest apart",
                _SAME,
                apart[tag],
                note,
            )
        )
    if text := result["text"]:
        own = text["languages"]
        by = {tag: of["taught"] / of["alone"] for tag, of in own.items()}
        tag = max(by, key=by.__getitem__)
        above = [name for name, of in own.items() if of["high"] >= 0]
        note = f"{own[tag]['taught']:.3f} against {own[tag]['alone']:.3f} ({tag}, which gains least); "
        note += "the paired interval lies below zero in " + (
            f"all {len(own)} languages"
            if not above
            else f"{len(own) - len(above)} of {len(own)}, not in {', '.join(above)}"
        )
        found.append(
            goal("bits per byte on the probe, taught against text alone", 1.0, by[tag], note, also=not above)
        )
    return found


def page(result: dict[str, Any]) -> str:
    """All of it, Markdown."""
    lines = [
        "# Distillation: its loss, a stored teacher, and against text alone",
        "",
        *(["**A trial of the bench itself; its numbers mean nothing.**", ""] if result["quick"] else []),
        "Made by `make bench`; this page is written by the bench and not by hand. Recovery is `bench/effort.py`'s.",
        "",
        "## Goals",
        "",
        tables.goals(result["goals"], "the other's"),
        "",
    ]
    for name, part in (("head", _head), ("tail", _tail), ("stored", _stored), ("text", _text)):
        if result[name]:
            lines += part(result[name])
    return "\n".join(lines)


def _head(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, kind in found["kinds"].items():
        for way in ("dense", "trl", "onggi"):
            if way in kind:
                own = kind[way]
                seconds = own["seconds"]
                spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f})"
                rows.append([name, way, spread, f"{own['bytes'] / 2**20:,.0f}", f"{own['loss']:.6f}"])
    return [
        "## Head and loss",
        "",
        *record.made_by(found),
        f"{found['positions']:,} positions, {found['vocabulary']:,} tokens, {found['hidden']} columns; fp32, forward and backward, on "
        f"the same states and weights; each in a process of its own, {found['turns']} times in turns. Memory is what the loss adds at "
        "its peak; the heads' weights and their gradient are not counted. *dense*: all logits at once, as trl's GKD has it; *trl*: "
        "`ChunkedDivergenceFunction`.",
        "",
        table(["loss", "way", "s, median (least–most)", "MiB", "value"], rows),
        "",
    ]


def _tail(found: dict[str, Any]) -> list[str]:
    ways = ("bucket", "draws", "dropped")
    rows = [
        [tag, f"{of['lost']:.1%}", *(f"{of[way][what]:.3f}" for way in ways for what in ("bias", "noise"))]
        for tag, of in found["languages"].items()
    ]
    return [
        "## The tail of a stored teacher",
        "",
        *record.made_by(found),
        f"{found['bytes']} bytes a token are {found['entries']} entries. What a student's gradient is off by against the whole teacher's: "
        "*bias* of the head's over all positions together, where what is right on average averages out; *noise* of the states', "
        "position by position. *bucket*: one for all of the tail; *draws*: half of the entries drawn from it, weighted; *dropped*: "
        f"nothing for it, the entries made to add up to 1. {found['passages']} passages a language, half of the layers as student.",
        "",
        table(["", "lost mass", *(f"{way}: {what}" for way in ways for what in ("bias", "noise"))], rows),
        "",
    ]


def _stored(found: dict[str, Any]) -> list[str]:
    tags = list(found["bits_per_byte"]["resident"])
    rows = [
        [name, f"{found['tokens_per_second'][name]:,.0f}", *(f"{of[tag]:.4f}" for tag in tags)]
        for name, of in found["bits_per_byte"].items()
    ]
    return [
        "## A stored teacher beside a resident one",
        "",
        *record.made_by(found),
        f"{found['steps']} steps of 2,048 tokens of `debian:libreoffice-help`, the same for all; tokens a second, and bits per byte of "
        "text held out after.",
        "",
        table(["teacher", "tokens/s", *tags], rows),
        "",
    ]


def _text(found: dict[str, Any]) -> list[str]:
    rows = [
        [
            tag,
            f"{of['taught']:.3f}",
            f"{of['alone']:.3f}",
            f"{of['difference']:+.3f} [{of['low']:+.3f}, {of['high']:+.3f}]",
            f"{found['teacher'][tag]:.3f}",
            f"{found['start'][tag]:.3f}",
        ]
        for tag, of in found["languages"].items()
    ]
    return [
        "## Taught, and by text alone",
        "",
        *record.made_by(found),
        "[recipes/distill-small.yaml](../../recipes/distill-small.yaml): half of Gemma 3 270M's layers, its vocabulary cut to eight "
        "languages, taught by the whole of it, and trained on the same tokens without it. Bits per byte on the probe; the difference "
        "with its paired 95% interval over passages, one run each.",
        "",
        table(["", "taught", "alone", "difference", "the teacher", "before"], rows),
        "",
    ]


def write(result: dict[str, Any], out: Path) -> None:
    """The page and its record."""
    record.write("distill", result, {"md": page}, out)
