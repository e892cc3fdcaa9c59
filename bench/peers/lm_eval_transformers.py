"""The peer's side of bench/evaluate.py: lm-eval with its own transformers backend, in fp32.

As its users run it, and with what helps it: its index of tasks is not read (some seconds), one-token
answers of a question are scored in one pass (its default). The start token is added, as Gemma needs
it and as onggi adds it. Times and each choice's log-likelihood go to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

started = time.perf_counter()

import lm_eval  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402


def main() -> None:
    """Evaluate --model on --tasks and write --facts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tasks", required=True, nargs="+")
    parser.add_argument("--batch", required=True, type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--facts", required=True, type=Path)
    given = parser.parse_args()

    imported = time.perf_counter()
    model = HFLM(
        pretrained=given.model, dtype="float32", device="cpu", batch_size=given.batch, add_bos_token=True
    )
    loaded = time.perf_counter()
    scoring = 0.0
    score = model.loglikelihood

    def timed(requests: list) -> list:
        nonlocal scoring
        begun = time.perf_counter()
        found = score(requests)
        scoring += time.perf_counter() - begun
        return found

    model.loglikelihood = timed
    manager = TaskManager(include_defaults=False)
    found = lm_eval.simple_evaluate(model, tasks=given.tasks, limit=given.limit, task_manager=manager)
    done = time.perf_counter()
    facts = {
        "import": imported - started,
        "load": loaded - imported,
        "evaluation": done - loaded,
        "scoring": scoring,
        "threads": __import__("torch").get_num_threads(),
        "items": {
            name: {
                sample["doc_id"]: [response[0] for response, _ in zip(sample["filtered_resps"], sample["resps"])]
                for sample in samples
            }
            for name, samples in found["samples"].items()
        },
    }
    given.facts.write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
