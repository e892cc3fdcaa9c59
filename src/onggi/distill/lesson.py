"""The loss of distillation: how far the student is from its signal, each language with its weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engines.transformers import head_of
from ..head import Divergence, divergence
from ..train.tokens import Batch, states_of
from .signals import Signal


class Lesson:
    """`Lesson(…)(model, batch)`: the loss to go back from.

    languages: what the numbers of a batch's languages stand for. weigh: language → weight, asked at each step.
    text, temperature, dtype: see `head.divergence`. writing: what some rows become before they are learnt (see
    `on_policy`).
    """

    def __init__(
        self,
        signal: Signal,
        kind: Divergence,
        languages: Sequence[str],
        weigh: Callable[[], Mapping[str, float]],
        *,
        text: float = 0.0,
        temperature: float = 1.0,
        dtype: torch.dtype = torch.float32,
        writing: Callable[[Any, Batch], Batch] | None = None,
    ):
        self._writing = writing
        self._signal, self._kind, self._languages, self._weigh = signal, kind, list(languages), weigh
        self._text, self._temperature, self._dtype = text, temperature, dtype

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        """The loss of some rows of a step."""
        if self._writing:
            batch = self._writing(model, batch)
        by_language = self._weigh()
        weigh = torch.tensor([by_language[tag] for tag in self._languages], device=batch["ids"].device)
        weights = batch["weights"] * weigh[batch["languages"]]
        signal = self._signal.of(batch)
        states = states_of(model, batch, self._dtype)
        return divergence(
            states[:, :-1].flatten(0, 1),
            head_of(model),
            signal,
            batch["ids"][:, 1:].flatten(),
            weights[:, 1:].flatten(),
            kind=self._kind,
            text=self._text,
            temperature=self._temperature,
            dtype=self._dtype,
        )
