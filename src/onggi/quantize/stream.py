"""Quantise a checkpoint a decoder layer at a time, in one pass over the calibration text.

A finished layer is a shard of the new checkpoint; with the states that left it, it is also the place
from which a killed run goes on. What happens to a layer on calibration text is in `passes`; without text
(or where a library has a grid of its own) its matrices are rounded one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .. import ledger
from ..errors import OnggiError
from ..grids import Steps
from ..models import checkpoint as checkpoints
from ..models.checkpoint import Checkpoint, Pending, copied
from ..models.decoder import Decoder
from ..models.names import Names
from ..progress import Progress
from . import solver
from .balance import Calibration
from .passes import Choose, Method, Pass, Store, chosen, left_as_is
from .records import Layer
from .schemes import Scheme

# Stores a matrix that a library quantises by itself: (name, scheme, weight) → the tensors of the file.
StoreWeight = Callable[[str, Scheme, Tensor], dict[str, Pending]]


_ROWS = 8192  # of an embedding rounded at a time


def unfit(scheme: Scheme, decoder: Decoder) -> dict[str, int]:
    """Linear modules of the layers whose rows `scheme` does not fit → the columns of these."""
    return {
        f"{decoder.layer_name(index)}.{name}": module.in_features
        for index in range(len(decoder.layers))
        for name, module in decoder.linears(index).items()
        if not scheme.fits(module.in_features)
    }


def uniform(scheme: Scheme, decoder: Decoder, *, embedding: bool) -> Scheme:
    """`scheme` with the one group that all linear modules which it fits can have, and the `embedding` where it is
    quantised: some layouts say one for the whole model. Raises OnggiError where it does not fit the embedding.
    """
    widths = {
        module.in_features
        for index in range(len(decoder.layers))
        for module in decoder.linears(index).values()
        if scheme.fits(module.in_features)
    }
    if embedding:
        widths.add(decoder.embedding.get_parameter("weight").shape[1])
    for width in sorted(widths):
        try:
            scheme = scheme.for_columns(width)
        except OnggiError as error:
            raise OnggiError(f"embedding: {error}") from error
    return scheme


def shard_name(index: int, total: int) -> str:
    """File of layer `index`; the rest of the model is the shard after the last layer."""
    return f"model-{index + 1:05d}-of-{total + 1:05d}.safetensors"


def quantize_layers(
    source: Checkpoint,
    decoder: Decoder,
    schemes: Scheme | Mapping[str, Scheme] | Choose,
    store: Store,
    out: Path,
    calibration: Calibration | None,
    bar: Progress,
    tick: Callable[[], None],
    device: torch.device,
    method: Method | None = None,
    *,
    store_weight: StoreWeight | None = None,
    room: int | None = None,
    watch: Callable[[Tensor], None] | None = None,
) -> list[Layer]:
    """Write the quantised shards of `source` to `out`, by rounding where there is no calibration.

    schemes: one for all matrices, or for each by its module's name in the checkpoint
    (`model.layers.3.mlp.up_proj`) as a mapping or a function; a module without one stays as it is. What
    vLLM fuses (query, key and value; gate and up) should have the same. room: numbers of the widest
    activation in one batch of the calibration text. watch: see `Pass.run`. Shards that are already there
    are kept. Returns what was done to each matrix.

    Raises OnggiError naming the layer for activations that are not finite.
    """
    choose = _chooser(schemes)
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
            names = Names(decoder.model, source.entries)
            for index in range(done, total):
                keep(index, *_round_layer(source, decoder, names, index, choose, store, store_weight, device))
        else:
            used = method or Method()
            Pass(source, decoder, choose, store, out, calibration, keep, device, used, room).run(done, watch)
    for file in out.glob("states-*"):
        file.unlink()
    return records


def _chooser(schemes: Scheme | Mapping[str, Scheme] | Choose) -> Choose:
    if isinstance(schemes, Scheme):
        one = schemes
        return lambda _name: one
    return schemes.get if isinstance(schemes, Mapping) else schemes


def write_rest(
    source: Checkpoint,
    decoder: Decoder,
    out: Path,
    embedding: Scheme | None = None,
    store: Store | None = None,
    device: torch.device | None = None,
) -> list[Layer]:
    """Write what is not in a decoder layer (embedding, last norm, head) as the last shard.

    embedding: the scheme that embedding and output head are rounded by, where they are, on `device`. Returns what was
    done to them.
    """
    total = len(decoder.layers)
    names = Names(decoder.model, source.entries)
    inside = set(names.within(f"{decoder.prefix}."))
    outer = [decoder.name_of(decoder.embedding), *decoder.others()] if embedding else []
    rounded = [names.one[f"{name}.weight"] for name in outer if f"{name}.weight" in names.one]
    path = out / shard_name(total, total)
    if not path.is_file():
        rest: dict[str, Pending] = {}
        for name in source.entries:
            if name in rounded and embedding and store:
                rest |= _round_rows(source, name, embedding, store, device)
            elif name not in inside:
                rest[name] = copied(source, name)
        checkpoints.write_shard(path, rest)
    scheme = embedding.name if embedding else ""
    group = embedding.group if embedding else None
    return [Layer(name.removesuffix(".weight"), group, scheme=scheme) for name in rounded]


def _round_rows(
    source: Checkpoint, tensor: str, scheme: Scheme, store: Store, device: torch.device | None
) -> dict[str, Pending]:
    """A large matrix rounded some rows at a time: in fp32 all of it would be the most memory of the run."""
    assert scheme.grid
    codes, scales = [], []
    for start in range(0, source.entries[tensor].shape[0], _ROWS):
        rows = source.part(tensor, slice(start, start + _ROWS)).to(device)
        found, steps = solver.round_to_nearest(rows, scheme.grid)
        codes.append(found.cpu())
        scales.append(steps.scale.cpu())
    return store(tensor.removesuffix(".weight"), scheme, torch.cat(codes), Steps(torch.cat(scales)))


def _finished(out: Path, total: int) -> int:
    """Layers whose shard and record are both there; the states must be those that left the last."""
    done = 0
    while done < total and (out / f"layer-{done:05d}.json").is_file():
        done += 1
    return done


def _round_layer(
    source: Checkpoint,
    decoder: Decoder,
    names: Names,
    index: int,
    choose: Choose,
    store: Store,
    store_weight: StoreWeight | None,
    device: torch.device,
) -> tuple[dict[str, Pending], list[Layer]]:
    quantized = chosen(decoder, names, choose, index)
    tensors = left_as_is(source, names, f"{decoder.layer_name(index)}.", quantized)
    layers = []
    for tensor, scheme in quantized.items():
        name, weight = tensor.removesuffix(".weight"), source.tensor(tensor)
        if scheme.grid is None:
            assert store_weight
            tensors |= store_weight(name, scheme, weight)
            layers.append(Layer(name, None, scheme=scheme.name))
            continue
        own = scheme.for_columns(weight.shape[1])
        assert own.grid
        codes, steps = solver.round_to_nearest(weight.to(device), own.grid)
        tensors |= store(name, own, codes, steps)
        layers.append(Layer(name, own.group, scheme=scheme.name))
    return tensors, layers
