"""The peer's side of bench/quantize.py and bench/quantize_gguf.py: AutoRound on token ids that it is handed.

Runs with its own environment's python, apart from onggi. It is what the peer's README does (`AutoRound(model,
scheme="W4A16")`, `quantize_and_save`), everything else left at its defaults: 200 iterations a block, batches of 8,
its learning rate, `torch.compile`. It drops rows shorter than `seqlen`, so that is the rows' own length. It saves in
the layout of compressed-tensors (`--format llm_compressor`), which transformers loads, or a GGUF
(`--scheme GGUF:Q4_K_M --format gguf:q4_k_m`). Its times go to a JSON file: `seconds` is quantising and saving, which
it does together.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from pathlib import Path

import torch
from auto_round import AutoRound


def main() -> None:
    """Quantise --model on the ids of --ids (JSON lines of {"input_ids": […]}) into --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--model", "--ids", "--out", "--facts"):
        parser.add_argument(name, required=True, type=Path)
    parser.add_argument("--scheme", default="W4A16")
    parser.add_argument("--format", default="llm_compressor")
    parser.add_argument("--iterations", type=int, help="default: AutoRound's own")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16"])
    given = parser.parse_args()

    rows = [json.loads(line)["input_ids"] for line in given.ids.read_text().splitlines()]
    length = {len(row) for row in rows}
    if len(length) != 1:
        parser.error(f"--ids: rows of {sorted(length)} tokens; AutoRound would drop the shorter.")
    own = {} if given.iterations is None else {"iters": given.iterations}
    started = time.perf_counter()
    rounding = AutoRound(
        str(given.model),
        scheme=given.scheme,
        dataset=[torch.tensor([row]) for row in rows],
        nsamples=len(rows),
        seqlen=length.pop(),
        device_map="cpu",
        **own,
    )
    rounding.quantize_and_save(str(given.out), format=given.format)
    # It saves into a folder of its own below, named by model and scheme.
    made = {
        path.parent for path in given.out.rglob("*") if path.name == "config.json" or path.suffix == ".gguf"
    }
    for folder in made - {given.out}:
        for file in list(folder.iterdir()):
            file.rename(given.out / file.name)
        folder.rmdir()
    facts = {
        "seconds": time.perf_counter() - started,
        "sequences": len(rows),
        "tokens": sum(map(len, rows)),
        "scheme": given.scheme,
        "iterations": given.iterations,
        "dtype": given.dtype,
        "threads": torch.get_num_threads(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("auto-round", "transformers", "torch")
        },
    }
    given.facts.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
