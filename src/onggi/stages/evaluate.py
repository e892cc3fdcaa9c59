"""`onggi evaluate`: reference and variants on the same passages, in every language."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ledger
from ..errors import OnggiError
from ..languages import Languages
from ..ledger import Artifact
from ..progress import Progress, progress
from .base import Plan, Stage, command, options

if TYPE_CHECKING:  # jsonargparse runs this block for --help: nothing here may import torch
    from ..models.references import Reference

Head = Any  # onggi.head.Head
_REVISION = 1


@dataclass(frozen=True)
class EvaluateConfig:
    """Score models on a text in every language, each against the reference on the same passages.

    Writes DIR/scores.json (every measure with its interval and verdict) and DIR/items.parquet (one
    row per model, language, passage and measure). Scores are computed in fp32.
    """

    models: list[str]
    """Models to score, each MODEL or NAME=MODEL; NAME is its key in the results."""
    reference: str
    """What they are measured against: a NAME from the line, or a MODEL."""
    text: str = "probe"
    """Text to score: a source as `onggi text` takes. The default is the shipped probe, everyday
    passages with the same content in 12 languages over 10 scripts."""
    languages: Languages | None = None
    """Languages to score, as en,ko,km; default: all that the text has."""
    limit: int | None = None
    """At most so many passages per language; default: all."""
    margin: float = 0.01
    """A relative change of nll_per_passage smaller than this does not matter: the verdict is then
    `equivalent within 1%`."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if not self.models:
            raise OnggiError("models: name at least one.")
        if not 0 < self.margin < 1:
            raise OnggiError(f"margin: {self.margin} is not a share between 0 and 1 (0.01 is 1%).")
        if self.limit is not None and self.limit < 1:
            raise OnggiError(f"limit: {self.limit} is not a number of passages.")


def _references(config: EvaluateConfig) -> tuple[list[Reference], str]:
    """The models of the line, the reference first, and its name."""
    from ..models import references

    line = references.parse_all(config.models)
    for reference in line:
        if reference.name == config.reference:
            return [reference, *(r for r in line if r is not reference)], reference.name
    given = references.parse(config.reference)
    # The same model under another name on the line is still one model.
    for reference in line:
        if reference.source == given.source:
            return [reference, *(r for r in line if r is not reference)], reference.name
    line = [given, *line]
    names = [r.name for r in line]
    if names.count(given.name) > 1:
        raise OnggiError(
            f"reference: {given.name!r} is also the name of another model on the line; "
            f"name one apart, as in --reference base={given.source}."
        )
    return line, given.name


def inputs(config: EvaluateConfig) -> dict[str, Any]:
    """Fingerprints of the text and of each model by its name."""
    from .. import text
    from ..models import references

    line, name = _references(config)
    return {
        "models": {r.name: references.fingerprint(r.source) for r in line},
        "reference": name,
        "text": text.fingerprint(config.text, config.languages),
    }


def evaluate(config: EvaluateConfig, out: Path) -> Artifact:
    """Score the models and write `out`; see `EvaluateConfig`.

    Raises OnggiError for two models of one name, a text or model that is not sound, a margin that
    is not a share.

    >>> import json
    >>> from pathlib import Path
    >>> from onggi.languages import Languages
    >>> from onggi.stages import EvaluateConfig, evaluate
    >>> config = EvaluateConfig(["w4"], "model", languages=Languages("en,ko,km"), limit=4)
    >>> made = evaluate(config, Path("scores"))
    >>> scores = json.loads((made.path / "scores.json").read_text(encoding="utf-8"))
    >>> khmer = scores["models"]["w4"]["languages"]["km"]
    >>> 0 < khmer["kl"]["low"] <= khmer["kl"]["value"] <= khmer["kl"]["high"]
    True
    >>> scores["models"]["w4"]["worst"]["kl"] in ("en", "ko", "km")
    True
    """
    job = ledger.begin(out, "evaluate", options(config), inputs(config), _REVISION)
    if job.done:
        return job.done
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with job:
        return _evaluate(config, job)


def _evaluate(config: EvaluateConfig, job: ledger.Job) -> Artifact:
    from .. import text
    from ..evaluate import summary
    from ..evaluate.measure import Measured
    from ..models import references

    line, reference = _references(config)
    found = text.load(config.text, config.languages)
    languages = config.languages or Languages(found.languages)
    passages = found.common(languages, config.limit)
    folders = {r.name: references.resolve(r.source) for r in line}
    results = _measure(job, folders, reference, passages)
    measured = {
        language: {name: Measured(**sums) for name, sums in by_model.items()}
        for language, by_model in results.items()
    }
    sizes = {
        language: [len(content.encode()) for content in texts.values()]
        for language, texts in passages.items()
    }
    scores = summary.summarise(measured, sizes, reference, config.margin, found.parallel)
    for r in line:
        scores["models"][r.name] = {
            "source": r.source,
            "bytes": sum(file.stat().st_size for file in folders[r.name].glob("*.safetensors")),
            "about": {k: v for k, v in references.about(folders[r.name]).items() if k != "layers"},
            **scores["models"][r.name],
        }
    whole = {
        "reference": reference,
        "text": found.name,
        "parallel": found.parallel,
        "languages": list(languages),
        "passages": {language: len(texts) for language, texts in passages.items()},
        "margin": config.margin,
        **scores,
    }
    ledger.write_json(job.work / "scores.json", whole)
    _write_items(job.work / "items.parquet", measured, passages, found.name)
    return job.finish(
        ["scores.json", "items.parquet"],
        command=command(STAGE, config, job.out),
        before=_commands([config.text, *(r.source for r in line)]),
    )


def _measure(
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
        with progress(f"evaluate {job.out.name}", total) as bar:
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
    import dataclasses

    import torch

    from ..engines.transformers import Engine
    from ..models.checkpoint import pending, write_shard

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
    from safetensors.torch import load_file

    from ..evaluate.measure import measure

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


def _commands(sources: Sequence[str]) -> list[str]:
    """The commands that made what `sources` name, as far as onggi made it; what comes first, first."""
    found: dict[str, None] = {}
    for source in sources:
        made = ledger.artifact(Path(source)) if Path(source).is_dir() else None
        if made and "command" in made.record:
            text = made.record["options"].get("text")
            found |= dict.fromkeys([*_commands([text] if text else []), made.record["command"]])
    return list(found)


def _write_items(
    path: Path,
    measured: Mapping[str, Mapping[str, Any]],
    passages: Mapping[str, Mapping[str, str]],
    task: str,
) -> None:
    """One row per model, language, passage and sum: nats, nats of divergence, tokens that agree, bytes.
    Every measure is made of these, and paired statistics need no more.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {
        key: [] for key in ("model", "language", "task", "item", "metric", "value", "tokens")
    }
    for language, by_model in measured.items():
        for name, sums in by_model.items():
            sizes = [len(content.encode()) for content in passages[language].values()]
            metrics = {"nll": sums.nll, "kl": sums.kl, "top1_agreement": sums.agree, "bytes": sizes}
            for metric, values in metrics.items():
                for item, value, tokens in zip(passages[language], values or (), sums.tokens, strict=False):
                    row = (name, language, task, item, metric, float(value), tokens)
                    for key, cell in zip(columns, row, strict=True):
                        columns[key].append(cell)
    with ledger.writing(path) as aside:
        pq.write_table(pa.table(columns), aside, compression="zstd")


def plan(config: EvaluateConfig) -> Plan:
    """About the tokens and memory, where text and reference are at hand."""
    from .. import text
    from ..models import references

    line, _ = _references(config)
    size = references.size(line[0].source)
    if config.text.startswith("debian:"):
        return Plan()
    found = text.load(config.text, config.languages)
    passages = found.common(config.languages or Languages(found.languages), config.limit)
    characters = sum(len(content) for texts in passages.values() for content in texts.values())
    tokens = characters // 3  # between English's four characters a token and Chinese's one and a half
    if size is None:
        return Plan(tokens=tokens * len(line))
    # fp32 weights of one model, another head to compare with, the states of one language.
    memory = 500_000_000 + 2 * size.bytes + 4 * size.hidden * size.vocabulary
    return Plan(tokens * len(line), memory, tokens * len(line) * size.hidden * 4)


STAGE = Stage("evaluate", EvaluateConfig, evaluate, inputs, plan, {"models": "+"}, _REVISION)
