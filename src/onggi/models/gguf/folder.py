"""The folder that a file becomes: weights, config, tokenizer and what `onggi.json` states.

The weights are written as a stream, a megabyte of values at a time, because `save_pretrained` would
need the whole model in memory. Everything that can be refused from the header alone is refused
before the first of them is written.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as GridType

from ...errors import OnggiError
from ...progress import progress
from .architectures import Architecture, architecture_of, plan_weights
from .container import Facts, File, Tensor
from .tokenizer import Vocabulary, end_ids, make_tokenizer, write_tokenizer

# Bytes of bf16 in one safetensors file, at most (a single larger tensor gets a file of its own).
SHARD_BYTES = 10**9

# The largest number of bf16.
_LARGEST = float(np.uint32(0x7F7F0000).view(np.float32))


def _half_rows(rows: int, head_dim: int) -> np.ndarray:
    """Where each row of transformers' projection (rotary halves) lies in the file's (rotary pairs)."""
    return np.arange(rows).reshape(-1, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def _bf16(file: File, tensor: Tensor, kind: Architecture) -> Iterator[np.ndarray]:
    """The tensor as transformers wants it, a few rows at a time: the bytes of its values in bf16."""
    order = None
    if kind.paired_rows and (".attn_q." in tensor.name or ".attn_k." in tensor.name):
        order = _half_rows(tensor.shape[0], Facts(file).head_dim)
    offset = kind.norm_offset if tensor.name.endswith("norm.weight") else 0.0
    for part in file.values(tensor, order):
        # Rounded after the subtraction: bf16's steps near 1 are 2^-8, too coarse for small weights.
        part = part - np.float32(offset) if offset else part
        if not -_LARGEST <= part.min() <= part.max() <= _LARGEST:  # false for NaN too
            raise OnggiError(
                f"{file.path}: tensor {tensor.name} holds NaN or infinity. Fetch the file again."
            )
        yield gguf.quantize(part, GridType.BF16)


def _shards(plan: list[tuple[str, Tensor]], limit: int) -> list[list[tuple[str, Tensor]]]:
    shards: list[list[tuple[str, Tensor]]] = [[]]
    room = limit
    for name, tensor in plan:
        size = 2 * math.prod(tensor.shape)
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append((name, tensor))
        room -= size
    return shards


def _write_weights(file: File, plan: list[tuple[str, Tensor]], kind: Architecture, out: Path) -> None:
    """safetensors, written as a stream (eight bytes of length, a JSON header, the tensors end to end)."""
    shards = _shards(plan, SHARD_BYTES)
    where: dict[str, str] = {}
    total = sum(2 * math.prod(tensor.shape) for _, tensor in plan)
    with progress(f"reading {file.path.name}", total) as bar:
        for number, shard in enumerate(shards, 1):
            name = (
                "model.safetensors"
                if len(shards) == 1
                else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            )
            header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
            at = 0
            for parameter, tensor in shard:
                end = at + 2 * math.prod(tensor.shape)
                header[parameter] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, end]}
                where[parameter], at = name, end
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            with (out / name).open("wb") as handle:
                handle.write(struct.pack("<Q", len(text)) + text)
                for _, tensor in shard:
                    for piece in _bf16(file, tensor, kind):
                        handle.write(piece.data)
                        bar.step(piece.nbytes, tensor.name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _grid(file: File) -> dict[str, Any]:
    kinds: dict[str, Counter[str]] = {}
    for tensor in file.tensors.values():
        parts = tensor.name.split(".")
        kinds.setdefault(parts[2] if parts[0] == "blk" and len(parts) > 2 else parts[0], Counter())[
            tensor.grid.name
        ] += 1
    linears: Counter[str] = Counter()
    for tensor in file.tensors.values():
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            linears[tensor.grid.name] += 1
    embedding, head = file.tensors.get("token_embd.weight"), file.tensors.get("output.weight")
    return {
        "types": dict(Counter(tensor.grid.name for tensor in file.tensors.values()).most_common()),
        "embedding": embedding.grid.name if embedding else None,
        "head": head.grid.name if head else None,
        "linears": dict(linears.most_common()),
        "kinds": {kind: dict(counts.most_common()) for kind, counts in sorted(kinds.items())},
    }


def read_grid(gguf_path: Path) -> dict[str, Any]:
    """On what grids the tensors of a GGUF lie, from its header alone.

    `types`: GGUF type → number of tensors, all of them; `embedding`, and `head` (None where it is the
    embedding); `linears`: the same counts for the matrices of the layers; `kinds`: by GGUF's name of
    the tensor (`attn_q`, `ffn_down` …). Raises `OnggiError` for a file that is not a whole GGUF.
    """
    return _grid(File(Path(gguf_path)))


def convert(gguf_path: Path, out: Path) -> None:
    """Write the model in `gguf_path` as a Hugging Face folder into `out`, an existing empty folder.

    It holds the weights in bf16 (`model.safetensors`, or shards of at most a gigabyte and their
    index), `config.json`, `generation_config.json`, the tokenizer with its chat template if there is
    one, and `onggi.json`: the file's name and sha256, the licence and base model it states, and its
    grid (see `read_grid`). Memory: the vocabulary and a megabyte of values at a time, whatever the model.

    On an error `out` may be left half written: the caller makes it a temporary folder and renames it.

    Raises `OnggiError`, naming the file and what in it: not a GGUF, truncated, an architecture not in
    `ARCHITECTURES`, a tensor missing, left over, of the wrong shape or with NaN or infinity in it, a
    tokenizer or rope scaling that is not known.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    gguf_path, out = Path(gguf_path), Path(out)
    file = File(gguf_path)
    kind, facts = architecture_of(file), Facts(file)
    blocks = {int(match[1]) for match in map(re.compile(r"blk\.(\d+)\.").match, file.tensors) if match}
    if (count := facts.integer("block_count")) != len(blocks) or count != max(blocks, default=-1) + 1:
        raise OnggiError(f"{gguf_path}: {count} layers are stated, {len(blocks)} are there.")
    try:
        config = AutoConfig.for_model(kind.model_type, **kind.config(facts))
        with torch.device("meta"):  # names and shapes only
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    except (ArithmeticError, RuntimeError, StrictDataclassError, TypeError, ValueError) as error:
        raise OnggiError(f"{gguf_path}: its metadata make no {facts.architecture} model: {error}") from error
    vocabulary = Vocabulary(file, config.vocab_size)
    plan, backend = plan_weights(file, model), make_tokenizer(vocabulary)

    _write_weights(file, plan, kind, out)
    config.architectures = [type(model).__name__]
    config.save_pretrained(out)
    ids = {"bos_token_id": config.bos_token_id, "pad_token_id": config.pad_token_id}
    GenerationConfig(**ids, eos_token_id=end_ids(vocabulary, facts)).save_pretrained(out)
    write_tokenizer(file, vocabulary, backend, out)
    (out / "onggi.json").write_text(json.dumps(_facts_for_reports(file), indent=2, ensure_ascii=False) + "\n")


def _facts_for_reports(file: File) -> dict[str, Any]:
    get = file.metadata.get
    return {
        "source": file.path.name,
        "sha256": hashlib.sha256(file.data).hexdigest(),
        "format": "gguf",
        "name": get("general.name"),
        "architecture": get("general.architecture"),
        "licence": get("general.license"),
        "licence_name": get("general.license.name"),
        "licence_link": get("general.license.link"),
        "base_model": get("general.base_model.0.repo_url") or get("general.base_model.0.name"),
        "grid": _grid(file),
    }
