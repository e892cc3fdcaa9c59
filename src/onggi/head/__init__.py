"""The output head in chunks: the one numerical kernel of the house.

A vocabulary of 262,144 makes the logits of a thousand tokens a gigabyte, and the logits of a
reference with three variants four of them. Nothing here ever holds tokens × vocabulary: the head
is walked in tiles of the vocabulary for a chunk of positions, and what is kept per position are
running sums. Everything that scores, compares or trains stands on it.
"""

from .chunks import Head, Scores, compare, score
from .divergences import Dense, Divergence, Sparse, divergence, entries
from .losses import cross_entropy
from .sampled import drawn, drawn_kl

__all__ = [
    "Dense",
    "Divergence",
    "Head",
    "Scores",
    "Sparse",
    "compare",
    "cross_entropy",
    "divergence",
    "drawn",
    "drawn_kl",
    "entries",
    "score",
]
