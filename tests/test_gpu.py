"""The commands on a GPU: what they compute is near to what a CPU computes. `python -m pytest -m gpu` runs these alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from divergences import on_probe
from onggi.cli import main
from onggi.engines import transformers as engines
from onggi.head import Dense, Divergence, Head, compare, cross_entropy, divergence
from onggi.models import references

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
TAGS = ("en", "ko", "km")
GPU = torch.device("cuda")


def run(*words: str | Path) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.mark.parametrize("kind", ["kl", "reverse-kl", "jsd"])
def test_a_large_vocabulary_gives_the_cpus_loss_and_gradients(kind: Any) -> None:
    torch.manual_seed(0)
    weight, states = torch.randn(262_144, 64) * 0.2, torch.randn(96, 64)
    theirs, targets = states + 0.5 * torch.randn(96, 64), torch.randint(0, 262_144, (96,))
    found = []
    for device in (torch.device("cpu"), GPU):
        own, head = states.to(device).requires_grad_(), weight.to(device).requires_grad_()
        teacher = Dense(theirs.to(device), Head(weight.to(device)))
        loss = divergence(own, Head(head), teacher, targets.to(device), kind=Divergence(kind, 0.5))
        loss = loss + cross_entropy(own, Head(head), targets.to(device))
        loss.backward()
        found.append([loss.detach().cpu(), own.grad.cpu(), head.grad.cpu()])  # type: ignore[union-attr]
    for cpu, gpu in zip(*found, strict=True):
        assert float((cpu - gpu).norm() / cpu.norm()) < 1e-5


def test_states_that_lie_elsewhere_go_to_the_head() -> None:
    torch.manual_seed(0)
    weight, states, targets = torch.randn(5000, 64), torch.randn(700, 64), torch.arange(700)
    expected = compare([states, states + 0.1], [Head(weight), Head(weight)], targets)
    found = compare([states, states + 0.1], [Head(weight.to(GPU)), Head(weight.to(GPU))], targets)
    for cpu, gpu in zip(expected, found, strict=True):
        torch.testing.assert_close(cpu.nll, gpu.nll, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(expected[1].kl, found[1].kl, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        ["--scheme", "w4a16-g32"],
        ["--scheme", "w4a16-g32", "--method", "awq"],
        ["--scheme", "w3a16-g128", "--fairness", "minimax"],
        ["--scheme", "w8a8-smooth"],
        ["--scheme", "fp8"],
        ["--scheme", "w8a16", "--embedding", "w8"],
        ["--budget", "4.5", "--choices", "w3a16-g128,w4a16-g32,w8a16"],
        ["--format", "gguf:Q4_0"],
    ],
    ids=" ".join,
)
def test_a_gpu_quantises_as_well_as_the_cpu(
    options: list[str], tiny_gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["quantize", tiny_gemma, *options, "--text", "starter", "--tokens", "2048", "--out"]
    run(*words, tmp_path / "gpu")
    with monkeypatch.context() as patch:
        patch.setattr(engines, "default_device", lambda: torch.device("cpu"))
        run(*words, tmp_path / "cpu")
    file = "model.gguf" if "--format" in options else ""
    made = [references.resolve(str(tmp_path / place / file)) for place in ("gpu", "cpu")]
    gpu, cpu = (on_probe(tiny_gemma, folder, TAGS, 6) for folder in made)
    for tag in TAGS:  # rounding falls differently where sums do
        assert gpu[tag] < 1.15 * cpu[tag] + 1e-3, (gpu, cpu)


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_bitsandbytes(scheme: str, tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    run("quantize", tiny, "--scheme", scheme, "--out", tmp_path / "made")
    assert max(on_probe(tiny, tmp_path / "made", TAGS, 4).values()) < 0.3


def test_best_effort_and_recovery_lose_less(tiny_gemma: Path, tmp_path: Path) -> None:
    words = ["quantize", tiny_gemma, "--scheme", "w3a16-g128", "--text", "starter", "--tokens", "4096"]
    run(*words, "--out", tmp_path / "default")
    run(*words, "--effort", "best", "--out", tmp_path / "best")
    words = ["distill", tiny_gemma, "--into", tmp_path / "default", "--text", "starter", "--steps", "20"]
    run(*words, "--out", tmp_path / "recovered")
    solved = on_probe(tiny_gemma, tmp_path / "default", TAGS, 6)
    for better in ("best", "recovered"):
        found = on_probe(tiny_gemma, tmp_path / better, TAGS, 6)
        assert sum(found.values()) < sum(solved.values()), (better, found, solved)


@pytest.mark.parametrize("method", ["lora", "dora", "qlora", "full"])
def test_tuning_learns(method: str, tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes" if method == "qlora" else "peft")
    words = ["finetune", tiny, "--data", "cldr:12", "--languages", "ko,de,ja", "--method", method]
    words += ["--steps", "20", "--samples", "1", "--max-tokens", "4", "--probe-passages", "6"]
    words += ["--learning-rate", "3e-3", "--batch-tokens", "512", "--length", "128", "--json"]
    run(*words, "--out", tmp_path / "made")
    lines = (tmp_path / "made" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert losses[-1] < losses[0]
    # What was trained over 4 bits loads in plain bf16, its adapters merged.
    assert engines.Engine(tmp_path / "made").states(["안녕하세요", "Γεια σου"])


@pytest.mark.parametrize(
    "options", [[], ["--loss", "jsd:0.5"], ["--on-policy", "0.5", "--fairness", "minimax"]]
)
def test_a_student_learns(options: list[str], tiny_gemma: Path, tmp_path: Path) -> None:
    run("reshape", tiny_gemma, "--layers", "2", "--choice", "naive", "--out", tmp_path / "student")
    words = ["distill", tiny_gemma, "--into", tmp_path / "student", "--text", "starter", *options]
    words += ["--languages", ",".join(TAGS), "--steps", "20", "--batch-tokens", "256", "--length", "64"]
    run(*words, "--learning-rate", "3e-3", "--out", tmp_path / "made")
    before, after = (on_probe(tiny_gemma, tmp_path / place, TAGS, 4) for place in ("student", "made"))
    assert sum(after.values()) < sum(before.values())


def test_a_stored_teacher(tiny_gemma: Path, tmp_path: Path) -> None:
    size = ["--languages", ",".join(TAGS), "--length", "64"]
    run("capture", tiny_gemma, "--text", "starter", "--tokens", "2048", *size, "--out", tmp_path / "stored")
    words = ["distill", tmp_path / "stored", "--into", tiny_gemma, "--steps", "3", "--batch-tokens", "256"]
    run(*words, "--out", tmp_path / "made")


def test_everything_is_measured(tiny: Path, tiny_gemma: Path, tmp_path: Path) -> None:
    words = ["evaluate", f"a={tiny}", f"b={tiny_gemma}", "--text", "probe", "--prompts", "everyday"]
    run(*words, "--languages", "ko,km,ar", "--limit", "2", "--cost", "--out", tmp_path / "scores")
    found = json.loads((tmp_path / "scores" / "scores.json").read_text(encoding="utf-8"))
    for model in ("a", "b"):
        assert set(found["models"][model]["languages"]) == {"ko", "km", "ar"}


def test_more_processes_than_gpus(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    many = torch.cuda.device_count()
    monkeypatch.setenv("WORLD_SIZE", str(many + 1))
    monkeypatch.setenv("LOCAL_RANK", str(many))
    words = ["pretrain", "--init", tiny, "--text", "starter", "--steps", "1", "--out", tmp_path / "made"]
    assert main([str(word) for word in words]) == 1
    assert f"--nproc-per-node {many}" in capsys.readouterr().err
