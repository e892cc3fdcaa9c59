"""A teacher on disk: of each position its likeliest tokens, and what all others come to.

`onggi capture` writes the text as `onggi pack` does, and beside it for each shard two NumPy files, opened as memory
maps and without pickle: the entries' ids, two or three bytes each, and their chances, two bytes each: −log p in
steps of 1/2048 nat, which is at most 0.02% of a probability, up to 32 nats. The last chance of a position is that
of all tokens that are no entry together, the tail.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ledger
from ..errors import OnggiError
from ..head import Sparse
from ..text.packing import mapped
from ..train.tokens import Batch, PackedBatches
from .names import INDEX
from .signals import ENTRIES, LOG_P, LOG_TAIL

_STEPS = 2048.0  # of one nat
_CHANCE = 2  # bytes


def width(vocabulary: int) -> int:
    """Bytes of one id."""
    return 2 if vocabulary <= 1 << 16 else 3


def entries_in(bytes_per_token: int, vocabulary: int) -> int:
    """Entries that so many bytes hold beside the tail; 0 where they hold none."""
    return max((bytes_per_token - _CHANCE) // (width(vocabulary) + _CHANCE), 0)


def encoded(signal: Sparse, wide: int) -> tuple[np.ndarray, np.ndarray]:
    """(positions, entries, `wide`) uint8, little end first, and (positions, entries + 1) uint16."""
    ids = signal.ids.cpu().numpy().astype("<u4")
    octets = ids.view(np.uint8).reshape(*ids.shape, 4)[..., :wide]
    chances = torch.cat([signal.log_p, signal.log_tail.unsqueeze(1)], 1).float().cpu()
    return np.ascontiguousarray(octets), (-chances * _STEPS).round().clamp(0, 65535).numpy().astype(np.uint16)


def decoded(octets: np.ndarray, chances: np.ndarray, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids (…, entries) int32, log_p (…, entries) and log_tail (…), fp32: entries and tail add up to 1, as they did
    before they were rounded.
    """
    ids = np.zeros((*octets.shape[:-1], 4), np.uint8)
    ids[..., : octets.shape[-1]] = octets
    read = torch.from_numpy(chances.astype(np.float32)) / -_STEPS
    log_p, tail = read[..., :-1], read[..., -1]
    top = log_p[..., : log_p.shape[-1] - draws]
    total = torch.cat([top, tail.unsqueeze(-1)], -1).logsumexp(-1)
    return torch.from_numpy(ids.view("<i4")[..., 0]), log_p - total.unsqueeze(-1), tail - total


class Captured:
    """A folder that `onggi capture` made. index: what `capture.json` says. draws: see `head.Sparse`.

    Raises OnggiError where the folder is not that.
    """

    def __init__(self, folder: Path):
        found = ledger.artifact(folder)
        if found is None or found.record["verb"] != "capture":
            raise OnggiError(f"{folder}: is no stored teacher; `onggi capture` makes it.")
        self.folder, self._outputs = folder, found.record["outputs"]
        self.index: dict[str, Any] = ledger.read_json(folder / INDEX)
        self.draws: int = self.index["draws"]
        self._ends = np.cumsum([shard["sequences"] for shard in self.index["shards"]])
        self._open: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def of(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """What is stored of sequence `number`: ids and log_p (length, entries), log_tail (length,)."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        within = number - (int(self._ends[shard - 1]) if shard else 0)
        if shard not in self._open:
            entry = self.index["shards"][shard]
            octets, chances = (self._load(entry[name]) for name in ("entries_file", "chances_file"))
            self._open[shard] = octets, chances
        octets, chances = self._open[shard]
        return decoded(octets[within], chances[within], self.draws)

    def bits_of(self, validation: Any) -> dict[str, float]:
        """The teacher's bits per byte on what `validation` measures on, by language; empty where it was captured with
        other passages, or they are other tokens.
        """
        own = self.index["held_out"]
        if validation is None or own is None:
            return {}
        same = own["bytes"] == validation.bytes and own["tokens"] == validation.counts
        return dict(own["bits_per_byte"]) if same else {}

    def _load(self, name: str) -> np.ndarray:
        return mapped(self.folder / name, self._outputs, "Capture the teacher again.")


class StoredBatches:
    """The batches of captured text, with what is stored of the teacher beside them."""

    def __init__(self, text: PackedBatches, captured: Captured):
        self._text, self._captured = text, captured

    @property
    def size(self) -> int:
        """Sequences of a step."""
        return self._text.size

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Rows start to stop of a step."""
        first = step * self.size
        read = [self._captured.of(self._text.number(place)) for place in range(first + start, first + stop)]
        stored = zip((ENTRIES, LOG_P, LOG_TAIL), map(torch.stack, zip(*read, strict=True)), strict=True)
        return {**self._text.rows(step, start, stop), **dict(stored)}
