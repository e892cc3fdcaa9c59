"""Second moments of a linear layer's inputs, with a weight for each token.

Balance lives in the weights: with λ_l / n_l on each of a language's n_l tokens,

    H = Σ_l λ_l H_l / n_l,     H_l = Σ_t x_t x_tᵀ · n / ‖x_t‖²

is accumulated in one matrix whatever the number of languages (DESIGN §5). Each token is brought to the same size, n the
columns: what follows a matrix is a norm (Gemma) or is added to what is normed later, so an error counts as a share of
what it is an error of, and a few tokens with huge activations decide nothing for all. Tokens of weight zero (padding) do
not count.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The moments are symmetric: computing the blocks on and above the diagonal only saves up to half
# of the arithmetic, and blocks this wide still run at the matrix product's peak.
_BLOCK = 512
# Tokens at a time: in fp32 all of them at once would be more than the layer itself.
_TOKENS = 2048
# Of a row whose largest number is 1; a mean square below it is a row of zeros.
_NOTHING = 1e-12


def same_size(rows: Tensor) -> Tensor:
    """`rows` (tokens, columns), fp32, with a mean square of 1 each; zeros stay. Neither overflows nor vanishes on the way."""
    rows = rows.float()
    rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return rows.mul_(rows.square().mean(dim=1, keepdim=True).clamp_min_(_NOTHING).rsqrt_())


def second_moments(inputs: Tensor, weights: Tensor) -> Tensor:
    """H = Σ_t weights[t] · x_t x_tᵀ / mean(x_t²), (columns, columns) fp32.

    inputs: (tokens, columns), any float dtype. weights: (tokens,) ≥ 0. The products run in fp32: rounded to
    bf16, moments of activations that all lean one way are no longer positive definite, and the solver damps
    what it should heed (a third of the groups of Gemma 3 270M took ten or a hundred times their damping, and
    the language that lost most lost 5 to 8% more).
    """
    keep = weights > 0
    if not bool(keep.all()):
        inputs, weights = inputs[keep], weights[keep]
    columns = inputs.shape[1]
    moments = torch.zeros(columns, columns, dtype=torch.float32, device=inputs.device)
    for rows, own in zip(inputs.split(_TOKENS), weights.split(_TOKENS), strict=True):
        rows = same_size(rows).mul_(own.sqrt().unsqueeze(1))
        for start in range(0, columns, _BLOCK):
            stop = start + _BLOCK
            moments[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])
    for start in range(0, columns, _BLOCK):
        stop = start + _BLOCK
        moments[stop:, start:stop] = moments[start:stop, stop:].T
    return moments
