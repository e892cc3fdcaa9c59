"""The integer grid: its scales, its codes, and the bits that are stored."""

import pytest
import torch

from onggi.grids import Float8Grid, IntegerGrid, Steps


def matrix(rows: int = 24, columns: int = 256, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight[::5, ::17] *= 6  # outliers, as in real weights
    return weight


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("columns", [8, 64, 100, 1023])
def test_packing_round_trips_bit_for_bit_and_is_the_peers_layout(bits: int, columns: int) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

    grid = IntegerGrid(bits)
    generator = torch.Generator().manual_seed(columns)
    codes = torch.randint(grid.low, grid.high + 1, (7, columns), generator=generator, dtype=torch.int8)
    packed = grid.pack(codes)
    assert torch.equal(grid.unpack(packed, columns), codes)
    assert torch.equal(packed, pack_to_int32(codes, bits))
    assert torch.equal(unpack_from_int32(packed, bits, codes.shape), codes)


def test_a_zero_point_pays_where_weights_lean_to_one_side() -> None:
    weight = matrix().abs()
    errors = {}
    for symmetric in (True, False):
        grid = IntegerGrid(3, 128, symmetric=symmetric)
        steps = grid.fit(weight)
        errors[symmetric] = float((grid.decode(grid.round(weight, steps), steps) - weight).square().sum())
    assert errors[False] < 0.5 * errors[True]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 128, 32])
def test_codes_are_the_nearest_points(group: int | None, bits: int, symmetric: bool) -> None:
    grid, weight = IntegerGrid(bits, group, symmetric=symmetric), matrix() + 0.3
    steps = grid.fit(weight)
    assert steps.scale.shape == (24, 256 // (group or 256)) and steps.scale.dtype == torch.bfloat16
    codes = grid.round(weight, steps)
    decoded = grid.decode(codes, steps)
    each = steps.scale.float().repeat_interleave(group or 256, dim=1)
    for step in (-1, 1):
        other = (codes.int() + step).clamp(grid.low, grid.high)
        zero = 0 if steps.zero is None else steps.zero.int().repeat_interleave(group or 256, dim=1)
        assert bool(((decoded - weight).abs() <= ((other - zero) * each - weight).abs() + 1e-6).all())


def test_the_search_for_a_clip_beats_the_full_range() -> None:
    grid, weight = IntegerGrid(), matrix()
    full = grid.fit(weight, search=False)
    searched = (grid.decode(grid.round(weight, s := grid.fit(weight)), s) - weight).square().sum()
    plain = (grid.decode(grid.round(weight, full), full) - weight).square().sum()
    assert float(searched) < 0.95 * float(plain)


def test_importance_moves_the_scale_to_what_matters() -> None:
    grid, weight = IntegerGrid(), matrix()
    importance = torch.ones(256)
    importance[::17] = 1000.0  # the columns that hold outliers
    plain, weighted = grid.fit(weight), grid.fit(weight, importance)

    def error(scales: Steps) -> float:
        difference = grid.decode(grid.round(weight, scales), scales) - weight
        return float((difference.square() * importance).sum())

    assert error(weighted) < error(plain)


@pytest.mark.parametrize("grid", [IntegerGrid(), IntegerGrid(4, 128, symmetric=False), Float8Grid()])
def test_zeros_and_tiny_weights_never_make_nan(grid: IntegerGrid | Float8Grid) -> None:
    for weight in (torch.zeros(3, 128), torch.full((3, 128), 1e-42), torch.full((3, 128), 3e38)):
        steps = grid.fit(weight)
        decoded = grid.decode(grid.round(weight, steps), steps)
        assert bool(torch.isfinite(steps.scale).all()) and bool((steps.scale > 0).all())
        assert bool(torch.isfinite(decoded).all())


def test_floats_of_eight_bits_are_the_nearest_and_reach_the_largest_weight() -> None:
    grid, weight = Float8Grid(), matrix()
    steps = grid.fit(weight)
    decoded = grid.decode(grid.round(weight, steps), steps)
    assert float(((decoded - weight).abs() / weight.abs().clamp_min(0.05)).max()) < 2**-4 + 2**-8
    levels = weight / steps.scale.float()
    grid.snap_(levels, None)
    assert torch.equal(grid.codes(levels, steps).float() * steps.scale.float(), decoded)


def test_a_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="576 input columns"):
        IntegerGrid(4, 128).fit(torch.zeros(2, 576))


def test_searching_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, weight = IntegerGrid(), matrix(rows=301)
    whole = grid.fit(weight)
    monkeypatch.setattr("onggi.grids.integer._CHUNK", 7 * 256)
    assert torch.equal(grid.fit(weight).scale, whole.scale)
