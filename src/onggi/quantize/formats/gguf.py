"""A GGUF file, which llama.cpp, Ollama and LM Studio run: the container is the `gguf` package's, the rest ours.

What is quantised comes packed, a layer's shard after the other; the rest is taken from the checkpoint as the
file is written, a tensor at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from ... import ledger
from ...grids import BLOCKS, BlockGrid, Steps
from ...models.checkpoint import Pending, pending
from ...models.gguf.writing import Description
from .. import mixtures
from ..mixtures import MIXTURES, PLAIN
from ..schemes import Scheme

FILE = "model.gguf"


def store(name: str, scheme: Scheme, codes: Tensor, steps: Steps) -> dict[str, Pending]:
    """The packed rows (rows, bytes) of the linear module `name`."""
    assert isinstance(scheme.grid, BlockGrid)
    return {f"{name}.weight": pending(scheme.grid.pack(codes, steps))}


def plain(values: Tensor, kind: str) -> np.ndarray:
    """Values in a type of plain numbers, as bytes (…, bytes of a row)."""
    if kind == "BF16":
        rounded = values.to(torch.bfloat16)
    elif kind == "F16":
        rounded = values.to(torch.float16)
    else:
        rounded = values.to(torch.float32)
    found: np.ndarray = rounded.contiguous().view(torch.uint8).numpy()
    return found


def write(
    path: Path,
    described: Description,
    kinds: Mapping[str, str],
    packed: Callable[[str], Tensor | None],
    *,
    name: str,
    mixture: str,
    facts: Mapping[str, Any] | None = None,
    step: Callable[[int, str], None] = lambda count, what: None,
) -> None:
    """Write `described` to `path`, aside and renamed.

    kinds: GGUF's name of each tensor → its type. packed: the packed rows of one, by its name in the
    checkpoint; None for a type of plain numbers. name: of the model; mixture: of the file's type, one of
    `MIXTURES` (`mixed` for one that has no name). facts: further metadata, as `origin` gives them. step: is told
    the bytes of each tensor in the checkpoint.
    """
    with ledger.writing(path) as aside:
        writer = gguf.GGUFWriter(aside, described.architecture)
        general = {
            "general.type": "model",
            "general.name": name,
            "general.quantized_by": "onggi",
            "general.quantization_version": gguf.GGML_QUANT_VERSION,
            "general.file_type": _file_type(mixture, kinds),
        }
        for key, value in {**general, **(facts or {}), **described.metadata}.items():
            if key != "general.architecture":
                _add(writer, key, value)
        entries = described.source.entries
        for tensor, theirs in described.names.items():
            shape, kind = entries[tensor].shape, kinds[theirs]
            row = (
                shape[-1] * PLAIN[kind]
                if kind in PLAIN
                else shape[-1] // BLOCKS[kind].block * BLOCKS[kind].bytes
            )
            bytes_ = (*shape[:-1], row)
            size = int(np.prod(bytes_))
            raw = gguf.GGMLQuantizationType[kind]
            writer.add_tensor_info(theirs, bytes_, np.dtype(np.uint8), size, raw_dtype=raw)
        for theirs, vector in described.vectors.items():
            writer.add_tensor_info(theirs, vector.shape, vector.dtype, vector.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, theirs in described.names.items():
            kind = kinds[theirs]
            if kind in PLAIN:
                data = plain(described.values(tensor), kind)
            else:
                rows = packed(tensor)
                assert rows is not None
                order = described.rows(theirs, len(rows))
                data = rows.numpy() if order is None else rows.numpy()[order]
            writer.write_tensor_data(np.ascontiguousarray(data))
            step(entries[tensor].bytes, theirs)
        for vector in described.vectors.values():
            writer.write_tensor_data(vector)
        writer.close()


def origin(name: str, about: Mapping[str, Any], languages: Sequence[str] = ()) -> dict[str, Any]:
    """Metadata of a file made from the model `name`, of which `about` is known (as `models.references.about` gives it):
    its licence, the models that it goes back to, nearest first, and the languages it was calibrated on.

    The terms of a licence that is to be passed on (Gemma's) stand where a reader looks for the licence's name: a GGUF is
    often all that is passed on.
    """
    keys = gguf.Keys.General
    terms = about.get("terms") or about.get("licence_name")
    address = re.search(r"https?://[^\s,;]+", about.get("terms") or "")
    link = about.get("licence_link") or (address and address[0].rstrip("."))
    found: dict[str, Any] = {
        keys.LICENSE: about.get("licence"),
        keys.LICENSE_NAME: terms,
        keys.LICENSE_LINK: link,
        keys.LANGUAGES: list(languages),
    }
    # What the model itself was made from, by our own note and by that of the file it came as.
    before = [(about.get("base") or {}).get("name"), about.get("base_model")]
    line = [one for one in dict.fromkeys([name, *before]) if one]
    found[keys.BASE_MODEL_COUNT] = len(line)
    for number, one in enumerate(line):
        is_address = one.startswith(("https://", "http://"))
        called = one.rstrip("/").rpartition("/")[2] if is_address else one
        found[keys.BASE_MODEL_NAME.format(id=number)] = called
        found[keys.BASE_MODEL_REPO_URL.format(id=number)] = one if is_address else None
    return {key: value for key, value in found.items() if value}


def shapes(described: Description) -> dict[str, tuple[int, ...]]:
    """GGUF's name of each tensor → its shape."""
    return {theirs: described.source.entries[tensor].shape for tensor, theirs in described.names.items()}


def wanted_types(described: Description, mixture: str, *, calibrated: bool) -> dict[str, str]:
    """GGUF's name of each tensor → the type that a file of the name `mixture` asks for."""
    get = described.metadata
    heads, keys, layers = (
        int(get[f"{described.architecture}.{key}"])
        for key in ("attention.head_count", "attention.head_count_kv", "block_count")
    )
    large = described.architecture == "llama" and layers == 80 and heads != keys
    return mixtures.wanted(mixture, shapes(described), heads // keys, calibrated=calibrated, large=large)


def chosen_types(described: Description, mixture: str, *, calibrated: bool) -> dict[str, str]:
    """GGUF's name of each tensor → its type; where rows do not fit the type that is wanted, another."""
    asked, widths = wanted_types(described, mixture, calibrated=calibrated), shapes(described)
    return {name: mixtures.fitting(kind, widths[name][-1]) for name, kind in asked.items()}


def _file_type(mixture: str, kinds: Mapping[str, str]) -> int:
    """The number that says a file's type; of a mixture without a name, the one whose most is the same."""
    if mixture not in MIXTURES:
        blocks = [kind for name, kind in kinds.items() if kind in BLOCKS and name.startswith("blk.")]
        most = max(set(blocks), key=blocks.count) if blocks else "F16"
        mixture = next(name for name, kind in reversed(MIXTURES.items()) if kind == most)
    if mixture == "F32":
        return int(gguf.LlamaFileType.ALL_F32)
    return int(gguf.LlamaFileType[f"MOSTLY_{mixture}"])


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, Iterable):
        values = list(value)
        if values:
            writer.add_array(key, values)
    else:
        raise TypeError(f"{key}: {value!r}")


__all__ = ["FILE", "chosen_types", "origin", "plain", "shapes", "store", "wanted_types", "write"]
