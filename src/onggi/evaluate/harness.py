"""Tasks of lm-eval (EleutherAI's harness), as they are, answered by our engine.

lm-eval reads the task, makes the prompts, filters the answers and computes the metrics; the answers are ours
(`respond`), so that what a task's items share is computed once. Every response is kept in a file as it comes: a
run that was stopped asks only for what is missing. Then lm-eval does its (cheap) part with a `Model` that has
them. This module needs the extra `onggi[tasks]`, and is imported only when asked for.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import io
import json
import logging
import os
import re
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from lm_eval import evaluator, utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from .. import ledger
from ..engines.protocol import Sampling
from ..engines.transformers import Engine, no_bars
from ..errors import OnggiError, nearest, one_line
from ..languages import canonical
from ..text.identify import identify
from .answering import Row
from .tasks import TASKS

# lm-eval's own default, for the same shots in both.
_SEED = 1234
# Resamples for the standard error of a metric that has no formula for it; lm-eval's 100,000 take minutes.
_DRAWS = 1000
_KOREAN = ("kmmlu", "kobest", "haerae", "click", "hrm8k")
# What a group's name here stands for, as patterns of lm-eval's names.
GROUPS = {
    "korean": _KOREAN,
    "multilingual": (
        "belebele",
        "global_mmlu_[a-z][a-z]",
        "mgsm_direct",
        "xcopa",
        "xnli",
        "flores_[a-z][a-z]",
    ),
}
_FLORES_TAG = r"[a-z]{3}_[A-Z][a-z]{3}"


@dataclass(frozen=True)
class Asked:
    """A task of lm-eval that is ready: its data is here and its requests are known.

    family: the name without its language (`xcopa` of `xcopa_th`). chance: accuracy by picking at
    random, None where there is nothing to pick from. requests: how many there are.
    """

    name: str
    family: str
    task: Any
    language: str
    shots: int
    chance: float | None
    requests: int


@dataclass(frozen=True)
class Result:
    """What one model did on one task: `rows` by the main metric, lm-eval's own `samples`.

    metric: as `acc`, or `exact_match,flexible` where answers go through a filter.
    """

    rows: list[Row]
    metric: str
    higher_is_better: bool
    samples: list[dict[str, Any]]


class Request:
    """What is asked of the engine once; `id` is made from all that decides the response."""

    def __init__(self, kind: str, args: tuple[Any, ...], turn: int):
        self.kind, self.args = kind, args
        known = json.dumps([kind, args, turn], ensure_ascii=False, sort_keys=True, default=str)
        self.id = hashlib.sha256(known.encode()).hexdigest()


def _numbered(instances: Sequence[Instance]) -> list[Request]:
    """The request of each of lm-eval's, those of one kind; equal ones are one, unless they are drawn."""
    turns: Counter[str] = Counter()
    requests: list[Request] = []
    for one in instances:
        drawn = one.request_type == "generate_until"
        key = json.dumps(one.args, sort_keys=True, default=str) if drawn else ""
        requests.append(Request(one.request_type, one.args, turns[key] if key else 0))
        turns[key] += 1
    return requests


def requests_of(asked: Sequence[Asked]) -> dict[str, list[Request]]:
    """Task → what it asks of a model, as lm-eval will ask for all of the tasks together; equal ones with the
    first task.
    """
    by_kind: dict[str, list[tuple[str, Instance]]] = {}
    for one in asked:
        for instance in one.task.instances:
            own = [(one.name, instance)] * (instance.repeats or 1)
            by_kind.setdefault(instance.request_type, []).extend(own)
    first: dict[str, tuple[str, Request]] = {}
    for pairs in by_kind.values():
        for (name, _), request in zip(pairs, _numbered([pair[1] for pair in pairs]), strict=True):
            first.setdefault(request.id, (name, request))
    found: dict[str, list[Request]] = {one.name: [] for one in asked}
    for name, request in first.values():
        found[name].append(request)
    return found


def respond(requests: Sequence[Request], engine: Engine, kept: Mapping[str, Row]) -> Iterator[Row]:
    """The responses to `requests` that are not `kept`, as they come."""
    for kind, ask in (
        ("loglikelihood", _score),
        ("loglikelihood_rolling", _roll),
        ("generate_until", _answer),
    ):
        missing = [one for one in requests if one.kind == kind and one.id not in kept]
        for number, response in ask(engine, missing) if missing else ():
            yield {"item": missing[number].id, "response": response}


def _score(engine: Engine, requests: Sequence[Request]) -> Iterator[tuple[int, Any]]:
    pairs = [(str(request.args[0]), str(request.args[1])) for request in requests]
    for number, scored in engine.score(pairs):
        yield number, [round(scored.logprob, 4), scored.greedy]


def _roll(engine: Engine, requests: Sequence[Request]) -> Iterator[tuple[int, Any]]:
    tokens, window = engine.tokens, engine.window
    for number, request in enumerate(requests):
        ids = tokens.encode(request.args[0])
        size = window or len(ids) + 1
        windows = utils.get_rolling_token_windows(ids, tokens.prefix, size, 1)
        pieces = [utils.make_disjoint_window(pair) for pair in windows]
        sequences = [([*before, *own], len(before)) for before, own in pieces]
        nats = sum(scored.logprob for _, scored in engine.score_ids(sequences))
        yield number, round(nats, 4)


def _answer(engine: Engine, requests: Sequence[Request]) -> Iterator[tuple[int, Any]]:
    alike: dict[Sampling, list[int]] = {}
    for number, request in enumerate(requests):
        alike.setdefault(_sampling(request.args[1]), []).append(number)
    for sampling, numbers in alike.items():
        prompts = [_fitting(engine, requests[n].args[0], sampling) for n in numbers]
        # By the request, not by its place among those still to be asked: a resumed run draws the same, and
        # a request that is repeated draws anew.
        seeds = tuple(sampling.seed + int(requests[n].id[:7], 16) for n in numbers)
        for place, said in engine.generate(prompts, replace(sampling, seeds=seeds)):
            yield numbers[place], said.text


def _fitting(engine: Engine, prompt: str, sampling: Sampling) -> str:
    """A prompt cut at its beginning to what leaves room for the answer, as lm-eval cuts it."""
    tokens, window = engine.tokens, engine.window
    ids = tokens.encode(prompt)
    if window is None or len(ids) + 1 + sampling.max_tokens <= window:
        return prompt
    room = window - 1 - sampling.max_tokens
    if room < 1:
        raise OnggiError(f"max_gen_toks: {sampling.max_tokens} leave no room in the window of {window}.")
    return str(tokens.tokenizer.decode(ids[-room:], skip_special_tokens=False))


class Model(LM):
    """lm-eval's model, whose every response (see `requests_of`) is in `kept` already."""

    def __init__(self, kept: Mapping[str, Row]):
        super().__init__()
        self._kept = kept

    def _responses(self, instances: Sequence[Instance]) -> list[Any]:
        """The response to each of lm-eval's requests, in their order."""
        return [self._kept[request.id]["response"] for request in _numbered(instances)]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(nats, greedy) of each continuation after its context."""
        return [(nats, greedy) for nats, greedy in self._responses(requests)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Nats of each whole text; one longer than the window in pieces, as lm-eval cuts them.

        The start token is not part of the text. lm-eval's transformers model sets it twice for a tokenizer
        that sets it by itself, and scores the second, unless told `add_bos_token=False`.
        """
        return self._responses(requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to each context, up to one of its task's stops."""
        return self._responses(requests)


def _sampling(given: Mapping[str, Any]) -> Sampling:
    """lm-eval's generation settings as ours. Without `do_sample` answers are greedy, whatever the temperature."""
    until = given.get("until") or ()
    drawn = bool(given.get("do_sample", False))
    return Sampling(
        max_tokens=int(given.get("max_gen_toks") or given.get("max_new_tokens") or 256),
        temperature=float(given.get("temperature", 1.0)) if drawn else 0.0,
        top_p=float(given.get("top_p", 1.0)),
        seed=_SEED,
        stop=(until,) if isinstance(until, str) else tuple(until),
    )


@functools.cache
def _manager(defaults: bool = True) -> TaskManager:
    """lm-eval's index of its tasks: 14,000 files, some seconds."""
    return TaskManager(include_defaults=defaults)


def is_file(name: str) -> bool:
    """Whether a name is that of a task's YAML file."""
    return name.endswith((".yaml", ".yml"))


def names() -> list[str]:
    """What can be asked for: lm-eval's tasks, groups and tags, and our names for groups of those."""
    return [*GROUPS, *_manager().all_tasks]


def fingerprint(wanted: Sequence[str]) -> dict[str, Any]:
    """What results depend on beside the models: lm-eval's version, the YAML files, local data they name."""
    found: dict[str, Any] = {"version": importlib.metadata.version("lm_eval")}
    for name in wanted:
        if is_file(name):
            config = _config(name)
            kwargs = config.get("dataset_kwargs")
            files = _strings(kwargs.get("data_files") if isinstance(kwargs, Mapping) else None)
            # A function of a task is `FOLDER/utils.name` here.
            code = {Path(f"{text.rpartition('.')[0]}.py") for text in _strings(config)}
            found[name] = {
                "code": {str(file): ledger.sha256(file) for file in sorted(code) if file.is_file()},
                "task": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
                "data": {file: ledger.sha256(Path(file)) for file in files if Path(file).is_file()},
            }
    return found


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _strings(part)]


def prepare(
    wanted: Sequence[str], languages: Sequence[str] | None, shots: int | None, limit: int | None
) -> list[Asked]:
    """The tasks that names and YAML files stand for, in `languages`, with their data at hand.

    shots: None for as many as each task asks for. limit: the first so many documents of each.
    Raises OnggiError for an unknown name, a file that is no task, and a data set that cannot be had.
    """
    with _quiet():
        found: dict[str, Asked] = {}
        for name in wanted:
            own = [asked for leaf in _leaves(name) for asked in _load(leaf, languages, shots, limit)]
            if not own:
                raise OnggiError(f"tasks: {name} is in none of {','.join(languages or ())}.")
            found |= {asked.name: asked for asked in own}
    # A name that stands for several tasks of one language, as a subject's, stays whole.
    count = Counter((asked.family, asked.language) for asked in found.values())
    clash = {family for (family, _), times in count.items() if times > 1}
    return [
        Asked(**{**vars(asked), "family": asked.name}) if asked.family in clash else asked
        for asked in found.values()
    ]


def _file(name: str) -> Path:
    if not Path(name).is_file():
        raise OnggiError(f"tasks: {name}: there is no such file.")
    return Path(name)


def _leaves(name: str) -> list[str]:
    """The tasks under a name, groups and tags opened, so that each can be looked at before its data is fetched."""
    if is_file(name):
        return [str(_file(name))]
    index = _manager().task_index
    if name in GROUPS:
        patterns = "|".join(GROUPS[name])
        known = [n for n in index if re.fullmatch(patterns, n)]
        return list(dict.fromkeys(leaf for n in known for leaf in _leaves(n)))
    if name not in index:
        raise OnggiError(f"tasks: there is no task {name!r}.{nearest(name, names())}")
    entry = index[name]
    if entry.kind.name == "TAG":
        return [leaf for child in sorted(entry.tags) for leaf in _leaves(child)]
    children = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else None
    if not isinstance(children, list) or not all(
        isinstance(child, str) and child in index for child in children
    ):
        return [name]  # a task, or a group with tasks of its own, which lm-eval opens
    return [leaf for child in children for leaf in _leaves(child)]


def _load(
    name: str, languages: Sequence[str] | None, shots: int | None, limit: int | None
) -> Iterator[Asked]:
    config = _config(name)
    early = _told(str(config.get("task", name)), config)
    if languages and early and early not in languages:
        return
    alone = is_file(name) and isinstance(config.get("task"), str)
    try:
        loaded = _manager(not alone).load([name])
    except Exception as error:  # tasks are code and data of many hands
        raise _failed(name, error) from error
    for task in loaded["tasks"].values():
        asked = _ready(task, shots, limit)
        if not languages or asked.language in languages:
            yield asked


def _config(name: str) -> dict[str, Any]:
    """A task's YAML with what it includes, its functions left as text; {} for one written in Python."""
    path = _file(name) if is_file(name) else _manager().task_index[name].yaml_path
    if path is None:
        return {}
    try:
        return dict(load_yaml(path, resolve_func=False, recursive=True))
    except Exception as error:  # a YAML error, or an include that is not there
        raise OnggiError(f"tasks: {name}: not a task that lm-eval reads ({one_line(error)}).") from error


def _failed(name: str, error: Exception) -> OnggiError:
    """What to say of a task that did not load: which one it is and, where that was the cause, its data set."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        task = frame.f_locals.get("self")
        if isinstance(task, Task) and frame.f_code.co_name == "download":
            data = " ".join(filter(None, (task.DATASET_PATH, task.DATASET_NAME)))
            own = task.config.task
            within = f" (of {name})" if own != name else ""
            return OnggiError(
                f"tasks: {own}{within}: its data set {data} cannot be loaded ({one_line(error)}). "
                "It must be reachable, or in the cache of `datasets`."
            )
    return OnggiError(f"tasks: {name}: lm-eval cannot load it ({type(error).__name__}: {one_line(error)}).")


def _ready(task: Any, shots: int | None, limit: int | None) -> Asked:
    # A task that says 0 shots means it: lm-eval's rule.
    given = task.get_config("num_fewshot")
    if shots is None or given == 0:
        shots = given or 0
    task.set_config(key="num_fewshot", value=shots)
    name = task.config.task
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        why = "runs code that a model writes" if getattr(task, "UNSAFE_CODE", False) else "shows images"
        raise OnggiError(f"tasks: {name}: {why}, which onggi does not do.")
    if task.OUTPUT_TYPE not in (
        "multiple_choice",
        "loglikelihood",
        "loglikelihood_rolling",
        "generate_until",
    ):
        raise OnggiError(f"tasks: {name}: output_type {task.OUTPUT_TYPE} is not one that onggi knows.")
    try:
        task.set_fewshot_seed(seed=_SEED)
        with no_bars():
            task.build_all_requests(limit=limit)
    except Exception as error:  # a template that does not fit the data, too few documents for the shots
        raise OnggiError(
            f"tasks: {name}: its prompts cannot be made ({type(error).__name__}: {one_line(error)})."
        ) from error
    if name in TASKS or name.rpartition("_")[0] in TASKS:
        raise OnggiError(f"tasks: {name}: a task of onggi's has this name; give yours another (`task:`).")
    config = task.dump_config()
    language = _told(name, config) or _seen(task)
    return Asked(name, _family(name, language), task, language, shots, _chance(task), len(task.instances))


def _told(name: str, config: Mapping[str, Any]) -> str | None:
    """The language that a task says it is in: `metadata: {lang: …}`, its data set's part, its name."""
    metadata = config.get("metadata")
    if isinstance(metadata, Mapping) and metadata.get("lang"):
        try:
            return canonical(metadata["lang"])
        except OnggiError as error:
            raise OnggiError(f"tasks: {name}: metadata.lang: {error}") from error
    if name.startswith(_KOREAN):
        return "en" if re.search(r"_en$", name) else "ko"
    part = str(config.get("dataset_name") or "")
    # A translation is in the language that it is into.
    into = re.search(
        rf"flores_(?:{_FLORES_TAG}|[a-z]{{2,3}})-({_FLORES_TAG}|[a-z]{{2,3}})(?:_prompt_\d+)?$", name
    )
    inside = re.match(r"global_mmlu_(?:full_)?([a-z]{2,3})(?:_|$)", name)
    ending = re.search(rf"_({_FLORES_TAG}|[a-z][a-z])$", name)
    for tag in (
        into and into[1],
        part if re.fullmatch(rf"{_FLORES_TAG}|[a-z][a-z]", part) else None,
        inside and inside[1],
        # `_mt`: more often machine translation than Maltese.
        ending and ending[1] if ending and ending[1] != "mt" else None,
    ):
        with contextlib.suppress(OnggiError):
            if tag:
                return canonical(tag)
    return None


def _seen(task: Any) -> str:
    """The language that most of a task's documents are written in."""
    found = Counter(
        language
        for instance in task.instances[:200]
        if (language := identify(_document(instance.doc)).language)
    )
    if not found:
        raise OnggiError(
            f"tasks: {task.config.task}: in which language is it? Give it `metadata: {{lang: ko}}`."
        )
    return found.most_common(1)[0][0]


def _document(document: Any) -> str:
    values = document.values() if isinstance(document, Mapping) else [document]
    return " ".join(value for value in values if isinstance(value, str))


def _family(name: str, language: str) -> str:
    """A name without the language at its end, where it has that."""
    found = re.fullmatch(rf"(.+)_({_FLORES_TAG}|[a-z][a-z])", name)
    with contextlib.suppress(OnggiError):
        if found and canonical(found[2]) == language:
            return found[1]
    return name


def _chance(task: Any) -> float | None:
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    documents = {instance.doc_id: instance.doc for instance in task.instances}
    return sum(1 / len(task.doc_to_choice(doc)) for doc in documents.values()) / len(documents)


def run(model: Model, asked: Sequence[Asked], limit: int | None) -> tuple[dict[str, Any], dict[str, Result]]:
    """One model on the tasks: lm-eval's own results, without samples, and what each task came to.

    An item's value is its own by the main metric, the first in the task's list: a number as it is, and
    for a metric of a whole corpus (chrF, perplexity) what that gives for the item alone.
    """
    for one in asked:
        one.task.set_fewshot_seed(seed=_SEED)  # the shots of the model before, not the next ones
    with _quiet(), no_bars():
        found = evaluator.evaluate(
            model,
            {"tasks": {one.name: one.task for one in asked}},
            limit=limit,
            bootstrap_iters=_DRAWS,
            log_samples=True,
        )
    assert found is not None
    samples = found.pop("samples")
    return found, {one.name: _result(one, samples[one.name]) for one in asked}


def _result(asked: Asked, samples: list[dict[str, Any]]) -> Result:
    task, key = asked.task, samples[0]["filter"]
    metric = _main(task, samples[0]["metrics"])
    rows: list[Row] = []
    for sample in samples:
        if sample["filter"] != key or metric not in sample:
            continue
        value = sample[metric]
        if not isinstance(value, int | float) and not hasattr(value, "item"):
            value = task.aggregation()[metric]([value])
        row: dict[str, Any] = {"item": str(sample["doc_id"]), "value": float(value)}
        if task.OUTPUT_TYPE == "generate_until":
            row["output"] = sample["resps"][0][0]
        rows.append(row)
    better = bool(task.higher_is_better().get(metric, True))
    return Result(rows, metric if key == "none" else f"{metric},{key}", better, samples)


def _main(task: Any, there: Sequence[str]) -> str:
    for own in task.get_config("metric_list") or ():
        name = own["metric"] if isinstance(own["metric"], str) else own["metric"].__name__
        if name in there:
            return str(name)
    return there[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the log lines and bars of lm-eval and `datasets`; what matters comes as an error."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "evaluate", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    # Resampling for a standard error forks as many processes as there are cores, and prints.
    single = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if single is None:
            del os.environ["DISABLE_MULTIPROC"]
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
