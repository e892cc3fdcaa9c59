"""Tasks of lm-eval through onggi's engine, side by side with lm-eval's own transformers backend.

Both score Gemma 3 270M in fp32 on the very same task files: four-choice questions in four scripts,
answered by a letter (one token) or by a name (four tokens on average), with five fixed shots, five drawn
anew for each question, and none. Each side is a process of its own, in turns, in one run on one machine.
lm-eval runs at the batch size that proved best for it on a part of the questions; ours is so short that
it is run several times. Every choice's log-likelihood is compared. Fixed shots are run with more questions too, as
many as an evaluation has that is to tell something: starting up then weighs less.

    python bench/evaluate.py [--items 30] [--long 100] [--runs 3] [--quick] [--resume] [--work build/bench/evaluate]

writes docs/benchmarks/evaluate.md, .json and .svg. --quick is a trial of the bench itself, in a few
minutes; its page says so and stays in the work folder. --resume keeps what an interrupted run of the same code and size measured.
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

from parts import evaluate_report, process, record

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "bench"
OURS, PEER = HERE / "parts" / "evaluate_onggi.py", HERE / "peers" / "lm_eval_transformers.py"
TASKS = HERE / "parts" / "choice_tasks.py"

MODEL, VOCABULARY = "package:gemma3-270m", 262_144
SCHEMES = ("w4a16-g128", "w4a16-g64")
BATCHES = (1, 4, 8, 16, 32)
ANSWERS = ("letter", "name")
SETTINGS = [f"{kind}_{answers}" for kind in ("fixed", "drawn", "zero") for answers in ANSWERS]


class Bench:
    """The folder of work, and what is measured in it."""

    def __init__(self, given: argparse.Namespace):
        self.work, self.items, self.runs, self.resume = given.work, given.items, given.runs, given.resume
        self.long = given.long
        self.sizes, self.tried = (BATCHES[:2], 8) if given.quick else (BATCHES, max(BATCHES))
        self.records, self.logs = self.work / "records", self.work / "logs"
        self.records.mkdir(parents=True, exist_ok=True)
        code = [*sorted((ROOT / "src" / "onggi").rglob("*.py")), OURS, PEER, TASKS]
        self.code = hashlib.sha256(b"".join(file.read_bytes() for file in code)).hexdigest()

    def prepare(self) -> None:
        """Everything the measured processes only read: the model, its variants, the tasks; and a warm cache."""
        shown = subprocess.run(
            [sys.executable, "-m", "onggi", "inspect", MODEL, "--json"], check=True, stdout=subprocess.PIPE
        )
        self.model = Path(json.loads(shown.stdout)["path"])
        self.variants = [self.model]
        for scheme in SCHEMES:
            out = self.work / scheme
            words = ["quantize", MODEL, "--scheme", scheme, "--method", "rtn", "--out", str(out)]
            process.measure([sys.executable, "-m", "onggi", *words], self.logs / f"{scheme}.log")
            self.variants.append(out)
        for items in {self.items, self.long}:
            words = ["--model", str(self.model), "--items", str(items), "--out", str(self.tasks(items))]
            process.measure([sys.executable, str(TASKS), *words], self.logs / "tasks.log")
        self.about = json.loads((self.tasks(self.items) / "about.json").read_text())
        for folder in self.variants:
            subprocess.run(["cat", *folder.glob("*.safetensors")], check=True, stdout=subprocess.DEVNULL)
        process.measure([sys.executable, "-c", "import onggi.stages, lm_eval"], self.logs / "warm.log")

    def tasks(self, items: int) -> Path:
        """The folder of the tasks with so many questions of each language."""
        return self.work / f"tasks-{items}"

    def asked(self, setting: str) -> int:
        """Questions of each language in a setting."""
        return self.long if setting.startswith("long") else self.items

    def files(self, setting: str) -> list[str]:
        """Of the tasks of a setting, one a language."""
        folder, task = self.tasks(self.asked(setting)), setting.replace("long", "fixed")
        return [str(folder / f"{task}_{language}.yaml") for language in self.about["languages"]]

    def measure(self, name: str, script: Path, words: list[str], limit: int | None) -> dict[str, Any]:
        """One process: its cost and what it says of itself. With `resume`, as it was measured before."""
        facts, file = self.records / f"{name}.facts.json", self.records / f"{name}.json"
        words = [*words, "--facts", str(facts), *(["--limit", str(limit)] if limit else [])]
        key = hashlib.sha256(json.dumps([self.code, self.items, words]).encode()).hexdigest()
        if self.resume and file.is_file():
            kept = json.loads(file.read_text())
            if kept["key"] == key:
                return kept
        environment = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        cost = process.measure([sys.executable, str(script), *words], self.logs / f"{name}.log", environment)
        found = {"key": key, **vars(cost), **json.loads(facts.read_text())}
        file.write_text(json.dumps(found))
        record.say(f"{name}: {cost.wall:.1f} s, {cost.peak / 2**30:.2f} GiB")
        return found

    def ours(self, setting: str, run: int, limit: int | None = None, variants: int = 1) -> dict[str, Any]:
        """`onggi evaluate` of the model and its variants, from nothing."""
        name = f"onggi-{setting}-{limit or self.asked(setting)}-{variants}-{run}"
        out = self.work / "out"
        shutil.rmtree(out, ignore_errors=True)
        models = [f"m{i}={folder}" for i, folder in enumerate([MODEL, *self.variants[1:variants]])]
        words = ["--models", *models, "--tasks", *self.files(setting), "--out", str(out)]
        return self.measure(name, OURS, words, limit)

    def peer(self, setting: str, batch: int, limit: int | None = None) -> dict[str, Any]:
        """lm-eval, at one batch size."""
        name = f"lm-eval-{setting}-{limit or self.asked(setting)}"
        words = ["--model", str(self.model), "--tasks", *self.files(setting), "--batch", str(batch)]
        return self.measure(name, PEER, words, limit)

    def batches(self, setting: str) -> dict[int, float]:
        """Batch size → the peer's seconds of scoring, on enough questions to fill the largest; as far as
        memory allows and it pays.
        """
        kind, answers = setting.split("_")
        requests = 1 if answers == "letter" else 4  # passes that a question takes
        limit = min(self.items, max(1, self.tried // requests // len(self.about["languages"])))
        tokens = self.about["longest"][answers] * (1 if kind == "zero" else 6)
        # Logits in fp32 and their log-softmax, in half of the memory.
        most = (process.facts()["memory_bytes"] or 0) / 2 / (2 * 4 * VOCABULARY * tokens)
        sizes = [size for size in self.sizes if size == 1 or size <= most]
        words = ["--model", str(self.model), "--tasks", *self.files(setting)]
        words += ["--batch", *map(str, sizes)]
        found = self.measure(f"batches-{setting}", PEER, words, limit)
        return {int(size): seconds for size, seconds in found["scoring"].items()}

    def setting(self, name: str, batch: int) -> dict[str, Any]:
        """Both sides of a setting in turns: ours, the peer, ours again. Half of the questions where shots
        are drawn, since hardly anything is shared there and the cost is the same for each.
        """
        limit = -(-self.items // 2) if name.startswith("drawn") else None
        first = self.ours(name, 1, limit)
        peer = self.peer(name, batch, limit)
        rest = [self.ours(name, run, limit) for run in range(2, self.runs + 1)]
        apart = 0.0
        for one in (first, *rest):
            apart = max(apart, difference(one["items"], peer["items"]))
        return {
            "batch": batch,
            "questions": sum(len(own) for own in peer["items"].values()),
            "ours": [plain(one) for one in (first, *rest)],
            "peer": plain(peer),
            "apart": apart,
        }

    def curves(self, settings: dict[str, Any], batch: int) -> dict[str, Any]:
        """Whole processes against items, shots and variants, on one-token answers."""
        many = len(self.about["languages"])
        parts = sorted({max(1, self.items // 4), max(1, self.items // 2)} - {self.items})
        full, long = settings["fixed_letter"], settings["long_letter"]

        def pair(ours: dict[str, Any], peer: dict[str, Any]) -> list[float]:
            return [ours["wall"], peer["wall"]]

        items = {
            part * many: pair(self.ours("fixed_letter", 1, part), self.peer("fixed_letter", batch, part))
            for part in parts
        }
        items[self.items * many] = whole = [median(full["ours"], "wall"), full["peer"]["wall"]]
        items[self.long * many] = [median(long["ours"], "wall"), long["peer"]["wall"]]
        zero = settings["zero_letter"]
        shots = {
            0: [median(zero["ours"], "wall"), zero["peer"]["wall"]],
            2: pair(self.ours("two_letter", 1), self.peer("two_letter", batch)),
            5: whole,
        }
        variants = {1: [run["wall"] for run in full["ours"]]}
        for count in range(2, len(self.variants) + 1):
            runs = [self.ours("fixed_letter", run, None, count) for run in range(1, self.runs + 1)]
            variants[count] = [run["wall"] for run in runs]
        return {"items": items, "shots": shots, "variants": variants}


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """A record without the items, and with one number of scoring."""
    scoring = record["scoring"]
    seconds = next(iter(scoring.values())) if isinstance(scoring, dict) else scoring
    return {k: v for k, v in record.items() if k not in ("items", "key")} | {"scoring": seconds}


def difference(ours: dict[str, Any], peer: dict[str, Any]) -> float:
    """The largest difference of a log-likelihood; every choice of every question has one on both sides."""
    if ours.keys() != peer.keys():
        raise SystemExit(f"bench: other tasks: {sorted(ours)} and {sorted(peer)}")
    return max(
        abs(a - b)
        for task, own in ours.items()
        for mine, theirs in zip(own, peer[task], strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )


def median(records: list[dict[str, Any]], what: str) -> float:
    return statistics.median(record[what] for record in records)


def goals(settings: dict[str, Any], curves: dict[str, Any]) -> list[dict[str, Any]]:
    """The goals of issue 5: what, at most, measured, met, and how it was judged."""
    found = []
    for name, setting in settings.items():
        kind, answers = name.split("_")
        most = {"letter": 1 / 8, "name": 1 / 15}[answers] if kind in ("fixed", "long") else 1 / 2
        ratio = {
            what: median(setting["ours"], what) / setting["peer"][what]
            for what in ("wall", "evaluation", "scoring")
        }
        note = (
            f"the worse of {ratio['evaluation']:.4f} evaluation and {ratio['wall']:.4f} whole process; "
            f"scoring alone {ratio['scoring']:.4f}"
        )
        title = f"{evaluate_report.TITLES[name]} ({setting['questions']} questions)"
        found.append((title, most, max(ratio["evaluation"], ratio["wall"]), note))
    walls = {count: statistics.median(runs) for count, runs in curves["variants"].items()}
    last = max(walls)
    added = (walls[last] - walls[1]) / (last - 1)
    note = f"{added:.1f} s each after the first's {walls[1]:.1f} s, whole processes"
    found.append(("each further variant, against the first", 0.9, added / walls[1], note))
    apart = max(setting["apart"] for setting in settings.values())
    found.append(("log-likelihoods, largest difference, nats", 1e-3, apart, "every choice of every question"))
    memory = {
        name: max(one["peak"] for one in setting["ours"]) / setting["peer"]["peak"]
        for name, setting in settings.items()
    }
    worst = max(memory, key=memory.__getitem__)
    note = f"of whole processes; the worst setting: {evaluate_report.TITLES[worst]}"
    found.append(("peak memory", 1.0, memory[worst], note))
    return [
        {"what": what, "goal": most, "measured": measured, "met": measured <= most, "note": note}
        for what, most, measured, note in found
    ]


def main() -> int:
    """Measure, write the page, its JSON and its figure, print the goals; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=30, help="questions of each language (default: 30)")
    parser.add_argument(
        "--long", type=int, default=100, help="questions of each language, the many (default: 100)"
    )
    parser.add_argument("--runs", type=int, default=3, help="of our side (default: 3)")
    parser.add_argument("--quick", action="store_true", help="a trial: 2 questions, 1 run")
    parser.add_argument(
        "--resume", action="store_true", help="keep what was measured of the same code and size"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="default: build/bench/evaluate, or …-quick")
    given = parser.parse_args()
    if given.runs < 1 or given.items < 1:
        parser.error("--runs, --items: at least 1")
    if given.quick:
        given.items, given.long, given.runs = 2, 3, 1
    given.work = record.folder(given.work, "bench/evaluate", given.quick)
    bench, machine = Bench(given), process.facts()
    try:
        bench.prepare()
        record.say("the peer's best batch size")
        tried = {setting: bench.batches(setting) for setting in SETTINGS if not setting.startswith("drawn")}
        best = {name: min(own, key=own.__getitem__) for name, own in tried.items()}
        for answers in ANSWERS:  # their shots are as long
            best[f"drawn_{answers}"] = best[f"long_{answers}"] = best[f"fixed_{answers}"]
        every = [*SETTINGS, *(f"long_{answers}" for answers in ANSWERS)]
        settings = {name: bench.setting(name, best[name]) for name in every}
        curves = bench.curves(settings, best["fixed_letter"])
    except (process.Failed, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    names = ("onggi", "lm_eval", "torch", "transformers", "tokenizers")
    result = {
        "command": "python bench/evaluate.py " + " ".join(sys.argv[1:]),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "machine": machine,
        "versions": {name: importlib.metadata.version(name) for name in names},
        "model": MODEL,
        "items": given.items,
        "long": given.long,
        "runs": given.runs,
        "quick": given.quick,
        "schemes": SCHEMES,
        "answer_tokens": bench.about["answer_tokens"],
        "languages": bench.about["languages"],
        "batches": tried,
        "goals": goals(settings, curves),
        "settings": settings,
        "curves": curves,
    }
    pages = {"svg": evaluate_report.figure, "md": evaluate_report.page}
    record.write("evaluate", result, pages, bench.work if given.quick else record.DOCS)
    print(evaluate_report.goals_table(result["goals"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
