"""What a student is taught by: the distributions of a teacher that is here, or of one that was stored.

A signal is asked for a batch, as the source of the training gives it, and says what the teacher thinks comes after
each of its tokens, in the form that `head.divergence` takes.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from ..errors import OnggiError
from ..head import Dense, Sparse
from ..models.checkpoint import finite
from ..train.tokens import Batch, states_of

# Of a batch that comes with a stored teacher: entries (sequences, length, k) and tails (sequences, length) of what
# comes after each token.
ENTRIES, LOG_P, LOG_TAIL = "entries", "entries_log_p", "log_tail"


class Signal(Protocol):
    """A teacher, whoever it is."""

    def of(self, batch: Batch) -> Dense | Sparse:
        """Its distributions of what follows each token but the last: sequences × (length − 1) positions in a row."""


class Resident:
    """A teacher in memory: an engine, whose body makes hidden states that its head turns into distributions."""

    def __init__(self, engine: Any, dtype: torch.dtype):
        self._engine, self._dtype = engine, dtype

    def of(self, batch: Batch) -> Dense:
        """As `Signal` has it. Raises OnggiError where the teacher's states are no numbers."""
        with torch.no_grad():
            states = states_of(self._engine.model, batch, self._dtype)[:, :-1].flatten(0, 1)
        if not finite(states):
            raise OnggiError(
                f"{self._engine.folder}: the teacher gives NaN or infinite states in this precision; "
                "--precision fp32 mends it."
            )
        return Dense(states, self._engine.head)


class Stored:
    """A teacher that `onggi capture` stored: its entries come with the batch. draws: see `head.Sparse`."""

    def __init__(self, draws: int):
        self._draws = draws

    def of(self, batch: Batch) -> Sparse:
        """As `Signal` has it."""
        entries, log_p, tail = (batch[name][:, :-1].flatten(0, 1) for name in (ENTRIES, LOG_P, LOG_TAIL))
        return Sparse(entries.long(), log_p, tail, self._draws)
