"""Attention in fp32 beside products in bf16: the loss and gradients are no further from those in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from onggi.engines.transformers import Engine
from onggi.text.packing import encode
from onggi.train import adapters, attention
from onggi.train.tokens import next_token

TEXTS = ["옹기는 숨을 쉬는 항아리입니다.", "An onggi is a jar that breathes.", "អុងគីគឺជាពាង"]


@pytest.mark.parametrize("kind", ["tiny", "tiny_gemma"])
@pytest.mark.parametrize("adapted", [False, True])
def test_it_is_near_to_fp32(kind: str, adapted: bool, request: pytest.FixtureRequest) -> None:
    """Documents in one sequence, apart by their positions (Gemma: with windows); of all weights, and of adapters (peft)."""
    folder: Path = request.getfixturevalue(kind)
    if adapted:
        pytest.importorskip("peft")
    losses, gradients = [], []
    for dtype, prepared in ((torch.float32, True), (torch.bfloat16, False), (torch.bfloat16, True)):
        engine = Engine(folder)
        model = engine.model
        if prepared:
            attention.prepare(model, dtype)
        assert (model.config._attn_implementation == "sdpa") == (not prepared or dtype == torch.float32)
        if adapted:
            adapters.attach(model, adapters.Shape(rank=4, alpha=8.0), [], 7)
        else:
            model.requires_grad_(True)
        parts = [ids.tolist() for ids in encode(engine.tokens.tokenizer, TEXTS)]
        ids = torch.tensor([[token for own in parts for token in own]])
        positions = torch.tensor([[place for own in parts for place in range(len(own))]])
        weights = (positions > 0) / len(ids[0])
        loss = next_token(dtype)(model.train(), {"ids": ids, "positions": positions, "weights": weights})
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
        )
    whole, plain, prepared_loss = losses
    assert prepared_loss == pytest.approx(whole, rel=2e-3) == pytest.approx(plain, rel=2e-3)
    off = [float((own - gradients[0]).norm() / gradients[0].norm()) for own in gradients[1:]]
    assert 0 < off[1] < max(1.1 * off[0], 0.02) < 0.1, off
