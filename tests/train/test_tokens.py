"""Batches in which every language has its share, and the loss on them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F

from onggi.engines.transformers import Engine
from onggi.train.tokens import Batches, batches, next_token

BOS = 0
# Thai runs short: one sequence, and that not a whole one.
RUNS = {
    "en": [[BOS, *range(100 * i + 1, 100 * i + 8)] for i in range(1, 9)],
    "ko": [[BOS, *range(100 * i + 11, 100 * i + 18)] for i in range(1, 9)],
    "th": [[BOS, 121, 122, 123]],
}


def language(row: torch.Tensor) -> str:
    return {0: "en", 1: "ko", 2: "th"}[int(row[1]) % 100 // 10]


def made(seed: int = 0) -> Batches:
    return batches(RUNS, BOS, steps=5, size=4, seed=seed)


def test_languages_have_equal_shares_and_take_turns() -> None:
    found = made()
    assert found.ids.shape == found.weights.shape == (5, 4, 8)
    order = [language(row) for row in found.ids.view(-1, 8)]
    assert sorted(Counter(order).values()) == [6, 7, 7]
    for start in range(0, 18, 3):
        assert set(order[start : start + 3]) == set(RUNS)
    assert found.tokens == {tag: order.count(tag) * len(RUNS[tag][0]) for tag in RUNS}
    # None is gone over again before all of it has been.
    english = [tuple(row.tolist()) for row in found.ids.view(-1, 8) if language(row) == "en"]
    assert len(set(english)) == len(english)


def test_a_step_weighs_one_and_filling_nothing() -> None:
    found = made()
    torch.testing.assert_close(found.weights.sum(dim=(1, 2)), torch.ones(5))
    for ids, weights in zip(found.ids.view(-1, 8), found.weights.view(-1, 8), strict=True):
        length = 4 if language(ids) == "th" else 8
        assert bool((weights[1:length] > 0).all()) and not weights[0] and not weights[length:].any()
        assert bool((ids[length:] == BOS).all())


def test_the_seed_decides() -> None:
    assert torch.equal(made().ids, made().ids)
    assert not torch.equal(made().ids, made(1).ids)


def test_the_loss_is_that_of_the_model(tiny: Path, tiny_gemma: Path) -> None:
    for folder in (tiny, tiny_gemma):
        engine = Engine(folder)
        texts = ("The bus leaves at nine.", "버스는 아홉 시에 떠난다.", "รถบัสออกเก้าโมง", "يغادر الحافلة")
        rows = {str(i): [[engine.tokens.prefix, *engine.tokens.encode(t)]] for i, t in enumerate(texts)}
        found = batches(rows, engine.tokens.prefix, steps=1, size=4, seed=0)
        ids, weights = found.ids[0], found.weights[0]
        engine.model.requires_grad_(True)
        loss = next_token(torch.float32)(engine.model, {"ids": ids, "weights": weights})
        loss.backward()
        mine = {name: p.grad.clone() for name, p in engine.model.named_parameters()}
        engine.model.zero_grad()
        logits = engine.model(ids).logits[:, :-1].flatten(0, 1)
        own = (
            F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none") * weights[:, 1:].flatten()
        ).sum()
        own.backward()
        torch.testing.assert_close(loss, own, rtol=1e-5, atol=1e-5)
        for name, parameter in engine.model.named_parameters():
            torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)
        rough = next_token(torch.bfloat16)(engine.model, {"ids": ids, "weights": weights})
        torch.testing.assert_close(rough, own, rtol=0.02, atol=0)
