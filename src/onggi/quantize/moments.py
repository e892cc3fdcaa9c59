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

    inputs: (tokens, columns), any float dtype. weights: (tokens,) ≥ 0. The products run in the
    inputs' dtype and are rounded to it (bf16 costs about 0.2% an entry, far below the solver's
    damping; the floor is measured in tests/quantize/test_moments.py).
    """
    keep = weights > 0
    if not bool(keep.all()):
        inputs, weights = inputs[keep], weights[keep]
    scaled = inputs * weights.sqrt().to(inputs.dtype).unsqueeze(1)
    columns = scaled.shape[1]
    moments = torch.empty(columns, columns, dtype=torch.float32, device=inputs.device)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        block = (scaled[:, start:stop].T @ scaled[:, start:]).float()
        moments[start:stop, start:] = block
        moments[stop:, start:stop] = block[:, stop - start :].T
    return moments
