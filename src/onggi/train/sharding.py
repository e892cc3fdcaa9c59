"""Weights in pieces over many processes (FSDP2): each holds a part of every matrix, its gradient and its moments.

A layer is put together when it is its turn, and taken apart again; what is outside the layers (embedding, norm,
head) is put together for a whole pass. Whoever needs a whole tensor, to write it or to count, asks for it
here, on all processes at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OnggiError


def shard(objective: nn.Module, model: nn.Module) -> None:
    """Take the weights of `model`, which is a part of `objective`, apart over all processes.

    Raises OnggiError where the model does not say what its layers are.
    """
    from torch.distributed.fsdp import fully_shard

    kinds = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise OnggiError(f"shard: {type(model).__name__} does not say what its layers are; leave it out.")
    device = next(model.parameters()).device.type
    mesh = torch.distributed.device_mesh.init_device_mesh(device, (torch.distributed.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(objective, mesh=mesh)


def apart(objective: nn.Module) -> None:
    """Take apart again what a pass without a backward pass has left together."""
    from torch.distributed.fsdp import FSDPModule

    for module in objective.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; where it lies in pieces every process must ask."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """`tensor`, which is whole, on the device of `pattern` and in pieces where that is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    moved: Any = tensor.to(pattern.device)
    if isinstance(pattern, DTensor) and tensor.shape == pattern.shape:
        moved = distribute_tensor(moved, pattern.device_mesh, pattern.placements)
    return moved
