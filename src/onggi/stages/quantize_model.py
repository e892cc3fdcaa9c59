"""The model in hand, as every format of `onggi quantize` opens it, solves it for the worst language, and speaks of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import languages as tags
from .. import ledger
from ..errors import OnggiError
from ..progress import release_memory, say
from . import quantize_text
from .base import precision

if TYPE_CHECKING:
    from ..models.checkpoint import Checkpoint
    from .quantize import QuantizeConfig
    from .quantize_text import Drawn


@dataclass(frozen=True)
class Model:
    """The model in hand: its checkpoint in `folder`, the dtype of a pass and where it runs."""

    source: Checkpoint
    folder: Path
    dtype: Any
    device: Any

    def skeleton(self) -> Any:
        """Its decoder, without weights."""
        from ..models.decoder import skeleton

        return skeleton(self.folder, self.dtype)


def resolved(config: QuantizeConfig) -> Path:
    """The model's folder. Raises OnggiError for one that is quantised already."""
    from ..models import checkpoint as checkpoints
    from ..models import references

    folder = references.resolve(config.model)
    if "quantization_config" in checkpoints.read_config(folder):
        raise OnggiError(f"{config.model}: is quantised already; name the model it was made from.")
    return folder


def opened(
    config: QuantizeConfig, job: ledger.Job, folder: Path, source: Checkpoint
) -> tuple[Model, Drawn, Any]:
    """The model, its calibration text, and its decoder without weights, which the tensors fit."""
    from ..engines.transformers import default_device

    device = default_device()
    model = Model(source, folder, precision(job, config.precision, device), device)
    text = quantize_text.NONE
    if config.calibrates:
        text = quantize_text.calibration(config, folder, job)
    else:
        quantize_text.say_unused(config)
    release_memory()
    decoder = model.skeleton()
    _check_shapes(config.model, source, decoder)
    return model, text, decoder


def minimax(
    config: QuantizeConfig,
    job: ledger.Job,
    model: Model,
    text: Drawn,
    solve: Callable[..., list[Any]],
) -> tuple[Any, dict[str, Any]]:
    """The best of the rounds that `solve` made, as `quantize.fairness.minimax` gives it, and what to note of them all."""
    from ..quantize import fairness

    assert text.shared and text.held_out
    held_out = text.held_out
    found = fairness.minimax(
        solve,
        lambda place: fairness.unquantized(model.source, model.skeleton(), held_out, place, model.device),
        fairness.head(model.source, model.skeleton(), model.device),
        text.shared,
        held_out,
        config.damage,
        job.partial / "rounds",
    )
    rounds = [vars(one) for one in found.rounds]
    drawn = text.shared(found.rounds[found.best].shares)
    balance = {"damage": config.damage, "rounds": rounds, "best": found.best}
    return found, balance | {"tokens": drawn.counts, "short": drawn.short}


def _check_shapes(model: str, source: Any, decoder: Any) -> None:
    """Raises OnggiError where the checkpoint's tensors are not what its config asks for."""
    from ..models.names import Names

    names = Names(decoder.model, source.entries)
    tied = getattr(decoder.model, "all_tied_weights_keys", {})
    for name, parameter in decoder.model.named_parameters():
        entry = source.entries.get(names.one.get(name, ""))
        if entry is None and name not in tied and not name.startswith(f"{decoder.prefix}."):
            raise OnggiError(f"{model}: holds no tensor named {name}.")
        if entry and entry.shape != tuple(parameter.shape):
            raise OnggiError(
                f"{model}: tensor {name} has shape {entry.shape}, "
                f"its config.json asks for {tuple(parameter.shape)}."
            )


def say_what_is_odd(
    layers: list[Any], decoder: Any, source: Any, unfit: Mapping[str, int] | None = None
) -> None:
    """Say where groups are smaller, which matrices stay as they are, and whose error stands out. unfit: modules whose
    rows no group divides, and the columns of these.
    """
    from ..models.names import Names
    from ..quantize import records
    from ..quantize.schemes import SCHEMES

    smaller: dict[int, set[int]] = {}
    for layer in layers:
        wanted = SCHEMES[layer.scheme].group if layer.scheme in SCHEMES else None
        if wanted and layer.group and layer.group != wanted:
            smaller.setdefault(wanted, set()).add(layer.group)
    for wanted, groups in smaller.items():
        say(f"Some matrices are not a multiple of {wanted} wide; they have groups of {sorted(groups)}.")
    left: dict[tuple[str, str], int] = {}
    narrow = {
        name: f"its {columns} columns are no multiple of 32; w4a16 and w8a16 have a scale for a row"
        for name, columns in (unfit or {}).items()
    }
    fused = Names(decoder.model, source.entries).fused
    for index in range(len(decoder.layers)):
        place = f"{decoder.layer_name(index)}."
        whole = {
            f"{name}.{leaf}": "the checkpoint holds its experts in one piece"
            for name in decoder.experts(index)
            for leaf in ("gate_up_proj", "down_proj")
            if f"{place}{name}.{leaf}" not in fused
        }
        own = {name.removeprefix(place): why for name, why in narrow.items() if name.startswith(place)}
        for name, why in (decoder.left(index) | whole | own).items():
            left[name, why] = left.get((name, why), 0) + 1
    for (name, why), count in left.items():
        say(f"{name} stays as it is in {count} layers ({why}).")
    found = records.outliers(layers)
    if found:
        worst = found[0]
        where = f" in {tags.name(worst.language)}" if worst.language else ""
        say(
            f"The output error stands out in {len(found)} matrices (first: {worst.layer.name}, {worst.error:.3f}{where} "
            f"where the median of its kind is {worst.median:.3f}); see onggi.json, and measure before you serve."
        )
