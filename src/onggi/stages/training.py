"""What the stages that train share: processes, services that draw curves, the time of a step, writing the weights."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import ledger
from ..errors import OnggiError
from ..ledger import Artifact, Job
from ..progress import console, say
from .base import Stage, options

_SERVICES = ("tensorboard", "wandb", "trackio", "mlflow")
# Tokens in one pass of a device, on a CPU and on a GPU.
_AT_ONCE, _AT_ONCE_GPU = 4096, 32768


def sequences_at_once(given: int | None, length: int, device: Any, on_cpu: int = _AT_ONCE) -> int:
    """Sequences of `length` in one pass of a device. given: as many as were asked for. on_cpu: tokens in one of a CPU."""
    return given or max((on_cpu if device.type == "cpu" else _AT_ONCE_GPU) // length, 1)


def named_services(wanted: Sequence[str] | None) -> None:
    """OnggiError for a service that there is not."""
    for service in wanted or ():
        if service not in _SERVICES:
            raise OnggiError(f"report_to: {service!r} is none of {', '.join(_SERVICES)}.")


def check_services(wanted: Sequence[str] | None) -> None:
    """OnggiError for a service that is not installed."""
    from transformers.integrations import get_available_reporting_integrations

    for service in wanted or ():
        if service not in get_available_reporting_integrations():
            raise OnggiError(f"report_to: {service} is not installed; `pip install {service}` mends it.")


@dataclass(frozen=True)
class Processes:
    """The processes of one training: this one's device, whether it is the first, and waiting for all."""

    device: Any
    first: bool
    wait: Callable[[], None]


@contextlib.contextmanager
def processes() -> Any:
    """Those that torchrun started, else this one alone. All but the first keep quiet."""
    import torch

    count, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if count == 1:
        yield Processes(device, True, lambda: None)
        return
    if cuda and local >= torch.cuda.device_count():
        raise OnggiError(
            f"Process {local + 1} of this machine has no GPU: there are {torch.cuda.device_count()}. "
            f"`torchrun --nproc-per-node {torch.cuda.device_count()} -m onggi …` mends it."
        )
    if cuda:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    was, console.quiet = console.quiet, console.quiet or torch.distributed.get_rank() > 0
    try:
        yield Processes(device, torch.distributed.get_rank() == 0, torch.distributed.barrier)
    finally:
        console.quiet = was
        torch.distributed.destroy_process_group()


def carried_out(stage: Stage, config: Any, out: Path, train: Callable[[Job, Processes], None]) -> Artifact:
    """The artifact in `out`, which is there already or which `train` makes in all of the processes."""
    job = ledger.begin(out, stage.verb, options(config), stage.inputs(config), stage.revision)
    if job.done:
        return job.done
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with processes() as own, job if own.first else contextlib.nullcontext():
        train(job, own)
    found = ledger.artifact(out)
    assert found is not None  # the first process has written it
    return found


def one_pass(model: Any, loss: Any, source: Any, at_once: int) -> Callable[[], Any]:
    """What makes the loss of one pass of a training of `model`, which is set to train."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in source.rows(0, 0, min(at_once, source.size)).items()}
    model.train()
    return lambda: loss(model, batch)


def step_seconds(model: Any, loss: Any, source: Any, at_once: int) -> float:
    """Seconds of one step here, from a few passes; leaves the model as it was. What is trained is what wants gradients,
    all of the weights where none does.
    """
    from ..train import outlook

    frozen = not any(parameter.requires_grad for parameter in model.parameters())
    if frozen:
        model.requires_grad_(True)
    each = outlook.seconds(one_pass(model, loss, source, at_once))
    model.zero_grad(set_to_none=True)
    model.eval()
    if frozen:
        model.requires_grad_(False)
    return each * source.size / min(at_once, source.size)


def steps_in(
    minutes: float,
    kept: Path,
    seconds: Callable[[], float],
    processes: Processes | None = None,
    *,
    measuring: float = 0.0,
    least: int = 1,
) -> int:
    """How many steps `minutes` are. What follows from a measurement stands in the file `kept`: a run that goes on must not
    measure anew. seconds: of one step, which the first of the processes finds out. measuring: the share of the time
    that is spent otherwise. least: so many in any case.
    """
    if (processes is None or processes.first) and not kept.is_file():
        each = seconds()
        steps = max(int(60 * minutes * (1 - measuring) / each), least)
        say(f"A step takes about {each:.2g} s: {steps} steps in {minutes:g} minutes.")
        with ledger.writing(kept) as aside:
            aside.write_text(str(steps))
    if processes:
        processes.wait()
    return int(kept.read_text())


def each_language_once(source: Any) -> int:
    """Steps in which each language of a plain text has a sequence, as they take turns."""
    return -(-len(source.languages) // source.size)


def write_weights(
    source: Any, weights: Mapping[str, Any], tables: set[str], out: Path, start: Path
) -> dict[str, Any]:
    """Write the weights, which bf16 holds, under the names of `source`; returns how far they moved."""
    import torch

    from ..models import checkpoint as checkpoints
    from ..models import references
    from ..train.movement import Movement

    movement = Movement()
    tensors = {}
    for name in source.entries:
        if name not in weights:  # a table that the architecture computes and its file holds all the same
            tensors[name] = checkpoints.copied(source, name)
            continue
        rounded = weights[name].to(torch.bfloat16)
        kind = "embedding" if name in tables else "linears" if rounded.ndim > 1 else "norms"
        movement.add(kind, source.tensor(name), rounded.cpu())
        tensors[name] = checkpoints.pending(rounded)
    checkpoints.write_shard(out / checkpoints.SINGLE, tensors)
    return movement.facts(on_grid=bool(references.about(start).get("grid")))
