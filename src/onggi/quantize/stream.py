"""Quantise a checkpoint a decoder layer at a time, in one pass over the calibration text.

The model's own forward runs once over the calibration tokens with no weights in it. As it reaches
a layer, that layer's weights are read; as it reaches a group of linear modules that share an input,
the second moments of that input are taken, the group is solved, and the pass goes on *through the
quantised weights*. So every linear module is solved for the inputs it will really get, the text
passes through each weight once (not twice, as where moments and outputs are taken in separate
passes), and memory holds one layer, its moments and the states between two layers.

A finished layer is a shard of the new checkpoint; with the states that left it, it is also the
place from which a killed run goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import ledger
from ..errors import OnggiError
from ..grids import IntegerGrid
from ..models import checkpoint as checkpoints
from ..models.checkpoint import Checkpoint, Pending, copied
from ..models.decoder import Decoder, drop, fill, sharing
from ..progress import Progress, say
from . import solver
from .balance import Calibration
from .moments import second_moments

log = logging.getLogger(__name__)

# Stores one quantised matrix: (name, grid, codes, scales) → the tensors of the file.
Store = Callable[[str, IntegerGrid, Tensor, Tensor], dict[str, Pending]]
_GROUPS = (128, 64, 32)


@dataclass(frozen=True)
class Layer:
    """One linear module as quantised. error: relative output error on the calibration text, None
    for rounding without text; rounding_error: what rounding to the same scales would have had; damping:
    what it took to solve it.
    """

    name: str
    group: int | None
    error: float | None = None
    rounding_error: float | None = None
    damping: float | None = None


def grid_for(columns: int, grid: IntegerGrid) -> IntegerGrid:
    """`grid`, or the next smaller group that divides `columns` (SmolLM2 has 576 = 9 · 64)."""
    if grid.group is None or columns % grid.group == 0:
        return grid
    for group in _GROUPS:
        if group < grid.group and columns % group == 0:
            return IntegerGrid(grid.bits, group, grid.dtype)
    raise OnggiError(
        f"{columns} input columns are not a multiple of 32; choose the scheme per channel (w4a16)."
    )


def shard_name(index: int, total: int) -> str:
    """File of layer `index`; the rest of the model is the shard after the last layer."""
    return f"model-{index + 1:05d}-of-{total + 1:05d}.safetensors"


def quantize_layers(
    source: Checkpoint,
    decoder: Decoder,
    grid: IntegerGrid,
    store: Store,
    out: Path,
    calibration: Calibration | None,
    bar: Progress,
    tick: Callable[[], None],
    device: torch.device,
    damping: float = 0.01,
) -> list[Layer]:
    """Write the quantised shards of `source` to `out`, by rounding where there is no calibration.

    Shards that are already there are kept. Returns what was done to each linear module.
    Raises OnggiError naming the layer for activations that are not finite.
    """
    total = len(decoder.layers)
    done = _finished(out, total)
    records: list[Layer] = []
    for index in range(done):
        records += [Layer(**entry) for entry in ledger.read_json(out / f"layer-{index:05d}.json")]
    bar.skip(done)

    def keep(index: int, tensors: Mapping[str, Pending], layers: list[Layer]) -> None:
        checkpoints.write_shard(out / shard_name(index, total), tensors)
        ledger.write_json(out / f"layer-{index:05d}.json", [vars(layer) for layer in layers])
        records.extend(layers)
        tick()
        bar.step(1, f"layer {index + 1} of {total}")

    if done < total:
        if calibration is None:
            for index in range(done, total):
                keep(index, *_round_layer(source, decoder, index, grid, store))
        else:
            _Pass(source, decoder, grid, store, out, calibration, keep, device, damping).run(done)
    for file in out.glob("states-*"):
        file.unlink()
    return records


def write_rest(source: Checkpoint, decoder: Decoder, out: Path) -> None:
    """Write what is not in a decoder layer (embedding, last norm, head) as the last shard."""
    total = len(decoder.layers)
    rest = [name for name in source.entries if not name.startswith(f"{decoder.prefix}.")]
    path = out / shard_name(total, total)
    if not path.is_file():
        checkpoints.write_shard(path, {name: copied(source, name) for name in rest})


def _finished(out: Path, total: int) -> int:
    """Layers whose shard and record are both there; the states must be those that left the last."""
    done = 0
    while done < total and (out / f"layer-{done:05d}.json").is_file():
        done += 1
    return done


def _round_layer(
    source: Checkpoint, decoder: Decoder, index: int, grid: IntegerGrid, store: Store
) -> tuple[dict[str, Pending], list[Layer]]:
    tensors, layers = _untouched(source, decoder, index), []
    for name in decoder.linears(index):
        full = f"{decoder.layer_name(index)}.{name}"
        weight = source.tensor(f"{full}.weight")
        own = grid_for(weight.shape[1], grid)
        codes, scales = solver.round_to_nearest(weight, own)
        tensors |= store(full, own, codes, scales)
        layers.append(Layer(full, own.group))
    return tensors, layers


def _untouched(source: Checkpoint, decoder: Decoder, index: int) -> dict[str, Pending]:
    """The layer's tensors that are not weights of linear modules: norms, biases."""
    start = f"{decoder.layer_name(index)}."
    weights = {f"{start}{name}.weight" for name in decoder.linears(index)}
    names = [name for name in source.entries if name.startswith(start) and name not in weights]
    return {name: copied(source, name) for name in names}


class _Stop(Exception):
    """Ends the model's forward after the last layer: its head is not needed."""


class _Pass:
    """The one pass over the calibration text; see the module's docstring."""

    def __init__(
        self,
        source: Checkpoint,
        decoder: Decoder,
        grid: IntegerGrid,
        store: Store,
        out: Path,
        calibration: Calibration,
        keep: Callable[[int, Mapping[str, Pending], list[Layer]], None],
        device: torch.device,
        damping: float,
    ):
        self.source, self.decoder, self.grid, self.store = source, decoder, grid, store
        self.out, self.keep, self.device, self.damping = out, keep, device, damping
        self.ids = calibration.ids.to(device)
        self.weights = calibration.weights.reshape(-1).to(device)
        self.dtype = next(decoder.model.parameters()).dtype
        self.done = 0
        self.singular: dict[str, float] = {}  # first module of a group → the damping it took

    def run(self, done: int) -> None:
        """Quantise the layers from `done` on."""
        self.done = done
        if done:
            self.states, self.as_tuple = self._load_states(done - 1)
        for index, layer in enumerate(self.decoder.layers):
            layer.forward = self._visit(index, layer, layer.forward)
        # Buffers outside the layers (rotary frequencies) follow the computation.
        for module in self.decoder.model.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                module._buffers[name] = buffer.to(self.device)
        self._fill_others()
        ids = self._embed()
        try:
            with torch.no_grad():
                self.decoder.model(input_ids=ids, use_cache=False)
        except _Stop:
            pass
        if self.singular:
            say(
                f"Inputs nearly singular in {len(self.singular)} groups of modules (first: "
                f"{next(iter(self.singular))}); solved with a damping of up to {max(self.singular.values()):g}."
            )

    def _fill_others(self) -> None:
        """Read what stands before the layers besides the embedding: positions, a norm."""
        apart = [self.decoder.embedding, self.decoder.model.get_output_embeddings()]  # type: ignore[operator]
        for name, module in self.decoder.model.named_modules():
            own = dict(module.named_parameters(recurse=False))
            if not own or module in apart or name.startswith(f"{self.decoder.prefix}."):
                continue
            fill(module, {leaf: self.source.tensor(f"{name}.{leaf}") for leaf in own}, self.dtype)
            module.to(self.device)

    def _embed(self) -> Tensor:
        """Put just the calibration text's rows into the embedding; the ids into those rows."""
        embedding = self.decoder.embedding
        unique, ids = torch.unique(self.ids, return_inverse=True)
        name = f"{self.decoder.name_of(embedding)}.weight"
        rows = self.source.rows(name, unique.cpu()).to(self.device, self.dtype)
        embedding.weight = nn.Parameter(rows, requires_grad=False)
        embedding.padding_idx = None  # type: ignore[assignment]
        return ids

    def _visit(self, index: int, layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def visit(*args: Any, **kwargs: Any) -> Any:
            if index < self.done:
                # Layers of an earlier run: only what left the last of them matters.
                return (self.states,) if self.as_tuple else self.states
            groups = _groups(layer, forward, args, kwargs)
            work = _LayerWork(self, index, layer, groups)
            output = work.run(forward, args, kwargs)
            states = output[0] if isinstance(output, tuple) else output
            if not bool(torch.isfinite(states).all()):
                raise OnggiError(f"layer {index}: its outputs on the calibration text are not finite.")
            last = index == len(self.decoder.layers) - 1
            if not last:
                checkpoints.write_shard(
                    self.out / f"states-{index:05d}",
                    {"tuple" if isinstance(output, tuple) else "states": checkpoints.pending(states)},
                )
            tensors = _untouched(self.source, self.decoder, index) | work.tensors
            self.keep(index, tensors, work.layers)
            (self.out / f"states-{index - 1:05d}").unlink(missing_ok=True)
            drop(layer)
            if last:
                raise _Stop
            return output

        return visit

    def _load_states(self, index: int) -> tuple[Tensor, bool]:
        """The states that left a layer, and whether it returned them in a tuple."""
        from safetensors.torch import load_file

        found = load_file(self.out / f"states-{index:05d}")
        ((kind, states),) = found.items()
        return states.to(self.device), kind == "tuple"


def _groups(
    layer: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[list[str]]:
    """As `sharing`, of the layer's own forward."""
    replaced, layer.forward = layer.forward, forward
    try:
        return sharing(layer, args, kwargs)
    finally:
        layer.forward = replaced


class _LayerWork:
    """One layer in the pass: its weights are read, and each group solved as its input comes by."""

    def __init__(self, owner: _Pass, index: int, layer: nn.Module, groups: list[list[str]]):
        self.owner, self.index, self.layer = owner, index, layer
        self.tensors: dict[str, Pending] = {}
        self.layers: list[Layer] = []
        self.linears = owner.decoder.linears(index)
        self.first = {names[0]: names for names in groups}
        missed = set(self.linears) - {name for names in groups for name in names}
        if missed:
            raise OnggiError(f"layer {index}: calibration never reached {sorted(missed)[0]}.")

    def run(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        start = f"{self.owner.decoder.layer_name(self.index)}."
        source = self.owner.source
        tensors = {
            name: source.tensor(start + name).to(self.owner.device)
            for name, _ in self.layer.named_parameters()
            if start + name in source.entries
        }
        fill(self.layer, tensors, self.owner.dtype)
        # The solver wants the weights as they stand in the file, not as the pass computes with them.
        self.originals = {name: tensors[f"{name}.weight"] for name in self.linears}
        handles = [self.linears[name].register_forward_pre_hook(self._hook(name)) for name in self.first]
        try:
            return forward(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._solve(self.first[name], inputs[0])

        return hook

    def _solve(self, names: list[str], inputs: Tensor) -> None:
        owner, place = self.owner, f"{self.owner.decoder.layer_name(self.index)}"
        weights = [self.originals.pop(name) for name in names]
        grid = grid_for(weights[0].shape[1], owner.grid)
        moments = second_moments(inputs.reshape(-1, inputs.shape[-1]), owner.weights)
        try:
            solution = solver.solve(torch.cat(weights), moments, grid, damping=owner.damping)
        except OnggiError as error:
            raise OnggiError(f"{place}.{names[0]}: {error}.") from error
        if solution.damping > owner.damping:
            owner.singular[f"{place}.{names[0]}"] = solution.damping
        log.info("%s.%s: %.5f (rounding %.5f)", place, names[0], solution.error, solution.rounding_error)
        start = 0
        for name, weight in zip(names, weights, strict=True):
            stop = start + len(weight)
            codes, scales = solution.codes[start:stop], solution.scales[start:stop]
            full = f"{place}.{name}"
            self.tensors |= owner.store(full, grid, codes, scales)
            self.layers.append(
                Layer(full, grid.group, solution.error, solution.rounding_error, solution.damping)
            )
            linear = self.linears[name]
            linear.weight.data.copy_(grid.decode(codes, scales))
            start = stop
