"""Grids: the values that a quantised weight may take, and how they are found, rounded and packed.

A grid knows nothing of calibration or layers. `fit` chooses its scales, `round` the code of each
weight, `decode` the values those codes stand for, `pack` the bytes that are stored.
"""

from .integer import IntegerGrid

__all__ = ["IntegerGrid"]
