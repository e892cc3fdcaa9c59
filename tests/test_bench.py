"""What bench/effort.py judges by, and that it does not take up what other code left behind."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parent.parent
TAGS = ("ko", "en", "ar")


@pytest.fixture
def effort(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("effort")


def items(file: Path, after: dict[str, list[float]]) -> Path:
    """Of a model w3, which loses 1 nat a token everywhere, and of what it became: language → nats a token of each passage."""
    rows = [
        {"model": model, "language": tag, "item": str(i), "metric": "kl", "value": 50.0 * kl, "tokens": 50}
        for tag, own in after.items()
        for i, now in enumerate(own)
        for model, kl in (("w3", 1.0), ("w3-scales", now))
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


@pytest.mark.parametrize(
    ("worst", "met"),
    [
        ([0.5] * 12, True),
        ([0.7] * 12, False),
        ([0.0, 1.1] * 6, False),
    ],  # the last: 0.55, and anything from 0.25 on
)
def test_a_recovery_is_judged_by_its_worst_language_and_its_interval(
    effort: Any, tmp_path: Path, worst: list[float], met: bool
) -> None:
    after = {"ko": [0.2] * 12, "en": [0.1] * 12, "ar": worst}
    file = items(tmp_path / "items.parquet", after)
    found = effort.quantize_goals.ratios(file, [("w3-scales", "w3")], ["ko", "en"])
    result = {"ratios": found, "steps": 8, "seconds": {"w3-scales": 60.0}}
    (goal,) = effort.goals(result)
    assert goal["met"] is met and goal["measured"] == pytest.approx(sum(worst) / 12)
    assert "(ar) against 1.000" in goal["note"] and goal["goal"] == 0.6


def test_what_other_code_left_is_made_anew(effort: Any, tmp_path: Path) -> None:
    code, package = effort.code, tmp_path / "package"
    (package / "text" / "data").mkdir(parents=True)
    (package / "text" / "data" / "시작.jsonl").write_text("하나")
    (package / "report.py").write_text("")
    first = code.digest(["text"], package=package)
    (package / "report.py").write_text("changed")
    assert code.digest(["text"], package=package) == first
    out = code.fresh(tmp_path / "out", first)
    out.mkdir()
    (out / "model").write_text("")
    assert (code.fresh(out, first) / "model").is_file()
    (package / "text" / "data" / "시작.jsonl").write_text("둘")
    second = code.digest(["text"], package=package)
    assert second != first and not code.fresh(out, second).exists()
    with pytest.raises(FileNotFoundError):  # a room that was renamed
        code.digest(["texts"], package=package)
    assert code.digest(code.MAKES) != code.digest(code.MEASURES)
