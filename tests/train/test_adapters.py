"""Adapters train what peft trains, without its copies; saved and merged they are the model that was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from onggi.engines.transformers import Engine, head_of
from onggi.errors import OnggiError
from onggi.train import adapters
from onggi.train.adapters import Shape, attach
from onggi.train.tokens import next_token

pytest.importorskip("peft")
IDS = [3, 1, 700]
BATCH = {"ids": torch.tensor([[0, 3, 40, 700, 1, 3, 3, 9], [0, 5, 6, 1, 2, 8, 7, 4]])}
BATCH["weights"] = torch.full(BATCH["ids"].shape, 1 / 16)


def naive(model: nn.Module) -> torch.Tensor:
    """The same loss by the model's own logits."""
    logits = model(input_ids=BATCH["ids"], use_cache=False).logits[:, :-1]
    each = nn.functional.cross_entropy(logits.flatten(0, 1), BATCH["ids"][:, 1:].flatten(), reduction="none")
    return (each * BATCH["weights"][:, 1:].flatten()).sum()


@pytest.mark.parametrize("kind", ["tiny", "tiny_gemma"])
@pytest.mark.parametrize("magnitudes", [False, True])
def test_the_gradients_are_pefts(kind: str, magnitudes: bool, request: pytest.FixtureRequest) -> None:
    """Tied (Gemma, with its scaled embedding) and untied; two steps, so that rows that have moved are seen too."""
    found = []
    for patched in (True, False):
        model = Engine(request.getfixturevalue(kind)).model
        made = attach(model, Shape(rank=4, alpha=8.0, magnitudes=magnitudes), IDS, 7, patched)
        assert (made.rows is None) != patched
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert trained and all("lora" in n or "trainable_tokens" in n for n in trained)
        optimizer = torch.optim.SGD(trained.values(), lr=0.3)
        model.train()
        losses, gradients = [], []
        for _ in range(2):
            loss = next_token(torch.float32, rows=made.rows)(model, BATCH) if patched else naive(model)
            optimizer.zero_grad()
            loss.backward()
            losses.append(float(loss.detach()))
            gradients.append({n: p.grad.clone() for n, p in trained.items() if p.grad is not None})
            optimizer.step()
        found.append((losses, gradients))
    (mine, my_gradients), (theirs, their_gradients) = found
    assert mine == pytest.approx(theirs, abs=1e-5) and mine[1] < mine[0]
    for own, other in zip(my_gradients, their_gradients, strict=True):
        assert own.keys() == other.keys()
        for name, gradient in own.items():
            torch.testing.assert_close(gradient, other[name], rtol=1e-3, atol=1e-5)
    assert any("trainable_tokens" in name and float(g.abs().sum()) > 0 for name, g in my_gradients[0].items())


@pytest.mark.parametrize("kind", ["tiny", "tiny_gemma"])
def test_merged_saved_and_loaded(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    engine = Engine(request.getfixturevalue(kind))
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    made = attach(engine.model, Shape(rank=2, alpha=4.0), IDS, 0)
    with torch.no_grad():
        for name, parameter in engine.model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1
                )
    trained = float(next_token(torch.float32, rows=made.rows)(engine.model, BATCH).detach())
    made.save(tmp_path / "adapter", "the/base")
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert (
        tmp_path / "adapter" / "adapter_model.safetensors"
    ).stat().st_size < 400_000  # no table of the vocabulary
    merged = made.merged()
    assert {n for n, _ in merged.named_parameters()} == before.keys()
    assert float(naive(merged).detach()) == pytest.approx(trained, abs=1e-4)
    assert head_of(merged).weight.shape == before["model.embed_tokens.weight"].shape

    # By peft alone, over the base; and taken off again.
    fresh = Engine(request.getfixturevalue(kind))
    loaded = adapters.load(fresh.model, tmp_path / "adapter").peft
    assert float(naive(loaded).detach()) == pytest.approx(trained, abs=1e-4)
    loaded.merge_adapter()
    loaded.unmerge_adapter()
    restored = loaded.unload()
    for name, parameter in restored.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=1e-6)


def test_the_same_start_from_the_same_seed_and_no_dice_spent(tiny: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    starts = []
    for seed in (1, 1, 2):
        model = Engine(tiny).model
        torch.set_rng_state(state)
        attach(model, Shape(rank=2), [], seed)
        assert torch.equal(torch.get_rng_state(), state)
        starts.append(torch.cat([p.flatten() for n, p in model.named_parameters() if "lora_A" in n]))
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_noise_is_for_training_alone(tiny_gemma: Path) -> None:
    model = Engine(tiny_gemma).model
    adapters.noise(model, 5.0)
    quiet = model(BATCH["ids"]).logits
    assert torch.equal(quiet, model(BATCH["ids"]).logits)
    model.train()
    assert not torch.equal(model(BATCH["ids"]).logits, model(BATCH["ids"]).logits)


def test_four_bits_need_a_gpu() -> None:
    with pytest.raises(OnggiError, match=r"qlora .* only a GPU .* --method lora"):
        adapters.check_quantized(torch.device("cpu"))
