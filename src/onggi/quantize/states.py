"""The hidden states between two layers, batch by batch: on disk always, in memory as far as there is room.

On disk because a killed run goes on from them; in memory because reading them back takes time. More
calibration text than the limit makes more files, not more memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..models import checkpoint as checkpoints

# Bytes of them that are held in memory.
LIMIT = 1 << 30


class States:
    """States of each batch as they left a layer, under `folder`."""

    def __init__(self, folder: Path, device: torch.device):
        self.folder, self.device = folder, device
        self.held: dict[tuple[int, int], tuple[Tensor, bool]] = {}

    def save(self, layer: int, batch: int, states: Tensor, as_tuple: bool) -> None:
        """Keep what left `layer`; as_tuple: whether the layer returned it in a tuple."""
        kind = "tuple" if as_tuple else "states"
        checkpoints.write_shard(self._file(layer, batch), {kind: checkpoints.pending(states)})
        if sum(held.nbytes for held, _ in self.held.values()) + states.nbytes <= LIMIT:
            self.held[layer, batch] = states, as_tuple

    def load(self, layer: int, batch: int, rows: int | None = None) -> tuple[Tensor, bool]:
        """What left `layer` in `batch`, (sequences, length, hidden), or its first `rows`."""
        if (layer, batch) in self.held:
            states, as_tuple = self.held[layer, batch]
            return states[:rows], as_tuple
        from safetensors import safe_open

        with safe_open(self._file(layer, batch), framework="pt") as file:
            (kind,) = file.keys()
            states = file.get_slice(kind)[:rows] if rows else file.get_tensor(kind)
        return states.to(self.device), kind == "tuple"

    def forget(self, layer: int) -> None:
        """Drop what left `layer`."""
        self.held = {key: value for key, value in self.held.items() if key[0] != layer}
        for file in self.folder.glob(f"states-{layer:05d}-*"):
            file.unlink()

    def _file(self, layer: int, batch: int) -> Path:
        return self.folder / f"states-{layer:05d}-{batch:05d}"


def batches(sequences: int, length: int, widest: int, room: int = 1 << 26) -> Sequence[slice]:
    """Sequences in runs whose widest activation, `widest` columns, has at most about `room` numbers."""
    rows = max(1, room // (length * widest))
    return [slice(start, min(start + rows, sequences)) for start in range(0, sequences, rows)]
