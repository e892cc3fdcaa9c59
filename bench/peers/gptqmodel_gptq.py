"""The peer's side of bench/quantize.py: GPTQModel's GPTQ on token ids that it is handed.

Runs with its own environment's python, apart from onggi. It is what the peer's README does (`GPTQConfig(bits=4,
group_size=128)`, `load`, `quantize`, `save`), everything else left at its defaults: symmetric, groups reordered by
activation (`act_group_aware`), damping 0.05, one sequence a batch. The rows keep their order: all are equally long,
and its sort by length would change nothing. What it saves is in the GPTQ layout, which transformers cannot load
without the whole of GPTQModel: bench/peers/gptqmodel_dense.py unpacks it for measuring. On two cores its own default of workers is one fewer than it asks for itself and it refuses to run (7.6.0:
"Virtual pool 'model_loader:cpu' requests 2 workers but parent 'cpu' only has 1"), so they are set to two there. Its times go to a JSON file: `seconds` is the quantisation alone, without loading and saving.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import time
from pathlib import Path

if (os.cpu_count() or 1) < 3:
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from gptqmodel import GPTQConfig, GPTQModel


def main() -> None:
    """Quantise --model on the ids of --ids (JSON lines of {"input_ids": […]}) into --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--model", "--ids", "--out", "--facts"):
        parser.add_argument(name, required=True, type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    given = parser.parse_args()
    for name in ("model", "ids", "out", "facts"):
        setattr(given, name, getattr(given, name).resolve())
    os.chdir(given.out.parent)  # it leaves a log where it stands

    rows = [json.loads(line)["input_ids"] for line in given.ids.read_text().splitlines()]
    started = time.perf_counter()
    config = GPTQConfig(bits=4, group_size=128, device="cpu")
    model = GPTQModel.load(str(given.model), config, dtype=getattr(torch, given.dtype))
    loaded = time.perf_counter()
    model.quantize(
        [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows],
        batch_size=1,
        calibration_sort=None,
    )
    quantized = time.perf_counter()
    model.save(str(given.out))
    saved = time.perf_counter()
    facts = {
        "load_seconds": loaded - started,
        "seconds": quantized - loaded,
        "save_seconds": saved - quantized,
        "sequences": len(rows),
        "tokens": sum(map(len, rows)),
        "dtype": given.dtype,
        "damping": config.damp_percent,
        "act_group_aware": config.act_group_aware,
        "threads": torch.get_num_threads(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("gptqmodel", "transformers", "torch", "numpy")
        },
    }
    given.facts.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
