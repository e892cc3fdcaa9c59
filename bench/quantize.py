"""Quantisation side by side with llm-compressor's GPTQ: speed, memory, and what each language pays.

Both tools quantise one model (Gemma 3 270M in bf16) to symmetric int4 in groups of 128 on the *same*
8,192 tokens, once of English alone and once of eight languages; both as whole processes, in
alternating order, in one run on one machine, so that their ratio means something whatever the
machine. Then `onggi evaluate` measures all four and plain rounding on the probe, 40 passages in 12
languages that neither tool was calibrated on. The peer lives in an environment of its own,
`.venv-bench`, made from bench/constraints.txt.

    python bench/quantize.py [--runs 3] [--limit N] [--only speed|quality] [--work build/bench]

writes docs/benchmarks/quantize.md and .json, with the goals met and missed. Timings are taken anew
each time; artifacts of the same code, and finished languages of the evaluation, are reused.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from parts import arithmetic, process, quantize_report

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "bench"
VENV, CONSTRAINTS = ROOT / ".venv-bench", HERE / "constraints.txt"
PEER_PYTHON, PEER = VENV / "bin" / "python", HERE / "peers" / "llmcompressor_gptq.py"
DOCS = ROOT / "docs" / "benchmarks"

MODEL, SOURCE, TOKENS = "package:gemma3-270m", "debian:libreoffice-help", 8192
EIGHT = "en,de,ko,ja,zh-Hans,el,km,ru"
# Calibration → languages, and how onggi draws from them.
CALIBRATIONS = {"english": ("en", "none"), "balanced": (EIGHT, "balanced")}
# A peer's artifact has its own name; ours has the calibration's.
ARTIFACTS = ["english-peer", "balanced-peer", "english", "balanced", "rtn"]


class Bench:
    """The folder of work, and what is made in it."""

    def __init__(self, work: Path):
        self.work = work
        self.text, self.logs = work / "text", work / "logs"
        work.mkdir(parents=True, exist_ok=True)

    def onggi(self, *words: str, log: str) -> process.Cost:
        """Run one onggi command as a process of its own."""
        return process.measure([sys.executable, "-m", "onggi", *words], self.logs / f"{log}.log")

    def prepare(self) -> None:
        """Everything the measured processes only read: the model, the text, the ids for the peer."""
        peer_environment()
        shown = subprocess.run(
            [sys.executable, "-m", "onggi", "inspect", MODEL, "--json"], check=True, stdout=subprocess.PIPE
        )
        self.model = Path(json.loads(shown.stdout)["path"])
        say("text to calibrate on")
        self.onggi("text", SOURCE, "--languages", EIGHT, "--out", str(self.text), log="text")
        for name, (languages, fairness) in CALIBRATIONS.items():
            given = {"model": self.model, "text": self.text, "languages": languages, "fairness": fairness}
            given |= {"tokens": TOKENS, "out": self.ids(name)}
            words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
            script = str(HERE / "parts" / "calibration_ids.py")
            process.measure([sys.executable, script, *words], self.logs / f"ids-{name}.log")

    def ids(self, calibration: str) -> Path:
        """File of the tokens for the peer."""
        return self.work / f"ids-{calibration}.jsonl"

    def make(self, name: str) -> dict[str, Any]:
        """Make the artifact `name` from nothing; what the whole process cost."""
        out, facts = self.work / name, self.work / f"{name}.facts.json"
        shutil.rmtree(out, ignore_errors=True)
        tool = "peer" if name.endswith("-peer") else "onggi"
        calibration = name.removesuffix("-peer")
        if tool == "peer":
            given = {"model": self.model, "ids": self.ids(calibration), "out": out, "facts": facts}
            words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
            cost = process.measure(
                [str(PEER_PYTHON), str(PEER), *words],
                self.logs / f"{name}.log",
                # Nothing is asked over the network: the model is a folder.
                {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            )
            said = json.loads(facts.read_text())
            quantisation = said["oneshot_seconds"]
        else:
            words = ["quantize", MODEL, "--scheme", "w4a16-g128", "--out", str(out)]
            if calibration == "rtn":
                words += ["--method", "rtn"]
            else:
                languages, fairness = CALIBRATIONS[calibration]
                words += ["--method", "gptq", "--fairness", fairness, "--text", str(self.text)]
                words += ["--languages", languages, "--tokens", str(TOKENS)]
            cost = self.onggi(*words, log=name)
            said = json.loads((out / "stage.json").read_text())
            quantisation = said["wall_seconds"]
            said = {"precision": json.loads((out / "onggi.json").read_text())["precision"]}
        (self.work / f"{name}.key").write_text(key(tool))
        record = {"artifact": name, "tool": tool, "calibration": calibration, **vars(cost)}
        return record | {"quantisation": quantisation, "facts": said, "digest": digest(out)}

    def made(self, name: str) -> bool:
        """Whether the artifact is there, from the code as it stands."""
        kept = self.work / f"{name}.key"
        return kept.is_file() and kept.read_text() == key("peer" if name.endswith("-peer") else "onggi")

    def speed(self, runs: int) -> dict[str, Any]:
        """The peak of the machine, then `runs` times each calibration: the peer, then onggi."""
        machine = process.facts()
        say("the machine's own peak")
        peaks = [self.peak()]
        # The first measured run of each finds the model and its libraries in the page cache, as later ones do.
        subprocess.run(["cat", *self.model.glob("*.safetensors")], check=True, stdout=subprocess.DEVNULL)
        for python, libraries in (
            (str(PEER_PYTHON), "llmcompressor, transformers"),
            (sys.executable, "onggi.stages, transformers, torch, scipy"),
        ):
            process.measure([python, "-c", f"import {libraries}"], self.logs / "warm.log")
        records = []
        for run in range(1, runs + 1):
            for calibration in CALIBRATIONS:
                for name in (f"{calibration}-peer", calibration):
                    record = {"run": run, **self.make(name)}
                    records.append(record)
                    say(
                        f"run {run} of {runs}, {name}: {record['wall']:.1f} s ({record['quantisation']:.1f} s "
                        f"quantisation), {record['peak'] / 2**30:.2f} GiB"
                    )
        peaks.append(self.peak())
        peak = {kind: max(found[kind] for found in peaks) for kind in ("fp32", "bf16")}
        precision = next(r["facts"]["precision"] for r in records if r["tool"] == "onggi")
        counted = arithmetic.count(arithmetic.linears(self.model), TOKENS, precision)
        return {
            "date": now(),
            "machine": machine,
            "runs": records,
            "peak": peak,
            "precision": precision,
            "arithmetic": {
                who: {**counts, "floor": arithmetic.floor(counts, peak)} for who, counts in counted.items()
            },
            "pairs": pairs(records),
        }

    def peak(self) -> dict[str, float]:
        """FLOP/s of a large matrix product in fp32 and bf16."""
        script = str(HERE / "parts" / "matmul_peak.py")
        done = subprocess.run([sys.executable, script], check=True, stdout=subprocess.PIPE)
        return json.loads(done.stdout)

    def quality(self, limit: int | None) -> dict[str, Any]:
        """Scores of all artifacts on the probe; makes those that are not there."""
        for name in ARTIFACTS:
            if not self.made(name):
                say(f"{name}: quantising")
                self.make(name)
        out = self.work / "scores"
        words = [f"{name}={self.work / name}" for name in ARTIFACTS]
        words += ["--reference", MODEL, "--text", "probe", "--out", str(out)]
        words += ["--limit", str(limit)] if limit else []
        say("measuring on the probe")
        subprocess.run([sys.executable, "-m", "onggi", "evaluate", *words], check=True)
        scores = json.loads((out / "scores.json").read_text())
        made = {name: digest(self.work / name) for name in ARTIFACTS}
        return {"date": now(), "limit": limit, "artifacts": made, "scores": scores}


def peer_environment() -> None:
    """Make .venv-bench where it is not there or its constraints changed. torch first, pinned: any
    looser order pulls gigabytes of CUDA libraries.
    """
    stamp, wanted = VENV / ".constraints", CONSTRAINTS.read_text()
    if PEER_PYTHON.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return
    say(f"making {VENV.name} (1.5 GB, once)")
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    torch = next(line for line in wanted.splitlines() if line.startswith("torch=="))
    pip = [str(PEER_PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for requirement in (torch, "llmcompressor==0.14.*"):
        subprocess.run([*pip, "--constraint", str(CONSTRAINTS), requirement], check=True)
    stamp.write_text(wanted)


def pairs(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours against the peer's run just before it: ratios of wall time, quantisation and peak memory."""
    found = []
    for peer, ours in zip(records[::2], records[1::2], strict=True):
        ratios = {what: ours[what] / peer[what] for what in ("wall", "quantisation", "cpu", "peak")}
        found.append({"run": ours["run"], "calibration": ours["calibration"], **ratios})
    return found


def goals(speed: dict[str, Any] | None, quality: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The goals of issue 3: what, at most, measured, met, and how it was judged."""
    found = []
    if speed:
        ratio = {
            what: statistics.median(pair[what] for pair in speed["pairs"])
            for what in ("wall", "quantisation", "peak")
        }
        note = f"the worse of {ratio['quantisation']:.2f}× quantisation alone and {ratio['wall']:.2f}× whole process"
        found.append(("wall time of the quantisation", 0.6, max(ratio["wall"], ratio["quantisation"]), note))
        found.append(("peak memory", 0.7, ratio["peak"], "of the whole process"))
    if quality:
        worst = {name: quantize_report.worst(quality["scores"], name) for name in ARTIFACTS}
        for what, most, ours, other in (
            ("worst-language KL, same balanced tokens", 0.8, "balanced", "balanced-peer"),
            # The goal reads "ours balanced against its English": the peer's, or ours; so both.
            ("worst-language KL, ours balanced against the peer's English", 0.25, "balanced", "english-peer"),
            ("the same against our own English", 0.25, "balanced", "english"),
        ):
            (tag, a), (other_tag, b) = worst[ours], worst[other]
            note = f"{a['value']:.3f} ({tag}) against {b['value']:.3f} ({other_tag})"
            found.append((what, most, a["value"] / b["value"], note))
    return [
        {"what": what, "goal": most, "measured": measured, "met": measured <= most, "note": note}
        for what, most, measured, note in found
    ]


def key(tool: str) -> str:
    """Of the code that makes an artifact."""
    ours = sorted((ROOT / "src" / "onggi").rglob("*.py"))
    files = [PEER, CONSTRAINTS] if tool == "peer" else ours
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def digest(folder: Path) -> str:
    """Of an artifact's weights."""
    whole = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            whole.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()


def now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="minutes")


def say(message: str) -> None:
    print(f"bench: {message}", file=sys.stderr, flush=True)


def main() -> int:
    """Measure, write the page and its JSON, print the goals; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, help="of each tool on each calibration (default: 3)")
    parser.add_argument("--limit", type=int, help="passages of the probe per language (default: all 40)")
    parser.add_argument("--only", choices=["speed", "quality"], help="one half; the other as last measured")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", metavar="DIR")
    given = parser.parse_args()
    if given.runs < 1:
        parser.error("--runs: at least 1")
    work = given.work.resolve()
    bench = Bench(work)
    halves = {"speed": lambda: bench.speed(given.runs), "quality": lambda: bench.quality(given.limit)}
    try:
        bench.prepare()
        for half, measure in halves.items():
            if given.only in (None, half):
                (work / f"{half}.json").write_text(json.dumps(measure(), ensure_ascii=False, indent=1))
    except (process.Failed, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    kept = {half: work / f"{half}.json" for half in halves}
    measured = {half: json.loads(file.read_text()) if file.is_file() else None for half, file in kept.items()}
    speed, quality = measured["speed"], measured["quality"]
    if speed and quality:
        latest = {record["artifact"]: record["digest"] for record in speed["runs"]}
        if any(quality["artifacts"][name] != made for name, made in latest.items()):
            other = "speed" if given.only == "quality" else "quality"
            say(f"the {other} measured earlier is of other artifacts; it is left out")
            speed, quality = (None, quality) if other == "speed" else (speed, None)
    result = {
        "command": "python bench/quantize.py " + " ".join(sys.argv[1:]),
        "machine": speed["machine"] if speed else process.facts(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("onggi", "torch", "transformers", "compressed-tensors")
        },
        "model": MODEL,
        "text": SOURCE,
        "tokens": TOKENS,
        "languages": EIGHT,
        "goals": goals(speed, quality),
        "speed": speed,
        "quality": quality,
    }
    DOCS.mkdir(parents=True, exist_ok=True)
    (DOCS / "quantize.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    (DOCS / "quantize.md").write_text(quantize_report.page(result), encoding="utf-8")
    print(quantize_report.goals_table(result["goals"]))
    say(f"written: {DOCS / 'quantize.md'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
