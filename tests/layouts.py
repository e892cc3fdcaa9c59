"""A quantised checkpoint read by the definition of its layout, with none of onggi's code and none of the peers'."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint."""
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def unsigned(words: Tensor, bits: int, columns: int) -> Tensor:
    """Codes of `bits` one after the other in int32 words (rows, n), the first in the lowest bits."""
    stream = np.unpackbits(words.contiguous().numpy().view(np.uint8), axis=1, bitorder="little")
    grouped = stream[:, : columns * bits].reshape(len(words), columns, bits)
    return torch.from_numpy((grouped * (1 << np.arange(bits))).sum(2))


def compressed(folder: Path, bits: int) -> dict[str, Tensor]:
    """Weights by name, fp32, of a compressed-tensors checkpoint."""
    stored, found = tensors(folder), {}
    for name, value in stored.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight_packed":
            rows, columns = stored[f"{module}.weight_shape"].tolist()
            scale = stored[f"{module}.weight_scale"].float()
            zero: Tensor | int = 1 << (bits - 1)
            if f"{module}.weight_zero_point" in stored:
                packed = stored[f"{module}.weight_zero_point"].T
                zero = unsigned(packed, bits, rows).T.repeat_interleave(columns // scale.shape[1], 1)
            codes = unsigned(value, bits, columns) - zero
            found[f"{module}.weight"] = codes * scale.repeat_interleave(columns // scale.shape[1], 1)
        elif leaf == "weight_scale" and f"{module}.weight" in stored:
            found[f"{module}.weight"] = stored[f"{module}.weight"].float() * value.float()
    return found


def gptq(folder: Path, bits: int) -> dict[str, Tensor]:
    """Weights by name, fp32, of a checkpoint in the GPTQ layout."""
    stored, found = tensors(folder), {}
    for name in stored:
        module, _, leaf = name.rpartition(".")
        if leaf != "qweight":
            continue
        scales, index = stored[f"{module}.scales"].float(), stored[f"{module}.g_idx"].long()
        codes = unsigned(stored[name].T, bits, len(index)).T  # (columns, rows)
        zeros = unsigned(stored[f"{module}.qzeros"], bits, codes.shape[1]) + 1
        found[f"{module}.weight"] = ((codes - zeros[index]) * scales[index]).T
    return found


def rounded_activations(inputs: Tensor, kind: str) -> Tensor:
    """Each token on a scale of its own: 127.5 steps either side of 0, or floats up to 448."""
    most = inputs.abs().amax(-1, keepdim=True)
    if kind == "int8":
        scale = most / 127.5
        return (inputs / scale).round().clamp(-128, 127) * scale
    scale = most / 448
    return (inputs / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
