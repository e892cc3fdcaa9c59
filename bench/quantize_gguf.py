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
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts import gguf_report, llama_build, off_grid, peers, process, record
from parts.peers import PEERS

from onggi import ledger

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "bench"

MODEL, SOURCE = "package:gemma3-270m", "debian:libreoffice-help"
EIGHT = "en,de,ko,ja,zh-Hans,el,km,ru"
# The types that the goals name, and those of which ours is to be no worse.
JUDGED, OTHERS = ("Q4_0", "Q4_K_M", "Q3_K_M", "Q2_K"), ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_S", "IQ4_XS")
CALIBRATIONS = {"english": ("en", "none"), "balanced": (EIGHT, "balanced")}
# AutoRound has no Q2_K but Q2_K_S, and ours no Q2_K_S: the page says so, and judges them at the same bytes alone.
AUTOROUND = {"Q4_0": "Q4_0", "Q4_K_M": "Q4_K_M", "Q3_K_M": "Q3_K_M", "Q2_K": "Q2_K_S"}


@dataclass(frozen=True)
class Sizes:
    """How much of everything. turns: of theirs and ours in `speed`."""

    tokens: int = 8192
    layers: int | None = None
    passages: int = 20
    every: int = 2
    languages: str | None = None
    iterations: int | None = None
    turns: int = 5


QUICK = Sizes(1024, 2, 2, 8, "en,ko,km", 2, 2)


class Bench:
    """The folder of work, and what is made in it. Whatever is made is kept with digests of all that it was made of
    (`record.made`), and made anew where one of them is another.
    """

    def __init__(self, work: Path, sizes: Sizes, types: list[str]):
        self.work, self.sizes, self.types = work, sizes, types
        self.text, self.logs, self.files = work / "text", work / "logs", work / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self.code = record.digest(ROOT / "src" / "onggi")
        self.records: dict[str, dict[str, Any]] = {}

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
            self.reference = self.work / f"short-{self.sizes.layers}"
            if not (self.reference / "config.json").is_file():
                self.part("short_model", MODEL, self.sizes.layers, self.reference)
        else:
            self.reference = off_grid.off_grid()
        self.of_reference = record.digest(self.reference)
        self.onggi("text", SOURCE, "--languages", EIGHT, "--out", str(self.text), log="text")
        self.of_text = record.digest(self.text)
        self.make("BF16", lambda: self.ours("BF16", ()), {"code": self.code, "reference": self.of_reference})
        for name, (languages, fairness) in CALIBRATIONS.items():
            drawn = {"code": self.code, "reference": self.of_reference, "text": self.of_text}
            drawn |= {"languages": languages, "fairness": fairness, "tokens": self.sizes.tokens}
            given = {"model": self.reference, "text": self.text, "languages": languages, "fairness": fairness}
            given |= {"tokens": self.sizes.tokens, "out": self.ids(name)}
            words = [word for key, value in given.items() for word in (f"--{key}", value)]
            ids = record.made(
                self.ids(name), drawn, lambda words=words: vars(self.part("calibration_ids", *words))
            )
            plain = self.work / f"text-{name}.txt"
            text = record.made(
                plain,
                {"ids": ids["sha256"], "reference": self.of_reference},
                lambda name=name, plain=plain: vars(
                    self.part("calibration_text", self.reference, self.ids(name), plain)
                ),
            )
            self.make(
                f"imatrix-{name}",
                lambda plain=plain, name=name: self.imatrix(plain, name),
                {**self.theirs_of(), "text": text["sha256"]},
            )

    def ids(self, name: str) -> Path:
        """File of the tokens of a calibration."""
        return self.work / f"ids-{name}.jsonl"

    def path(self, name: str) -> Path:
        """Of a file by its name."""
        return self.files / f"{name}.gguf"

    def make(self, name: str, make: Callable[[], process.Cost], inputs: dict[str, Any]) -> None:
        """Have a file by its name among the records of this run: what it took, its digest and that of its inputs."""

        def told() -> dict[str, Any]:
            record.say(name)
            return vars(make())

        self.records[name] = record.made(self.path(name), inputs, told)

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
        return ("--languages", EIGHT, "--tokens", str(self.sizes.tokens))

    def theirs_of(self) -> dict[str, Any]:
        """What every file of llama.cpp's is made of."""
        return {"llama.cpp": llama_build.PACKAGE, "BF16": self.records["BF16"]["sha256"]}

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
            "ids": self.ids("balanced"),
            "out": out,
        }
        given |= {"facts": self.work / "autoround.json", "scheme": f"GGUF:{type_}"}
        given |= {"format": f"gguf:{type_.lower()}"}
        given |= {"iterations": self.sizes.iterations} if self.sizes.iterations else {}
        cost = process.measure(peer.command(**given), self.logs / f"{name}.log", peers.OFFLINE)
        next(iter(sorted(out.rglob("*.gguf")))).replace(self.path(name))
        return cost

    def wanted(self) -> dict[str, tuple[Callable[[], process.Cost], dict[str, Any]]]:
        """Name of each file to compare → how it is made, and what of."""
        found: dict[str, tuple[Callable[[], process.Cost], dict[str, Any]]] = {}
        drawn = {"code": self.code, "reference": self.of_reference, "text": self.of_text}

        def own(name: str, *format_: str) -> None:
            words = ("--format", *format_, *self.balanced())
            given = (*words, "--text", str(self.text))
            found[name] = (lambda: self.ours(name, given)), {**drawn, "words": words}

        def llama(name: str, type_: str, imatrix: str | None) -> None:
            of = self.records[f"imatrix-{imatrix}"]["sha256"] if imatrix else None
            inputs = {**self.theirs_of(), "imatrix": of, "type": type_}
            found[name] = (lambda: self.theirs(name, type_, imatrix)), inputs

        def rounded(name: str, type_: str) -> None:
            inputs = {"peer": record.digest(*PEERS["autoround"].files), "reference": self.of_reference}
            inputs |= {"ids": record.digest(self.ids("balanced")), "type": type_}
            inputs |= {"iterations": self.sizes.iterations}
            found[name] = (lambda: self.autoround(name, type_)), inputs

        for type_ in self.types:
            for kind, imatrix in (("plain", None), ("english", "english"), ("balanced", "balanced")):
                # Of the types that no goal names, what the others are compared with is enough.
                if type_ in JUDGED or kind == "balanced" or (type_, kind) == ("Q5_K_M", "plain"):
                    llama(f"{type_}-{kind}", type_, imatrix)
            own(f"{type_}-onggi", f"gguf:{type_}")
            if type_ in AUTOROUND and not self.absent:
                rounded(f"{type_}-autoround", AUTOROUND[type_])
        own("mixed-onggi", "gguf", "--like", "Q4_K_M")
        return found

    def all(self) -> dict[str, Any]:
        """Every file, with what it took; one that fails is noted, the others go on."""
        failed: dict[str, str] = {}
        for name, (make, inputs) in self.wanted().items():
            try:
                self.make(name, make, inputs)
            except (process.Failed, OSError, StopIteration) as error:
                failed[name] = str(error)[-800:] or "wrote no .gguf"
                record.say(f"{name} failed: {failed[name]}")
        return {"records": self.records, "failed": failed}

    def names(self) -> list[str]:
        """The files to measure: those of the last records that are as they were then. Whatever else lies in the folder is
        left over from another run.
        """
        file = self.work / "files.json"
        records = json.loads(file.read_text())["records"] if file.is_file() else {}
        return [
            name
            for name, kept in records.items()
            if name.rpartition("-")[0] in (*self.types, "mixed", "")
            and self.path(name).is_file()
            and ledger.sha256(self.path(name)) == kept["sha256"]
        ]

    def scores(self) -> dict[str, Any]:
        """file → language → passage → (nats, positions)."""
        out, names = self.work / "scores", self.names()
        words = [
            "--reference",
            self.reference,
            "--passages",
            self.sizes.passages,
            "--every",
            self.sizes.every,
        ]
        words += ["--key", ledger.digest([self.of_reference, self.code, llama_build.PACKAGE])]
        words += ["--languages", self.sizes.languages] if self.sizes.languages else []
        if not names:
            raise process.Failed("there are no files to measure; make them first: --only files")
        record.say(f"measuring {len(names)} files in llama.cpp")
        self.part("gguf_scores", *words, "--out", out, *(f"{name}={self.path(name)}" for name in names))
        return {
            "files": {name: json.loads((out / f"{name}.json").read_text())["languages"] for name in names},
            "digests": {name: ledger.sha256(self.path(name)) for name in names},
            "passages": self.sizes.passages,
            "every": self.sizes.every,
        }

    def speed(self) -> dict[str, Any]:
        """name → prefill and decoding, tokens a second of each turn, by llama-bench; theirs and ours of a type in turns."""
        found: dict[str, dict[str, list[float]]] = {}
        there = self.names()
        for type_ in self.types:
            pair = [f"{type_}-balanced", f"{type_}-onggi"]
            for name in pair * self.sizes.turns if set(pair) <= set(there) else ():
                words = [llama_build.program("llama-bench"), "-m", str(self.path(name)), "-o", "json"]
                words += ["-t", str(process.facts()["cores"]), "-p", "256", "-n", "64", "-r", "1"]
                done = subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                own = found.setdefault(name, {"prefill": [], "decode": []})
                for row in json.loads(done.stdout):
                    own["prefill" if row["n_prompt"] > 0 else "decode"].append(row["avg_ts"])
                record.say(f"{name}: {own['prefill'][-1]:.0f} and {own['decode'][-1]:.1f} tokens/s")
        return {"files": found, "digests": {name: ledger.sha256(self.path(name)) for name in found}}


def of_these_files(result: dict[str, Any]) -> dict[str, Any]:
    """`result` without what was measured of a file that has been made anew since."""
    records = (result["files"] or {"records": {}})["records"]
    for part in ("scores", "speed"):
        if result[part]:
            digests = result[part].get("digests", {})
            own = {
                name: value
                for name, value in result[part]["files"].items()
                if digests.get(name) == records.get(name, {}).get("sha256", "")
            }
            for name in result[part]["files"].keys() - own.keys():
                record.say(f"{name}: another file than the one in {part}, which is left out; measure again")
            result = result | {part: {**result[part], "files": own} if own else None}
    return result


def main() -> int:
    """Measure, write the page, its JSON and its figure, print the goals; returns the exit code."""
    parts = ("files", "scores", "speed")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=parts, nargs="+", help="these parts; the others as last measured")
    parser.add_argument("--types", help=f"default: {','.join((*JUDGED, *OTHERS))}")
    parser.add_argument("--quick", action="store_true", help="a trial of the bench itself")
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="default: build/bench-gguf, or …-quick; a trial is in DIR/quick",
    )
    given = parser.parse_args()
    types = (
        given.types.split(",") if given.types else ["Q4_0", "Q4_K_M"] if given.quick else [*JUDGED, *OTHERS]
    )
    work = record.folder(given.work, "bench-gguf", given.quick)
    bench = Bench(work, QUICK if given.quick else Sizes(), types)
    measures = dict(zip(parts, (bench.all, bench.scores, bench.speed), strict=True))
    try:
        bench.prepare()
        for part in given.only or parts:
            head = {
                "command": "python bench/quantize_gguf.py " + " ".join(sys.argv[1:]),
                "date": record.now(),
            }
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
        "autoround": AUTOROUND,
        "llama": llama_build.PACKAGE,
        "absent": bench.absent,
        **{part: json.loads(file.read_text()) if file.is_file() else None for part, file in kept.items()},
    }
    result = of_these_files(result)
    result["goals"] = gguf_report.goals(result, JUDGED)
    pages = {"md": gguf_report.page}
    if result["scores"] and result["files"]:
        pages["svg"] = gguf_report.figure
    record.write("gguf", result, pages, work if given.quick else record.DOCS)
    print(gguf_report.goals_table(result["goals"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
