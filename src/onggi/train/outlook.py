"""What a training is going to take: arithmetic, hours here and on named GPUs, memory, and whether it makes sense.

Arithmetic is that of the matrix products, 6 for each weight and token (two each for the forward pass, the
gradients of the states and those of the weights), and 12 · layers · width · length for each token's attention
(PaLM, arXiv 2204.02311, appendix B). The embedding is a look-up and counts only as the output head.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..head.losses import chunk

# Peak dense bf16 arithmetic in 10¹² a second, without sparsity, by the makers' data sheets: NVIDIA A100, H100,
# H200 and B200 (SXM), L4 and L40S; Ada GPU architecture whitepaper, appendix A (bf16 summed in fp32); AMD MI300X.
PEAKS = {
    "L4": 121.0,
    "RTX 4090": 165.2,
    "A100": 312.0,
    "L40S": 362.0,
    "H100": 989.4,
    "H200": 989.4,
    "MI300X": 1307.4,
    "B200": 2250.0,
}
# The share of the peak that a training reaches. An assumption: 0.3 to 0.5 is usual from a billion weights on; the
# small matrices of a small model leave most of a large GPU idle.
REACHED = {"large": 0.35, "small": 0.10}
SMALL = 200_000_000
# Tokens a parameter at which a model of this arithmetic is best (Hoffmann et al., arXiv 2203.15556); and how often
# text may be gone over: up to 4 times it is worth nearly as much as new text, and beyond 16 nothing
# (Muennighoff et al., arXiv 2305.16264).
BEST, WELL, WASTED = 20, 4, 16


@dataclass(frozen=True)
class Shape:
    """A model in numbers. multiplied: weights that every token is multiplied with, the output head among them.
    attention: columns of all heads together.
    """

    parameters: int
    multiplied: int
    layers: int
    hidden: int
    mlp: int
    attention: int
    vocabulary: int


def shape(config: Mapping[str, Any], parameters: int) -> Shape:
    """By a model's config; `parameters` counts tied tables once."""
    config = {**config, **(config.get("text_config") or {})}
    hidden, vocabulary = int(config["hidden_size"]), int(config["vocab_size"])
    heads = int(config.get("num_attention_heads") or 1)
    head = int(config.get("head_dim") or hidden // heads)
    looked_up = 0 if config.get("tie_word_embeddings", False) else vocabulary * hidden
    return Shape(
        parameters,
        parameters - looked_up,
        int(config["num_hidden_layers"]),
        hidden,
        int(config.get("intermediate_size") or 4 * hidden),
        heads * head,
        vocabulary,
    )


def arithmetic(of: Shape, length: int) -> float:
    """Operations for one token, forward and backward, in sequences of `length`."""
    return 6.0 * of.multiplied + 12.0 * of.layers * of.attention * length


def memory(of: Shape, tokens: int, checkpointing: bool, precision: torch.dtype) -> int:
    """Bytes at the peak, about: fp32 weights, gradients and two moments; what the backward pass needs of
    `tokens` in one pass; a chunk of logits; Python and its libraries.
    """
    wide = 14 * of.hidden + 5 * of.mlp + 4 * of.attention  # fp32 numbers a token and layer
    layers = tokens * 4 * ((of.layers * of.hidden + wide) if checkpointing else of.layers * wide)
    if precision == torch.bfloat16 and not checkpointing:
        layers = layers * 3 // 4  # norms and the residual stream stay fp32
    logits = min(tokens, chunk(of.vocabulary, precision)) * of.vocabulary * precision.itemsize
    return 450_000_000 + 16 * of.parameters + layers + logits + 4 * of.vocabulary * of.hidden


def hours(operations: float, of: Shape) -> dict[str, float]:
    """GPU → hours on one of it."""
    reached = REACHED["small" if of.parameters < SMALL else "large"]
    return {name: operations / (peak * 1e12 * reached) / 3600 for name, peak in PEAKS.items()}


def seconds(step: Callable[[], Tensor], budget: float = 5.0) -> float:
    """Seconds of one forward and backward pass, the median of as many as fit in the budget after the first.
    step: makes the loss anew each time; gradients are the caller's to drop.
    """
    taken: list[float] = []
    until = None
    while until is None or (time.monotonic() < until or len(taken) < 3):
        began = time.monotonic()
        loss = step()
        loss.backward()
        _ = float(loss.detach())  # on a GPU: wait until it is there
        if until is None:
            until = time.monotonic() + budget
        else:
            taken.append(time.monotonic() - began)
        if len(taken) >= 2 and sum(taken) > 2 * budget:
            break
    return sorted(taken)[len(taken) // 2]


def judged(parameters: int, tokens: int, unique: int, new: bool) -> list[str]:
    """Whether so many tokens make sense for so many parameters, in sentences. unique: tokens of the text.
    new: whether the model begins at random.
    """
    found = []
    a_parameter, times = tokens / parameters, tokens / max(unique, 1)
    if new:
        words = f"{a_parameter:.1f} tokens a parameter"
        best = tokens // BEST
        if a_parameter < BEST / 2:
            found.append(
                f"{words} are few: {BEST} make the most of the arithmetic, which is {BEST * parameters:,} tokens "
                f"for this size, or a model of {_short(best)} for these tokens."
            )
        elif a_parameter <= 2 * BEST:
            found.append(f"{words}: about what makes the most of the arithmetic ({BEST}).")
        else:
            found.append(
                f"{words}: more than makes the most of the arithmetic ({BEST}), as is usual for a model that is to "
                f"be small when it serves; for the same arithmetic a larger one would be better."
            )
    if times < 1.05:  # the last step may begin it anew
        found.append(f"The text is read once, {min(times, 1.0):.0%} of it.")
    elif times <= WELL:
        found.append(f"The text is gone over {times:.1f} times, which is worth nearly as much as new text.")
    elif times <= WASTED:
        found.append(
            f"The text is gone over {times:.1f} times: beyond {WELL} each time is worth less. Find more text, or a "
            "smaller model."
        )
    else:
        found.append(
            f"The text is gone over {times:.1f} times: beyond {WASTED} it teaches nothing more, and it is learnt by "
            "heart. Find more text, or train for less."
        )
    return found


def _short(count: int) -> str:
    for unit, name in ((10**9, "b"), (10**6, "m"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return str(count)
