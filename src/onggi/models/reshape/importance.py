"""What each part of a model does in each language: layers, heads, columns of the MLP, channels.

By activations alone, forwards only (Minitron, arXiv 2407.14679, section 2.2), but for each language apart, so
that a part which one language leans on is not lost in the mean of the others:

- a layer: how far it turns the residual stream, one less the cosine between what goes in and what comes out
  (block influence, section 2.3)
- a head, a column of an MLP: the size of what it adds to the residual stream, averaged over tokens
- a channel of the residual stream: its mean size after each norm that reads the stream, as a share of that
  norm's whole, averaged over the norms

The first position of a sequence does not count: models park there what they have no other use for, a hundred
times as large as anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import OnggiError, one_line

_READ = ("input_layernorm", "pre_feedforward_layernorm")


@dataclass(frozen=True)
class Importance:
    """Sums over one language's tokens, fp64. layers: (layers,). heads: (layers, heads). columns: (layers,
    mlp). channels: (norms that read the stream, width). squares: norm → (width,), of its input squared.
    """

    layers: Tensor
    heads: Tensor
    columns: Tensor
    channels: Tensor
    squares: dict[str, Tensor]
    tokens: int


@torch.no_grad()
def measure(
    folder: Path,
    runs: Mapping[str, Sequence[Sequence[int]]],
    device: torch.device,
    step: Callable[[int, str], None],
) -> dict[str, Importance]:
    """Language → what the parts of the model in `folder` do in it.

    runs: language → sequences of token ids, the start token first. step: called with how many tokens are done
    and their language. The model is held whole, in fp32. Raises OnggiError where transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # the library raises many kinds for what it cannot load
        raise OnggiError(f"{folder}: transformers cannot load this model ({one_line(error)}).") from error
    body = model.base_model.to(device).eval()
    found = {}
    for language, sequences in runs.items():
        taken = _Taken(body)
        try:
            for ids in sequences:
                body(input_ids=torch.tensor([ids], device=device), use_cache=False)
                step(len(ids), language)
        finally:
            taken.end()
        found[language] = taken.importance(sum(len(ids) - 1 for ids in sequences))
    return found


class _Taken:
    """Hooks on a decoder's body that add up what goes by."""

    def __init__(self, body: Any) -> None:
        self.layers = list(body.layers)
        self.sums: dict[tuple[str, str], Tensor] = {}
        self.handles: list[Any] = []
        gated = hasattr(self.layers[0], "pre_feedforward_layernorm")
        read = _READ if gated else (*_READ, "post_attention_layernorm")
        for index, layer in enumerate(self.layers):
            self._on(layer, self._turned(str(index)))
            self._on(layer.self_attn.o_proj, self._heads(str(index), layer.self_attn))
            self._on(layer.mlp.down_proj, self._columns(str(index)))
            for name, module in layer.named_children():
                if name.endswith("layernorm"):
                    self._on(module, self._norm(f"model.layers.{index}.{name}.weight", name in read))
        self._on(body.norm, self._norm("model.norm.weight", True))

    def _on(self, module: Any, hook: Callable[[Tensor, Tensor], None]) -> None:
        def called(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            made = output[0] if isinstance(output, tuple) else output
            hook(given[0, 1:], made[0, 1:])  # (tokens, columns), less the first position

        self.handles.append(module.register_forward_hook(called, with_kwargs=True))

    def _add(self, kind: str, name: str, value: Tensor) -> None:
        value = value.double().cpu()
        self.sums[kind, name] = self.sums[kind, name] + value if (kind, name) in self.sums else value

    def _turned(self, name: str) -> Callable[[Tensor, Tensor], None]:
        def hook(given: Tensor, made: Tensor) -> None:
            self._add("layer", name, (1 - torch.cosine_similarity(given, made, dim=-1)).sum())

        return hook

    def _heads(self, name: str, attention: Any) -> Callable[[Tensor, Tensor], None]:
        head = attention.head_dim

        def hook(given: Tensor, _made: Tensor) -> None:
            weight = attention.o_proj.weight
            parts = [
                (given[:, start : start + head] @ weight[:, start : start + head].T).norm(dim=-1).sum()
                for start in range(0, given.shape[1], head)
            ]
            self._add("heads", name, torch.stack(parts))

        return hook

    def _columns(self, name: str) -> Callable[[Tensor, Tensor], None]:
        weight = self.layers[int(name)].mlp.down_proj.weight

        def hook(given: Tensor, _made: Tensor) -> None:
            self._add("columns", name, given.abs().sum(dim=0) * weight.norm(dim=0))

        return hook

    def _norm(self, name: str, reads: bool) -> Callable[[Tensor, Tensor], None]:
        def hook(given: Tensor, made: Tensor) -> None:
            self._add("squares", name, given.square().sum(dim=0))
            if reads:
                self._add("channels", name, made.abs().sum(dim=0))

        return hook

    def end(self) -> None:
        for handle in self.handles:
            handle.remove()

    def importance(self, tokens: int) -> Importance:
        def stacked(kind: str) -> Tensor:
            return torch.stack([value for (of, _), value in self.sums.items() if of == kind])

        names = [str(index) for index in range(len(self.layers))]
        return Importance(
            torch.stack([self.sums["layer", name] for name in names]),
            torch.stack([self.sums["heads", name] for name in names]),
            torch.stack([self.sums["columns", name] for name in names]),
            stacked("channels"),
            {name: value for (kind, name), value in self.sums.items() if kind == "squares"},
            tokens,
        )
