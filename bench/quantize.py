"""Quantisation side by side with llm-compressor, GPTQModel and AutoRound: speed, memory, and what each language pays.

All tools quantise one model (Gemma 3 270M in bf16) to symmetric int4 in groups of 128 on the *same* 8,192 tokens,
once of English alone and once of eight languages in equal shares. Each peer lives in an environment of its own, made
from bench/constraints*.txt; where one cannot be installed the page says why and the rest goes on. Parts, each of
which can be run by itself, and each of which goes on where it was stopped:

    speed       whole processes in turns, GPTQ alone: the peers in the dtype that is faster for them, then onggi
    artifacts   all the checkpoints, one after the other, with what each cost
    probe       what each language pays: 40 everyday passages in 12 languages, by `onggi evaluate`
    other       the same on another text: paragraphs of GNOME's help in 12 languages
    growth      cost as the model grows; also bench/growth.py by itself

    python bench/quantize.py [--only speed artifacts …] [--skip NAME …] [--runs 3] [--limit N] [--quick] [--work build/bench]

The page, docs/benchmarks/quantize.md with its JSON, is written from whatever has been measured, each part with its own
command, date and machine. --quick is a trial of the bench itself, on two layers of the model; its page says so and
stays in the work folder. `others` in the records is the share of the machine that went elsewhere: run it alone.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import growth
from parts import arithmetic, code, peers, process, quantize_goals, quantize_report, record
from parts.peers import PEERS

from onggi import ledger
from onggi.stages.quantize_text import TUNED

HERE = Path(__file__).resolve().parent

MODEL, SOURCE = "package:gemma3-270m", "debian:libreoffice-help"
EIGHT = "en,de,ko,ja,zh-Hans,el,km,ru"
# Of the free choice; help has none of the last two, which the model writes.
FREE = "en,de,es,fr,it,pt,pl,cs,ru,el,tr,fi,hu,vi,id,ko,ja,zh-Hans,km,hi,ar,th"
_WRITTEN = "0.25"
OTHER = "en,de,ko,ja,zh-Hans,el,ru,vi,uk,ta,mr,gu"
GPTQ = ("llmcompressor", "gptqmodel")
# Calibration → languages, and how onggi draws from them.
CALIBRATIONS = {"english": ("en", "none"), "balanced": (EIGHT, "balanced")}


@dataclass(frozen=True)
class Artifact:
    """A checkpoint: who makes it, on which of CALIBRATIONS, and, of onggi, with which further options."""

    tool: str
    calibration: str | None
    title: str
    words: tuple[str, ...] = ()


def artifacts(tokens: int) -> dict[str, Artifact]:
    """All of them by name. `best` has the tokens of the others, less those that it holds out; `free` takes more text, more
    languages, and a zero point for each group.
    """
    held_out = TUNED * len(EIGHT.split(","))
    solved = tokens - held_out
    split = f"same tokens: {solved:,} to solve and tune on, {held_out:,} held out"
    said = {"balanced": "8 languages", "english": "English"}
    found = {
        f"{name}-{calibration}": Artifact(name, calibration, f"{peer.title}, {said[calibration]}")
        for calibration in ("balanced", "english")
        for name, peer in PEERS.items()
    }
    effort = ("--effort", "best")
    found |= {
        "balanced": Artifact("onggi", "balanced", "onggi, 8 languages"),
        "english": Artifact("onggi", "english", "onggi, English"),
        "minimax": Artifact("onggi", "balanced", "onggi, minimax", ("--fairness", "minimax")),
        "best": Artifact("onggi", "balanced", f"onggi, best ({split})", (*effort, "--tokens", str(solved))),
        "free": Artifact("onggi", None, "onggi, best, free", (*effort, "--scheme", "w4a16-g128-asym")),
        "rtn": Artifact("onggi", None, "onggi, rounding", ("--method", "rtn")),
    }
    return found


@dataclass(frozen=True)
class Sizes:
    """How much of everything. layers: of the model, None: all; iterations: AutoRound's, None: its default."""

    tokens: int = 8192
    layers: int | None = None
    iterations: int | None = None
    passages: int | None = None
    probe: str | None = None
    other: str = OTHER
    paragraphs: int = 60


QUICK = Sizes(4096, 2, 2, 3, "en,ko,km", "en,ko,fa", 3)


class Bench:
    """The folder of work, and what is made in it."""

    def __init__(self, work: Path, sizes: Sizes, runs: int, skipped: Sequence[str] = ()):
        self.work, self.sizes, self.runs = work, sizes, runs
        self.text, self.logs = work / "text", work / "logs"
        self.artifacts = artifacts(sizes.tokens)
        self.absent = dict.fromkeys(skipped, "by --skip")
        work.mkdir(parents=True, exist_ok=True)

    def onggi(self, *words: str, log: str) -> process.Cost:
        """Run one onggi command as a process of its own."""
        return process.measure([sys.executable, "-m", "onggi", *words], self.logs / f"{log}.log")

    def part(self, script: str, *words: object) -> None:
        """Run a script of bench/parts/."""
        command = [sys.executable, str(HERE / "parts" / f"{script}.py"), *map(str, words)]
        process.measure(command, self.logs / f"{script}-{Path(str(words[-1])).stem}.log")

    def prepare(self) -> None:
        """Everything the measured processes only read: environments, the model, the text, the ids for the peers."""
        for name, peer in PEERS.items():
            if why := peers.environment(peer):
                self.absent[name] = why
                record.say(f"{peer.title} is not installable here: {why}")
        shown = subprocess.run(
            [sys.executable, "-m", "onggi", "inspect", MODEL, "--json"], check=True, stdout=subprocess.PIPE
        )
        self.model = Path(json.loads(shown.stdout)["path"])
        if self.sizes.layers:
            short = self.work / "short"
            if not (short / "config.json").is_file():
                self.part("short_model", MODEL, self.sizes.layers, short)
            self.model = short
        if not (self.text / "stage.json").is_file():
            record.say("text to calibrate on")
            self.onggi("text", SOURCE, "--languages", EIGHT, "--out", str(self.text), log="text")
        self.inputs = {"code": code.digest(code.MAKES)}
        self.inputs |= {
            name: record.digest(path) for name, path in (("model", self.model), ("text", self.text))
        }
        for name, (languages, fairness) in CALIBRATIONS.items():
            given = {"model": self.model, "text": self.text, "languages": languages, "fairness": fairness}
            given |= {"tokens": self.sizes.tokens, "out": self.ids(name)}
            words = [word for key, value in given.items() for word in (f"--{key}", value)]
            drawn = {**self.inputs, "languages": languages, "fairness": fairness, "tokens": self.sizes.tokens}
            record.made(self.ids(name), drawn, lambda words=words: self.part("calibration_ids", *words))

    def ids(self, calibration: str) -> Path:
        """File of the tokens for the peers."""
        return self.work / f"ids-{calibration}.jsonl"

    def there(self) -> dict[str, Artifact]:
        """The artifacts that can be made here."""
        return {
            name: one
            for name, one in self.artifacts.items()
            if name not in self.absent and one.tool not in self.absent
        }

    def measured(self, name: str) -> Path:
        """The folder that `onggi evaluate` loads: the artifact, or what the peer itself makes of it to compute with."""
        return self.work / (f"{name}.dense" if self.artifacts[name].tool == "gptqmodel" else name)

    def make(self, name: str, dtype: str | None = None) -> dict[str, Any]:
        """Make the artifact `name` from nothing; what the whole process cost."""
        out, facts, one = self.work / name, self.work / f"{name}.facts.json", self.artifacts[name]
        (self.work / f"{name}.made.json").unlink(missing_ok=True)
        for folder in {out, self.measured(name)}:
            shutil.rmtree(folder, ignore_errors=True)
        if one.tool in PEERS:
            peer = PEERS[one.tool]
            given: dict[str, object] = {"model": self.model, "ids": self.ids(one.calibration or "")}
            given |= {"out": out, "facts": facts, "dtype": dtype or self.dtype(one.tool)}
            if one.tool == "autoround" and self.sizes.iterations:
                given["iterations"] = self.sizes.iterations
            cost = process.measure(peer.command(**given), self.logs / f"{name}.log", peers.OFFLINE)
            said = json.loads(facts.read_text())
            quantisation = said["seconds"]
        else:
            cost = self.onggi(*self.words(name), log=name)
            stage = json.loads((out / "stage.json").read_text())
            quantisation = stage["wall_seconds"]
            said = {"precision": json.loads((out / "onggi.json").read_text())["precision"]}
            said |= {"command": stage.get("command")}
        made = {
            "artifact": name,
            "tool": one.tool,
            "calibration": one.calibration,
            **vars(cost),
        }
        made |= {"quantisation": quantisation, "facts": said, "digest": digest(out), "date": now()}
        made |= {
            "bytes": sum(file.stat().st_size for file in out.glob("*.safetensors")),
            "key": self.key(name, dtype),
        }
        (self.work / f"{name}.made.json").write_text(json.dumps(made, indent=1))
        return made

    def unpack(self, name: str) -> None:
        """Make what of the artifact is measured, where that is not the artifact itself: in a process that does not count."""
        if not self.measured(name).is_dir():
            python, script = PEERS[self.artifacts[name].tool].python, HERE / "peers" / "gptqmodel_dense.py"
            command = [python, script, "--made", self.work / name, "--out", self.measured(name)]
            process.measure([*map(str, command)], self.logs / f"{name}.dense.log", peers.OFFLINE)

    def words(self, name: str) -> list[str]:
        """The onggi command of an artifact."""
        one = self.artifacts[name]
        words = ["quantize", str(self.model), "--out", str(self.work / name)]
        if name == "rtn":
            return [*words, "--scheme", "w4a16-g128", *one.words]
        given = {
            "scheme": "w4a16-g128",
            "method": "gptq",
            "text": str(self.text),
            "languages": EIGHT,
            "fairness": "balanced",
        }
        if one.calibration:
            languages, fairness = CALIBRATIONS[one.calibration]
            given |= {"languages": languages, "fairness": fairness, "tokens": str(self.sizes.tokens)}
        else:  # free: more languages of the source, in the amount that the effort takes by itself
            given |= {"text": SOURCE, "languages": FREE, "self_share": _WRITTEN}
        given |= {
            key.removeprefix("--"): value for key, value in zip(one.words[::2], one.words[1::2], strict=True)
        }
        if self.sizes.layers and name == "free":
            given |= {"tokens": str(self.sizes.tokens), "text": str(self.text), "languages": EIGHT}
        return [*words, *(word for key, value in given.items() for word in (f"--{key}", value))]

    def made(self, name: str) -> dict[str, Any] | None:
        """What the artifact cost, where it is there, from the code as it stands."""
        file = self.work / f"{name}.made.json"
        found = json.loads(file.read_text()) if file.is_file() else None
        return found if found and found["key"] == self.key(name) else None

    def key(self, name: str, dtype: str | None = None) -> str:
        """Of the code, the options, the model and the text that make an artifact; dtype: of a peer, where it is not its fastest."""
        one = self.artifacts[name]
        dtype = (dtype or self.dtype(one.tool)) if one.tool in PEERS else None
        if one.tool in PEERS:
            of = {"peer": record.digest(*PEERS[one.tool].files), "model": self.inputs["model"]}
            of |= {"ids": record.digest(self.ids(one.calibration or "")), "iterations": self.sizes.iterations}
        else:
            of = {**self.inputs, "tokens": self.sizes.tokens, "calibration": one.calibration}
            of |= {} if one.calibration else {"free": [SOURCE, FREE, _WRITTEN]}
        return ledger.digest([of, one.words, dtype])

    def dtype(self, peer: str) -> str:
        """The dtype that was faster for the peer, its own default where none was tried."""
        file = self.work / "dtypes.json"
        found: dict[str, str] = json.loads(file.read_text()) if file.is_file() else {}
        return found.get(peer, PEERS[peer].dtypes[0])

    def speed(self) -> dict[str, Any]:
        """The peak of the machine; each GPTQ peer once for nothing, then once in each dtype; then `runs` times the peers and onggi, in turns."""
        machine, there = process.facts(), [name for name in GPTQ if name not in self.absent]
        record.say("the machine's own peak")
        peaks = [self.peak()]
        # The first measured run of each finds the model and its libraries in the page cache, as later ones do.
        subprocess.run(["cat", *self.model.glob("*.safetensors")], check=True, stdout=subprocess.DEVNULL)
        warm = {str(PEERS[name].python): f"{name}, transformers" for name in there}
        for python, libraries in (
            warm | {sys.executable: "onggi.stages, transformers, torch, scipy"}
        ).items():
            process.measure([python, "-c", f"import {libraries}"], self.logs / "warm.log")

        kept = self.work / "speed.runs.json"
        own = hashlib.sha256(
            "".join(self.key(f"{n}-balanced" if n else "balanced") for n in ("", *there)).encode()
        )
        done = json.loads(kept.read_text()) if kept.is_file() else {}
        records = done["records"] if done.get("key") == own.hexdigest() else {}

        def run(label: str, name: str, dtype: str | None = None) -> dict[str, Any]:
            if label not in records:
                records[label] = self.make(name, dtype)
                kept.write_text(json.dumps({"key": own.hexdigest(), "records": records}))
                made = records[label]
                record.say(
                    f"{label}: {made['wall']:.1f} s ({made['quantisation']:.1f} s), {made['peak'] / 2**30:.2f} GiB"
                )
            return records[label]

        for peer in there:  # does not count: GPTQModel compiles an extension in its first run
            run(f"{peer} first", f"{peer}-balanced", PEERS[peer].dtypes[0])
        tried = {
            peer: {dtype: run(f"{peer} {dtype}", f"{peer}-balanced", dtype) for dtype in PEERS[peer].dtypes}
            for peer in there
        }
        best = {peer: min(runs, key=lambda dtype: runs[dtype]["wall"]) for peer, runs in tried.items()}
        runs = []
        for number in range(1, self.runs + 1):
            for peer, dtype in best.items():
                runs.append({"run": number, **run(f"{peer} {number}", f"{peer}-balanced", dtype)})
            runs.append({"run": number, **run(f"onggi {number}", "balanced")})
        (self.work / "dtypes.json").write_text(json.dumps(best))
        peaks.append(self.peak())
        peak = {kind: max(found[kind] for found in peaks) for kind in ("fp32", "bf16")}
        precision = next(r["facts"]["precision"] for r in runs if r["tool"] == "onggi")
        counted = arithmetic.count(
            arithmetic.linears(self.model), self.sizes.tokens, precision, best.get(GPTQ[0])
        )
        return {
            "machine": machine,
            "runs": runs,
            "tried": {peer: {d: made["wall"] for d, made in of.items()} for peer, of in tried.items()},
            "dtypes": best,
            "peak": peak,
            "precision": precision,
            "arithmetic": {
                who: {**counts, "floor": arithmetic.floor(counts, peak)} for who, counts in counted.items()
            },
        }

    def peak(self) -> dict[str, float]:
        """FLOP/s of a large matrix product in fp32 and bf16."""
        script = str(HERE / "parts" / "matmul_peak.py")
        done = subprocess.run([sys.executable, script], check=True, stdout=subprocess.PIPE)
        return json.loads(done.stdout)

    def all(self) -> dict[str, Any]:
        """Make the artifacts that are not there; what each cost. One that fails is noted, the others go on."""
        machine, records, failed = process.facts(), {}, {}
        for name in self.there():
            try:
                if not (made := self.made(name)) or not (self.work / name).is_dir():
                    record.say(f"{name}: quantising")
                    made = self.make(name)
                    record.say(f"{name}: {made['wall']:.1f} s, {made['peak'] / 2**30:.2f} GiB")
                self.unpack(name)
            except process.Failed as error:
                failed[name] = str(error)[-800:]
                record.say(f"{name} failed: {error}")
                continue
            records[name] = made
        return {"machine": machine, "records": records, "failed": failed}

    def quality(self, text: str, languages: str | None, name: str) -> dict[str, Any]:
        """Scores of all artifacts on a text, and the ratios that the goals are about with their paired intervals."""
        records = self.all()["records"]
        out = self.work / name
        words = [f"{one}={self.measured(one)}" for one in records]
        words += ["--reference", str(self.model), "--text", text, "--out", str(out)]
        words += ["--languages", languages] if languages else []
        words += ["--limit", str(self.sizes.passages)] if self.sizes.passages else []
        record.say(f"measuring on {name}")
        subprocess.run([sys.executable, "-m", "onggi", "evaluate", *words], check=True)
        scores = json.loads((out / "scores.json").read_text())
        return {
            "machine": process.facts(),
            "text": text,
            "artifacts": {one: made["digest"] for one, made in records.items()},
            "scores": scores,
            "ratios": quantize_goals.ratios(
                out / "items.parquet", quantize_goals.pairs(list(records)), EIGHT.split(",")
            ),
        }

    def probe(self) -> dict[str, Any]:
        """On the probe."""
        return self.quality("probe", self.sizes.probe, "probe")

    def other(self) -> dict[str, Any]:
        """On GNOME's help."""
        text = self.work / "other.jsonl"
        if not text.is_file():
            given = ("--languages", self.sizes.other, "--passages", self.sizes.paragraphs, "--out", text)
            self.part("other_text", *given)
        return self.quality(str(text), self.sizes.other, "other") | {"text": "debian:gnome-user-docs"}

    def growth(self) -> dict[str, Any]:
        """As bench/growth.py does."""
        return growth.measure(self.work / "growth", growth.QUICK if self.sizes.layers else growth.FULL)


def digest(folder: Path) -> str:
    """Of an artifact's weights."""
    whole = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            whole.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()


def now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="minutes")


def main() -> int:
    """Measure, write the page and its JSON, print the goals; returns the exit code."""
    parts = ("speed", "artifacts", "probe", "other", "growth")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, help="of each tool in `speed` (default: 3)")
    parser.add_argument("--limit", type=int, help="passages of a text per language (default: all)")
    parser.add_argument("--only", choices=parts, nargs="+", help="these parts; the others as last measured")
    parser.add_argument(
        "--skip",
        nargs="+",
        default=[],
        metavar="NAME",
        help="leave these checkpoints out (autoround-english)",
    )
    parser.add_argument("--quick", action="store_true", help="a trial of the bench itself, on two layers")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="default: build/bench, or …-quick; a trial is in DIR/quick"
    )
    given = parser.parse_args()
    if given.runs < 1:
        parser.error("--runs: at least 1")
    sizes = QUICK if given.quick else Sizes(passages=given.limit)
    work = record.folder(given.work, "bench", given.quick)
    if unknown := set(given.skip) - artifacts(sizes.tokens).keys():
        parser.error(f"--skip: {', '.join(unknown)}: none of {', '.join(artifacts(sizes.tokens))}")
    bench = Bench(work, sizes, 1 if given.quick else given.runs, given.skip)
    measures: dict[str, Callable[[], dict[str, Any]]] = dict(
        zip(parts, (bench.speed, bench.all, bench.probe, bench.other, bench.growth), strict=True)
    )
    command = "python bench/quantize.py " + " ".join(sys.argv[1:])
    chosen = set(given.only or parts)
    if chosen & {"probe", "other"}:
        chosen.add("artifacts")
    wanted = [part for part in parts if part in chosen]
    try:
        if wanted != ["growth"]:
            bench.prepare()
        for part in wanted:
            found = {"command": command.strip(), "date": now(), **measures[part]()}
            (work / f"{part}.json").write_text(json.dumps(found, ensure_ascii=False, indent=1))
    except (process.Failed, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    kept = {part: work / f"{part}.json" for part in parts}
    result: dict[str, Any] = {
        "quick": given.quick,
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("onggi", "torch", "transformers", "compressed-tensors")
        },
        "model": MODEL,
        "source": SOURCE,
        "tokens": sizes.tokens,
        "languages": EIGHT,
        "titles": {name: one.title for name, one in bench.artifacts.items()},
        "absent": bench.absent,
        **{part: json.loads(file.read_text()) if file.is_file() else None for part, file in kept.items()},
    }
    result["goals"] = quantize_goals.goals(result)
    out = work if given.quick else record.DOCS
    record.write("quantize", result, {"md": quantize_report.page}, out)
    print(quantize_report.goals_table(result["goals"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
