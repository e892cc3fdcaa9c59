"""Eight-bit floating point (E4M3, no infinities) with a scale for each row: finer near 0 than integers are.

Its steps grow with the value, so clipping a row's range wins nothing and the largest weight of a row
simply becomes the largest number there is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .steps import Steps

_KIND = torch.float8_e4m3fn
_MOST = torch.finfo(_KIND).max  # 448


@dataclass(frozen=True)
class Float8Grid:
    """dtype: of the scales."""

    dtype: torch.dtype = torch.bfloat16
    bits: int = 8
    group: int | None = None

    @property
    def bits_per_weight(self) -> float:
        """A row's scale counts nothing."""
        return float(self.bits)

    def width(self, columns: int) -> int:
        """The whole row."""
        return columns

    def fit(self, weight: Tensor, importance: Tensor | None = None, *, search: bool = True) -> Steps:
        """Scales (rows, 1) that bring each row's largest weight to the largest number."""
        full = weight.float().abs().amax(dim=1, keepdim=True) / _MOST
        return Steps(full.clamp_min(torch.finfo(self.dtype).tiny).to(self.dtype))

    def snap_(self, levels: Tensor, zero: Tensor | None) -> None:
        """The nearest number of eight bits, in place."""
        levels.clamp_(-_MOST, _MOST)
        levels.copy_(levels.to(_KIND))

    def codes(self, levels: Tensor, steps: Steps) -> Tensor:
        """Levels in eight bits."""
        return levels.to(_KIND)

    def round(self, weight: Tensor, steps: Steps) -> Tensor:
        """Codes (rows, columns), float8: the nearest grid point of each weight."""
        return (weight.float() / steps.scale.float()).clamp_(-_MOST, _MOST).to(_KIND)

    def decode(self, codes: Tensor, steps: Steps) -> Tensor:
        """Values (rows, columns), fp32."""
        return codes.float() * steps.scale.float()
