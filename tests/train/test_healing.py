"""What a healing keeps and when it ends, on the one trainer; and what of a model is a norm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from onggi.engines.transformers import Engine
from onggi.errors import OnggiError
from onggi.progress import Progress
from onggi.train import healing
from onggi.train.checkpoints import Kept
from onggi.train.schedule import Schedule
from onggi.train.tokens import batches, next_token
from onggi.train.trainer import METRICS, Options

RUNS = {"ko": [[0, 5, 6, 7, 1]], "el": [[0, 9, 8, 3, 1]], "km": [[0, 2, 4, 6, 1]]}


def healer(tiny: Path, folder: Path, worst: list[float]) -> healing.Healer:
    """One whose held-out Khmer is measured to have lost `worst`, a value a measurement."""
    values = iter(worst)

    def validate(model: Any) -> dict[str, float]:
        return {"km": next(values), "el": 0.1, "ko": 0.2}

    model = Engine(tiny).model
    model.lm_head.requires_grad_(True)
    source, schedule = batches(RUNS, 0, 8, 3, 0), Schedule(8, 1e-4, 1)
    options = Options(validate_every=1)
    return healing.Healer(
        model,
        next_token(torch.float32),
        source,
        schedule,
        options,
        folder,
        Progress("test", 8),
        validate=validate,
    )


def test_the_best_of_the_worst_language_is_kept_and_it_ends_without_gain(tiny: Path, tmp_path: Path) -> None:
    made = healer(tiny, tmp_path, [0.5, 0.45, 0.47, 0.40, 0.41, 0.40, 0.39999, 0.5, 0.5])
    made.fit()
    assert made.state.global_step == 8
    moved = made.model.model.lm_head.weight.clone()
    assert made.go_back_to_best() == 6 and not torch.equal(made.model.model.lm_head.weight, moved)
    other = healer(tiny, tmp_path / "other", [0.5, 0.45, 0.46, 0.47, 0.45, 0.1])
    other.fit()
    assert other.state.global_step == 4 and other.go_back_to_best() == 1
    assert [step for step, _ in other.damages] == [0, 1, 2, 3, 4]


def test_where_nothing_is_gained_it_is_what_it_was(tiny: Path, tmp_path: Path) -> None:
    made = healer(tiny, tmp_path, [0.5, 0.6, 0.6, float("nan")])
    before = made.model.model.lm_head.weight.clone()
    made.fit()
    assert made.state.global_step == 3 and made.go_back_to_best() == 0
    assert torch.equal(made.model.model.lm_head.weight, before)


def test_what_was_best_after_the_checkpoint_is_to_come_again(tiny: Path, tmp_path: Path) -> None:
    made = healer(tiny, tmp_path, [0.5, 0.4, 0.3, 0.3, 0.3, 0.3])
    made.fit()
    assert {path.name for path in (tmp_path / "best").iterdir()} == {"step-00000001", "step-00000002"}
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    first = next(i for i, line in enumerate(lines) if line["step"] == 2)
    made._load(Kept(tmp_path, 1, {"watch": {"recent": [], "lowest": None}, "lines": first}))
    assert {path.name for path in (tmp_path / "best").iterdir()} == {"step-00000001"}
    assert made.go_back_to_best() == 1
    (tmp_path / "best" / "step-00000001" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(OnggiError, match="is harmed"):
        made.restore(1)


def test_a_norm_is_known_by_what_it_does() -> None:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    weight = torch.linspace(-0.5, 2, 8)
    norms: list[tuple[Any, torch.Tensor]] = [
        (LlamaRMSNorm(8), weight),
        (Gemma3RMSNorm(8), 1 + weight),
        (torch.nn.LayerNorm(8), weight),
    ]
    for norm, gain in norms:
        with torch.no_grad():
            norm.weight.copy_(weight)
        found = healing._gain(norm)
        assert found is not None
        torch.testing.assert_close(found, gain, rtol=1e-4, atol=1e-5)
    for other in (
        torch.nn.Linear(8, 8),
        torch.nn.Embedding(8, 8),
        transformers.activations.NewGELUActivation(),
    ):
        assert healing._gain(other) is None


def test_a_gain_moves_by_shares_and_is_stored_as_it_is_computed() -> None:
    stored = torch.linspace(0.5, 40, 8).bfloat16()
    made = healing.Gain(stored, 1 + stored.float())
    assert torch.equal(made(), stored.float()) and torch.equal(made.stored(), stored)
    with torch.no_grad():
        made.moved.fill_(0.1)
    assert made.stored().dtype == torch.bfloat16 and torch.equal(made.stored().float(), made())
    torch.testing.assert_close(1 + made(), 1.1 * (1 + stored.float()), rtol=0.01, atol=0)
    made().sum().backward()
    torch.testing.assert_close(made.moved.grad, 1 + stored.float())
