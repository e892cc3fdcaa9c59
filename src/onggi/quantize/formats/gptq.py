"""The layout of GPTQ checkpoints (AutoGPTQ's, now GPTQModel's), which vLLM and many older servers load.

A linear module's weight (rows, columns) is stored with inputs first: `qweight` (columns·bits/32, rows) int32,
neighbouring columns in one word, the first in the lowest bits; `scales` (groups, rows) in fp16; `qzeros`
(groups, rows·bits/32) int32, neighbouring rows in one word; `g_idx` (columns,) int32, the group of each
column. Codes are unsigned, and a stored zero is one less than the zero (the layout's first version): a
weight is `(code − (qzero + 1)) · scale`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import OnggiError
from ...grids import IntegerGrid, Steps
from ...models.checkpoint import Checkpoint, Pending, pending
from ..schemes import Scheme

# What it can hold, of the schemes there are: words are filled evenly by 4 and 8 bits only.
SCHEMES = ("w4a16-g128", "w4a16-g64", "w4a16-g32", "w4a16", "w8a16")


def store(name: str, scheme: Scheme, codes: Tensor, steps: Steps) -> dict[str, Pending]:
    """The stored tensors of the linear module `name`; codes (rows, columns), scales (rows, groups) fp16.

    Raises OnggiError where rows or columns do not fill whole words.
    """
    grid = scheme.grid
    assert isinstance(grid, IntegerGrid) and grid.symmetric
    rows, columns = codes.shape
    per_word = 32 // grid.bits
    if rows % per_word or columns % per_word:
        raise OnggiError(
            f"{name}: {rows} × {columns} does not fill the words of the GPTQ layout ({per_word} to a word); "
            "use --format compressed-tensors."
        )
    zeros = torch.full((steps.scale.shape[1], rows), -grid.low - 1, dtype=torch.int64, device=codes.device)
    group = torch.arange(columns, dtype=torch.int32) // grid.width(columns)
    return {
        f"{name}.qweight": pending(_words(codes.to(torch.int64) - grid.low, grid.bits).T),
        f"{name}.qzeros": pending(_words(zeros, grid.bits)),
        f"{name}.scales": pending(steps.scale.T),
        f"{name}.g_idx": pending(group),
    }


def load(source: Checkpoint, name: str, scheme: Scheme) -> tuple[Tensor, Steps]:
    """Codes (rows, columns) and scales of the linear module `name`, as `store` takes them."""
    grid = scheme.grid
    assert isinstance(grid, IntegerGrid)
    words = source.tensor(f"{name}.qweight").T.to(torch.int64).unsqueeze(2)  # (rows, words, 1)
    codes = (words >> torch.arange(0, 32, grid.bits)) & ((1 << grid.bits) - 1)
    scales = source.tensor(f"{name}.scales").T.contiguous()
    return (codes.reshape(len(codes), -1) + grid.low).to(torch.int8), Steps(scales)


def _words(codes: Tensor, bits: int) -> Tensor:
    """Unsigned codes (rows, columns) int64 in words: (rows, columns·bits/32) int32, the first lowest."""
    shifts = torch.arange(0, 32, bits, device=codes.device)
    words = (codes.reshape(len(codes), -1, 32 // bits) << shifts).sum(dim=2)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def quantization_config(scheme: Scheme) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint all of whose matrices have `scheme`, also its
    `quantize_config.json`.
    """
    assert scheme.grid
    return {
        "quant_method": "gptq",
        "bits": scheme.grid.bits,
        "group_size": scheme.group or -1,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "checkpoint_format": "gptq",
    }
