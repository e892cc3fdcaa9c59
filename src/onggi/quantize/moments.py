"""Second moments of a linear layer's inputs, with a weight for each token.

Balance lives in the weights: with λ_l / n_l on each of a language's n_l tokens,

    H = Σ_l λ_l H_l / n_l,     H_l = Σ_t x_t x_tᵀ · n / ‖x_t‖²

is accumulated in one matrix whatever the number of languages (DESIGN §5). Each token is brought to the same size, n the
columns: what follows a matrix is a norm (Gemma) or is added to what is normed later, so an error counts as a share of
what it is an error of, and a few tokens with huge activations decide nothing for all. Tokens of weight zero (padding) do
not count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# The moments are symmetric: computing the blocks on and above the diagonal only saves up to half
# of the arithmetic, and blocks this wide still run at the matrix product's peak.
_BLOCK = 512
# Tokens at a time: in fp32 all of them at once would be more than the layer itself.
_TOKENS = 2048
# Sizes of rows whose squares neither overflow nor vanish in fp32.
_SQUARED = (1e-15, 1e15)
# A row smaller than this is a row of zeros.
_NOTHING = 1e-30


def _sizes(rows: Tensor) -> Tensor:
    """Root of the mean square of each row of fp32 `rows` (tokens, columns): (tokens, 1); zeros have one next to nothing."""
    found = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if not (bool(found.min() > _SQUARED[0]) and bool(found.max() < _SQUARED[1])):
        found = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64).float()
    return found.mul_(rows.shape[1] ** -0.5).clamp_min_(_NOTHING)


def same_size(rows: Tensor) -> Tensor:
    """`rows` (tokens, columns), fp32, with a mean square of 1 each; zeros stay."""
    rows = rows.float()
    return rows / _sizes(rows)


def second_moments(inputs: Tensor, weights: Tensor) -> Tensor:
    """H = Σ_t weights[t] · x_t x_tᵀ / mean(x_t²), (columns, columns) fp32.

    inputs: (tokens, columns), any float dtype. weights: (tokens,) ≥ 0. Of inputs in bf16 the products are taken in bf16
    and added up in fp32, where the processor can: at twice the speed, and H stays XᵀX of *some* X and so positive
    definite. Sums in bf16 would not: a third of the groups of Gemma 3 270M took ten or a hundred times their damping, and
    the language that lost most lost 5 to 8% more.
    """
    keep = weights > 0
    if not bool(keep.all()):
        inputs, weights = inputs[keep], weights[keep]
    columns = inputs.shape[1]
    moments = torch.zeros(columns, columns, dtype=torch.float32, device=inputs.device)
    if not len(inputs):  # a batch of nothing but text that is held out
        return moments
    with _products_of(inputs.dtype):
        for rows, own in zip(inputs.split(_TOKENS), weights.split(_TOKENS), strict=True):
            rows = rows.float()
            rows = rows * (own.sqrt().unsqueeze(1) / _sizes(rows))
            for start in range(0, columns, _BLOCK):
                stop = start + _BLOCK
                moments[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])
    for start in range(0, columns, _BLOCK):
        stop = start + _BLOCK
        moments[stop:, start:stop] = moments[start:stop, stop:].T
    return moments


@contextlib.contextmanager
def _products_of(dtype: torch.dtype) -> Iterator[None]:
    """While it is open, a CPU multiplies fp32 matrices as bf16 where that is the dtype of what is in them; sums are fp32."""
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    if dtype == torch.bfloat16:
        products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before
