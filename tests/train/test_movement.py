"""Whether weights have left their grid, on grids that GGUF has, made here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from onggi.train.movement import Movement

GENERATOR = torch.Generator().manual_seed(0)
NORMAL = torch.randn(1500, 256, generator=GENERATOR) * 0.04


def on_grid(bits: int, block: int, symmetric: bool) -> Tensor:
    """NORMAL rounded to a grid of `block` neighbours, then to bf16, as the conversion of a GGUF leaves it."""
    blocks = NORMAL.reshape(-1, block)
    if symmetric:
        step = blocks.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        low = torch.zeros_like(step)
    else:
        low = blocks.amin(1, keepdim=True)
        step = (blocks.amax(1, keepdim=True) - low) / (2**bits - 1)
    return (((blocks - low) / step).round() * step + low).bfloat16().float().reshape(NORMAL.shape)


GRIDS = {
    "Q4_K": on_grid(4, 32, symmetric=False),
    "Q5_0": on_grid(5, 32, symmetric=True),
    "Q6_K": on_grid(6, 16, symmetric=True),
    "Q8_0": on_grid(8, 32, symmetric=True),
}


def facts(before: Tensor, after: Tensor, grid: bool = True) -> dict:
    movement = Movement()
    movement.add("linears", before, after)
    return movement.facts(grid)["linears"]


def moved(weights: Tensor, by: float) -> Tensor:
    noise = torch.randn(weights.shape, generator=torch.Generator().manual_seed(1))
    return (weights + noise * by * weights.square().mean().sqrt()).bfloat16()


@pytest.mark.parametrize("grid", GRIDS)
def test_on_the_grid_and_far_from_it(grid: str) -> None:
    weights = GRIDS[grid]
    still = facts(weights, weights)
    assert (still["moved"], still["off_grid"], still["weights"]) == (0, 0, weights.numel())
    far = facts(weights, moved(weights, 0.3))
    assert far["moved"] == pytest.approx(0.3, rel=0.02)
    assert far["off_grid"] == pytest.approx(1.0, abs=0.03)
    # A whole number of steps away is on the grid still.
    steps = weights.reshape(-1, 32).sort(1).values.diff(dim=1)
    if grid == "Q4_K":
        step = torch.where(steps > 0, steps, torch.inf).amin(1, keepdim=True)
        assert facts(weights, (weights.reshape(-1, 32) + step).reshape(weights.shape))["off_grid"] < 0.15


def test_between_the_coarser_grid_is_left_later() -> None:
    shares = {grid: facts(weights, moved(weights, 0.02))["off_grid"] for grid, weights in GRIDS.items()}
    assert list(shares.values()) == sorted(shares.values())
    assert shares["Q4_K"] < 0.4 and shares["Q8_0"] > 0.9


def test_what_a_grid_looks_like_without_knowing_it() -> None:
    coarse = facts(GRIDS["Q4_K"], moved(GRIDS["Q4_K"], 0.1))["distinct"]
    assert coarse[0] < 15 and coarse[1] > 31
    error = facts(GRIDS["Q8_0"], moved(GRIDS["Q8_0"], 0.1))["rounding"]
    assert error[0] < 0.0025 and error[1] > 0.005
    assert error[1] == pytest.approx(facts(NORMAL, NORMAL)["rounding"][0], rel=0.1)


def test_what_cannot_be_said_is_not() -> None:
    assert "off_grid" not in facts(NORMAL, moved(NORMAL, 0.1), grid=False)
    movement = Movement()
    movement.add("norms", torch.zeros(8), torch.ones(8))
    movement.add("norms", torch.zeros(4), torch.ones(4))
    movement.add("linears", torch.zeros(4, 33), torch.ones(4, 33))
    found = movement.facts(True)
    assert found["norms"] == {"weights": 12, "moved": None}
    assert found["linears"]["distinct"] == [1, 1] and "off_grid" not in found["linears"]
