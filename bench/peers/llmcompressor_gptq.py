"""The peer's side of bench/quantize.py: llm-compressor's GPTQ on token ids that it is handed.

Runs with .venv-bench's python, apart from onggi. It is what the peer's own examples do (`oneshot`
with a `GPTQModifier` on all linear modules but the head, scheme W4A16: symmetric int4, groups of
128), everything else left at its defaults: static activation order, damping 0.01, blocks of 128,
the sequential pipeline, one sequence a batch. The dataset holds ids already, so nothing is
tokenised anew, and is not shuffled. Its times go to a JSON file: `seconds` is the quantisation
alone, without loading and saving.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Quantise --model on the ids of --ids (JSON lines of {"input_ids": […]}) into --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--model", "--ids", "--out", "--facts"):
        parser.add_argument(name, required=True, type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    given = parser.parse_args()

    rows = [json.loads(line) for line in given.ids.read_text().splitlines()]
    length = max(len(row["input_ids"]) for row in rows)
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=getattr(torch, given.dtype))
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    loaded = time.perf_counter()
    recipe = GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_list(rows),
        recipe=recipe,
        num_calibration_samples=len(rows),
        max_seq_length=length,
        shuffle_calibration_samples=False,
    )
    quantized = time.perf_counter()
    model.save_pretrained(given.out, save_compressed=True)
    tokenizer.save_pretrained(given.out)
    facts = {
        "load_seconds": loaded - started,
        "seconds": quantized - loaded,
        "save_seconds": time.perf_counter() - quantized,
        "sequences": len(rows),
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "dtype": given.dtype,
        "damping": recipe.dampening_frac,
        "block": recipe.block_size,
        "actorder": str(recipe.resolved_config.config_groups["group_0"].weights.actorder),
        "observer": recipe.resolved_config.config_groups["group_0"].weights.observer,
        "threads": torch.get_num_threads(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("llmcompressor", "compressed-tensors", "transformers", "torch")
        },
    }
    given.facts.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
