"""Scales moved between a layer's inputs and its weights before anything is rounded.

A linear module computes the same with its inputs divided and its weights multiplied by a scale for each
input column. AWQ (Lin et al., arXiv 2306.00978) does so to make the weights that meet large activations
large, and so finely rounded; SmoothQuant (Xiao et al., arXiv 2211.10438, eq. 4) to take the outliers out of
activations that are to be rounded themselves:

    AWQ:  s_j = mean|x_j|^α          SmoothQuant:  s_j = max|x_j|^α / max|w_j|^(1−α)

α is searched for each group of modules by the error of the group's output: over the languages' mean (AWQ)
or their worst (SmoothQuant), each language on tokens of its own, so that no language's outliers are the
price of another's. The division must be taken up by what makes the input: a norm's weight, the rows of an
earlier matrix. Which module can do that, and whether a norm multiplies by its weight or by 1 + weight (as
Gemma's), is found by trying on a few tokens, not by names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..models.decoder import Shared
from .schemes import Scheme, quantized_activations

if TYPE_CHECKING:
    from .passes import Counted, Matrix, Tap, _LayerWork

_STRENGTHS = [i / 10 for i in range(1, 11)]
# Rows of a group's matrices that a search looks at, evenly spaced.
_ROWS = 1024
# Tokens on which it is tried whether a module can take up scales, and how much of the change may be left.
_TRIED, _LEFT = 32, 0.05


@dataclass(frozen=True)
class Absorber:
    """A module (by its name in the layer) that can divide an input's columns. way: `weight`, a norm's;
    `one_plus`, a norm that multiplies by 1 + weight; `rows`, of a linear module.
    """

    name: str
    way: str

    def divided(self, module: nn.Module, scales: Tensor) -> dict[str, Tensor]:
        """The module's parameters that divide its output by `scales` (columns,), in fp32."""
        own = {name: value.data.float() for name, value in module.named_parameters(recurse=False)}
        if self.way == "one_plus":
            return {"weight": (1 + own["weight"]) / scales - 1}
        if self.way == "rows":
            own["weight"] = own["weight"] / scales.unsqueeze(1)
        else:
            own["weight"] = own["weight"] / scales
        if "bias" in own:
            own["bias"] = own["bias"] / scales
        return own


def smooth(work: _LayerWork, groups: Sequence[Shared]) -> None:
    """Move scales into the matrices of a layer where its method or their schemes ask for it."""
    wanted: dict[str, tuple[Shared, list[Matrix]]] = {}
    for shared in groups:
        matrices = [work.linears[name] for name in shared.names if name in work.linears]
        awq = work.owner.method.name == "awq"
        if matrices and (awq or (matrices[0].scheme.smooth and shared.producer)):
            wanted[shared.names[0]] = shared, matrices
    if not wanted:
        smoothed = [name for name, matrix in work.linears.items() if matrix.scheme.smooth]
        work.owner.unsmoothed += [work.linears[name].name for name in smoothed[:1]]
        return
    samples = _samples(work, wanted)
    for first, (shared, matrices) in wanted.items():
        absorber = _absorber(work, shared, matrices, groups)
        if absorber is None:
            work.owner.unsmoothed.append(matrices[0].name)
            continue
        found = _search(samples[first], [matrix.original for matrix in matrices], matrices[0].scheme)
        for matrix in matrices:
            matrix.migration = found[0] if found else 0.0
        if found:
            _move(work, absorber, matrices, found[1])


def _samples(work: _LayerWork, wanted: dict[str, tuple[Shared, list[Matrix]]]) -> dict[str, list[Tensor]]:
    """Inputs of each group, for each language (tokens, columns) fp32, as the layer gives them now."""
    from .passes import Tap

    owner = work.owner
    taps = {first: Tap(matrices) for first, (_, matrices) in wanted.items()}
    found: dict[str, list[list[Tensor]]] = {first: [[] for _ in owner.calibration.names] for first in taps}
    names = {id(tap): first for first, tap in taps.items()}
    for batch in range(len(owner.batches)):
        positions = owner.seen(batch)

        def keep(tap: Tap, inputs: Tensor, _: Counted, positions: list[Tensor] = positions) -> None:
            rows = inputs.reshape(-1, inputs.shape[-1])
            for language, here in enumerate(positions):
                found[names[id(tap)]][language].append(rows[here].float())

        work.on_input = keep
        owner.drive(batch, work.forward(batch, taps, {}))
    return {first: [torch.cat(parts) for parts in languages] for first, languages in found.items()}


def _absorber(
    work: _LayerWork, shared: Shared, matrices: Sequence[Matrix], groups: Sequence[Shared]
) -> Absorber | None:
    """What can take up scales of the group's input; None where nothing can."""
    columns = matrices[0].original.shape[1]
    candidates = []
    if shared.producer:
        candidates = [Absorber(shared.producer, way) for way in ("weight", "one_plus")]
    elif work.owner.method.name == "awq":
        before = [name for group in groups[: groups.index(shared)] for name in group.names]
        candidates = [
            Absorber(name, "rows")
            for name in reversed(before)
            if name in work.linears and len(work.linears[name].original) == columns
        ]
    # Powers of two: moving them back and forth loses nothing.
    scales = torch.ones(columns, device=matrices[0].computing.device)
    scales[::2], scales[1::3] = 2.0, 0.5
    return next((each for each in candidates if _takes_up(work, each, matrices, scales)), None)


def _takes_up(work: _LayerWork, absorber: Absorber, matrices: Sequence[Matrix], scales: Tensor) -> bool:
    """Whether the layer's output stays when the matrices are multiplied and the module divides."""
    module = work.layer.get_submodule(absorber.name)
    own = dict(module.named_parameters(recurse=False))
    if not {"weight"} <= set(own) <= {"weight", "bias"} or len(own["weight"]) != len(scales):
        return False
    plain = _outcome(work)
    kept = [matrix.computing.clone() for matrix in matrices]
    for matrix in matrices:
        matrix.computing.mul_(scales)
    only_multiplied = _outcome(work)
    before = {name: value.data for name, value in own.items()}
    for name, value in absorber.divided(module, scales).items():
        own[name].data = value.to(own[name].dtype)
    both = _outcome(work)
    for name, value in before.items():
        own[name].data = value
    for matrix, value in zip(matrices, kept, strict=True):
        matrix.computing.copy_(value)
    return bool((both - plain).norm() < _LEFT * (only_multiplied - plain).norm())


def _outcome(work: _LayerWork) -> Tensor:
    """The layer's output on the first tokens."""

    def plain(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return forward(*args, **kwargs)

    output = work.owner.drive(0, plain, short=_TRIED)
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states.float()


def _search(
    samples: Sequence[Tensor], originals: Sequence[Tensor], scheme: Scheme
) -> tuple[float, Tensor] | None:
    """The strength α and its scales (columns,) with the least output error; None where no scales are best."""
    assert scheme.grid
    weight = torch.cat([original.float() for original in originals])
    # Before the rows are thinned out: SmoothQuant's share of the weights is their largest.
    largest = weight.abs().amax(dim=0).clamp_min(1e-5)
    weight = weight[:: -(-len(weight) // _ROWS)]
    samples = [rows for rows in samples if len(rows)]
    if scheme.smooth:
        size = torch.stack([rows.abs().amax(dim=0) for rows in samples]).amax(dim=0).clamp_min(1e-5)
    else:
        size = torch.stack([rows.abs().mean(dim=0) for rows in samples]).mean(dim=0).clamp_min(1e-5)
    exact = [rows @ weight.T for rows in samples]

    def damage(scales: Tensor | None) -> float:
        moved = weight if scales is None else weight * scales
        assert scheme.grid
        steps = scheme.grid.fit(moved, search=False)
        decoded = scheme.grid.decode(scheme.grid.round(moved, steps), steps).T
        errors = []
        for rows, wanted in zip(samples, exact, strict=True):
            inputs = rows if scales is None else rows / scales
            output = quantized_activations(inputs, scheme.activations) @ decoded
            errors.append(float((output - wanted).square().sum() / wanted.square().sum().clamp_min(1e-30)))
        return max(errors) if scheme.smooth else sum(errors) / len(errors)

    best, least = None, damage(None)
    for strength in _STRENGTHS:
        scales = size**strength
        if scheme.smooth:
            scales = scales / largest ** (1 - strength)
        scales = scales / (scales.max() * scales.min()).sqrt()
        error = damage(scales)
        if error < least:
            best, least = (strength, scales), error
    return best


def _move(work: _LayerWork, absorber: Absorber, matrices: Sequence[Matrix], scales: Tensor) -> None:
    """Divide in the absorber, multiply in the matrices; both as they will be stored."""
    module = work.layer.get_submodule(absorber.name)
    own = dict(module.named_parameters(recurse=False))
    if absorber.way == "rows":
        rows = work.linears[absorber.name]
        rows.original = rows.original.float() / scales.unsqueeze(1)
        rows.computing.copy_(rows.original)
        if "bias" in own:
            _keep(work, absorber.name, "bias", own["bias"].data.float() / scales)
    else:
        before = own["weight"].data.float() + (absorber.way == "one_plus")
        divided = absorber.divided(module, scales)
        for name, value in divided.items():
            _keep(work, absorber.name, name, value)
        # The norm's weight is stored coarsely: what it really divides by is what is multiplied with.
        after = own["weight"].data.float() + (absorber.way == "one_plus")
        scales = torch.where((before != 0) & (after != 0), before / after, 1.0)
    for matrix in matrices:
        matrix.original = matrix.original.float() * scales
        matrix.computing.copy_(matrix.original)


def _keep(work: _LayerWork, module: str, leaf: str, value: Tensor) -> None:
    """Give a small parameter its new value, rounded to the dtype that the checkpoint stores it in."""
    name = f"{module}.{leaf}"
    source = work.owner.names.one[work.place + name]
    stored = value.to(work.owner.source.entries[source].dtype)
    work.changed[name] = stored
    parameter = work.layer.get_parameter(name)
    parameter.data = stored.to(parameter.dtype)
