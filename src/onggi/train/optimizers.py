"""What updates the weights: AdamW, or Muon for the matrices of the layers and AdamW for all else.

Weight decay pulls weights towards nought, so it is for matrices that every token uses: not for norms and
biases, and not for the embedding, whose rare rows would only ever be pulled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

_BETAS = (0.9, 0.95)


def make(
    model: nn.Module, kind: Literal["adamw", "muon"], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimizer over the parameters of `model` that are to be trained.

    muon: momentum made orthogonal (Jordan et al. 2024), scaled so that its updates are as large as
    AdamW's and one learning rate serves both (Liu et al., arXiv 2502.16982, section 2.2).
    """
    tables = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.weight is not None
    } | {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.endswith("lm_head")
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [p for p in trained if p.ndim > 1 and id(p) not in tables]
    others = [p for p in trained if p.ndim < 2 or id(p) in tables]
    settings: dict[str, Any] = {"lr": learning_rate, "betas": _BETAS, "fused": True}
    if kind == "adamw":
        return torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            **settings,
        )
    flat = [p for p in matrices if p.ndim == 2]
    rest = [p for p in matrices if p.ndim != 2] + others
    return Together(
        [
            torch.optim.Muon(
                flat, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(rest, weight_decay=0.0, **settings),
        ]
    )


class Together(torch.optim.Optimizer):
    """Several optimizers as one; their groups and their state are its own."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]):
        self._parts = list(parts)
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        # The same dicts, so that a learning rate that is set here is set there.
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update by each."""
        for part in self._parts:
            part.step()

    def state_of(self, parameter: Tensor) -> dict[str, Any]:
        """What the optimizer in charge of `parameter` keeps for it."""
        for part in self._parts:
            if any(p is parameter for group in part.param_groups for p in group["params"]):
                return part.state[parameter]
        raise KeyError("a parameter that is not trained")


def state_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    """What `optimizer` keeps for `parameter`: its own dict, to read and to change."""
    if isinstance(optimizer, Together):
        return optimizer.state_of(parameter)
    return optimizer.state[parameter]
