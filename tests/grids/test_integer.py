"""The integer grid: its scales, its codes, and the bits that are stored."""

import pytest
import torch

from onggi.grids import IntegerGrid


def matrix(rows: int = 24, columns: int = 256, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight[::5, ::17] *= 6  # outliers, as in real weights
    return weight


@pytest.mark.parametrize("bits", [4, 8])
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


def test_three_bits_are_refused_by_the_packer() -> None:
    with pytest.raises(ValueError, match="4 and 8"):
        IntegerGrid(3).pack(torch.zeros(1, 32, dtype=torch.int8))


@pytest.mark.parametrize("group", [None, 128, 64, 32])
def test_codes_are_the_nearest_points(group: int | None) -> None:
    grid, weight = IntegerGrid(4, group), matrix()
    scales = grid.fit(weight)
    assert scales.shape == (24, 256 // (group or 256)) and scales.dtype == torch.bfloat16
    codes = grid.round(weight, scales)
    decoded = grid.decode(codes, scales)
    each = scales.float().repeat_interleave(group or 256, dim=1)
    for step in (-1, 1):
        other = (codes + step).clamp(grid.low, grid.high)
        assert bool(((decoded - weight).abs() <= (other * each - weight).abs() + 1e-6).all())


def test_the_search_for_a_clip_beats_the_full_range() -> None:
    grid, weight = IntegerGrid(), matrix()
    full = (weight.reshape(24, 2, 128).abs().amax(2) / 7.5).to(torch.bfloat16)
    searched = (grid.decode(grid.round(weight, s := grid.fit(weight)), s) - weight).square().sum()
    plain = (grid.decode(grid.round(weight, full), full) - weight).square().sum()
    assert float(searched) < 0.95 * float(plain)


def test_importance_moves_the_scale_to_what_matters() -> None:
    grid, weight = IntegerGrid(), matrix()
    importance = torch.ones(256)
    importance[::17] = 1000.0  # the columns that hold outliers
    plain, weighted = grid.fit(weight), grid.fit(weight, importance)

    def error(scales: torch.Tensor) -> float:
        difference = grid.decode(grid.round(weight, scales), scales) - weight
        return float((difference.square() * importance).sum())

    assert error(weighted) < error(plain)


def test_zeros_and_tiny_weights_never_make_nan() -> None:
    grid = IntegerGrid()
    for weight in (torch.zeros(3, 128), torch.full((3, 128), 1e-42), torch.full((3, 128), 3e38)):
        scales = grid.fit(weight)
        decoded = grid.decode(grid.round(weight, scales), scales)
        assert bool(torch.isfinite(scales).all()) and bool((scales > 0).all())
        assert bool(torch.isfinite(decoded).all())


def test_a_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="576 input columns"):
        IntegerGrid(4, 128).fit(torch.zeros(2, 576))


def test_searching_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, weight = IntegerGrid(), matrix(rows=301)
    whole = grid.fit(weight)
    monkeypatch.setattr("onggi.grids.integer._CHUNK", 7 * 256)
    assert torch.equal(grid.fit(weight), whole)
