"""`onggi pretrain --dry-run`, and the plan of a recipe: what a training is going to take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import ledger
from ..errors import OnggiError
from ..progress import duration
from .base import Plan, multiplied_in
from .pretrain_text import BATCH, LENGTH, PACKED_BATCH, STEPS, packed_folder
from .training import sequences_at_once

if TYPE_CHECKING:
    from .pretrain import PretrainConfig


def _shape(config: PretrainConfig) -> Any:
    """The model in numbers (`train.outlook.Shape`), without its weights; None where it has to be fetched first."""
    from ..models import random
    from ..text.packing import Packed

    if config.is_new:
        place = packed_folder(config.text)
        if place is None:
            return None
        packed = Packed(place)
        assert config.size is not None
        known: Any = random.configuration(
            config.size, packed.index["tokenizer"]["vocabulary"], length=max(packed.length, 2048)
        )
        return _numbers(known)
    return shape_of(config.init)


def shape_of(model: str) -> Any:
    """The same of any model that is named; None where it has to be fetched first."""
    import transformers

    from ..models import references

    if references.size(model) is None:
        return None
    return _numbers(
        transformers.AutoConfig.from_pretrained(references.resolve(model), trust_remote_code=False)
    )


def _numbers(known: Any) -> Any:
    import transformers
    from accelerate import init_empty_weights

    from ..train import outlook as sums

    with init_empty_weights():
        model = transformers.AutoModelForCausalLM.from_config(known, trust_remote_code=False)
    model.tie_weights()
    return sums.shape(known.to_dict(), sum(parameter.numel() for parameter in model.parameters()))


@dataclass(frozen=True)
class Size:
    """Of a training, as far as it is known before. tokens: None where they are a matter of minutes."""

    length: int
    batch: int  # tokens of a step
    tokens: int | None
    unique: int | None  # tokens of the text


def size_of(config: PretrainConfig) -> Size | None:
    """How much is trained on; None where that is not known before."""
    place = packed_folder(config.text)
    if place is None:
        if config.is_new:  # its text has yet to be packed
            return None
        length = config.length or LENGTH
        batch = max(config.batch_tokens or BATCH, length) // length * length
        tokens = config.tokens or (None if config.minutes else (config.steps or STEPS) * batch)
        return Size(length, batch, tokens, None)
    index = ledger.read_json(place / "index.json")
    length = index["length"]
    batch = max(config.batch_tokens or PACKED_BATCH, length) // length * length
    once = -(-index["sequences"] * length // batch) * batch
    tokens = config.tokens or (config.steps * batch if config.steps else None if config.minutes else once)
    return Size(length, batch, tokens, index["tokens"])


def plan(config: PretrainConfig) -> Plan:
    """About the tokens, memory and disk, where model and text are at hand."""
    size = size_of(config)
    if size is None:
        return Plan(config.tokens)
    of = _shape(config)
    if of is None:
        return Plan(size.tokens)
    # Two checkpoints, a third while it is written, and the result.
    return Plan(size.tokens, _memory(config, of, size), (3 * 12 + 2) * of.parameters)


def _memory(config: PretrainConfig, of: Any, size: Size) -> int:
    import torch

    from ..train import outlook as sums

    return sums.memory(of, passed(config, size), config.checkpointing, torch.float32)


def passed(config: PretrainConfig, size: Size) -> int:
    """Tokens of one pass of a device here."""
    from ..engines.transformers import default_device

    return min(sequences_at_once(config.at_once, size.length, default_device()) * size.length, size.batch)


def outlook(config: PretrainConfig) -> dict[str, Any]:
    """What it is going to take: parameters, tokens, operations, hours here (by a measurement of about five
    seconds) and on named GPUs, memory, and what to make of it.
    """
    from ..train import outlook as sums

    size, of = size_of(config), _shape(config)
    if size is None:
        raise OnggiError(f"text: {config.text} is not packed yet; `onggi pack` says how many tokens it is.")
    if of is None:
        raise OnggiError(
            f"init: {config.init} is not here yet; fetch it first with `onggi inspect {config.init}`."
        )
    each = seconds_here(config, of, size)
    tokens = size.tokens or max(int(60 * (config.minutes or 0) / each), 1) * size.batch
    operations = sums.arithmetic(of, size.length) * tokens
    steps = -(-tokens // size.batch)
    return {
        "parameters": of.parameters,
        "tokens": tokens,
        "steps": steps,
        "text_tokens": size.unique,
        "operations": operations,
        "hours": {
            "here": steps * each / 3600,
            **sums.hours(operations, of),
        },
        "memory": _memory(config, of, size),
        "advice": sums.judged(of.parameters, tokens, size.unique or tokens, config.is_new),
    }


def seconds_here(config: PretrainConfig, of: Any, size: Size) -> float:
    """Seconds of a step on this machine: of the model itself, its weights at random, which are as fast as any."""
    import torch
    import transformers

    from ..engines.transformers import default_device
    from ..models import random, references
    from ..train import attention
    from ..train import outlook as sums
    from ..train.tokens import next_token

    if config.is_new:
        assert config.size is not None
        known: Any = random.configuration(config.size, of.vocabulary, length=max(size.length, 2048))
    else:
        known = transformers.AutoConfig.from_pretrained(
            references.resolve(config.init), trust_remote_code=False
        )
    device = default_device()
    model: Any = transformers.AutoModelForCausalLM.from_config(
        known, trust_remote_code=False, dtype=torch.float32
    ).to(device)
    if config.checkpointing:
        model.activation_checkpointing_enable()
    model.train()
    count = max(passed(config, size) // size.length, 1)
    ids = torch.randint(0, of.vocabulary, (count, size.length), device=device)
    positions = torch.arange(size.length, device=device).expand(count, -1)
    weights = torch.full(ids.shape, 1 / ids.numel(), device=device)
    dtype = multiplied_in(config.precision, device)
    attention.prepare(model, dtype)
    loss = next_token(dtype, config.z_loss)
    each = sums.seconds(lambda: loss(model, {"ids": ids, "positions": positions, "weights": weights}))
    return each * size.batch / ids.numel()


def dry_run(config: PretrainConfig) -> str:
    """What `outlook` finds, to read."""
    return said(outlook(config))


def said(found: Mapping[str, Any]) -> str:
    """An outlook in words."""
    return "\n".join(
        [
            f"{found['parameters']:,} parameters, {found['tokens']:,} tokens in {found['steps']:,} steps, "
            f"{found['operations']:.2e} operations, about {found['memory'] / 2**30:.1f} GiB of memory on one device.",
            *said_hours(found["hours"]),
            *found["advice"],
        ]
    )


def said_hours(found: Mapping[str, float]) -> list[str]:
    """How long on what, in lines."""
    from ..train.outlook import PEAKS, REACHED

    lines = ["On one"]
    for name, hours in found.items():
        peak = f"{PEAKS[name]:g} TFLOP/s" if name in PEAKS else "measured in about five seconds"
        lines.append(f"  {name:10} {duration(hours * 3600):>12}   {peak}")
    lines.append(
        "GPUs: peak dense bf16 by the maker's data sheet, of which a model under 200m is taken to reach "
        f"{REACHED['small']:.0%} and a larger one {REACHED['large']:.0%}."
    )
    return lines
