"""`onggi evaluate`: reference and variants on the same passages, in every language."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .. import ledger
from ..errors import OnggiError, nearest
from ..languages import Languages
from ..ledger import Artifact
from ..progress import progress, say
from .base import Names, Plan, Stage, command, options

if TYPE_CHECKING:  # jsonargparse runs this block for --help: nothing here may import torch
    from ..evaluate.records import Items
    from ..models.references import Reference
    from ..text import Text
    from ..text.prompts import Prompt

_REVISION = 3
# What one model's files in lm-eval's shape are made of: results of several tasks, samples by task.
Sheets = tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]


@dataclass(frozen=True)
class EvaluateConfig:
    """Score models in every language: on a text, on tasks, on answers to prompts, each against a reference.

    Writes DIR/scores.json (every measure with its interval and verdict) and DIR/items.parquet (one
    row per model, language, item and measure); with --prompts DIR/answers.jsonl too, with --tasks the
    results in lm-eval's own files, DIR/results_MODEL.json and DIR/samples_MODEL_TASK.jsonl. Scores are
    computed in fp32. A model behind a server (http://HOST:PORT/v1#NAME) can only answer prompts.
    """

    models: list[str]
    """Models to score, each MODEL or NAME=MODEL; NAME is its key in the results."""
    reference: str | None = None
    """What they are measured against: a NAME from the line, or a MODEL; default: the first of the line."""
    text: str | None = None
    """Text to score: a source as `onggi text` takes. Default: the shipped probe, everyday passages
    with the same content in 12 languages over 10 scripts; with --tasks or --prompts, none."""
    tasks: Names | None = None
    """Tasks to ask, as capitals,number_words. The switch --list-tasks prints them. Those made from parallel
    text take --text, else the probe. Also any task of lm-eval by name, as kobest_copa, or by its YAML
    file, and the groups korean and multilingual (pip install 'onggi[tasks]')."""
    shots: int | None = None
    """Solved items before each item of a task; of ours at most 5. Default: none, for a task of lm-eval
    as many as it asks for."""
    prompts: str | None = None
    """A JSONL file of prompts to answer, {"_id", "prompt" or "messages", "lang", "answer"?}: was the answer
    in the language asked for, do other scripts leak into it, does it loop, is it right."""
    max_tokens: int = 256
    """Longest answer to a prompt, in tokens."""
    languages: Languages | None = None
    """Languages to score, as en,ko,km; default: all that the text has, for tasks those of the probe."""
    limit: int | None = None
    """At most so many passages, items of a task, and prompts, per language; default: all."""
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
        if self.shots is not None and self.shots < 0:
            raise OnggiError(f"shots: {self.shots} is not a number of solved items.")
        if self.max_tokens < 1:
            raise OnggiError(f"max_tokens: {self.max_tokens} is not a number of tokens.")

    @property
    def scored_text(self) -> str | None:
        """The text whose passages are scored, None where only tasks or prompts are asked."""
        return self.text or (None if self.tasks or self.prompts else "probe")


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
    found = {
        "models": {r.name: references.fingerprint(r.source) for r in line},
        "reference": name,
        "text": text.fingerprint(config.text or "probe", None if config.tasks else config.languages),
        "prompts": ledger.sha256(_file(config.prompts)) if config.prompts else None,
    }
    if theirs := _split(config)[1]:
        _known(theirs)
        found["lm-eval"] = _harness().fingerprint(theirs)
    return found


def _split(config: EvaluateConfig) -> tuple[list[str], list[str]]:
    """The tasks asked for: ours, and those of lm-eval (a YAML file, and every other name)."""
    from ..evaluate.tasks import TASKS

    names = config.tasks or ()
    return [name for name in names if name in TASKS], [name for name in names if name not in TASKS]


def _harness() -> ModuleType:
    """`evaluate.harness`, which needs an extra. Raises OnggiError where that is not installed."""
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise OnggiError("tasks: tasks of lm-eval need it installed: pip install 'onggi[tasks]'.")
    from ..evaluate import harness

    return harness


def _file(path: str) -> Path:
    if not Path(path).is_file():
        raise OnggiError(f"prompts: {path}: there is no such file.")
    return Path(path)


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
    from ..evaluate import results
    from ..evaluate.records import Items
    from ..models import references

    line, reference = _references(config)
    served = {r.name: found for r in line if (found := references.served(r.source))}
    if served and (config.scored_text or config.tasks):
        raise OnggiError(
            f"models: {next(iter(served))} is behind a server, which gives no log-likelihoods of a given text; "
            "it can only answer --prompts, without --text and --tasks."
        )
    # Translation needs its English, whichever languages are scored.
    ours, theirs = _split(config)
    asked = _tasks(config, ours, text.load(config.text or "probe")) if ours else {}
    harnessed = _harness().prepare(theirs, config.languages, config.shots, config.limit) if theirs else []
    prompts = _prompts(config)
    folders = {r.name: references.resolve(r.source) for r in line if r.name not in served}
    scores: dict[str, Any] = {
        "reference": reference,
        "text": None,
        "parallel": False,
        "languages": [],
        "passages": {},
        "margin": config.margin,
        "models": {r.name: _about(r, folders.get(r.name)) for r in line},
        "comparisons": [],
    }
    items, outputs = Items(), ["scores.json", "items.parquet"]
    if config.scored_text:
        _score_text(config, job, text.load(config.scored_text, config.languages), folders, scores, items)
    if config.tasks:
        scores["tasks"] = {}
        sheets: dict[str, Sheets] = {name: ([], {}) for name in folders}
        if asked:
            _score_tasks(config, job, asked, folders, scores, items, sheets)
        if harnessed:
            _score_harness(config, job, harnessed, folders, scores, items, sheets)
        for name, (made, samples) in sheets.items():
            source = scores["models"][name]["source"]
            outputs += results.write(job.work, name, source, made, samples, config.limit)
        if twice := sorted({file for file in outputs if outputs.count(file) > 1}):
            raise OnggiError(f"models: two would write {twice[0]}; name one apart, as NAME=MODEL.")
    if prompts:
        sources: dict[str, Any] = {r.name: folders.get(r.name, r.source) for r in line}
        _answer_prompts(config, job, prompts, sources, scores, items)
        outputs.append("answers.jsonl")
    ledger.write_json(job.work / "scores.json", scores)
    items.write(job.work / "items.parquet")
    return job.finish(
        outputs,
        command=command(STAGE, config, job.out),
        before=_commands([config.text or "probe", *(r.source for r in line)]),
    )


def _about(r: Reference, folder: Path | None) -> dict[str, Any]:
    """The entry of a model before anything is measured; folder: None for one behind a server."""
    from ..models import references

    size, about = None, {}
    if folder is not None:
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        about = {key: value for key, value in references.about(folder).items() if key != "layers"}
    return {"source": r.source, "bytes": size, "about": about, "languages": {}, "worst": {}}


def _score_text(
    config: EvaluateConfig,
    job: ledger.Job,
    found: Text,
    folders: Mapping[str, Path],
    scores: dict[str, Any],
    items: Items,
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


def _known(theirs: Sequence[str]) -> None:
    """Refuse a name that is nobody's, before its neighbours' data is fetched."""
    from importlib.util import find_spec

    from ..evaluate.tasks import TASKS

    for name in theirs:
        if name.endswith((".yaml", ".yml")):
            continue
        if find_spec("lm_eval") is None:
            raise OnggiError(
                f"tasks: there is no task {name!r}.{nearest(name, list(TASKS))} See --list-tasks; "
                "tasks of lm-eval need pip install 'onggi[tasks]'."
            )
        known = _harness().names()
        if name not in known:
            raise OnggiError(
                f"tasks: there is no task {name!r}.{nearest(name, [*TASKS, *known])} See --list-tasks."
            )


def _tasks(config: EvaluateConfig, names: Sequence[str], found: Text) -> dict[str, dict[str, list[Any]]]:
    """Task → language → items, for the tasks of ours; all is known before a model is loaded."""
    from ..evaluate.tasks import TASKS

    asked: dict[str, dict[str, list[Any]]] = {}
    for name in names:
        task = TASKS[name]
        text = found if task.parallel else None
        have = task.languages(text)
        wanted = config.languages or Languages(found.languages)
        languages = [language for language in wanted if language in have]
        if not languages:
            raise OnggiError(f"tasks: {name} is in none of {','.join(wanted)}; it is in {','.join(have)}.")
        if len(languages) < len(wanted):
            say(f"{name} is not asked in {', '.join(tag for tag in wanted if tag not in languages)}.")
        asked[name] = task.items(languages, shots=config.shots or 0, limit=config.limit, text=text)
    return asked


def _score_tasks(
    config: EvaluateConfig,
    job: ledger.Job,
    asked: Mapping[str, Mapping[str, list[Any]]],
    folders: Mapping[str, Path],
    scores: dict[str, Any],
    items: Items,
    sheets: Mapping[str, Sheets],
) -> None:
    """Every model on every task, one loaded at a time; into `scores`, `items` and `sheets`."""
    import functools

    from ..engines.transformers import Engine
    from ..evaluate import answering, results, tallies
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
    for name, by_model in rows.items():
        task = TASKS[name]
        for model, by_language in by_model.items():
            found, samples = results.ours(task, asked[name], by_language, config.shots or 0)
            sheets[model][0].append(found)
            sheets[model][1].update(samples)
        metric = f"{name}/{task.metric}"
        tallied = tallies.tally(task, asked[name], by_model, scores["reference"], config.margin)
        for model, entries in tallied.items():
            for language, entry in entries.items():
                scores["models"][model]["languages"].setdefault(language, {})[metric] = entry
        scores["tasks"][name] = {
            "metric": task.metric,
            "about": task.about,
            "shots": config.shots or 0,
            "languages": list(asked[name]),
            "text": (config.text or "probe") if task.parallel else None,
        }
        items.add_task(name, task.metric, by_model)


def _score_harness(
    config: EvaluateConfig,
    job: ledger.Job,
    asked: Sequence[Any],
    folders: Mapping[str, Path],
    scores: dict[str, Any],
    items: Items,
    sheets: Mapping[str, Sheets],
) -> None:
    """Every model on the tasks of lm-eval, one loaded at a time; into `scores`, `items` and `sheets`."""
    import functools

    from ..engines.transformers import Engine
    from ..evaluate import tallies

    harness = _harness()
    # (family, metric) → model → language → rows
    rows: dict[tuple[str, str], dict[str, dict[str, list[Any]]]] = {}
    better: dict[tuple[str, str], bool] = {}
    count = sum(one.requests for one in asked)
    with progress(f"evaluate {job.out.name}: lm-eval", count * len(folders)) as bar:
        for index, (name, folder) in enumerate(folders.items()):
            step = functools.partial(bar.step, 1, name)
            file = job.partial / f"lm-eval-{index}.jsonl"
            model = harness.Model(functools.partial(Engine, folder), file, step)
            bar.skip(len(model.kept))
            found, by_task = harness.run(model, asked, config.limit)
            sheets[name][0].append(found)
            for one in asked:
                result = by_task[one.name]
                key = one.family, result.metric
                rows.setdefault(key, {}).setdefault(name, {})[one.language] = result.rows
                better[key] = result.higher_is_better
                sheets[name][1][one.name] = result.samples
            del model
            gc.collect()
            job.tick()
    for (family, metric), by_model in rows.items():
        own = {one.language: one for one in asked if one.family == family}
        floors = {
            language: {"chance": one.chance}
            for language, one in own.items()
            if one.chance is not None and metric.startswith("acc")
        }
        measure = f"{family}/{metric}"
        tallied = tallies.tally_metric(
            by_model, scores["reference"], config.margin, floors, better[family, metric]
        )
        for name, entries in tallied.items():
            for language, entry in entries.items():
                scores["models"][name]["languages"].setdefault(language, {})[measure] = entry
        scores["tasks"][family] = {
            "metric": metric,
            "about": f"lm-eval: {', '.join(one.name for one in own.values())}",
            "shots": next(iter(own.values())).shots,
            "languages": list(own),
            "text": None,
            "higher_is_better": better[family, metric],
        }
        items.add_task(family, metric, by_model)


def _prompts(config: EvaluateConfig) -> dict[str, list[Prompt]]:
    """Language → prompts."""
    from ..text import prompts

    found: dict[str, list[Prompt]] = {}
    if config.prompts:
        for prompt in prompts.load(config.prompts, config.languages):
            found.setdefault(prompt.lang, []).append(prompt)
    return {language: own[: config.limit] for language, own in found.items()}


def _answer_prompts(
    config: EvaluateConfig,
    job: ledger.Job,
    prompts: Mapping[str, list[Prompt]],
    sources: Mapping[str, Any],
    scores: dict[str, Any],
    items: Items,
) -> None:
    """Every model's answers, one loaded at a time; into `scores`, `items` and answers.jsonl."""
    import functools
    import json

    from ..engines import server
    from ..engines.protocol import Sampling
    from ..engines.transformers import Engine
    from ..evaluate import answering, tallies

    sampling = Sampling(max_tokens=config.max_tokens)
    rows: dict[str, dict[str, list[Any]]] = {}
    count = sum(map(len, prompts.values()))
    with progress(f"evaluate {job.out.name}: prompts", count * len(sources)) as bar:
        for index, (model, source) in enumerate(sources.items()):
            engine: Any = None
            for language, own in prompts.items():
                file = job.partial / f"answers-{index}-{language}.jsonl"
                # What failed is asked again: the server may have come back.
                kept = {key: row for key, row in answering.read(file).items() if row["finish"] != "error"}
                bar.skip(len(kept))
                if len(kept) < len(own):
                    bar.step(0, f"loading {model}")
                    if engine is None:
                        engine = Engine(source) if isinstance(source, Path) else server.Engine(source)
                    step = functools.partial(bar.step, 1, f"{model} {language}")
                    ask = functools.partial(answering.answer, engine, sampling=sampling)
                    kept = answering.complete(file, kept, own, ask, step)
                    job.tick()
                rows.setdefault(model, {})[language] = [kept[prompt.id] for prompt in own]
            del engine
            gc.collect()
    tallied = tallies.tally_answers(rows)
    for model, entries in tallied.items():
        for language, metrics in entries.items():
            own_scores = scores["models"][model]["languages"].setdefault(language, {})
            own_scores |= {f"prompts/{metric}": entry for metric, entry in metrics.items()}
    scores["prompts"] = {
        "source": config.prompts,
        "languages": {language: len(own) for language, own in prompts.items()},
        "sampling": {"max_tokens": config.max_tokens, "temperature": 0.0},
    }
    with (job.work / "answers.jsonl").open("w", encoding="utf-8") as out:
        for model, by_language in rows.items():
            terms = scores["models"][model]["about"].get("terms")
            for language, answered in by_language.items():
                for prompt, row in zip(prompts[language], answered, strict=True):
                    items.add_answer(model, language, row)
                    said = {"_id": prompt.id, "messages": list(prompt.messages), "lang": language}
                    said |= {"model": model, "answer": row["output"], "finish": row["finish"], "terms": terms}
                    out.write(json.dumps(said, ensure_ascii=False) + "\n")


def _commands(sources: Sequence[str]) -> list[str]:
    """The commands that made what `sources` name, as far as onggi made it; what comes first, first."""
    found: dict[str, None] = {}
    for source in sources:
        made = ledger.artifact(Path(source)) if Path(source).is_dir() else None
        if made and "command" in made.record:
            given = (made.record["options"].get(key) for key in ("text", "model", "init"))
            before = _commands([source for source in given if isinstance(source, str)])
            found |= dict.fromkeys([*before, made.record["command"]])
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
