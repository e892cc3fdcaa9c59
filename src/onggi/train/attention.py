"""Attention on a CPU: in fp32 where the other products are bf16.

torch's kernel for CPUs is the same in both, but its backward pass takes twice as long in bf16 (torch 2.13, Intel
with AMX, 16 sequences of 256: 106 ms against 51), and in a small model that is a quarter of a step. On other devices
nothing is changed.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

_NAME = "onggi_fp32"


def _in_fp32(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    # Autocast would make bf16 of them again.
    with torch.autocast(query.device.type, enabled=False):
        made, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **options
        )
    return made.to(query.dtype), None


transformers.AttentionInterface.register(_NAME, _in_fp32)
AttentionMaskInterface.register(_NAME, sdpa_mask)


def prepare(model: Any, dtype: torch.dtype) -> None:
    """Have `model` compute its attention as fits training with products in `dtype`."""
    device = next(model.parameters()).device.type
    if device == "cpu" and dtype == torch.bfloat16 and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(_NAME)
