"""How much arithmetic calibrated quantisation is: what a share of the machine's peak is counted in.

For linear modules of `rows` × n weights and T calibration tokens, in floating-point operations:

    pass      2 · rows · n · T   once through each weight; attention, norms and the head are left out
                                 (attention's two products are 4 · length · T · heads · head size a layer)
    moments   2 · n² · T         X·Xᵀ, the full square; half of it is its own mirror image
    factor    4/3 · n³           Cholesky, inverse, Cholesky, as GPTQ is published
    feedback  rows · n²          each column's error carried into the columns after it

Not counted though they take time: the search for clips and scales, checks, reading and writing.
The tools do different amounts of it:

    onggi           one pass; one matrix of moments for each *input* (query, key and value share one, gate
                    and up another), of which it computes the blocks on and above the diagonal; passes and the
                    products of moments in the pass's precision, solver in fp32
    llm-compressor  two passes (one to take the moments, one to go on through the quantised weights); one
                    full matrix for each *module*; passes in its dtype, moments and solver in fp32

The floor is the time the counted operations take at the measured peak of their precision, and the
share of peak is floor / time.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

# Modules of one layer that read the same input, in the models that the bench runs.
_SHARED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up"}
_BLOCK = 512  # of onggi.quantize.moments


def linears(folder: Path) -> dict[str, tuple[int, int]]:
    """Module → (rows, columns) of the decoder's linear modules, from the headers of the files."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            header = json.loads(opened.read(struct.unpack("<Q", opened.read(8))[0]))
        for name, entry in header.items():
            if ".layers." in name and name.endswith("_proj.weight"):
                found[name.removesuffix(".weight")] = tuple(entry["shape"])
    return found


def _inputs(modules: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Input → its columns, for the distinct inputs of the linear modules."""
    found = {}
    for name, (_, columns) in modules.items():
        place, _, kind = name.rpartition(".")
        found[f"{place}.{_SHARED.get(kind, kind)}"] = columns
    return found


def _on_and_above(n: int) -> int:
    """Entries of an n × n matrix in the blocks on and above its diagonal."""
    return sum((min(start + _BLOCK, n) - start) * (n - start) for start in range(0, n, _BLOCK))


def count(
    modules: Mapping[str, tuple[int, int]], tokens: int, precision: str, theirs: str | None = "bfloat16"
) -> dict[str, dict[str, float]]:
    """Who → operations: `pass`, `moments`, `solver` in FLOP, by the count in the module's docstring.

    onggi is counted as it works and, as `onggi, full square`, with both halves of its moments.
    precision: of onggi's pass, as `onggi.json` names it; theirs: of llm-compressor's, None where it did not
    run. `bf16`: those of the operations that are done in bf16.
    """
    if precision not in ("bfloat16", "float32"):
        raise ValueError(f"no peak was measured for {precision}")
    once = 2.0 * tokens * sum(rows * n for rows, n in modules.values())
    feedback = float(sum(rows * n**2 for rows, n in modules.values()))
    inputs = _inputs(modules).values()
    factors = 4 / 3 * sum(n**3 for n in inputs)
    low = precision == "bfloat16"

    def entry(passes: float, moments: float, solver: float, bf16: float) -> dict[str, float]:
        whole = passes + moments + solver
        return {"pass": passes, "moments": moments, "solver": solver, "total": whole, "bf16": bf16}

    counted = {}
    for who, entries in (("onggi", _on_and_above), ("onggi, full square", lambda n: n**2)):
        moments = 2.0 * tokens * sum(entries(n) for n in inputs)
        counted[who] = entry(once, moments, factors + feedback, once + moments if low else 0.0)
    each = [n for _, n in modules.values()]
    moments, factors = 2.0 * tokens * sum(n**2 for n in each), 4 / 3 * sum(n**3 for n in each)
    if theirs:
        passed = 2 * once if theirs == "bfloat16" else 0.0
        counted["llm-compressor"] = entry(2 * once, moments, factors + feedback, passed)
    return counted


def floor(operations: Mapping[str, float], peak: Mapping[str, float]) -> float:
    """Seconds that `operations` take at the peaks (FLOP/s) of `fp32` and `bf16`."""
    return operations["bf16"] / peak["bf16"] + (operations["total"] - operations["bf16"]) / peak["fp32"]
