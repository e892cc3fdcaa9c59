"""`onggi pretrain` on tiny models: what it writes, what it says of itself, and resuming it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from forks import killed
from onggi import ledger, recipe
from onggi.cli import main
from onggi.engines.transformers import Engine
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.report import card
from onggi.stages import PretrainConfig, TextConfig, pretrain, text

ROOT = Path(__file__).parent.parent.parent


def config(model: Path, **options: Any) -> PretrainConfig:
    given = {"languages": Languages("en,ko,km"), "steps": 20, "batch_tokens": 192, "length": 64}
    given |= {"learning_rate": 3e-3, "warmup": 3, "precision": "fp32"}
    return PretrainConfig("starter", str(model), **{**given, **options})


@pytest.mark.parametrize("kind", ["tiny", "tiny_gemma"])
def test_it_learns_and_says_what_it_did(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    model = request.getfixturevalue(kind)
    made = pretrain(config(model), tmp_path / "out")
    about = json.loads((made.path / "onggi.json").read_text())
    facts = about["continued"]
    assert (about["made_by"], about["grid"], about["base"]["source"]) == ("onggi pretrain", None, str(model))
    assert (facts["steps"], facts["batch_tokens"], facts["text"]) == (20, 192, "starter")
    assert facts["tokens"] == dict.fromkeys(("en", "ko", "km"), 20 * 64)
    for language in ("en", "ko", "km"):
        assert facts["held_out"]["after"][language] < facts["held_out"]["before"][language] - 0.1
    lines = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 20 and losses[-1] < losses[0]

    before, after = load_file(model / "model.safetensors"), load_file(made.path / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert tensor.dtype == torch.bfloat16
        if tensor.ndim > 1:
            assert not torch.equal(tensor, before[name])
    changes = [(after[n].float() - before[n].float()).square().sum() for n in before if "proj" in n]
    sizes = [before[n].float().square().sum() for n in before if "proj" in n]
    moved = float((sum(changes) / sum(sizes)).sqrt())
    assert facts["moved"]["linears"]["moved"] == pytest.approx(moved, rel=1e-3)
    assert made.record["moved"] == facts["moved"] and "off_grid" not in facts["moved"]["linears"]

    Engine(made.path)  # loads, finite, its logits those of its head
    page = (made.path / "README.md").read_text()
    assert "base_model_relation: finetune" in page and "Korean 1,280" in page and "off-grid" in page
    # Twice does nothing; another seed is other work.
    told = made.path.joinpath("stage.json").stat().st_mtime_ns
    assert pretrain(config(model), tmp_path / "out").record == made.record
    assert made.path.joinpath("stage.json").stat().st_mtime_ns == told


def test_the_grid_that_it_came_on(tiny_gemma: Path, tmp_path: Path) -> None:
    """A base with a known grid: how far it was left, in the record, the card and the report's words."""
    base = tmp_path / "base"
    base.mkdir()
    tensors = load_file(tiny_gemma / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.ndim > 1:
            blocks = tensor.float().reshape(-1, 32)
            step = blocks.abs().amax(1, keepdim=True) / 7
            tensors[name] = ((blocks / step).round() * step).reshape(tensor.shape).bfloat16()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    for file in tiny_gemma.glob("*.json"):
        if file.name != "onggi.json":
            (base / file.name).write_bytes(file.read_bytes())
    grid = {"embedding": "Q4_0", "linears": {"Q4_0": 28}}
    terms = "Passed on, 그대로, តាម."
    ledger.write_json(base / "onggi.json", {"licence": "gemma", "terms": terms, "grid": grid})
    (base / "LICENSE").write_text("terms")

    still = pretrain(config(base, steps=2, learning_rate=1e-7, batch_tokens=128), tmp_path / "still")
    far = pretrain(config(base, steps=20, learning_rate=1e-2), tmp_path / "far")
    for kind in ("linears", "embedding"):
        assert still.record["moved"][kind]["off_grid"] < 0.01
        assert far.record["moved"][kind]["off_grid"] > 0.5
        was, now = far.record["moved"][kind]["distinct"]
        assert was < 16 and now > 30
    about = json.loads((far.path / "onggi.json").read_text())
    words = card.own_grid(about)
    assert (
        words.startswith(f"off-grid (continued in full precision from {base} for 20 steps")
        and "Q4_0" in words
        and "linears " in words
    )
    assert card.own_grid({"grid": grid}) == card.grid(grid)
    assert (about["licence"], about["terms"]) == ("gemma", terms)
    assert terms in (far.path / "README.md").read_text() and (far.path / "LICENSE").read_text() == "terms"


def test_killed_it_ends_in_the_same_bytes(tiny_gemma: Path, tmp_path: Path) -> None:
    words = [
        "pretrain",
        "--text",
        "starter",
        "--init",
        str(tiny_gemma),
        "--languages",
        "en,ko,km",
        "--steps",
        "40",
    ]
    words += ["--batch_tokens", "192", "--length", "64", "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    out = tmp_path / "killed"
    training = out / ".partial" / "training"
    killed(
        *(*words, str(out)),
        when=lambda: list(training.glob("step-*[1-9]/checkpoint.json")),
        after=0.05,
        settings={"onggi.train.trainer:CHECKPOINT_EVERY": 0.0},
    )
    assert list(training.glob("step-*[1-9]")) and not (out / "stage.json").exists(), (
        "the kill came after the end"
    )
    assert main([*words, str(out)]) == 0
    outputs = [ledger.read_json(tmp_path / name / "stage.json")["outputs"] for name in ("whole", "killed")]
    assert outputs[0] == outputs[1]


def test_held_out_passages_are_not_trained_on(tmp_path: Path) -> None:
    from onggi.stages.pretrain_text import _texts

    folder = tmp_path / "text"
    text(TextConfig("probe", Languages("en,ko,ar")), folder)
    rows = tmp_path / "own.jsonl"  # the same passages under a name that may be trained on
    import pyarrow.parquet as pq

    found = pq.read_table(folder / "text.parquet").to_pylist()
    found[3]["ar"] = None
    rows.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in found), encoding="utf-8")
    training, held_out, _ = _texts(PretrainConfig(str(rows), "owner/name"))
    kept = {key for passages in held_out.values() for key in passages}
    assert list(training) == ["en", "ko", "ar"] and all(held_out.values())
    for passages in training.values():
        assert not kept & passages.keys()
    assert len(training["ko"]) + len(kept) == len(found)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps: 0 is not a number"),
        ({"length": 1}, "length: a sequence of 1"),
        ({"batch_tokens": 63}, "batch_tokens: 63 are less than one sequence of 64"),
        ({"learning_rate": 0.0}, "learning_rate: 0.0 is not between"),
        ({"warmup": -1}, "warmup: -1 is less than nothing"),
        ({"length": 4096, "batch_tokens": 4096}, "length: 4096 exceeds the window"),
        ({"steps": 1, "batch_tokens": 64}, "too few for 3 languages"),
        ({"languages": Languages("en,ka")}, "has no text in ka"),
    ],
)
def test_what_cannot_work_is_said(options: dict, said: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match=said):
        pretrain(config(tiny, **options), tmp_path / "out")
    assert not (tmp_path / "out" / "stage.json").exists()


def test_the_probe_is_refused_in_a_folder_too(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match="never for training"):
        PretrainConfig("probe", str(tiny))
    text(TextConfig("probe", Languages("en,ko,th")), tmp_path / "text")
    with pytest.raises(OnggiError, match="never for training"):
        pretrain(PretrainConfig(str(tmp_path / "text"), str(tiny)), tmp_path / "out")


def test_the_recipe_is_sound() -> None:
    steps = recipe.load(ROOT / "recipes" / "off-grid.yaml").steps
    assert [step.stage.verb for step in steps] == ["text", "pretrain", "evaluate", "report"]
    made = recipe.config(steps[1], {step.name: Path(step.name) for step in steps})
    assert (
        made.steps >= 200 and made.learning_rate == 3e-5 and set(made.languages) >= {"en", "ko", "km", "hi"}
    )
