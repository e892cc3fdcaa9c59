"""Several models on the same passages, one loaded at a time, what is done kept.

Here the models of a language stand side by side, so that the reference's logits are computed once. On a
cluster each variant × language is a call by itself, given the reference's states: it computes the logits of
two models, and needs no other variant.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor

from .. import fanout, ledger
from ..engines.transformers import Engine
from ..head import Head
from ..models import references
from ..models.checkpoint import pending, write_shard
from ..progress import Progress, progress
from . import pieces
from .measure import States, measure


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
            _keep(file, engine.states(list(texts.values())))
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


def _keep(file: Path, states: States) -> None:
    tensors = {f"hidden-{i}": pending(hidden) for i, (hidden, _) in enumerate(states)}
    tensors |= {f"ids-{i}": pending(ids) for i, (_, ids) in enumerate(states)}
    write_shard(file, tensors)


def _kept(tensors: Mapping[str, Tensor]) -> States:
    """What `_keep` wrote."""
    return [(tensors[f"hidden-{i}"], tensors[f"ids-{i}"]) for i in range(len(tensors) // 2)]


def _score(job: ledger.Job, heads: Mapping[str, Head], reference: str, language: str, file: Path) -> None:
    states = {
        name: _kept(safetensors.load_file(_states_file(job, index, language)))
        for index, name in enumerate(heads)
    }
    measured = measure(states, heads, reference)
    ledger.write_json(file, {name: sums.as_dict() for name, sums in measured.items()})
    job.tick()
    for index in range(len(heads)):
        _states_file(job, index, language).unlink()


def measure_apart(
    job: ledger.Job,
    sources: Mapping[str, str],
    reference: str,
    passages: Mapping[str, Mapping[str, str]],
    on: fanout.On,
    memory: int,
) -> dict[str, dict[str, Any]]:
    """As `measure_all`, each variant × language by itself, where `fanout.each` runs them. sources: of the
    models by name. It takes up what `measure_all` has kept, and the other way round.
    """
    kept = {language: job.partial / f"scores-{language}.json" for language in passages}
    missing = [language for language in passages if not kept[language].is_file()]
    names, own = list(sources), references.absolute(sources[reference])
    texts = {language: list(passages[language].values()) for language in missing}
    states = {language: _states_file(job, names.index(reference), language) for language in missing}
    pairs = {
        (name, language): job.partial / f"scores-{names.index(name)}-{language}.json"
        for name in [name for name in names if name != reference] or [reference]
        for language in missing
    }
    with progress(f"evaluate {job.out.name}: text", len(states) + len(pairs)) as bar:
        first = [language for language, file in states.items() if not file.is_file()]
        second = [pair for pair, file in pairs.items() if not file.is_file()]
        bar.skip(len(states) - len(first) + len(pairs) - len(second))
        hidden: list[Callable[[], Iterator[States]]]
        hidden = [functools.partial(_hidden, own, texts[language]) for language in first]
        for number, found in fanout.each(hidden, on, memory):
            _keep(states[first[number]], found)
            job.tick()
            bar.step(1, f"{reference} {first[number]}")
        calls: list[Callable[[], Iterator[dict[str, Any]]]]
        calls = [
            functools.partial(
                _pair,
                own,
                references.absolute(sources[name]) if name != reference else None,
                texts[language],
                _Sent(states[language]),
            )
            for name, language in second
        ]
        for number, sums in fanout.each(calls, on, memory):
            name, language = second[number]
            ledger.write_json(pairs[name, language], sums)
            job.tick()
            bar.step(1, f"{name} {language}")
    for language in missing:
        by_model: dict[str, Any] = {}
        for (name, tag), file in pairs.items():
            if tag == language:
                sums = ledger.read_json(file)
                by_model |= {reference: sums["reference"], name: sums.get("variant", sums["reference"])}
        ledger.write_json(kept[language], {name: by_model[name] for name in names})
        for index in range(len(names)):
            _states_file(job, index, language).unlink(missing_ok=True)
    return {language: ledger.read_json(file) for language, file in kept.items()}


@dataclasses.dataclass(frozen=True)
class _Sent:
    """A file of tensors that goes to another process as what it holds, and is read when it goes."""

    file: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return safetensors.load, (self.file.read_bytes(),)


def _hidden(source: str, texts: Sequence[str]) -> Iterator[States]:
    yield pieces.engine(source, "states").states(texts)


def _pair(reference: str, variant: str | None, texts: Sequence[str], states: Any) -> Iterator[dict[str, Any]]:
    """Sums of the reference, whose states those are, and of a variant of it, where there is one."""
    heads = {"reference": _head(reference)}
    sides = {"reference": _kept(states)}
    if variant is not None:
        engine = pieces.engine(variant, "states")
        heads["variant"] = engine.head
        sides["variant"] = engine.states(texts)
    yield {name: sums.as_dict() for name, sums in measure(sides, heads, "reference").items()}


@functools.lru_cache(maxsize=1)
def _head(source: str) -> Head:
    """Kept by a worker: every call needs it, and only it, of the reference."""
    head: Head = pieces.engine(source, "states").head
    return head
