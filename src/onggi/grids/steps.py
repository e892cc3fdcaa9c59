"""What a grid is fitted to a matrix with, and what every grid can do."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Steps(NamedTuple):
    """scale: (rows, groups) in the dtype that is stored. zero: the same shape, int8, the code that stands
    for 0; None on a grid where that is code 0. stored: where a file holds other numbers than these (a scale
    of scales and their codes), what it holds, each with rows first; `scale` and `zero` are then fp32.
    """

    scale: Tensor
    zero: Tensor | None = None
    stored: tuple[Tensor, ...] = ()

    def rows(self, index: slice) -> Steps:
        """Of some rows."""
        return Steps(
            self.scale[index],
            None if self.zero is None else self.zero[index],
            tuple(one[index] for one in self.stored),
        )


class Grid(Protocol):
    """The values that a quantised weight may take: level · scale, the levels fixed, the scales fitted."""

    @property
    def bits(self) -> int:
        """Bits of a code."""

    @property
    def group(self) -> int | None:
        """Columns that share a scale; None for a whole row."""

    @property
    def bits_per_weight(self) -> float:
        """Bits of a stored weight with its share of the scales."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored scales."""

    def width(self, columns: int) -> int:
        """Columns that share a scale in a matrix of so many; ValueError if they do not divide."""

    def fit(self, weight: Tensor, importance: Tensor | None = None, *, search: bool = True) -> Steps:
        """Steps for `weight` (rows, columns), its columns as important as `importance` says."""

    def snap_(self, levels: Tensor, zero: Tensor | None) -> None:
        """Move weights over their scale to the nearest level, in place."""

    def codes(self, levels: Tensor, steps: Steps) -> Tensor:
        """What is stored for levels."""

    def round(self, weight: Tensor, steps: Steps) -> Tensor:
        """Codes of the nearest grid points."""

    def decode(self, codes: Tensor, steps: Steps) -> Tensor:
        """Values, fp32, of codes."""
