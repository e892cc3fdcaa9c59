"""What a Hugging Face folder is in GGUF: the way back of `architectures`.

Whether metadata say all of a model is not argued here but tried: what is about to be written is read by
the functions that read files, and where the config that they make is another than the one at hand,
the model cannot be expressed and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from ...errors import OnggiError
from ..checkpoint import Checkpoint
from ..decoder import skeleton
from ..names import Names
from .architectures import ARCHITECTURES
from .container import Facts
from .vocabulary import vocabulary

# model_type of a config.json → GGUF's architecture.
_ARCHITECTURES = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
}
# Of a config, what says nothing of how the trained model computes, or is looked after by the tokenizer.
_NO_MATTER = {
    *("architectures", "attention_dropout", "bos_token_id", "cache_implementation", "dtype", "eos_token_id"),
    *("chunk_size_feed_forward", "id2label", "initializer_range", "is_encoder_decoder", "label2id"),
    *("max_window_layers", "model_type", "output_attentions", "output_hidden_states", "pad_token_id"),
    *("pretraining_tp", "problem_type", "return_dict", "tie_word_embeddings", "transformers_version"),
    *("use_cache", "_name_or_path", "_attn_implementation", "hidden_act", "tokenizer_class"),
}


@dataclass(frozen=True)
class Description:
    """A model folder as GGUF has it. metadata: key → value. names: tensor of the checkpoint → its name there.
    vectors: tensors that no parameter is. norm_offset: what is added to norms. paired_rows: the size of a head
    where rows of query and key change places, 0 where not. tied: whether the output head is the embedding.
    """

    source: Checkpoint
    architecture: str
    metadata: dict[str, Any]
    names: dict[str, str]
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    norm_offset: float = 0.0
    paired_rows: int = 0
    tied: bool = True

    def rows(self, name: str, count: int) -> np.ndarray | None:
        """Which of the checkpoint's rows stands in each of the `count` rows of `name` in the file; None: its own."""
        if not self.paired_rows or not (".attn_q." in name or ".attn_k." in name):
            return None
        return np.arange(count).reshape(-1, 2, self.paired_rows // 2).swapaxes(1, 2).reshape(-1)

    def values(self, tensor: str) -> Tensor:
        """A tensor of the checkpoint, fp32, as the file has it."""
        return self.as_stored(self.names[tensor], self.source.tensor(tensor))

    def as_stored(self, name: str, values: Tensor) -> Tensor:
        """Values of the checkpoint as the file has them under `name`, fp32."""
        values = values.float()
        if self.norm_offset and name.endswith("norm.weight"):
            values = values + self.norm_offset
        order = self.rows(name, len(values))
        return values if order is None else values[torch.from_numpy(order)]


def describe(folder: Path) -> Description:
    """The model in `folder`. Raises OnggiError for an architecture, a config or a tokenizer that GGUF cannot
    express, with the reason.
    """
    import transformers

    source = Checkpoint(folder)
    kind = str(source.config["model_type"])
    if kind not in _ARCHITECTURES:
        raise OnggiError(
            f"{folder}: models of type {kind!r} cannot be written as GGUF; {', '.join(sorted(_ARCHITECTURES))} can. "
            "The compressed-tensors layout takes any."
        )
    architecture = _ARCHITECTURES[kind]
    decoder = skeleton(folder, torch.bfloat16)
    config: Any = decoder.model.config
    found = Names(decoder.model, source.entries)
    tensors = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture),
        int(config.num_hidden_layers),
    )
    names: dict[str, str] = {}
    for parameter, _ in decoder.model.named_parameters():
        tensor = found.one.get(parameter)
        if tensor is None:
            if parameter in getattr(decoder.model, "all_tied_weights_keys", {}):
                continue
            raise OnggiError(f"{folder}: holds no tensor named {parameter}.")
        theirs = tensors.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise OnggiError(f"{folder}: GGUF has no name for {parameter} of a {kind} model.")
        names[tensor] = theirs
    if bool(config.tie_word_embeddings):
        names = {tensor: name for tensor, name in names.items() if name != "output.weight"}
    metadata = _facts(folder, architecture, config)
    vectors = _vectors(config)
    kept = ARCHITECTURES[architecture]
    rows = next(
        source.entries[tensor].shape[0] for tensor, name in names.items() if name == "token_embd.weight"
    )
    shapes = {name: source.entries[tensor].shape for tensor, name in names.items()}
    _check(folder, architecture, config, metadata, shapes, vectors)
    try:
        own = transformers.GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:
        own = None
    ends = own if own is not None else config.eos_token_id
    listed = [int(end) for end in (ends if isinstance(ends, list) else [ends]) if end is not None]
    metadata |= vocabulary(folder, rows, listed)
    return Description(
        source,
        architecture,
        metadata,
        names,
        vectors,
        kept.norm_offset,
        int(metadata[f"{architecture}.attention.key_length"]) if kept.paired_rows else 0,
        "output.weight" not in shapes,
    )


def _facts(folder: Path, architecture: str, config: Any) -> dict[str, Any]:
    """What the architecture's functions read, from a config."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    facts: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": head_dim,
        "vocab_size": config.vocab_size,
    }
    rope = dict(config.rope_parameters or {})
    if "full_attention" in rope:
        local = float(rope["sliding_attention"]["rope_theta"])
        if local != 10_000.0:
            facts["rope.freq_base_swa"] = local
        rope = rope["full_attention"]
    facts["rope.freq_base"] = float(rope.get("rope_theta", 10_000.0))
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        facts |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
        if "original_max_position_embeddings" in rope and kind == "yarn":
            facts["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    elif kind not in ("default", "llama3"):
        raise OnggiError(
            f"{folder}: the scaling {kind!r} of its rotary positions cannot be written as GGUF yet."
        )
    window = getattr(config, "sliding_window", None)
    if architecture in ("gemma2", "gemma3"):
        facts["attention.sliding_window"] = window
        full = [i for i, one in enumerate(config.layer_types) if one == "full_attention"]
        if (usual := {"gemma2": 2, "gemma3": 6}[architecture]) != (full[0] + 1 if full else usual):
            facts["attention.sliding_window_pattern"] = full[0] + 1
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            if getattr(config, key, None):
                facts[key] = float(getattr(config, key))
    elif window and getattr(config, "use_sliding_window", True):
        raise OnggiError(
            f"{folder}: each of its tokens sees only {window} before it (sliding_window), which llama.cpp does not "
            f"know of {architecture} models; where texts stay shorter, set it to null in config.json."
        )
    return {"general.architecture": architecture} | {
        f"{architecture}.{key}": value for key, value in facts.items()
    }


def _vectors(config: Any) -> dict[str, np.ndarray]:
    """Llama 3's scaling is stored as what each frequency is divided by."""
    rope = config.rope_parameters or {}
    if rope.get("rope_type") != "llama3":
        return {}
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    lengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, size, 2) / size)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context, factor = rope["original_max_position_embeddings"], rope["factor"]
    smooth = np.clip((context / lengths - low) / (high - low), 0, 1)
    return {"rope_freqs.weight": (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)}


class _AsFile:
    """Metadata and shapes where a file is expected."""

    def __init__(
        self, path: Path, metadata: Mapping[str, Any], shapes: Mapping[str, Any], vectors: Mapping[str, Any]
    ):
        self.path, self.metadata, self.vectors = path, metadata, vectors
        self.tensors = {
            name: SimpleNamespace(name=name, shape=tuple(shape))
            for name, shape in {**shapes, **{name: value.shape for name, value in vectors.items()}}.items()
        }

    def values(self, tensor: Any) -> Iterator[np.ndarray]:
        """As of a file."""
        yield self.vectors[tensor.name]


def _check(
    folder: Path,
    architecture: str,
    config: Any,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, Any],
    vectors: Mapping[str, np.ndarray],
) -> None:
    """Raises OnggiError where what is read again is another model."""
    from transformers import AutoConfig

    kind = ARCHITECTURES[architecture]
    stand_in: Any = _AsFile(folder, metadata, shapes, vectors)
    read = AutoConfig.for_model(kind.model_type, **kind.config(Facts(stand_in)))
    ours, theirs = config.to_dict(), read.to_dict()
    for key in sorted((ours.keys() & theirs.keys()) - _NO_MATTER):
        if not _same(ours[key], theirs[key]):
            raise OnggiError(
                f"{folder}: {key} is {ours[key]!r} in config.json; llama.cpp takes {theirs[key]!r} for every "
                f"{architecture} model and GGUF has no word for it."
            )
    activations = [getattr(one, "hidden_activation", None) or one.hidden_act for one in (config, read)]
    if len(set(activations)) > 1:
        raise OnggiError(
            f"{folder}: computes with {activations[0]}; llama.cpp has {activations[1]} in {architecture} models."
        )


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = ours.keys() | theirs.keys()
        return all(_same(ours.get(key), theirs.get(key)) for key in keys)
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return math.isclose(ours, theirs, rel_tol=1e-5)
    return bool(ours == theirs)
