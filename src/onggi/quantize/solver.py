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

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import OnggiError
from ..grids import IntegerGrid

# Columns whose corrections are gathered before they are applied to the rest in one product.
_BLOCK = 128


@dataclass(frozen=True)
class Solution:
    """codes: (rows, columns) int8. scales: (rows, groups). error: relative output error on H,
    Σ (w − ŵ)ᵀH(w − ŵ) / Σ wᵀHw, of this solution; rounding_error: the same of plain rounding.
    """

    codes: Tensor
    scales: Tensor
    error: float
    rounding_error: float


def round_to_nearest(weight: Tensor, grid: IntegerGrid) -> tuple[Tensor, Tensor]:
    """Codes and scales of `weight` (rows, columns) by rounding alone, the clip searched on the weights."""
    scales = grid.fit(weight)
    return grid.round(weight, scales), scales


def factor(moments: Tensor, damping: float) -> Tensor:
    """U (columns, columns), upper, with H⁻¹ = UᵀU for H = moments + damping·mean(diag)·I.

    One Cholesky factorisation and one triangular inverse: with J the reversal of the order,
    JHJ = LLᵀ gives U = J L⁻¹ J. Where H is not positive definite in fp32 the damping is raised
    tenfold until it is. Raises OnggiError for moments that are not finite.
    """
    if not bool(torch.isfinite(moments).all()):
        raise OnggiError("the calibration activations hold NaN or infinite values")
    size = len(moments)
    mean = moments.diagonal().mean().clamp_min(1e-30)
    reverse = moments.flip(0, 1)
    for _ in range(5):
        damped = reverse.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            identity = torch.eye(size, dtype=moments.dtype, device=moments.device)
            inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
            return inverse.flip(0, 1).contiguous()
        damping *= 10
    raise OnggiError("the second moments are singular however much they are damped")


def solve(weight: Tensor, moments: Tensor, grid: IntegerGrid, *, damping: float = 0.01) -> Solution:
    """Quantise `weight` (rows, columns) for inputs with second `moments` (columns, columns).

    Rows that share their inputs (query, key and value; gate and up) may be stacked. Inputs that
    calibration never saw (a zero on the diagonal) are rounded to nearest and take no part. Where
    error feedback ends worse than rounding in its own objective, rounding is returned.
    """
    columns = weight.shape[1]
    weight = weight.float()
    diagonal = moments.diagonal()
    dead = diagonal <= 0
    scales = grid.fit(weight, diagonal.clamp_min(1e-12 * float(diagonal.max()) + 1e-30))
    rounded = grid.round(weight, scales)
    if bool(dead.all()):
        return Solution(rounded, scales, 0.0, 0.0)
    order = torch.argsort(diagonal, descending=True, stable=True)
    ordered = moments[order][:, order]
    upper = factor(ordered, damping)
    # Columns as rows: one column of the matrix is then contiguous.
    work = weight.T[order].contiguous()  # (columns, rows)
    group = order // grid.width(columns)
    steps = scales.float().T.contiguous()  # (groups, rows)
    codes = torch.empty_like(work)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        block = work[start:stop]
        errors = torch.empty_like(block)
        for j in range(stop - start):
            row = upper[start + j, start + j : stop]
            step = steps[group[start + j]]
            code = codes[start + j]
            torch.div(block[j], step, out=code)
            code.round_().clamp_(grid.low, grid.high)
            feedback = errors[j]
            torch.addcmul(block[j], code, step, value=-1, out=feedback)
            feedback.div_(row[0])
            block[j + 1 :].addr_(row[1:], feedback, alpha=-1)
        if stop < columns:
            work[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    fed = torch.empty_like(codes)
    fed[order] = codes
    result = fed.T.to(torch.int8).contiguous()
    result[:, dead] = rounded[:, dead]
    energy = _objective(weight, moments)
    error = _objective(weight - grid.decode(result, scales), moments) / max(energy, 1e-30)
    plain = _objective(weight - grid.decode(rounded, scales), moments) / max(energy, 1e-30)
    if not error <= plain:
        return Solution(rounded, scales, plain, plain)
    return Solution(result, scales, error, plain)


def _objective(difference: Tensor, moments: Tensor) -> float:
    """Σ over rows of dᵀHd."""
    return float(torch.linalg.vecdot(difference @ moments, difference).sum(dtype=torch.float64))
