"""`onggi finetune --dry-run`, and the plan of a recipe: what a tuning is going to take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import OnggiError
from ..progress import duration
from .base import Plan, multiplied_in
from .training import sequences_at_once

if TYPE_CHECKING:
    from .finetune import FinetuneConfig

# Places of a step, and of one pass of a CPU.
BATCH = 4096
AT_ONCE = 2048


def plan(config: FinetuneConfig) -> Plan:
    """About the tokens, memory and disk, where the model is at hand."""
    from ..engines.transformers import default_device
    from ..models import references

    tokens = config.steps * config.batch_tokens if config.steps else None
    size = references.size(config.model)
    if size is None:
        return Plan(tokens)
    parameters = size.bytes // 4
    trained = parameters if config.method == "full" else parameters // 50
    length = config.length or 512
    passed = min(
        sequences_at_once(config.at_once, length, default_device(), AT_ONCE) * length, config.batch_tokens
    )
    chunk = min(passed, 192) * size.vocabulary * 10
    memory = 900_000_000 + 4 * parameters + 12 * trained + chunk + passed * size.hidden * 1600 + 4 * length
    # Two checkpoints with moments and a third while it is written; as many of the weights that may be kept.
    return Plan(tokens, memory, 2 * parameters + 3 * (12 + 4) * trained)


def outlook(config: FinetuneConfig) -> dict[str, Any]:
    """What it is going to take: dialogues and tokens by language, steps, weights that are trained, hours here (by a
    measurement of about five seconds with random weights of the same shape), memory.
    """
    import torch
    import transformers

    from ..engines.transformers import default_device
    from ..models import references
    from ..train import adapters, attention
    from ..train import dialogues as batches
    from ..train import outlook as sums
    from ..train.tokens import next_token
    from . import finetune_data as data

    if config.objective != "sft":
        raise OnggiError(
            f"objective: --dry-run is for sft; {config.objective} has as many steps as --steps says."
        )
    if references.size(config.model) is None:
        raise OnggiError(
            f"model: {config.model} is not here yet; fetch it first with `onggi inspect {config.model}`."
        )
    read, start = data.read(config), data.start(references.resolve(config.model))
    known: Any = transformers.AutoConfig.from_pretrained(start.folder, trust_remote_code=False)
    window = getattr(known.get_text_config(), "max_position_embeddings", None)
    made = list(data.taught(read.train, start, data.ends(start), config.turns))
    length = data.length(config.length, [len(taught.ids) for _, taught in made], window)
    fit = data.fitting(made, length)
    rows = {tag: len(batches.packed(own, length)) for tag, own in fit.items()}
    size = max(config.batch_tokens // length, 1)
    once = len(rows) * max(rows.values()) if config.balance == "languages" else sum(rows.values())
    device = default_device()
    model: Any = transformers.AutoModelForCausalLM.from_config(
        known, trust_remote_code=False, dtype=torch.float32
    ).to(device)
    if start.new:
        model.resize_token_embeddings(max(start.new) + 1, mean_resizing=False)
    dtype = multiplied_in(config.precision, device)
    attention.prepare(model, dtype)
    if config.adapts:
        shape = adapters.Shape(
            config.rank, config.alpha or 2 * config.rank, config.dropout, config.method == "dora"
        )
        trained_rows = adapters.attach(model, shape, start.trained, 0).rows
    else:
        trained_rows = None
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    count = min(sequences_at_once(config.at_once, length, device, AT_ONCE), size)
    ids = torch.randint(0, known.get_text_config().vocab_size, (count, length), device=device)
    positions = torch.arange(length, device=device).expand(count, -1)
    learnt = sum(sum(taught.learnt) for own in fit.values() for taught in own)
    tokens = sum(len(taught.ids) for own in fit.values() for taught in own)
    weights = (torch.rand(ids.shape, device=device) < learnt / max(tokens, 1)).float() / ids.numel()
    loss = next_token(dtype, rows=trained_rows)
    model.train()
    each = sums.seconds(lambda: loss(model, {"ids": ids, "positions": positions, "weights": weights}))
    each = each * size / count
    steps = config.steps or (
        max(int(60 * config.minutes / each), 1)
        if config.minutes
        else max(round((config.epochs or 3) * once / (1 - config.replay) / size), 1)
    )
    of = sums.shape(known.to_dict(), total)
    memory = sums.memory(of, count * length, config.checkpointing, torch.float32) - 12 * (total - trained)
    return {
        "parameters": total,
        "trained": trained,
        "steps": steps,
        "length": length,
        "dialogues": {tag: len(own) for tag, own in fit.items()},
        "tokens": {tag: sum(len(taught.ids) for taught in own) for tag, own in fit.items()},
        "learnt": learnt,
        "left_out": len(read.faults),
        "hours": {"here": steps * each / 3600},
        "memory": memory,
    }


def dry_run(config: FinetuneConfig) -> str:
    """What `outlook` finds, to read."""
    found = outlook(config)
    rows = [
        f"  {tag:10} {found['dialogues'][tag]:>6,} dialogues {found['tokens'][tag]:>9,} tokens"
        for tag in found["tokens"]
    ]
    total = sum(found["tokens"].values())
    return "\n".join(
        [
            f"{found['trained']:,} of {found['parameters']:,} weights are trained, in {found['steps']:,} steps of "
            f"{config.batch_tokens:,} places ({found['length']} a sequence); the loss is on {found['learnt']:,} of the "
            f"dialogues' {total:,} tokens.",
            *rows,
            f"About {duration(found['hours']['here'] * 3600)} of training here (measured in about five seconds), and "
            f"{found['memory'] / 2**30:.1f} GiB of memory; measuring before and after takes some minutes more.",
        ]
    )
