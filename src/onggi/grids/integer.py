"""Symmetric integers with a scale per group of inputs, as `compressed-tensors` stores them.

A weight is `code · scale`, codes −2^(b−1) … 2^(b−1)−1, one scale for `group` neighbouring input
columns of a row (or for the whole row). Scales are rounded to the stored dtype *before* anything
is rounded against them: a solver that works with finer scales than the file holds is solving
another problem.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Clips of a group's range: 25 steps from all of it down to 40%. Every third is tried, then the two on
# either side of the best: nearly always the best of all 25, for half the work.
_STEPS, _LEAST = 24, 0.4
_COARSE = range(0, _STEPS + 1, 3)
_FINE = (-2, -1, 1, 2)
# Weights of one step of the search; its two fp32 buffers stay in a core's cache.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class IntegerGrid:
    """bits: of a code. group: columns that share a scale, None for a whole row (per channel)."""

    bits: int = 4
    group: int | None = 128
    dtype: torch.dtype = torch.bfloat16

    @property
    def low(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1

    def width(self, columns: int) -> int:
        """Columns that share a scale in a matrix of `columns` inputs; ValueError if they do not divide."""
        width = self.group or columns
        if columns % width:
            raise ValueError(f"{columns} input columns are not a multiple of the group of {width}")
        return width

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> Tensor:
        """Scales (rows, groups) for `weight` (rows, columns), in the stored dtype.

        Of 25 clips per group the one with the least Σ importance·(w − ŵ)² is searched for, coarse to
        fine; importance (columns,) is the diagonal of the inputs' second moments, equal where None.
        A group of zeros gets the smallest scale that is not zero, never NaN.
        """
        rows, columns = weight.shape
        width = self.width(columns)
        groups = columns // width
        if importance is None:
            importance = weight.new_ones(columns)
        importance = importance.float().reshape(groups, 1, width)
        scales = torch.empty(rows, groups, dtype=self.dtype, device=weight.device)
        step = max(1, _CHUNK // columns)
        for start in range(0, rows, step):
            # (groups, rows, width): a group's importance then is one matrix-vector product.
            part = (
                weight[start : start + step].float().reshape(-1, groups, width).transpose(0, 1).contiguous()
            )
            full = part.abs().amax(dim=2, keepdim=True) / (self.high + 0.5)
            search = _Search(self, part, importance.transpose(1, 2), full)
            for clip in _COARSE:
                search.try_step(torch.full_like(full, clip))
            middle = search.step
            for offset in _FINE:
                search.try_step((middle + offset).clamp(0, _STEPS))
            chosen = search.scale
            scales[start : start + step] = chosen.squeeze(2).T
        return scales

    def round(self, weight: Tensor, scales: Tensor) -> Tensor:
        """Codes (rows, columns), int8: the nearest grid point of each weight."""
        width = self.width(weight.shape[1])
        grouped = weight.float().reshape(len(weight), -1, width) / scales.float().unsqueeze(2)
        return grouped.round_().clamp_(self.low, self.high).to(torch.int8).reshape(weight.shape)

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Values (rows, columns), fp32, of `codes` under `scales`."""
        width = self.width(codes.shape[1])
        grouped = codes.float().reshape(len(codes), -1, width) * scales.float().unsqueeze(2)
        return grouped.reshape(codes.shape)

    def pack(self, codes: Tensor) -> Tensor:
        """Codes (rows, columns) int8 as (rows, columns·bits/32) int32, first column in the lowest bits.

        The layout of `compressed-tensors`' pack-quantized format: codes are stored unsigned, offset
        by 2^(bits−1). Columns are padded with zero bits to whole words.
        """
        if self.bits not in (4, 8):
            raise ValueError(f"packing is defined for 4 and 8 bits, not {self.bits}")
        unsigned = (codes.to(torch.int16) - self.low).to(torch.uint8)
        if self.bits == 4:
            if unsigned.shape[1] % 2:
                unsigned = torch.nn.functional.pad(unsigned, (0, 1))
            unsigned = unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
        if unsigned.shape[1] % 4:
            unsigned = torch.nn.functional.pad(unsigned, (0, 4 - unsigned.shape[1] % 4))
        return unsigned.contiguous().view(torch.int32)

    def unpack(self, packed: Tensor, columns: int) -> Tensor:
        """The inverse of `pack`: codes (rows, columns), int8."""
        if self.bits not in (4, 8):
            raise ValueError(f"packing is defined for 4 and 8 bits, not {self.bits}")
        unsigned = packed.contiguous().view(torch.uint8)
        if self.bits == 4:
            unsigned = torch.stack((unsigned & 15, unsigned >> 4), dim=2).reshape(len(packed), -1)
        return (unsigned[:, :columns].to(torch.int16) + self.low).to(torch.int8)


class _Search:
    """The best scale of each group so far. part: (groups, rows, width) weights; importance: (groups,
    width, 1); full: (groups, rows, 1), the scale that reaches the largest weight.
    """

    def __init__(self, grid: IntegerGrid, part: Tensor, importance: Tensor, full: Tensor):
        self.grid, self.part, self.importance, self.full = grid, part, importance, full
        self.buffer = torch.empty_like(part)
        self.error = torch.full_like(full, torch.inf)
        self.step = torch.zeros_like(full)
        self.scale = self._scale(self.step)

    def _scale(self, step: Tensor) -> Tensor:
        clip = 1.0 - step * ((1.0 - _LEAST) / _STEPS)
        return (self.full * clip).clamp_min(torch.finfo(self.grid.dtype).tiny).to(self.grid.dtype)

    def try_step(self, step: Tensor) -> None:
        """Keep the clip `step` (of each group) where it is better than the best so far."""
        scale = self._scale(step)
        exact = scale.float()
        torch.mul(self.part, exact.reciprocal(), out=self.buffer)
        self.buffer.round_().clamp_(self.grid.low, self.grid.high)
        self.buffer.mul_(exact).sub_(self.part).square_()
        error = self.buffer @ self.importance  # (groups, rows, 1)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.step = torch.where(better, step, self.step)
        self.scale = torch.where(better, scale, self.scale)
