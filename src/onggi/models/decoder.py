"""A decoder's structure, found by looking at it, not by a list of model names.

The model is built without weights (parameters on the meta device, buffers such as rotary
frequencies real), so that its own code says how embedding, masks, positions and layers fit
together, whatever the architecture; weights are put in a layer at a time and taken out again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from ..errors import OnggiError, one_line


@dataclass(frozen=True)
class Decoder:
    """model: the skeleton. prefix: name of the layer list, `model.layers`. layers: its modules."""

    model: nn.Module
    prefix: str
    layers: nn.ModuleList

    @property
    def embedding(self) -> nn.Module:
        """The input embedding."""
        module: nn.Module = self.model.get_input_embeddings()  # type: ignore[operator]
        return module

    def name_of(self, module: nn.Module) -> str:
        """Dotted name of `module` in the model."""
        return next(name for name, found in self.model.named_modules() if found is module)

    def layer_name(self, index: int) -> str:
        """Dotted name of one layer, `model.layers.3`."""
        return f"{self.prefix}.{index}"

    def others(self) -> list[str]:
        """Names of the linear modules that are in no decoder layer: the output head."""
        return [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and not name.startswith(f"{self.prefix}.")
        ]

    def linears(self, index: int) -> dict[str, nn.Linear]:
        """The linear modules of one layer by their name within it, in the order of the code."""
        return {
            name: module
            for name, module in self.layers[index].named_modules()
            if isinstance(module, nn.Linear)
        }

    def experts(self, index: int) -> dict[str, nn.Module]:
        """The modules of one layer that hold fused experts, by their name within it."""
        return {name: module for name, module in self.layers[index].named_modules() if fused_experts(module)}

    def left(self, index: int) -> dict[str, str]:
        """Parameters of one layer that are matrices and stay as they are → why; by their name within it."""
        known = {f"{name}.weight" for name in self.linears(index)}
        known |= {f"{name}.{leaf}" for name in self.experts(index) for leaf in ("gate_up_proj", "down_proj")}
        found = {}
        for name, parameter in self.layers[index].named_parameters():
            if name in known or parameter.dim() < 2:
                continue
            owner = self.layers[index].get_submodule(name.rpartition(".")[0])
            routes = parameter.dim() == 2 and any("expert" in key for key in vars(owner))
            found[name] = (
                "a router: few weights, and every choice of experts hangs on them"
                if routes
                else f"{type(owner).__name__} is no linear module"
            )
        return found


def skeleton(folder: Path, dtype: torch.dtype) -> Decoder:
    """The decoder of a model folder, without weights; its layers compute in `dtype`.

    Raises OnggiError where transformers does not know the model or no list of decoder layers with
    linear modules is found.
    """
    import transformers
    from accelerate import init_empty_weights

    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=False
            )
    except Exception as error:  # the library raises many kinds for what it cannot build
        raise OnggiError(f"{folder}: transformers cannot build this model ({one_line(error)}).") from error
    model.eval()
    model.config.use_cache = False
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module)
        and any(isinstance(part, nn.Linear) for part in module[0].modules())
    ]
    if not lists:
        raise OnggiError(f"{folder}: no decoder layers with linear modules found in {type(model).__name__}.")
    # The list of layers holds all others (experts, heads), so its name is the shortest.
    prefix, layers = min(lists, key=lambda item: item[0].count("."))
    return Decoder(model, prefix, layers)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Give `module` its parameters by their names within it, in `dtype`; OnggiError where one lacks."""
    for name, parameter in list(module.named_parameters()):
        if name not in tensors:
            raise OnggiError(f"the checkpoint holds no tensor for {name}.")
        if tensors[name].shape != parameter.shape:
            raise OnggiError(
                f"tensor {name} has shape {tuple(tensors[name].shape)}, the config asks for "
                f"{tuple(parameter.shape)}."
            )
        owner, _, leaf = name.rpartition(".")
        value = nn.Parameter(tensors[name].to(dtype), requires_grad=False)
        setattr(module.get_submodule(owner), leaf, value)


def drop(module: nn.Module) -> None:
    """Take the parameters of `module` out of memory again."""
    for name, parameter in list(module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        empty = nn.Parameter(parameter.to("meta"), requires_grad=False)
        setattr(module.get_submodule(owner), leaf, empty)


@dataclass(frozen=True)
class Shared:
    """Linear modules of a layer that share one input, in order of use. producer: the module whose output
    that input is as it stands (a norm), None where it is computed from several.
    """

    names: list[str]
    producer: str | None


def sharing(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Shared]:
    """The layer's linear modules, grouped by the input they share, in order of use.

    The layer is run once on the meta device: nothing is computed. Query, key and value share one
    input, gate and up another; their second moments are the same and they are solved together. Fused
    experts, whose way depends on values, are passed by. Raises OnggiError where the layer cannot be
    run so.
    """
    seen: list[tuple[Tensor, list[str]]] = []
    made: list[tuple[Tensor, str]] = []

    def enter(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            for tensor, names in seen:
                if tensor is inputs[0]:
                    names.append(name)
                    return
            seen.append((inputs[0], [name]))

        return hook

    def leave(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                made.append((output, name))

        return hook

    handles, replaced = [], []
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_pre_hook(enter(name)))
        elif not any(module.children()) and any(True for _ in module.parameters(recurse=False)):
            handles.append(module.register_forward_hook(leave(name)))
        if fused_experts(module):
            replaced.append((module, module.forward))
            module.forward = lambda hidden, *_args, **_kwargs: torch.empty_like(hidden)

    def to_meta(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) else value

    buffers = {name: buffer.to("meta") for name, buffer in layer.named_buffers()}
    try:
        with torch.no_grad():
            functional_call(layer, buffers, tree_map(to_meta, args), tree_map(to_meta, kwargs))
    except (RuntimeError, NotImplementedError) as error:
        raise OnggiError(f"{type(layer).__name__}: cannot be traced ({one_line(error)}).") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, forward in replaced:
            module.forward = forward
    return [
        Shared(names, next((name for output, name in made if output is tensor), None))
        for tensor, names in seen
    ]


def fused_experts(module: nn.Module) -> bool:
    """Whether `module` holds the experts of a mixture as transformers 5 fuses them: `gate_up_proj`
    (experts, 2·inner, hidden) and `down_proj` (experts, hidden, inner), gate before up, without biases.
    """
    own = dict(module.named_parameters(recurse=False))
    return (
        set(own) == {"gate_up_proj", "down_proj"}
        and all(parameter.dim() == 3 for parameter in own.values())
        and own["gate_up_proj"].shape[1] == 2 * own["down_proj"].shape[2]
        and getattr(module, "has_gate", False)
        and getattr(module, "is_concatenated", False)
        and not any(getattr(module, name, False) for name in ("is_transposed", "has_post_expert_norm"))
    )
