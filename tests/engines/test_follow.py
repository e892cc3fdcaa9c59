"""Generation is transformers' own, token for token; only the loop is ours."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from onggi.engines.generation import choose
from onggi.engines.transformers import Engine
from onggi.errors import OnggiError

PROMPTS = ["The bus is late today, so", "버스가 늦어서 회의에", "الحافلة متأخرة 🌧", "រថយន្តក្រុងយឺត"]


def theirs(engine: Engine, ids: list[int], count: int, ends: list[int] | None = None) -> list[int]:
    batch = torch.tensor([ids], device=engine.device)
    made = engine.model.generate(
        batch,
        attention_mask=torch.ones_like(batch),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=0,
    )
    return [int(token) for token in made[0, len(ids) :]]


@pytest.mark.parametrize("model", ["tiny", "tiny_gemma"])
def test_greedy_as_transformers(model: str, request: pytest.FixtureRequest) -> None:
    engine = Engine(request.getfixturevalue(model))
    engine.ends = frozenset()
    # A random model of tied embeddings repeats its last token for ever, which any mistake would pass.
    mixed = engine.head.weight[torch.randperm(1024, generator=torch.Generator().manual_seed(0))]
    engine.head = dataclasses.replace(engine.head, weight=mixed)
    engine.model.lm_head.weight = torch.nn.Parameter(mixed)
    engine.model.generation_config.eos_token_id = None
    for prompt in PROMPTS:
        ids = [engine.tokens.prefix, *engine.tokens.encode(prompt)]
        ours = list(engine.follow(ids, 40))  # past the tiny Gemma's window of 16
        assert ours == theirs(engine, ids, 40)
        assert len(ours) == 40 and len(set(ours)) > 20


def test_ends_before_an_end_token(tiny: Path) -> None:
    engine = Engine(tiny)
    ids = [engine.tokens.prefix, *engine.tokens.encode(PROMPTS[1])]
    engine.ends = frozenset()
    whole = list(engine.follow(ids, 12))
    end = whole[5]
    engine.ends = frozenset({end})
    ours = list(engine.follow(ids, 12))
    assert ours == whole[: whole.index(end)]
    assert theirs(engine, ids, 12, [end]) == [*ours, end]


def test_ends_of_config_and_of_a_turn(tiny: Path, tmp_path: Path) -> None:
    assert Engine(tiny).ends == {1}
    folder = shutil.copytree(tiny, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert Engine(folder).ends == {1, 7, 9}
    for file in ("config.json", "generation_config.json"):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, "eos_token_id": None}))
    assert Engine(folder).ends == frozenset()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_text((folder / file).read_text().replace("</s>", "<end_of_turn>"))
    assert Engine(folder).ends == {1}


def test_the_window(tiny: Path) -> None:
    engine = Engine(tiny)
    engine.ends = frozenset()
    assert engine.window == 2048
    assert len(list(engine.follow([5] * 2045, 10))) == 3
    with pytest.raises(OnggiError, match="2048 tokens, which leave no room in the window of 2048"):
        engine.follow([5] * 2048, 10)
    with pytest.raises(OnggiError, match="no tokens"):
        engine.follow([], 10)


def test_the_seed_draws_the_same_again(tiny: Path) -> None:
    engine = Engine(tiny)
    ids = [engine.tokens.prefix, *engine.tokens.encode(PROMPTS[3])]
    draw = lambda **how: list(engine.follow(ids, 16, **how))  # noqa: E731
    assert draw(temperature=1.0, seed=3) == draw(temperature=1.0, seed=3)
    assert draw(temperature=1.0, seed=3) != draw(temperature=1.0, seed=4)
    assert draw(temperature=1.0, top_p=1e-6) == draw()


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (1.0, 0.7, [0.625, 0.375, 0, 0]),
        (0.5, 1.0, [0.6849, 0.2466, 0.0616, 0.0068]),  # squares, over their sum
        (2.0, 0.01, [1, 0, 0, 0]),
    ],
)
def test_draws_from_the_distribution(temperature: float, top_p: float, expected: list[float]) -> None:
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()
    draw = torch.Generator().manual_seed(0)
    count = 4000
    drawn = Counter(choose(logits, temperature, top_p, draw) for _ in range(count))
    for token, share in zip([1, 3, 0, 2], expected, strict=True):
        four_sigma = 4 * (share * (1 - share) / count) ** 0.5
        assert abs(drawn[token] / count - share) <= four_sigma + 1e-4


def test_a_long_flat_tail_is_drawn_from_as_well() -> None:
    """More lies far below the likeliest token than near it: the first look at those near it is not enough."""
    logits = torch.full((300_000,), -13.0)
    logits[7] = 0
    draw = torch.Generator().manual_seed(0)
    drawn = Counter(choose(logits, 1.0, 0.99, draw) for _ in range(40))
    expected = 1 / (1 + 300_000 * math.exp(-13)) / 0.99
    assert abs(drawn[7] / 40 - expected) < 4 * (expected * (1 - expected) / 40) ** 0.5
    assert len(drawn) == 41 - drawn[7]
