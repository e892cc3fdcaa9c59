"""What more effort buys: each thing that was tried beyond the plain solver, by what the languages pay, with its time.

    python bench/effort.py [--seeds 3] [--limit 12] [--only fast,best] [--quick]

Every variant is `onggi quantize` of one model to w4a16-g128 on the same eight languages, in a process of its own, once
for each seed (which draws the text). Two texts measure: `--choose` (default: debian:installation-guide), which is neither
calibration nor probe and is the one to choose by; and the probe, which only reports. Both have languages that were not
calibrated. `--recover` adds a w3a16-g128 model and its recovery by `onggi distill`. Artifacts and scores lie in --work and are
taken from there when they are there: delete it after a change of the code.

`--quick` is a trial of minutes: three languages, a sixteenth of the tokens, one seed, few passages.

writes docs/benchmarks/effort.md and .json (--quick: prints the page).
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

from parts import process
from parts.record import folder

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "benchmarks"
REFIT = ROOT / "bench" / "parts" / "effort_refit.py"
MODEL, SOURCE = "package:gemma3-270m", "debian:libreoffice-help"
EIGHT = "en,de,ko,ja,zh-Hans,el,km,ru"
TOKENS = 8192

# Name → what it is, multiples of the tokens, and further options of `onggi quantize`.
VARIANTS: dict[str, tuple[str, int, list[str]]] = {
    "fast": ("the plain solver", 1, ["--effort", "fast"]),
    "refit": ("scales fitted anew by second moments, codes kept", 1, ["--effort", "fast"]),
    "more": ("twice the tokens (`--effort default`)", 2, ["--effort", "fast"]),
    "most": ("four times the tokens", 4, ["--effort", "fast"]),
    "self": (
        "half of the text written by the model",
        1,
        ["--effort", "fast", "--self_share", "0.5"],
    ),
    "tuned": ("scales and norms tuned", 1, ["--effort", "best"]),
    "best": ("four times the tokens, scales and norms tuned (`--effort best`)", 4, ["--effort", "best"]),
    "best-self": (
        "the same, half of the text written by the model",
        4,
        ["--effort", "best", "--self_share", "0.5"],
    ),
    "best-minimax": (
        "as best, the worst language leading",
        4,
        ["--effort", "best", "--fairness", "minimax"],
    ),
    "rounding": ("as best, codes tuned too", 4, ["--effort", "best", "--tune", "rounding"]),
}
# The recovery: what is made by `onggi quantize`, and by `onggi distill` of that.
RECOVERED = {"w3": [], "w3-scales": ["--tune", "scales"], "w3-rounding": ["--tune", "rounding"]}


class Bench:
    """Where it works, and how much."""

    def __init__(self, given: argparse.Namespace):
        self.given, self.work = given, given.work.resolve()
        self.languages = "en,ko,km" if given.quick else EIGHT
        self.tokens = TOKENS // 16 if given.quick else TOKENS
        self.measured = ["--languages", "en,ko,km,ar"] if given.quick else []
        self.work.mkdir(parents=True, exist_ok=True)

    def onggi(self, words: list[str], log: str, script: list[str] | None = None) -> None:
        """Run a command as a process of its own."""
        command = [sys.executable, *(script or ["-m", "onggi"]), *words]
        process.measure(command, self.work / "logs" / f"{log}.log")

    def text(self) -> Path:
        """What is calibrated on."""
        out = self.work / "text"
        self.onggi(["text", SOURCE, "--languages", self.languages, "--out", str(out)], "text")
        return out

    def make(self, name: str, seed: int, text: Path) -> Path:
        """The artifact of a variant; it is there already where an earlier run made it."""
        out = self.work / f"{name}-{seed}"
        _, times, more = VARIANTS[name]
        words = [self.given.model, "--text", str(text), "--languages", self.languages, *more]
        words += ["--tokens", str(times * self.tokens), "--seed", str(seed), "--out", str(out)]
        if name == "refit":
            self.onggi(words, out.name, [str(REFIT)])
        else:
            self.onggi(["quantize", *words], out.name)
        return out

    def recover(self, name: str, seed: int, text: Path) -> Path:
        """The same of a recovery."""
        out, start = self.work / f"{name}-{seed}", self.work / f"w3-{seed}"
        if name == "w3":
            words = ["quantize", self.given.model, "--scheme", "w3a16-g128", "--effort", "fast"]
            words += ["--tokens", str(self.tokens)]
        else:
            steps = 8 if self.given.quick else self.given.steps
            words = [
                "distill",
                self.given.model,
                "--into",
                str(start),
                "--steps",
                str(steps),
                *RECOVERED[name],
            ]
        words += ["--text", str(text), "--languages", self.languages, "--seed", str(seed), "--out", str(out)]
        self.onggi(words, out.name)
        return out

    def scores(self, made: dict[str, Path]) -> dict[str, Any]:
        """What each text says of each artifact: name → language → mean KL, and the worst."""
        found: dict[str, Any] = {}
        for kind, source in (("choose", self.given.choose), ("probe", "probe")):
            out = self.work / f"scores-{kind}"
            words = ["evaluate", *(f"{name}={path}" for name, path in made.items())]
            words += ["--reference", self.given.model, "--text", source, "--limit", str(self.given.limit)]
            self.onggi([*words, *self.measured, "--out", str(out)], out.name)
            models = json.loads((out / "scores.json").read_text())["models"]
            found[kind] = {
                name: {tag: own["kl"]["value"] for tag, own in models[name]["languages"].items()}
                for name in made
            }
        return found

    def run(self) -> dict[str, Any]:
        """All of it."""
        text, made = self.text(), dict[str, Path]()
        names = [name for name in VARIANTS if name in self.given.only]
        seeds = range(1 if self.given.quick else self.given.seeds)
        for seed in seeds:
            for name in names:
                made[f"{name}-{seed}"] = self.make(name, seed, text)
                say(f"{name}, seed {seed}: {seconds(made[f'{name}-{seed}']):.0f} s")
            for name in RECOVERED if self.given.recover else ():
                made[f"{name}-{seed}"] = self.recover(name, seed, text)
                say(f"{name}, seed {seed}: {seconds(made[f'{name}-{seed}']):.0f} s")
        say("measuring")
        scores = self.scores(made)
        return {
            "command": shlex.join(["python", "bench/effort.py", *sys.argv[1:]]),
            "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
            "machine": process.facts(),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
            "model": self.given.model,
            "calibrated": self.languages,
            "tokens": self.tokens,
            "limit": self.given.limit,
            "choose": self.given.choose,
            "seeds": len(seeds),
            "seconds": {name: seconds(path) for name, path in made.items()},
            "bytes": {
                name: sum(file.stat().st_size for file in path.glob("*.safetensors"))
                for name, path in made.items()
            },
            "held_out": {name: record(path).get("damage") for name, path in made.items()},
            "scores": scores,
        }


def record(path: Path) -> dict[str, Any]:
    """What the artifact's own note says."""
    found: dict[str, Any] = json.loads((path / "stage.json").read_text())
    return found


def seconds(path: Path) -> float:
    """Of making it, by its own note."""
    return float(record(path)["wall_seconds"])


def say(message: str) -> None:
    """To whoever watches."""
    print(f"effort: {message}", file=sys.stderr, flush=True)


def page(result: dict[str, Any]) -> str:
    """The tables, as Markdown."""
    machine = result["machine"]
    made = {name.rpartition("-")[0] for name in result["seconds"]}
    lines = [
        "# What more effort buys",
        "",
        f"`{result['model']}` to w4a16-g128 on {result['tokens']:,} tokens of `{SOURCE}` ({result['calibrated']}) and "
        f"multiples of them. KL from the original in nats a token, {result['limit']} passages a language: the language that "
        f"pays most, and the mean of the languages; median of {result['seeds']} seeds (least–most). Choose by the first text; "
        "the probe only reports. This page is written by the bench.",
        "",
        f"- command: `{result['command']}`",
        f"- machine: {machine['processor']}, {machine['cores']} cores; {result['date']}; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
        "",
    ]
    tried = [(name, VARIANTS[name][0]) for name in VARIANTS if name in made]
    lines += table(result, tried, "fast")
    if "w3" in made:
        words = {"w3": "w3a16-g128, the plain solver", "w3-scales": "recovered: scales and norms"}
        words["w3-rounding"] = "recovered: scales and norms, then codes too"
        lines += [
            "",
            "## Recovery",
            "",
            *table(result, [(n, words[n]) for n in RECOVERED if n in made], "w3"),
        ]
    lines += ["", "## By language, on the probe (first seed)", ""]
    names = [name for name, _ in tried] + [name for name in RECOVERED if name in made]
    probe = result["scores"]["probe"]
    languages = list(probe[f"{names[0]}-0"])
    lines += ["| | " + " | ".join(languages) + " |", "| --- |" + " ---: |" * len(languages)]
    lines += [
        f"| {name} | " + " | ".join(f"{probe[f'{name}-0'][tag]:.3f}" for tag in languages) + " |"
        for name in names
    ]
    return "\n".join([*lines, ""])


def table(result: dict[str, Any], tried: list[tuple[str, str]], first: str) -> list[str]:
    """Rows of variants, and the ratio of each one's worst language to that of the first, seed by seed."""
    columns = [f"{result['choose']}: worst", "mean", "probe: worst", "mean", f"worst, against {first}"]
    lines = [
        "| | what | s | " + " | ".join(columns) + " |",
        "| --- | --- | ---: |" + " ---: |" * len(columns),
    ]
    for name, what in tried:
        keys = [f"{name}-{seed}" for seed in range(result["seeds"])]
        cells = [spread([result["seconds"][key] for key in keys], "{:.0f}")]
        for kind in ("choose", "probe"):
            own = [result["scores"][kind][key].values() for key in keys]
            cells += [spread([max(v) for v in own]), spread([statistics.mean(v) for v in own])]
        probe = result["scores"]["probe"]
        starts = [f"{first}-{seed}" for seed in range(result["seeds"])]
        if all(start in probe for start in starts):
            ratios = [
                max(probe[key].values()) / max(probe[start].values())
                for key, start in zip(keys, starts, strict=True)
            ]
            cells.append(spread(ratios, "{:.2f}") + "×")
        else:
            cells.append("")
        lines.append(f"| {name} | {what} | " + " | ".join(cells) + " |")
    return lines


def spread(values: list[float], form: str = "{:.3f}") -> str:
    """The median, and where there are several the least and the most."""
    middle = form.format(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({form.format(min(values))}–{form.format(max(values))})"


def main() -> int:
    """Make, measure, write; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="passages a language (default: 12; --quick: 3)")
    parser.add_argument("--only", default=",".join(VARIANTS), help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--choose", default="debian:installation-guide", metavar="TEXT")
    parser.add_argument("--recover", action="store_true", help="a w3a16-g128 model and its recovery too")
    parser.add_argument("--steps", type=int, default=240, help="of a recovery (default: 240)")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--work", type=Path, default=None, metavar="DIR", help="default: build/bench-effort, or …-quick"
    )
    given = parser.parse_args()
    given.only = [name.strip() for name in given.only.split(",")]
    if wrong := [name for name in given.only if name not in VARIANTS]:
        parser.error(f"--only: {wrong[0]} is none of {', '.join(VARIANTS)}")
    if given.seeds < 1:
        parser.error("--seeds: at least 1")
    given.limit = given.limit or (3 if given.quick else 12)
    given.work = folder(given.work, "bench-effort", given.quick)
    try:
        result = Bench(given).run()
    except process.Failed as error:
        print(f"effort: {error}", file=sys.stderr)
        return 1
    if given.quick:
        print(page(result))
        return 0
    DOCS.mkdir(parents=True, exist_ok=True)
    (DOCS / "effort.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    (DOCS / "effort.md").write_text(page(result), encoding="utf-8")
    say(f"written: {DOCS / 'effort.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
