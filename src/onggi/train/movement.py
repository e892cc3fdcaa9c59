"""How far training has moved a model's weights, and whether they have left the grid they came on.

A model that was a GGUF file still lies on that file's grid when it is written as bf16, and a short
training moves its weights by little: that they are other numbers now does not yet mean that rounding them
to such a grid costs what it costs another model. So more than one thing is measured:

    moved      RMS of the change, relative to the RMS of the weights before
    distinct   different values among 32 neighbours: on a grid of 4 or 5 bits many are equal
    rounding   RMS error of rounding to 8 bits as Q8_0 does (32 neighbours share a step, the largest of
               them is 127), relative to the RMS of the weights: next to nothing on a grid of 8 bits
    off_grid   distance to the nearest point of the old grid as a share of what it is by chance (a step
               over √12): 0 on the grid, 1 where nothing is left of it. The old grid's step is the
               smallest difference among 16 neighbours, few enough to share one in every GGUF type;
               where no two of them are a step apart it is overestimated, and off_grid too small.

The last is for weights that are known to have been on a grid; of others it says nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Rows of a matrix that are looked at for `distinct`, `rounding` and `off_grid`, evenly spaced.
_ROWS = 1024
_BLOCK, _NEIGHBOURS = 32, 16


@dataclass
class _Sums:
    change: float = 0.0
    size: float = 0.0
    count: int = 0
    blocks: int = 0
    sampled: float = 0.0
    distinct: tuple[float, float] = (0.0, 0.0)
    error: tuple[float, float] = (0.0, 0.0)
    after: float = 0.0
    distance: float = 0.0
    near: int = 0


class Movement:
    """Sums over a model's tensors by kind (`linears`, `embedding` …): `add` each, then `facts`."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Sums] = {}

    def add(self, kind: str, before: Tensor, after: Tensor) -> None:
        """Take in one tensor, as it was before and as it is stored now; both of one shape."""
        sums = self._kinds.setdefault(kind, _Sums())
        before, after = before.float(), after.float()
        sums.change += float((after - before).double().square().sum())
        sums.size += float(before.double().square().sum())
        sums.count += before.numel()
        if before.ndim < 2:
            return
        columns = before.shape[-1] // _BLOCK * _BLOCK
        rows = torch.linspace(0, len(before) - 1, min(len(before), _ROWS)).long()
        old, new = (tensor[rows, ..., :columns].reshape(-1, _BLOCK) for tensor in (before, after))
        sums.blocks += len(old)
        sums.sampled += float(old.double().square().sum())
        sums.after += float(new.double().square().sum())
        sums.distinct = tuple(  # type: ignore[assignment]
            s + float(_distinct(t)) for s, t in zip(sums.distinct, (old, new), strict=True)
        )
        sums.error = tuple(  # type: ignore[assignment]
            s + float(_rounding(t)) for s, t in zip(sums.error, (old, new), strict=True)
        )
        old, new = (tensor.reshape(-1, _NEIGHBOURS) for tensor in (old, new))
        gaps = old.sort(dim=1).values.diff(dim=1)
        step = torch.where(gaps > 0, gaps, torch.inf).amin(dim=1, keepdim=True)
        steps = ((new - old) / step)[torch.isfinite(step).squeeze(1)]
        sums.distance += float((steps - steps.round()).double().square().sum())
        sums.near += steps.numel()

    def facts(self, on_grid: bool) -> dict[str, dict[str, Any]]:
        """Kind → the measures of the module's docstring, with `weights`, their number. `moved` is None
        where all weights were 0, `distinct` and `rounding` are pairs, before and after. on_grid: whether the weights are known to have been on one.
        """
        found: dict[str, dict[str, Any]] = {}
        for kind, sums in self._kinds.items():
            facts: dict[str, Any] = {
                "weights": sums.count,
                "moved": _digits(math.sqrt(sums.change / sums.size)) if sums.size else None,
            }
            if sums.blocks:
                facts["distinct"] = [_digits(total / sums.blocks) for total in sums.distinct]
                facts["rounding"] = [
                    _digits(math.sqrt(error / size)) if size else 0.0
                    for error, size in zip(sums.error, (sums.sampled, sums.after), strict=True)
                ]
            if sums.near and on_grid:
                facts["off_grid"] = _digits(math.sqrt(12 * sums.distance / sums.near))
            found[kind] = facts
        return found


def _distinct(blocks: Tensor) -> Tensor:
    return (blocks.sort(dim=1).values.diff(dim=1) != 0).sum() + len(blocks)


def _rounding(blocks: Tensor) -> Tensor:
    step = blocks.abs().amax(dim=1, keepdim=True) / 127
    step = torch.where(step > 0, step, 1.0)
    return (blocks - (blocks / step).round() * step).double().square().sum()


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
