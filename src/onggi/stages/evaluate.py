"""`onggi evaluate`: reference and variants on the same passages, in every language."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ledger
from ..errors import OnggiError, nearest
from ..languages import Languages
from ..ledger import Artifact
from ..progress import progress, say
from .base import Names, Plan, Stage, command, options

if TYPE_CHECKING:  # jsonargparse runs this block for --help: nothing here may import torch
    from ..models.references import Reference
    from ..text import Text

_REVISION = 2


@dataclass(frozen=True)
class EvaluateConfig:
    """Score models in every language: on a text, on tasks, each against a reference.

    Writes DIR/scores.json (every measure with its interval and verdict) and DIR/items.parquet (one
    row per model, language, item and measure). Scores are computed in fp32.
    """

    models: list[str]
    """Models to score, each MODEL or NAME=MODEL; NAME is its key in the results."""
    reference: str | None = None
    """What they are measured against: a NAME from the line, or a MODEL; default: the first of the line."""
    text: str | None = None
    """Text to score: a source as `onggi text` takes. Default: the shipped probe, everyday passages
    with the same content in 12 languages over 10 scripts; with --tasks, none."""
    tasks: Names | None = None
    """Tasks to ask, as capitals,number_words; see --list-tasks. Those made from parallel text take
    --text, else the probe."""
    shots: int = 0
    """Solved items before each item of a task; at most 5."""
    languages: Languages | None = None
    """Languages to score, as en,ko,km; default: all that the text has, for tasks those of the probe."""
    limit: int | None = None
    """At most so many passages, and items of a task, per language; default: all."""
    margin: float = 0.01
    """A relative change of nll_per_passage smaller than this does not matter, nor one of a task's accuracy
    by so much (0.01 is one point): the verdict is then `equivalent within 1%`."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if not self.models:
            raise OnggiError("models: name at least one.")
        if not 0 < self.margin < 1:
            raise OnggiError(f"margin: {self.margin} is not a share between 0 and 1 (0.01 is 1%).")
        if self.limit is not None and self.limit < 1:
            raise OnggiError(f"limit: {self.limit} is not a number of passages.")
        if self.shots < 0:
            raise OnggiError(f"shots: {self.shots} is not a number of solved items.")

    @property
    def scored_text(self) -> str | None:
        """The text whose passages are scored, None where only tasks are asked."""
        return self.text or (None if self.tasks else "probe")


def _references(config: EvaluateConfig) -> tuple[list[Reference], str]:
    """The models of the line, the reference first, and its name."""
    from ..models import references

    line = references.parse_all(config.models)
    if config.reference is None:
        return line, line[0].name
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
        "text": text.fingerprint(config.text or "probe", config.languages),
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
    from ..models import references

    line, reference = _references(config)
    found = text.load(config.text or "probe", config.languages)
    asked = _tasks(config, found)
    folders = {r.name: references.resolve(r.source) for r in line}
    scores: dict[str, Any] = {
        "reference": reference,
        "text": None,
        "parallel": False,
        "languages": [],
        "passages": {},
        "margin": config.margin,
        "models": {
            r.name: {
                "source": r.source,
                "bytes": sum(file.stat().st_size for file in folders[r.name].glob("*.safetensors")),
                "about": {k: v for k, v in references.about(folders[r.name]).items() if k != "layers"},
                "languages": {},
                "worst": {},
            }
            for r in line
        },
        "comparisons": [],
    }
    items = _Items()
    if config.scored_text:
        _score_text(config, job, found, folders, scores, items)
    if asked:
        _score_tasks(config, job, asked, folders, scores, items)
    ledger.write_json(job.work / "scores.json", scores)
    items.write(job.work / "items.parquet")
    return job.finish(
        ["scores.json", "items.parquet"],
        command=command(STAGE, config, job.out),
        before=_commands([config.text or "probe", *(r.source for r in line)]),
    )


def _score_text(
    config: EvaluateConfig,
    job: ledger.Job,
    found: Text,
    folders: Mapping[str, Path],
    scores: dict[str, Any],
    items: _Items,
) -> None:
    """Every model on the passages of a text; into `scores` and `items`."""
    from ..evaluate import passages as measuring
    from ..evaluate import summary
    from ..evaluate.measure import Measured

    languages = config.languages or Languages(found.languages)
    passages = found.common(languages, config.limit)
    reference = scores["reference"]
    results = measuring.measure_all(job, folders, reference, passages)
    measured = {
        language: {name: Measured(**sums) for name, sums in by_model.items()}
        for language, by_model in results.items()
    }
    sizes = {
        language: [len(content.encode()) for content in texts.values()]
        for language, texts in passages.items()
    }
    made = summary.summarise(measured, sizes, reference, config.margin, found.parallel)
    for name, model in made["models"].items():
        scores["models"][name] |= model
    scores |= {
        "text": found.name,
        "parallel": found.parallel,
        "languages": list(languages),
        "passages": {language: len(texts) for language, texts in passages.items()},
        "comparisons": made["comparisons"],
    }
    items.add_text(measured, passages, found.name)


def _tasks(config: EvaluateConfig, found: Text) -> dict[str, dict[str, list[Any]]]:
    """Task → language → items, for the tasks that are asked; all is known before a model is loaded."""
    from ..evaluate.tasks import TASKS

    asked: dict[str, dict[str, list[Any]]] = {}
    for name in config.tasks or ():
        if name not in TASKS:
            raise OnggiError(
                f"tasks: there is no task {name!r}.{nearest(name, list(TASKS))} See --list-tasks."
            )
        task = TASKS[name]
        text = found if task.parallel else None
        have = task.languages(text)
        wanted = config.languages or Languages(found.languages)
        languages = [language for language in wanted if language in have]
        if not languages:
            raise OnggiError(f"tasks: {name} is in none of {','.join(wanted)}; it is in {','.join(have)}.")
        if len(languages) < len(wanted):
            say(f"{name} is not asked in {', '.join(tag for tag in wanted if tag not in languages)}.")
        asked[name] = task.items(languages, shots=config.shots, limit=config.limit, text=text)
    return asked


def _score_tasks(
    config: EvaluateConfig,
    job: ledger.Job,
    asked: Mapping[str, Mapping[str, list[Any]]],
    folders: Mapping[str, Path],
    scores: dict[str, Any],
    items: _Items,
) -> None:
    """Every model on every task, one loaded at a time; into `scores` and `items`."""
    import functools

    from ..engines.transformers import Engine
    from ..evaluate import answering, tallies
    from ..evaluate.tasks import TASKS

    def file(index: int, name: str, language: str) -> Path:
        return job.partial / f"task-{index}-{name}-{language}.jsonl"

    rows: dict[str, dict[str, dict[str, list[Any]]]] = {name: {} for name in asked}
    count = sum(len(own) for by_language in asked.values() for own in by_language.values())
    with progress(f"evaluate {job.out.name}: tasks", count * len(folders)) as bar:
        for index, (model, folder) in enumerate(folders.items()):
            engine = None
            for name, by_language in asked.items():
                for language, own in by_language.items():
                    kept = answering.read(file(index, name, language))
                    bar.skip(len(kept))
                    if len(kept) < len(own):
                        bar.step(0, f"loading {model}")
                        engine = engine or Engine(folder)
                        step = functools.partial(bar.step, 1, f"{model} {name} {language}")
                        ask = functools.partial(answering.ask, engine, TASKS[name])
                        kept = answering.complete(file(index, name, language), kept, own, ask, step)
                        job.tick()
                    rows[name].setdefault(model, {})[language] = [kept[item.id] for item in own]
            del engine
            gc.collect()
    scores["tasks"] = {}
    for name, by_model in rows.items():
        task = TASKS[name]
        metric = f"{name}/{task.metric}"
        tallied = tallies.tally(task, asked[name], by_model, scores["reference"], config.margin)
        for model, entries in tallied.items():
            for language, entry in entries.items():
                scores["models"][model]["languages"].setdefault(language, {})[metric] = entry
        scores["tasks"][name] = {
            "metric": task.metric,
            "about": task.about,
            "shots": config.shots,
            "languages": list(asked[name]),
            "text": (config.text or "probe") if task.parallel else None,
        }
        items.add_task(name, task.metric, by_model)


class _Items:
    """What `items.parquet` holds: of every item the numbers that all measures are made of."""

    def __init__(self) -> None:
        names = ("model", "language", "task", "item", "metric", "value", "tokens")
        self.columns: dict[str, list[Any]] = {name: [] for name in names}

    def _add(self, *row: Any) -> None:
        for column, cell in zip(self.columns.values(), row, strict=True):
            column.append(cell)

    def add_text(
        self,
        measured: Mapping[str, Mapping[str, Any]],
        passages: Mapping[str, Mapping[str, str]],
        text: str,
    ) -> None:
        """Of a passage: nats, nats of divergence, tokens that agree, bytes."""
        for language, by_model in measured.items():
            for name, sums in by_model.items():
                sizes = [len(content.encode()) for content in passages[language].values()]
                metrics = {"nll": sums.nll, "kl": sums.kl, "top1_agreement": sums.agree, "bytes": sizes}
                for metric, values in metrics.items():
                    for item, value, tokens in zip(
                        passages[language], values or (), sums.tokens, strict=False
                    ):
                        self._add(name, language, text, item, metric, float(value), tokens)

    def add_task(self, task: str, metric: str, rows: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
        """Of an item: its value by the task's metric; tokens where an answer was written."""
        for model, by_language in rows.items():
            for language, own in by_language.items():
                for row in own:
                    self._add(model, language, task, row["item"], metric, row["value"], row.get("tokens"))

    def write(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {"value": pa.float64(), "tokens": pa.int64()}
        table = pa.table(
            {key: pa.array(cells, types.get(key, pa.string())) for key, cells in self.columns.items()}
        )
        with ledger.writing(path) as aside:
            pq.write_table(table, aside, compression="zstd")


def _commands(sources: Sequence[str]) -> list[str]:
    """The commands that made what `sources` name, as far as onggi made it; what comes first, first."""
    found: dict[str, None] = {}
    for source in sources:
        made = ledger.artifact(Path(source)) if Path(source).is_dir() else None
        if made and "command" in made.record:
            text = made.record["options"].get("text")
            found |= dict.fromkeys([*_commands([text] if text else []), made.record["command"]])
    return list(found)


def list_tasks() -> str:
    """The tasks that there are, one a line, with their metric and languages."""
    from ..evaluate.tasks import TASKS

    lines = []
    for name, task in TASKS.items():
        where = "those of the text" if task.parallel else f"{len(task.languages())} languages"
        lines.append(f"{name:16} {task.metric:16} {where:18} {task.about}")
    return "\n".join(lines)


def plan(config: EvaluateConfig) -> Plan:
    """About the tokens and memory, where text and reference are at hand."""
    from .. import text
    from ..models import references

    line, _ = _references(config)
    size = references.size(line[0].source)
    if config.scored_text is None or config.scored_text.startswith("debian:"):
        return Plan()
    found = text.load(config.scored_text, config.languages)
    passages = found.common(config.languages or Languages(found.languages), config.limit)
    characters = sum(len(content) for texts in passages.values() for content in texts.values())
    tokens = characters // 3  # between English's four characters a token and Chinese's one and a half
    if size is None:
        return Plan(tokens=tokens * len(line))
    # fp32 weights of one model, another head to compare with, the states of one language.
    memory = 500_000_000 + 2 * size.bytes + 4 * size.hidden * size.vocabulary
    return Plan(tokens * len(line), memory, tokens * len(line) * size.hidden * 4)


STAGE = Stage("evaluate", EvaluateConfig, evaluate, inputs, plan, {"models": "+"}, _REVISION)
