"""What model a file's metadata and tensors make, one function for each family.

No table of keys could say it: what a missing key means, which scalings of the rotary embedding there
are and what llama.cpp fixes without asking the file differ from family to family.

Two conventions of GGUF have to be undone. The Gemma family stores its norms as `1 + w`, where
transformers computes with `w`. The Llama family stores the rows of the query and key projections
for a rotary embedding of neighbouring pairs, where transformers rotates halves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from ...errors import OnggiError
from .container import Facts, File, Tensor

if TYPE_CHECKING:
    import torch


def _common(facts: Facts) -> dict[str, Any]:
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


def _rope(facts: Facts) -> dict[str, Any]:
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


def _llama3_rope(facts: Facts, theta: float) -> dict[str, Any]:
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


def _vector(file: File, name: str) -> np.ndarray:
    if name not in file.tensors:
        raise OnggiError(f"{file.path}: tensor {name} is missing.")
    values = np.concatenate([part.reshape(-1) for part in file.values(file.tensors[name])])
    if not np.isfinite(values).all():
        raise OnggiError(f"{file.path}: tensor {name} holds NaN or infinity.")
    return values.astype(np.float64)


def _whole_heads(facts: Facts) -> dict[str, Any]:
    """`_common`, for families whose rotary embedding covers the whole of each head."""
    config = _common(facts)
    if (rotary := facts.integer("rope.dimension_count", facts.head_dim)) != facts.head_dim:
        raise OnggiError(
            f"{facts.file.path}: {rotary} of a head's {facts.head_dim} dimensions rotate; "
            f"{facts.architecture} is supported with all of them only."
        )
    return config


def _llama(facts: Facts) -> dict[str, Any]:
    """Llama and what shares its graph (Mistral, SmolLM2 …): GGUF gives them one name."""
    return _whole_heads(facts) | {
        "hidden_act": "silu",
        "attention_bias": facts.has("blk.0.attn_q.bias"),
        "mlp_bias": facts.has("blk.0.ffn_up.bias"),
    }


def _qwen2(facts: Facts) -> dict[str, Any]:
    return _whole_heads(facts) | {"hidden_act": "silu", "use_sliding_window": False}


def _qwen3(facts: Facts) -> dict[str, Any]:
    return _qwen2(facts) | {"attention_bias": facts.has("blk.0.attn_q.bias")}


def _smollm3(facts: Facts) -> dict[str, Any]:
    # llama.cpp fixes the interval of layers without rope at 4; no key of the file says it.
    return _llama(facts) | {"use_sliding_window": False, "no_rope_layer_interval": 4}


def _phi3(facts: Facts) -> dict[str, Any]:
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


def _gemma(facts: Facts) -> dict[str, Any]:
    return _common(facts) | {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}


def _query_scale(facts: Facts, layers_of_27b: int) -> int:
    """`query_pre_attn_scalar`: the head's size, but in the 27B of a family hidden size / heads.

    No key holds it. llama.cpp too tells the 27B by its number of layers.
    """
    if facts.integer("block_count") == layers_of_27b:
        return int(facts.integer("embedding_length") // facts.heads)
    return facts.head_dim


def _sliding(facts: Facts, pattern: int, window: Any = ...) -> dict[str, Any]:
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


def _gemma2(facts: Facts) -> dict[str, Any]:
    return (
        _gemma(facts)
        | _sliding(facts, 2, window=4096)
        | {
            "query_pre_attn_scalar": _query_scale(facts, 46),
            "attn_logit_softcapping": facts.number("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": facts.number("final_logit_softcapping", 30.0),
        }
    )


def _gemma3(facts: Facts) -> dict[str, Any]:
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
class Architecture:
    model_type: str
    config: Callable[[Facts], dict[str, Any]]
    # What was added to every norm's weight before it was stored.
    norm_offset: float = 0.0
    # Rows of the query and key projections are stored as neighbouring rotary pairs.
    paired_rows: bool = False


ARCHITECTURES: dict[str, Architecture] = {
    "gemma": Architecture("gemma", _gemma, norm_offset=1.0),
    "gemma2": Architecture("gemma2", _gemma2, norm_offset=1.0),
    "gemma3": Architecture("gemma3_text", _gemma3, norm_offset=1.0),
    "llama": Architecture("llama", _llama, paired_rows=True),
    "phi3": Architecture("phi3", _phi3),
    "qwen2": Architecture("qwen2", _qwen2),
    "qwen3": Architecture("qwen3", _qwen3),
    "smollm3": Architecture("smollm3", _smollm3, paired_rows=True),
}
"""The architectures that convert, by GGUF's name; each is tested against llama.cpp."""


def architecture_of(file: File) -> Architecture:
    name = file.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise OnggiError(
            f"{file.path}: models of architecture {name!r} cannot be converted. "
            f"Supported: {', '.join(sorted(ARCHITECTURES))}."
        )
    return ARCHITECTURES[name]


def plan_weights(file: File, model: torch.nn.Module) -> list[tuple[str, Tensor]]:
    """(name in transformers, tensor of the file) for every parameter: each one once, nothing left over."""
    facts = Facts(file)
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
