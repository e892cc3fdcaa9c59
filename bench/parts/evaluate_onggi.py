"""Our side of bench/evaluate.py: `onggi evaluate` in this process, with a clock on its parts.

What runs is the stage as the command runs it, fingerprints, statistics and files included. The clock
stands around the loading of a model and around the scoring that lm-eval's tasks ask of it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

started = time.perf_counter()

import torch  # noqa: E402

from onggi.engines.transformers import Engine  # noqa: E402
from onggi.evaluate.evaluation import Evaluation  # noqa: E402
from onggi.stages import EvaluateConfig, evaluate  # noqa: E402
from onggi.stages.base import Names  # noqa: E402


def clocked(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The function, the time of each call of it added to `seconds`."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - begun)

    return timed


def main() -> None:
    """Evaluate --models on --tasks into --out and write --facts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", required=True, nargs="+")
    parser.add_argument("--tasks", required=True, nargs="+")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--facts", required=True, type=Path)
    given = parser.parse_args()

    imported = time.perf_counter()
    loading: list[float] = []
    scoring: list[float] = []
    Engine.__init__ = clocked(Engine.__init__, loading)
    Evaluation.complete = clocked(Evaluation.complete, scoring)  # of the tasks, all that is asked
    evaluate(EvaluateConfig(given.models, tasks=Names(given.tasks), limit=given.limit), given.out)
    done = time.perf_counter()
    name = given.models[0].partition("=")[0]
    items = {}
    for task in (Path(task).stem for task in given.tasks):
        with (given.out / f"samples_{name}_{task}.jsonl").open(encoding="utf-8") as lines:
            samples = [json.loads(line)["filtered_resps"] for line in lines]
        items[task] = [[float(nats) for nats, _ in choices] for choices in samples]
    facts = {
        "import": imported - started,
        "load": sum(loading),
        "evaluation": done - imported - sum(loading),
        # The first call of a model loads it.
        "scoring": sum(scoring) - sum(loading),
        "threads": torch.get_num_threads(),
        "items": items,
    }
    given.facts.write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
