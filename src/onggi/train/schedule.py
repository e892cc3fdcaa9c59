"""How long, how fast: the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

# Of the steps of a `wsd` schedule the last so many fall (Hägele et al., arXiv 2405.18392: a fifth is
# enough to match a cosine of the same length).
_FALL = 0.2


@dataclass(frozen=True)
class Schedule:
    """steps: updates in all. learning_rate: at the peak, reached linearly in `warmup` steps.

    shape: `cosine` falls from the peak to a tenth; `wsd` stays there and falls to nought, as 1 − √, in the
    last fifth of the steps, so that a run can be made longer by going on from where it stood.
    """

    steps: int
    learning_rate: float
    warmup: int
    shape: Literal["cosine", "wsd"] = "cosine"

    def factor(self, step: int) -> float:
        """The share of the peak that a step has, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.shape == "cosine":
            share = min((step - self.warmup) / max(self.steps - self.warmup - 1, 1), 1.0)
            return 0.55 + 0.45 * math.cos(math.pi * share)
        fall = max(round(_FALL * self.steps), 1)
        left = (self.steps - step) / fall
        return 1.0 if left >= 1 else 1 - math.sqrt(1 - max(left, 0.0))

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.learning_rate * self.factor(step)
