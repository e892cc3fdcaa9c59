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

# Clips tried for each group: from the full range down to 40% of it.
_CLIPS = torch.linspace(1.0, 0.4, 25)
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

        Of 25 clips per group the one with the least Σ importance·(w − ŵ)² is kept; importance
        (columns,) is the diagonal of the inputs' second moments, equal weights where None.
        A group of zeros gets the smallest scale that is not zero, never NaN.
        """
        rows, columns = weight.shape
        width = self.width(columns)
        groups = columns // width
        if importance is None:
            importance = weight.new_ones(columns)
        importance = importance.float().reshape(groups, 1, width)
        tiny = torch.finfo(self.dtype).tiny
        scales = torch.empty(rows, groups, dtype=self.dtype, device=weight.device)
        step = max(1, _CHUNK // columns)
        for start in range(0, rows, step):
            # (groups, rows, width): a group's importance then is one matrix-vector product.
            part = (
                weight[start : start + step].float().reshape(-1, groups, width).transpose(0, 1).contiguous()
            )
            full = part.abs().amax(dim=2, keepdim=True) / (self.high + 0.5)
            best = torch.full_like(full, torch.inf)
            chosen = full.to(self.dtype)
            buffer = torch.empty_like(part)
            for clip in _CLIPS.tolist():
                scale = (full * clip).clamp_min(tiny).to(self.dtype)
                exact = scale.float()
                torch.div(part, exact, out=buffer)
                buffer.round_().clamp_(self.low, self.high).mul_(exact).sub_(part).square_()
                error = buffer @ importance.transpose(1, 2)  # (groups, rows, 1)
                better = error < best
                best = torch.where(better, error, best)
                chosen = torch.where(better, scale, chosen)
            scales[start : start + step] = chosen.clamp_min(tiny).squeeze(2).T
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
