"""Which tensors of a checkpoint a model's parameters are made of.

Mostly a parameter and its tensor have one name. transformers 5 computes the experts of a mixture from two
fused parameters each, while checkpoints (and vLLM) hold a matrix for every expert; and it renames what older
checkpoints called otherwise. Its own table of conversions says what becomes what.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OnggiError
from .checkpoint import Checkpoint


class Names:
    """one: parameter → its tensor. fused: parameter → for each part along its rows (gate, up) the tensors
    of the experts, in their order. strange: parameter → a tensor it is made from in another way.
    """

    def __init__(self, model: nn.Module, tensors: Iterable[str]):
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            Concatenate,
            MergeModulelist,
            WeightConverter,
            rename_source_key,
        )

        conversions: list[Any] = get_model_conversion_mapping(model)
        converters = [item for item in conversions if isinstance(item, WeightConverter)]
        renamings = [item for item in conversions if not isinstance(item, WeightConverter)]
        parameters = dict(model.named_parameters())
        prefix = getattr(model, "base_model_prefix", None)
        self.one: dict[str, str] = {}
        self.fused: dict[str, list[list[str]]] = {}
        self.strange: dict[str, str] = {}
        parts: dict[str, dict[str, list[str]]] = {}
        for tensor in tensors:
            name, pattern = rename_source_key(tensor, renamings, converters, prefix, parameters)
            if pattern is None:
                self.one[name] = tensor
            else:
                parts.setdefault(name, {}).setdefault(pattern, []).append(tensor)
        for name, found in parts.items():
            converter = next(item for item in converters if set(found) <= set(item.source_patterns))
            kinds = [type(operation) for operation in converter.operations]
            if kinds not in ([MergeModulelist], [MergeModulelist, Concatenate]):
                self.strange[name] = next(iter(found.values()))[0]
                continue
            self.fused[name] = [sorted(found.get(p, []), key=_number) for p in converter.source_patterns]

    def tensor(self, source: Checkpoint, parameter: str) -> Tensor:
        """The parameter's value. Raises OnggiError where the checkpoint lacks it."""
        if parameter in self.fused:
            parts = [[source.tensor(name) for name in names] for names in self.fused[parameter]]
            return torch.cat([torch.stack(part) for part in parts], dim=1)
        if parameter in self.strange:
            raise OnggiError(
                f"{source.folder}: {parameter} is made of {self.strange[parameter]} and others in a way "
                "that onggi does not know."
            )
        if parameter not in self.one:
            raise OnggiError(f"{source.folder}: holds no tensor for {parameter}.")
        return source.tensor(self.one[parameter])

    def has(self, parameter: str) -> bool:
        """Whether the checkpoint says anything of it."""
        return parameter in self.one or parameter in self.fused or parameter in self.strange

    def within(self, prefix: str) -> list[str]:
        """Tensors of the parameters and buffers whose name begins with `prefix`."""
        plain = [tensor for name, tensor in self.one.items() if name.startswith(prefix)]
        fused = [
            tensor
            for name, parts in self.fused.items()
            if name.startswith(prefix)
            for part in parts
            for tensor in part
        ]
        return plain + fused + [t for name, t in self.strange.items() if name.startswith(prefix)]


def _number(name: str) -> list[int]:
    """The numbers in a name, to sort experts by: 2 before 10."""
    return [int(part) for part in name.split(".") if part.isdigit()]
