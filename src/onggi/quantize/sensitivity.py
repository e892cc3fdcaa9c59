"""What each choice of bits for each part of a model does to each language: layer × language × choice.

One part of one layer at a time (query, key and value; gate and up; each other matrix by itself) is quantised
by each choice, the rest left as it is, and text held out of calibration goes on from there to the output head.
The divergence is then

    KL(P ‖ Q) = log E_P[exp x] − E_P[x],      x = logit under Q − logit under P,

an expectation under the model as it is. So for each position some tokens are drawn from P once, and a trial
needs the logits of these alone: a few hundred rows of a head of hundreds of thousands. All trials see the same
tokens, so that their differences are far less noisy than the numbers themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import ledger
from ..errors import OnggiError
from ..head import Head, drawn, drawn_kl
from ..models.checkpoint import Checkpoint
from ..models.decoder import Decoder, drop, fill, sharing
from . import solver
from .balance import Calibration
from .fairness import nats
from .moments import second_moments
from .passes import Method, Pass
from .schemes import Scheme

# Tokens drawn at each position.
DRAWN = 128
# Bytes of the states that trials leave a layer with, held until they are passed on through the later ones. More
# trials go in several turns, each of which reads the later layers again.
LIMIT = 1 << 30


@dataclass(frozen=True)
class Unit:
    """Matrices of one layer that get one scheme: their modules' names in the checkpoint, and how many weights
    they have. damage: choice → language → KL in nats a token of quantising this unit alone. bits: choice →
    bits of all of it, with scales.
    """

    layer: int
    names: list[str]
    weights: int
    damage: dict[str, dict[str, float]]
    bits: dict[str, float]


def measure(
    source: Checkpoint,
    decoder: Decoder,
    choices: Sequence[Scheme],
    calibration: Calibration,
    held_out: Calibration,
    output: Head,
    folder: Path,
    file: Path,
    device: torch.device,
    method: Method,
    step: Callable[[int], None],
) -> tuple[list[Unit], dict[str, float]]:
    """The units of every layer; and language → nats a token that the model as it is needs for the held-out text.
    file: JSON lines, a unit each, added layer by layer and read back by a run that goes on. step: is told of each
    layer. Raises OnggiError for experts, which are not told apart here.
    """
    done = _read(file)
    trials = _Trials(
        source, decoder, calibration.watching(held_out), output, held_out, folder, device, method
    )
    with ledger.writing(file) as aside:
        aside.write_text("".join(map(_line, done)), encoding="utf-8")
    for index in range(len(decoder.layers)):
        known = [unit for unit in done if unit.layer == index]
        units = trials.layer(index, choices, known)
        if not known:
            with file.open("a", encoding="utf-8") as out:
                out.writelines(_line(unit) for unit in units)
            done += units
        step(index)
    return done, trials.nats()


class _Trials:
    """The text on its way through the model as it is, with excursions."""

    def __init__(
        self,
        source: Checkpoint,
        decoder: Decoder,
        calibration: Calibration,
        output: Head,
        held_out: Calibration,
        folder: Path,
        device: torch.device,
        method: Method,
    ):
        if any(decoder.experts(index) for index in range(len(decoder.layers))):
            raise OnggiError(
                "budget: a mixture's experts cannot be given bits apart yet; leave --budget out."
            )
        nothing: Any = lambda *_: None  # noqa: E731
        self.walk = Pass(source, decoder, nothing, nothing, folder, calibration, nothing, device, method)
        self.walk.prepare()
        self.decoder, self.held_out, self.output, self.method = decoder, held_out, output, method
        self.first = len(self.walk.ids) - calibration.watched
        self.tokens: Tensor | None = None
        self.before: Tensor | None = None

    def layer(self, index: int, choices: Sequence[Scheme], known: list[Unit]) -> list[Unit]:
        """The units of one layer; `known` ones are not tried again, only passed."""
        walk, layer = self.walk, self.decoder.layers[index]
        if self.before is None:
            self._reference()
        walk.index = index
        groups = walk.drive(0, lambda forward, args, kwargs: _shared(layer, forward, args, kwargs), short=8)
        tensors = self._fill(index)
        moments = self._pass_on(index, groups)
        if known:
            drop(layer)
            return known
        place = f"{self.decoder.layer_name(index)}."
        modules = dict(layer.named_modules())
        units: list[Unit] = []
        states: list[tuple[Tensor, bool]] = []
        damages: list[dict[str, float]] = []
        trials: dict[str, dict[str, int]] = {}  # first module of a group → scheme → its place in `damages`
        for names in groups:
            linears: list[Any] = [modules[name] for name in names]
            originals = [tensors[f"{name}.weight"] for name in names]
            stacked = torch.cat(originals)
            bits: dict[str, float] = {}
            for choice in choices:
                if not choice.fits(stacked.shape[1]):
                    raise OnggiError(
                        f"choices: {choice.name} does not fit {place}{names[0]}, whose {stacked.shape[1]} columns are no multiple "
                        "of 32; choose among those with a scale for each row (--choices w4a16,w8a16)."
                    )
                own = choice.for_columns(stacked.shape[1])
                assert own.grid
                bits[choice.name] = own.grid.bits_per_weight * stacked.numel()
                # Two choices may be the same in rows of this width: tried once.
                if own.name in trials.setdefault(names[0], {}):
                    continue
                trials[names[0]][own.name] = len(damages) + len(states)
                try:
                    found = solver.solve(
                        stacked,
                        moments[names[0]],
                        own.grid,
                        damping=self.method.damping,
                        feedback=self.method.name == "gptq",
                    )
                except OnggiError as error:
                    raise OnggiError(f"{place}{names[0]}: {error}.") from error
                rows = own.grid.decode(found.codes, found.steps).split([len(one) for one in originals])
                for linear, value in zip(linears, rows, strict=True):
                    linear.weight.data.copy_(value)
                states.append(self._excursion(index))
                if sum(one.nbytes for one, _ in states) + states[-1][0].nbytes > LIMIT:
                    damages += self._damages(index, states)
                    states.clear()
                for linear, value in zip(linears, originals, strict=True):
                    linear.weight.data.copy_(value)
            full = [walk.names.one[f"{place}{name}.weight"].removesuffix(".weight") for name in names]
            units.append(Unit(index, full, stacked.numel(), {}, bits))
        drop(layer)
        if states:
            damages += self._damages(index, states)
        for unit, names in zip(units, groups, strict=True):
            columns = modules[names[0]].in_features
            for choice in choices:
                tried = trials[names[0]][choice.for_columns(columns).name]
                unit.damage[choice.name] = dict(damages[tried])
        return units

    def nats(self) -> dict[str, float]:
        """language → nats a token that the model as it is needs for the held-out text."""
        assert self.before is not None
        return nats(self.before, self.output, self.held_out)

    def _fill(self, index: int) -> dict[str, Tensor]:
        walk, layer = self.walk, self.decoder.layers[index]
        place = f"{self.decoder.layer_name(index)}."
        tensors = {
            name: walk.names.tensor(walk.source, place + name).to(walk.device)
            for name, _ in layer.named_parameters()
        }
        fill(layer, tensors, walk.dtype)
        return tensors

    def _pass_on(self, index: int, groups: list[list[str]]) -> dict[str, Tensor]:
        """All text through a layer as it is; first module of a group → second moments of its input."""
        walk, found = self.walk, dict[str, Tensor]()
        modules = dict(self.decoder.layers[index].named_modules())

        def hook(name: str, weights: Tensor) -> Any:
            def add(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
                own = second_moments(inputs[0].reshape(-1, inputs[0].shape[-1]), weights)
                found[name] = found[name] + own if name in found else own

            return add

        for batch, rows in enumerate(walk.batches):
            weights = walk.weights[rows].reshape(-1)
            handles = [
                modules[names[0]].register_forward_pre_hook(hook(names[0], weights)) for names in groups
            ]
            try:
                output = walk.drive(batch, lambda forward, args, kwargs: forward(*args, **kwargs))
            finally:
                for handle in handles:
                    handle.remove()
            whole = isinstance(output, tuple)
            walk.states.save(index, batch, output[0] if whole else output, whole)
        walk.states.forget(index - 2)  # the last one's are where excursions start from
        return found

    def _watched(self, index: int) -> tuple[Tensor, bool] | None:
        """States of the watched sequences as they enter a layer; None before the first."""
        if not index:
            return None
        walk, parts, whole = self.walk, [], False
        for batch in range(len(walk.batches)):
            count = walk.watches(batch)
            if count:
                states, whole = walk.states.load(index - 1, batch)
                parts.append(states[-count:])
        return torch.cat(parts), whole

    def _excursion(self, index: int) -> tuple[Tensor, bool]:
        """The watched sequences through one layer as it stands now."""
        return self._onward(index, self._watched(index))

    def _rows(self) -> Iterator[slice]:
        """The watched sequences, as many at a time as a batch of the text has."""
        size = self.walk.batches[0].stop - self.walk.batches[0].start
        for start in range(self.first, len(self.walk.ids), size):
            yield slice(start, min(start + size, len(self.walk.ids)))

    def _cut(self, entering: tuple[Tensor, bool]) -> Iterator[tuple[slice, tuple[Tensor, bool]]]:
        """The same with their states."""
        states, whole = entering
        for rows in self._rows():
            yield rows, (states[rows.start - self.first : rows.stop - self.first], whole)

    def _onward(self, index: int, entering: tuple[Tensor, bool] | None) -> tuple[Tensor, bool]:
        """The watched sequences through one layer as it stands."""
        cut = self._cut(entering) if entering else ((rows, None) for rows in self._rows())
        found = [self.walk.onward(index, own, rows) for rows, own in cut]
        return torch.cat([states for states, _ in found]), found[0][1]

    def _finished(self, entering: tuple[Tensor, bool]) -> Tensor:
        """As the output head gets them."""
        return torch.cat([self.walk.finished(own, rows) for rows, own in self._cut(entering)])

    def _to_the_end(self, index: int, states: list[tuple[Tensor, bool]]) -> Iterator[Tensor]:
        """States that left a layer, through the later ones and to the head."""
        for later in range(index + 1, len(self.decoder.layers)):
            self._fill(later)
            states = [self._onward(later, one) for one in states]
            drop(self.decoder.layers[later])
        return (self._finished(one) for one in states)

    def _reference(self) -> None:
        """The watched sequences through the model as it is, and tokens drawn from what it predicts."""
        self._fill(0)
        first = self._onward(0, None)
        drop(self.decoder.layers[0])
        self.before = next(self._to_the_end(0, [first]))
        held = self.held_out
        self.there = (held.weights > 0)[:, 1:]
        self.owner = held.owner.unsqueeze(1).expand_as(self.there)[self.there]
        self.start = self.before[:, : self.there.shape[1]][self.there].float()
        self.tokens = drawn(self.start, self.output, DRAWN, seed=0)

    def _damages(self, index: int, states: list[tuple[Tensor, bool]]) -> list[dict[str, float]]:
        """What became of each language on the way to the end."""
        return [self._damage(end) for end in self._to_the_end(index, states)]

    def _damage(self, after: Tensor) -> dict[str, float]:
        assert self.tokens is not None
        states = after[:, : self.there.shape[1]][self.there].float()
        each = drawn_kl(self.start, states, self.output, self.tokens)
        return {name: float(each[self.owner == n].mean()) for n, name in enumerate(self.held_out.names)}


def _shared(
    layer: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[list[str]]:
    replaced, layer.forward = layer.forward, forward
    try:
        return [shared.names for shared in sharing(layer, args, kwargs)]
    finally:
        layer.forward = replaced


def _line(unit: Unit) -> str:
    return json.dumps(vars(unit), ensure_ascii=False) + "\n"


def _read(file: Path) -> list[Unit]:
    """Units of whole layers that an earlier run has measured."""
    if not file.is_file():
        return []
    lines = [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    units = [Unit(**json.loads(line)) for line in lines]
    last = max((unit.layer for unit in units), default=0)
    return [unit for unit in units if unit.layer < last]  # the last may be half of a layer
