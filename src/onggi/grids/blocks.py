"""The block grids of GGUF, which every llama.cpp reads: a weight is `scale · level − offset`.

A group of 16 or 32 neighbouring weights shares a scale, and in some types an offset. In the older types
(Q4_0 … Q8_0, IQ4_NL) these are stored as they are, in fp16. The others gather the groups of 256 weights
into a block with one fp16 scale, of which each group's is a small multiple (4, 6 or 8 bits); offsets
likewise. IQ4's sixteen levels are unevenly spaced, dense near 0 where the weights are.

`fit` finds what is stored by the weighted error Σ importance·(w − ŵ)²: scales (and offsets) of each group
first, from several starts, each refined by least squares for the codes it gives; then, where there are two
levels, the scale of scales, the neighbours of each small multiple, and least squares again for the scale
of scales. What is then rounded against is exactly what the file holds.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from . import packing
from .steps import Steps

# Shares of a group's range that the search starts from. A finer search wins little: least squares moves on.
_CLIPS = (1.0, 0.92, 0.84, 0.76, 0.66, 0.55)
# Weights of one step of the search; its buffers stay in a core's cache.
_CHUNK = 1 << 17
_TINY = 2.0**-24  # the smallest number of fp16
_LARGEST = 65504.0
# The levels of IQ4_NL and IQ4_XS.
UNEVEN = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class BlockGrid:
    """name: the type's in GGUF. bits: of a code. group: weights that share a scale. block: weights of a stored
    block, and bytes its size. low, high: the least and largest level. offset: whether groups have one.
    multiples: the least and the largest code of a group's scale, None where it is stored itself. table:
    levels that are no integers in a row.
    """

    name: str
    bits: int
    group: int
    block: int
    bytes: int
    low: int
    high: int
    pack_block: packing.Pack
    offset: bool = False
    multiples: tuple[int, int] | None = None
    table: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float16

    @property
    def bits_per_weight(self) -> float:
        """With its share of scales."""
        return 8 * self.bytes / self.block

    def width(self, columns: int) -> int:
        """Columns that share a scale; ValueError where rows are not made of whole blocks."""
        if columns % self.block:
            raise ValueError(
                f"{columns} input columns are not a multiple of {self.name}'s block of {self.block}"
            )
        return self.group

    def fit(self, weight: Tensor, importance: Tensor | None = None, *, search: bool = True) -> Steps:
        """What is stored for `weight` (rows, columns), its columns as important as `importance` (columns,)
        says. Without `search` the whole range of each group is kept.
        """
        columns = weight.shape[1]
        self.width(columns)
        if importance is None:
            importance = weight.new_ones(columns)
        importance = importance.float()
        importance = importance / importance.mean().clamp_min(1e-30)
        step = max(1, _CHUNK // columns)
        found = [
            self._fit(weight[start : start + step].float(), importance, search)
            for start in range(0, len(weight), step)
        ]
        return self._steps(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _fit(self, part: Tensor, importance: Tensor, search: bool) -> tuple[Tensor, ...]:
        groups = _Groups(self, part, importance)
        groups.search(_CLIPS if search and self.bits < 6 else (1.0,))
        if not self.multiples:
            stored: tuple[Tensor, ...] = (groups.scale, *(() if groups.offset is None else (-groups.offset,)))
            return tuple(one.T.to(self.dtype) for one in stored)
        return _Nested(groups).found(2 if search else 0)

    def _steps(self, *stored: Tensor) -> Steps:
        """The scale and zero of every group, from what is stored."""
        scale, offset = self._values(stored)
        return Steps(scale, None if offset is None else offset / scale, stored)

    def _values(self, stored: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """Scales and offsets (rows, groups), fp32, as llama.cpp computes them."""
        if not self.multiples:
            return stored[0].float(), -stored[1].float() if self.offset else None
        of_block = self.block // self.group
        scale = stored[0].float().repeat_interleave(of_block, 1) * stored[-2 if self.offset else -1].float()
        if not self.offset:
            return scale, None
        return scale, stored[1].float().repeat_interleave(of_block, 1) * stored[3].float()

    def snap_(self, levels: Tensor, zero: Tensor | None) -> None:
        """Move each of `levels` (weights over their scale) to the nearest there is, in place."""
        if self.table:
            levels.copy_(_nearest(self.table, levels.device)[_place(levels, self.table)])
        elif zero is None:
            levels.round_().clamp_(self.low, self.high)
        else:
            levels.add_(zero).round_().clamp_(self.low, self.high).sub_(zero)

    def codes(self, levels: Tensor, steps: Steps) -> Tensor:
        """Codes (rows, columns), int8, of levels: places in the table, or the levels counted from their zero."""
        if self.table:
            return _codes(self.table, levels.device)[_place(levels, self.table)]
        if steps.zero is None:
            return levels.to(torch.int8)
        grouped = levels.reshape(len(levels), -1, self.group) + steps.zero.unsqueeze(2)
        return grouped.round_().to(torch.int8).reshape(levels.shape)

    def round(self, weight: Tensor, steps: Steps) -> Tensor:
        """Codes (rows, columns), int8: the nearest grid point of each weight."""
        grouped = weight.float().reshape(len(weight), -1, self.group) / steps.scale.unsqueeze(2)
        self.snap_(grouped, None if steps.zero is None else steps.zero.unsqueeze(2))
        return self.codes(grouped.reshape(weight.shape), steps)

    def decode(self, codes: Tensor, steps: Steps) -> Tensor:
        """Values (rows, columns), fp32, to the bit those that llama.cpp makes of the packed codes."""
        scale, offset = self._values(steps.stored)
        levels = _tensor(self.table, scale)[codes.long()] if self.table else codes.float()
        grouped = levels.reshape(len(codes), -1, self.group) * scale.unsqueeze(2)
        if offset is not None:
            grouped -= offset.unsqueeze(2)
        return grouped.reshape(codes.shape)

    def pack(self, codes: Tensor, steps: Steps) -> Tensor:
        """The rows as they lie in a file: (rows, columns / block · bytes) uint8."""
        rows, columns = codes.shape
        blocks = rows * columns // self.block
        unsigned = codes.to(torch.int16)
        if not self.table and self.low < 0 and self.bits < 8:
            unsigned = unsigned - self.low
        pieces = self.pack_block(
            unsigned.to(torch.uint8).reshape(blocks, self.block),
            [one.reshape(blocks, -1) for one in steps.stored],
        )
        return torch.cat(pieces, dim=1).reshape(rows, -1)


def _tensor(values: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)


def _place(levels: Tensor, table: tuple[int, ...]) -> Tensor:
    """Where a level stands among all half integers of the table's range: looking up what is next to each of
    these is many times faster than searching the table.
    """
    return (levels * 2).round_().sub_(2 * table[0]).clamp_(0, 2 * (table[-1] - table[0])).int()


@functools.cache
def _codes(table: tuple[int, ...], device: torch.device) -> Tensor:
    """For each half integer of the table's range which of its levels is nearest."""
    halves = torch.arange(2 * table[0], 2 * table[-1] + 1) / 2
    return (halves.unsqueeze(1) - torch.tensor(table)).abs().argmin(1).to(torch.int8).to(device)


@functools.cache
def _nearest(table: tuple[int, ...], device: torch.device) -> Tensor:
    """The same level itself."""
    return torch.tensor(table, dtype=torch.float32, device=device)[_codes(table, device).long()]


class _Groups:
    """Rows of weights cut into groups, and the best scale (and offset) of each so far.

    part: (width, groups, rows), so that what is of a group lies along the weights' rows and every sum over a
    group is a sum of long vectors. scale, offset, error: (groups, rows).
    """

    def __init__(self, grid: BlockGrid, part: Tensor, importance: Tensor):
        rows, columns = part.shape
        self.grid = grid
        self.part = part.T.reshape(columns // grid.group, grid.group, rows).transpose(0, 1).contiguous()
        self.importance = importance.reshape(-1, grid.group).T.unsqueeze(2)  # (width, groups, 1)
        self.levels, self.buffer = torch.empty_like(self.part), torch.empty_like(self.part)
        self.error = torch.full_like(self.part[0], torch.inf)
        self.scale = torch.zeros_like(self.error)
        self.offset = torch.zeros_like(self.error) if grid.offset else None

    def search(self, clips: tuple[float, ...]) -> None:
        """The best of all starts, each with a step of least squares, and two more for the best."""
        for scale, offset in self._starts(clips):
            self._try(scale, offset)
            self._try(*self._refitted())
        for _ in range(2):
            self.snap(self.scale, self.offset)
            self._try(*self._refitted())

    def _starts(self, clips: tuple[float, ...]) -> list[tuple[Tensor, Tensor | None]]:
        grid = self.grid
        least, most = self.part.amin(0), self.part.amax(0)
        if grid.offset:
            if grid.multiples:  # offsets have no sign: the range must hold 0
                least = least.clamp_max(0)
            span = (most - least) / (grid.high - grid.low)
            middle = (most + least) / 2
            found = [(span * clip, -(middle + (least - middle) * clip)) for clip in clips]
            if grid.multiples:
                found = [(scale, offset.clamp_min(0)) for scale, offset in found]
            return list(found)
        extreme = torch.where(-least > most, least, most)
        if -grid.low == grid.high:
            return [(extreme.abs() * (clip / grid.high), None) for clip in clips]
        # The side with one level more takes the largest weight, or the other side does.
        low, high = (grid.table[0], grid.table[-1]) if grid.table else (grid.low, grid.high)
        shares = [clip / low for clip in clips]
        shares += [clip / high for clip in clips[::2]] if len(clips) > 1 else []
        return [(extreme * share, None) for share in shares]

    def snap(self, scale: Tensor, offset: Tensor | None) -> None:
        """Levels of the weights, counted from the offset."""
        if offset is None:
            torch.mul(self.part, scale.reciprocal(), out=self.levels)
        else:
            torch.add(self.part, offset, out=self.levels).mul_(scale.reciprocal())
        self.grid.snap_(self.levels, None)

    def errors(self, scale: Tensor, offset: Tensor | None) -> Tensor:
        """Weighted errors of the levels at hand under a scale."""
        torch.mul(self.levels, scale, out=self.buffer)
        if offset is not None:
            self.buffer.sub_(offset)
        return self._weighted(self.buffer.sub_(self.part).square_())

    def _weighted(self, values: Tensor) -> Tensor:
        """Sums over each group, weighted; `values` is the buffer, which is overwritten."""
        return values.mul_(self.importance).sum(0)

    def _try(self, scale: Tensor, offset: Tensor | None) -> None:
        scale = _away_from_zero(scale)
        if not self.grid.multiples:  # as they are stored
            scale = _half(scale)
            offset = None if offset is None else _half(offset)
        self.snap(scale, offset)
        error = self.errors(scale, offset)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.scale = torch.where(better, scale, self.scale)
        if self.offset is not None and offset is not None:
            self.offset = torch.where(better, offset, self.offset)

    def sums(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Weighted sums over each group of q², q, 1, wq and w, where q are the levels at hand."""
        qq = self._weighted(torch.mul(self.levels, self.levels, out=self.buffer))
        wq = self._weighted(torch.mul(self.levels, self.part, out=self.buffer))
        q = self._weighted(self.buffer.copy_(self.levels))
        w = self._weighted(self.buffer.copy_(self.part))
        return qq, q, self.importance.sum(0).expand_as(qq), wq, w

    def _refitted(self) -> tuple[Tensor, Tensor | None]:
        """The scale and offset of least error for the levels at hand."""
        if not self.grid.offset:
            qq = self._weighted(torch.mul(self.levels, self.levels, out=self.buffer))
            wq = self._weighted(torch.mul(self.levels, self.part, out=self.buffer))
            return wq / qq.clamp_min(1e-30), None
        qq, q, one, wq, w = self.sums()
        determinant = qq * one - q * q
        scale = (wq * one - w * q) / determinant.clamp_min(1e-20)
        offset = (scale * q - w) / one.clamp_min(1e-30)
        if self.grid.multiples:
            alone = (offset < 0) | (scale <= 0)
            scale = torch.where(alone, (wq / qq.clamp_min(1e-30)).clamp_min(0), scale)
            offset = torch.where(alone, 0.0, offset)
        return scale, offset


class _Nested:
    """Scales of scales: each group's is a small multiple of its block's, and so are offsets."""

    def __init__(self, groups: _Groups):
        grid = groups.grid
        assert grid.multiples
        self.groups, self.grid = groups, grid
        self.least, self.most = grid.multiples
        self.of_block = grid.block // grid.group
        signed = self.least < 0
        scales = self._by_block(groups.scale)
        if signed:
            at = scales.abs().argmax(1, keepdim=True)
            whole = scales.gather(1, at) / self.least
        else:
            whole = scales.amax(1, keepdim=True) / self.most
        self.d = _half(_away_from_zero(whole))
        self.c = self._within(scales / self.d)
        self.dmin: Tensor | None = None
        self.m: Tensor | None = None
        if groups.offset is not None:
            offsets = self._by_block(groups.offset)
            self.dmin = _half(offsets.amax(1, keepdim=True) / self.most)
            self.m = (offsets / self.dmin.clamp_min(_TINY)).round_().clamp_(0, self.most)
        self.error = self._errors(self.d, self.c, self.dmin, self.m)

    def _by_block(self, values: Tensor) -> Tensor:
        """(groups, rows) → (blocks, groups of a block, rows)."""
        return values.reshape(-1, self.of_block, values.shape[1])

    def _within(self, multiples: Tensor) -> Tensor:
        """Whole multiples that there are, none of them 0: a group of no scale could not be solved for."""
        c = multiples.round().clamp_(self.least, self.most)
        return torch.where(c == 0, torch.where(multiples < 0, max(self.least, -1), 1).to(c.dtype), c)

    def _errors(self, d: Tensor, c: Tensor, dmin: Tensor | None, m: Tensor | None) -> Tensor:
        """Errors of each group, (blocks, groups of a block, rows); its levels are then at hand."""
        scale = (d * c).reshape(self.groups.scale.shape)
        offset = None if dmin is None or m is None else (dmin * m).reshape(scale.shape)
        self.groups.snap(scale, offset)
        return self._by_block(self.groups.errors(scale, offset))

    def found(self, turns: int) -> tuple[Tensor, ...]:
        """What is stored: (rows, blocks) fp16 each, then (rows, groups) int8 each."""
        for _ in range(turns):
            self._neighbours()
            self._least_squares()
        halves = [self.d] if self.dmin is None else [self.d, self.dmin]
        codes = [self.c] if self.m is None else [self.c, self.m]
        return (
            *(one.squeeze(1).T.to(torch.float16) for one in halves),
            *(one.flatten(0, 1).T.to(torch.int8) for one in codes),
        )

    def _neighbours(self) -> None:
        """Each group's multiples moved by one, where that is better."""
        if self.most > 63:
            return  # steps of less than a percent
        moves = [(i, j) for i in (0, -1, 1) for j in ((0, -1, 1) if self.m is not None else (0,)) if i or j]
        for i, j in moves:
            c = self._within(self.c + i)
            m = None if self.m is None else (self.m + j).clamp(0, self.most)
            error = self._errors(self.d, c, self.dmin, m)
            better = error < self.error
            self.error = torch.where(better, error, self.error)
            self.c = torch.where(better, c, self.c)
            if m is not None and self.m is not None:
                self.m = torch.where(better, m, self.m)

    def _least_squares(self) -> None:
        """The block's scales that are best for the codes at hand, where they are better once rounded to fp16."""
        self._errors(self.d, self.c, self.dmin, self.m)  # for its levels
        qq, q, one, wq, w = map(self._by_block, self.groups.sums())
        a, p = (self.c * self.c * qq).sum(1, keepdim=True), (self.c * wq).sum(1, keepdim=True)
        dmin: Tensor | None = None
        if self.m is None:
            d = p / a.clamp_min(1e-30)
        else:
            b = (self.c * self.m * q).sum(1, keepdim=True)
            e, r = (self.m * self.m * one).sum(1, keepdim=True), (self.m * w).sum(1, keepdim=True)
            determinant = a * e - b * b
            solvable = determinant > 1e-6 * a * e
            d = torch.where(solvable, (p * e - b * r) / determinant.clamp_min(1e-30), p / a.clamp_min(1e-30))
            dmin = torch.where(solvable, (d * b - r) / e.clamp_min(1e-30), 0.0)
            alone = (dmin < 0) | (d <= 0)
            d = torch.where(alone, (p / a.clamp_min(1e-30)).clamp_min(0), d)
            dmin = _half(torch.where(alone, 0.0, dmin))
        d = _half(_away_from_zero(d))
        error = self._errors(d, self.c, dmin, self.m)
        better = error.sum(1, keepdim=True) < self.error.sum(1, keepdim=True)
        self.error = torch.where(better, error, self.error)
        self.d = torch.where(better, d, self.d)
        if dmin is not None and self.dmin is not None:
            self.dmin = torch.where(better, dmin, self.dmin)


def _away_from_zero(scale: Tensor) -> Tensor:
    """No scale is 0, so that every weight has a level."""
    return torch.where(scale.abs() < _TINY, _TINY, scale)


def _half(values: Tensor) -> Tensor:
    """Rounded to fp16, never to infinity."""
    return values.clamp(-_LARGEST, _LARGEST).to(torch.float16).float()


BLOCKS: dict[str, BlockGrid] = {
    grid.name: grid
    for grid in (
        BlockGrid("Q8_0", 8, 32, 32, 34, -127, 127, packing.q8_0),
        BlockGrid("Q4_0", 4, 32, 32, 18, -8, 7, packing.nibbles),
        BlockGrid("Q4_1", 4, 32, 32, 20, 0, 15, packing.nibbles, offset=True),
        BlockGrid("Q5_0", 5, 32, 32, 22, -16, 15, packing.five),
        BlockGrid("Q5_1", 5, 32, 32, 24, 0, 31, packing.five, offset=True),
        BlockGrid("IQ4_NL", 4, 32, 32, 18, -127, 113, packing.nibbles, table=UNEVEN),
        BlockGrid("IQ4_XS", 4, 32, 256, 136, -127, 113, packing.iq4_xs, multiples=(-32, 31), table=UNEVEN),
        BlockGrid("Q2_K", 2, 16, 256, 84, 0, 3, packing.q2_k, offset=True, multiples=(0, 15)),
        BlockGrid("Q3_K", 3, 16, 256, 110, -4, 3, packing.q3_k, multiples=(-32, 31)),
        BlockGrid("Q4_K", 4, 32, 256, 144, 0, 15, packing.q4_k, offset=True, multiples=(0, 63)),
        BlockGrid("Q5_K", 5, 32, 256, 176, 0, 31, packing.q5_k, offset=True, multiples=(0, 63)),
        BlockGrid("Q6_K", 6, 16, 256, 210, -32, 31, packing.q6_k, multiples=(-128, 127)),
    )
}
"""The types that onggi writes, by GGUF's names."""
