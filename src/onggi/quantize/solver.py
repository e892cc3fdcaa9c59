"""Rounding with error feedback: the solver of GPTQ (Frantar et al., arXiv 2210.17323).

Rounding one column of a weight matrix makes an error in the layer's output; the columns not yet
rounded can take it up. For outputs on inputs with second moments H the best correction after
column j is known in closed form from the Cholesky factor U of H⁻¹ (H⁻¹ = UᵀU, upper):

    e = (w_j − ŵ_j) / U_jj,      w_k ← w_k − e·U_jk   for k > j.

Columns are taken in order of falling H_jj (activation order), so that the inputs that matter most
are rounded first, while the groups of the grid stay where they are in the matrix (static groups):
the file needs no permutation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import OnggiError
from ..grids import Grid, Steps
from ..models.checkpoint import finite

# Columns whose corrections are gathered before they are applied to the rest in one product.
_BLOCK = 128
# As a share of the mean of the diagonal: beyond it nothing of the second moments is left.
_MOST_DAMPING = 100.0
_NOT_FINITE = "the calibration activations hold NaN or infinite values"
# Rows on which the outcome is set against rounding: all of a small matrix, evenly spaced ones of a large.
_SAMPLE = 256


@dataclass(frozen=True)
class Solution:
    """codes: (rows, columns), as the grid stores them. steps: their scales. error: relative output error
    on H, Σ (w − ŵ)ᵀH(w − ŵ) / Σ wᵀHw, of this solution; rounding_error: the same of plain rounding.
    Both over at most a few hundred rows, which tell as much as all of them. damping: the one used.
    """

    codes: Tensor
    steps: Steps
    error: float
    rounding_error: float
    damping: float


def round_to_nearest(weight: Tensor, grid: Grid) -> tuple[Tensor, Steps]:
    """Codes and steps of `weight` (rows, columns) by rounding alone, the clip searched on the weights."""
    steps = grid.fit(weight)
    return grid.round(weight, steps), steps


def factor(moments: Tensor, damping: float) -> tuple[Tensor, float]:
    """U (columns, columns), upper, with H⁻¹ = UᵀU for H = moments + damping·mean(diag)·I; and the damping.

    One Cholesky factorisation and one triangular inverse: with J the reversal of the order,
    JHJ = LLᵀ gives U = J L⁻¹ J. Where H is not positive definite in fp32 the damping is raised
    tenfold until it is. Raises OnggiError for moments that are not finite.
    """
    if not finite(moments):
        raise OnggiError(_NOT_FINITE)
    mean = moments.diagonal().mean().clamp_min(1e-30)
    while damping <= _MOST_DAMPING:
        # No more copies at a time than must be: for a small model they are most of the memory.
        matrix = moments.flip(0, 1)
        matrix.diagonal().add_(damping * mean)
        matrix, failed = torch.linalg.cholesky_ex(matrix)
        if not int(failed):
            inverse = torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
            torch.linalg.solve_triangular(matrix, inverse, upper=False, out=inverse)
            del matrix
            return inverse.flip(0, 1), damping
        damping *= 10
    raise OnggiError(
        "the second moments are singular however much they are damped; give more --tokens or a larger --damping"
    )


def solve(
    weight: Tensor, moments: Tensor, grid: Grid, *, damping: float = 0.1, feedback: bool = True
) -> Solution:
    """Quantise `weight` (rows, columns) for inputs with second `moments` (columns, columns).

    Rows that share their inputs (query, key and value; gate and up) may be stacked. Inputs that
    calibration never saw (a zero on the diagonal) are rounded to nearest and take no part. Where
    error feedback ends worse than rounding in its own objective, or without `feedback`, it is
    rounding, with the clips that the moments' diagonal asks for.
    """
    weight = weight.float()
    diagonal = moments.diagonal()
    if not finite(diagonal):
        raise OnggiError(_NOT_FINITE)
    dead = diagonal <= 0
    if bool(dead.all()):
        codes, steps = round_to_nearest(weight, grid)
        return Solution(codes, steps, 0.0, 0.0, damping)
    steps = grid.fit(weight, diagonal.clamp_min(1e-12 * float(diagonal.max()) + 1e-30))
    rounded = grid.round(weight, steps)
    result = rounded
    if feedback:
        result, damping = _fed_back(weight, moments, grid, steps, damping)
        if bool(dead.any()):  # as bytes: not every operation knows eight-bit floats
            result.view(torch.uint8)[:, dead] = rounded.view(torch.uint8)[:, dead]
    sample = slice(None, None, -(-len(weight) // _SAMPLE))
    of_sample = steps.rows(sample)
    error, plain = _relative_errors(
        weight[sample],
        [grid.decode(found[sample], of_sample) for found in (result, rounded)],
        moments,
    )
    if not math.isfinite(plain):
        raise OnggiError("its output error on the calibration text is not finite")
    if not error <= plain:
        return Solution(rounded, steps, plain, plain, damping)
    return Solution(result, steps, error, plain, damping)


def _fed_back(
    weight: Tensor, moments: Tensor, grid: Grid, steps: Steps, damping: float
) -> tuple[Tensor, float]:
    """Codes of `weight` by error feedback, and the damping that it took."""
    columns = weight.shape[1]
    order = torch.argsort(moments.diagonal(), descending=True, stable=True)
    upper, damping = factor(moments[order][:, order], damping)
    # Columns as rows: one column of the matrix is then contiguous.
    work = weight.T[order].contiguous()  # (columns, rows)
    group = order // grid.width(columns)
    scales = steps.scale.float().T.contiguous()  # (groups, rows)
    zeros = None if steps.zero is None else steps.zero.float().T.contiguous()
    levels = torch.empty_like(work)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        block, errors = work[start:stop], torch.empty_like(work[start:stop])
        factors = upper[start:stop, start:stop]
        scales_here = scales[group[start:stop]]  # (block, rows)
        zeros_here = [None] * len(block) if zeros is None else zeros[group[start:stop]]
        columns_here = zip(block, scales_here, zeros_here, levels[start:stop], errors, factors, strict=True)
        pivots = factors.diagonal().tolist()
        for j, (column, scale, zero, level, error, row) in enumerate(columns_here):
            torch.div(column, scale, out=level)
            grid.snap_(level, zero)
            torch.addcmul(column, level, scale, value=-1, out=error)
            error.div_(pivots[j])
            block[j + 1 :].addr_(row[j + 1 :], error, alpha=-1)
        if stop < columns:
            work[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    fed = torch.empty_like(levels)
    fed[order] = levels
    return grid.codes(fed.T, steps).contiguous(), damping


def _relative_errors(weight: Tensor, decoded: list[Tensor], moments: Tensor) -> list[float]:
    """Σ (w − ŵ)ᵀH(w − ŵ) / Σ wᵀHw over rows, for each of `decoded`."""
    vectors = torch.cat([weight, *(weight - values for values in decoded)])
    each = torch.linalg.vecdot(vectors @ moments, vectors).reshape(len(decoded) + 1, -1)
    energy, *errors = each.sum(dim=1, dtype=torch.float64).tolist()
    return [error / max(energy, 1e-30) for error in errors]
