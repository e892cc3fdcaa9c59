"""`onggi quantize` with one thing more, which bench/effort.py tries: scales fitted anew once the codes are known.

For a row w of a matrix, its codes q_g in each group and second moments H of the inputs, the scales s that make
(w − Σ s_g q_g)ᵀ H (w − Σ s_g q_g) least solve A s = b with A_gh = q_gᵀ H q_h and b_g = q_gᵀ H w.

    python bench/parts/effort_refit.py MODEL --text … --out DIR     (options of onggi quantize)
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch
from torch import Tensor

from onggi import cli
from onggi.grids import Steps
from onggi.quantize import solver

_ROWS = 64  # rows whose systems are solved at a time
_solve = solver.solve


def refitted(weight: Tensor, moments: Tensor, grid: Any, **options: Any) -> solver.Solution:
    """As `solver.solve`, its scales fitted to its codes; rounded to what is stored, kept where they lower the error."""
    found = _solve(weight, moments, grid, **options)
    if not bool((moments.diagonal() > 0).any()):
        return found
    scales = found.steps.scale.float().clone()
    rows, groups = scales.shape
    levels = grid.decode(found.codes, Steps(torch.ones_like(scales), found.steps.zero))
    for start in range(0, rows, _ROWS):
        part = slice(start, start + _ROWS)
        # (rows, groups, columns): a group's levels where it stands, 0 elsewhere.
        count = len(levels[part])
        spread = torch.zeros(count, groups, groups, levels.shape[1] // groups)
        each = levels[part].reshape(count, groups, -1)
        spread[:, torch.arange(groups), torch.arange(groups)] = each
        spread = spread.reshape(count, groups, -1)
        through = spread @ moments
        a = through @ spread.transpose(1, 2)
        b = (through @ weight[part].float().unsqueeze(2)).squeeze(2)
        a.diagonal(dim1=1, dim2=2).add_(1e-4 * a.diagonal(dim1=1, dim2=2).mean(1, keepdim=True) + 1e-20)
        scales[part] = torch.linalg.solve(a, b)
    scales = torch.where(scales > 0, scales, found.steps.scale.float()).to(found.steps.scale.dtype)
    steps = Steps(scales, found.steps.zero)
    decoded = [grid.decode(found.codes, one) for one in (found.steps, steps)]
    before, after = solver._relative_errors(weight.float(), decoded, moments)
    return dataclasses.replace(found, steps=steps, error=after) if after < before else found


if __name__ == "__main__":
    solver.solve = refitted
    sys.exit(cli.main(["quantize", *sys.argv[1:]]))
