"""Healing a quantised model: its scales and the gains of its norms are trained end to end, as far as text held out gains.

The codes stay (or are rounded anew, see `grids.Learned`), so the model keeps its format and its size. Few numbers learn
from little text, and what a narrow text teaches them may be that text alone: so the damage to text that is held out is
measured as it goes, by language, and the weights are kept of the moment at which the language that loses most lost
least. That may be the beginning.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import languages as tags
from ..errors import OnggiError
from ..grids import Learned
from ..progress import say
from . import checkpoints
from .trainer import Trainer

BEST = "best"
# So many measurements without a gain end a training.
_PATIENCE = 3


class Gain(nn.Module):
    """The weight of a norm, (width,), when it is called: `weight`, moved by shares of what the norm multiplies by.

    gain: that, (width,): the weight, or 1 + weight as Gemma has it. What it gives is rounded to `weight`'s dtype, in fp32.
    """

    def __init__(self, weight: Tensor, gain: Tensor):
        super().__init__()
        self.first: Tensor
        self.gain: Tensor
        self.register_buffer("first", weight, persistent=False)
        self.register_buffer("gain", gain.float(), persistent=False)
        self.moved = nn.Parameter(torch.zeros_like(self.gain))

    def forward(self) -> Tensor:
        """The weight, fp32."""
        value = self.first.float() + self.gain * self.moved
        return value + (value.detach().to(self.first.dtype).float() - value.detach())

    @torch.no_grad()
    def stored(self) -> Tensor:
        """The weight as it is stored now."""
        return self().to(self.first.dtype)

    def right_inverse(self, _value: Tensor) -> tuple[()]:
        """Nothing is kept of what stood there."""
        return ()


def fill(
    model: nn.Module,
    matrices: Mapping[str, Learned],
    plain: Mapping[str, Tensor],
    shared: Mapping[str, nn.Parameter],
    activations: Mapping[str, Callable[[Tensor], Tensor]],
) -> dict[str, Gain]:
    """Give a model without weights its parameters by name, as what is trained, in fp32; returns those of norms.

    matrices: parameters that are quantised. plain: as they are stored; those of norms become trained too. shared: another model's
    own. activations: module → what rounds its inputs. Raises OnggiError for a parameter that is in none of them.
    """
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    for name in [name for name, _ in model.named_parameters()]:
        if name in shared:
            _put(model, name, shared[name])
        elif name in plain:
            _put(model, name, nn.Parameter(plain[name].float(), requires_grad=False))
        elif name in matrices:
            learn(model, name, matrices[name])
        elif name not in tied:
            raise OnggiError(f"the quantised model holds no tensor for {name}.")
    model.tie_weights()  # type: ignore[operator]
    for name, rounded in activations.items():
        model.get_submodule(name).register_forward_pre_hook(_rounding(rounded))
    gains = {}
    for name, module in list(model.named_modules()):
        gain = _gain(module)
        if gain is not None and f"{name}.weight" in plain:
            gains[f"{name}.weight"] = Gain(plain[f"{name}.weight"], gain)
            learn(model, f"{name}.weight", gains[f"{name}.weight"])
    return gains


def learn(model: nn.Module, name: str, made: nn.Module) -> None:
    """Have the parameter `name` be what `made` gives."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    setattr(module, leaf, nn.Parameter(torch.empty(0), requires_grad=False))
    parametrize.register_parametrization(module, leaf, made, unsafe=True)


def made_once(matrices: Mapping[str, Learned]) -> Any:
    """In this context each parameter is made once for a pass, where there are a mixture's: it asks for each expert."""
    mixture = any(len(matrix.shape) > 2 for matrix in matrices.values())
    return parametrize.cached() if mixture else contextlib.nullcontext()


def _put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, parameter)


def _rounding(rounded: Callable[[Tensor], Tensor]) -> Any:
    def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        with torch.no_grad():
            change = rounded(inputs[0]) - inputs[0]
        return (inputs[0] + change, *inputs[1:])

    return hook


@torch.no_grad()
def _gain(module: nn.Module) -> Tensor | None:
    """What a norm multiplies each column by, (width,); None for what is no norm.

    Found by what it does: of 1, −1, 1, −1 … the mean is 0 and the mean square 1, so that RMSNorm and LayerNorm alike
    give back their gain (and bias).
    """
    own = dict(module.named_parameters(recurse=False))
    weight = own.get("weight")
    if weight is None or weight.dim() != 1 or any(module.children()) or isinstance(module, nn.Embedding):
        return None
    signs = torch.ones(1, len(weight), device=weight.device)
    signs[:, 1::2] = -1
    try:
        found: Tensor = ((module(signs) - module(-signs)) / 2 * signs)[0]
    except (RuntimeError, TypeError):
        return None
    return found if found.shape == weight.shape and bool(torch.isfinite(found).all()) else None


def _worst(damage: Mapping[str, float]) -> float:
    """Of the language that lost most; what is no number is worse than any."""
    return max(value if math.isfinite(value) else math.inf for value in damage.values())


class Healer(Trainer):
    """As `Trainer`. validate: model → language → damage, in nats; the weights at each measurement whose worst language lost
    less than at all before are kept in `folder`/best, and after three that did not the training ends. `go_back_to_best` then.
    """

    @property
    def damages(self) -> list[tuple[int, dict[str, float]]]:
        """(step, language → damage) of each measurement."""
        return [(line["step"], line["damage"]) for line in self.lines if "damage" in line]

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The damage of each language, noted, passed on and judged."""
        began, step = time.monotonic(), self.state.global_step
        found = self.measured()
        best = self._best()
        self._note({"step": step, "damage": found})
        measures = {f"eval_damage/{language}": value for language, value in found.items()}
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, {**measures})
        self.control.should_evaluate = False
        worst = max(found, key=found.__getitem__)
        mean = sum(found.values()) / len(found)
        say(f"Step {step}, held out: {tags.name(worst)} loses most, {found[worst]:.4f} (mean {mean:.4f}).")
        if best is None or _worst(found) < best[1]:
            if self.is_world_process_zero():
                checkpoints.save(self.folder / BEST, step, self.model)
        elif len([at for at, _ in self.damages if at > best[0]]) >= _PATIENCE:
            say(f"No gain since step {best[0]}: enough.")
            self.control.should_training_stop = True
        self._clock += time.monotonic() - began
        return measures

    def _best(self) -> tuple[int, float] | None:
        """(step, damage of its worst language) of the best measurement, the first of equals."""
        found = [(step, _worst(damage)) for step, damage in self.damages]
        return min(found, key=lambda one: one[1]) if found else None

    def go_back_to_best(self) -> int:
        """Put the weights of the best measurement back; returns its step."""
        best = self._best()
        assert best is not None
        self.restore(best[0])
        return best[0]

    def restore(self, step: int) -> None:
        """Put the weights back that were the best at `step`. Raises OnggiError where they are not there whole."""
        kept = checkpoints.last(self.folder / BEST)
        if kept is None or kept.step != step:
            raise OnggiError(f"{self.folder / BEST}: is harmed; delete the output folder and run again.")
        checkpoints.restore(kept, self.model, None)

    def _load(self, kept: checkpoints.Kept) -> None:
        """Without what was best after it: that is to come yet."""
        checkpoints.drop_after(self.folder / BEST, kept.step)
        super()._load(kept)
