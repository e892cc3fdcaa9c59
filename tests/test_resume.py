"""An evaluation killed at random moments ends in the same bytes as one that was left alone."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from onggi.languages import Languages
from onggi.stages import EvaluateConfig, QuantizeConfig, evaluate, quantize

LANGUAGES = "en,ko,ar,km"


def test_evaluate_killed_at_random_moments(tiny: Path, tmp_path: Path) -> None:
    w4 = quantize(QuantizeConfig(str(tiny), method="rtn"), tmp_path / "w4").path
    whole = evaluate(
        EvaluateConfig([f"w4={w4}"], f"base={tiny}", languages=Languages(LANGUAGES)), tmp_path / "whole"
    )
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "onggi", "evaluate", f"w4={w4}", "--reference", f"base={tiny}"]
    command += ["--languages", LANGUAGES, "--out", str(out)]
    generator = random.Random(0)
    kept: list[int] = []
    # After some of the states of the first model; after some languages have been scored.
    for pattern, wanted in (("states-*", 2), ("scores-*", 2)):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list((out / ".partial").glob(pattern))) < wanted:
            time.sleep(0.002)
        time.sleep(generator.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not (out / "stage.json").exists():
            kept.append(len(list((out / ".partial").glob(pattern))))
    assert kept, "every kill came after the end"
    subprocess.run(command, check=True, capture_output=True)
    for name in ("scores.json", "items.parquet"):
        assert (out / name).read_bytes() == (whole.path / name).read_bytes()
