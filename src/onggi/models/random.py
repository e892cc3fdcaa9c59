"""A random start: a configuration from a dial, and weights drawn by a seed.

A user who wants "a model of eight million parameters" should not have to choose five numbers that hang
together. The rules, all of them:

- the architecture is Llama's, so that every tool loads it; parameters are counted whole, embedding included
- the width is a multiple of 64; heads are 32 wide in a model narrower than 512, else 64
- the key-value heads are the most that divide the heads and are no more than a third of them
- the MLP is 8/3 of the width, rounded up to a multiple of 64
- input and output embedding are one matrix up to a billion parameters
- the depth is what the size leaves; of the widths that come within 5% of the size, the one whose width is
  nearest to 32 times its depth is taken (GPT-2 has 64, SmolLM2 19: deep and thin learns more from a token
  and takes longer for it)
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ledger
from ..errors import OnggiError

if TYPE_CHECKING:
    from transformers import LlamaConfig

_STEP = 64  # widths and MLPs are multiples of it
_ASPECT = 32  # width over depth
_WITHIN = 0.05
_TIED_UP_TO = 10**9


def parameters(size: str) -> int:
    """How many parameters `8m`, `1.5m`, `125M` or `1b` are. Raises OnggiError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb])", size.strip().lower())
    if not match or not float(match[1]):
        raise OnggiError(f"size: {size!r} is not a size; write 8m, 15m, 60m, 125m or 1b.")
    return round(float(match[1]) * {"k": 10**3, "m": 10**6, "b": 10**9}[match[2]])


def configuration(
    size: str, vocabulary: int, *, length: int = 2048, bos: int | None = None, eos: int | None = None
) -> LlamaConfig:
    """The Llama of about `size` parameters for a `vocabulary` of so many tokens, by the rules above.

    length: positions it takes. bos, eos: ids of the tokens that begin and end a text.
    Raises OnggiError where the vocabulary leaves no room for layers.
    """
    from transformers import LlamaConfig

    wanted = parameters(size)
    if vocabulary < 2:
        raise OnggiError(f"size: a vocabulary of {vocabulary} tokens is none.")
    tied = wanted <= _TIED_UP_TO
    tables = 1 if tied else 2
    found: list[tuple[bool, float, int, int]] = []  # (far from the size, far from the aspect, width, depth)
    width = _STEP
    while tables * vocabulary * width + width < wanted:
        room = wanted - tables * vocabulary * width - width
        depth = round(room / _layer(width))
        if depth >= 2:
            off = abs(depth * _layer(width) - room) / wanted
            found.append((off > _WITHIN, abs(math.log(width / depth / _ASPECT)), width, depth))
        width += _STEP
    if not found:
        raise OnggiError(
            f"size: of {size} a vocabulary of {vocabulary:,} tokens leaves no room for two layers; "
            "take a larger size or a smaller vocabulary."
        )
    _, _, width, depth = min(found)
    heads, groups, head, mlp = _parts(width)
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head,
        max_position_embeddings=length,
        tie_word_embeddings=tied,
        initializer_range=round(math.sqrt(2 / (5 * width)), 4),
        rms_norm_eps=1e-5,
        bos_token_id=bos,
        eos_token_id=eos,
        dtype="float32",
    )


def _parts(width: int) -> tuple[int, int, int, int]:
    """Heads, key-value heads, columns of a head, columns of the MLP."""
    head = 32 if width < 512 else 64
    heads = width // head
    groups = max((n for n in range(1, heads // 3 + 1) if heads % n == 0), default=1)
    return heads, groups, head, -(-8 * width // (3 * _STEP)) * _STEP


def _layer(width: int) -> int:
    """Parameters of one layer."""
    _, groups, head, mlp = _parts(width)
    return 2 * width * width + 2 * width * groups * head + 3 * width * mlp + 2 * width


def initialise(config: LlamaConfig, seed: int, folder: Path) -> None:
    """Write a model of random weights, in fp32, to `folder`: config, generation config, safetensors.

    Weights are normal with the config's `initializer_range`, which `configuration` sets to √(2 / (5 · width))
    (Nguyen & Salazar, arXiv 1910.05895, section 2.2); the two matrices of a layer that write into the residual
    stream have it divided by √(2 · layers), so that the stream grows no wider with depth; norms are one, biases
    nought. The same seed gives the same bytes.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, GenerationConfig

    from . import checkpoint as checkpoints

    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.tie_weights()
    draw = torch.Generator().manual_seed(seed)
    inner = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
    tensors = {}
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            value = torch.zeros(parameter.shape)
        elif parameter.ndim == 1:
            value = torch.ones(parameter.shape)
        else:
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            value = torch.randn(parameter.shape, generator=draw) * (
                inner if writes else config.initializer_range
            )
        tensors[name] = checkpoints.pending(value)
    written = {**config.to_dict(), "architectures": [type(model).__name__]}
    ledger.write_json(folder / "config.json", written)
    ids = {key: written[key] for key in ("bos_token_id", "eos_token_id") if written.get(key) is not None}
    ledger.write_json(folder / "generation_config.json", GenerationConfig(**ids).to_diff_dict())
    checkpoints.write_shard(folder / checkpoints.SINGLE, tensors)
