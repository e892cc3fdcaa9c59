"""The trainer: what it does to weights, that neither processes nor passes nor a kill change it, and going back."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onggi.engines.transformers import Engine
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.progress import Progress
from onggi.stages import PackConfig, pack
from onggi.text.packing import Packed
from onggi.train import attention, checkpoints, compiled, optimizers, trainer
from onggi.train.schedule import Schedule
from onggi.train.tokens import Batch, PackedBatches, next_token
from onggi.train.trainer import Options, Trainer

STEPS = 8


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """The starter text in three scripts, packed with the tiny model's tokenizer."""
    out = tmp_path_factory.mktemp("packed") / "text"
    return pack(PackConfig("starter", str(tiny), 64, Languages("en,ko,km")), out).path


def made(model: Path, packed: Path, folder: Path, **given: Any) -> Trainer:
    loss = given.pop("loss", next_token(torch.float32))
    rate, shape = given.pop("rate", 3e-3), given.pop("shape", "cosine")
    engine = Engine(model)
    engine.model.requires_grad_(True)
    return Trainer(
        engine.model,
        loss,
        PackedBatches(Packed(packed), 6, 0),
        Schedule(STEPS, rate, 2, shape),
        Options(**{"weight_decay": 0.1, **given}),
        folder,
        Progress("test", STEPS),
    )


def losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in lines if "loss" in line]


def test_a_documents_loss_does_not_depend_on_its_neighbours(
    tiny: Path, tiny_gemma: Path, packed: Path
) -> None:
    """The same document packed behind others, and alone: the same loss, and no gradient from one to another."""
    text = Packed(packed)
    number = next(n for n in range(len(text)) if len(text.parts(n)) > 2)
    parts = text.parts(number)
    for folder in (tiny, tiny_gemma):
        model = Engine(folder).model
        batch = text.batch(number)
        whole = {"ids": torch.from_numpy(batch.ids), "positions": torch.from_numpy(batch.positions)}
        for part in parts:
            own = slice(int(part["start"]), int(part["stop"]))
            weights = torch.zeros(1, text.length)
            weights[0, own.start + 1 : own.stop] = 1 / (own.stop - own.start - 1)
            ids = whole["ids"][:, own]
            alone = {"ids": ids, "weights": weights[:, own]}
            among = next_token(torch.float32)(model, {**whole, "weights": weights})
            torch.testing.assert_close(among, next_token(torch.float32)(model, alone), rtol=1e-5, atol=1e-5)
        # That the positions do it: without them the last document sees the others.
        joined = next_token(torch.float32)(model, {"ids": whole["ids"], "weights": weights})
        assert abs(float(joined - among)) > 1e-3
        # So it is with products in bf16, whose attention is another.
        attention.prepare(model, torch.float32)
        assert model.config._attn_implementation == "sdpa"
        attention.prepare(model, torch.bfloat16)
        assert model.config._attn_implementation == "onggi_fp32"
        rough = [
            float(next_token(torch.bfloat16)(model, batch))
            for batch in ({**whole, "weights": weights}, alone, {"ids": whole["ids"], "weights": weights})
        ]
        assert rough[:2] == pytest.approx([float(among)] * 2, rel=2e-3)
        assert rough[2] == pytest.approx(float(joined), rel=2e-3)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_it_learns_and_passes_do_not_matter(kind: str, tiny: Path, packed: Path, tmp_path: Path) -> None:
    runs = {
        (at_once, checkpointing): made(
            tiny,
            packed,
            tmp_path / f"{at_once}{checkpointing}",
            optimizer=kind,
            at_once=at_once,
            checkpointing=checkpointing,
        )
        for at_once, checkpointing in ((6, False), (4, False), (6, True))
    }
    found = {key: losses(run.fit()) for key, run in runs.items()}
    assert found[6, False][-1] < found[6, False][0] - 0.3
    assert runs[4, False].pieces == [(0, 3), (3, 6)]
    for other in ((4, False), (6, True)):
        assert found[other] == pytest.approx(found[6, False], rel=1e-4)


def test_compiled_layers_learn_the_same(packed: Path, tiny: Path, tmp_path: Path) -> None:
    whole = made(tiny, packed, tmp_path / "whole")
    run = made(tiny, packed, tmp_path / "compiled")
    compiled.compile(run.model.model, "aot_eager")  # the same graphs, without a C++ compiler's seconds
    graphs: list[int] = []

    def validate(model: Any) -> dict[str, float]:
        model(torch.zeros(1, 3 + len(graphs), dtype=torch.int64))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        return {"ko": 1.0}

    run.validate = validate
    torch._dynamo.utils.counters.clear()
    assert losses(run.fit()) == pytest.approx(losses(whole.fit()), rel=1e-4)
    # What is measured, in passes of any shape, is not compiled; what is trained is.
    assert graphs[0] == 0 < graphs[1] == torch._dynamo.utils.counters["stats"]["unique_graphs"]
    # A short training is not worth the measurement, and one that does not gain stays as it was.
    step = lambda: next_token(torch.float32)(run.model.model, run.source.rows(0, 0, 1))  # noqa: E731
    assert not compiled.worthwhile(run.model.model, step, 1e9, 1e12)
    compiled.undo(run.model.model)
    assert not any(layer._compiled_call_impl for layer in compiled.layers(run.model.model))


def test_whether_compiling_pays_is_measured(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Engine(tiny).model
    for compiled_takes, pays in ((0.8, True), (0.95, False)):
        taken = iter([1.0, compiled_takes])
        monkeypatch.setattr("onggi.train.outlook.seconds", lambda step, taken=taken: next(taken))
        assert compiled.worthwhile(model, lambda: torch.zeros(()), 1000, 1e15) == pays
        assert all(bool(layer._compiled_call_impl) == pays for layer in compiled.layers(model))
    monkeypatch.setattr("onggi.train.outlook.seconds", lambda step: 1.0)
    assert not compiled.worthwhile(model, lambda: torch.zeros(()), 500, 1e15)  # under ten minutes


def test_one_step_is_adamw_with_decay_on_the_matrices_of_layers(
    tiny: Path, packed: Path, tmp_path: Path
) -> None:
    run = made(tiny, packed, tmp_path / "a")
    run.schedule = Schedule(1, 1e-2, 0)
    run.args.max_steps = 1
    before = {name: p.detach().clone() for name, p in run.model.model.named_parameters()}
    run.fit()
    engine = Engine(tiny)
    engine.model.requires_grad_(True)
    next_token(torch.float32)(engine.model, run.source.rows(0, 0, 6)).backward()
    nn.utils.clip_grad_norm_(engine.model.parameters(), 1.0)
    for (name, own), (_, theirs) in zip(
        run.model.model.named_parameters(), engine.model.named_parameters(), strict=True
    ):
        grad = theirs.grad
        assert grad is not None
        decay = 0.1 if own.ndim > 1 and "embed" not in name and "lm_head" not in name else 0.0
        rate = run._own_optimizer.param_groups[0]["initial_lr"]
        wanted = before[name] * (1 - rate * decay) - rate * grad / (grad.abs() + 1e-8)
        # Where the gradient is next to nothing its sign is noise.
        sure = grad.abs() > 1e-6
        torch.testing.assert_close(own[sure], wanted[sure], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_going_on_from_a_checkpoint_is_exact(
    kind: str, tiny_gemma: Path, packed_gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(tiny_gemma, packed_gemma, tmp_path / "whole", optimizer=kind)
    whole.fit()
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 0.0)
    calls: list[int] = []

    def dies(model: Any, batch: Batch) -> Tensor:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return next_token(torch.float32)(model, batch)

    killed = made(tiny_gemma, packed_gemma, tmp_path / "killed", optimizer=kind, loss=dies)
    with pytest.raises(KeyboardInterrupt):
        killed.fit()
    # The last checkpoint is harmed, and one that was never finished lies there: the one before is taken.
    folder = tmp_path / "killed"
    steps = sorted(folder.glob("step-*"))
    assert [path.name[-1] for path in steps] == ["4", "5"]
    with (steps[1] / "weights.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    shutil.copytree(steps[0], folder / "step-00000099")
    (folder / "step-00000099" / checkpoints.MARKER).unlink()
    again = made(tiny_gemma, packed_gemma, folder, optimizer=kind)
    again.fit()
    assert (folder / trainer.METRICS).read_bytes() == (tmp_path / "whole" / trainer.METRICS).read_bytes()
    for own, theirs in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(own, theirs)
    names = {file.name for file in folder.rglob("*") if file.is_file()}
    assert names == {
        "weights.safetensors",
        "optimizer.safetensors",
        "trainer_state.json",
        "checkpoint.json",
        "metrics.jsonl",
    }


@pytest.fixture(scope="module")
def packed_gemma(tmp_path_factory: pytest.TempPathFactory, tiny_gemma: Path) -> Path:
    out = tmp_path_factory.mktemp("packed") / "gemma"
    return pack(PackConfig("starter", str(tiny_gemma), 64, Languages("el,ko,km")), out).path


def test_it_goes_back_passes_over_and_halves(
    tiny: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A text that makes the loss no number: back to the start, on behind it, at half the learning rate."""
    poison = PackedBatches(Packed(packed), 6, 0).rows(2, 0, 6)["ids"]

    def loss(model: Any, batch: Batch) -> Tensor:
        found = next_token(torch.float32)(model, batch)
        return found * math.nan if torch.equal(batch["ids"], poison) else found

    run = made(tiny, packed, tmp_path / "a", loss=loss)
    lines = run.fit()
    assert (run.halved, run.passed_over) == (1, 3)
    back = [line for line in lines if "went_back_from" in line]
    assert [(line["step"], line["went_back_from"]) for line in back] == [(0, 3)] and "nan" in back[0][
        "because"
    ]
    rates = [line["learning_rate"] for line in lines if "loss" in line]
    assert len(rates) == STEPS and max(rates) == pytest.approx(1.5e-3)
    assert all(bool(torch.isfinite(p).all()) for p in run.model.parameters())
    assert "Back to step 0" in capsys.readouterr().err
    # What it learnt is what one learns that begins behind the poison.
    other = made(tiny, packed, tmp_path / "b", rate=1.5e-3)
    other.passed_over = 3
    assert losses(other.fit()) == losses(lines)


def test_always_astray_is_an_error(tiny: Path, packed: Path, tmp_path: Path) -> None:
    run = made(tiny, packed, tmp_path / "a", loss=lambda m, b: next_token(torch.float32)(m, b) * math.inf)
    with pytest.raises(
        OnggiError, match=r"step 1 of 8: the loss is inf .* going back 3 times; a lower --learning_rate"
    ):
        run.fit()


def test_a_loss_that_climbs_is_astray() -> None:
    watch = trainer._Watch()
    for step in range(40):
        watch.add(9 - step / 10, 1.0)
    assert watch.sound
    with pytest.raises(trainer.Astray, match="mean loss of 16 steps"):
        for _ in range(16):
            watch.add(8.5, 1.0)
    assert not watch.sound


def test_schedules() -> None:
    cosine, stable = Schedule(100, 1.0, 10), Schedule(100, 1.0, 10, "wsd")
    for schedule in (cosine, stable):
        assert [schedule.rate(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert cosine.rate(99) == pytest.approx(0.1) and cosine.rate(54) == pytest.approx(0.55, abs=0.02)
    assert stable.rate(79) == 1.0 and stable.rate(80) == 1.0 and stable.rate(85) == pytest.approx(0.5)
    assert 0 < stable.rate(99) < 0.03
    falls = [stable.rate(step) for step in range(80, 100)]
    assert falls == sorted(falls, reverse=True)


def test_muon_has_the_matrices_of_layers(tiny: Path) -> None:
    model = Engine(tiny).model.requires_grad_(True)
    made = optimizers.make(model, "muon", 1e-3, 0.1)
    assert isinstance(made, optimizers.Together)
    muon = {id(p) for p in made.param_groups[0]["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in muon) == ("proj" in name), name


def test_text_read_again_is_in_another_order(packed: Path) -> None:
    text = Packed(packed)
    batches = PackedBatches(text, 5, seed=1)
    order = [batches.number(place) for place in range(2 * len(text))]
    first, second = order[: len(text)], order[len(text) :]
    assert first == list(range(len(text))) and sorted(second) == first != second
    steps = -(-len(text) // 5)
    counted = batches.tokens(0, steps)
    assert sum(counted.values()) >= text.index["tokens"]
    weights = [batches.rows(3, start, start + 1)["weights"] for start in range(5)]
    assert float(sum(w.sum() for w in weights)) == pytest.approx(1.0)
