"""Bits per byte of a validation text: those of the engine, whatever the batches and however long a passage."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from onggi.engines.transformers import Engine
from onggi.head import score
from onggi.train import validation
from onggi.train.validation import Validation

TEXTS = {
    "en": ["The harbour is closed today.", "Rain."],
    "ko": ["오늘은 항구가 닫혀 있습니다.", "비가 옵니다."],
    "th": ["วันนี้ท่าเรือปิด", "ฝนตก"],
    "ar": ["الميناء مغلق اليوم."],
}


def bits(engine: Engine, texts: list[str]) -> float:
    nats = 0.0
    for states, ids in engine.states(texts):
        nats += float(score(states, engine.head, ids).nll.double().sum())
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("batch", [4096, 30])
def test_it_is_the_engines(batch: int, tiny: Path, tiny_gemma: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_BATCH", batch)
    for folder in (tiny, tiny_gemma):
        engine = Engine(folder)
        made = Validation(engine.tokens, TEXTS, 512)
        found = made(engine.model)
        assert found == pytest.approx({lang: bits(engine, texts) for lang, texts in TEXTS.items()}, abs=2e-5)
        counts = {lang: sum(len(engine.tokens.encode(t)) for t in texts) for lang, texts in TEXTS.items()}
        nats = made.nats(found)
        for lang, texts in TEXTS.items():
            total = bits(engine, texts) * math.log(2) * sum(len(t.encode()) for t in texts)
            assert nats[lang] == pytest.approx(total / counts[lang], abs=1e-3)


def test_a_long_passage_is_predicted_in_parts_and_whole(tiny: Path) -> None:
    engine = Engine(tiny)
    long = "항구가 닫혀 있습니다. " * 20
    made = Validation(engine.tokens, {"ko": [long]}, 16)
    ids = engine.tokens.encode(long)
    assert made.tokens == len(ids) > 64
    nats = 0.0
    for at in range(0, len(ids), 15):
        part = [engine.tokens.prefix, *ids[at : at + 15]]
        with torch.no_grad():
            logits = engine.model(torch.tensor([part])).logits[0, :-1]
        nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(part[1:]), reduction="sum"))
    assert made(engine.model)["ko"] == pytest.approx(nats / math.log(2) / len(long.encode()), rel=1e-4)
    assert not engine.model.training
