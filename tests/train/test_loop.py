"""The loop: what it does to weights, and that an interruption leaves no trace in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from onggi.errors import OnggiError
from onggi.progress import Progress
from onggi.train import loop
from onggi.train.loop import Schedule, train

STEPS = 12
SCHEDULE = Schedule(STEPS, 0.05, warmup=3)


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {"head": nn.Parameter(torch.randn(7, 5)), "norm": nn.Parameter(torch.ones(5))}


def loss_of(found: dict[str, nn.Parameter]) -> loop.Loss:
    def loss(ids: Tensor, weights: Tensor) -> Tensor:
        logits = (torch.sin(ids.float()).unsqueeze(-1) * found["norm"]) @ found["head"].T
        return (
            nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none")
            * weights.flatten()
        ).sum()

    return loss


def batch() -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 7, (STEPS, 2, 6), generator=torch.Generator().manual_seed(1))
    return ids, torch.full(ids.shape, 1 / 12)


def run(folder: Path, found: dict[str, nn.Parameter] | None = None, tick: object = None) -> tuple[dict, list]:
    found = found or parameters()
    losses = train(
        found, loss_of(found), *batch(), SCHEDULE, folder, Progress("test", STEPS), tick or (lambda: None)
    )
    return found, losses


def test_the_schedule_rises_and_falls() -> None:
    rates = [SCHEDULE.rate(step) for step in range(STEPS)]
    assert rates[:3] == pytest.approx([0.05 / 3, 0.1 / 3, 0.05])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert (rates[3], rates[-1]) == pytest.approx((0.05, 0.005))
    assert Schedule(1, 0.1, 0).rate(0) == 0.1


def test_it_is_adamw_with_clipping_and_without_decay(tmp_path: Path) -> None:
    found, losses = run(tmp_path)
    own = parameters()
    optimizer = torch.optim.AdamW(own.values(), betas=(0.9, 0.95), weight_decay=0.0)
    ids, weights = batch()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = SCHEDULE.rate(step)
        value = loss_of(own)(ids[step], weights[step])
        assert float(value.detach()) == pytest.approx(losses[step], rel=1e-4)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(own.values(), 1.0)
        optimizer.step()
    for name in own:
        torch.testing.assert_close(found[name], own[name], rtol=1e-4, atol=1e-5)
        assert not found[name].requires_grad
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("at", [1, 7, STEPS - 1])
def test_interrupted_it_ends_in_the_same_bytes(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 0.0)
    whole, losses = run(tmp_path / "whole")
    kept: list[int] = []

    def interrupt() -> None:
        kept.append(1)
        if len(kept) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", tick=interrupt)
    # Fresh parameters, as a new process has them.
    found, again = run(tmp_path / "killed")
    assert again == losses
    for name, parameter in whole.items():
        assert torch.equal(found[name], parameter)


def test_a_checkpoint_that_fails_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 0.0)
    write, calls = loop.checkpoints.write_shard, []

    def fails(path: Path, tensors: dict) -> None:
        calls.append(path)
        if len(calls) == 4:
            (path.parent / f".{path.name}.1.part").write_bytes(b"half")
            raise OSError("no space left")
        write(path, tensors)

    monkeypatch.setattr(loop.checkpoints, "write_shard", fails)
    with pytest.raises(OSError, match="no space"):
        run(tmp_path / "killed")
    found, losses = run(tmp_path / "killed")
    # Three steps had been kept: nine remained, and the last one writes none.
    assert len(calls) == 4 + STEPS - 3 - 1
    whole, own = run(tmp_path / "whole")
    assert losses == own and torch.equal(found["head"], whole["head"])


def test_a_loss_that_is_not_finite_is_said_with_its_step(tmp_path: Path) -> None:
    found = parameters()
    calls: list[int] = []

    def loss(ids: Tensor, weights: Tensor) -> Tensor:
        calls.append(1)
        return found["head"].sum() * (torch.nan if len(calls) == 5 else 1.0)

    with pytest.raises(OnggiError, match=r"step 5 of 12: the loss is nan .*lower --learning_rate"):
        train(found, loss, *batch(), SCHEDULE, tmp_path, Progress("test", STEPS), lambda: None)
    assert bool(torch.isfinite(found["head"]).all())
