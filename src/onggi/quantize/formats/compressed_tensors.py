"""The `pack-quantized` layout of compressed-tensors, which vLLM and transformers load.

A linear module's weight becomes `weight_packed` (int32), `weight_scale` and `weight_shape`; the
config's `quantization_config` says which modules have which scheme.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...grids import IntegerGrid
from ...models.checkpoint import Pending, pending
from ..stream import Layer


def store(name: str, grid: IntegerGrid, codes: Tensor, scales: Tensor) -> dict[str, Pending]:
    """The stored tensors of the linear module `name`; codes (rows, columns), scales (rows, groups)."""
    return {
        f"{name}.weight_packed": pending(grid.pack(codes)),
        f"{name}.weight_scale": pending(scales.to(grid.dtype)),
        f"{name}.weight_shape": pending(torch.tensor(codes.shape, dtype=torch.int64)),
    }


def quantization_config(layers: Sequence[Layer], bits: int, ignore: Sequence[str]) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint whose quantised linear modules are `layers`; `ignore`
    names the linear modules that are not (the head).
    """
    # One scheme for a kind of module in all layers: model.layers.7.mlp.up_proj → mlp.up_proj
    kind = {layer.name: re.sub(r"^.*\.\d+\.", "", layer.name) for layer in layers}
    widths: dict[str, set[int | None]] = {}
    for layer in layers:
        widths.setdefault(kind[layer.name], set()).add(layer.group)
    groups: dict[int | None, list[str]] = {}
    for layer in layers:
        # Modules of one kind with two group sizes must be named one by one.
        alone = len(widths[kind[layer.name]]) > 1
        target = re.escape(layer.name) if alone else rf".*\.{re.escape(kind[layer.name])}"
        targets = groups.setdefault(layer.group, [])
        if target not in targets:
            targets.append(target)
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": list(ignore),
        "config_groups": {
            f"group_{i}": {
                "targets": ["Linear"] if len(groups) == 1 else [f"re:{target}$" for target in targets],
                "input_activations": None,
                "output_activations": None,
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group" if group else "channel",
                    "group_size": group,
                    "dynamic": False,
                    "actorder": None,
                },
            }
            for i, (group, targets) in enumerate(groups.items())
        },
    }
