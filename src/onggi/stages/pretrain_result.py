"""What `onggi pretrain` leaves: a checkpoint in bf16, curves, a card, and how far the weights have moved."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ledger
from ..progress import say

if TYPE_CHECKING:
    from .pretrain import PretrainConfig

CURVES = "curves.svg"


def write(
    source: Any, weights: Mapping[str, Any], tables: set[str], out: Path, start: Path
) -> dict[str, Any]:
    """Write the weights, which bf16 holds, under the names of `source`; returns how far they moved."""
    import torch

    from ..models import checkpoint as checkpoints
    from ..models import references
    from ..train.movement import Movement

    movement = Movement()
    tensors = {}
    for name in source.entries:
        if name not in weights:  # a table that the architecture computes and its file holds all the same
            tensors[name] = checkpoints.copied(source, name)
            continue
        rounded = weights[name].to(torch.bfloat16)
        kind = "embedding" if name in tables else "linears" if rounded.ndim > 1 else "norms"
        movement.add(kind, source.tensor(name), rounded.cpu())
        tensors[name] = checkpoints.pending(rounded)
    checkpoints.write_shard(out / checkpoints.SINGLE, tensors)
    return movement.facts(on_grid=bool(references.about(start).get("grid")))


def describe(
    config: PretrainConfig,
    job: ledger.Job,
    start: Path,
    source: Any,
    facts: dict[str, Any],
    lines: Sequence[Mapping[str, Any]],
    measured: tuple[Any, Mapping[str, float]],
    moved: Mapping[str, Any],
) -> tuple[list[str], dict[str, Mapping[str, float]]]:
    """Write what stands beside the weights. Returns the names of all files, and bits per byte of each language before
    and after.

    start: the folder of the model to begin with; source: that model. measured: what measures, and bits per
    byte of the weights as they are written.
    """
    from ..models import checkpoint as checkpoints
    from ..models import references
    from ..report import card, curves
    from ..train import trainer

    base = {} if config.is_new else references.about(start)
    validation, after = measured
    about: dict[str, Any]
    bits: dict[str, Mapping[str, float]] = {}
    if after:
        first = next(line["bits_per_byte"] for line in lines if "bits_per_byte" in line)
        bits = {"before": first, "after": after}
        say(f"Bits per byte, mean of the languages: {_mean(first):.3f} → {_mean(after):.3f}.")
    if config.is_new:
        about = {
            "name": job.out.name,
            "made_by": "onggi pretrain",
            "grid": None,
            "pretrained": {
                **facts,
                "size": config.size,
                "bits_per_byte": bits.get("after"),
            },
        }
        if facts["licence"]:
            about["licence"] = facts["licence"]
    else:
        held_out = {when: validation.nats(side) for when, side in bits.items()}
        about = {
            **{key: base[key] for key in ("licence", "terms", "base_model") if base.get(key)},
            "base": {
                "name": references.parse(config.init).name,
                "source": config.init,
                "grid": base.get("grid"),
            },
            "made_by": "onggi pretrain",
            "grid": None,  # left behind; `moved` says how far
            "continued": {**facts, "held_out": held_out, "bits_per_byte": bits, "moved": moved},
        }
    ledger.write_json(job.work / references.ABOUT, about)
    config_json = {key: value for key, value in source.config.items() if key != "torch_dtype"}
    ledger.write_json(job.work / "config.json", config_json | {"dtype": "bfloat16"})
    (job.work / CURVES).write_text(curves.curves(lines), encoding="utf-8")
    names = [checkpoints.SINGLE, "config.json", trainer.METRICS, CURVES, references.ABOUT]
    for file in checkpoints.companions(start):
        shutil.copyfile(file, job.work / file.name)
        names.append(file.name)
    words = card.pretrained(about) if config.is_new else card.continued(about)
    (job.work / "README.md").write_text(words, encoding="utf-8")
    return [*names, "README.md"], bits


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)
