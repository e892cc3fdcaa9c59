"""Integers with a scale, and where asked a zero point, per group of inputs, as `compressed-tensors` stores them.

A weight is `(code − zero) · scale`, codes −2^(b−1) … 2^(b−1)−1, one scale (and one zero) for `group`
neighbouring input columns of a row, or for the whole row. Scales are rounded to the stored dtype *before*
anything is rounded against them: a solver that works with finer scales than the file holds is solving
another problem.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .steps import Steps

# Clips of a group's range: 25 steps from all of it down to 40%. Every third is tried, then the two on
# either side of the best: nearly always the best of all 25, for half the work.
_STEPS, _LEAST = 24, 0.4
_COARSE = range(0, _STEPS + 1, 3)
_FINE = (-2, -1, 1, 2)
# Weights of one step of the search; its two fp32 buffers stay in a core's cache.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class IntegerGrid:
    """bits: of a code, 2 to 8. group: columns that share a scale, None for a whole row (per channel).
    dtype: of the scales. symmetric: whether code 0 stands for 0; else a zero point is fitted.
    """

    bits: int = 4
    group: int | None = 128
    dtype: torch.dtype = torch.bfloat16
    symmetric: bool = True

    @property
    def low(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1

    @property
    def bits_per_weight(self) -> float:
        """Bits of a stored weight with its share of scale and zero; a whole row's scale counts nothing."""
        each = torch.finfo(self.dtype).bits + (0 if self.symmetric else self.bits)
        return self.bits + (each / self.group if self.group else 0.0)

    def width(self, columns: int) -> int:
        """Columns that share a scale in a matrix of `columns` inputs; ValueError if they do not divide."""
        width = self.group or columns
        if columns % width:
            raise ValueError(f"{columns} input columns are not a multiple of the group of {width}")
        return width

    def fit(self, weight: Tensor, importance: Tensor | None = None, *, search: bool = True) -> Steps:
        """Scales (and zeros) for `weight` (rows, columns), in the stored dtype.

        Of 25 clips per group the one with the least Σ importance·(w − ŵ)² is searched for, coarse to
        fine; importance (columns,) is the diagonal of the inputs' second moments, equal where None.
        Without `search` the whole range of each group is kept. A group of zeros gets the smallest
        scale that is not zero, never NaN.
        """
        rows, columns = weight.shape
        width = self.width(columns)
        groups = columns // width
        if importance is None:
            importance = weight.new_ones(columns)
        importance = importance.float().reshape(groups, 1, width)
        scales = torch.empty(rows, groups, dtype=self.dtype, device=weight.device)
        zeros = None if self.symmetric else torch.empty(rows, groups, dtype=torch.int8, device=weight.device)
        step = max(1, _CHUNK // columns)
        for start in range(0, rows, step):
            # (groups, rows, width): a group's importance then is one matrix-vector product.
            part = (
                weight[start : start + step].float().reshape(-1, groups, width).transpose(0, 1).contiguous()
            )
            found = _Search(self, part, importance.transpose(1, 2))
            if search:
                for clip in _COARSE:
                    found.try_step(torch.full_like(found.full, clip))
                middle = found.step
                for offset in _FINE:
                    found.try_step((middle + offset).clamp(0, _STEPS))
            scales[start : start + step] = found.scale.squeeze(2).T
            if zeros is not None and found.zero is not None:
                zeros[start : start + step] = found.zero.squeeze(2).T.to(torch.int8)
        return Steps(scales, zeros)

    def snap_(self, levels: Tensor, zero: Tensor | None) -> None:
        """Move each of `levels` (weights over their scale) to the nearest level there is: an integer,
        the code less the zero. In place.
        """
        levels.round_()
        if zero is None:
            levels.clamp_(self.low, self.high)
        else:
            torch.clamp(levels, self.low - zero, self.high - zero, out=levels)

    def codes(self, levels: Tensor, steps: Steps) -> Tensor:
        """Codes (rows, columns), int8, of `levels` of the same shape."""
        if steps.zero is None:
            return levels.to(torch.int8)
        grouped = levels.reshape(len(levels), steps.zero.shape[1], -1) + steps.zero.unsqueeze(2)
        return grouped.to(torch.int8).reshape(levels.shape)

    def round(self, weight: Tensor, steps: Steps) -> Tensor:
        """Codes (rows, columns), int8: the nearest grid point of each weight."""
        width = self.width(weight.shape[1])
        grouped = weight.float().reshape(len(weight), -1, width) / steps.scale.float().unsqueeze(2)
        self.snap_(grouped, None if steps.zero is None else steps.zero.float().unsqueeze(2))
        return self.codes(grouped.reshape(weight.shape), steps)

    def decode(self, codes: Tensor, steps: Steps) -> Tensor:
        """Values (rows, columns), fp32, of `codes` under `steps`."""
        width = self.width(codes.shape[1])
        grouped = codes.float().reshape(len(codes), -1, width)
        if steps.zero is not None:
            grouped = grouped - steps.zero.float().unsqueeze(2)
        return (grouped * steps.scale.float().unsqueeze(2)).reshape(codes.shape)

    def pack(self, codes: Tensor) -> Tensor:
        """Codes (rows, columns) int8 as (rows, columns·bits/32) int32, first column in the lowest bits.

        The layout of `compressed-tensors`' pack-quantized format: codes are stored unsigned, offset
        by 2^(bits−1), one after the other without a gap (3 bits straddle words). Columns are padded
        with zero bits to whole words.
        """
        if self.bits not in (4, 8):
            from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

            packed: Tensor = pack_to_int32(codes, self.bits)
            return packed
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
            from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

            codes: Tensor = unpack_from_int32(packed, self.bits, torch.Size((len(packed), columns)))
            return codes
        unsigned = packed.contiguous().view(torch.uint8)
        if self.bits == 4:
            unsigned = torch.stack((unsigned & 15, unsigned >> 4), dim=2).reshape(len(packed), -1)
        return (unsigned[:, :columns].to(torch.int16) + self.low).to(torch.int8)


class _Search:
    """The best scale of each group so far. part: (groups, rows, width) weights; importance: (groups,
    width, 1). full: (groups, rows, 1), the scale that reaches the whole range.
    """

    def __init__(self, grid: IntegerGrid, part: Tensor, importance: Tensor):
        self.grid, self.part, self.importance = grid, part, importance
        if grid.symmetric:
            self.full = part.abs().amax(dim=2, keepdim=True) / (grid.high + 0.5)
        else:  # a range that holds 0, so that the zero point is a code
            self.least = part.amin(dim=2, keepdim=True).clamp_max(0)
            most = part.amax(dim=2, keepdim=True).clamp_min(0)
            self.full = most / (grid.high - grid.low) - self.least / (grid.high - grid.low)
        self.buffer = torch.empty_like(part)
        self.error = torch.full_like(self.full, torch.inf)
        self.step = torch.zeros_like(self.full)
        self.scale, self.zero = self._at(self.step)

    def _at(self, step: Tensor) -> tuple[Tensor, Tensor | None]:
        clip = 1.0 - step * ((1.0 - _LEAST) / _STEPS)
        scale = (self.full * clip).clamp_min(torch.finfo(self.grid.dtype).tiny).to(self.grid.dtype)
        if self.grid.symmetric:
            return scale, None
        zero = (self.grid.low - self.least * clip / scale.float()).round_()
        return scale, zero.clamp_(self.grid.low, self.grid.high)

    def try_step(self, step: Tensor) -> None:
        """Keep the clip `step` (of each group) where it is better than the best so far."""
        scale, zero = self._at(step)
        exact = scale.float()
        torch.mul(self.part, exact.reciprocal(), out=self.buffer)
        self.grid.snap_(self.buffer, zero)
        self.buffer.mul_(exact).sub_(self.part).square_()
        error = self.buffer @ self.importance  # (groups, rows, 1)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.step = torch.where(better, step, self.step)
        self.scale = torch.where(better, scale, self.scale)
        if zero is not None and self.zero is not None:
            self.zero = torch.where(better, zero, self.zero)
