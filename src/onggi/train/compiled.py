"""Layers compiled by `torch.compile`, which joins what stands between their products into fewer walks over memory.

How much that saves depends on model and machine, and compiling takes from seconds to minutes, so it is decided by a
measurement: a few passes as they are, a few compiled.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import one_line
from ..progress import say
from . import outlook

# Less arithmetic than this is done before it has paid; and what a training must take for it to be tried, in seconds.
_LEAST, _LONG = 2e13, 600.0
# The share of a pass that must be saved.
_SAVED = 0.1


def layers(model: Any) -> list[nn.Module]:
    """What is compiled: the layers that `model` is a pile of, each by itself, so that all share one result."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in kinds]


def compile(model: Any, backend: str = "inductor") -> None:
    """Have the layers of `model` compiled when they are first called; in place, names and weights stay. backend: of
    `torch.compile`.
    """
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    for layer in layers(model):
        layer.compile(backend=backend)


def undo(model: Any) -> None:
    """Have them run as they were."""
    for layer in layers(model):
        layer._compiled_call_impl = None


def worthwhile(model: Any, step: Callable[[], Tensor], passes: float, arithmetic: float) -> bool:
    """Whether compiling saves a tenth of a training of so many `passes`, each as `step` makes its loss; leaves the
    model as it is to be run, its gradients to be dropped. arithmetic: operations of the whole training.

    Not tried where the training is short.
    """
    if arithmetic < _LEAST or not layers(model):
        return False
    plain = outlook.seconds(step)
    if plain * passes < _LONG:
        return False
    say("Compiling the layers, to see whether it pays …")
    try:
        compile(model)
        found = outlook.seconds(step)
    except Exception as error:  # no compiler, or something it cannot compile
        say(f"The layers cannot be compiled here: {one_line(error)[:200]}")
        found = math.inf
    if found > plain * (1 - _SAVED):
        undo(model)
        say(f"A pass takes {plain:.2f} s, and compiled {found:.2f} s: not compiled.")
        return False
    say(f"A pass takes {found:.2f} s compiled, and {plain:.2f} s as it was: compiled.")
    return True


def as_written(model: Any) -> Any:
    """In this context nothing of `model` is compiled: for passes of many shapes, which would each be compiled anew."""
    if not any(layer._compiled_call_impl for layer in layers(model)):
        return contextlib.nullcontext()  # spares the import of the compiler
    return torch.compiler.set_stance("force_eager")
