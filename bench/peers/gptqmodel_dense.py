"""What GPTQModel makes of its own checkpoint to compute with, for bench/quantize.py to measure: plain weights in fp32.

transformers cannot load the GPTQ layout without the whole of GPTQModel. A process of its own, apart from quantising: its time and
memory are no part of the peer's work.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

if (os.cpu_count() or 1) < 3:
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from gptqmodel.utils.model_dequant import dequantize_model


def main() -> None:
    """Unpack the checkpoint --made to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--made", "--out"):
        parser.add_argument(name, required=True, type=Path)
    given = parser.parse_args()
    made, out = given.made.resolve(), given.out.resolve()
    aside = out.with_name(f"{out.name}.part")
    for folder in (aside, out):
        shutil.rmtree(folder, ignore_errors=True)
    os.chdir(out.parent)  # it leaves a log where it stands
    dequantize_model(made, aside, target_dtype=torch.float32)
    aside.rename(out)


if __name__ == "__main__":
    main()
