"""`onggi` in several processes on this machine, and whether it came to what one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close


def torchrun(words: Sequence[str]) -> str:
    """Run the command in two processes of torchrun's; returns what they printed."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "onggi"]
    ran = subprocess.run(
        [sys.executable, *launch, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr[:3000]
    return ran.stdout


def same_curves(one: Path, other: Path, lines: int) -> None:
    """Both trainings noted so many lines, and the same numbers in each."""
    noted = [
        [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (one, other)
    ]
    assert len(noted[0]) == len(noted[1]) == lines
    for mine, theirs in zip(*noted, strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert theirs[key] == pytest.approx(mine[key], rel=1e-4), (other, mine, theirs)


def same_weights(one: Path, other: Path, relative: float, absolute: float) -> None:
    """Two safetensors files hold the same, to a tolerance."""
    tensors = load_file(one), load_file(other)
    assert tensors[0].keys() == tensors[1].keys()
    for key, tensor in tensors[0].items():
        assert_close(tensors[1][key], tensor, rtol=relative, atol=absolute)
