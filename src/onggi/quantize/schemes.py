"""Schemes by name: the grid of the weights, what happens to the activations, and who can compute with it.

A scheme's name says it all: `w4a16-g128` is weights of 4 bits, activations of 16 (untouched), a scale for
every 128 weights. `asym` has a zero point beside each scale; `smooth` moves outliers of the activations
into the weights first (SmoothQuant, Xiao et al., arXiv 2211.10438).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import OnggiError
from ..grids import Float8Grid, Grid, IntegerGrid

# Groups to fall back to where a width is no multiple of the one asked for.
_GROUPS = (128, 64, 32)


@dataclass(frozen=True)
class Scheme:
    """grid: of the weights; None where bitsandbytes has a grid of its own. activations: `int8` or `fp8`
    (each token on a scale of its own, found as it comes), None for untouched. smooth: migrate outliers
    into the weights first. vllm: whether vLLM has kernels for it.
    """

    name: str
    grid: Grid | None
    activations: str | None = None
    smooth: bool = False
    vllm: bool = True

    @property
    def group(self) -> int | None:
        """Weights that share a scale; None for a whole row."""
        return self.grid.group if self.grid else None

    @property
    def bits_per_weight(self) -> float:
        """Bits of a stored weight with its share of scales and zeros."""
        if self.grid:
            return self.grid.bits_per_weight
        return 8.0 if self.name == "int8" else 4.5  # bitsandbytes: blocks of 64 with a scale in fp32

    def fits(self, columns: int) -> bool:
        """Whether rows of so many columns can be cut into groups."""
        return self.group is None or columns % _GROUPS[-1] == 0

    def for_columns(self, columns: int) -> Scheme:
        """This scheme, or the same with the next smaller group that divides `columns` (SmolLM2 has
        576 = 9 · 64). Raises OnggiError where none `fits`.
        """
        group = self.group
        if group is None or columns % group == 0:
            return self
        assert isinstance(self.grid, IntegerGrid)
        for smaller in _GROUPS:
            if smaller < group and columns % smaller == 0:
                return dataclasses.replace(self, grid=dataclasses.replace(self.grid, group=smaller))
        raise OnggiError(
            f"{columns} input columns are not a multiple of 32; choose a scheme with a scale per row "
            "(w4a16, w8a16)."
        )

    def stored_in(self, dtype: torch.dtype) -> Scheme:
        """The same with scales of another dtype: a format may know only one."""
        if not isinstance(self.grid, IntegerGrid):
            return self
        return dataclasses.replace(self, grid=dataclasses.replace(self.grid, dtype=dtype))


def _weights(bits: int, group: int | None, *, symmetric: bool = True) -> IntegerGrid:
    return IntegerGrid(bits, group, symmetric=symmetric)


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("w4a16-g128", _weights(4, 128)),
        Scheme("w4a16-g64", _weights(4, 64)),
        Scheme("w4a16-g32", _weights(4, 32)),
        Scheme("w4a16", _weights(4, None)),
        Scheme("w4a16-g128-asym", _weights(4, 128, symmetric=False)),
        # vLLM's weight-only kernels take 4 and 8 bits.
        Scheme("w3a16-g128", _weights(3, 128), vllm=False),
        Scheme("w2a16-g32", _weights(2, 32), vllm=False),
        Scheme("w8a16", _weights(8, None)),
        Scheme("w8a16-g128", _weights(8, 128)),
        Scheme("w8a8", _weights(8, None), "int8"),
        Scheme("w8a8-smooth", _weights(8, None), "int8", smooth=True),
        Scheme("fp8", Float8Grid(), "fp8"),
        Scheme("nf4", None),
        Scheme("int8", None),
    )
}


def activation_arguments(kind: str) -> dict[str, Any]:
    """`int8` or `fp8` activations as compressed-tensors writes them: a scale for each token, found as it comes."""
    return {
        "num_bits": 8,
        "type": "int" if kind == "int8" else "float",
        "symmetric": True,
        "strategy": "token",
        "group_size": None,
        "dynamic": True,
        "observer": None,
    }


def quantized_activations(inputs: Tensor, kind: str | None) -> Tensor:
    """`inputs` (…, columns) as a layer with activations of `kind` computes with them, in the same dtype.

    By the library that computes so when the artifact is loaded: what is solved for here is what is run.
    """
    if kind is None:
        return inputs
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    arguments = QuantizationArgs(**activation_arguments(kind))
    # Three dimensions: of two the library takes one scale for all tokens.
    rows = inputs.reshape(1, -1, inputs.shape[-1])
    scale, zero = compute_dynamic_scales_and_zp(rows, arguments, torch.nn.Identity())
    quantized: Tensor = fake_quantize(rows, scale, zero, arguments)
    return quantized.to(inputs.dtype).reshape(inputs.shape)
