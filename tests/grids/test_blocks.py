"""GGUF's block grids against the `gguf` package's own reading of the bytes, and against plain rounding."""

import gguf
import numpy as np
import pytest
import torch

from onggi.grids import BLOCKS
from onggi.quantize import solver


def weights(rows: int = 24, columns: int = 512, seed: int = 0) -> torch.Tensor:
    """Weights of many sizes, with what is hard to store among them."""
    source = torch.Generator().manual_seed(seed)
    found = torch.randn(rows, columns, generator=source) * torch.rand(rows, 1, generator=source) * 0.05
    found[0] = 0.0
    found[1, :64] = 0.0
    found[2, :256] = -0.01  # a block of one value
    found[3] = found[3].abs() + 0.02  # all of one sign
    found[4] = -found[4].abs() - 0.02
    found[5, 7] = 3.0  # an outlier
    found[6] *= 1e-6  # next to nothing
    found[7] *= 1e4
    return found


def read(packed: torch.Tensor, name: str) -> np.ndarray:
    return gguf.dequantize(packed.numpy(), gguf.GGMLQuantizationType[name])


@pytest.mark.parametrize("name", BLOCKS)
def test_the_bytes_are_read_as_what_was_decoded(name: str) -> None:
    grid, weight = BLOCKS[name], weights()
    steps = grid.fit(weight, torch.rand(512, generator=torch.Generator().manual_seed(1)))
    codes = grid.round(weight, steps)
    packed = grid.pack(codes, steps)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert (grid.block, grid.bytes) == (block, size)
    assert packed.shape == (24, 512 // block * size) and packed.dtype == torch.uint8
    decoded = grid.decode(codes, steps)
    assert np.array_equal(read(packed, name), decoded.numpy())
    assert torch.isfinite(decoded).all()


@pytest.mark.parametrize("name", BLOCKS)
def test_any_code_in_any_place_is_read_again(name: str) -> None:
    """The order of bits, with every code and multiple that there is, not only those that a fit comes to."""
    grid, source = BLOCKS[name], torch.Generator().manual_seed(2)
    steps = grid.fit(weights(8, 256))
    stored = list(steps.stored)
    if grid.multiples:
        low, high = grid.multiples
        for i in range(2 if grid.offset else 1, len(stored)):
            stored[i] = torch.randint(low, high + 1, stored[i].shape, generator=source).to(torch.int8)
    steps = steps._replace(stored=tuple(stored))
    low, high = (0, len(grid.table) - 1) if grid.table else (grid.low, grid.high)
    codes = torch.randint(low, high + 1, (8, 256), generator=source).to(torch.int8)
    assert np.array_equal(read(grid.pack(codes, steps), name), grid.decode(codes, steps).numpy())


@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in ("Q8_0", "Q6_K")])
def test_important_columns_are_nearer_and_the_search_pays(name: str) -> None:
    grid, weight = BLOCKS[name], weights(32, 512)[8:]
    importance = torch.rand(512, generator=torch.Generator().manual_seed(3)) ** 4

    def error(steps: object) -> float:
        values = grid.decode(grid.round(weight, steps), steps)  # type: ignore[arg-type]
        return float(((values - weight).square() * importance).sum())

    asked, unasked, unsearched = (
        error(grid.fit(weight, importance)),
        error(grid.fit(weight)),
        error(grid.fit(weight, importance, search=False)),
    )
    assert asked < 0.97 * unasked and asked < 0.97 * unsearched


@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q8_0"])
def test_no_worse_than_the_packages_own_rounding(name: str) -> None:
    weight = weights(32, 512)[8:]
    kind = gguf.GGMLQuantizationType[name]
    theirs = torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind))
    grid = BLOCKS[name]
    steps = grid.fit(weight)
    ours = grid.decode(grid.round(weight, steps), steps)
    assert (ours - weight).square().sum() < 0.98 * (theirs - weight).square().sum()


@pytest.mark.parametrize("name", ["Q4_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q6_K"])
def test_error_feedback_works_over_every_kind(name: str) -> None:
    source = torch.Generator().manual_seed(4)
    mix = torch.randn(256, 256, generator=source)
    inputs = torch.randn(2000, 256, generator=source) @ (mix * 0.1 + torch.eye(256))
    weight = weights(40, 256)[8:]
    found = solver.solve(weight, inputs.T @ inputs, BLOCKS[name])
    assert found.error < 0.8 * found.rounding_error
    values = BLOCKS[name].decode(found.codes, found.steps)
    off = (inputs @ (values - weight).T).square().sum() / (inputs @ weight.T).square().sum()
    assert off == pytest.approx(found.error, rel=0.02)


def test_rows_that_are_not_whole_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="640 input columns are not a multiple of Q4_K's block of 256"):
        BLOCKS["Q4_K"].fit(torch.zeros(2, 640))
