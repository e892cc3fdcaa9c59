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
# Rows on which the outcome is set against rounding: all of a small matrix, evenly spaced ones of a large.
_SAMPLE = 256


@dataclass(frozen=True)
class Solution:
    """codes: (rows, columns) int8. scales: (rows, groups). error: relative output error on H,
    Σ (w − ŵ)ᵀH(w − ŵ) / Σ wᵀHw, of this solution; rounding_error: the same of plain rounding. Both
    over at most a few hundred rows, which tell as much as all of them. damping: the one used.
    """

    codes: Tensor
    scales: Tensor
    error: float
    rounding_error: float
    damping: float


def round_to_nearest(weight: Tensor, grid: IntegerGrid) -> tuple[Tensor, Tensor]:
    """Codes and scales of `weight` (rows, columns) by rounding alone, the clip searched on the weights."""
    scales = grid.fit(weight)
    return grid.round(weight, scales), scales


def factor(moments: Tensor, damping: float) -> tuple[Tensor, float]:
    """U (columns, columns), upper, with H⁻¹ = UᵀU for H = moments + damping·mean(diag)·I; and the damping.

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
            return inverse.flip(0, 1).contiguous(), damping
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
        return Solution(rounded, scales, 0.0, 0.0, damping)
    order = torch.argsort(diagonal, descending=True, stable=True)
    ordered = moments[order][:, order]
    upper, damping = factor(ordered, damping)
    # Columns as rows: one column of the matrix is then contiguous.
    work = weight.T[order].contiguous()  # (columns, rows)
    group = order // grid.width(columns)
    steps = scales.float().T.contiguous()  # (groups, rows)
    codes = torch.empty_like(work)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        block, errors = work[start:stop], torch.empty_like(work[start:stop])
        factors = upper[start:stop, start:stop]
        steps_here = steps[group[start:stop]]  # (block, rows)
        columns_here = zip(block, steps_here, codes[start:stop], errors, factors, strict=True)
        pivots = factors.diagonal().tolist()
        for j, (column, step, code, error, row) in enumerate(columns_here):
            torch.div(column, step, out=code)
            code.round_().clamp_(grid.low, grid.high)
            torch.addcmul(column, code, step, value=-1, out=error)
            error.div_(pivots[j])
            block[j + 1 :].addr_(row[j + 1 :], error, alpha=-1)
        if stop < columns:
            work[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    fed = torch.empty_like(codes)
    fed[order] = codes
    result = fed.T.to(torch.int8).contiguous()
    result[:, dead] = rounded[:, dead]
    sample = slice(None, None, -(-len(weight) // _SAMPLE))
    originals = weight[sample]
    error, plain = _relative_errors(
        originals,
        [grid.decode(found[sample], scales[sample]) for found in (result, rounded)],
        moments,
    )
    if not error <= plain:
        return Solution(rounded, scales, plain, plain, damping)
    return Solution(result, scales, error, plain, damping)


def _relative_errors(weight: Tensor, decoded: list[Tensor], moments: Tensor) -> list[float]:
    """Σ (w − ŵ)ᵀH(w − ŵ) / Σ wᵀHw over rows, for each of `decoded`."""
    vectors = torch.cat([weight, *(weight - values for values in decoded)])
    each = torch.linalg.vecdot(vectors @ moments, vectors).reshape(len(decoded) + 1, -1)
    energy, *errors = each.sum(dim=1, dtype=torch.float64).tolist()
    return [error / max(energy, 1e-30) for error in errors]
