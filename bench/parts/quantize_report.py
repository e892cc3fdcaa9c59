"""The page of bench/quantize.py: its measurements as Markdown, goals first, with what they do not say."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

TITLES = {
    "english-peer": "llm-compressor, English",
    "balanced-peer": "llm-compressor, 8 languages",
    "english": "onggi, English",
    "balanced": "onggi, 8 languages",
    "rtn": "onggi, rounding",
}
# Work of others above this share of the machine makes timings doubtful.
_QUIET = 0.05


def worst(scores: dict[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """The language with the largest mean KL of a token under model `name`, and that KL."""
    model = scores["models"][name]
    tag = model["worst"]["kl"]
    return tag, model["languages"][tag]["kl"]


def goals_table(goals: Sequence[dict[str, Any]]) -> str:
    """Each goal with the measured ratio, met or missed."""
    rows = [
        [
            g["what"],
            f"≤ {g['goal']}×",
            f"{g['measured']:.2f}×",
            "met" if g["met"] else "**missed**",
            g["note"],
        ]
        for g in goals
    ]
    return _table(["what (ours : llm-compressor's, medians)", "goal", "measured", "", "how"], rows)


def page(result: dict[str, Any]) -> str:
    """The whole page."""
    machine, speed, quality = result["machine"], result["speed"], result["quality"]
    peer = next((r["facts"]["versions"] for r in speed["runs"] if r["tool"] == "peer"), {}) if speed else {}
    parts = [
        "# Quantisation side by side with llm-compressor",
        f"`{result['model']}` in bf16 → symmetric int4, groups of 128, GPTQ in both tools, on the same "
        f"{result['tokens']:,} tokens of `{result['text']}`: once English alone, once {result['languages']} in "
        "equal tokens. Made by `make bench`; this page is written by the bench and not by hand.",
        f"- command: `{result['command'].strip()}`",
        f"- machine: {machine['processor']} (family-model-stepping {machine['family']}), {machine['cores']} cores, "
        f"{(machine['memory_bytes'] or 0) / 2**30:.0f} GiB, bf16 by {', '.join(machine['bf16']) or 'no instruction'}; "
        f"{machine['system']}; Python {machine['python']}; load at the start {machine['load_before']:.2f}",
        f"- onggi's side: {_versions(result['versions'])}",
    ]
    parts += [f"- the peer's side: {_versions(peer)}"] if peer else []
    parts += ["## Goals", goals_table(result["goals"])]
    parts += _speed(speed) if speed else ["Speed was not measured in this run."]
    parts += _quality(quality) if quality else ["Quality was not measured in this run."]
    text = "\n".join(part if part.startswith("-") else f"\n{part}\n" for part in parts)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _speed(speed: dict[str, Any]) -> list[str]:
    runs = speed["runs"]
    rows = []
    for name in ("english-peer", "english", "balanced-peer", "balanced"):
        own = [run for run in runs if run["artifact"] == name]
        rows.append(
            [
                TITLES[name],
                _spread([run["wall"] for run in own]),
                _spread([run["quantisation"] for run in own]),
                _spread([run["cpu"] for run in own]),
                _spread([run["peak"] / 2**30 for run in own], "{:.2f}"),
            ]
        )
    kinds = ("wall", "quantisation", "cpu", "peak")
    ratios = [
        [str(p["run"]), p["calibration"], *(f"{p[kind]:.2f}×" for kind in kinds)] for p in speed["pairs"]
    ]
    medians = [f"**{statistics.median(p[kind] for p in speed['pairs']):.2f}×**" for kind in kinds]
    count = max(run["run"] for run in runs)
    return [
        f"## Speed and memory ({speed['date']})",
        f"Median (least–most) of {count} run{'s' * (count > 1)} of each, in turns: the peer, onggi, the peer, onggi …",
        _table(["", "whole process, s", "quantisation, s", "user + system, s", "peak memory, GiB"], rows),
        "*Whole process*: from exec to exit, with imports, loading, saving (and for onggi reading and "
        "tokenising its text, which the peer is spared: it is handed token ids). *Quantisation*: for the peer "
        "the time around `oneshot()` alone, model loaded before and saved after it; for onggi `wall_seconds` "
        "of its `stage.json`, which **includes** tokenising, reading the weights and writing the checkpoint. "
        "*Peak memory*: the largest resident set of the whole process, as the kernel counts it (`wait4`), with "
        "the pages of files it maps.",
        "Ours : the peer's, pair by pair:",
        _table(
            ["run", "calibration", "whole process", "quantisation", "user + system", "peak memory"],
            [*ratios, ["", "median", *medians]],
        ),
        *_share(speed),
        *_doubts(speed),
    ]


def _share(speed: dict[str, Any]) -> list[str]:
    peak, counted = speed["peak"], speed["arithmetic"]
    rows = []
    for who, tool in (("onggi", "onggi"), ("onggi, full square", "onggi"), ("peer", "peer")):
        seconds = statistics.median(run["quantisation"] for run in speed["runs"] if run["tool"] == tool)
        count = counted[who]
        cells = [f"{count[kind] / 1e12:.2f}" for kind in ("pass", "moments", "solver", "total")]
        shares = [f"{count['floor']:.1f}", f"{seconds:.1f}", f"{count['floor'] / seconds:.0%}"]
        rows.append([who, *cells, *shares])
    return [
        "## Share of the machine's own peak",
        f"Best of several products of 4096² matrices with torch, before and after the runs: "
        f"{peak['fp32'] / 1e9:.0f} GFLOP/s in fp32, {peak['bf16'] / 1e9:.0f} in bf16. The floor is the time that "
        "the counted arithmetic takes at those peaks, each part at that of its own precision; the share is floor : "
        "quantisation (median of all runs). Aim: 60%.",
        _table(
            ["TFLOP", "passes", "moments", "solver", "together", "floor, s", "measured, s", "share of peak"],
            rows,
        ),
        f"Counted: 2·weights·tokens a pass; 2·n²·tokens for the second moments of an input of n columns; 4/3·n³ "
        "for Cholesky, inverse, Cholesky; rows·n² for the error feedback. *onggi* passes once and takes moments once "
        "for each input that modules share, the blocks on and above the diagonal only; *full square* counts the "
        f"mirrored half as well; its pass and moments are in {speed['precision']}, its solver in fp32. The *peer* "
        "passes twice and takes full moments for each module, in fp32 as its solver; its passes are in bf16. Left "
        "out: attention's own products (about 0.3 TFLOP a pass), clips and scales, checks, reading and writing. "
        "Formulas: `bench/parts/arithmetic.py`.",
    ]


def _doubts(speed: dict[str, Any]) -> list[str]:
    """What in the runs speaks against their numbers, or that nothing does."""
    lines = []
    cores = speed["machine"]["cores"]
    busy = [run["others"] / (run["wall"] * cores) for run in speed["runs"] if run["others"] is not None]
    if busy:
        lines.append(
            f"- Other processes used {min(busy):.0%}–{max(busy):.0%} of the machine during the runs"
            + ("; **it was not quiet, and the times are worth little.**" if max(busy) > _QUIET else ".")
        )
    for name in ("english-peer", "balanced-peer", "english", "balanced"):
        digests = {run["digest"] for run in speed["runs"] if run["artifact"] == name}
        if len(digests) > 1:
            lines.append(f"- {TITLES[name]}: its runs wrote {len(digests)} different checkpoints.")
    return ["Notes:", *lines] if lines else []


def _quality(quality: dict[str, Any]) -> list[str]:
    scores = quality["scores"]
    names = [name for name in TITLES if name in scores["models"]]
    languages = scores["languages"]
    passages = max(scores["passages"].values())

    def cells(cell: Callable[[str], str]) -> list[str]:
        return [cell(name) for name in names]

    def kl(name: str, tag: str) -> str:
        return _interval(scores["models"][name]["languages"][tag]["kl"])

    def worst_cell(name: str) -> str:
        tag, entry = worst(scores, name)
        return f"**{_interval(entry)}** {tag}"

    def mean_cell(name: str) -> str:
        found = [entry["kl"]["value"] for entry in scores["models"][name]["languages"].values()]
        return f"{statistics.fmean(found):.3f}"

    rows = [
        ["worst language", *cells(worst_cell)],
        ["mean", *cells(mean_cell)],
        *([tag, *cells(lambda name, tag=tag: kl(name, tag))] for tag in languages),
        ["MB of weights", *cells(lambda name: f"{scores['models'][name]['bytes'] / 1e6:.0f}")],
    ]
    return [
        f"## What each language pays ({quality['date']})",
        f"KL(bf16 model ‖ quantised), nats per token, full vocabulary, fp32, with its 95% interval over passages; "
        f"the probe, {passages} passages × {len(languages)} languages"
        + (" (**a trial: not all 40**)." if quality["limit"] else "."),
        _table(["", *(TITLES[name] for name in names)], rows),
        *_verdicts(scores, "balanced-peer", "balanced"),
        *_verdicts(scores, "english", "balanced"),
        "Read with care: it is one small model, and its bf16 weights were themselves made from a GGUF file "
        "(linears on Q4_K, Q5_0, Q6_K and Q8_0 grids, embedding on Q8_0). The calibration text is software help, the "
        "probe everyday prose. Each sequence's start token counts eightfold in onggi's moments, once in the peer's.",
    ]


def _verdicts(scores: dict[str, Any], first: str, second: str) -> list[str]:
    """In which languages `second` differs from `first`, by the paired test of `onggi evaluate`."""
    found = [c for c in scores["comparisons"] if {c["first"], c["second"]} == {first, second}]
    if not found:
        return []
    by_verdict: dict[str, list[str]] = {}
    for tag, entry in found[0]["languages"].items():
        by_verdict.setdefault(entry["verdict"], []).append(tag)
    said = "; ".join(f"{verdict} in {len(tags)} ({', '.join(tags)})" for verdict, tags in by_verdict.items())
    a, b = TITLES[found[0]["first"]], TITLES[found[0]["second"]]
    return [
        f"- {b} against {a}, paired by passage, corrected for {len(scores['languages'])} languages: {said}."
    ]


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _interval(entry: dict[str, Any]) -> str:
    if entry["low"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def _spread(values: Sequence[float], form: str = "{:.1f}") -> str:
    middle, low, high = (form.format(v) for v in (statistics.median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low}–{high})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
