"""bitsandbytes' own schemes, for comparison: NF4 (QLoRA, arXiv 2305.14314) and LLM.int8() (arXiv 2208.07339).

The library rounds by itself and transformers computes with it, so nothing is solved here: each matrix is
handed to it and stored as transformers stores such a model. NF4: four bits on the quantiles of a normal
distribution, a scale in fp32 for 64 weights. int8: a scale for each row, activations in eight bits but for
those columns that hold outliers. vLLM loads such a checkpoint as it is, by a plugin (vllm-bnb-plugin; part of vLLM
itself until 0.27), on one GPU: it does not split these weights.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import OnggiError
from ...models.checkpoint import Pending, pending
from ..schemes import Scheme

# What vLLM wants beside it to serve such a checkpoint.
SERVED_WITH = "`pip install vllm-bnb-plugin` (before vLLM 0.28: `bitsandbytes`), on one GPU"


def require() -> None:
    """Raises OnggiError where bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise OnggiError(
            "scheme: nf4 and int8 are bitsandbytes' own, which is not installed; "
            "pip install 'onggi[bitsandbytes]', or choose w4a16-g64 or w8a8."
        )


def store(name: str, scheme: Scheme, weight: Tensor) -> dict[str, Pending]:
    """The stored tensors of the linear module `name` with `weight` (rows, columns)."""
    import bitsandbytes as library

    if scheme.name == "nf4":
        packed, state = library.functional.quantize_4bit(
            weight.contiguous(), blocksize=64, quant_type="nf4", compress_statistics=False
        )
        facts = state.as_dict(packed=True)
        return {f"{name}.weight": pending(packed)} | {
            f"{name}.weight.{key}": pending(value) for key, value in facts.items()
        }
    codes, scales, _ = library.functional.int8_vectorwise_quant(weight.to(torch.float16))
    return {
        f"{name}.weight": pending(codes),
        f"{name}.SCB": pending(scales.float()),
        f"{name}.weight_format": pending(torch.tensor(0, dtype=torch.uint8)),
    }


def quantization_config(scheme: Scheme, ignore: Sequence[str]) -> dict[str, Any]:
    """The `quantization_config` as transformers writes it; `ignore`: linear modules that stay (the head)."""
    from transformers import BitsAndBytesConfig

    skip = list(ignore) or None
    if scheme.name == "nf4":
        made = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=skip,
        )
    else:
        made = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    found: dict[str, Any] = made.to_dict()
    return found
