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
    all did (an expert). languages: the same error as `error` on some tokens of each language apart, None
    where they are not told apart; a language of which hardly a token came by is left out.
    """

    name: str
    group: int | None
    error: float | None = None
    rounding_error: float | None = None
    damping: float | None = None
    scheme: str = ""
    migration: float | None = None
    tokens: int | None = None
    languages: dict[str, float] | None = None


@dataclass(frozen=True)
class Outlier:
    """A matrix whose relative output error, on all text or in one language, is far above the median of its kind."""

    layer: Layer
    error: float
    median: float
    language: str | None = None


def kind(name: str) -> str:
    """A module's kind, the same in all layers and of all experts: model.layers.7.mlp.experts.3.up_proj →
    mlp.experts.*.up_proj.
    """
    return re.sub(r"\.\d+\.", ".*.", re.sub(r"^.*?\.\d+\.", "", name, count=1))


def outliers(layers: Sequence[Layer]) -> list[Outlier]:
    """Matrices whose error stands out, the largest first: each once, for all text where it does there, else for the
    language where it does most.
    """
    kinds: dict[str, list[float]] = {}
    for layer in layers:
        if layer.error is not None:
            kinds.setdefault(kind(layer.name), []).append(layer.error)
    medians = {name: statistics.median(errors) for name, errors in kinds.items()}
    found = []
    for layer in layers:
        if layer.error is None:
            continue
        median = medians[kind(layer.name)]
        least = max(_FAR * median, _SMALL)
        if layer.error > least:
            found.append(Outlier(layer, layer.error, median))
        elif layer.languages:
            worst = max(layer.languages, key=layer.languages.__getitem__)
            if layer.languages[worst] > least:
                found.append(Outlier(layer, layer.languages[worst], median, worst))
    return sorted(found, key=lambda one: -one.error)
