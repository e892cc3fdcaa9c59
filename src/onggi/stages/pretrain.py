"""`onggi pretrain`: train a model on text, from a random start or further, and say what it learnt in each language.

Text is packed (`onggi pack`) and read in its order, or it is a source and is drawn in equal shares of each
language, one passage in fifty held out. Both go through the same trainer.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from .. import languages as tags
from .. import ledger
from ..errors import OnggiError
from ..languages import Languages
from ..ledger import Artifact
from ..progress import progress, release_memory
from . import pretrain_result as result
from .base import Names, Stage, command, precision
from .pretrain_plan import dry_run, outlook, plan
from .pretrain_start import RANDOM
from .pretrain_start import start as begin
from .pretrain_text import BATCH, LENGTH, NO_PROBE, Material, packed_folder
from .pretrain_text import material as material_of
from .training import (
    Processes,
    carried_out,
    check_services,
    each_language_once,
    named_services,
    one_pass,
    sequences_at_once,
    step_seconds,
    steps_in,
    write_weights,
)

_REVISION = 2
# Validation is measured so many times, but takes no more than this share of the training's time. It has no backward
# pass: a third of the arithmetic a token.
_VALIDATIONS, _VALIDATING = 20, 0.1


@dataclass(frozen=True)
class PretrainConfig:
    """Train a model on text, from a random start (--init random --size 8m) or further.

    The result is a checkpoint in bf16 with metrics.jsonl (a line a step, and bits per byte of each language
    now and then) and curves.svg. A killed run goes on from its last checkpoint and ends the same. Under
    `torchrun --nproc-per-node 2 -m onggi pretrain …` each process takes its share of every step.
    """

    text: str
    """Text to train on: a folder that `onggi pack` made; or a source as `onggi text` takes, of which each
    language gets an equal share and one passage in fifty is held out. Not the probe, which is for
    measuring."""
    init: str
    """The model to begin with: a hub id, a folder, a .gguf file, or package:NAME; or `random`, with --size."""
    size: str | None = None
    """With --init random: parameters, as 8m, 60m or 1b; depth, width and heads follow."""
    tokenizer: str | None = None
    """With --init random: the folder of the tokenizer that the text was packed with, where it is no longer
    where it was."""
    validation: str | None = None
    """Text to measure on, a source as `onggi text` takes: bits per byte of each language. Default: of plain
    text what is held out; of packed text nothing is measured."""
    languages: Languages | None = None
    """Languages to train on, as en,ko; default: all that the text has. Of packed text all are trained on, and
    these are measured."""
    steps: int | None = None
    """Updates of the weights. Default: packed text is read once; 240 of plain text."""
    tokens: int | None = None
    """Tokens to train on, in place of --steps."""
    minutes: float | None = None
    """About how long to train, in place of --steps: the first seconds say how many steps that is."""
    batch_tokens: int | None = None
    """Tokens of one step, in whole sequences; of all languages and processes together. Default: 8192 of packed
    text, 1024 of plain."""
    length: int | None = None
    """Tokens of one sequence, its start token included; default 256. Packed text has a length already."""
    learning_rate: float | None = None
    """At its peak. Default: 5e-3 from a random start; 3e-5 for a model that is trained further: higher moves the
    weights further and sooner harms languages that the text has little of."""
    warmup: int | None = None
    """Steps in which the learning rate rises from nothing; default: a tenth of them, 100 at most."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """cosine: falls all the way, to a tenth. wsd: stays at its peak and falls to nothing in the last fifth."""
    optimizer: Literal["adamw", "muon"] | None = None
    """muon: for the matrices of the layers, with AdamW for all else. Default: muon from a random start, which came
    further in as many steps (docs/pretrain.md), else adamw."""
    weight_decay: float | None = None
    """Of the matrices of the layers. Default: 0.1 from a random start, else 0, for it pulls towards nothing what
    languages that are not in the text have learnt."""
    z_loss: float = 0.0
    """How much logits that drift away together are held back; 1e-4 is usual where it is used."""
    at_once: int | None = None
    """Sequences in one pass of a device; a step has as many passes as it needs. Default: 4096 tokens on a CPU,
    32768 on a GPU."""
    checkpointing: bool = False
    """Compute the layers twice rather than keep what the backward pass needs: less memory, a third slower."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Compile the layers (torch.compile; a CPU needs a C++ compiler). auto: in a training of ten minutes or more in one
    process, where a measurement says that it saves a tenth of the time."""
    shard: bool = False
    """With several processes: each holds a part of the weights alone (FSDP2), for a model that is too large for one
    device. With adamw."""
    validate_every: int | None = None
    """Steps between two measures of the validation text. Default: a twentieth of them; more where measuring would
    take more than a tenth of the time."""
    validation_passages: int = 24
    """Passages of each language that are measured."""
    report_to: Names | None = None
    """Services that draw curves too: tensorboard, wandb, trackio, mlflow; each must be installed."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the matrix products; weights and moments are fp32. auto: bf16 where the processor multiplies
    in it, else fp32."""
    seed: int = 0
    """Of the random start, and of the order in which text is drawn."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if self.text == "probe":
            raise OnggiError(NO_PROBE)
        given = [name for name in ("steps", "tokens", "minutes") if getattr(self, name) is not None]
        if len(given) > 1:
            raise OnggiError(f"{given[1]}: --{given[0]} says how long to train already; give one of them.")
        for name in ("steps", "tokens", "minutes", "at_once", "validate_every", "validation_passages"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OnggiError(f"{name}: {value} is not a number of {name.split('_')[-1]}.")
        if self.init == RANDOM and self.size is None:
            raise OnggiError("size: --init random needs it, as in --size 8m.")
        if self.init != RANDOM and (self.size or self.tokenizer):
            name = "size" if self.size else "tokenizer"
            raise OnggiError(f"{name}: {self.init} has its own; this is for --init random.")
        if self.size is not None:
            from ..models.random import parameters

            parameters(self.size)
        length, batch = self.length or LENGTH, self.batch_tokens or BATCH
        if length < 2:
            raise OnggiError(f"length: a sequence of {length} has nothing to predict; 256 is usual.")
        if self.length is not None and batch < length:
            raise OnggiError(f"batch_tokens: {batch} are less than one sequence of {length} (--length).")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise OnggiError(
                f"learning_rate: {self.learning_rate} is not between 0 and 1; 3e-5 is usual for a model that is "
                "trained further, 5e-3 from a random start."
            )
        for name in ("warmup", "weight_decay", "z_loss"):
            if (getattr(self, name) or 0) < 0:
                raise OnggiError(f"{name}: {getattr(self, name)} is less than nothing.")
        if self.shard and _optimizer(self) == "muon":
            raise OnggiError("shard: is for --optimizer adamw; Muon needs whole matrices.")
        named_services(self.report_to)

    @property
    def is_new(self) -> bool:
        """Whether the model begins at random."""
        return self.init == RANDOM


def inputs(config: PretrainConfig) -> dict[str, Any]:
    """Fingerprints of model and text."""
    from .. import text
    from ..models import references
    from ..text.packing import Packed

    if packed := packed_folder(config.text):
        Packed(packed)  # raises where it is not whole
    found = {"text": text.fingerprint(config.text, config.languages)}
    if not config.is_new:
        found["init"] = references.fingerprint(config.init)
    if config.validation:
        found["validation"] = text.fingerprint(config.validation, config.languages)
    return found


def pretrain(config: PretrainConfig, out: Path) -> Artifact:
    """Write a trained checkpoint to `out`; see `PretrainConfig`.

    Raises OnggiError for a model or text that is not sound, and where the loss ceases to fall whatever is done.

    >>> from pathlib import Path
    >>> from onggi.languages import Languages
    >>> from onggi.stages import PretrainConfig, pretrain
    >>> few = PretrainConfig(
    ...     "starter", "model", languages=Languages("ko,el,km"), steps=2, batch_tokens=64, length=32
    ... )
    >>> made = pretrain(few, Path("further"))
    >>> sorted(made.record["moved"])
    ['embedding', 'linears', 'norms']
    """
    return carried_out(STAGE, config, out, lambda job, own: train(config, job, own))


class Course(Protocol):
    """What a training is for, where it is not to predict the text (`onggi distill`): the same training of the same
    checkpoint, with another loss and another end.
    """

    def loss(self, engine: Any, material: Material, validation: Any, dtype: Any) -> tuple[Any, Any]:
        """The loss (see `train.tokens.Loss`) and the source of its batches."""

    def begin(self, trainer: Any) -> None:
        """Called before the first step."""

    def finish(self, job: ledger.Job, trained: result.Trained) -> None:
        """Write what is said of the checkpoint, and end the job."""


def train(
    config: PretrainConfig, job: ledger.Job, processes: Processes, course: Course | None = None
) -> None:
    """Train as `config` says, and end the job; see `Course`."""
    import torch

    from ..engines.transformers import Engine
    from ..models import checkpoint as checkpoints
    from ..train import attention, trainer
    from ..train.schedule import Schedule
    from ..train.tokens import next_token
    from ..train.validation import Validation

    check_services(config.report_to)
    start = begin(config, job, processes)
    source = checkpoints.Checkpoint(start)
    if "quantization_config" in source.config:
        raise OnggiError(f"{config.init}: is quantised; name the model it was made from.")
    engine = Engine(start, processes.device)
    parameters = dict(engine.model.named_parameters())
    stored = dict(engine.model.named_parameters(remove_duplicate=False))
    kept = {id(stored[name]) for name in source.entries if name in stored}
    for name, parameter in parameters.items():
        if id(parameter) not in kept:
            raise OnggiError(f"{config.init}: holds no tensor named {name}.")
    tables = {
        id(m.weight) for m in (engine.model.get_input_embeddings(), engine.model.get_output_embeddings())
    }
    table_names = {name for name, parameter in stored.items() if id(parameter) in tables}
    count = sum(parameter.numel() for parameter in parameters.values())
    del stored, parameters  # a sharded model has others
    dtype = precision(job, config.precision, engine.device)
    attention.prepare(engine.model, dtype)
    material = material_of(config, engine, start)
    release_memory()
    validation = (
        Validation(engine.tokens, material.held_out, min(engine.window or 2048, 2048))
        if material.held_out
        else None
    )
    loss, batches = next_token(dtype, config.z_loss), material.source
    if course:
        loss, batches = course.loss(engine, material, validation, dtype)
    at_once = sequences_at_once(config.at_once, material.length, engine.device)
    steps = _steps(config, job, processes, material, engine.model, loss, batches, at_once, bool(validation))
    warmup = min(steps // 10, 100) if config.warmup is None else config.warmup
    rate = config.learning_rate or (5e-3 if config.is_new else 3e-5)
    engine.model.requires_grad_(True)
    if not course:  # another loss has graphs of its own
        _compile(config, job, material, engine.model, loss, at_once, steps)
    if "tensorboard" in (config.report_to or ()):
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(job.out / "tensorboard"))
    with progress(f"pretrain {job.out.name}", steps) as bar:
        made = trainer.Trainer(
            engine.model,
            loss,
            batches,
            Schedule(steps, rate, warmup, config.schedule),
            trainer.Options(
                optimizer=_optimizer(config),
                weight_decay=_decay(config),
                at_once=at_once,
                checkpointing=config.checkpointing,
                shard=config.shard,
                validate_every=_validate_every(config, steps, material, validation),
                report_to=config.report_to or (),
                name=job.out.name,
                seed=config.seed,
            ),
            job.partial / "training",
            bar,
            job.tick if processes.first else lambda: None,
            validation,
        )
        if course:
            course.begin(made)
        lines = made.fit()
    engine.model.requires_grad_(False)
    facts = {
        "parameters": count,
        "steps": steps,
        "batch_tokens": material.source.size * material.length,
        "length": material.length,
        "learning_rate": rate,
        "warmup": warmup,
        "schedule": config.schedule,
        "optimizer": _optimizer(config),
        "weight_decay": _decay(config),
        "seed": config.seed,
        "precision": str(dtype).removeprefix("torch."),
        **material.facts,
        "tokens": material.tokens(made.passed_over, made.passed_over + steps),
    }
    if made.halved:
        facts |= {"went_back": made.halved, "passed_over": made.passed_over}
    speed = {
        "tokens_per_second": round(made.own_steps * facts["batch_tokens"] / made.seconds, 1)
        if made.seconds
        else None
    }
    # bf16 because that is what it is served and quantised from. Its rounding is relative to each weight
    # alone, with eight bits, and so no grid that a quantiser could hit upon.
    made.rounded(torch.bfloat16)
    after = made.measured() if validation else {}
    weights = made.weights()
    if processes.first:
        shutil.copyfile(job.partial / "training" / trainer.METRICS, job.work / trainer.METRICS)
        moved = write_weights(source, weights, table_names, job.work, start)
        trained = result.Trained(start, source, facts, lines, validation, after, moved, speed)
        if course:
            course.finish(job, trained)
        else:
            result.finish(config, job, trained, command(STAGE, config, job.out))
    processes.wait()


def _optimizer(config: PretrainConfig) -> Literal["adamw", "muon"]:
    return config.optimizer or ("muon" if config.is_new else "adamw")


def _decay(config: PretrainConfig) -> float:
    if config.weight_decay is not None:
        return config.weight_decay
    return 0.1 if config.is_new else 0.0


def _steps(
    config: PretrainConfig,
    job: ledger.Job,
    processes: Processes,
    material: Material,
    model: Any,
    loss: Any,
    batches: Any,
    at_once: int,
    validates: bool,
) -> int:
    """How many steps."""
    if config.steps:
        return config.steps
    batch = material.source.size * material.length
    if config.tokens:
        return -(-config.tokens // batch)
    if config.minutes is None:
        return material.once
    return steps_in(
        config.minutes,
        job.partial / "steps",
        lambda: step_seconds(model, loss, batches, at_once),
        processes,
        measuring=_VALIDATING if validates else 0.0,
        least=each_language_once(material.source),
    )


def _validate_every(config: PretrainConfig, steps: int, material: Material, validation: Any) -> int:
    if config.validate_every or not validation:
        return config.validate_every or steps
    trained = steps * material.source.size * material.length
    times = min(int(_VALIDATING * trained / (validation.tokens / 3)), _VALIDATIONS)
    return max(-(-steps // max(times, 1)), 1)


def _compile(
    config: PretrainConfig,
    job: ledger.Job,
    material: Material,
    model: Any,
    loss: Any,
    at_once: int,
    steps: int,
) -> None:
    """Compile the layers where that is asked for, or measured to pay. Kept: a run that goes on must not decide anew."""
    from ..train import compiled, outlook

    kept = job.partial / "compiled"
    if config.compile == "no" or (kept.is_file() and kept.read_text() == "no"):
        return
    if config.compile == "yes" or kept.is_file():
        return compiled.compile(model)
    if config.checkpointing or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return
    shape = outlook.shape(model.config.to_dict(), sum(p.numel() for p in model.parameters()))
    size = material.source.size
    arithmetic = outlook.arithmetic(shape, material.length) * steps * size * material.length
    step = one_pass(model, loss, material.source, at_once)
    pays = compiled.worthwhile(model, step, steps * size / min(at_once, size), arithmetic)
    model.zero_grad(set_to_none=True)
    with ledger.writing(kept) as aside:
        aside.write_text("yes" if pays else "no")


def show(artifact: Artifact) -> None:
    """Print what it learnt, by language."""
    from rich.console import Console
    from rich.table import Table

    record = artifact.record
    table = Table()
    for column in ("language", "tokens", "bits per byte before", "after"):
        table.add_column(column, justify="left" if column == "language" else "right", no_wrap=True)
    bits: dict[str, dict[str, float]] = record["bits_per_byte"]
    tokens: dict[str, int] = record["tokens"]
    for tag in dict.fromkeys([*tokens, *(bits.get("after") or {})]):
        values = [f"{side[tag]:.3f}" if tag in side else "" for side in bits.values()]
        table.add_row(f"{tags.name(tag)} ({tag})", f"{tokens.get(tag, 0):,}", *values)
    made = Console(highlight=False)
    made.print(table)
    speed = record["tokens_per_second"]
    made.print(
        f"{record['parameters']:,} parameters, {sum(tokens.values()):,} tokens"
        + (f", {speed:,.0f} a second" if speed else "")
        + f"; curves in {artifact.path / result.CURVES}."
    )


STAGE = Stage("pretrain", PretrainConfig, pretrain, inputs, plan, {}, _REVISION, show, dry_run, outlook)
