"""`onggi distill MODEL --into QUANTISED`: a quantised model recovers with the original as its teacher; see `healing`."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ledger
from ..errors import OnggiError
from ..ledger import Job
from ..progress import release_memory
from . import healing, pretrain_plan
from .base import Plan, precision
from .pretrain_text import material as material_of
from .training import check_services, sequences_at_once

if TYPE_CHECKING:
    from ..models.checkpoint import Checkpoint
    from .distill import DistillConfig

# A checkpoint holds each trained number and its two moments in fp32. There are two of them and a third while it is
# written; and as many of the best weights, without moments.
_CHECKPOINTS = 3 * (12 + 4)
_FIRST = {"scales": "scales and norms", "rounding": "codes too"}


def recover(config: DistillConfig, job: Job, line: str) -> None:
    """Heal the quantised model that `config` names, and end the job. line: the command that does it again."""
    from ..engines.transformers import Engine, default_device
    from ..models import references
    from ..report import card
    from ..train import trainer

    config.check_recovery()  # a recipe may have yet to make the quantised model when it makes the config
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise OnggiError("into: a quantised model recovers in one process; run it without torchrun.")
    check_services(config.report_to)
    made, folder, device = Path(config.into), references.resolve(config.teacher), default_device()
    about = _about(made)
    training = config.training
    size = pretrain_plan.size_of(training)
    assert size is not None  # it is of no new model
    passed = pretrain_plan.passed(training, size)
    healing.check_memory(folder, config.tune, device, "a smaller model can be recovered", passed)
    teacher = Engine(folder, device)
    dtype = precision(job, config.precision, device)
    material = material_of(training, teacher, made)
    release_memory()
    steps = config.steps or (None if config.minutes else material.once)
    if config.tokens:
        steps = -(-config.tokens // (material.source.size * material.length))
    course = healing.Course(
        steps=steps,
        tune=config.tune,
        minutes=config.minutes,
        learning_rate=config.learning_rate or healing.RATE,
        warmup=config.warmup,
        schedule=config.schedule,
        loss=config.loss,
        cross_entropy=config.cross_entropy,
        temperature=config.temperature,
        at_once=sequences_at_once(config.at_once, material.length, device),
        validate_every=config.validate_every,
        fairness=config.fairness,
        report_to=config.report_to or (),
        seed=config.seed,
    )
    if "tensorboard" in course.report_to:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(job.out / "tensorboard"))
    held_out = healing.set_apart(teacher.tokens, material.held_out)
    healed = healing.heal(job, teacher, made, about["layers"], material.source, held_out, dtype, course)
    tokens = material.tokens(0, sum(part["steps"] for part in healed.parts.values()))
    note = healing.noted(healed, course, tokens, material.facts["text"], config.teacher)
    about = {**about, "healed": note}
    ledger.write_json(job.work / references.ABOUT, about)
    (job.work / "README.md").write_text(card.quantized(about), encoding="utf-8")
    lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in healed.lines]
    (job.work / trainer.METRICS).write_text("".join(lines), encoding="utf-8")
    written = [*healed.files, references.ABOUT, "README.md", trainer.METRICS]
    # All else is as it was: configs, tokenizer, what calibrated it.
    others = [
        file.name
        for file in made.iterdir()
        if file.is_file() and not file.name.startswith(".") and file.name not in (*written, ledger.MARKER)
    ]
    for name in others:
        shutil.copyfile(made / name, job.work / name)
    job.finish(
        [*written, *others],
        command=line,
        tokens=tokens,
        damage=note["damage"],
        parts=healed.parts,
    )


def _about(made: Path) -> dict[str, Any]:
    from ..models import references

    about = references.about(made)
    if "layers" not in about:
        raise OnggiError(
            f"into: {made} has no {references.ABOUT} that says how it was quantised; `onggi quantize` makes one that has."
        )
    return about


def plan(config: DistillConfig) -> Plan:
    """About the tokens, memory and disk; tokens: at most, for it ends where text held out no longer gains."""
    size, of = pretrain_plan.size_of(config.training), pretrain_plan.shape_of(config.teacher)
    made = Path(config.into)
    trained = sum(tuned(made, config.tune).values())
    files = sum(file.stat().st_size for file in made.iterdir() if file.is_file())
    memory = None
    if size and of:
        memory = healing.memory(of, config.tune, pretrain_plan.passed(config.training, size))
    return Plan(size.tokens if size else None, memory, files + _CHECKPOINTS * trained)


def tuned(made: Path, tune: healing.Tune) -> dict[str, int]:
    """How many numbers of each kind are tuned of the quantised model in `made`, read from its files' headers."""
    from ..models.checkpoint import Checkpoint

    source = Checkpoint(made)
    entries, quantised = source.entries, [layer["name"] for layer in _about(made)["layers"]]
    own, found = set(quantised), dict.fromkeys(("scales", "zeros", "norms"), 0)
    for name, entry in entries.items():
        owner, _, leaf = name.rpartition(".")
        count = math.prod(entry.shape)
        if owner in own and leaf in ("weight_scale", "scales"):
            found["scales"] += count
            # They lie packed, one beside each scale. Those of the GPTQ layout are of a symmetric grid, and stay.
            if f"{owner}.weight_zero_point" in entries:
                found["zeros"] += count
        elif leaf == "weight" and owner not in own and len(entry.shape) == 1:
            found["norms"] += count
    if tune == "rounding":
        found["codes"] = sum(_weights(source, name) for name in quantised)
    return {kind: count for kind, count in found.items() if count}


def _weights(source: Checkpoint, name: str) -> int:
    """How many the quantised matrix `name` has."""
    entries = source.entries
    if f"{name}.weight_shape" in entries:  # packed, compressed-tensors
        return math.prod(source.tensor(f"{name}.weight_shape").tolist())
    if f"{name}.g_idx" in entries:  # packed, GPTQ: (words, rows)
        return entries[f"{name}.g_idx"].shape[0] * entries[f"{name}.qweight"].shape[1]
    return math.prod(entries[f"{name}.weight"].shape)


def outlook(config: DistillConfig) -> dict[str, Any]:
    """What it is going to take, and what comes out. Steps and tokens are the most that it takes."""
    from ..train import outlook as sums

    training, of = config.training, pretrain_plan.shape_of(config.teacher)
    size, made = pretrain_plan.size_of(training), Path(config.into)
    if of is None:
        raise OnggiError(
            f"{config.teacher}: is not here yet; fetch it first with `onggi inspect {config.teacher}`."
        )
    assert size is not None
    # The student's matrices forward and backward, to the inputs and to the weights; its head, which is the teacher's, to
    # the inputs alone; the teacher forward. Attention's own products: three passes and one.
    head = of.vocabulary * of.hidden
    whole = sums.arithmetic(of, size.length)
    each = 6.0 * (of.multiplied - head) + 4.0 * head + 2.0 * of.multiplied
    each += (whole - 6.0 * of.multiplied) * 4 / 3
    # Measured of the original by itself, all of its weights trained.
    seconds = pretrain_plan.seconds_here(dataclasses.replace(training, init=config.teacher), of, size)
    seconds *= each / whole / (1 - healing.MEASURING)
    steps = (
        -(-size.tokens // size.batch) if size.tokens else max(int(60 * (config.minutes or 0) / seconds), 1)
    )
    parts = {tune: len(part) for tune, part in healing.parts(steps, config.tune).items()}
    steps = sum(parts.values())
    about, operations = _about(made), each * steps * size.batch
    return {
        "into": config.into,
        "scheme": about["scheme"],
        "format": about["format"],
        "bytes": sum(file.stat().st_size for file in made.glob("*.safetensors")),
        "tune": config.tune,
        "tuned": tuned(made, config.tune),
        "steps": steps,
        "parts": parts,
        "tokens": steps * size.batch,
        "text_tokens": size.unique,
        "operations": operations,
        "hours": {"here": steps * seconds / 3600, **sums.hours(operations, of)},
        "memory": healing.memory(of, config.tune, pretrain_plan.passed(training, size)),
        "disk": plan(config).disk,
    }


def dry_run(config: DistillConfig) -> str:
    """What `outlook` finds, to read."""
    found = outlook(config)
    kinds = {"scales": "scales", "zeros": "zeros", "norms": "weights of norms", "codes": "codes"}
    trained = ", ".join(f"{count:,} {kinds[kind]}" for kind, count in found["tuned"].items())
    parts = ", then ".join(f"{count:,} of {_FIRST[tune]}" for tune, count in found["parts"].items())
    return "\n".join(
        [
            f"{config.into} recovers: {found['scheme']} ({found['format']}), {found['bytes']:,} bytes of weights; what comes "
            "out has the same files, format and sizes.",
            f"Tuned: {trained}.",
            f"{found['tokens']:,} tokens in {found['steps']:,} steps at most ({parts}): text held out, measured on the way, "
            "ends each part where it no longer gains.",
            f"{found['operations']:.2e} operations, about {found['memory'] / 2**30:.1f} GiB of memory on one device, the original "
            f"beside it included, and {found['disk'] / 2**20:,.0f} MiB of disk.",
            *pretrain_plan.said_hours(found["hours"]),
        ]
    )
