"""The layouts of compressed-tensors, which vLLM and transformers load.

Of a linear module's weight become: packed integers (`pack-quantized`) `weight_packed` (int32),
`weight_scale`, `weight_shape` and, with zero points, `weight_zero_point` (packed along the rows); integers
of eight bits (`int-quantized`) and floats of eight bits (`float-quantized`), which go with quantised
activations, `weight` in that type and `weight_scale`. The config's `quantization_config` says which modules
have which scheme.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...grids import IntegerGrid, Steps
from ...models.checkpoint import Checkpoint, Pending, pending
from ..records import Layer, kind
from ..schemes import Scheme, activation_arguments


def store(name: str, scheme: Scheme, codes: Tensor, steps: Steps) -> dict[str, Pending]:
    """The stored tensors of the linear module `name`; codes (rows, columns), scales (rows, groups)."""
    if layout(scheme) != "pack-quantized":
        return {f"{name}.weight": pending(codes), f"{name}.weight_scale": pending(steps.scale)}
    assert isinstance(scheme.grid, IntegerGrid)
    tensors = {
        f"{name}.weight_packed": pending(scheme.grid.pack(codes)),
        f"{name}.weight_scale": pending(steps.scale),
        f"{name}.weight_shape": pending(torch.tensor(codes.shape, dtype=torch.int64)),
    }
    if steps.zero is not None:
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

        packed = pack_to_int32(steps.zero, scheme.grid.bits, packed_dim=0)
        tensors[f"{name}.weight_zero_point"] = pending(packed)
    return tensors


def load(source: Checkpoint, name: str, scheme: Scheme) -> tuple[Tensor, Steps]:
    """Codes (rows, columns) and steps of the linear module `name`, as `store` takes them."""
    scale = source.tensor(f"{name}.weight_scale")
    if layout(scheme) != "pack-quantized":
        return source.tensor(f"{name}.weight"), Steps(scale)
    assert isinstance(scheme.grid, IntegerGrid)
    rows, columns = source.tensor(f"{name}.weight_shape").tolist()
    codes = scheme.grid.unpack(source.tensor(f"{name}.weight_packed"), columns)
    if scheme.grid.symmetric:
        return codes, Steps(scale)
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    packed, shape = source.tensor(f"{name}.weight_zero_point"), torch.Size((rows, scale.shape[1]))
    zero = unpack_from_int32(packed, scheme.grid.bits, shape, packed_dim=0)
    return codes, Steps(scale, zero.to(torch.int8).contiguous())


def layout(scheme: Scheme) -> str:
    """The name of the layout that a scheme is stored in."""
    if scheme.activations is None:
        return "pack-quantized"
    return "int-quantized" if scheme.activations == "int8" else "float-quantized"


def quantization_config(
    layers: Sequence[Layer],
    schemes: Mapping[str, Scheme],
    ignore: Sequence[str],
    embedding: Sequence[Layer] = (),
) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint whose quantised linear modules are `layers`, of `schemes`
    by name; `ignore` names the linear modules that are not (the head). embedding: what outside the layers
    is quantised too, of the same scheme.
    """
    used: dict[tuple[str, int | None], list[str]] = {}
    variants: dict[str, set[tuple[str, int | None]]] = {}
    for layer in layers:
        variants.setdefault(kind(layer.name), set()).add((layer.scheme, layer.group))
    for layer in layers:
        # One scheme for a kind of module in all layers; those of two schemes are named one by one.
        alone = len(variants[kind(layer.name)]) > 1
        any_expert = re.escape(kind(layer.name)).replace(r"\*", r"\d+")
        target = re.escape(layer.name) if alone else rf".*\.{any_expert}"
        targets = used.setdefault((layer.scheme, layer.group), [])
        if target not in targets:
            targets.append(target)
    layouts = {layout(schemes[name]) for name, _ in used}
    unpacked = bool(embedding) or any(not getattr(schemes[name].grid, "symmetric", True) for name, _ in used)
    outside = [f"re:{re.escape(layer.name)}$" for layer in embedding]
    quantized = {layer.name for layer in embedding}
    return {
        "quant_method": "compressed-tensors",
        "format": next(iter(layouts)) if len(layouts) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        # transformers 5.24 has no place for packed zero points or a packed embedding but where it unpacks while
        # it loads. It unpacks all by one scheme then and forgets activations: stages/quantize.py sees to both.
        **({"dequantize": True} if unpacked else {}),
        "kv_cache_scheme": None,
        "ignore": [name for name in ignore if name not in quantized],
        "config_groups": {
            f"group_{i}": {
                "targets": outside
                + (["Linear"] if len(used) == 1 else [f"re:{target}$" for target in targets]),
                **({"format": layout(schemes[name])} if len(layouts) > 1 else {}),
                "input_activations": _activations(schemes[name]),
                "output_activations": None,
                "weights": _weights(schemes[name], group),
            }
            for i, ((name, group), targets) in enumerate(used.items())
        },
    }


def _activations(scheme: Scheme) -> dict[str, Any] | None:
    return activation_arguments(scheme.activations) if scheme.activations else None


def _weights(scheme: Scheme, group: int | None) -> dict[str, Any]:
    assert scheme.grid
    return {
        "num_bits": scheme.grid.bits,
        "type": "int" if isinstance(scheme.grid, IntegerGrid) else "float",
        "symmetric": getattr(scheme.grid, "symmetric", True),
        "strategy": "group" if group else "channel",
        "group_size": group,
        "dynamic": False,
        "actorder": None,
    }
