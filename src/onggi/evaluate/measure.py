"""Reference and variants side by side on the same passages, one language at a time.

In: for each model the hidden states that predict each token of each passage. Out: per passage and
model the sums that every measure is made of, and the quantiles over tokens that cannot be made
from sums. Models with another tokenizer or vocabulary than the reference get likelihoods, which
compare across tokenizers as nats for the same passage, but no divergence, which does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..head import Head, Scores, compare, score


@dataclass(frozen=True)
class Measured:
    """One model in one language. Lists run over passages; nats; `kl` and `agree` (tokens whose
    likeliest continuation is the reference's) are None for the reference and where they do not exist.
    """

    tokens: list[int]
    nll: list[float]
    kl: list[float] | None = None
    agree: list[int] | None = None
    kl_median: float | None = None
    kl_p99: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `Measured(**d)` is the inverse."""
        return asdict(self)


States = Sequence[tuple[Tensor, Tensor]]  # per passage: (tokens, hidden), (tokens,)


def measure(states: Mapping[str, States], heads: Mapping[str, Head], reference: str) -> dict[str, Measured]:
    """Measure all models of `states` in one language; passages in the same order for all.

    The models that share the reference's vocabulary and tokens go through the head together, so
    that the reference's logits are computed once.
    """
    targets = torch.cat([ids for _, ids in states[reference]])
    together = [reference] + [
        name
        for name in states
        if name != reference
        and heads[name].vocabulary == heads[reference].vocabulary
        and all(torch.equal(a[1], b[1]) for a, b in zip(states[name], states[reference], strict=True))
    ]
    scores = dict(
        zip(
            together,
            compare([_join(states[name]) for name in together], [heads[name] for name in together], targets),
            strict=True,
        )
    )
    for name in states:
        if name not in scores:
            ids = torch.cat([ids for _, ids in states[name]])
            scores[name] = score(_join(states[name]), heads[name], ids)
    return {name: _by_passage(scores[name], scores[reference], states[name]) for name in states}


def _join(states: States) -> Tensor:
    return torch.cat([hidden for hidden, _ in states])


def _by_passage(scores: Scores, reference: Scores, states: States) -> Measured:
    lengths = [len(ids) for _, ids in states]
    nll = [float(part.double().sum()) for part in scores.nll.split(lengths)]
    if scores.kl is None:
        return Measured(lengths, nll)
    same = (scores.top1 == reference.top1).split(lengths)
    kl = scores.kl.double()
    return Measured(
        lengths,
        nll,
        [float(part.sum()) for part in kl.split(lengths)],
        [int(part.sum()) for part in same],
        float(kl.quantile(0.5)),
        float(kl.quantile(0.99)),
    )
