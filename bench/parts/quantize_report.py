"""The page of bench/quantize.py: its measurements as Markdown, goals first, with what they do not say."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Any

from . import tables
from .peers import PEERS
from .tables import table

# Work of others above this share of the machine makes timings doubtful.
_QUIET = 0.05


def goals_table(goals: Sequence[dict[str, Any]]) -> str:
    """Each goal with the measured ratio, met or missed."""
    return tables.goals(goals, "the peer's")


def page(result: dict[str, Any]) -> str:
    """The whole page."""
    parts = [
        "# Quantisation side by side with llm-compressor, GPTQModel and AutoRound",
        f"`{result['model']}` in bf16 → symmetric int4, groups of 128, in all tools, on the same "
        f"{result['tokens']:,} tokens of `{result['source']}`: once English alone, once {result['languages']} in "
        "equal shares. Made by `make bench`; this page is written by the bench and not by hand.",
    ]
    if result["quick"]:
        parts.append("**A trial of the bench itself, on two layers of the model: its numbers mean nothing.**")
    versions = {**result["versions"], **_peers(result)}
    parts += [f"- versions: {', '.join(f'{name} {version}' for name, version in versions.items())}"]
    for name, why in result["absent"].items():
        if name in PEERS:
            parts.append(f"- {PEERS[name].title}: not installable here: {why}")
        else:
            parts.append(f"- rows of {result['titles'][name]}: left out, {why}")
    parts += ["## Goals", goals_table(result["goals"])]
    parts += _speed(result["speed"], result["titles"]) if result["speed"] else []
    parts += _cost(result["artifacts"], result["titles"]) if result["artifacts"] else []
    for part, what in (
        ("probe", "everyday prose, the shipped probe"),
        ("other", "GNOME's help, `debian:gnome-user-docs`"),
    ):
        parts += _quality(result[part], what, result["titles"]) if result[part] else []
    parts += _growth(result["growth"]) if result["growth"] else []
    text = "\n".join(part if part.startswith("-") else f"\n{part}\n" for part in parts)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _peers(result: dict[str, Any]) -> dict[str, str]:
    """Of the peers' own packages, as they said when they ran."""
    made = [
        *(result["speed"] or {}).get("runs", []),
        *(result["artifacts"] or {}).get("records", {}).values(),
    ]
    found = {}
    for record in made:
        if record["tool"] in PEERS:
            package = PEERS[record["tool"]].requirements[0].partition("=")[0]
            found[package] = record["facts"]["versions"][package]
    return found


def _made(part: dict[str, Any]) -> list[str]:
    """By which command, when, where."""
    machine = part["machine"]
    return [
        f"- command: `{part['command']}`, {part['date']}",
        f"- machine: {machine['processor']} (family-model-stepping {machine['family']}), {machine['cores']} cores, "
        f"{(machine['memory_bytes'] or 0) / 2**30:.0f} GiB, bf16 by {', '.join(machine['bf16']) or 'no instruction'}; "
        f"{machine['system']}; Python {machine['python']}; load at the start {machine['load_before']:.2f}",
    ]


def _speed(speed: dict[str, Any], titles: dict[str, str]) -> list[str]:
    runs, tools = speed["runs"], list(dict.fromkeys(run["tool"] for run in speed["runs"]))

    def named(tool: str) -> str:
        if tool == "onggi":
            return "onggi"
        return f"{PEERS[tool].title}, {speed['dtypes'][tool]}"

    rows = []
    for tool in tools:
        own = [run for run in runs if run["tool"] == tool]
        cells = [_spread([run[what] for run in own]) for what in ("wall", "quantisation", "cpu")]
        rows.append([named(tool), *cells, _spread([run["peak"] / 2**30 for run in own], "{:.2f}")])
    tried = "; ".join(
        f"{PEERS[peer].title} " + ", ".join(f"{dtype} {_seconds(seconds)} s" for dtype, seconds in of.items())
        for peer, of in speed["tried"].items()
    )
    count = max(run["run"] for run in runs)
    return [
        "## Speed and memory",
        *_made(speed),
        f"Eight languages. Median (least–most) of {count} run{'s' * (count > 1)} of each, in turns: the peers, onggi, "
        f"the peers … Each peer in the dtype that was faster in one run of each (whole process: {tried}), after a run that does not count.",
        table(["", "whole process, s", "quantisation, s", "user + system, s", "peak memory, GiB"], rows),
        "*Whole process*: from exec to exit, with imports, loading, saving (and for onggi reading and "
        "tokenising its text, which the peers are spared: they are handed token ids). *Quantisation*: for a peer "
        "the time around its own call alone, model loaded before and saved after it; for onggi `wall_seconds` "
        "of its `stage.json`, which **includes** tokenising, reading the weights and writing the checkpoint. "
        "*Peak memory*: the largest resident set of the whole process, as the kernel counts it (`wait4`), with "
        "the pages of files it maps.",
        *_share(speed),
        *_doubts(runs, speed["machine"]["cores"]),
    ]


def _share(speed: dict[str, Any]) -> list[str]:
    peak, counted = speed["peak"], speed["arithmetic"]
    rows = []
    for who, count in counted.items():
        tool = "onggi" if who.startswith("onggi") else "llmcompressor"
        seconds = statistics.median(run["quantisation"] for run in speed["runs"] if run["tool"] == tool)
        cells = [f"{count[kind] / 1e12:.2f}" for kind in ("pass", "moments", "solver", "total")]
        shares = [f"{count['floor']:.1f}", f"{seconds:.1f}", f"{count['floor'] / seconds:.0%}"]
        rows.append([who, *cells, *shares])
    return [
        "### Share of the machine's own peak",
        f"Best of several products of 4096² matrices with torch, before and after the runs: "
        f"{peak['fp32'] / 1e9:.0f} GFLOP/s in fp32, {peak['bf16'] / 1e9:.0f} in bf16. The floor is the time that "
        "the counted arithmetic takes at those peaks, each part at that of its own precision; the share is floor : "
        "quantisation (median of all runs).",
        table(
            ["TFLOP", "passes", "moments", "solver", "together", "floor, s", "measured, s", "share of peak"],
            rows,
        ),
        f"Counted: 2·weights·tokens a pass; 2·n²·tokens for the second moments of an input of n columns; 4/3·n³ "
        "for Cholesky, inverse, Cholesky; rows·n² for the error feedback. *onggi* passes once and takes moments once "
        "for each input that modules share, the blocks on and above the diagonal only; *full square* counts the "
        f"mirrored half as well; its pass and the products of its moments are in {speed['precision']}, its solver in fp32. "
        "*llm-compressor* passes twice and takes full moments for each module, in fp32 as its solver. Left "
        "out: attention's own products (about 0.3 TFLOP a pass), clips and scales, checks, reading and writing. "
        "Formulas: `bench/parts/arithmetic.py`.",
    ]


def _cost(made: dict[str, Any], titles: dict[str, str]) -> list[str]:
    rows = [
        [
            titles[name],
            _seconds(record["wall"]),
            _seconds(record["quantisation"]),
            f"{record['peak'] / 2**30:.2f}",
            f"{record['bytes'] / 1e6:.0f}",
            record["date"],
        ]
        for name, record in made["records"].items()
    ]
    head = ["", "whole process, s", "quantisation, s", "peak memory, GiB", "MB of weights", "made"]
    failed = [f"- {titles[name]} failed: `{why.splitlines()[-1]}`" for name, why in made["failed"].items()]
    return [
        "## The checkpoints, and what each cost",
        *_made(made),
        "One run each. *Best* has the tokens of the others in all: those that it solves on and then tunes on (in 16 "
        "steps of 2,048, so each some times, as AutoRound sees its own 200 times) and those held out; *free* takes as many as "
        "`--effort best` takes by itself, in 22 languages, a quarter of it written by the model itself and all of it in the two "
        "languages that the text lacks, and its grid has zero points (4 bits more for every 128 weights, a thousandth of the file).",
        table(head, rows),
        "*Whole process* and *peak memory*: from exec to exit, with libraries, loading and saving. All load the same folder in "
        "bf16, which was made of the GGUF once, before any of them began; and what GPTQModel's files are unpacked to so that "
        "they can be measured is made by a process of its own, which is not counted.",
        *failed,
        *_doubts(list(made["records"].values()), made["machine"]["cores"]),
    ]


def _doubts(records: Sequence[dict[str, Any]], cores: int) -> list[str]:
    """What in the records speaks against their numbers, or that nothing does."""
    lines = []
    busy = [run["others"] / (run["wall"] * cores) for run in records if run.get("others") is not None]
    if busy:
        lines.append(
            f"- Other processes used {min(busy):.0%}–{max(busy):.0%} of the machine during the runs"
            + ("; **it was not quiet, and the times are worth little.**" if max(busy) > _QUIET else ".")
        )
    for name in dict.fromkeys(run["artifact"] for run in records):
        digests = {run["digest"] for run in records if run["artifact"] == name}
        if len(digests) > 1:
            lines.append(f"- {name}: its runs wrote {len(digests)} different checkpoints.")
    return ["Notes:", *lines] if lines else []


def _quality(quality: dict[str, Any], what: str, titles: dict[str, str]) -> list[str]:
    scores = quality["scores"]
    names = [name for name in titles if name in scores["models"]]
    languages, passages = scores["languages"], max(scores["passages"].values())

    def kl(name: str, tag: str) -> dict[str, Any]:
        return scores["models"][name]["languages"][tag]["kl"]

    def row(name: str) -> list[str]:
        tag = scores["models"][name]["worst"]["kl"]
        mean = statistics.fmean(kl(name, tag)["value"] for tag in languages)
        cells = [f"{kl(name, tag)['value']:.3f}" for tag in languages]
        return [titles[name], f"**{_interval(kl(name, tag))}** {tag}", f"{mean:.3f}", *cells]

    return [
        f"## What each language pays: {what}",
        *_made(quality),
        "KL(bf16 model ‖ quantised), nats per token, full vocabulary, fp32; the worst language with its 95% interval "
        f"over passages; {passages} passages × {len(languages)} languages.",
        table(["", "worst language", "mean", *languages], [row(name) for name in names]),
        *_verdicts(scores, titles),
        "Read with care: it is one small model, and its bf16 weights were themselves made from a GGUF file "
        "(linears on Q4_K, Q5_0, Q6_K and Q8_0 grids, embedding on Q8_0). The calibration text is software help. "
        "Each sequence's start token counts eightfold in onggi's moments, and every token there by its direction alone; in the "
        "peers' once, by its size.",
    ]


def _verdicts(scores: dict[str, Any], titles: dict[str, str]) -> list[str]:
    """In which languages ours differ from the peers on the same text, by the paired test of `onggi evaluate`."""
    lines = []
    for found in scores["comparisons"]:
        two = {found["first"], found["second"]}
        ours = next((name for name in ("balanced", "free", "minimax") if name in two), None)
        theirs = {f"{peer}-balanced" for peer in PEERS} | ({"balanced"} if ours == "minimax" else set())
        if ours is None or not two & (theirs - {ours}):
            continue
        by: dict[str, list[str]] = {}
        for tag, entry in found["languages"].items():
            by.setdefault(entry["verdict"], []).append(tag)
        said = "; ".join(f"{verdict} in {len(tags)} ({', '.join(tags)})" for verdict, tags in by.items())
        first, second = titles[found["first"]], titles[found["second"]]
        lines.append(f"- {second} against {first}: {said}.")
    return ["Paired by passage, corrected for all languages:", *lines] if lines else []


def _growth(growth: dict[str, Any]) -> list[str]:
    size = growth["size"]
    rows = [
        [layers, _seconds(run["quantisation"]), _seconds(run["wall"]), f"{run['peak'] / 2**30:.2f}"]
        for layers, run in growth["runs"].items()
    ]
    return [
        "## Cost as the model grows",
        *_made(growth),
        f"`onggi quantize` on layers of Llama 3 8B's shapes ({size['hidden']} wide, {size['mlp']} in the MLP, "
        f"{size['heads']} heads, {size['groups']} of keys and values), random weights, a vocabulary of bytes, "
        f"{size['tokens']:,} tokens. A further layer takes {growth['layer']:.1f} s.",
        table(["layers", "quantisation, s", "whole process, s", "peak memory, GiB"], rows),
    ]


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _interval(entry: dict[str, Any]) -> str:
    if entry["low"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def _spread(values: Sequence[float], form: str = "{:.1f}") -> str:
    middle, low, high = (form.format(v) for v in (statistics.median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low}–{high})"
