"""Distillation side by side: its loss with a dense one and trl's, a stored teacher with a resident one, taught with untaught.

Parts, each of which keeps its results:

    head    head and loss, fp32, forward and backward: dense (as trl's GKD), trl's ChunkedDivergenceFunction, ours
    tail    the gradient of a student of a stored teacher against that of the whole one, by what becomes of the tail
    stored  students of a resident teacher, of a stored one, and of the text alone: tokens a second, bits per byte
    text    recipes/distill-small.yaml: bits per byte on the probe, taught against alone, with paired intervals

    python bench/distill.py [--only head tail stored text] [--quick] [--work build/bench-distill]

writes docs/benchmarks/distill.md and .json. About two hours on two cores, one and a half of them `text`. --quick is a trial of
minutes, whose page stays in the work folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts import code, distill_report, process, record, tables

HERE = Path(__file__).resolve().parent
TEACHER, SOURCE = "package:gemma3-270m", "debian:libreoffice-help"
LANGUAGES = "en,de,ko,ja,zh-Hans,el,km,ru"
KINDS = ("kl", "reverse-kl", "jsd:0.5")


@dataclass(frozen=True)
class Sizes:
    """How much of everything. text: what is changed of the recipe."""

    vocabulary: int = 262_144
    positions: int = 1024
    hidden: int = 640
    turns: int = 3
    languages: str = LANGUAGES
    bytes: int = 300
    passages: int = 4
    steps: int = 24
    text: tuple[str, ...] = ()


_FEW = (
    "taught.steps=2",
    "alone.steps=2",
    "taught.batch_tokens=512",
    "alone.batch_tokens=512",
    "scores.limit=2",
)
QUICK = Sizes(4096, 64, 64, 1, "en,ko,km", 300, 1, 2, _FEW)


@dataclass(frozen=True)
class Bench:
    """The folder of work, and what is made in it."""

    work: Path
    sizes: Sizes
    quick: bool

    def begun(self) -> dict[str, Any]:
        """What is noted of a part before it is measured."""
        return record.begun("distill", process.facts(), self.quick)

    def place(self, name: str, *others: str) -> Path:
        """A folder for what onggi makes, without what other code has left there. others: rooms that it is made by, too."""
        return code.fresh(self.work / name, code.digest([*code.MAKES, *others]))

    def head(self) -> dict[str, Any]:
        """Every way and kind in turns, and how far loss and gradients are apart."""
        from safetensors.torch import load_file

        size = {
            "vocabulary": self.sizes.vocabulary,
            "positions": self.sizes.positions,
            "hidden": self.sizes.hidden,
        }
        found = {**self.begun(), **size, "turns": self.sizes.turns, "kinds": {}}
        ways = ["dense", "onggi", *(["trl"] if importlib.util.find_spec("trl") else [])]
        with tempfile.TemporaryDirectory() as folder:
            for kind in KINDS:
                rows: dict[str, Any] = {way: {"seconds": []} for way in ways}
                for _ in range(self.sizes.turns):
                    for way in ways:
                        out = Path(folder) / f"{way}.safetensors"
                        words = {**size, "way": way, "kind": kind, "out": out}
                        command = [sys.executable, str(HERE / "parts" / "distill_head.py")]
                        command += [word for key, value in words.items() for word in (f"--{key}", str(value))]
                        log = self.work / f"head-{way}.log"
                        process.measure(command, log)
                        told = json.loads(log.read_text().splitlines()[-1])
                        rows[way]["seconds"].append(told["seconds"])
                        rows[way] |= {"bytes": told["bytes"], "loss": told["loss"]}
                        record.say(f"{kind}, {way}: {told['seconds']:.2f} s")
                tensors = {way: load_file(Path(folder) / f"{way}.safetensors") for way in ways}
                rows["apart"] = {
                    way: {
                        "loss": abs(rows["onggi"]["loss"] / rows[way]["loss"] - 1),
                        "gradients": max(
                            float((mine - tensors[way][name]).norm() / tensors[way][name].norm())
                            for name, mine in tensors["onggi"].items()
                        ),
                    }
                    for way in ways
                    if way != "onggi"
                }
                found["kinds"][kind] = rows
        return found

    def student(self) -> Path:
        """Half of the teacher's layers."""
        from onggi.models import references
        from onggi.models.reshape import shape
        from onggi.stages import ReshapeConfig, reshape

        layers = shape.load(references.resolve(TEACHER)).num_hidden_layers
        return reshape(ReshapeConfig(TEACHER, layers=layers // 2, choice="naive"), self.place("student")).path

    def tail(self) -> dict[str, Any]:
        """Gradients of a stored teacher against the whole one's, by language."""
        import torch

        from onggi import text
        from onggi.distill import store
        from onggi.engines.transformers import Engine
        from onggi.head import Dense, Head, Sparse, divergence, entries
        from onggi.models import references

        engines = [Engine(references.resolve(TEACHER)), Engine(self.student())]
        count = store.entries_in(self.sizes.bytes, engines[0].head.vocabulary)
        found = {**self.begun(), "bytes": self.sizes.bytes, "entries": count, "passages": self.sizes.passages}
        found["languages"] = {}
        for language in self.sizes.languages.split(","):
            record.say(f"tail: {language}")
            passages = list(text.load("probe", [language]).passages(language).values())[: self.sizes.passages]
            both = [engine.states(passages) for engine in engines]
            device = engines[0].device
            theirs, own = (torch.cat([hidden for hidden, _ in side]).to(device) for side in both)
            targets = torch.cat([ids for _, ids in both[0]]).to(device)
            whole = Dense(theirs, engines[0].head)
            generator = torch.Generator().manual_seed(0)
            top = entries(whole, count)
            none = torch.full_like(top.log_tail, -60.0)
            ways: dict[str, Any] = {
                "whole": whole,
                "bucket": top,
                "draws": entries(whole, count - count // 2, count // 2, generator=generator),
                "dropped": Sparse(top.ids, top.log_p - top.log_p.logsumexp(-1, keepdim=True), none),
            }
            gradients = {}
            for name, signal in ways.items():
                states = own.clone().requires_grad_()
                weight = engines[1].head.weight.detach().clone().requires_grad_()
                given = Head(weight, softcap=engines[1].head.softcap, scale=engines[1].head.scale)
                divergence(states, given, signal, targets).backward()
                gradients[name] = (states.grad, weight.grad)
            found["languages"][language] = {
                "lost": float(top.log_tail.exp().mean()),
                **{
                    name: {
                        what: float((mine - other).norm() / other.norm())
                        for what, mine, other in zip(
                            ("noise", "bias"), gradients[name], gradients["whole"], strict=True
                        )
                    }
                    for name in ways
                    if name != "whole"
                },
            }
        return found

    def stored(self) -> dict[str, Any]:
        """Students of a resident and a stored teacher, and of the text alone."""
        from onggi.languages import Languages
        from onggi.stages import CaptureConfig, DistillConfig, PretrainConfig, capture, distill, pretrain
        from onggi.stages.distill import _teacher_share

        found, student = self.begun(), str(self.student())
        size: dict[str, Any] = {"languages": Languages(self.sizes.languages), "length": 256}
        step = {"steps": self.sizes.steps, "batch_tokens": 2048}
        tokens = self.sizes.steps * 2048
        kept = {
            tail: capture(
                CaptureConfig(TEACHER, SOURCE, self.sizes.bytes, tail, tokens=tokens, **size),
                self.place(f"stored-{tail}"),
            ).path
            for tail in ("bucket", "draws")
        }
        with_teacher = DistillConfig(TEACHER, student, SOURCE, **size, **step)
        runs = {
            "resident": distill(with_teacher, self.place("resident")),
            **{
                f"stored, {tail}": distill(
                    DistillConfig(str(place), student, **step), self.place(f"from-{tail}")
                )
                for tail, place in kept.items()
            },
            "text alone": pretrain(
                PretrainConfig(SOURCE, student, learning_rate=3e-4, **size, **step), self.place("text")
            ),
        }
        return {
            **found,
            "steps": self.sizes.steps,
            "tokens_per_second": {name: run.record["tokens_per_second"] for name, run in runs.items()},
            "ceiling": _teacher_share(with_teacher),
            "bits_per_byte": {name: run.record["bits_per_byte"]["after"] for name, run in runs.items()},
            "closed": {name: run.record["closed"] for name, run in runs.items() if name != "text alone"},
        }

    def text(self) -> dict[str, Any]:
        """The recipe's two students on the probe."""
        found, runs = self.begun(), self.place("runs", *code.MEASURES)
        command = [sys.executable, "-m", "onggi", "run", str(HERE.parent / "recipes" / "distill-small.yaml")]
        process.measure([*command, *self.sizes.text, "--runs", str(runs)], self.work / "recipe.log")
        made = runs / "distill-small" / "scores"
        scores = json.loads((made / "scores.json").read_text())["models"]
        bits = {
            name: {tag: of["bits_per_byte"]["value"] for tag, of in scores[name]["languages"].items()}
            for name in ("teacher", "half")
        }
        languages = distill_report.taught_against_alone(made / "items.parquet", "taught", "alone")
        return {**found, "languages": languages, "teacher": bits["teacher"], "start": bits["half"]}


def main() -> int:
    """Measure, write the page and its JSON, print the goals; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("head", "tail", "stored", "text")
    parser.add_argument("--only", choices=parts, nargs="+", help="these parts; the others as last measured")
    parser.add_argument("--quick", action="store_true", help="a trial of the bench itself")
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="default: build/bench-distill, or …-quick; a trial is in DIR/quick",
    )
    given = parser.parse_args()
    work = record.folder(given.work, "bench-distill", given.quick)
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work, QUICK if given.quick else Sizes(), given.quick)
    measures: dict[str, Callable[[], dict[str, Any]]] = dict(
        zip(parts, (bench.head, bench.tail, bench.stored, bench.text), strict=True)
    )
    kept = {part: work / f"{part}.json" for part in parts}
    try:
        for part in given.only or parts:
            kept[part].write_text(json.dumps(measures[part](), ensure_ascii=False, indent=1))
    except process.Failed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    result: dict[str, Any] = {"quick": given.quick}
    result |= {part: json.loads(file.read_text()) if file.is_file() else None for part, file in kept.items()}
    result["goals"] = distill_report.goals(result)
    distill_report.write(result, work if given.quick else record.DOCS)
    print(tables.goals(result["goals"], "the other's"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
