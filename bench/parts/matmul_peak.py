"""This machine's own matrix-product peak, in FLOP/s: what a share of peak is a share of.

The best of several products of two square matrices with torch, all its threads, in fp32 and bf16.
Prints JSON. An own process, so that the bench itself never holds torch in memory.
"""

from __future__ import annotations

import json
import time

import torch

SIZE, TIMES = 4096, 6


def peak(dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of TIMES products of SIZE × SIZE matrices."""
    a, b = (torch.randn(SIZE, SIZE).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(TIMES):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * SIZE**3 / best


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps({"fp32": peak(torch.float32), "bf16": peak(torch.bfloat16), "size": SIZE}))
