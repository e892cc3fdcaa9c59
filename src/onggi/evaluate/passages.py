"""Several models on the same passages, one loaded at a time, what is done kept."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .. import ledger
from ..engines.transformers import Engine
from ..head import Head
from ..models.checkpoint import pending, write_shard
from ..progress import Progress, progress
from .measure import measure


def measure_all(
    job: ledger.Job,
    folders: Mapping[str, Path],
    reference: str,
    passages: Mapping[str, Mapping[str, str]],
) -> dict[str, dict[str, Any]]:
    """Language → model → sums. One model is loaded at a time: first the states of each, then the
    languages, each with all models side by side. A finished language or set of states is kept.
    """
    kept = {language: job.partial / f"scores-{language}.json" for language in passages}
    missing = [language for language in passages if not kept[language].is_file()]
    if missing:
        cost = {language: sum(len(t.encode()) for t in passages[language].values()) for language in passages}
        # About how much of the work is the layers' and how much the head's, in the same unit.
        total = 2 * len(folders) * sum(cost.values())
        with progress(f"evaluate {job.out.name}: text", total) as bar:
            bar.skip(2 * len(folders) * sum(cost[tag] for tag in passages if tag not in missing))
            heads = _states(job, folders, reference, {tag: passages[tag] for tag in missing}, cost, bar)
            for language in missing:
                _score(job, heads, reference, language, kept[language])
                bar.step(len(folders) * cost[language], f"scored {language}")
    return {language: ledger.read_json(file) for language, file in kept.items()}


def _states_file(job: ledger.Job, index: int, language: str) -> Path:
    return job.partial / f"states-{index}-{language}.safetensors"


def _states(
    job: ledger.Job,
    folders: Mapping[str, Path],
    reference: str,
    passages: Mapping[str, Mapping[str, str]],
    cost: Mapping[str, int],
    bar: Progress,
) -> dict[str, Head]:
    """Keep each model's hidden states of each language in a file; return the heads."""
    heads: dict[str, Head] = {}
    for index, (name, folder) in enumerate(folders.items()):
        bar.step(0, f"loading {name}")
        engine = Engine(folder)
        for language, texts in passages.items():
            file = _states_file(job, index, language)
            if file.is_file():
                bar.skip(cost[language])
                continue
            states = engine.states(list(texts.values()))
            tensors = {f"hidden-{i}": pending(hidden) for i, (hidden, _) in enumerate(states)}
            tensors |= {f"ids-{i}": pending(ids) for i, (_, ids) in enumerate(states)}
            write_shard(file, tensors)
            job.tick()
            bar.step(cost[language], f"{name} {language}")
        head = engine.head
        first = heads.get(reference)
        # Variants seldom touch the head: keep one copy of it for all.
        if (
            first is not None
            and first.weight.shape == head.weight.shape
            and torch.equal(first.weight, head.weight)
        ):
            head = dataclasses.replace(head, weight=first.weight)
        heads[name] = head
        del engine
        gc.collect()
    return heads


def _score(job: ledger.Job, heads: Mapping[str, Head], reference: str, language: str, file: Path) -> None:
    states = {}
    for index, name in enumerate(heads):
        tensors = load_file(_states_file(job, index, language))
        count = len(tensors) // 2
        device = heads[name].weight.device
        states[name] = [
            (tensors[f"hidden-{i}"].to(device), tensors[f"ids-{i}"].to(device)) for i in range(count)
        ]
    measured = measure(states, heads, reference)
    ledger.write_json(file, {name: sums.as_dict() for name, sums in measured.items()})
    job.tick()
    for index in range(len(heads)):
        _states_file(job, index, language).unlink()
