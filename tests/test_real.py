"""A real model, end to end from the command line: what a user does, on a small scale."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from onggi.cli import main

pytestmark = pytest.mark.real
GEMMA = "package:gemma3-270m"


def onggi(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onggi", *words], capture_output=True, text=True, check=False
    )


RECIPE = """
name: real
stages:
  calibration: {verb: text, source: starter, languages: [en, ko, km]}
  rtn: {verb: quantize, model: package:gemma3-270m, method: rtn}
  balanced: {verb: quantize, model: package:gemma3-270m, text: "${calibration}", tokens: 1536}
  scores:
    verb: evaluate
    models: ["rtn=${rtn}", "balanced=${balanced}"]
    reference: package:gemma3-270m
    languages: [en, ko, km]
    limit: 2
  report: {verb: report, inputs: ["${scores}"]}
"""


def test_a_recipe_from_the_model_to_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "real.yaml"
    recipe.write_text(RECIPE)
    runs = tmp_path / "runs"
    done = onggi("run", str(recipe), "--runs", str(runs))
    assert done.returncode == 0, done.stderr
    folder = runs / "real"
    scores = json.loads((folder / "scores" / "scores.json").read_text())
    models = scores["models"]
    assert list(models) == ["gemma3-270m", "rtn", "balanced"]
    # The base knows all three: were its start token missing, it would need many times the nats.
    for language, most in {"en": 250, "ko": 400, "km": 800}.items():
        assert 50 < models["gemma3-270m"]["languages"][language]["nll_per_passage"]["value"] < most
    for language in ("en", "ko", "km"):
        drift = {name: models[name]["languages"][language]["kl"]["value"] for name in ("rtn", "balanced")}
        assert 0.05 < drift["balanced"] < 0.8 * drift["rtn"] < 10
    assert models["rtn"]["bytes"] < 0.75 * models["gemma3-270m"]["bytes"]
    table = pq.read_table(folder / "scores" / "items.parquet")
    assert table.column_names == ["model", "language", "task", "item", "metric", "value", "tokens"]
    assert table.num_rows == 2 * 3 * (2 + 4 + 4)
    report = (folder / "report" / "report.md").read_text()
    for words in ("Khmer", "Korean", "Gemma Terms of Use", "Q8_0", "onggi evaluate"):
        assert words in report
    card = (folder / "balanced" / "README.md").read_text()
    assert "license: gemma" in card and "Gemma Terms of Use" in card
    assert "KL from gemma3-270m" in done.stdout and "Khmer (km)" in done.stdout

    marks = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    words = ["run", str(recipe), "--runs", str(runs)]
    assert main(words) == 0
    again = capsys.readouterr()
    assert again.err.count("done already") == 5
    assert marks == {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    assert again.out == done.stdout

    assert main([*words, "--dry-run", "balanced.tokens=1024"]) == 0
    plan = capsys.readouterr().out
    states = [line.split("│")[3].strip() for line in plan.splitlines() if line.startswith("│")]
    assert states == ["done", "done", "to do", "to do", "to do"]


def test_inspect_gives_the_loadable_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", GEMMA, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (Path(facts["path"]) / "config.json").is_file()
    assert facts["vocabulary"] == 262_144 and facts["licence"] == "gemma"


@pytest.mark.long
def test_gemma_cut_to_two_languages_is_half_its_size(tmp_path: Path) -> None:
    pytest.importorskip("wordfreq")
    words = ("reshape", GEMMA, "--keep-languages", "ko,en", "--languages", "ko,en,km", "--text", "starter")
    done = onggi(*words, "--out", str(tmp_path / "cut"))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "cut" / "stage.json").read_text())
    assert record["bytes"]["after"] < 0.5 * record["bytes"]["before"]
    shares = [share for sources in record["vocabulary"]["same"].values() for share in sources.values()]
    assert len(shares) == 4 and min(shares) > 0.97
    loss = record["loss"]
    # English shares its script with the most languages, and a hundred passages say little of its words.
    for language, most in {"ko": 0.02, "en": 0.1}.items():
        assert abs(loss["after"][language] / loss["before"][language] - 1) < most
    assert loss["after"]["km"] > 1.2 * loss["before"]["km"]
    assert record["vocabulary"]["tokens_on_probe"]["km"] > 4
