"""Grids: the values that a quantised weight may take, and how they are found, rounded and packed.

A grid knows nothing of calibration or layers. `fit` chooses its steps, `round` the code of each
weight, `decode` the values those codes stand for, `pack` the bytes that are stored.
"""

from .blocks import BLOCKS, BlockGrid
from .float8 import Float8Grid
from .integer import IntegerGrid
from .steps import Grid, Steps

__all__ = ["BLOCKS", "BlockGrid", "Float8Grid", "Grid", "IntegerGrid", "Steps"]
