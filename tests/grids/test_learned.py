"""A quantised matrix that is trained: it begins as its grid decodes it, learns, and stores what it computes with."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import parametrize

from onggi.grids import Float8Grid, Grid, IntegerGrid, Learned

GRIDS = [
    IntegerGrid(4, 32),
    IntegerGrid(2, None),
    IntegerGrid(3, 64, symmetric=False),
    IntegerGrid(8, None, dtype=torch.float16),
    Float8Grid(),
]


def matrix(rows: int = 12, columns: int = 128) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)) + 0.2


def learned(grid: Grid, weight: torch.Tensor) -> Learned:
    steps = grid.fit(weight)
    return Learned(grid, grid.round(weight, steps), steps)


@pytest.mark.parametrize("grid", GRIDS)
def test_it_begins_as_the_grid_decodes_it_and_stores_what_it_computes(grid: Grid) -> None:
    weight = matrix()
    steps = grid.fit(weight)
    codes = grid.round(weight, steps)
    made = Learned(grid, codes, steps, (2, 6, 128))
    assert torch.equal(made().flatten(0, 1), grid.decode(codes, steps))
    kept = made.stored()
    assert torch.equal(kept[0].float(), codes.float()) and torch.equal(kept[1].scale, steps.scale)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    codes, moved = made.stored()
    assert moved.scale.dtype == grid.dtype and not torch.equal(moved.scale, steps.scale)
    if moved.zero is not None:
        assert moved.zero.dtype == torch.int8 and not torch.equal(moved.zero, steps.zero)
        assert int(moved.zero.min()) >= -4 and int(moved.zero.max()) <= 3
    assert torch.equal(made().flatten(0, 1), grid.decode(codes, moved))


@pytest.mark.parametrize("grid", GRIDS)
def test_gradients_are_those_of_the_plain_computation(grid: Grid) -> None:
    weight = matrix()
    made, outer = learned(grid, weight), torch.randn(12, 128)
    (made() * outer).sum().backward()
    steps = grid.fit(weight)
    scale = steps.scale.float().requires_grad_()
    zero = None if steps.zero is None else steps.zero.float().requires_grad_()
    codes = grid.round(weight, steps).float().reshape(*scale.shape, -1)
    values = (codes if zero is None else codes - zero.unsqueeze(2)) * scale.unsqueeze(2)
    (values.reshape(weight.shape) * outer).sum().backward()
    assert scale.grad is not None and made.scale.grad is not None
    # By how much of itself a scale moves.
    torch.testing.assert_close(made.scale.grad, scale.grad * scale.detach(), rtol=1e-4, atol=1e-5)
    if zero is not None:
        assert made.zero is not None and zero.grad is not None and made.zero.grad is not None
        ratio = made.zero.grad / zero.grad
        torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0, 0])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_rounded_anew_towards_what_is_wanted(symmetric: bool) -> None:
    grid, weight = IntegerGrid(3, 32, symmetric=symmetric), matrix()
    steps = grid.fit(weight)
    # As error feedback may leave them: some a step away from the nearest.
    codes = (grid.round(weight, steps) + (torch.rand(weight.shape) < 0.2)).clamp(max=3).to(torch.int8)
    made = Learned(grid, codes, steps)
    made.free(weight)
    assert torch.equal(made.stored()[0], codes)
    torch.testing.assert_close(made(), grid.decode(codes, steps))
    before = float((made() - weight).square().sum())
    optimizer = torch.optim.AdamW(made.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(40):
        optimizer.zero_grad()
        (made() - weight).square().sum().backward()
        optimizer.step()
    found, moved = made.stored()
    assert not torch.equal(found, codes) and int(found.min()) >= -4 and int(found.max()) <= 3
    torch.testing.assert_close(grid.decode(found, moved), made().detach())
    assert float((made() - weight).square().sum()) < 0.8 * before


def test_floats_are_not_rounded_anew() -> None:
    with pytest.raises(ValueError, match="only integers"):
        learned(Float8Grid(), matrix()).free(matrix())


def test_it_stands_for_a_module_s_weight() -> None:
    weight, module = matrix(), torch.nn.Linear(128, 12, bias=False)
    made = learned(GRIDS[0], weight)
    module.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    parametrize.register_parametrization(module, "weight", made, unsafe=True)
    inputs = torch.randn(3, 128)
    torch.testing.assert_close(module(inputs), inputs @ made().T)
    module(inputs).sum().backward()
    assert {name for name, p in module.named_parameters() if p.grad is not None} == {
        "parametrizations.weight.0.scale"
    }
