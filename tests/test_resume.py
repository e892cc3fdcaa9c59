"""An evaluation killed at random moments ends in the same bytes as one that was left alone."""

from __future__ import annotations

import random
from pathlib import Path

from forks import killed
from onggi.cli import main
from onggi.languages import Languages
from onggi.stages import EvaluateConfig, QuantizeConfig, evaluate, quantize

LANGUAGES = "en,ko,ar,km"


def test_evaluate_killed_at_random_moments(tiny: Path, tmp_path: Path) -> None:
    w4 = quantize(QuantizeConfig(str(tiny), method="rtn"), tmp_path / "w4").path
    whole = evaluate(
        EvaluateConfig([f"w4={w4}"], f"base={tiny}", languages=Languages(LANGUAGES), limit=12),
        tmp_path / "whole",
    )
    out = tmp_path / "killed"
    words = ["evaluate", f"w4={w4}", "--reference", f"base={tiny}", "--languages", LANGUAGES, "--limit", "12"]
    words += ["--out", str(out)]
    generator = random.Random(0)
    kept: list[int] = []
    # After some of the states of the first model; after some languages have been scored.
    for pattern in ("states-*", "scores-*"):

        def there(pattern: str = pattern) -> int:
            return len(list((out / ".partial").glob(pattern)))

        killed(*words, when=lambda: there() >= 2, after=generator.random() * 0.01)
        if not (out / "stage.json").exists():
            kept.append(there())
    assert kept, "every kill came after the end"
    assert main(words) == 0
    for name in ("scores.json", "items.parquet"):
        assert (out / name).read_bytes() == (whole.path / name).read_bytes()
