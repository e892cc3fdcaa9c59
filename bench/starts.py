"""The four starts in one figure: random, continued, shrunk, deepened, trained on the same text.

A model, its vocabulary cut to Korean and English, is continued as it is; shrunk to half of its layers, by
measured importance and by place (naive); deepened by a third; and a Llama of the shrunk model's size begins at
random. All read the same packed passages of LibreOffice's help in the same order; passages held out are
measured on the way, in bits per byte of each language. The deepened model has fewer steps than the original, so that
both end after the same arithmetic; where curves are compared at the same arithmetic the other is taken between its
measured points on a straight line.

    python bench/starts.py [--steps 100] [--batch-tokens 1024] [--quick] [--resume] [--work build/bench/starts]

writes docs/benchmarks/starts.md, .json and .svg. --quick is a trial of the bench itself, and --model takes another
model; their page stays in the work folder. --resume keeps what an interrupted run of the same options made.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts import process, record

MODEL, SOURCE, LANGUAGES = "package:gemma3-270m", "debian:libreoffice-help", ("ko", "en")
LENGTH = 256
# Gemma's weights have a range that the default for training further, 3e-5, would hardly leave in so few steps.
RATE = 2e-4
PASSAGES, LEAST, ONE_IN = 40, 80, 50  # measured; characters of the English one; of so many
AT = (0.1, 0.3, 1.0)  # shares of the steps at which starts are compared
COLOURS = {
    "random": "#333333",
    "continued": "#0072b2",
    "shrunk": "#d55e00",
    "naive": "#cc79a7",
    "deepened": "#009e73",
}
MARKS = dict(zip(COLOURS, "PosvD", strict=True))


@dataclass(frozen=True)
class Start:
    """A model to begin with. flops: of one step."""

    name: str
    init: list[str]
    layers: int
    parameters: int
    flops: float
    steps: int


class Bench:
    """The folder of work, and the stages that are run in it; what a stage has finished is not done again."""

    def __init__(self, given: argparse.Namespace):
        self.work, self.steps, self.batch = given.work, given.steps, given.batch_tokens
        self.model = given.model
        self.seconds: dict[str, float] = {}
        if not given.resume:
            shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True, exist_ok=True)

    def onggi(self, name: str, *words: str) -> Path:
        """Run a verb into the folder `name`, in a process of its own."""
        out = self.work / name
        record.say(name)
        command = [sys.executable, "-m", "onggi", *words, "--quiet", "--out", str(out)]
        process.measure(command, self.work / "logs" / f"{name}.log")
        self.seconds[name] = json.loads((out / "stage.json").read_text())["wall_seconds"]
        return out

    def text(self) -> tuple[Path, Path]:
        """Passages that are there in both languages, to train on and to measure."""
        from onggi import text
        from onggi.text.draw import hold_out

        paths = self.work / "train.jsonl", self.work / "measured.jsonl"
        if all(path.is_file() for path in paths):
            return paths
        found = text.load(SOURCE, LANGUAGES).common(LANGUAGES)
        rest, held_out = hold_out(found, ONE_IN)
        kept = [key for key, passage in held_out["en"].items() if len(passage) >= LEAST][:PASSAGES]
        for path, passages, keys in zip(paths, (rest, held_out), (list(rest["en"]), kept), strict=True):
            rows = [{"_id": key, **{tag: passages[tag][key] for tag in LANGUAGES}} for key in keys]
            path.write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
            )
        return paths

    def prepare(self) -> list[Start]:
        """The text, packed, and every start."""
        train, _ = self.text()
        tags = ",".join(LANGUAGES)
        by = ["--text", str(train), "--languages", tags]
        trimmed = self.onggi("trimmed", "reshape", self.model, "--keep-languages", tags, *by)
        self.onggi(
            "packed",
            "pack",
            *(str(train), "--tokenizer", str(trimmed), "--length", str(LENGTH)),
        )
        layers = json.loads((trimmed / "config.json").read_text())["num_hidden_layers"]
        fewer = ["reshape", str(trimmed), "--layers", str(layers // 2)]
        shrunk = self.onggi("shrunk", *fewer, *by)
        naive = self.onggi("naive", *fewer, "--choice", "naive")
        deeper = self.onggi("deepened", "reshape", str(trimmed), "--deepen", str(round(layers * 4 / 3)))
        folders = {"continued": trimmed, "shrunk": shrunk, "naive": naive, "deepened": deeper}
        whole = self._start("continued", ["--init", str(trimmed)], trimmed, self.steps)
        starts = [whole]
        for name in ("shrunk", "naive", "deepened"):
            start = self._start(name, ["--init", str(folders[name])], folders[name], self.steps)
            if name == "deepened":
                steps = max(round(self.steps * whole.flops / start.flops), 1)
                start = Start(name, start.init, start.layers, start.parameters, start.flops, steps)
            starts.append(start)
        size = next(start.parameters for start in starts if start.name == "shrunk")
        starts.append(self._random(f"{size / 1e6:.1f}m"))
        return sorted(starts, key=lambda start: list(COLOURS).index(start.name))

    def _start(self, name: str, init: list[str], folder: Path, steps: int) -> Start:
        config = json.loads((folder / "config.json").read_text())
        return self._shaped(name, init, config, steps)

    def _random(self, size: str) -> Start:
        from onggi.models import random

        vocabulary = json.loads((self.work / "packed" / "index.json").read_text())["tokenizer"]["vocabulary"]
        config = random.configuration(size, vocabulary).to_dict()
        return self._shaped("random", ["--init", "random", "--size", size], config, self.steps)

    def _shaped(self, name: str, init: list[str], config: dict[str, Any], steps: int) -> Start:
        import transformers
        from accelerate import init_empty_weights

        from onggi.train import outlook

        with init_empty_weights():
            model: Any = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.for_model(**config)
            )
        model.tie_weights()
        of = outlook.shape(config, sum(parameter.numel() for parameter in model.parameters()))
        flops = outlook.arithmetic(of, LENGTH) * self.batch
        return Start(name, init, of.layers, of.parameters, flops, steps)

    def train(self, start: Start) -> list[dict[str, Any]]:
        """Points of a start's curve: step, FLOPs, bits per byte of each language."""
        every = max(start.steps // 10, 1)
        rate = [] if start.name == "random" else ["--learning-rate", str(RATE)]
        out = self.onggi(
            f"run-{start.name}",
            "pretrain",
            *("--text", str(self.work / "packed"), *start.init, *rate),
            *("--steps", str(start.steps), "--batch-tokens", str(self.batch)),
            *("--validation", str(self.work / "measured.jsonl"), "--validation-passages", str(PASSAGES)),
            *("--validate-every", str(every), "--languages", ",".join(LANGUAGES)),
        )
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [
            {"step": line["step"], "flops": line["step"] * start.flops, "bits": line["bits_per_byte"]}
            for line in lines
            if "bits_per_byte" in line
        ]


def between(curve: list[dict[str, Any]], flops: float, language: str) -> float:
    """Bits per byte of a curve after `flops`, on the straight line between its points."""
    xs, ys = [point["flops"] for point in curve], [point["bits"][language] for point in curve]
    for i in range(1, len(xs)):
        if flops <= xs[i]:
            return ys[i - 1] + (ys[i] - ys[i - 1]) * (flops - xs[i - 1]) / (xs[i] - xs[i - 1])
    return ys[-1]


def compared(curves: dict[str, Any], name: str, other: str, steps: list[int]) -> list[dict[str, Any]]:
    """Bits per byte of `name` at some of its steps, and of `other` after the same arithmetic."""
    found = []
    for step in steps:
        point = min(curves[name], key=lambda one: abs(one["step"] - step))
        for language in LANGUAGES:
            theirs = between(curves[other], point["flops"], language)
            found.append(
                {
                    "step": point["step"],
                    "flops": point["flops"],
                    "language": language,
                    name: point["bits"][language],
                    other: round(theirs, 4),
                }
            )
    return found


def goals(curves: dict[str, Any], starts: list[Start]) -> list[dict[str, Any]]:
    """The goals of issue 6: what, whether met, and every number it was judged by."""
    steps = {start.name: [round(share * start.steps) for share in AT] for start in starts}
    pairs = [
        ("shrunk below naive layer dropping at every N, in each language", "shrunk", "naive"),
        (
            "shrunk below a random start of its size given the same FLOPs, in each language",
            "shrunk",
            "random",
        ),
        (
            "deepened below the original continued for the same FLOPs, in each language",
            "deepened",
            "continued",
        ),
    ]
    found = []
    for what, name, other in pairs:
        points = compared(curves, name, other, [0, *steps[name]])
        # Before any training a deepened model is not the original: what counts is where it ends.
        judged = points[-len(LANGUAGES) :] if name == "deepened" else points[len(LANGUAGES) :]
        met = all(point[name] < point[other] for point in judged)
        found.append({"what": what, "met": met, "pair": [name, other], "points": points})
    return found


def page(result: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    lines = [
        *record.head(result, "The four starts", __doc__, f"; {result['minutes']:.0f} minutes in all"),
        f"- model: {result['model']}",
        f"- {result['steps']} steps of {result['batch_tokens']:,} tokens in sequences of {LENGTH}; cosine to a tenth after a "
        f"warm-up of a tenth; AdamW at {RATE:g}, and for the random start its default, Muon at 5e-3; one run each, one seed",
        f"- measured: {PASSAGES} passages in each language that none has read, {LEAST} characters or more in English",
        "",
        "![Bits per byte against training FLOPs, by start and language](starts.svg)",
        "",
        "## Goals",
        "",
        "| goal | |",
        "| --- | --- |",
        *(
            f"| {goal['what']} | {'met' if goal['met'] else '**no**' if 'deepened' in goal['pair'] else '**missed**'} |"
            for goal in result["goals"]
        ),
        "",
        "The third is a question rather than a goal: deepened, *or say that it is not*.",
        "",
        "## Starts",
        "",
        "| start | layers | parameters | FLOPs a step | steps | seconds a step |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {start['name']} | {start['layers']} | {start['parameters']:,} | {start['flops']:.2e} | "
        f"{start['steps']} | {start['seconds']:.2f} |"
        for start in result["starts"]
    ]
    for goal in result["goals"]:
        name, other = goal["pair"]
        lines += [
            "",
            f"## {name.capitalize()} and {other}, bits per byte",
            "",
            f"| N, steps of the {name} one | FLOPs | language | {name} | {other}, same FLOPs | difference |",
            "| ---: | ---: | --- | ---: | ---: | ---: |",
        ]
        for point in goal["points"]:
            mine, theirs = point[name], point[other]
            lines.append(
                f"| {point['step']} | {point['flops']:.2e} | {point['language']} | {mine:.3f} | {theirs:.3f} | "
                f"{mine - theirs:+.3f} |"
            )
    return "\n".join([*lines, ""])


def figure(result: dict[str, Any]) -> str:
    """Bits per byte against training FLOPs, a panel a language, as SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    from onggi import languages as tags

    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "font.size": 12, "svg.hashsalt": "starts"}):
        drawing = Figure(figsize=(10, 4.2))
        for plot, language in zip(drawing.subplots(1, len(LANGUAGES), sharey=True), LANGUAGES, strict=True):
            for name, curve in result["curves"].items():
                xs, ys = [p["flops"] / 1e12 for p in curve], [p["bits"][language] for p in curve]
                plot.plot(xs, ys, f"{MARKS[name]}-", color=COLOURS[name], label=name, ms=4, lw=1.4)
            plot.set_yscale("log")
            plot.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
            plot.yaxis.set_minor_locator(NullLocator())
            plot.yaxis.set_major_formatter("{x:g}")
            plot.set_title(tags.name(language), fontsize=12, loc="left")
            plot.set_xlabel("training, 10¹² FLOPs")
            plot.grid(axis="y", color="#dddddd", lw=0.8)
            for side in ("top", "right", "left"):
                plot.spines[side].set_visible(False)
            plot.tick_params(length=0)
        drawing.axes[0].set_ylabel("bits per byte")
        drawing.axes[-1].legend(frameon=False)
        drawing.tight_layout()
        drawing.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def main() -> int:
    """Make the starts, train them, write page, JSON and figure; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100, help="of all but the deepened (default: 100)")
    parser.add_argument("--batch-tokens", type=int, default=1024, help="of a step (default: 1024)")
    parser.add_argument("--model", default=MODEL, help=f"default: {MODEL}")
    parser.add_argument("--quick", action="store_true", help="a trial: 10 steps of 256 tokens")
    parser.add_argument("--resume", action="store_true", help="keep what an interrupted run made")
    parser.add_argument("--work", type=Path, metavar="DIR", help="default: build/bench/starts, or …-quick")
    given = parser.parse_args()
    if given.quick:
        given.steps, given.batch_tokens = 10, LENGTH
    if given.steps < 10 or given.batch_tokens < LENGTH:
        parser.error(f"--steps: at least 10; --batch-tokens: at least {LENGTH}")
    given.batch_tokens -= given.batch_tokens % LENGTH
    given.work = record.folder(given.work, "bench/starts", given.quick)
    bench, machine = Bench(given), process.facts()
    try:
        starts = bench.prepare()
        curves = {start.name: bench.train(start) for start in starts}
    except (process.Failed, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    speeds = {
        start.name: json.loads((given.work / f"run-{start.name}" / "stage.json").read_text())
        for start in starts
    }
    result = {
        **record.begun("starts", machine, given.quick),
        "model": given.model,
        "steps": given.steps,
        "batch_tokens": given.batch_tokens,
        "minutes": round(sum(bench.seconds.values()) / 60, 1),
        "starts": [
            {**vars(start), "seconds": given.batch_tokens / speeds[start.name]["tokens_per_second"]}
            for start in starts
        ],
        "goals": goals(curves, starts),
        "curves": curves,
    }
    for goal in result["goals"]:
        print(f"{'met   ' if goal['met'] else 'no    '} {goal['what']}")
    trial = given.quick or given.model != MODEL
    record.write("starts", result, {"svg": figure, "md": page}, given.work if trial else record.DOCS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
