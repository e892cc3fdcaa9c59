"""A `.gguf` file becomes an ordinary Hugging Face folder, once.

Everything in onggi works on safetensors folders: layer by layer, with `transformers` as the model.
Many small models reach people as GGUF only, so the file is dequantised once into bf16 and cached.
`transformers` can read GGUF itself, but it needs most of a minute for 270M parameters (its reader
walks a 262k-entry vocabulary value by value), it returns a model that refuses to be saved, and its
table of metadata leaves gaps that class defaults fill silently: Qwen3's head size, the attention
scale of Gemma's 27B models, every rope scaling, the digits that SmolLM's tokenizer sets apart. What
llama.cpp does with a file is the definition of the file, so each architecture here is written
after llama.cpp's loader and tested against it, and one that is not in `ARCHITECTURES` is refused.

Two conventions of GGUF have to be undone. The Gemma family stores its norms as `1 + w`, where
transformers computes with `w`. The Llama family stores the rows of the query and key projections
for a rotary embedding of neighbouring pairs, where transformers rotates halves.

The values are those of the file's own grid (`onggi.json` says which), rounded to bf16: a product
of a 6-bit scale, an fp16 scale and a 4-bit level does not always fit bf16's eight bits. On Gemma 3
270M that rounding is worth 5e-4 nats of KL, and is part of what "the reference" means here.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as GridType

from onggi.errors import OnggiError
from onggi.progress import progress

if TYPE_CHECKING:
    import torch

# Bytes of bf16 in one safetensors file, at most (a single larger tensor gets a file of its own).
SHARD_BYTES = 10**9

# Elements dequantised at a time (or one row, where that is longer): 1 MiB of fp32.
_CHUNK = 1 << 18

# The largest number of bf16.
_LARGEST = float(np.uint32(0x7F7F0000).view(np.float32))

# ── reading the container ────────────────────────────────────────────────────────────────────────
# https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Our own reader, because `gguf.GGUFReader`
# makes Python objects of every element of every array (13 s for Gemma's vocabulary; this takes 0.3).

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LOOKS_LIKE = {
    b"PK\x03\x04": "a zip archive (a PyTorch checkpoint?)",
    b"vers": "a Git LFS pointer, not the file itself",
    b"<!DO": "a web page",
    b"<htm": "a web page",
    b"FUGG": "a big-endian GGUF",
    b"ggml": "an old GGML file, from before GGUF",
    b"ggjt": "an old GGML file, from before GGUF",
}


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file; `shape` in torch's order, `start` and `size` in bytes of the file."""

    name: str
    shape: tuple[int, ...]
    grid: GridType
    start: int
    size: int


class _File:
    """A GGUF's metadata and its table of tensors, all of it checked against the file's length."""

    def __init__(self, path: Path):
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, _Tensor] = {}
        try:
            with path.open("rb") as handle:
                head = handle.read(4)
                if head != b"GGUF":
                    what = _LOOKS_LIKE.get(
                        head, f"a file that begins with {head!r}" if head else "an empty file"
                    )
                    raise OnggiError(f"{path} is not a GGUF file: it is {what}.")
                self.data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise OnggiError(f"{path} cannot be read: {error.strerror or error}.") from error
        self._at = 4
        try:
            self._read()
        except (struct.error, EOFError):
            raise OnggiError(
                f"{path} is truncated: its {len(self.data):,} bytes end inside the header. Fetch it again."
            ) from None
        except UnicodeDecodeError as error:
            raise OnggiError(
                f"{path} is damaged: its header holds text that is not UTF-8 ({error})."
            ) from None

    def _read(self) -> None:
        version = self._scalar("I")
        if version not in (2, 3):
            raise OnggiError(
                f"{self.path} is GGUF version {version if version < 2**16 else 'of a big-endian machine'}; "
                "versions 2 and 3 (little-endian) can be read."
            )
        n_tensors, n_values = self._scalar("Q"), self._scalar("Q")
        for _ in range(n_values):
            key = self._string()
            self.metadata[key] = self._value(key, self._scalar("I"))
        table = [self._tensor_entry() for _ in range(n_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise OnggiError(f"{self.path} is damaged: general.alignment is {alignment!r}.")
        origin = -(-self._at // alignment) * alignment
        for name, shape, kind, offset in table:
            self.tensors[name] = self._tensor(name, shape, kind, origin + offset)

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        rank = self._scalar("I")
        if not 1 <= rank <= 4:
            raise OnggiError(f"{self.path} is damaged: tensor {name} has {rank} dimensions.")
        dims = tuple(self._scalar("Q") for _ in range(rank))
        if 0 in dims:
            raise OnggiError(f"{self.path} is damaged: tensor {name} is empty.")
        return name, dims[::-1], self._scalar("I"), self._scalar("Q")

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> _Tensor:
        if name in self.tensors:
            raise OnggiError(f"{self.path} is damaged: it holds two tensors named {name}.")
        try:
            grid = GridType(kind)
        except ValueError:
            raise OnggiError(
                f"{self.path}: tensor {name} has type {kind}, which gguf does not know."
            ) from None
        block, block_bytes = gguf.GGML_QUANT_SIZES[grid]
        if shape[-1] % block:
            raise OnggiError(
                f"{self.path} is damaged: rows of tensor {name} hold {shape[-1]} values, "
                f"which {grid.name} cannot store (blocks of {block})."
            )
        size = math.prod(shape) // block * block_bytes
        if start + size > len(self.data):
            raise OnggiError(
                f"{self.path} is truncated: tensor {name} ends at byte {start + size:,} of a file of "
                f"{len(self.data):,}. Fetch it again."
            )
        return _Tensor(name, shape, grid, start, size)

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        end = self._at + length
        if end > len(self.data):
            raise EOFError
        text = self.data[self._at : end].decode()
        self._at = end
        return text

    def _value(self, key: str, kind: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise OnggiError(f"{self.path} is damaged: metadata {key} has the unknown type {kind}.")
        item, count = self._scalar("I"), self._scalar("Q")
        if item in _SCALARS:
            layout = struct.Struct(f"<{min(count, len(self.data))}{_SCALARS[item]}")
            values = layout.unpack_from(self.data, self._at)
            self._at += layout.size
            return list(values)
        if item != _STRING:
            raise OnggiError(f"{self.path}: metadata {key} is an array of type {item}, which cannot be read.")
        return [self._string() for _ in range(count)]

    def values(self, tensor: _Tensor, order: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """The tensor in fp32, flat, a few rows at a time; `order` picks the rows (all of them, if None).

        One flat call per piece, because `gguf.dequantize` goes through sixteen rows at a time, and
        pieces that stay in a core's cache: together several times faster than the tensor at once.
        """
        rows = tensor.shape[0] if order is not None else math.prod(tensor.shape[:-1])
        raw = np.frombuffer(self.data, np.uint8, tensor.size, tensor.start).reshape(rows, -1)
        step = max(1, _CHUNK * rows // math.prod(tensor.shape))
        for at in range(0, rows, step):
            part = raw[at : at + step] if order is None else raw[order[at : at + step]]
            try:
                # A damaged scale gives inf or NaN; the caller finds them and names the tensor.
                with np.errstate(all="ignore"):
                    values = gguf.dequantize(part.reshape(1, -1), tensor.grid).reshape(-1)
            except NotImplementedError:
                raise OnggiError(
                    f"{self.path}: tensor {tensor.name} is stored as {tensor.grid.name}, "
                    "which the gguf package cannot dequantise."
                ) from None
            yield values


# ── from metadata to a config ────────────────────────────────────────────────────────────────────


class _Facts:
    """What a file says about its architecture: `file.metadata` under the prefix `llama.` and so on."""

    def __init__(self, file: _File):
        self.file = file
        self.architecture = str(file.metadata.get("general.architecture", ""))

    def _get(self, key: str, default: Any, kinds: tuple[type, ...]) -> Any:
        name = f"{self.architecture}.{key}"
        value = self.file.metadata.get(name, default)
        if value is ...:
            raise OnggiError(
                f"{self.file.path}: the metadata lacks {name}, without which the model is unknown."
            )
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]  # one entry a layer, all the same
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            hint = " (differs by layer, which is not supported)" if isinstance(value, list) else ""
            raise OnggiError(f"{self.file.path}: metadata {name} is not a number{hint}.")
        return value

    def integer(self, key: str, default: Any = ...) -> Any:
        return self._get(key, default, (int,))

    def number(self, key: str, default: Any = ...) -> Any:
        value = self._get(key, default, (int, float))
        # fp32 in the file: 1e-6 reads as 9.99999997e-07; the shortest decimal of that fp32 is 1e-06.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def text(self, key: str, default: str) -> str:
        return str(self.file.metadata.get(f"{self.architecture}.{key}", default))

    def token_id(self, name: str) -> int | None:
        value = self.file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        tokens = self.file.metadata.get("tokenizer.ggml.tokens", ())
        return value if isinstance(value, int) and 0 <= value < len(tokens) else None

    @property
    def heads(self) -> int:
        return int(self.integer("attention.head_count"))

    @property
    def head_dim(self) -> int:
        size = self.integer("attention.key_length", None)
        return int(self.integer("embedding_length") // max(self.heads, 1) if size is None else size)

    def has(self, tensor: str) -> bool:
        return tensor in self.file.tensors


def _common(facts: _Facts) -> dict[str, Any]:
    """What every family states. Ids are set even when absent: class defaults belong to one checkpoint."""
    if facts.integer("expert_count", 0):
        raise OnggiError(f"{facts.file.path}: mixtures of experts cannot be converted yet.")
    embedding = facts.file.tensors.get("token_embd.weight")
    if embedding is None:
        raise OnggiError(f"{facts.file.path}: there is no tensor token_embd.weight.")
    kv_heads = facts.integer("attention.head_count_kv", facts.heads)
    widest = max(max(tensor.shape) for tensor in facts.file.tensors.values())
    if min(facts.heads, kv_heads, facts.head_dim) < 1 or max(facts.heads, kv_heads) * facts.head_dim > widest:
        # Else a damaged file makes transformers allocate a table for heads of a billion.
        raise OnggiError(
            f"{facts.file.path}: the metadata state {facts.heads} and {kv_heads} heads of {facts.head_dim}, "
            f"but no tensor is wider than {widest}."
        )
    if facts.integer("attention.value_length", facts.head_dim) != facts.head_dim:
        raise OnggiError(f"{facts.file.path}: keys and values of different lengths are not supported.")
    return {
        "vocab_size": embedding.shape[0],
        "hidden_size": facts.integer("embedding_length"),
        "intermediate_size": facts.integer("feed_forward_length"),
        "num_hidden_layers": facts.integer("block_count"),
        "num_attention_heads": facts.heads,
        "num_key_value_heads": kv_heads,
        "head_dim": facts.head_dim,
        "max_position_embeddings": facts.integer("context_length"),
        "rms_norm_eps": facts.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(facts),
        "tie_word_embeddings": not facts.has("output.weight"),
        "bos_token_id": facts.token_id("bos"),
        "eos_token_id": facts.token_id("eos"),
        "pad_token_id": facts.token_id("padding"),
        "dtype": "bfloat16",
    }


def _rope(facts: _Facts) -> dict[str, Any]:
    """transformers' `rope_parameters`. The base is 10,000 where a file is silent, as in llama.cpp."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": facts.number("rope.freq_base", 10_000.0)}
    kind = facts.text("rope.scaling.type", "linear")
    factor = facts.number("rope.scaling.factor", facts.number("rope.scale_linear", 0.0))
    context = facts.integer("rope.scaling.original_context_length", None)
    attention = facts.number("rope.scaling.attn_factor", None)
    # For these families llama.cpp takes 32 and 1 whatever the file says, so others are refused.
    betas = (
        facts.number("rope.scaling.yarn_beta_fast", 32.0),
        facts.number("rope.scaling.yarn_beta_slow", 1.0),
    )
    if facts.has("rope_factors_long.weight"):
        rope |= {
            "rope_type": "longrope",
            "long_factor": _vector(facts.file, "rope_factors_long.weight").tolist(),
            "short_factor": _vector(facts.file, "rope_factors_short.weight").tolist(),
            "original_max_position_embeddings": context or facts.integer("context_length"),
        }
        if attention is not None:
            rope["attention_factor"] = attention
    elif facts.has("rope_freqs.weight"):
        rope |= _llama3_rope(facts, rope["rope_theta"])
    elif kind == "yarn" and factor and attention in (None, 1.0) and betas == (32.0, 1.0):
        rope |= {"rope_type": "yarn", "factor": factor}
        if context:
            rope["original_max_position_embeddings"] = context
    elif kind == "linear" and factor not in (0.0, 1.0):
        rope |= {"rope_type": "linear", "factor": factor}
    elif kind not in ("linear", "none"):
        raise OnggiError(
            f"{facts.file.path}: rope scaling {kind!r}, as the file states it, is not supported."
        )
    return rope


def _llama3_rope(facts: _Facts, theta: float) -> dict[str, Any]:
    """Llama 3's scaling, from the divisors the file holds for each frequency, `(head_dim / 2,)`.

    The file keeps the result and not its four parameters; three of them have one value in every
    published model, the fourth (`factor`) is the largest divisor. The result decides.
    """
    divisors = _vector(facts.file, "rope_freqs.weight")
    wavelengths = 2 * math.pi * theta ** (np.arange(divisors.size) / divisors.size)
    factor, low, high, context = float(f"{divisors.max():.6g}"), 1.0, 4.0, 8192
    smooth = np.clip((context / wavelengths - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not np.allclose(divisors, expected, rtol=1e-4):
        raise OnggiError(
            f"{facts.file.path}: rope_freqs.weight is not Llama 3's scaling, the only one supported there."
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }


def _vector(file: _File, name: str) -> np.ndarray:
    if name not in file.tensors:
        raise OnggiError(f"{file.path}: tensor {name} is missing.")
    values = np.concatenate([part.reshape(-1) for part in file.values(file.tensors[name])])
    if not np.isfinite(values).all():
        raise OnggiError(f"{file.path}: tensor {name} holds NaN or infinity.")
    return values.astype(np.float64)


def _whole_heads(facts: _Facts) -> dict[str, Any]:
    """`_common`, for families whose rotary embedding covers the whole of each head."""
    config = _common(facts)
    if (rotary := facts.integer("rope.dimension_count", facts.head_dim)) != facts.head_dim:
        raise OnggiError(
            f"{facts.file.path}: {rotary} of a head's {facts.head_dim} dimensions rotate; "
            f"{facts.architecture} is supported with all of them only."
        )
    return config


def _llama(facts: _Facts) -> dict[str, Any]:
    """Llama and what shares its graph (Mistral, SmolLM2 …): GGUF gives them one name."""
    return _whole_heads(facts) | {
        "hidden_act": "silu",
        "attention_bias": facts.has("blk.0.attn_q.bias"),
        "mlp_bias": facts.has("blk.0.ffn_up.bias"),
    }


def _qwen2(facts: _Facts) -> dict[str, Any]:
    return _whole_heads(facts) | {"hidden_act": "silu", "use_sliding_window": False}


def _qwen3(facts: _Facts) -> dict[str, Any]:
    return _qwen2(facts) | {"attention_bias": facts.has("blk.0.attn_q.bias")}


def _smollm3(facts: _Facts) -> dict[str, Any]:
    # llama.cpp fixes the interval of layers without rope at 4; no key of the file says it.
    return _llama(facts) | {"use_sliding_window": False, "no_rope_layer_interval": 4}


def _phi3(facts: _Facts) -> dict[str, Any]:
    config = _common(facts)
    rotary = facts.integer("rope.dimension_count", facts.head_dim)
    config["rope_parameters"]["partial_rotary_factor"] = rotary / facts.head_dim
    context = facts.integer("rope.scaling.original_context_length", facts.integer("context_length"))
    window = facts.integer("attention.sliding_window", 0)
    return config | {
        "hidden_act": "silu",
        "original_max_position_embeddings": context,
        "sliding_window": window or None,
    }


def _gemma(facts: _Facts) -> dict[str, Any]:
    return _common(facts) | {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}


def _query_scale(facts: _Facts, layers_of_27b: int) -> int:
    """`query_pre_attn_scalar`: the head's size, but in the 27B of a family hidden size / heads.

    No key holds it. llama.cpp too tells the 27B by its number of layers.
    """
    if facts.integer("block_count") == layers_of_27b:
        return int(facts.integer("embedding_length") // facts.heads)
    return facts.head_dim


def _sliding(facts: _Facts, pattern: int, window: Any = ...) -> dict[str, Any]:
    """Every `pattern`-th layer attends to everything, the others to a window, as in llama.cpp."""
    stated = facts.file.metadata.get(f"{facts.architecture}.attention.sliding_window_pattern")
    if isinstance(stated, list):  # one flag a layer
        windowed = [bool(flag) for flag in stated]
    else:
        pattern = stated if isinstance(stated, int) and stated > 0 else pattern
        windowed = [bool((i + 1) % pattern) for i in range(facts.integer("block_count"))]
    return {
        "sliding_window": facts.integer("attention.sliding_window", window),
        "layer_types": ["sliding_attention" if flag else "full_attention" for flag in windowed],
    }


def _gemma2(facts: _Facts) -> dict[str, Any]:
    return (
        _gemma(facts)
        | _sliding(facts, 2, window=4096)
        | {
            "query_pre_attn_scalar": _query_scale(facts, 46),
            "attn_logit_softcapping": facts.number("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": facts.number("final_logit_softcapping", 30.0),
        }
    )


def _gemma3(facts: _Facts) -> dict[str, Any]:
    config = _gemma(facts) | _sliding(facts, 6)
    # Windowed layers keep the base of 10,000 and are never scaled; the file's keys are for the others.
    local = {"rope_type": "default", "rope_theta": facts.number("rope.freq_base_swa", 10_000.0)}
    return config | {
        "rope_parameters": {"full_attention": config["rope_parameters"], "sliding_attention": local},
        "query_pre_attn_scalar": _query_scale(facts, 62),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": facts.number("final_logit_softcapping", None),
        "use_bidirectional_attention": False,
    }


@dataclass(frozen=True)
class _Architecture:
    model_type: str
    config: Callable[[_Facts], dict[str, Any]]
    # What was added to every norm's weight before it was stored.
    norm_offset: float = 0.0
    # Rows of the query and key projections are stored as neighbouring rotary pairs.
    paired_rows: bool = False


ARCHITECTURES: dict[str, _Architecture] = {
    "gemma": _Architecture("gemma", _gemma, norm_offset=1.0),
    "gemma2": _Architecture("gemma2", _gemma2, norm_offset=1.0),
    "gemma3": _Architecture("gemma3_text", _gemma3, norm_offset=1.0),
    "llama": _Architecture("llama", _llama, paired_rows=True),
    "phi3": _Architecture("phi3", _phi3),
    "qwen2": _Architecture("qwen2", _qwen2),
    "qwen3": _Architecture("qwen3", _qwen3),
    "smollm3": _Architecture("smollm3", _smollm3, paired_rows=True),
}
"""The architectures that convert, by GGUF's name; each is tested against llama.cpp."""


def _architecture(file: _File) -> _Architecture:
    name = file.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise OnggiError(
            f"{file.path}: models of architecture {name!r} cannot be converted. "
            f"Supported: {', '.join(sorted(ARCHITECTURES))}."
        )
    return ARCHITECTURES[name]


# ── weights ──────────────────────────────────────────────────────────────────────────────────────


def _plan(file: _File, model: torch.nn.Module) -> list[tuple[str, _Tensor]]:
    """(name in transformers, tensor of the file) for every parameter: each one once, nothing left over."""
    facts = _Facts(file)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == facts.architecture)
    names = gguf.get_tensor_name_map(arch, facts.integer("block_count"))
    plan, used = [], {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
    for parameter, meta in model.named_parameters():
        theirs = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        tensor = file.tensors.get(theirs or "")
        if tensor is None:
            raise OnggiError(
                f"{file.path}: tensor {theirs} is missing ({parameter} of {type(model).__name__})."
            )
        if tensor.shape != tuple(meta.shape):
            raise OnggiError(
                f"{file.path}: tensor {tensor.name} is {tensor.shape}, "
                f"but the metadata make it {tuple(meta.shape)}."
            )
        plan.append((parameter, tensor))
        used.add(tensor.name)
    if left := sorted(set(file.tensors) - used):
        raise OnggiError(
            f"{file.path}: {type(model).__name__} has no place for {len(left)} of its tensors: "
            f"{', '.join(left[:4])}{' …' if len(left) > 4 else ''}."
        )
    return plan


def _half_rows(rows: int, head_dim: int) -> np.ndarray:
    """Where each row of transformers' projection (rotary halves) lies in the file's (rotary pairs)."""
    return np.arange(rows).reshape(-1, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def _bf16(file: _File, tensor: _Tensor, kind: _Architecture) -> Iterator[np.ndarray]:
    """The tensor as transformers wants it, a few rows at a time: the bytes of its values in bf16."""
    order = None
    if kind.paired_rows and (".attn_q." in tensor.name or ".attn_k." in tensor.name):
        order = _half_rows(tensor.shape[0], _Facts(file).head_dim)
    offset = kind.norm_offset if tensor.name.endswith("norm.weight") else 0.0
    for part in file.values(tensor, order):
        # Rounded after the subtraction: bf16's steps near 1 are 2^-8, too coarse for small weights.
        part = part - np.float32(offset) if offset else part
        if not -_LARGEST <= part.min() <= part.max() <= _LARGEST:  # false for NaN too
            raise OnggiError(
                f"{file.path}: tensor {tensor.name} holds NaN or infinity. Fetch the file again."
            )
        yield gguf.quantize(part, GridType.BF16)


def _shards(plan: list[tuple[str, _Tensor]], limit: int) -> list[list[tuple[str, _Tensor]]]:
    shards: list[list[tuple[str, _Tensor]]] = [[]]
    room = limit
    for name, tensor in plan:
        size = 2 * math.prod(tensor.shape)
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append((name, tensor))
        room -= size
    return shards


def _write_weights(file: _File, plan: list[tuple[str, _Tensor]], kind: _Architecture, out: Path) -> None:
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


# ── tokenizer ────────────────────────────────────────────────────────────────────────────────────

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # GGUF's token types, SentencePiece's numbers

# Byte-level BPE is nothing without the rule that cuts text before the merges. transformers keeps the
# patterns of the llama3, qwen2, tekken and gpt-4o kinds; these two kinds it takes for plain GPT-2,
# which is wrong for the second: there each digit stands alone.
_GPT2_SPLIT = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "a.x-4.0", "exaone4", "granite-docling"}
_DIGITS_THEN_GPT2 = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}

# A whole word of the vocabulary is taken before any merge is tried, and BOS is added unasked.
_LLAMA3_KIND = {
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "tekken",
}

# Texts of tokens that end an answer, for files that name one end only (llama.cpp knows them by text too).
_ENDS = (
    "<end_of_turn>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
)


# Of Phi-3's special tokens, those that do not swallow the white space behind them.
_NEVER_STRIP = ("<unk>", "<s>", "<|endoftext|>")


class _Vocabulary:
    """The `tokenizer.ggml.*` metadata, checked."""

    def __init__(self, file: _File, rows: int):
        get = file.metadata.get
        self.path = file.path
        self.kind, self.pre = get("tokenizer.ggml.model"), get("tokenizer.ggml.pre")
        tokens, types = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
        if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
            raise OnggiError(f"{file.path}: there is no vocabulary in it (tokenizer.ggml.tokens).")
        self.tokens: list[str] = tokens
        self.types: list[int] = types if isinstance(types, list) else [_NORMAL] * len(tokens)
        self.scores = get("tokenizer.ggml.scores")
        self.merges = get("tokenizer.ggml.merges")
        if len(self.types) < len(tokens):
            raise OnggiError(
                f"{file.path} is damaged: {len(tokens)} tokens but {len(self.types)} token types."
            )
        if len(tokens) > rows:
            raise OnggiError(f"{file.path} is damaged: {len(tokens)} tokens but {rows} rows of embedding.")
        if len(set(tokens)) < len(tokens):
            twice = Counter(tokens).most_common(1)[0][0]
            raise OnggiError(f"{file.path}: token {twice!r} occurs twice in its vocabulary.")
        sentencepiece = self.kind == "llama"
        self.add_bos = bool(get("tokenizer.ggml.add_bos_token", sentencepiece or self.pre in _LLAMA3_KIND))
        self.add_eos = bool(get("tokenizer.ggml.add_eos_token", False))
        self.space_prefix = bool(get("tokenizer.ggml.add_space_prefix", sentencepiece))
        self.name = str(get("general.name", "")).lower()

    def typed(self) -> Iterator[tuple[str, int]]:
        """Each token with its type."""
        return zip(self.tokens, self.types, strict=False)


def _piece_merges(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Merges in the order SentencePiece makes them: by the score of what they give, best first.

    A file of this kind has scores and no merges. Control, byte and user-defined tokens take no part:
    SentencePiece finds them whole in the text or not at all.
    """
    scores = vocabulary.scores
    if not isinstance(scores, list) or len(scores) < len(vocabulary.tokens):
        raise OnggiError(f"{vocabulary.path}: its vocabulary has no scores (tokenizer.ggml.scores).")
    normal = {
        token: score
        for (token, its), score in zip(vocabulary.typed(), scores, strict=False)
        if its == _NORMAL
    }
    merges: list[tuple[str, str]] = []
    for token in sorted((t for t in normal if len(t) > 1), key=lambda t: -normal[t]):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in normal and right in normal:
                merges.append((left, right))
    return merges


def _tokenizer(vocabulary: _Vocabulary) -> Any:
    """A `tokenizers.Tokenizer` that cuts text as llama.cpp does, all but BOS."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    path, pre = vocabulary.path, vocabulary.pre
    if vocabulary.kind == "llama":
        unknown = next((t for t, its in vocabulary.typed() if its == _UNKNOWN or t == "<unk>"), None)
        tokenizer = Tokenizer(
            models.BPE(ids, _piece_merges(vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=True)
        )
        # Spaces become ▁ without a pre-tokenizer: pieces cross words. The prefix is one for every stretch
        # of text between two special tokens, as in llama.cpp.
        steps: list[Any] = [normalizers.Prepend("▁")] if vocabulary.space_prefix else []
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
        back: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence(
            back + ([decoders.Strip(" ", 1, 0)] if vocabulary.space_prefix else [])
        )
    elif vocabulary.kind == "gpt2":
        if not isinstance(vocabulary.merges, list):
            raise OnggiError(f"{path}: its vocabulary has no merges (tokenizer.ggml.merges).")
        merges = [tuple(merge.split(" ", 1)) for merge in vocabulary.merges]
        if any(len(merge) != 2 or not {*merge, "".join(merge)} <= ids.keys() for merge in merges):
            raise OnggiError(f"{path} is damaged: its merges do not fit its vocabulary.")
        tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=pre in _LLAMA3_KIND))
        if pre in _GPT2_SPLIT:
            split: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        elif pre in _DIGITS_THEN_GPT2:
            split = [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        elif pre in GGUF_PRE_TOKENIZER_SPLITS:
            split = [
                pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[pre]), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        else:
            known = sorted(_GPT2_SPLIT | _DIGITS_THEN_GPT2 | set(GGUF_PRE_TOKENIZER_SPLITS))
            raise OnggiError(
                f"{path}: how it cuts text before merging (tokenizer.ggml.pre = {pre!r}) is not known, and a "
                f"guess would give wrong tokens. Known: {', '.join(known)}."
            )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
        tokenizer.decoder = decoders.ByteLevel()
        if pre == "qwen2":
            # Qwen's own tokenizer composes first; llama.cpp leaves it to the caller. The models
            # were trained on composed text.
            tokenizer.normalizer = normalizers.NFC()
    else:
        raise OnggiError(
            f"{path}: tokenizers of kind {vocabulary.kind!r} are not supported (llama and gpt2 are)."
        )

    # Phi-3's special tokens swallow the white space behind them. No key says so: llama.cpp goes by the name.
    strip = "phi-3" in vocabulary.name or "phi3" in vocabulary.name
    for kinds, special in (((_CONTROL, _UNKNOWN), True), ((_USER_DEFINED,), False)):
        added = [
            AddedToken(token, normalized=False, special=special, rstrip=strip and token not in _NEVER_STRIP)
            for token, its in vocabulary.typed()
            if its in kinds and token
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    return tokenizer


def _write_tokenizer(file: _File, vocabulary: _Vocabulary, backend: Any, out: Path) -> None:
    from tokenizers import processors

    facts = _Facts(file)
    special: dict[str, str] = {}
    for ours, theirs in {
        "bos": "bos",
        "eos": "eos",
        "unk": "unknown",
        "pad": "padding",
        "mask": "mask",
    }.items():
        if (index := facts.token_id(theirs)) is not None:
            special[f"{ours}_token"] = vocabulary.tokens[index]
    bos = special.get("bos_token") if vocabulary.add_bos else None
    eos = special.get("eos_token") if vocabulary.add_eos else None
    ends = [(token, backend.token_to_id(token)) for token in dict.fromkeys((bos, eos)) if token]
    one, two = (
        " ".join(filter(None, (bos and f"{bos}:{i}", f"${'AB'[i]}:{i}", eos and f"{eos}:{i}")))
        for i in (0, 1)
    )
    backend.post_processor = processors.TemplateProcessing(
        single=one, pair=f"{one} {two}", special_tokens=ends
    )
    backend.save(str(out / "tokenizer.json"), pretty=False)
    config = special | {
        "add_bos_token": bos is not None,
        "add_eos_token": eos is not None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": facts.integer("context_length"),
        # The class that takes tokenizer.json as it is; the families' own classes rebuild parts of it.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        (out / "chat_template.jinja").write_text(template)


# ── the folder ───────────────────────────────────────────────────────────────────────────────────


def _ends(vocabulary: _Vocabulary, facts: _Facts) -> int | list[int] | None:
    """Ids that end generation: the file's own, and the turn's end that base models have in store."""
    ends = [facts.token_id(name) for name in ("eos", "eot", "eom")]
    index = {t: i for i, t in enumerate(vocabulary.tokens) if t in _ENDS and vocabulary.types[i] == _CONTROL}
    ids = [i for i in dict.fromkeys([*ends, *(index.get(t) for t in _ENDS)]) if i is not None]
    return (ids[0] if len(ids) == 1 else ids) if ids else None


def _grid(file: _File) -> dict[str, Any]:
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
    return _grid(_File(Path(gguf_path)))


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
    file = _File(gguf_path)
    kind, facts = _architecture(file), _Facts(file)
    blocks = {int(match[1]) for match in map(re.compile(r"blk\.(\d+)\.").match, file.tensors) if match}
    if (count := facts.integer("block_count")) != len(blocks) or count != max(blocks, default=-1) + 1:
        raise OnggiError(f"{gguf_path}: {count} layers are stated, {len(blocks)} are there.")
    try:
        config = AutoConfig.for_model(kind.model_type, **kind.config(facts))
        with torch.device("meta"):  # names and shapes only
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    except (ArithmeticError, RuntimeError, StrictDataclassError, TypeError, ValueError) as error:
        raise OnggiError(f"{gguf_path}: its metadata make no {facts.architecture} model: {error}") from error
    vocabulary = _Vocabulary(file, config.vocab_size)
    plan, backend = _plan(file, model), _tokenizer(vocabulary)

    _write_weights(file, plan, kind, out)
    config.architectures = [type(model).__name__]
    config.save_pretrained(out)
    ids = {"bos_token_id": config.bos_token_id, "pad_token_id": config.pad_token_id}
    GenerationConfig(**ids, eos_token_id=_ends(vocabulary, facts)).save_pretrained(out)
    _write_tokenizer(file, vocabulary, backend, out)
    (out / "onggi.json").write_text(json.dumps(_facts_for_reports(file), indent=2, ensure_ascii=False) + "\n")


def _facts_for_reports(file: _File) -> dict[str, Any]:
    get = file.metadata.get
    return {
        "source": file.path.name,
        "sha256": hashlib.sha256(file.data).hexdigest(),
        "format": "gguf",
        "name": get("general.name"),
        "architecture": get("general.architecture"),
        "licence": get("general.license"),
        "licence_link": get("general.license.link"),
        "base_model": get("general.base_model.0.repo_url") or get("general.base_model.0.name"),
        "grid": _grid(file),
    }
