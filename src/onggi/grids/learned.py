"""A quantised matrix that computes and can be trained: its values made from codes and steps, with gradients for these.

What is trained is how far each scale has moved as a share of itself, so that one learning rate serves matrices of
any size. The forward pass computes with what would be stored (scales rounded to their dtype, zeros to integers),
and the gradient passes the rounding by as if it were not there (straight-through, Bengio et al., arXiv 1308.3432): what
is measured while it is trained is what the file will hold. Codes stay as they are, or are rounded anew in each pass
from numbers that are trained too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .integer import IntegerGrid
from .steps import Grid, Steps

# How many steps of the grid a zero, or a weight that is rounded anew, moves where a scale would move by its own size.
_ZERO, _LEVEL = 16.0, 4.0
# How near to the middle between two grid points a weight may begin: nearer, any step would tip it.
_NEAR = 0.49


class Learned(nn.Module):
    """`codes` (rows, columns) of `grid` under `steps`, as values of `shape` (by default the same) when it is called.

    Its parameters: `scale` (rows, groups), how far each scale moved; `zero`, the same of zeros where the grid has
    them; and after `free`, `levels` (rows, columns), which the codes are rounded from.
    """

    def __init__(self, grid: Grid, codes: Tensor, steps: Steps, shape: tuple[int, ...] | None = None):
        super().__init__()
        self.grid, self.shape = grid, shape or tuple(codes.shape)
        self.codes: Tensor
        self.first_scale: Tensor
        self.first_zero: Tensor | None
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("first_scale", steps.scale, persistent=False)
        self.register_buffer("first_zero", steps.zero, persistent=False)
        self.scale = nn.Parameter(torch.zeros(steps.scale.shape, device=steps.scale.device))
        self.zero = None if steps.zero is None else nn.Parameter(torch.zeros_like(self.scale))
        self.levels: nn.Parameter | None = None

    def free(self, weight: Tensor) -> None:
        """Have the codes trained too, from where they are; weight: the matrix (rows, columns) that they stand for.

        A weight whose code is not its nearest (error feedback took it elsewhere) begins at the edge of the code's
        cell on its own side, and so is the first to tip. What was trained so far is kept. Raises `ValueError` for a grid
        that is not of integers.
        """
        if not isinstance(self.grid, IntegerGrid):
            raise ValueError("only integers are rounded anew")
        codes, steps = self.stored()
        self.codes, self.first_scale, self.first_zero = codes, steps.scale, steps.zero
        nn.init.zeros_(self.scale)
        self.zero = None  # a level is what a code means; the zero only says which codes there are
        level = self.grid.decode(codes, Steps(torch.ones_like(self.first_scale), self.first_zero))
        exact = _grouped(weight.float(), self.first_scale) / self.first_scale.float().unsqueeze(2)
        offset = (exact.reshape(level.shape) - level).clamp_(-_NEAR, _NEAR)
        self.levels = nn.Parameter(level.add_(offset).div_(_LEVEL))

    def forward(self) -> Tensor:
        """The values, fp32."""
        scale = _stored(self.first_scale.float() * (1 + self.scale), self.first_scale.dtype)
        zero = self.first_zero
        if self.levels is not None:
            levels = _Snapped.apply(self.levels * _LEVEL, self.grid, zero, self.first_scale)
            values = _grouped(levels, scale) * scale.unsqueeze(2)
            return values.reshape(self.shape)
        moved = None
        if self.zero is not None and zero is not None:
            moved = zero.float() + _ZERO * self.zero
            zero = self._whole(moved)
        values = _Decoded.apply(scale, moved, zero, self.codes, self.grid)
        return values.reshape(self.shape)

    def _whole(self, zero: Tensor) -> Tensor:
        assert isinstance(self.grid, IntegerGrid)
        return zero.detach().round().clamp_(self.grid.low, self.grid.high).to(torch.int8)

    @torch.no_grad()
    def stored(self) -> tuple[Tensor, Steps]:
        """Codes and steps as they are stored now."""
        dtype, zero = self.first_scale.dtype, self.first_zero
        scale = _stored(self.first_scale.float() * (1 + self.scale), dtype).to(dtype)
        if self.zero is not None and zero is not None:
            zero = self._whole(zero.float() + _ZERO * self.zero)
        steps = Steps(scale, zero)
        if self.levels is None:
            return self.codes, steps
        levels = _snapped(self.levels * _LEVEL, self.grid, zero, scale)
        return self.grid.codes(levels, steps), steps

    def right_inverse(self, _value: Tensor) -> tuple[()]:
        """Nothing: `torch.nn.utils.parametrize` asks what a parameter becomes, and it is not kept."""
        return ()


def _grouped(matrix: Tensor, scale: Tensor) -> Tensor:
    """(rows, columns) as (rows, groups, width)."""
    return matrix.reshape(*scale.shape, -1)


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Positive values as `dtype` holds them, in fp32; the gradient as if they had not been rounded."""
    rounded = value.detach().clamp_min(torch.finfo(dtype).tiny).to(dtype).float()
    return value + (rounded - value.detach())


def _snapped(levels: Tensor, grid: Grid, zero: Tensor | None, scale: Tensor) -> Tensor:
    found = _grouped(levels.detach().clone(), scale)
    grid.snap_(found, None if zero is None else zero.float().unsqueeze(2))
    return found.reshape(levels.shape)


class _Decoded(torch.autograd.Function):
    """Values of codes, which are all that is kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, scale: Tensor, moved: Tensor | None, zero: Tensor | None, codes: Tensor, grid: Grid
    ) -> Tensor:
        ctx.grid = grid
        ctx.save_for_backward(scale, zero, codes)
        return grid.decode(codes, Steps(scale, zero))

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        scale, zero, codes = ctx.saved_tensors
        levels = ctx.grid.decode(codes, Steps(torch.ones_like(scale), zero))
        of_scale = torch.linalg.vecdot(_grouped(outer[0], scale), _grouped(levels, scale))
        of_zero = None
        if ctx.needs_input_grad[1]:
            of_zero = -_grouped(outer[0], scale).sum(2) * scale
        return of_scale, of_zero, None, None, None


class _Snapped(torch.autograd.Function):
    """The nearest levels there are; the gradient passes where a level is not beyond the last of them."""

    @staticmethod
    def forward(ctx: Any, levels: Tensor, grid: Grid, zero: Tensor | None, scale: Tensor) -> Tensor:
        found = _snapped(levels, grid, zero, scale)
        ctx.save_for_backward((levels - found).abs_() <= 0.5 + 1e-4)
        return found

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return outer[0] * inside, None, None, None
