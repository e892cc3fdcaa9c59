"""The peer's side of bench/evaluate.py: lm-eval with its own transformers backend, in fp32.

As its users run it, and with what helps it: its index of tasks is not read (some seconds); one-token
answers of a question are scored in one pass (its default). The start token is added, as Gemma needs
it and as onggi adds it. Several --batch are tried one after the other, smallest first, until one is
clearly slower than the best. Times and each choice's log-likelihood go to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

started = time.perf_counter()

import lm_eval  # noqa: E402
import torch  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

_SLOWER = 1.15


def main() -> None:
    """Evaluate --model on --tasks and write --facts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tasks", required=True, nargs="+")
    parser.add_argument("--batch", required=True, type=int, nargs="+")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--facts", required=True, type=Path)
    given = parser.parse_args()

    imported = time.perf_counter()
    model = HFLM(
        pretrained=given.model, dtype="float32", device="cpu", batch_size=given.batch[0], add_bos_token=True
    )
    loaded = time.perf_counter()
    scoring: dict[int, float] = {}
    score = model.loglikelihood

    def timed(requests: list[Any]) -> Any:
        begun = time.perf_counter()
        answers = score(requests)
        scoring[model.batch_size] = time.perf_counter() - begun
        return answers

    model.loglikelihood = timed
    manager = TaskManager(include_defaults=False)
    for batch in given.batch:
        model.batch_size_per_gpu = batch
        begun = time.perf_counter()
        found = lm_eval.simple_evaluate(model, tasks=given.tasks, limit=given.limit, task_manager=manager)
        done = time.perf_counter()
        if scoring[batch] > _SLOWER * min(scoring.values()):
            break
    facts = {
        "import": imported - started,
        "load": loaded - imported,
        "evaluation": done - begun,
        "scoring": scoring,
        "threads": torch.get_num_threads(),
        "items": {
            name: [[float(nats) for nats, _ in sample["filtered_resps"]] for sample in samples]
            for name, samples in found["samples"].items()
        },
    }
    given.facts.write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
