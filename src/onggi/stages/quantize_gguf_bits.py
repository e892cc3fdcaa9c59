"""`onggi quantize --format gguf --budget`: which part of the model gets which of GGUF's types.

As with the other schemes, with the embedding and the output head among the parts: in a small model with a
large vocabulary they are most of the file.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from .. import ledger
from ..errors import OnggiError
from ..progress import say
from . import quantize_bits
from .base import Names

if TYPE_CHECKING:
    from ..models.gguf.writing import Description
    from ..quantize.balance import Calibration
    from ..quantize.sensitivity import Unit
    from .quantize import QuantizeConfig
    from .quantize_model import Model
    from .quantize_text import Drawn

CHOICES = Names("Q2_K,Q3_K,IQ4_XS,Q4_K,Q5_K,Q6_K,Q8_0")
_REVISION = 3
# Bytes of card, Modelfile and the like; of each tensor's entry in the file and its record.
_OVERHEAD, _EACH = 60_000, 500


def allocate(
    config: QuantizeConfig,
    job: ledger.Job,
    described: Description,
    model: Model,
    text: Drawn,
) -> tuple[dict[str, str], dict[str, Any]]:
    """GGUF's name of each tensor → its type, and what to note of the choice."""
    from ..quantize import mixtures
    from ..quantize.formats import gguf
    from ..report.heatmap import heatmap

    assert text.drawn and text.held_out
    choices = config.choices if config.choices != quantize_bits.CHOICES else CHOICES
    schemes = [mixtures.scheme(name) for name in choices]
    held_out = text.held_out
    units, nats = quantize_bits.measured(
        dataclasses.replace(config, choices=choices), job, model, text, schemes
    )
    outside = _outside(job, described, model, held_out, schemes)
    together = [*units, *outside]
    matrix = {
        "units": [vars(unit) for unit in units],
        "outside": [vars(unit) for unit in outside],
        "nats": nats,
        "chosen": [choices[0]] * len(units),  # until it is known
        "chosen_outside": [choices[0]] * len(outside),
        "damage": config.damage,
    }
    shapes, parts = gguf.shapes(described), {name for unit in together for name in unit.names}
    weights = sum(unit.weights for unit in together)
    if config.like:
        like = gguf.chosen_types(described, config.like, calibrated=True)
        inside = [described.names[f"{name}.weight"] for name in parts]
        room = 8.0 * sum(mixtures.bytes_of(like[name], _count(shapes[name])) for name in inside)
    else:
        budget = quantize_bits.parse(config.budget or "")
        room = (budget.bits or 0.0) * weights
        if budget.bytes:
            rest = _rest(described, parts) + len(json.dumps(matrix, ensure_ascii=False, indent=2).encode())
            rest += len(heatmap(matrix).encode()) + sum(
                file.stat().st_size for file in job.work.glob("*.jsonl")
            )
            room = 8.0 * (budget.bytes - rest)
            if room <= 0:
                raise OnggiError(
                    f"budget: {config.budget} is less than what is not quantised (vocabulary, norms, notes: "
                    f"{rest / 1e6:.0f} MB)."
                )
    chosen, note = quantize_bits.solved(
        config, job, together, room, quantize_bits.counted(config, held_out, nats)
    )
    matrix["chosen"], matrix["chosen_outside"] = (
        chosen.choices[: len(units)],
        chosen.choices[len(units) :],
    )
    ledger.write_json(job.work / quantize_bits.MATRIX, matrix)
    (job.work / quantize_bits.FIGURE).write_text(heatmap(matrix), encoding="utf-8")
    kinds = gguf.chosen_types(described, "Q8_0", calibrated=True)  # of what is no part: norms
    for unit, choice in zip(together, chosen.choices, strict=True):
        for name in unit.names:
            theirs = described.names[f"{name}.weight"]
            kinds[theirs] = mixtures.fitting(choice, shapes[theirs][-1])
    for unit, choice in zip(outside, chosen.choices[len(units) :], strict=True):
        say(f"{unit.names[0]}: {choice}.")
    return kinds, note | {"like": config.like}


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


def _rest(described: Description, parts: set[str]) -> int:
    """Bytes of the artifact that no part of the model is."""
    entries, rest = described.source.entries, _OVERHEAD
    for tensor in described.names:
        rest += _EACH
        if tensor.removesuffix(".weight") not in parts:
            rest += 4 * _count(entries[tensor].shape)
    for value in described.metadata.values():
        if isinstance(value, list):
            rest += sum(8 + len(one.encode()) if isinstance(one, str) else 4 for one in value)
        elif isinstance(value, str):
            rest += len(value.encode())
    return rest


class _Looked:
    """A checkpoint whose embedding is rounded as its rows are looked up."""

    def __init__(self, source: Any, tensor: str, grid: Any):
        self._source, self._tensor, self._grid = source, tensor, grid

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def rows(self, name: str, rows: Any) -> Any:
        """As of the checkpoint."""
        found = self._source.rows(name, rows)
        return found if name != self._tensor else _rounded(found, self._grid)


def _rounded(weight: Any, grid: Any, importance: Any = None) -> Any:
    """Weights as a grid gives them back, fp32."""
    steps = grid.fit(weight.float(), importance)
    return grid.decode(grid.round(weight, steps), steps)


def _outside(
    job: ledger.Job,
    described: Description,
    model: Model,
    held_out: Calibration,
    schemes: list[Any],
) -> list[Unit]:
    """Embedding and head as units: what rounding them by each choice does to the held-out text of each language.

    Of the head only rows are rounded that the comparison asks for, those of tokens drawn from what the
    model predicts.
    """
    import torch

    from ..head import Head, drawn, drawn_kl
    from ..quantize import fairness, sensitivity
    from ..quantize.mixtures import EMBEDDING, HEAD

    key = ledger.digest(
        {
            "revision": _REVISION,
            "model": job.inputs["model"],
            "choices": [one.name for one in schemes],
            "text": held_out.ids.tolist(),
            "dtype": str(model.dtype),
        }
    )
    cached = ledger.cache_folder() / "sensitivity" / f"{key}.json"
    if cached.is_file():
        return [sensitivity.Unit(**unit) for unit in ledger.read_json(cached)]
    source, place = model.source, job.partial / "sensitivity"
    place.mkdir(exist_ok=True)
    output = fairness.head(source, model.skeleton(), model.device)
    by_name = {theirs: tensor for tensor, theirs in described.names.items()}
    embedding = by_name[EMBEDDING]

    def states(checkpoint: Any) -> Any:
        """What reaches the head at each position whose next token counts."""
        found = fairness.unquantized(checkpoint, model.skeleton(), held_out, place, model.device)
        return found[:, : there.shape[1]][there].to(model.device).float()

    there = (held_out.weights > 0)[:, 1:]
    owner = held_out.owner.unsqueeze(1).expand_as(there)[there]
    before = states(source)
    unique, tokens = torch.unique(drawn(before, output, sensitivity.DRAWN, seed=0), return_inverse=True)
    bias = None if output.bias is None else output.bias[unique]
    small = dataclasses.replace(output, weight=output.weight[unique], bias=bias)
    importance = before.square().mean(0)

    def rounded(grid: Any) -> Head:
        return dataclasses.replace(small, weight=_rounded(small.weight, grid, importance))

    def damage(after: Any, other: Head) -> dict[str, float]:
        each = drawn_kl(before, after, small, tokens, other).cpu()
        return {name: float(each[owner == n].mean()) for n, name in enumerate(held_out.names)}

    units = []
    layers = int(described.metadata[f"{described.architecture}.block_count"])
    for tensor in [embedding] + ([] if described.tied else [by_name[HEAD]]):
        shape = source.entries[tensor].shape
        found: dict[str, dict[str, float]] = {}
        size: dict[str, float] = {}
        tried: dict[str, dict[str, float]] = {}
        for choice in schemes:
            own = choice.for_columns(shape[1])
            if own.name not in tried:
                looked_up = tensor == embedding
                after = states(_Looked(source, tensor, own.grid)) if looked_up else before
                other = rounded(own.grid) if described.tied or not looked_up else small
                tried[own.name] = damage(after, other)
            found[choice.name] = tried[own.name]
            size[choice.name] = own.grid.bits_per_weight * _count(shape)
        name = tensor.removesuffix(".weight")
        units.append(sensitivity.Unit(layers, [name], _count(shape), found, size))
    cached.parent.mkdir(parents=True, exist_ok=True)
    ledger.write_json(cached, [vars(unit) for unit in units])
    return units
