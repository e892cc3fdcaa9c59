"""Likelihoods computed together equal those of each sequence alone, whatever the architecture."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import save_model
from onggi.engines.scoring import Scorer, encode, fit
from onggi.engines.transformers import Engine
from onggi.errors import OnggiError
from onggi.head import Head


def naive(engine: Engine, ids: list[int], start: int) -> tuple[float, bool]:
    with torch.no_grad():
        logits = engine.model(torch.tensor([ids[:-1]]), use_cache=False).logits[0].float()
    logs = logits.log_softmax(-1)[start - 1 :]
    targets = torch.tensor(ids[start:])
    return float(logs.gather(1, targets[:, None]).sum()), bool((logs.argmax(-1) == targets).all())


def scorer(engine: Engine) -> Scorer:
    return Scorer(engine.body, engine.head, engine.model.config, engine.device)


def trees(vocabulary: int, length: int) -> list[tuple[list[int], int]]:
    """Shots, questions and choices, as ids; longer than the windows of the tiny Gemma."""
    draw = random.Random(0)
    shots = [0, *(draw.randrange(2, vocabulary) for _ in range(length))]
    found = []
    for _ in range(9):
        question = [*shots, *(draw.randrange(2, vocabulary) for _ in range(draw.randrange(3, 20)))]
        for _ in range(4):
            choice = [draw.randrange(2, vocabulary) for _ in range(draw.randrange(1, 5))]
            found.append(([*question, *choice], len(question)))
    found.append((shots, 1))
    found.append(([0, 5], 2))
    return found


KINDS: dict[str, dict[str, Any]] = {
    "Llama": {"num_hidden_layers": 2, "tie_word_embeddings": False},
    "Qwen3": {"num_hidden_layers": 2, "head_dim": 32},
    "Mistral": {"num_hidden_layers": 2, "sliding_window": 16, "head_dim": 32},
    "Gemma3Text": {
        "num_hidden_layers": 4,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_together_as_alone(kind: str, tmp_path: Path) -> None:
    engine = Engine(save_model(tmp_path / "model", kind, **KINDS[kind]))
    own = scorer(engine)
    assert own._mask == ("one" if kind in ("Llama", "Mistral") else "each")
    sequences = trees(engine.head.vocabulary, 70)
    for pack in (24, 512):
        found = dict(own.score(sequences, pack, 8))
        assert sorted(found) == list(range(len(sequences)))
        for i, (ids, start) in enumerate(sequences[:-1]):
            logprob, greedy = naive(engine, ids, start)
            assert found[i].logprob == pytest.approx(logprob, abs=1e-3)
            assert (found[i].tokens, found[i].greedy) == (len(ids) - start, greedy)
        assert found[len(sequences) - 1].tokens == 0


def test_the_trial_leaves_the_whole_head_and_needs_but_a_part(tiny: Path) -> None:
    engine = Engine(tiny)
    vocabulary: list[int] = []

    class Counted(Head):
        def logits(self, *given: Any, **options: Any) -> torch.Tensor:
            vocabulary.append(self.vocabulary)
            return super().logits(*given, **options)

        def part(self, count: int) -> Head:
            assert count < 10_000
            return Counted(self.weight[:40])

    head = Counted(engine.head.weight)
    own = Scorer(engine.body, head, engine.model.config, engine.device)
    assert own._mask == "one" and own.head is head
    assert set(vocabulary) == {40}


def test_a_model_that_takes_no_such_mask_is_scored_one_by_one(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tiny)
    body = engine.body

    def deaf(input_ids: Any, use_cache: bool, **rest: Any) -> Any:
        """As an architecture that puts its own mask in the given one's place."""
        rest.pop("attention_mask", None)
        return body(input_ids=input_ids, use_cache=use_cache, **rest)

    own = Scorer(deaf, engine.head, engine.model.config, engine.device)
    assert own._mask is None
    sequences = trees(engine.head.vocabulary, 12)[:6]
    for i, scored in own.score(sequences):
        assert scored.logprob == pytest.approx(naive(engine, *sequences[i])[0], abs=1e-3)


PAIRS = [
    ("대한민국의 수도는", " 서울"),
    ("대한민국의 수도는 ", "부산"),
    ("เมืองหลวงของไทยคือ", "กรุงเทพ"),
    ("عاصمة مصر هي", " القاهرة"),
    ("", "Paris is"),
    ("one two", ""),
    ("e\u0301", "\u0301"),
]


def test_pairs_are_split_where_the_context_ends(tiny: Path) -> None:
    tokens = Engine(tiny).tokens
    for (context, continuation), (ids, start) in zip(PAIRS, encode(tokens, PAIRS), strict=True):
        assert ids == [tokens.prefix, *tokens.encode(context + continuation)]
        assert ids[1:start] == tokens.encode(context.rstrip())
    assert encode(tokens, [("", "a")])[0][1] == 1


def test_the_engine_scores_text(tiny_gemma: Path) -> None:
    engine = Engine(tiny_gemma)
    found = dict(engine.score(PAIRS))
    for i, (ids, start) in enumerate(encode(engine.tokens, PAIRS)):
        assert found[i].tokens == len(ids) - start
        if found[i].tokens:
            assert found[i].logprob == pytest.approx(naive(engine, ids, start)[0], abs=1e-3)


def test_too_long_for_the_window() -> None:
    assert fit([0, 1, 2, 3, 4, 5], 4, 5) == ([0, 1, 2, 3, 4, 5], 4)
    assert fit([0, 1, 2, 3, 4, 5], 4, 3) == ([0, 3, 4, 5], 2)
    with pytest.raises(OnggiError, match="exceeds the window of 1"):
        fit([0, 1, 2, 3, 4, 5], 4, 1)
