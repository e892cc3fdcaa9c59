"""What a student writes takes the place of the text's second half, where it is in the text's language."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from onggi.distill.on_policy import Writing, draw
from onggi.engines.transformers import Engine
from onggi.train.tokens import Batch, batches

TEXTS = {
    "ko": "옹기는 찰흙으로 빚어 가마에서 구운 그릇이라 숨을 쉽니다.",
    "en": "A jar is made of clay and fired in a kiln for many hours.",
    "th": "ไหทำจากดินเหนียวและเผาในเตานานหลายชั่วโมง",
}


def batch_of(engine: Engine) -> Batch:
    runs = {tag: [[engine.tokens.prefix, *engine.tokens.encode(text)][:16]] for tag, text in TEXTS.items()}
    return batches(runs, engine.tokens.prefix, 1, 6, 0).rows(0, 0, 6)


@pytest.mark.parametrize("kind", ["tiny", "tiny_gemma"])
def test_it_draws_what_the_model_holds_likely(kind: str, request: pytest.FixtureRequest) -> None:
    engine = Engine(request.getfixturevalue(kind))
    ids = batch_of(engine)["ids"][:2, :6]
    # Sure of everything: what is drawn is the likeliest, as without a cache and one at a time.
    with torch.no_grad():
        norm = (engine.model.model if hasattr(engine.model, "model") else engine.body).norm
        norm.weight.mul_(5000).add_(4999 if kind == "tiny_gemma" else 0)
    drawn = draw(engine.model, ids, 5)
    assert drawn.shape == (2, 5)
    for row in range(2):
        assert list(engine.follow(ids[row].tolist(), 5)) == drawn[row].tolist()


def test_the_first_half_and_the_weights_stay(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, languages = Engine(tiny), list(TEXTS)
    batch = batch_of(engine)
    right = {tag: engine.tokens.encode(text)[:8] for tag, text in TEXTS.items()}

    def speaks(model: object, ids: torch.Tensor, count: int) -> torch.Tensor:
        """Everybody goes on in Thai."""
        return torch.tensor(right["th"]).expand(len(ids), -1)[:, :count]

    monkeypatch.setattr("onggi.distill.on_policy.draw", speaks)
    writing = Writing(1.0, engine.tokens, languages)
    found = writing(engine.model, batch)
    assert torch.equal(found["ids"][:, :8], batch["ids"][:, :8])
    assert writing.written == {"ko": 2, "en": 2, "th": 2} and writing.strayed == {"ko": 2, "en": 2}
    for row in range(6):
        thai = languages[int(batch["languages"][row, 0])] == "th"
        assert found["ids"][row, 8:].tolist() == right["th"]
        assert not found["weights"][row, :8].any()
        wanted = float(batch["weights"][row].sum()) if thai else 0.0
        assert float(found["weights"][row].sum()) == pytest.approx(wanted)
    assert Writing(0.0, engine.tokens, languages)(engine.model, batch) is batch
    packed = {**batch, "positions": batch["ids"]}
    assert writing(engine.model, packed) is packed


def test_the_same_random_numbers_write_the_same(tiny: Path) -> None:
    engine = Engine(tiny)
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(Writing(0.5, engine.tokens, list(TEXTS))(engine.model, batch_of(engine))["ids"])
    assert torch.equal(*found)
