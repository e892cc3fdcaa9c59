"""Results in lm-eval's own shape: `results_MODEL.json` and `samples_MODEL_TASK.jsonl`.

What reads lm-eval's results (leaderboards, notebooks, its own table) reads these, of its tasks and of
ours. Unlike lm-eval's they hold no date and no seconds: the same run gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import ledger
from ..errors import OnggiError
from . import written
from .answering import Row
from .tasks import Choice, Item, Task

Results = dict[str, Any]
# Model → what its files are made of: results of several tasks, samples by task.
Sheets = dict[str, tuple[list[Results], dict[str, list[dict[str, Any]]]]]
# The parts of lm-eval's results that are kept by the name of a task.
_BY_TASK = ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")


def check(models: Sequence[str]) -> None:
    """Raises OnggiError for two models whose files would have one name."""
    plain = [_plain(model) for model in models]
    for model, name in zip(models, plain, strict=True):
        if plain.count(name) > 1:
            raise OnggiError(
                f"models: two would write results_{name}.json; name {model} apart, as NAME=MODEL."
            )


def ours(
    task: Task, items: Mapping[str, Sequence[Item]], rows: Mapping[str, Sequence[Row]], shots: int
) -> tuple[Results, dict[str, list[dict[str, Any]]]]:
    """One model on a task of ours, as lm-eval would tell it: results, and samples by name; each language is
    a task of its own (`capitals_ko`) in the task's group.
    """
    found: Results = {part: {} for part in _BY_TASK}
    samples: dict[str, list[dict[str, Any]]] = {}
    found["group_subtasks"][task.name] = [f"{task.name}_{language}" for language in rows]
    for language, own in rows.items():
        name = f"{task.name}_{language}"
        values = [row["value"] for row in own]
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else "N/A"
        found["results"][name] = {
            "name": name,
            "alias": name,
            "sample_len": len(values),
            f"{task.metric},none": statistics.fmean(values),
            f"{task.metric}_stderr,none": error,
        }
        found["configs"][name] = {
            "task": name,
            "output_type": "multiple_choice" if "logprobs" in own[0] else "generate_until",
            "num_fewshot": shots,
            "metric_list": [{"metric": task.metric, "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1, "lang": language, "onggi": task.name},
        }
        found["versions"][name] = 1
        found["n-shot"][name] = shots
        found["higher_is_better"][name] = {task.metric: True}
        found["n-samples"][name] = {"original": len(values), "effective": len(values)}
        samples[name] = [
            _sample(number, task.metric, item, row)
            for number, (item, row) in enumerate(zip(items[language], own, strict=True))
        ]
    return found, samples


def _sample(number: int, metric: str, item: Item, row: Row) -> dict[str, Any]:
    arguments: list[Any]
    responses: list[Any]
    filtered: list[Any]
    if isinstance(item, Choice):
        target = item.choices[item.answer]
        document = {
            "id": item.id,
            "context": item.context,
            "choices": list(item.choices),
            "answer": item.answer,
        }
        prompt = item.context
        if "output" in row:  # the choice was written
            chat = json.dumps(written.messages(item), ensure_ascii=False)
            arguments, responses, filtered = [(chat, "")], [[row["output"]]], [str(row["chosen"])]
        else:
            arguments = [(prompt, choice) for choice in item.choices]
            # Whether a choice was the greedy one is not kept.
            responses = [[(nats, None)] for nats in row["logprobs"]]
            filtered = [(nats, None) for nats in row["logprobs"]]
    else:
        target = item.answer
        document = {"id": item.id, "prompt": item.prompt, "answer": item.answer}
        arguments, responses, filtered = [(item.prompt, "")], [[row["output"]]], [row["output"]]
        prompt = item.prompt
    return {
        "doc_id": number,
        "doc": document,
        "target": target,
        "arguments": arguments,
        "resps": responses,
        "filtered_resps": filtered,
        "filter": "none",
        "metrics": [metric],
        "doc_hash": _hash(json.dumps(document, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(prompt),
        "target_hash": _hash(target),
        metric: row["value"],
    }


def write(
    folder: Path,
    model: str,
    source: str,
    results: Iterable[Results],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    limit: int | None,
) -> list[str]:
    """Write one model's results, made of several, and its samples into `folder`; the names of the files."""
    whole: Results = {part: {} for part in _BY_TASK}
    for found in results:
        for part, entries in found.items():
            whole.setdefault(part, {}).update(entries)
    whole["config"] = {"model": "onggi", "model_args": {"pretrained": source}, "limit": limit}
    whole["task_hashes"] = {
        task: _hash("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in own))
        for task, own in samples.items()
    }
    whole |= {"model_source": "onggi", "model_name": model, "model_name_sanitized": _plain(model)}
    outputs = [f"results_{_plain(model)}.json"]
    ledger.write_json(folder / outputs[0], json.loads(json.dumps(whole, default=_as_json)))
    for task, own in samples.items():
        outputs.append(f"samples_{_plain(model)}_{_plain(task)}.jsonl")
        with (folder / outputs[-1]).open("w", encoding="utf-8") as out:
            for sample in own:
                out.write(json.dumps(_flat(sample), ensure_ascii=False, default=_as_json) + "\n")
    return outputs


def _flat(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample whose columns have one type each, as lm-eval writes them for `datasets` to read."""
    return {
        **sample,
        "arguments": {
            f"gen_args_{i}": {f"arg_{j}": value for j, value in enumerate(arguments)}
            for i, arguments in enumerate(sample["arguments"])
        },
        "resps": _texts(sample["resps"]),
        "filtered_resps": _texts(sample["filtered_resps"]),
        "target": str(sample["target"]),
    }


def _texts(value: Any) -> Any:
    return [_texts(part) for part in value] if isinstance(value, list | tuple) else str(value)


def _as_json(value: Any) -> Any:
    """Numbers of numpy as numbers, sets as lists, the rest (functions) as text."""
    if isinstance(value, set):
        return sorted(map(str, value))
    return value.item() if hasattr(value, "item") else str(value)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(name: str) -> str:
    """A name as part of a file's, by lm-eval's rule."""
    return re.sub(r'["<>:/|\\?*\[\]]+', "__", name)
