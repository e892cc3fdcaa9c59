"""`onggi finetune`: teach a model to answer from dialogues, and say what each language gained and lost by it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import languages as tags
from ..errors import OnggiError
from ..languages import Languages
from ..ledger import Artifact, Job
from ..phrases import Phrases
from ..progress import progress, release_memory
from . import finetune_data as data
from .base import Names, Stage, command, precision
from .finetune_plan import BATCH, dry_run, outlook, plan
from .training import Processes, carried_out, check_services, named_services

_REVISION = 1


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
    it has one; a folder that `onggi answers` made; seed, those that ship; cldr or cldr:ROWS, made from facts of CLDR, so
    many in each language."""
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
    one rises by more, twice as many rows are plain text; where half of them are, training stops. What is kept is a
    state that held."""
    keep: Literal["best", "last"] = "best"
    """best: the weights of that measurement at which the dialogues held out were likeliest, all languages counting the
    same and a guard not broken; a few hundred dialogues are soon learnt by heart. last: those of the last step. With
    sft."""
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
        numbers = (
            "steps epochs minutes batch_tokens rank alpha beta at_once measure_every probe_passages samples"
        )
        for name in (*numbers.split(), "max_tokens"):
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
        "data": [data.fingerprint(source, config.objective) for source in config.data],
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
    return carried_out(STAGE, config, out, lambda job, own: _tune(config, job, own))


def _tune(config: FinetuneConfig, job: Job, processes: Processes) -> None:
    """Measure the model, train it, write it, and measure it again."""
    from ..engines.transformers import Engine
    from ..models import checkpoint as checkpoints
    from . import finetune_result as result
    from .finetune_material import material as material_of
    from .finetune_training import Training, check

    check_services(config.report_to)
    check(config, processes)
    found, replay, start = data.read(config), data.replay(config), _start(config, job, processes)
    source = checkpoints.Checkpoint(start.folder)
    if "quantization_config" in source.config:
        raise OnggiError(f"{config.model}: is quantised; name the model it was made from.")
    engine = Engine(start.folder, processes.device)
    dtype = precision(job, config.precision, engine.device)
    material = material_of(config, found, replay, start, engine)
    measures = material.measures
    with progress(f"finetune {job.out.name}", 1.0) as bar:
        bar.total = material.steps(config) + 2 * measures.parts
        if processes.first:
            # As it is: a base model is asked without a template, which it has never seen.
            engine.plain = start.standard is not None
            before = measures(engine, config.max_tokens, job.partial / "before.json", bar, "before")
            engine.plain = False
        processes.wait()
        training = Training(config, job, processes, material, dtype, bar)
        model, told = training(engine)
        if processes.first:
            names, moved = result.write(source, model, start.folder, job.work)
            del engine, model
            release_memory()
            again = Engine(job.work, processes.device)
            after = measures(again, config.max_tokens, job.partial / "after.json", bar, "after")
            result.finish(training, told, before, after, names, moved, command(STAGE, config, job.out))
    processes.wait()


def _start(config: FinetuneConfig, job: Job, processes: Processes) -> data.Start:
    """The model to begin with, its template in its files; the first process makes these."""
    from ..models import references

    if processes.first:
        references.resolve(config.model)
    processes.wait()
    start = data.start(references.resolve(config.model))
    if processes.first:
        made = data.written(start, job.partial / "start")
    processes.wait()
    return made if processes.first else data.written(start, job.partial / "start")


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
