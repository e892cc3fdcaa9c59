"""The page of bench/evaluate.py and its figure: goals first, then every setting, with what is counted."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Sequence
from typing import Any

from .tables import table

TITLES = {
    "fixed_letter": "5 fixed shots, answers of one token",
    "fixed_name": "5 fixed shots, answers of four tokens",
    "drawn_letter": "5 shots drawn for each question, one token",
    "drawn_name": "5 shots drawn for each question, four tokens",
    "zero_letter": "no shots, one token",
    "zero_name": "no shots, four tokens",
    "long_letter": "5 fixed shots, one token, more questions",
    "long_name": "5 fixed shots, four tokens, more questions",
}
# Work of others above this share of the machine makes timings doubtful.
_QUIET = 0.05
_COLOURS = {"onggi": "#0072b2", "lm-eval": "#d55e00"}


def ratio(value: float) -> str:
    """A ratio as 1/N where it is small."""
    return f"1/{1 / value:.1f}" if 0 < value < 0.67 else f"{value:.2f}×"


def goals_table(goals: Sequence[dict[str, Any]]) -> str:
    """Each goal with what was measured, met or missed."""
    rows = []
    for goal in goals:
        most, measured = ratio(goal["goal"]), ratio(goal["measured"])
        if "nats" in goal["what"]:
            most, measured = f"{goal['goal']:g}", f"{goal['measured']:.1e}"
        rows.append(
            [goal["what"], f"≤ {most}", measured, "met" if goal["met"] else "**missed**", goal["note"]]
        )
    return table(["what (ours : lm-eval's)", "goal", "measured", "", "how"], rows)


def page(result: dict[str, Any]) -> str:
    """The whole page."""
    machine, tokens = result["machine"], result["answer_tokens"]
    questions = result["items"] * len(result["languages"])
    runs = f"{result['runs']} run{'s' * (result['runs'] > 1)}"
    parts = [
        "# Tasks side by side with lm-eval",
        f"`{result['model']}` in fp32 on {questions} four-choice questions ({result['items']} capitals in each of "
        f"{', '.join(result['languages'])}), by lm-eval's own transformers backend (`HFLM`, `add_bos_token=True`) and by "
        "`onggi evaluate --tasks`, from the same YAML files. Made by `make bench`; this page is written by the bench "
        "and not by hand.",
        f"- command: `{result['command'].strip()}`, {result['date']}",
        f"- machine: {machine['processor']} (family-model-stepping {machine['family']}), {machine['cores']} cores, "
        f"{(machine['memory_bytes'] or 0) / 2**30:.0f} GiB; {machine['system']}; Python {machine['python']}; load at the "
        f"start {machine['load_before']:.2f}",
        f"- both sides: {', '.join(f'{name} {version}' for name, version in result['versions'].items())}",
    ]
    if result["quick"]:
        parts.append("**A trial of the bench on a handful of questions: its ratios say nothing.**")
    parts += ["## Goals", goals_table(result["goals"]), *_settings(result, runs)]
    parts += [
        "A question's choices are shown and answered by a letter (one token), or not shown and answered by the name "
        f"({tokens['name']:.2f} tokens on average). *Whole process*: from exec to exit, with imports and loading; for "
        "onggi also fingerprints of the model, statistics with intervals, and all files. *Evaluation*: the same without "
        "imports and loading the model; for lm-eval the time around `simple_evaluate`. *Scoring*: around the "
        "model's `loglikelihood` alone, where each side tokenises and computes; for onggi it includes trying on the model "
        "whether trees of tokens score as their branches do. *Peak memory*: the largest resident set of the process, as "
        "the kernel counts it. Goals take the worse of evaluation and whole process.",
        "## What lm-eval was given",
        f"The batch size that scored a part of the questions fastest, seconds by size: {_batches(result)}. Sizes go up "
        "until one is clearly slower, or until logits (a batch of sequences × 262,144, twice) would not fit half of the memory. "
        "It keeps its pass over one-token answers of one question, and is spared reading its index of 14,000 tasks.",
        "## What it costs",
        "![Seconds of a whole process against questions, shots and variants](evaluate.svg)",
        *_curves(result, runs),
        *_doubts(result),
    ]
    text = "\n".join(part if part.startswith("-") else f"\n{part}\n" for part in parts)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _settings(result: dict[str, Any], runs: str) -> list[str]:
    rows = []
    for name, setting in result["settings"].items():
        ours, peer = setting["ours"], setting["peer"]
        cells = [TITLES[name], str(setting["questions"]), str(setting["batch"])]
        for what in ("wall", "evaluation", "scoring"):
            own = statistics.median(one[what] for one in ours)
            cells.append(
                f"{_spread([one[what] for one in ours])} : {peer[what]:.1f} = **{ratio(own / peer[what])}**"
            )
        own = max(one["peak"] for one in ours)
        cells.append(f"{own / 2**30:.2f} : {peer['peak'] / 2**30:.2f}")
        rows.append([*cells, f"{setting['apart']:.0e}"])
    head = [
        "",
        "questions",
        "lm-eval's batch",
        "whole process, s",
        "evaluation, s",
        "scoring, s",
        "peak, GiB",
        "apart, nats",
    ]
    return [
        "## Each setting",
        f"onggi : lm-eval. Ours: median (least–most) of {runs}; lm-eval's: one run between ours.",
        table(head, rows),
    ]


def _batches(result: dict[str, Any]) -> str:
    return "; ".join(
        f"{TITLES[name]}: " + ", ".join(f"{size} → {seconds:.1f}" for size, seconds in tried.items())
        for name, tried in result["batches"].items()
    )


def _curves(result: dict[str, Any], runs: str) -> list[str]:
    found = result["curves"]
    walls = {count: statistics.median(times) for count, times in found["variants"].items()}
    items = [
        [str(n), f"{ours:.1f}", f"{peer:.1f}", ratio(ours / peer)]
        for n, (ours, peer) in found["items"].items()
    ]
    shots = [
        [str(n), f"{ours:.1f}", f"{peer:.1f}", ratio(ours / peer)]
        for n, (ours, peer) in found["shots"].items()
    ]
    variants = [[str(n), _spread(found["variants"][n])] for n in walls]
    return [
        "Answers of one token, fixed shots, whole processes, seconds.",
        table(["questions", "onggi", "lm-eval", ""], items),
        table(["shots", "onggi", "lm-eval", ""], shots),
        table([f"models ({runs} each)", "onggi"], variants),
        f"The variants are {' and '.join(result['schemes'])} of the same model, by rounding. They share imports, "
        "prompts, tokeniser and the report; each is loaded and computed by itself, so the more questions, the nearer a "
        "further one comes to the first. For lm-eval a variant is a run of its own: in the figure, so many times its one.",
    ]


def _doubts(result: dict[str, Any]) -> list[str]:
    cores = result["machine"]["cores"]
    runs = [run for setting in result["settings"].values() for run in (*setting["ours"], setting["peer"])]
    busy = [run["others"] / (run["wall"] * cores) for run in runs if run["others"] is not None]
    if not busy:
        return []
    loud = "; **it was not quiet, and the times are worth little.**" if max(busy) > _QUIET else "."
    return [
        "Notes:",
        f"- Other processes used {min(busy):.0%}–{max(busy):.0%} of the machine during the runs{loud}",
    ]


def figure(result: dict[str, Any]) -> str:
    """Seconds of whole processes against questions, shots and variants, as SVG; logarithmic, since one
    side costs ten times the other.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    found = result["curves"]
    alone = found["items"][max(found["items"])][1]
    variants = {
        count: [statistics.median(times), count * alone] for count, times in found["variants"].items()
    }
    panels = (("questions", found["items"]), ("shots", found["shots"]), ("models", variants))
    settings = {"svg.fonttype": "none", "font.size": 12, "svg.hashsalt": "evaluate"}
    out = io.StringIO()
    with mpl.rc_context(settings):
        drawing = Figure(figsize=(10, 3.4))
        plots = drawing.subplots(1, 3, sharey=True)
        for plot, (what, points) in zip(plots, panels, strict=True):
            for side, (name, colour) in enumerate(_COLOURS.items()):
                x, y = list(points), [pair[side] for pair in points.values()]
                plot.plot(x, y, "os"[side] + "-", color=colour, label=name)
            plot.set_yscale("log")
            plot.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            plot.yaxis.set_minor_locator(NullLocator())
            plot.yaxis.set_major_formatter("{x:g}")
            plot.set_xticks(list(points))
            plot.set_xlabel(what)
            plot.grid(axis="y", color="#dddddd", lw=0.8)
            for side in ("top", "right", "left"):
                plot.spines[side].set_visible(False)
            plot.tick_params(length=0)
        plots[0].set_ylabel("seconds")
        for side, (name, colour) in enumerate(_COLOURS.items()):
            place = {"xytext": (0, 12), "textcoords": "offset points"}
            plots[-1].annotate(name, (1, variants[1][side]), color=colour, **place)
        drawing.tight_layout()
        drawing.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _spread(values: Sequence[float]) -> str:
    middle, low, high = (f"{v:.1f}" for v in (statistics.median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low}–{high})"
