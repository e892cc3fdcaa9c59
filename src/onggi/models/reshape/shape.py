"""A model of another shape: the config and the tensors that a choice of its parts gives.

A choice is lists of indices into the source: which layers (one may come twice), which heads, which columns.
Each tensor is cut when it is written, so that a model is never held whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import OnggiError, nearest, one_line
from ..checkpoint import Checkpoint, Pending, copied, pending

KNOWN = ("gemma3_text", "llama", "mistral", "qwen2", "qwen3", "smollm3")

# The axes of each tensor of a layer, by its name within the layer.
_LAYER: dict[str, tuple[str | None, ...]] = {
    "input_layernorm.weight": ("width",),
    "post_attention_layernorm.weight": ("width",),
    "pre_feedforward_layernorm.weight": ("width",),
    "post_feedforward_layernorm.weight": ("width",),
    "self_attn.q_proj.weight": ("heads", "width"),
    "self_attn.q_proj.bias": ("heads",),
    "self_attn.k_proj.weight": ("groups", "width"),
    "self_attn.k_proj.bias": ("groups",),
    "self_attn.v_proj.weight": ("groups", "width"),
    "self_attn.v_proj.bias": ("groups",),
    "self_attn.o_proj.weight": ("width", "heads"),
    "self_attn.o_proj.bias": ("width",),
    "self_attn.q_norm.weight": (None,),
    "self_attn.k_norm.weight": (None,),
    "mlp.gate_proj.weight": ("mlp", "width"),
    "mlp.gate_proj.bias": ("mlp",),
    "mlp.up_proj.weight": ("mlp", "width"),
    "mlp.up_proj.bias": ("mlp",),
    "mlp.down_proj.weight": ("width", "mlp"),
    "mlp.down_proj.bias": ("width",),
}
_OUTSIDE: dict[str, tuple[str | None, ...]] = {
    "model.embed_tokens.weight": ("vocabulary", "width"),
    "model.norm.weight": ("width",),
    "lm_head.weight": ("vocabulary", "width"),
}
_LAYERS = "model.layers."


@dataclass(frozen=True)
class Shape:
    """The numbers of a decoder: layers, query heads, key-value heads, columns of a head, of the
    MLP and of the residual stream (width), tokens."""

    layers: int
    heads: int
    kv_heads: int
    head: int
    mlp: int
    width: int
    vocabulary: int


@dataclass(frozen=True)
class Choice:
    """What is kept of a model, as indices into it; None keeps all, in its order.

    layers: of the source, in the order of the result; one may come twice. heads, groups, columns: one list
    for each layer of the source; the heads of a kept group stand together. width: channels of the residual
    stream. vocabulary: token ids. gains: norm or table → what its output is multiplied by, since the mean
    square of a norm's input is over other channels than it was.
    """

    layers: list[int] | None = None
    heads: list[list[int]] | None = None
    groups: list[list[int]] | None = None
    columns: list[list[int]] | None = None
    width: list[int] | None = None
    vocabulary: list[int] | None = None
    gains: dict[str, float] = field(default_factory=dict)


def load(folder: Path) -> Any:
    """The transformers config of a model folder.

    Raises OnggiError for a model that is quantised or of an architecture that is not known here.
    """
    from transformers import AutoConfig

    from ..checkpoint import read_config

    written = read_config(folder)
    if "quantization_config" in written:
        raise OnggiError(
            f"{folder}: is quantised; reshape the model it was made from and quantise the result."
        )
    kind = written["model_type"]
    if kind not in KNOWN:
        raise OnggiError(f"{folder}: reshape does not know the architecture {kind!r}.{nearest('', KNOWN)}")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds for what it cannot read
        raise OnggiError(f"{folder}/config.json: is not sound ({one_line(error)}).") from error


def of(config: Any) -> Shape:
    """The shape that a transformers config describes."""
    heads = config.num_attention_heads
    return Shape(
        config.num_hidden_layers,
        heads,
        getattr(config, "num_key_value_heads", None) or heads,
        getattr(config, "head_dim", None) or config.hidden_size // heads,
        config.intermediate_size,
        config.hidden_size,
        config.vocab_size,
    )


def parameters(config: Any) -> int:
    """Parameters of the model that a transformers config describes, a tied table once.

    Raises OnggiError where transformers cannot build it.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    try:
        with init_empty_weights():
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.tie_weights()
    except Exception as error:  # as above
        raise OnggiError(f"transformers cannot build a model of this shape ({one_line(error)}).") from error
    return sum(parameter.numel() for parameter in model.parameters())


def configured(config: Any, choice: Choice) -> Any:
    """The config of `choice` of the model that `config` describes; lists with an entry a layer follow the
    layers. Raises OnggiError where transformers refuses the shape.
    """
    old = of(config)
    written = config.to_dict()
    if choice.layers is not None:
        for key, value in config.to_dict().items():
            if isinstance(value, list) and len(value) == old.layers and not key.endswith("_token_id"):
                written[key] = [value[index] for index in choice.layers]
        written["num_hidden_layers"] = len(choice.layers)
        for pattern in ("_sliding_window_pattern", "sliding_window_pattern"):
            written.pop(pattern, None)  # the list says it now
    written["head_dim"] = old.head  # what it follows from otherwise may be about to change
    if choice.heads is not None and choice.groups is not None:
        written["num_attention_heads"] = len(choice.heads[0])
        written["num_key_value_heads"] = len(choice.groups[0])
    if choice.columns is not None:
        written["intermediate_size"] = len(choice.columns[0])
    if choice.width is not None:
        written["hidden_size"] = len(choice.width)
    if choice.vocabulary is not None:
        written["vocab_size"] = len(choice.vocabulary)
    try:
        return type(config).from_dict(written)
    except Exception as error:  # the library's own checks
        why = re.sub(r".*Error: ", "", one_line(error))
        raise OnggiError(f"transformers refuses this shape: {why}") from error


def deeper(layers: int, to: int) -> list[int]:
    """The layers of a model deepened to `to`: two copies of it, one upon the other, of which the first lacks its
    last layers and the second as many of its first (SOLAR, arXiv 2312.15166, section 2.1). How many follows
    from the depths: 12 to 16 is [:-4] + [4:]. Of an odd depth the first copy has one layer more.

    Raises OnggiError where `to` is not more than there are, or more than two copies have.
    """
    if not layers < to <= 2 * layers:
        raise OnggiError(
            f"deepen: {to} layers cannot be made of two copies of {layers}; from {layers + 1} to {2 * layers} can."
        )
    first = -(-to // 2)
    return [*range(first), *range(layers - (to - first), layers)]


def tensors(source: Checkpoint, config: Any, choice: Choice) -> dict[str, Pending]:
    """The tensors of `choice` of `source`, whose transformers config is `config`, by their new names.

    Raises OnggiError for a tensor that is none of a known layer, or of another shape than the config says.
    """
    old = of(config)
    order = choice.layers if choice.layers is not None else list(range(old.layers))
    plus_one = config.model_type.startswith("gemma")  # whose norms multiply by one more than their weight
    found: dict[str, Pending] = {}
    for name in source.entries:
        if name.endswith("rotary_emb.inv_freq"):  # computed; old files hold it all the same
            continue
        if name in _OUTSIDE:
            found[name] = _cut(source, name, _OUTSIDE[name], old, choice, 0, plus_one)
        elif not name.startswith(_LAYERS) or name.split(".", 3)[3] not in _LAYER:
            raise OnggiError(f"{source.folder}: reshape knows no tensor named {name}.")
    held = {name.split(".", 3)[3] for name in source.entries if name.startswith(_LAYERS)} & _LAYER.keys()
    for new, index in enumerate(order):
        for within in _LAYER:
            if within in held:
                name = f"{_LAYERS}{index}.{within}"
                made = _cut(source, name, _LAYER[within], old, choice, index, plus_one)
                found[f"{_LAYERS}{new}.{within}"] = made
    return found


def _cut(
    source: Checkpoint,
    name: str,
    axes: tuple[str | None, ...],
    old: Shape,
    choice: Choice,
    layer: int,
    plus_one: bool,
) -> Pending:
    if name not in source.entries:
        raise OnggiError(f"{source.folder}: holds no tensor named {name}.")
    entry = source.entries[name]
    sizes = {
        "heads": old.heads * old.head,
        "groups": old.kv_heads * old.head,
        "mlp": old.mlp,
        "width": old.width,
        "vocabulary": old.vocabulary,
        None: old.head,
    }
    if entry.shape != tuple(sizes[axis] for axis in axes):
        raise OnggiError(
            f"{source.folder}: tensor {name} has shape {entry.shape}, its config.json asks for "
            f"{tuple(sizes[axis] for axis in axes)}."
        )
    kept = [_indices(axis, choice, layer, old.head) for axis in axes]
    gain = choice.gains.get(name)
    if gain is None and all(indices is None for indices in kept):
        return copied(source, name)
    shape = tuple(
        size if indices is None else len(indices) for size, indices in zip(entry.shape, kept, strict=True)
    )

    def made() -> Tensor:
        if axes[0] == "vocabulary" and kept[0] is not None:
            tensor = source.rows(name, kept[0])
        else:
            tensor = source.tensor(name) if kept[0] is None else source.tensor(name)[kept[0]]
        if len(axes) > 1 and kept[1] is not None:
            tensor = tensor[:, kept[1]]
        if gain is not None:
            shift = 1.0 if plus_one and len(axes) == 1 else 0.0
            tensor = ((tensor.float() + shift) * gain - shift).to(entry.dtype)
        return tensor

    return Pending(entry.dtype, shape, lambda file: pending(made()).write(file))


def _indices(axis: str | None, choice: Choice, layer: int, head: int) -> Tensor | None:
    """Rows or columns of the tensor that are kept along `axis`; None: all."""

    def of_layer(lists: Sequence[Sequence[int]] | None) -> Sequence[int] | None:
        return None if lists is None else lists[layer]

    if axis in ("heads", "groups"):
        units = of_layer(choice.heads if axis == "heads" else choice.groups)
        if units is None:
            return None
        return (torch.tensor(units)[:, None] * head + torch.arange(head)).reshape(-1)
    kept = {
        "mlp": of_layer(choice.columns),
        "width": choice.width,
        "vocabulary": choice.vocabulary,
        None: None,
    }
    units = kept[axis]
    return None if units is None else torch.tensor(units)


def gains(config: Any, width: Sequence[int], squares: Mapping[str, Tensor]) -> dict[str, float]:
    """What each norm's output has to be multiplied by when only the channels `width` are left.

    squares: norm (its weight's name) → mean square of each channel of its input, (width,). A norm divides by
    the root of the mean square over its channels; those that are kept have a larger one, being the important.
    Gemma multiplies its embedding by √width, which falls with it: the table makes up for that, and the last
    norm for the table where it is the head too.
    """
    kept = torch.tensor(list(width))
    found = {name: math.sqrt(float(x[kept].mean() / x.mean())) for name, x in squares.items()}
    if config.model_type.startswith("gemma"):
        scale = math.sqrt(config.hidden_size / len(width))
        found["model.embed_tokens.weight"] = scale
        if config.tie_word_embeddings:
            found["model.norm.weight"] /= scale
    return found
