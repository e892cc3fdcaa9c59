"""`onggi quantize --budget`: which part of the model gets how many bits."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .. import languages as tags
from .. import ledger
from ..errors import OnggiError
from ..progress import progress, say
from .base import Names

if TYPE_CHECKING:
    from ..quantize.allocate import Allocation
    from ..quantize.balance import Calibration
    from ..quantize.sensitivity import Unit
    from .quantize import QuantizeConfig
    from .quantize_model import Model
    from .quantize_text import Drawn

# What was measured, and its figure, among the files of the artifact.
MATRIX, FIGURE = "sensitivity.json", "sensitivity.svg"
# What is picked among where nothing is said.
CHOICES = Names("w3a16-g128,w4a16-g128,w8a16")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB)?", re.IGNORECASE)
_REVISION = 4
_OBJECTIVES: tuple[Literal["worst", "mean"], ...] = ("worst", "mean")


@dataclass(frozen=True)
class Budget:
    """bits: of a quantised weight with its scale; or bytes: of the whole artifact."""

    bits: float | None
    bytes: int | None


def parse(text: str) -> Budget:
    """`4.25` is bits of a quantised weight, `190MB` the whole artifact. Raises OnggiError for anything else."""
    found = _SIZE.fullmatch(text.strip())
    if not found or float(found[1]) == 0:
        raise OnggiError(
            f"budget: {text!r} is neither bits of a weight (4.25) nor a size of all files (190MB)."
        )
    if found[2]:
        return Budget(None, int(float(found[1]) * _UNITS[found[2].upper()]))
    return Budget(float(found[1]), None)


def check(config: QuantizeConfig) -> None:
    """Raises OnggiError for options that do not go with a budget, naming them."""
    from .quantize import ACTIVATIONS, LIBRARY, SCHEME_NAMES

    assert config.budget
    parse(config.budget)
    if config.scheme != "w4a16-g128":
        raise OnggiError(
            f"budget: bits are picked among --choices and not by --scheme {config.scheme}; leave --scheme out."
        )
    if config.method != "gptq":
        raise OnggiError(f"budget: bits are given by what they cost on text; {config.method} does not serve.")
    if config.format != "compressed-tensors" or config.embedding:
        raise OnggiError(
            "budget: mixed bits go into the compressed-tensors layout only, without --embedding."
        )
    for name in config.choices:
        if name not in SCHEME_NAMES:
            raise OnggiError(f"choices: there is no scheme {name!r}; see --scheme.")
        if name in (*ACTIVATIONS, *LIBRARY) or name.endswith("asym"):
            raise OnggiError(
                f"choices: {name} cannot be mixed; choose among symmetric schemes of weights alone."
            )
    if len(config.choices) < 2:
        raise OnggiError("choices: one is no choice; name two or more.")


def allocate(
    config: QuantizeConfig, job: ledger.Job, model: Model, text: Drawn
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Module → scheme, and what to note of it. The matrix is measured once for a model and text, and kept in
    the cache: another budget only solves again.
    """
    from ..models import checkpoint as checkpoints
    from ..quantize.schemes import SCHEMES
    from ..report.heatmap import heatmap

    held_out, source = text.held_out, model.source
    assert held_out
    schemes = [SCHEMES[name] for name in config.choices]
    units, nats = measured(config, job, model, text, schemes)
    scales = counted(config, held_out, nats)
    matrix = {
        "units": [vars(unit) for unit in units],
        "nats": nats,
        "chosen": [config.choices[0]] * len(units),  # until it is known
        "damage": config.damage,
    }
    weights = sum(unit.weights for unit in units)
    budget = parse(config.budget or "")
    room = (budget.bits or 0.0) * weights
    if budget.bytes:
        inside = {f"{name}.weight" for unit in units for name in unit.names}
        rest = sum(entry.bytes for name, entry in source.entries.items() if name not in inside)
        others = sum(file.stat().st_size for file in checkpoints.companions(model.folder))
        others += sum(file.stat().st_size for file in job.work.glob("*.jsonl"))  # what the model wrote
        others += len(json.dumps(matrix, ensure_ascii=False, indent=2).encode())
        others += len(heatmap(matrix).encode())
        # Of a whole row's scale, which counts nothing in bits of a weight, and of a matrix in header and record.
        each = _EACH + _LANGUAGE * len(held_out.names)
        others += sum(2 * source.entries[name].shape[0] + each for name in inside)
        room = 8.0 * (budget.bytes - rest - others - _OVERHEAD)
        if room <= 0:
            raise OnggiError(
                f"budget: {config.budget} is less than what is not quantised (embedding, norms, tokenizer: "
                f"{(rest + others) / 1e6:.0f} MB)."
            )
    chosen, note = solved(config, job, units, room, scales)
    matrix["chosen"] = chosen.choices
    ledger.write_json(job.work / MATRIX, matrix)
    (job.work / FIGURE).write_text(heatmap(matrix), encoding="utf-8")
    by_module = {
        name: SCHEMES[choice]
        for unit, choice in zip(units, chosen.choices, strict=True)
        for name in unit.names
    }
    return by_module, note


def counted(config: QuantizeConfig, held_out: Calibration, nats: dict[str, float]) -> dict[str, float] | None:
    """language → what a nat a token of damage counts, by `--damage`; None where it counts as it is."""
    if config.damage == "relative":
        return {name: 1 / value for name, value in nats.items()}
    if config.damage == "kl_per_passage":
        counts = [int((held_out.weights[held_out.owner == n][:, 1:] > 0).sum()) for n in range(len(nats))]
        return dict(zip(held_out.names, map(float, counts), strict=True))
    return None


def solved(
    config: QuantizeConfig,
    job: ledger.Job,
    units: list[Unit],
    room: float,
    scales: dict[str, float] | None,
) -> tuple[Allocation, dict[str, Any]]:
    """The choices of least damage in `room` bits, said with their price, and what to note of them."""
    from ..quantize import allocate as allocation

    weights = sum(unit.weights for unit in units)
    # A solver that ran out of time may find another answer the next time: a run that goes on keeps to its own.
    kept = job.partial / "allocation.json"
    if not kept.is_file():
        found = {name: allocation.allocate(units, room, name, scales).choices for name in _OBJECTIVES}
        ledger.write_json(kept, found)
    price = {name: allocation.of(units, choices, scales) for name, choices in ledger.read_json(kept).items()}
    chosen = price[config.objective]
    other = price["mean" if config.objective == "worst" else "worst"]
    worst = max(chosen.damage, key=chosen.damage.__getitem__)
    say(
        f"{chosen.bits / weights:.3f} bits a weight: {tags.name(worst)} would pay most, {chosen.worst:.4f} "
        f"(mean {chosen.mean:.4f}); by the {'mean' if other is price['mean'] else 'worst'} "
        f"{other.worst:.4f} (mean {other.mean:.4f})."
    )
    choices = list(units[0].damage)
    return chosen, {
        "budget": config.budget,
        "objective": config.objective,
        "damage": config.damage,
        "choices": choices,
        "bits_per_weight": chosen.bits / weights,
        "price": {name: {"worst": one.worst, "mean": one.mean} for name, one in price.items()},
        "modules": {choice: chosen.choices.count(choice) for choice in choices},
    }


# Bytes of config, card and the other tensors' headers; of each matrix's headers, index and record; and of each
# language in the record.
_OVERHEAD, _EACH, _LANGUAGE = 120_000, 1200, 40


def measured(
    config: QuantizeConfig, job: ledger.Job, model: Model, text: Drawn, schemes: list[Any]
) -> tuple[list[Unit], dict[str, float]]:
    """The units, and nats a token that the model needs for the held-out text of each language."""
    from ..quantize import fairness, sensitivity
    from ..quantize.passes import Method

    calibration, held_out = text.drawn, text.held_out
    assert calibration and held_out
    key = ledger.digest(
        {
            "revision": _REVISION,
            "model": job.inputs["model"],
            "choices": list(config.choices),
            "text": [side.ids.tolist() for side in (calibration, held_out)],
            "weights": calibration.weights.tolist(),
            "languages": [held_out.names, held_out.owner.tolist()],
            "damping": config.damping,
            "dtype": str(model.dtype),
        }
    )
    cached = ledger.cache_folder() / "sensitivity" / f"{key}.json"
    if cached.is_file():
        known = ledger.read_json(cached)
        return [sensitivity.Unit(**unit) for unit in known["units"]], known["nats"]
    decoder = model.skeleton()
    place = job.partial / "sensitivity"
    place.mkdir(exist_ok=True)
    with progress(f"quantize {job.out.name}: what each part costs", len(decoder.layers)) as bar:

        def step(index: int) -> None:
            bar.step(1, f"layer {index + 1}")
            job.tick()

        units, nats = sensitivity.measure(
            model.source,
            decoder,
            schemes,
            calibration,
            held_out,
            fairness.head(model.source, decoder, model.device),
            place,
            job.partial / "units.jsonl",
            model.device,
            Method(config.method, config.damping),
            step,
        )
    cached.parent.mkdir(parents=True, exist_ok=True)
    ledger.write_json(cached, {"units": [vars(unit) for unit in units], "nats": nats})
    return units, nats
