"""`onggi finetune`: teach a model to answer from dialogues, and say what each language gained and lost by it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import languages as tags
from .. import ledger
from ..errors import OnggiError
from ..languages import Languages
from ..ledger import Artifact
from ..phrases import Phrases
from ..progress import progress, release_memory, say
from . import finetune_data as data
from .base import Names, Stage, command, precision
from .finetune_plan import AT_ONCE, AT_ONCE_GPU, BATCH, dry_run, outlook, plan
from .training import Processes, carried_out, check_services, named_services, step_seconds, write_weights

_REVISION = 1
CURVES, METRICS, TUNING, FAULTS = "curves.svg", "metrics.jsonl", "tuning.json", "left-out.txt"
_MEASURES = 10  # times that held-out answers and text are measured, by default
# At the peak, by method and objective: adapters take ten times what all weights do.
_RATES = {"sft": (2e-4, 2e-5), "dpo": (2e-5, 1e-6), "simpo": (2e-5, 1e-6)}


@dataclass(frozen=True)
class FinetuneConfig:
    """Teach a model to answer from dialogues, and measure what each language gains and loses by it.

    DIR loads as a model, the adapters merged into bf16 weights; DIR/adapter holds them alone. Before and after
    are measured the same way: the loss of answers held out, the loss of the probe's text in all of its languages (what is
    forgotten), and answers to held-out prompts: in which language, side by side. --preview shows which tokens carry loss and
    trains nothing. A killed run goes on from its last checkpoint and ends the same. Under `torchrun
    --nproc-per-node 2 -m onggi finetune …` each process takes its share of every step.
    """

    model: str
    """The model to teach: a hub id, a folder, a .gguf file, or package:NAME. A base model, which has no chat template, is given
    one."""
    data: Names
    """Dialogues, one source or several (a.jsonl,b.parquet): .jsonl, .parquet or a hub's data set, with rows of `messages`,
    `prompt` and `chosen` and `rejected`, `prompt` and `completion`, Alpaca's or ShareGPT's, each with its `lang` where
    it has one; seed, those that ship; cldr or cldr:ROWS, made from facts of CLDR, so many in each language."""
    method: Literal["lora", "dora", "full", "qlora"] = "lora"
    """What is trained: low-rank adapters; the same with magnitudes of their own; all weights; adapters over weights of
    4 bits (on a GPU)."""
    objective: Literal["sft", "dpo", "simpo"] = "sft"
    """sft: learn the answers. dpo, simpo: from rows of `chosen` and `rejected`, against the model as it was, or by mean
    token and without a reference (by trl)."""
    languages: Languages | None = None
    """Languages of the dialogues to train on, as ko,en; default: all that the data have."""
    guard: Names | None = None
    """Languages that must not be forgotten, each with how much its loss on held-out text may rise: ja:0.02 is by 2%. Where
    one rises by more, twice as many rows are plain text; where half of them are, training stops. What is kept is the last
    state that held."""
    steps: int | None = None
    """Updates of the weights."""
    epochs: float | None = None
    """In place of --steps: how often the dialogues are gone over; default 3."""
    minutes: float | None = None
    """In place of --steps: about how long to train; the first seconds say how many steps that is."""
    batch_tokens: int = BATCH
    """Places of one step, in whole sequences; of all languages and processes together."""
    length: int | None = None
    """Tokens of one sequence, into which whole dialogues are packed; longer ones are left out. Default: as many as
    hold the longest, from 512 to 2048."""
    turns: Literal["all", "last"] = "all"
    """Which answers of a dialogue carry loss."""
    balance: Literal["languages", "none"] = "languages"
    """languages: each has as many sequences as the others, and those with less data are gone over more often. none: as
    the data have them."""
    replay: float = 0.1
    """Share of the sequences that are plain text, which is what was learnt before: against forgetting."""
    replay_text: str = "starter"
    """That text, a source as `onggi text` takes. One passage in eight is held out, and measured while training. Not the
    probe."""
    replay_languages: Languages | None = None
    """Languages of that text; default: all that it has."""
    held_out: float = 0.05
    """Share of the dialogues that is kept to measure on; one in each language at least."""
    learning_rate: float | None = None
    """At its peak. Default: 2e-4 for adapters, 2e-5 for all weights; with dpo and simpo 2e-5 and 1e-6."""
    warmup: int | None = None
    """Steps in which the learning rate rises from nothing; default: a tenth of them, 100 at most."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """cosine: falls all the way, to a tenth. wsd: stays at its peak and falls to nothing in the last fifth."""
    rank: int = 16
    """Of the adapters' factors."""
    alpha: float | None = None
    """How much adapters count is alpha / rank; default: twice the rank."""
    dropout: float = 0.0
    """Of what goes into an adapter."""
    neftune: float = 0.0
    """Noise on the embedding while training (NEFTune); 5 is usual where it is used."""
    weight_decay: float = 0.0
    """Of what is trained."""
    beta: float | None = None
    """With dpo and simpo: how sharply answers are told apart; default 0.1 and 2."""
    gamma: float = 1.0
    """With simpo: by how much the chosen answer is to be likelier."""
    at_once: int | None = None
    """Sequences in one pass of a device; a step has as many passes as it needs. Default: 2048 tokens on a CPU, 32768 on a GPU."""
    checkpointing: bool = False
    """Compute the layers twice rather than keep what the backward pass needs: less memory, a third slower."""
    measure_every: int | None = None
    """Steps between two measures of held-out answers and text; default: a tenth of them."""
    probe_passages: int = 24
    """Passages of the probe that are measured before and after, in each of its languages."""
    probe_languages: Languages | None = None
    """Those languages; default: all that the probe has."""
    samples: int = 12
    """Everyday prompts and dialogues held out, of each language as many, that are answered before and after."""
    max_tokens: int = 128
    """Longest of these answers, in tokens."""
    strict: bool = False
    """Stop at rows that are not sound; by default they are left out and named."""
    report_to: Names | None = None
    """Services that draw curves too: tensorboard, wandb, trackio, mlflow; each must be installed."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the matrix products; weights and moments are fp32. auto: bf16 where the processor multiplies in it, else fp32."""
    seed: int = 0
    """Of the adapters' start, and of the order in which dialogues are read."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if "probe" in (*self.data, self.replay_text):
            raise OnggiError(data.NO_PROBE)
        given = [name for name in ("steps", "epochs", "minutes") if getattr(self, name) is not None]
        if len(given) > 1:
            raise OnggiError(f"{given[1]}: --{given[0]} says how long to train already; give one of them.")
        for name in (
            *(
                "steps",
                "epochs",
                "minutes",
                "batch_tokens",
                "rank",
                "at_once",
                "measure_every",
                "probe_passages",
            ),
            *("samples", "max_tokens", "beta", "alpha"),
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OnggiError(f"{name}: {value} is not more than 0.")
        if self.length is not None and not 8 <= self.length <= self.batch_tokens:
            raise OnggiError(
                f"length: {self.length} is not between 8 and the {self.batch_tokens} places of a step (--batch-tokens)."
            )
        for name, high in (("replay", 0.5), ("held_out", 0.5), ("dropout", 1.0)):
            if not 0 <= getattr(self, name) <= high or getattr(self, name) == 1:
                raise OnggiError(f"{name}: {getattr(self, name)} is not a share from 0 to {high:g}.")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise OnggiError(
                f"learning_rate: {self.learning_rate} is not between 0 and 1; 2e-4 is usual for adapters."
            )
        for name in ("warmup", "weight_decay", "neftune", "gamma"):
            if (getattr(self, name) or 0) < 0:
                raise OnggiError(f"{name}: {getattr(self, name)} is less than nothing.")
        if self.objective != "sft" and self.guard:
            raise OnggiError("guard: is for --objective sft, which goes over plain text too.")
        if self.objective != "sft" and self.minutes:
            raise OnggiError("minutes: is for --objective sft; say --steps or --epochs.")
        _ = self.limits
        named_services(self.report_to)

    @property
    def limits(self) -> dict[str, float]:
        """Language → by which share its loss may rise, of --guard."""
        found: dict[str, float] = {}
        for part in self.guard or ():
            match = re.fullmatch(r"([\w-]+):(\d*\.?\d+)", part)
            if not match or not 0 < float(match[2]) < 1:
                raise OnggiError(f"guard: {part!r} is not LANGUAGE:SHARE, as in ja:0.02 (by 2%).")
            found[tags.canonical(match[1])] = float(match[2])
        return found

    @property
    def adapts(self) -> bool:
        """Whether adapters are trained."""
        return self.method != "full"


def inputs(config: FinetuneConfig) -> dict[str, Any]:
    """Fingerprints of model, dialogues and replay text."""
    from .. import text
    from ..models import references

    return {
        "model": references.fingerprint(config.model),
        "data": [data.fingerprint(source) for source in config.data],
        "replay_text": text.fingerprint(config.replay_text, config.replay_languages),
    }


def finetune(config: FinetuneConfig, out: Path) -> Artifact:
    """Write the tuned model to `out`; see `FinetuneConfig`.

    Raises OnggiError for a model or data that are not sound, a guard that nothing holds, and where the loss ceases to
    fall whatever is done.

    >>> from pathlib import Path
    >>> from onggi.languages import Languages
    >>> from onggi.stages import FinetuneConfig, finetune
    >>> from onggi.stages.base import Names
    >>> few = FinetuneConfig(
    ...     "model", Names("cldr:6"), languages=Languages("ko,en,th"), steps=2, batch_tokens=512,
    ...     samples=1, max_tokens=4, probe_languages=Languages("ko,ar"), replay_languages=Languages("ko,en,ja"),
    ... )
    >>> made = finetune(few, Path("assistant"))
    >>> sorted(made.record["tuning"]["right"])
    ['en', 'ko', 'th']
    """
    return carried_out(STAGE, config, out, lambda job, own: _Tuning(config, job, own).run())


class _Tuning:
    """One run, in the order of its methods."""

    def __init__(self, config: FinetuneConfig, job: ledger.Job, processes: Processes):
        from ..models import references
        from ..train import adapters

        self.config, self.job, self.processes = config, job, processes
        self.adapter: Any = None
        check_services(config.report_to)
        if config.method == "qlora":
            adapters.check_quantized(processes.device)
        if config.adapts:
            adapters.imported()
        if config.objective != "sft":
            from ..train import preference

            preference.imported()
        if processes.first:
            references.resolve(config.model)
        processes.wait()
        self.base = references.resolve(config.model)
        self.data = data.read(config)
        self.replay = data.replay(config)
        self.start = data.start(self.base)
        if processes.first:
            made = data.written(self.start, job.partial / "start")
        processes.wait()
        self.start = made if processes.first else data.written(self.start, job.partial / "start")

    def run(self) -> None:
        from ..engines.transformers import Engine
        from ..models import checkpoint as checkpoints

        config, job = self.config, self.job
        source = checkpoints.Checkpoint(self.start.folder)
        if "quantization_config" in source.config:
            raise OnggiError(f"{config.model}: is quantised; name the model it was made from.")
        self.source = source
        engine = Engine(self.start.folder, self.processes.device)
        self.window = engine.window
        self.dtype = precision(job, config.precision, engine.device)
        self.material(engine)
        with progress(f"finetune {job.out.name}", 1.0) as bar:
            bar.total = self.steps_known() + 2 * self.measures.parts
            before = self.before(engine, bar)
            trained = self.train(engine, bar)
            if self.processes.first:
                names = self.write(trained)
                del engine, trained
                self.adapter = None  # and with it the model that it was for
                release_memory()
                after = self.measures(
                    Engine(job.work, self.processes.device),
                    config.max_tokens,
                    job.partial / "after.json",
                    bar,
                    "after",
                )
                self.finish(before, after, names)
        self.processes.wait()

    # ── what is trained on and measured ──

    def material(self, engine: Any) -> None:
        """Tokens of dialogues and text, and what is to be measured."""
        from .. import text
        from ..text import packing
        from ..train import dialogues as batches
        from ..train.validation import Validation
        from .finetune_measures import Measures, prompts

        config, found = self.config, self.data
        marks = packing.marks(self.start.folder, self.start.tokens)
        ends = engine.ends
        sides = {"train": found.train, "held out": found.held_out}
        if config.objective != "sft":
            from dataclasses import replace

            sides = {
                "train": [],
                "held out": [replace(d, messages=(*d.messages, *d.chosen)) for d in found.held_out],
                "rejected": [replace(d, messages=(*d.messages, *d.rejected)) for d in found.held_out],
            }
        made = {side: list(data.taught(own, self.start, ends, config.turns)) for side, own in sides.items()}
        self.length = data.length(config.length, [len(t.ids) for _, t in made["train"]], self.window)
        if self.length > config.batch_tokens:
            raise OnggiError(
                f"batch_tokens: {config.batch_tokens} are less than one sequence of {self.length} (--length)."
            )
        over, kept, self.replay_licence = self.replay
        size = config.batch_tokens // self.length
        self.batches = None
        if config.objective == "sft":
            fit = data.fitting(made["train"], self.length)
            if config.balance == "none":
                fit = {"all": [taught for own in fit.values() for taught in own]}
            texts = {
                tag: batches.packed(
                    [
                        part
                        for ids in packing.encode(self.start.tokens.tokenizer, own)
                        for part in batches.plain(ids.tolist(), marks.start, marks.end, self.length)
                    ],
                    self.length,
                )
                for tag, own in (over.items() if config.replay or config.guard else ())
            }
            rows = {tag: batches.packed(own, self.length) for tag, own in fit.items()}
            self.batches = batches.DialogueBatches(rows, texts, size, config.replay, marks.pad, config.seed)
            self.once = (
                len(rows) * max(map(len, rows.values()))
                if config.balance == "languages"
                else sum(map(len, rows.values()))
            )
        self.held = {tag: [t for d, t in made["held out"] if d.lang == tag] for tag in found.languages}
        rejected = {tag: [t for d, t in made.get("rejected", ()) if d.lang == tag] for tag in found.languages}
        self.validation = Validation(self.start.tokens, kept, min(self.window or 2048, 2048))
        probe = text.load("probe")
        passages = probe.common(config.probe_languages or probe.languages, config.probe_passages)
        asked = list(dict.fromkeys([*found.languages, *config.limits]))
        self.measures = Measures(
            self.held,
            rejected if any(rejected.values()) else {},
            passages,
            prompts(config, asked, found.held_out),
        )

    def steps_known(self) -> int:
        """Steps as far as they are known before anything is measured."""
        config = self.config
        if config.steps:
            return config.steps
        if config.objective != "sft":
            return max(round((config.epochs or 3) * len(self.data.train) / self.pairs), 1)
        assert self.batches is not None
        rows = (config.epochs or 3) * self.once / (1 - config.replay)
        return max(round(rows / self.batches.size), 1)

    @property
    def pairs(self) -> int:
        """Preferences of one step: two answers each, taken to be as long as a sequence at most."""
        return max(self.config.batch_tokens // (2 * self.length), 1)

    def before(self, engine: Any, bar: Any) -> dict[str, Any]:
        """Measures of the model as it is: a base model is asked without a template, which it has never seen."""
        place = self.job.partial / "before.json"
        if self.processes.first:
            engine.plain = self.start.standard is not None
            found = self.measures(engine, self.config.max_tokens, place, bar, "before")
            engine.plain = False
        self.processes.wait()
        return found if self.processes.first else ledger.read_json(place)

    # ── training ──

    def train(self, engine: Any, bar: Any) -> Any:
        """Train; returns the model whose weights are to be written, adapters merged."""
        from ..train import adapters

        config = self.config
        model = engine.model
        if config.method == "qlora":
            model = adapters.quantized(self.start.folder, self.processes.device)
        if config.adapts:
            shape = adapters.Shape(
                config.rank, config.alpha or 2 * config.rank, config.dropout, config.method == "dora"
            )
            patched = config.objective == "sft"
            self.adapter = adapters.attach(model, shape, self.start.trained, config.seed, patched)
        else:
            model.requires_grad_(True)
        if config.neftune:
            adapters.noise(model, config.neftune)
        self.parameters = {
            "all": sum(p.numel() for p in model.parameters()),
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        (self._prefer if config.objective != "sft" else self._learn)(model, bar)
        model.requires_grad_(False)
        if self.adapter is None:
            return model
        if self.processes.first:
            self.adapter.save(self.job.partial / "out" / adapters.FOLDER, config.model)
        self.processes.wait()
        if config.method == "qlora":  # into the weights as they were, not as 4 bits have them
            release_memory()
            return adapters.load(engine.model, self.job.partial / "out" / adapters.FOLDER).merged()
        return self.adapter.merged()

    @property
    def rate(self) -> float:
        """Learning rate at its peak."""
        return self.config.learning_rate or _RATES[self.config.objective][0 if self.config.adapts else 1]

    def _learn(self, model: Any, bar: Any) -> None:
        from ..train import trainer
        from ..train.dialogues import AnswerLoss
        from ..train.schedule import Schedule
        from ..train.tokens import next_token
        from ..train.tuner import Guard, Tuner

        config = self.config
        assert self.batches is not None
        loss = next_token(self.dtype, rows=self.adapter.rows if self.adapter else None)
        at_once = config.at_once or max(
            (AT_ONCE if self.processes.device.type == "cpu" else AT_ONCE_GPU) // self.length, 1
        )
        steps = self._steps(model, loss, at_once)
        bar.total = steps + 2 * self.measures.parts
        warmup = min(steps // 10, 100) if config.warmup is None else config.warmup
        if "tensorboard" in (config.report_to or ()):
            os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(self.job.out / "tensorboard"))
        made = Tuner(
            model,
            loss,
            self.batches,
            Schedule(steps, self.rate, warmup, config.schedule),
            trainer.Options(
                weight_decay=config.weight_decay,
                at_once=at_once,
                checkpointing=config.checkpointing,
                validate_every=config.measure_every or max(-(-steps // _MEASURES), 1),
                report_to=config.report_to or (),
                name=self.job.out.name,
                seed=config.seed,
            ),
            self.job.partial / "training",
            bar,
            self.job.tick if self.processes.first else lambda: None,
            self.validation,
            answers=AnswerLoss(self.held),
            guard=Guard(config.limits) if config.guard else None,
        )
        self.lines = made.fit()
        made.go_back_to_held()
        done = made.state.global_step
        self.facts = {
            "steps": done,
            "warmup": warmup,
            "tokens": self.batches.tokens(made.passed_over, made.passed_over + done),
        }
        if made.halved:
            self.facts |= {"went_back": made.halved, "passed_over": made.passed_over}
        spent = sum(own["tokens"] for own in self.batches.tokens(0, made.own_steps).values())
        self.facts["tokens_per_second"] = round(spent / made.seconds, 1) if made.seconds else None

    def _steps(self, model: Any, loss: Any, at_once: int) -> int:
        """How many steps. What follows from a measurement is kept: a run that goes on must not measure anew."""
        if self.config.minutes is None:
            return self.steps_known()
        kept = self.job.partial / "steps"
        if self.processes.first and not kept.is_file():
            each = step_seconds(model, loss, self.batches, at_once)
            steps = max(int(60 * self.config.minutes / each), 1)
            say(f"A step takes about {each:.2g} s: {steps} steps in {self.config.minutes:g} minutes.")
            with ledger.writing(kept) as aside:
                aside.write_text(str(steps))
        self.processes.wait()
        return int(kept.read_text())

    def _prefer(self, model: Any, bar: Any) -> None:
        from ..train import preference

        config = self.config
        steps = self.steps_known()
        self.lines = preference.train(
            self.adapter.peft if self.adapter else model,
            self.start.folder,
            [(d.messages, d.chosen, d.rejected) for d in self.data.train],
            preference.Settings(
                "dpo" if config.objective == "dpo" else "simpo",
                steps,
                self.pairs,
                self.rate,
                min(steps // 10, 100) if config.warmup is None else config.warmup,
                config.beta or (0.1 if config.objective == "dpo" else 2.0),
                config.gamma,
                self.length,
                config.seed,
                self.dtype,
                reference=None if self.adapter or config.objective == "simpo" else self.start.folder,
            ),
            self.job.partial / "training",
            bar,
            self.job.tick if self.processes.first else lambda: None,
        )
        counts: dict[str, int] = {}
        for dialogue in self.data.train:
            counts[dialogue.lang] = counts.get(dialogue.lang, 0) + 1
        self.facts = {"steps": steps, "pairs": counts, "pairs_a_step": self.pairs}

    # ── what is written ──

    def write(self, model: Any) -> list[str]:
        """Write the merged model; returns the names of its files."""
        from ..models import checkpoint as checkpoints
        from ..train import adapters

        work = self.job.work
        tables = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())}
        stored = dict(model.named_parameters(remove_duplicate=False))
        names = {name for name, parameter in stored.items() if id(parameter) in tables}
        self.moved = write_weights(self.source, stored, names, work, self.start.folder)
        config = {key: value for key, value in self.source.config.items() if key != "torch_dtype"}
        ledger.write_json(work / "config.json", config | {"dtype": "bfloat16"})
        files = [checkpoints.SINGLE, "config.json"]
        for file in checkpoints.companions(self.start.folder):
            shutil.copyfile(file, work / file.name)
            files.append(file.name)
        if self.adapter:
            place = work / adapters.FOLDER
            files += [f"{adapters.FOLDER}/{file.name}" for file in sorted(place.iterdir())]
        return files

    def finish(self, before: Mapping[str, Any], after: Mapping[str, Any], names: Sequence[str]) -> None:
        """Write what is said of the model, and end the job."""
        from ..models import references
        from ..report import card, curves, html, markdown, tuning
        from ..text import dialogues
        from .finetune_measures import compared

        config, job, work = self.config, self.job, self.job.work
        base = references.about(self.start.folder)
        found = compared(self.measures, before, after, self.data.languages)
        licences = [
            part for part in (self.data.licence, self.replay_licence if config.replay else None) if part
        ]
        facts = {
            "method": config.method,
            "objective": config.objective,
            "learning_rate": self.rate,
            "batch_tokens": config.batch_tokens,
            "length": self.length,
            "precision": str(self.dtype).removeprefix("torch."),
            "seed": config.seed,
            "data": list(config.data),
            "licence": ", ".join(licences) or None,
            "replay": config.replay if config.objective == "sft" else 0.0,
            "replay_text": config.replay_text,
            "dialogues": {
                tag: sum(dialogue.lang == tag for dialogue in self.data.train) for tag in self.data.languages
            },
            "held_out": len(self.data.held_out),
            "left_out": len(self.data.faults),
            "template": self.start.standard.name if self.start.standard else "its own",
            "parameters": self.parameters,
            **({"rank": config.rank, "alpha": config.alpha or 2 * config.rank} if config.adapts else {}),
            **{key: value for key, value in self.facts.items() if key != "tokens_per_second"},
        }
        about = {
            **{key: base[key] for key in ("licence", "terms", "base_model") if base.get(key)},
            "base": {
                "name": references.parse(config.model).name,
                "source": config.model,
                "grid": base.get("grid"),
            },
            "made_by": "onggi finetune",
            "grid": None,
            "tuned": {**facts, "moved": self.moved},
        }
        tuned = {
            "name": job.out.name,
            "base": about["base"]["name"],
            "facts": facts,
            **found,
            "lines": self.lines,
        }
        ledger.write_json(work / references.ABOUT, about)
        ledger.write_json(work / TUNING, tuned)
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines)
        (work / METRICS).write_text(lines, encoding="utf-8")
        (work / CURVES).write_text(curves.curves(self.lines), encoding="utf-8")
        (work / FAULTS).write_text(
            (
                dialogues.said_of(
                    self.data.faults,
                    len(self.data.faults) + len(self.data.train) + len(self.data.held_out),
                    10**6,
                )
                + "\n"
            )
            if self.data.faults
            else "Nothing was left out.\n",
            encoding="utf-8",
        )
        (work / "README.md").write_text(card.tuned(about, found), encoding="utf-8")
        again, phrases = command(STAGE, config, job.out), Phrases("en")
        blocks = tuning.section(tuned, again, phrases)
        (work / "report.md").write_text(
            markdown.page([blocks], phrases, tuning.title(tuned, phrases)), encoding="utf-8"
        )
        (work / "report.html").write_text(
            html.page([blocks], tuning.title(tuned, phrases), phrases), encoding="utf-8"
        )
        job.finish(
            [
                *names,
                references.ABOUT,
                TUNING,
                METRICS,
                CURVES,
                FAULTS,
                "README.md",
                "report.md",
                "report.html",
            ],
            command=again,
            facts=facts,
            tokens_per_second=self.facts.get("tokens_per_second"),
            tuning={key: found[key] for key in ("trained", "answers", "probe", "right")},
        )


def show(artifact: Artifact) -> None:
    """Print what was gained and lost, by language, and how to talk to the model."""
    from rich.console import Console
    from rich.table import Table

    from ..report import tuning

    record, phrases = artifact.record, Phrases("en")
    found = record["tuning"]
    made = Console(highlight=False)
    made.print(tuning.headline(found, phrases), style="bold", markup=False)
    table = Table()
    for name in ("language", "answers", "the probe", "in the language"):
        table.add_column(name, justify="left" if name == "language" else "right", no_wrap=True)
    for tag in dict.fromkeys([*found["answers"], *found["probe"]]):
        table.add_row(f"{tags.name(tag)} ({tag})", *tuning.cells(found, tag))
    made.print(table)
    made.print(
        "Held-out answers: nats a token. The probe: how nats for a passage of everyday text changed; within 1% is the same. "
        f"All of it, with answers side by side: {artifact.path / 'report.html'}."
    )
    for line in talking(artifact.path):
        made.print(line, markup=False, soft_wrap=True)


def talking(path: Path) -> tuple[str, str]:
    """A line for Python with transformers, and one for the shell, to talk to the model in `path`."""
    asked = "[{'role': 'user', 'content': '안녕하세요?'}]"
    return (
        f"python -c \"from transformers import pipeline; print(pipeline('text-generation', '{path}')({asked})[0]"
        "['generated_text'][-1]['content'])\"",
        f"onggi chat {path}",
    )


STAGE = Stage(
    "finetune",
    FinetuneConfig,
    finetune,
    inputs,
    plan,
    {"model": None},
    _REVISION,
    show,
    dry_run,
    outlook,
    data.preview,
)
