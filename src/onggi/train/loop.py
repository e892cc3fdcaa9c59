"""The training loop: AdamW on fp32 weights, one batch a step, whatever the loss.

It knows no model and no text. It is given the parameters by name, a loss that takes a batch, and all
batches, which are indexed by the step: so a run that was killed needs its last checkpoint and
nothing else to end in the same bytes. Weights, moments and the losses so far are one safetensors file,
written aside and renamed, so that the one before is there until the new one is whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..errors import OnggiError
from ..models import checkpoint as checkpoints
from ..progress import Progress

# Seconds of work between checkpoints. One is three times the size of the fp32 weights.
CHECKPOINT_EVERY = 300.0
_STATE = "state.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")

# (ids, weights), both (sequences, length) → the scalar to go back from.
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Schedule:
    """steps: in all. learning_rate: at the peak, reached linearly in `warmup` steps; from there it
    falls as a cosine to a tenth. clip: the largest norm of all gradients together.
    """

    steps: int
    learning_rate: float
    warmup: int
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        share = (step - self.warmup) / max(self.steps - self.warmup - 1, 1)
        return self.learning_rate * (0.55 + 0.45 * math.cos(math.pi * share))


def train(
    parameters: Mapping[str, nn.Parameter],
    loss: Loss,
    ids: Tensor,
    weights: Tensor,
    schedule: Schedule,
    folder: Path,
    bar: Progress,
    tick: Callable[[], None],
) -> list[float]:
    """Train `parameters` in place, going on from the checkpoint in `folder` where there is one.

    ids, weights: (steps, sequences, length), token ids and what share of its step's loss each has.
    Returns the loss of each step. tick is called after each checkpoint.
    Raises OnggiError naming the step where loss or gradients are not finite.
    """
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    # No decay: it would pull all weights towards 0, those of languages that are not in the text too.
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=schedule.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    losses = _restore(folder / _STATE, parameters, optimizer)
    bar.skip(len(losses))
    saved = time.monotonic()
    for step in range(len(losses), schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        value = loss(ids[step], weights[step])
        value.backward()
        norm = float(nn.utils.clip_grad_norm_(parameters.values(), schedule.clip))
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]) or not math.isfinite(norm):
            raise OnggiError(
                f"step {step + 1} of {schedule.steps}: the loss is {losses[-1]:.3g} and its gradients have a norm "
                f"of {norm:.3g}; a lower --learning_rate or a longer --warmup mends it."
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if time.monotonic() - saved >= CHECKPOINT_EVERY and step + 1 < schedule.steps:
            _save(folder / _STATE, parameters, optimizer, losses)
            tick()
            saved = time.monotonic()
        bar.step(1, f"step {step + 1} of {schedule.steps}, loss {losses[-1]:.3f}")
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return losses


def _save(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, losses: list[float]
) -> None:
    tensors = {"losses": checkpoints.pending(torch.tensor(losses, dtype=torch.float64))}
    for name, parameter in parameters.items():
        tensors[f"weight.{name}"] = checkpoints.pending(parameter)
        for moment in _MOMENTS:
            tensors[f"{moment}.{name}"] = checkpoints.pending(optimizer.state[parameter][moment])
    checkpoints.write_shard(path, tensors)


def _restore(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> list[float]:
    """Put a checkpoint back; returns its losses, one a step, or none where there is no checkpoint."""
    if not path.is_file():
        return []
    with safe_open(path, framework="pt") as file, torch.no_grad():
        losses: list[float] = file.get_tensor("losses").tolist()
        for name, parameter in parameters.items():
            parameter.copy_(file.get_tensor(f"weight.{name}"))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(len(losses)), device=parameter.device),
                **{m: file.get_tensor(f"{m}.{name}").to(parameter.device) for m in _MOMENTS},
            }
    return losses
