"""The solver against brute force, against rounding, and on inputs that break solvers."""

import itertools

import pytest
import torch

from onggi.errors import OnggiError
from onggi.grids import IntegerGrid
from onggi.quantize import solver


def problem(rows: int, columns: int, seed: int, tokens: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight matrix and the second moments of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(tokens, columns, generator=generator) @ mix
    inputs += torch.randn(tokens, 1, generator=generator)  # one direction that all share
    return weight, inputs.T @ inputs / tokens


def objective(weight: torch.Tensor, decoded: torch.Tensor, moments: torch.Tensor) -> float:
    difference = (weight - decoded).double()
    return float(((difference @ moments.double()) * difference).sum())


def test_close_to_the_brute_force_optimum_on_tiny_matrices() -> None:
    """Error feedback is greedy and need not be optimal, but it closes most of the gap that rounding leaves."""
    gaps = [brute_force(seed) for seed in range(12)]
    left = sum(found - best for best, found, _ in gaps)
    assert left <= 0.35 * sum(plain - best for best, _, plain in gaps)
    assert any(found == pytest.approx(best, rel=1e-6) for best, found, _ in gaps)


def brute_force(seed: int) -> tuple[float, float, float]:
    """Objective of the best codes, of the solver's and of rounding; all 16^4 codes of a row are tried."""
    weight, moments = problem(3, 4, seed)
    grid = IntegerGrid(4, None)
    solution = solver.solve(weight, moments, grid, damping=1e-6)
    codes = torch.tensor(list(itertools.product(range(-8, 8), repeat=4)), dtype=torch.int8)
    found = plain = best = 0.0
    for row in range(3):
        scale = solution.steps.rows(slice(row, row + 1))
        values = codes.float() * scale.scale.float()
        difference = (weight[row] - values).double()
        best += float(((difference @ moments.double()) * difference).sum(1).min())
        mine = grid.decode(solution.codes[row : row + 1], scale)
        found += objective(weight[row : row + 1], mine, moments)
        rounded = grid.decode(grid.round(weight[row : row + 1], scale), scale)
        plain += objective(weight[row : row + 1], rounded, moments)
    assert best <= found + 1e-9 <= plain + 2e-9
    return best, found, plain


@pytest.mark.parametrize("group", [None, 128, 64, 32])
@pytest.mark.parametrize("seed", range(3))
def test_never_worse_than_rounding_in_its_own_objective(group: int | None, seed: int) -> None:
    weight, moments = problem(40, 256, seed)
    grid = IntegerGrid(4, group)
    solution = solver.solve(weight, moments, grid)
    decoded = grid.decode(solution.codes, solution.steps)
    rounded = grid.decode(grid.round(weight, solution.steps), solution.steps)
    mine, plain = objective(weight, decoded, moments), objective(weight, rounded, moments)
    assert mine < 0.8 * plain
    energy = objective(weight, torch.zeros_like(weight), moments)
    assert solution.error == pytest.approx(mine / energy, rel=1e-3)
    assert solution.rounding_error == pytest.approx(plain / energy, rel=1e-3)


def test_independent_inputs_leave_nothing_to_feed_back() -> None:
    weight, _ = problem(8, 128, 0)
    solution = solver.solve(weight, torch.diag(torch.linspace(1, 2, 128)), IntegerGrid())
    assert torch.equal(solution.codes, IntegerGrid().round(weight, solution.steps))


def test_stacked_rows_are_solved_as_if_alone() -> None:
    weight, moments = problem(48, 128, 1)
    together = solver.solve(weight, moments, IntegerGrid())
    apart = [solver.solve(part, moments, IntegerGrid()) for part in weight.split(16)]
    assert torch.equal(together.codes, torch.cat([part.codes for part in apart]))


@pytest.mark.parametrize("size", [1, 5, 64, 257])
def test_factor_is_the_cholesky_factor_of_the_inverse(size: int) -> None:
    _, moments = problem(1, size, 2, tokens=3 * size + 5)
    upper, damping = solver.factor(moments, 0.01)
    assert damping == 0.01
    damped = moments + 0.01 * moments.diagonal().mean() * torch.eye(size)
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close((upper.T @ upper) @ damped, torch.eye(size), rtol=0, atol=2e-3)


def test_dead_inputs_are_rounded_to_nearest() -> None:
    weight, moments = problem(8, 128, 3)
    dead = torch.arange(128) % 7 == 0
    moments[dead] = 0
    moments[:, dead] = 0
    solution = solver.solve(weight, moments, IntegerGrid())
    rounded = IntegerGrid().round(weight, solution.steps)
    assert torch.equal(solution.codes[:, dead], rounded[:, dead])
    assert bool(torch.isfinite(solution.steps.scale).all())


def test_no_input_at_all_is_rounding() -> None:
    weight, _ = problem(4, 128, 4)
    solution = solver.solve(weight, torch.zeros(128, 128), IntegerGrid())
    assert torch.equal(solution.codes, IntegerGrid().round(weight, solution.steps))


def test_singular_moments_are_solved_and_nan_refused() -> None:
    weight, _ = problem(8, 128, 5)
    one = torch.randn(1, 128, generator=torch.Generator().manual_seed(0))
    solution = solver.solve(weight, one.T @ one, IntegerGrid())  # rank one
    assert solution.error <= solution.rounding_error
    broken = torch.eye(128)
    broken[3, 3] = float("nan")
    with pytest.raises(OnggiError, match="NaN or infinite"):
        solver.factor(broken, 0.01)
