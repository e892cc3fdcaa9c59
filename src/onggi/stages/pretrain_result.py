"""What `onggi pretrain` leaves: a checkpoint in bf16, curves, a card, and how far the weights have moved."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ledger
from ..progress import say

if TYPE_CHECKING:
    from .pretrain import PretrainConfig

CURVES = "curves.svg"


@dataclass(frozen=True)
class Trained:
    """What came out of a training. start: the folder that it began with, source its checkpoint. validation: what
    measured, None where nothing was. after: bits per byte by language, of the weights as they were written. moved:
    how far the weights did. speed: of the training, for the record.
    """

    start: Path
    source: Any
    facts: dict[str, Any]
    lines: Sequence[Mapping[str, Any]]
    validation: Any
    after: Mapping[str, float]
    moved: Mapping[str, Any]
    speed: Mapping[str, Any]

    @property
    def before(self) -> dict[str, float]:
        """Bits per byte by language, of the model that it began with."""
        return next((dict(line["bits_per_byte"]) for line in self.lines if "bits_per_byte" in line), {})

    @property
    def bits(self) -> dict[str, Mapping[str, float]]:
        """Both; empty where nothing was measured."""
        return {"before": self.before, "after": self.after} if self.after else {}


def finish(config: PretrainConfig, job: ledger.Job, trained: Trained, line: str) -> None:
    """Write what is said of the checkpoint, and end the job. line: the command that makes it."""
    from ..models import references
    from ..report import card

    base = {} if config.is_new else references.about(trained.start)
    facts, bits = trained.facts, trained.bits
    if bits:
        before, after = (_mean(bits[when]) for when in ("before", "after"))
        say(f"Bits per byte, mean of the languages: {before:.3f} → {after:.3f}.")
    about: dict[str, Any]
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
        held_out = {when: trained.validation.nats(side) for when, side in bits.items()}
        about = {
            **{key: base[key] for key in ("licence", "terms", "base_model") if base.get(key)},
            "base": {
                "name": references.parse(config.init).name,
                "source": config.init,
                "grid": base.get("grid"),
            },
            "made_by": "onggi pretrain",
            "grid": None,  # left behind; `moved` says how far
            "continued": {**facts, "held_out": held_out, "bits_per_byte": bits, "moved": trained.moved},
        }
    words = card.pretrained(about) if config.is_new else card.continued(about)
    job.finish(
        released(job, trained, about, words),
        command=line,
        parameters=facts["parameters"],
        tokens=facts["tokens"],
        bits_per_byte=bits,
        **({} if config.is_new else {"moved": trained.moved}),
        **trained.speed,
    )


def released(job: ledger.Job, trained: Trained, about: Mapping[str, Any], words: str) -> list[str]:
    """Write all that stands beside the weights, `words` as its card; returns the names of the outputs."""
    from ..models import checkpoint as checkpoints
    from ..models import references
    from ..report import curves
    from ..train import trainer

    ledger.write_json(job.work / references.ABOUT, about)
    config_json = {key: value for key, value in trained.source.config.items() if key != "torch_dtype"}
    ledger.write_json(job.work / "config.json", config_json | {"dtype": "bfloat16"})
    (job.work / CURVES).write_text(curves.curves(trained.lines), encoding="utf-8")
    names = [checkpoints.SINGLE, "config.json", trainer.METRICS, CURVES, references.ABOUT]
    for file in checkpoints.companions(trained.start):
        shutil.copyfile(file, job.work / file.name)
        names.append(file.name)
    (job.work / "README.md").write_text(words, encoding="utf-8")
    return [*names, "README.md"]


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)
