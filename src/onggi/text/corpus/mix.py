"""How much of each language the mix has: shares of content, reached by repeating rows or leaving some out.

Shares of bytes or of tokens would be shares of spelling: a Khmer text has 2.7 times the bytes of the same
text in English. Content is bytes divided by what the same passages take in the language (scale.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .config import Cleaning
from .scale import Scale


@dataclass(frozen=True)
class Portion:
    """Of one language: content at hand and wanted (bytes of English), its share of the mix, and how often
    its rows are read: `epochs`, under 1 where some are left out. short: True where `epochs` was capped.
    """

    content: float
    share: float
    epochs: float
    short: bool


def portions(sizes: Mapping[str, int], scales: Mapping[str, Scale], config: Cleaning) -> dict[str, Portion]:
    """Language → its portion. sizes: bytes of each language after cleaning."""
    content = {tag: size * scales[tag].content for tag, size in sizes.items() if size}
    if not content:
        return {}
    weights = (
        {tag: config.shares[tag] for tag in content}
        if config.shares
        else {tag: size ** (1 / config.temperature) for tag, size in content.items()}
    )
    whole = config.content or sum(content.values())
    wanted = {tag: whole * weight / sum(weights.values()) for tag, weight in weights.items()}
    epochs = {tag: min(wanted[tag] / content[tag], config.epochs) for tag in content}
    # What comes of rounding is no reason to leave out one row in a million.
    epochs = {tag: 1.0 if abs(value - 1) < 1e-9 else value for tag, value in epochs.items()}
    taken = {tag: content[tag] * epochs[tag] for tag in content}
    return {
        tag: Portion(
            content[tag],
            taken[tag] / sum(taken.values()),
            epochs[tag],
            wanted[tag] / content[tag] > config.epochs,
        )
        for tag in content
    }


def copies(drawn: np.ndarray, epochs: float) -> np.ndarray:
    """How often each row is written. drawn: a number in [0, 1) of each row, its own for good."""
    whole = int(epochs)
    return whole + (drawn < epochs - whole).astype(np.int64)
