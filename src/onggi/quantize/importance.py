"""How large each input of a model's matrices is on text, language by language: mean squares.

What an importance matrix is made of (`formats.imatrix`). The text goes through the model as it is, a layer at a time,
as `passes` has it for solving, and nothing is solved.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import OnggiError
from ..models import checkpoint as checkpoints
from ..models.checkpoint import Checkpoint, Pending
from ..models.decoder import Decoder, drop, fill
from ..progress import Progress
from .balance import Calibration
from .passes import Method, Pass


def diagonals(
    source: Checkpoint,
    decoder: Decoder,
    calibration: Calibration,
    folder: Path,
    device: torch.device,
    bar: Progress,
    tick: Callable[[], None],
) -> dict[str, Tensor]:
    """Matrix, by its tensor in the checkpoint → (languages, columns) fp64: the mean over a language's tokens of the
    squared input of each column, by the calibration's weights. Languages in the order of `calibration.names`.

    folder: for the finished layers and the states between them, from which a killed run goes on. tick: is called after
    each. Raises OnggiError for experts, which are not told apart here, and for inputs that are not finite.
    """
    if any(decoder.experts(index) for index in range(len(decoder.layers))):
        raise OnggiError("imatrix: a mixture's experts are not told apart here; llama-imatrix does.")
    nothing: Any = lambda *_: None  # noqa: E731
    walk = Pass(source, decoder, nothing, nothing, folder, calibration, nothing, device, Method())
    walk.prepare()
    languages = torch.arange(len(calibration.names)).unsqueeze(1)
    mine = (calibration.owner == languages).to(torch.float32)  # (languages, sequences)
    by_token = (mine.unsqueeze(2) * calibration.weights).to(device)  # (languages, sequences, length)
    weighed = by_token.sum(dim=(1, 2)).double().unsqueeze(1)
    total = len(decoder.layers)
    files = [folder / f"diagonals-{index:05d}.safetensors" for index in range(total)]
    done = next((index for index, file in enumerate(files) if not file.is_file()), total)
    bar.skip(done)
    for index in range(done, total):
        layer = decoder.layers[index]
        walk.index = index
        place = f"{decoder.layer_name(index)}."
        fill(
            layer,
            {
                name: walk.names.tensor(source, place + name).to(device)
                for name, _ in layer.named_parameters()
            },
            walk.dtype,
        )
        sums: dict[str, Tensor] = {}
        last = index == total - 1
        for batch, rows in enumerate(walk.batches):
            shares = by_token[:, rows].flatten(1)
            handles = [
                module.register_forward_pre_hook(_adds(sums, name, shares))
                for name, module in decoder.linears(index).items()
            ]
            try:
                output = walk.drive(batch, lambda forward, args, kwargs: forward(*args, **kwargs))
            finally:
                for handle in handles:
                    handle.remove()
            if not last:
                whole = isinstance(output, tuple)
                walk.states.save(index, batch, output[0] if whole else output, whole)
        found: dict[str, Pending] = {}
        for name, own in sums.items():
            means = (own / weighed.to(own.device)).cpu()
            if not checkpoints.finite(means):
                raise OnggiError(f"{place}{name}: its inputs on the calibration text are not finite.")
            found[walk.names.one[f"{place}{name}.weight"]] = checkpoints.pending(means)
        # With the states that left the layer it is where a killed run goes on.
        checkpoints.write_shard(files[index], found)
        walk.states.forget(index - 1)
        drop(layer)
        tick()
        bar.step(1, f"layer {index + 1} of {total}")
    for file in folder.glob("states-*"):
        file.unlink()
    return {name: means for file in files for name, means in load_file(file).items()}


def _adds(sums: dict[str, Tensor], name: str, shares: Tensor) -> Any:
    """A hook that adds a batch's squared inputs to `sums[name]`, by `shares` (languages, tokens)."""

    def add(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        rows = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
        own = (shares @ rows.square()).double()
        sums[name] = sums[name] + own if name in sums else own

    return add
