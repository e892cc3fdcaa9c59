"""GGUF files side by side with llama-quantize's and AutoRound's, all run and measured in llama.cpp.

The reference is Gemma 3 270M trained on for a while, so that it lies on no grid of its own (recipes/off-grid.yaml); as a
BF16 file it is what llama-quantize starts from. For each type: llama-quantize without an importance matrix,
with one of English text, with one of the same balanced text that ours gets; AutoRound's export; and
`onggi quantize --format gguf:TYPE`. Parts, each of which goes on where it was stopped:

    files    all of them, with what each took
    scores   KL from the reference in 12 languages of the probe, by llama.cpp
    speed    prefill and decoding, tokens a second, by llama-bench

    python bench/quantize_gguf.py [--only files scores speed] [--types Q4_0,Q4_K_M,…] [--quick] [--work build/bench-gguf]

writes docs/benchmarks/gguf.md, .json and .svg. llama.cpp is compiled once (bench/parts/llama_build.py, six minutes),
the reference trained once (half an hour). --quick is a trial of the bench itself, on two layers of the packaged model, two types
and three passages; its page says so and stays in the work folder.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts import gguf_report, llama_build, off_grid, peers, process, record
from parts.peers import PEERS

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "bench"

MODEL, SOURCE = "package:gemma3-270m", "debian:libreoffice-help"
EIGHT = "en,de,ko,ja,zh-Hans,el,km,ru"
# The types that the goals name, and those of which ours is to be no worse.
JUDGED, OTHERS = ("Q4_0", "Q4_K_M", "Q3_K_M", "Q2_K"), ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_S", "IQ4_XS")
CALIBRATIONS = {"english": ("en", "none"), "balanced": (EIGHT, "balanced")}
# AutoRound has no Q2_K but Q2_K_S.
AUTOROUND = {"Q4_0": "Q4_0", "Q4_K_M": "Q4_K_M", "Q3_K_M": "Q3_K_M", "Q2_K": "Q2_K_S"}


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    tokens: int = 8192
    layers: int | None = None
    passages: int = 20
    every: int = 2
    languages: str | None = None
    iterations: int | None = None


QUICK = Sizes(1024, 2, 2, 8, "en,ko,km", 2)


class Bench:
    """The folder of work, and what is made in it."""

    def __init__(self, work: Path, sizes: Sizes, types: list[str]):
        self.work, self.sizes, self.types = work, sizes, types
        self.text, self.logs, self.files = work / "text", work / "logs", work / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        ours = sorted((ROOT / "src" / "onggi").rglob("*.py"))
        self.code = hashlib.sha256(b"".join(file.read_bytes() for file in ours)).hexdigest()

    def part(self, script: str, *words: object) -> process.Cost:
        """Run a script of bench/parts/, llama.cpp at hand."""
        command = [sys.executable, str(HERE / "parts" / f"{script}.py"), *map(str, words)]
        return process.measure(command, self.logs / f"{script}.log", llama_build.python())

    def onggi(self, *words: str, log: str) -> process.Cost:
        """Run one onggi command as a process of its own."""
        return process.measure([sys.executable, "-m", "onggi", *words], self.logs / f"{log}.log")

    def prepare(self) -> None:
        """llama.cpp, the reference, text as each tool wants it, the BF16 file, the importance matrices."""
        llama_build.build()
        self.absent = peers.environment(PEERS["autoround"])
        if self.sizes.layers:
            self.reference = self.work / "short"
            if not (self.reference / "config.json").is_file():
                self.part("short_model", MODEL, self.sizes.layers, self.reference)
        else:
            self.reference = off_grid.off_grid()
        if not (self.text / "stage.json").is_file():
            self.onggi("text", SOURCE, "--languages", EIGHT, "--out", str(self.text), log="text")
        self.made("BF16", lambda: self.ours("BF16", ()))
        for name, (languages, fairness) in CALIBRATIONS.items():
            ids, text = self.work / f"ids-{name}.jsonl", self.work / f"text-{name}.txt"
            if not text.is_file():
                given = {
                    "model": self.reference,
                    "text": self.text,
                    "languages": languages,
                    "fairness": fairness,
                }
                given |= {"tokens": self.sizes.tokens, "out": ids}
                self.part(
                    "calibration_ids", *(word for key, value in given.items() for word in (f"--{key}", value))
                )
                self.part("calibration_text", self.reference, ids, text)
            self.made(f"imatrix-{name}", lambda text=text, name=name: self.imatrix(text, name))

    def path(self, name: str) -> Path:
        """Of a file by its name."""
        return self.files / f"{name}.gguf"

    def made(self, name: str, make: Any) -> dict[str, Any]:
        """What a file took, made where it is not there from the code as it stands."""
        record = self.files / f"{name}.json"
        key = [self.code if name.endswith("onggi") or name == "BF16" else "", repr(self.sizes)]
        if record.is_file() and self.path(name).is_file():
            kept = json.loads(record.read_text())
            if kept["key"] == key:
                return kept
        say(name)
        cost = make()
        found = {"key": key, **vars(cost), "bytes": self.path(name).stat().st_size, "date": now()}
        record.write_text(json.dumps(found))
        return found

    def ours(self, name: str, words: tuple[str, ...]) -> process.Cost:
        """`onggi quantize --format gguf…`."""
        out = self.work / "out"
        shutil.rmtree(out, ignore_errors=True)
        format_ = words or ("--format", f"gguf:{name}")
        cost = self.onggi("quantize", str(self.reference), *format_, "--out", str(out), log=f"onggi-{name}")
        (out / "model.gguf").replace(self.path(name))
        return cost

    def balanced(self) -> tuple[str, ...]:
        """The options of our calibration."""
        return ("--text", str(self.text), "--languages", EIGHT, "--tokens", str(self.sizes.tokens))

    def imatrix(self, text: Path, name: str) -> process.Cost:
        """llama-imatrix, on the text in chunks of 512 tokens."""
        words = [llama_build.program("llama-imatrix"), "-m", str(self.path("BF16")), "-f", str(text)]
        words += ["-o", str(self.path(f"imatrix-{name}")), "-c", "512", "--no-ppl"]
        return process.measure(words, self.logs / f"imatrix-{name}.log")

    def theirs(self, name: str, type_: str, imatrix: str | None) -> process.Cost:
        """llama-quantize."""
        words = [llama_build.program("llama-quantize")]
        words += ["--imatrix", str(self.path(f"imatrix-{imatrix}"))] if imatrix else []
        words += [str(self.path("BF16")), str(self.path(name)), type_]
        return process.measure(words, self.logs / f"{name}.log")

    def autoround(self, name: str, type_: str) -> process.Cost:
        """AutoRound's export, on the same tokens."""
        peer, out = PEERS["autoround"], self.work / "autoround"
        shutil.rmtree(out, ignore_errors=True)
        given: dict[str, object] = {
            "model": self.reference,
            "ids": self.work / "ids-balanced.jsonl",
            "out": out,
        }
        given |= {"facts": self.work / "autoround.json", "scheme": f"GGUF:{type_}"}
        given |= {"format": f"gguf:{type_.lower()}"}
        given |= {"iterations": self.sizes.iterations} if self.sizes.iterations else {}
        cost = process.measure(peer.command(**given), self.logs / f"{name}.log", peers.OFFLINE)
        next(iter(sorted(out.rglob("*.gguf")))).replace(self.path(name))
        return cost

    def all(self) -> dict[str, Any]:
        """Every file, with what it took; one that fails is noted, the others go on."""
        records: dict[str, Any] = {"BF16": json.loads((self.files / "BF16.json").read_text())}
        for name in CALIBRATIONS:
            records[f"imatrix-{name}"] = json.loads((self.files / f"imatrix-{name}.json").read_text())
        failed: dict[str, str] = {}
        makers: dict[str, Any] = {}
        for type_ in self.types:
            for kind, imatrix in (("plain", None), ("english", "english"), ("balanced", "balanced")):
                # Of the types that no goal names, what the others are compared with is enough.
                if not (type_ in JUDGED or kind == "balanced" or (type_, kind) == ("Q5_K_M", "plain")):
                    continue
                name = f"{type_}-{kind}"
                makers[name] = lambda name=name, type_=type_, imatrix=imatrix: self.theirs(
                    name, type_, imatrix
                )
            own = ("--format", f"gguf:{type_}", *self.balanced())
            makers[f"{type_}-onggi"] = lambda type_=type_, own=own: self.ours(f"{type_}-onggi", own)
            if type_ in AUTOROUND and not self.absent:
                theirs = AUTOROUND[type_]
                makers[f"{type_}-autoround"] = lambda n=f"{type_}-autoround", t=theirs: self.autoround(n, t)
        mixed = ("--format", "gguf", "--like", "Q4_K_M", *self.balanced())
        makers["mixed-onggi"] = lambda: self.ours("mixed-onggi", mixed)
        for name, make in makers.items():
            try:
                records[name] = self.made(name, make)
            except (process.Failed, StopIteration) as error:
                failed[name] = str(error)[-800:] or "wrote no .gguf"
                say(f"{name} failed: {failed[name]}")
        return {"records": records, "failed": failed}

    def names(self) -> list[str]:
        """The files that are there, of the types asked for."""
        found = [
            path.stem for path in sorted(self.files.glob("*.gguf")) if not path.stem.startswith("imatrix-")
        ]
        return [name for name in found if name.rpartition("-")[0] in (*self.types, "mixed", "")]

    def scores(self) -> dict[str, Any]:
        """file → language → passage → (nats, positions)."""
        out = self.work / "scores"
        words = [
            "--reference",
            self.reference,
            "--passages",
            self.sizes.passages,
            "--every",
            self.sizes.every,
        ]
        words += ["--languages", self.sizes.languages] if self.sizes.languages else []
        say(f"measuring {len(self.names())} files in llama.cpp")
        self.part(
            "gguf_scores", *words, "--out", out, *(f"{name}={self.path(name)}" for name in self.names())
        )
        return {
            "files": {n: json.loads((out / f"{n}.json").read_text())["languages"] for n in self.names()},
            "passages": self.sizes.passages,
            "every": self.sizes.every,
        }

    def speed(self) -> dict[str, Any]:
        """name → prefill and decoding, tokens a second, by llama-bench; ours and theirs of a type one after the other."""
        found = {}
        for type_ in self.types:
            for name in (f"{type_}-balanced", f"{type_}-onggi"):
                if not self.path(name).is_file():
                    continue
                words = [llama_build.program("llama-bench"), "-m", str(self.path(name)), "-o", "json"]
                words += ["-t", str(process.facts()["cores"]), "-p", "256", "-n", "64", "-r", "5"]
                done = subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                rows = json.loads(done.stdout)
                found[name] = {
                    what: next(row["avg_ts"] for row in rows if row[count] > 0)
                    for what, count in (("prefill", "n_prompt"), ("decode", "n_gen"))
                }
                say(f"{name}: {found[name]['prefill']:.0f} and {found[name]['decode']:.1f} tokens/s")
        return {"files": found}


def now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="minutes")


def say(message: str) -> None:
    print(f"bench: {message}", file=sys.stderr, flush=True)


def main() -> int:
    """Measure, write the page, its JSON and its figure, print the goals; returns the exit code."""
    parts = ("files", "scores", "speed")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=parts, nargs="+", help="these parts; the others as last measured")
    parser.add_argument("--types", help=f"default: {','.join((*JUDGED, *OTHERS))}")
    parser.add_argument("--quick", action="store_true", help="a trial of the bench itself")
    parser.add_argument("--work", type=Path, metavar="DIR", help="default: build/bench-gguf, or …-quick")
    given = parser.parse_args()
    types = (
        given.types.split(",") if given.types else ["Q4_0", "Q4_K_M"] if given.quick else [*JUDGED, *OTHERS]
    )
    work = (given.work or ROOT / "build" / ("bench-gguf-quick" if given.quick else "bench-gguf")).resolve()
    bench = Bench(work, QUICK if given.quick else Sizes(), types)
    measures = dict(zip(parts, (bench.all, bench.scores, bench.speed), strict=True))
    try:
        bench.prepare()
        for part in given.only or parts:
            head = {"command": "python bench/quantize_gguf.py " + " ".join(sys.argv[1:]), "date": now()}
            found = {**head, "machine": process.facts(), **measures[part]()}
            (work / f"{part}.json").write_text(json.dumps(found, ensure_ascii=False, indent=1))
    except (process.Failed, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    kept = {part: work / f"{part}.json" for part in parts}
    result: dict[str, Any] = {
        "quick": given.quick,
        "source": SOURCE,
        "languages": EIGHT,
        "tokens": bench.sizes.tokens,
        "types": types,
        "llama": llama_build.PACKAGE,
        "absent": bench.absent,
        **{part: json.loads(file.read_text()) if file.is_file() else None for part, file in kept.items()},
    }
    result["goals"] = gguf_report.goals(result, JUDGED)
    pages = {"md": gguf_report.page}
    if result["scores"] and result["files"]:
        pages["svg"] = gguf_report.figure
    record.write("gguf", result, pages, work if given.quick else record.DOCS)
    print(gguf_report.goals_table(result["goals"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
