"""Second moments of a linear layer's inputs, with a weight for each token.

Balance lives in the weights: with λ_l / n_l on each of a language's n_l tokens,

    H = Σ_l λ_l H_l / n_l,     H_l = Σ_t x_t x_tᵀ

is accumulated in one matrix whatever the number of languages (DESIGN §5). Tokens of weight zero
(padding) do not count.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The moments are symmetric: computing the blocks on and above the diagonal only saves up to half
# of the arithmetic, and blocks this wide still run at the matrix product's peak.
_BLOCK = 512


def second_moments(inputs: Tensor, weights: Tensor) -> Tensor:
    """H = Σ_t weights[t] · x_t x_tᵀ, (columns, columns) fp32.

    inputs: (tokens, columns), any float dtype. weights: (tokens,) ≥ 0. The products run in fp32: rounded to
    bf16, moments of activations that all lean one way are no longer positive definite, and the solver damps
    what it should heed (a third of the groups of Gemma 3 270M took ten or a hundred times their damping, and
    the language that lost most lost 5 to 8% more).
    """
    keep = weights > 0
    if not bool(keep.all()):
        inputs, weights = inputs[keep], weights[keep]
    scaled = inputs.float() * weights.sqrt().unsqueeze(1)
    columns = scaled.shape[1]
    moments = torch.empty(columns, columns, dtype=torch.float32, device=inputs.device)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        block = scaled[:, start:stop].T @ scaled[:, start:]
        moments[start:stop, start:] = block
        moments[stop:, start:stop] = block[:, stop - start :].T
    return moments
