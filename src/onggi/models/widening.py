"""A model with more tokens: new rows in its embedding and its output head.

A new token takes the place of several old ones, and what it starts from is their mean: near enough to
what the layers know that a little training on text of the language goes on from there (new rows at
random would first have to be found). Old rows are copied bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import OnggiError
from . import checkpoint as checkpoints
from .checkpoint import Checkpoint


def widen(source: Checkpoint, made_of: Sequence[Sequence[int]], first: int, path: Path) -> int:
    """Write the weights of `source` to `path` with rows from `first` on for new tokens; returns how many
    rows there are then.

    made_of: for each new token the ids whose rows it starts from the mean of, in fp32, rounded to the
    type that is stored. Embedding and head alike, tied or not. Raises OnggiError for a model that is
    quantised or whose tables are not to be found.
    """
    tables = _tables(source)
    stored = [name for name in source.entries if name in tables]
    if not stored:
        raise OnggiError(f"{source.folder}: its embedding was not found.")
    tensors = {}
    rows = 0
    for name in source.entries:
        if name not in tables:
            tensors[name] = checkpoints.copied(source, name)
            continue
        old = source.tensor(name)
        rows = max(len(old), first + len(made_of))
        new = torch.empty(rows, *old.shape[1:], dtype=old.dtype)
        new[: len(old)] = old
        for index, pieces in enumerate(made_of, first):
            new[index] = old[list(pieces)].float().mean(0)
        tensors[name] = checkpoints.pending(new)
    checkpoints.write_shard(path, tensors)
    return rows


def with_vocabulary(config: dict[str, Any], rows: int) -> dict[str, Any]:
    """The config of a model whose tables have `rows` rows."""
    inner = config.get("text_config")
    if isinstance(inner, dict) and "vocab_size" in inner:
        config = config | {"text_config": inner | {"vocab_size": rows}}
    return config | {"vocab_size": rows} if "vocab_size" in config else config


def _tables(source: Checkpoint) -> set[str]:
    """The names of all tensors that have a row for each token: weights of embedding and head, a bias."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if "quantization_config" in source.config:
        raise OnggiError(f"{source.folder}: is quantised; name the model it was made from.")
    config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
    with torch.device("meta"):  # names only
        model = AutoModelForCausalLM.from_config(config)
    modules = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module]
    found = {id(parameter) for module in modules for parameter in module.parameters()}
    return {
        name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in found
    }
