"""What was done to each matrix, and whether any of it looks wrong."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# An output error this many times the median of its kind of module (and not small in itself) is an outlier.
_FAR, _SMALL = 8.0, 0.02


@dataclass(frozen=True)
class Layer:
    """One matrix as quantised. error: relative output error on the calibration text, None for rounding
    without text; rounding_error: what rounding to the same scales would have had; damping: what it took
    to solve it. migration: how far activations' outliers were moved into the weights (the exponent α of
    SmoothQuant and AWQ), None where they were not. tokens: calibration tokens that reached it, where not
    all did (an expert).
    """

    name: str
    group: int | None
    error: float | None = None
    rounding_error: float | None = None
    damping: float | None = None
    scheme: str = ""
    migration: float | None = None
    tokens: int | None = None


def kind(name: str) -> str:
    """A module's kind, the same in all layers and of all experts: model.layers.7.mlp.experts.3.up_proj →
    mlp.experts.*.up_proj.
    """
    return re.sub(r"\.\d+\.", ".*.", re.sub(r"^.*?\.\d+\.", "", name, count=1))


def outliers(layers: Sequence[Layer]) -> list[tuple[Layer, float]]:
    """Matrices whose relative output error is far above the median of their kind, with that median."""
    kinds: dict[str, list[float]] = {}
    for layer in layers:
        if layer.error is not None:
            kinds.setdefault(kind(layer.name), []).append(layer.error)
    medians = {name: statistics.median(errors) for name, errors in kinds.items()}
    found = [
        (layer, medians[kind(layer.name)])
        for layer in layers
        if layer.error is not None and layer.error > max(_FAR * medians[kind(layer.name)], _SMALL)
    ]
    return sorted(found, key=lambda item: -(item[0].error or 0.0))
