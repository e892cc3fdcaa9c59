"""Where a killed training goes on: weights, optimizer, random numbers, and how far it had come.

A checkpoint is a folder `step-N`. It is whole when `checkpoint.json` is there, which is written last and holds
the sha256 of the others; nothing in it is pickled. The highest number is not enough: the marker picks,
and a checkpoint that is harmed gives way to the one before it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .. import ledger
from ..errors import OnggiError
from ..models import checkpoint as checkpoints
from ..progress import say
from .optimizers import state_of
from .sharding import like, whole

MARKER = "checkpoint.json"
STATE = "trainer_state.json"
_WEIGHTS, _OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
_KEPT = 2  # the last one may have been written when the loss was on its way up


@dataclass(frozen=True)
class Kept:
    """A whole checkpoint. facts: what the trainer noted with it."""

    path: Path
    step: int
    facts: Mapping[str, Any]


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    facts: Mapping[str, Any] = MappingProxyType({}),
    state: str = "{}",
    first: bool = True,
) -> None:
    """Write `folder`/step-N and drop all but the last two. optimizer: None for weights alone, which are put back and not
    trained further. state: the Trainer's own, JSON. first: whether this is the process that writes; where weights lie in
    pieces the others must call too.
    """
    path = folder / f"step-{step:08d}"
    weights, kept = {}, {}
    for name, parameter in _trained(model).items():
        tensor = whole(parameter.detach())
        if first:
            weights[name] = checkpoints.pending(tensor)
        for key, value in (state_of(optimizer, parameter) if optimizer else {}).items():
            if isinstance(value, Tensor):
                tensor = whole(value)
                if first:
                    kept[f"{key}|{name}"] = checkpoints.pending(tensor)
    if not first:
        return
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    kept["random"] = checkpoints.pending(torch.get_rng_state())
    if torch.cuda.is_available():
        kept["random.cuda"] = checkpoints.pending(torch.cuda.get_rng_state())
    checkpoints.write_shard(path / _WEIGHTS, weights)
    checkpoints.write_shard(path / _OPTIMIZER, kept)
    with ledger.writing(path / STATE) as aside:
        aside.write_text(state)
    sums = {name: ledger.sha256(path / name) for name in (_WEIGHTS, _OPTIMIZER, STATE)}
    ledger.write_json(path / MARKER, {"step": step, "sha256": sums, **facts})
    for old in sorted(folder.glob("step-*"))[:-_KEPT]:
        shutil.rmtree(old)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What a training changes, and so all that has to be kept of it."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def last(folder: Path) -> Kept | None:
    """The last whole checkpoint in `folder`; None where there is none."""
    return next(whole_ones(folder), None)


def whole_ones(folder: Path) -> Iterator[Kept]:
    """The whole checkpoints in `folder`, the last first."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if not (path / MARKER).is_file():
            continue
        try:
            facts = ledger.read_json(path / MARKER)
            for name, wanted in facts["sha256"].items():
                if ledger.sha256(path / name) != wanted:
                    raise OnggiError(f"{path / name}: its contents are not those that were written.")
            kept = Kept(path, facts["step"], facts)
        except (OnggiError, OSError, LookupError, TypeError) as error:
            say(f"A checkpoint is passed over: {error}")
            continue
        yield kept


def drop_after(folder: Path, step: int) -> None:
    """Drop the checkpoints in `folder` of later steps: of a course that was given up."""
    for path in folder.glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)


def restore(kept: Kept, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Put weights back, and with an `optimizer` what it had noted and the random numbers too."""
    named = _trained(model)
    with torch.no_grad(), safe_open(kept.path / _WEIGHTS, framework="pt") as file:
        for name, parameter in named.items():
            parameter.copy_(like(file.get_tensor(name), parameter))
    if optimizer is None:
        return
    for parameter in named.values():
        state_of(optimizer, parameter).clear()
    with safe_open(kept.path / _OPTIMIZER, framework="pt") as file:
        for entry in file.keys():  # noqa: SIM118 (no mapping)
            key, _, name = entry.partition("|")
            tensor = file.get_tensor(entry)
            if name:
                # AdamW counts its steps on the CPU where it is not fused, and with the weights where it is.
                state_of(optimizer, named[name])[key] = like(tensor, named[name])
            elif key == "random":
                torch.set_rng_state(tensor)
            elif torch.cuda.is_available():
                torch.cuda.set_rng_state(tensor)
