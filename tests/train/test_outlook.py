"""What a training is going to take: the arithmetic against known models, and what is said of the numbers."""

from __future__ import annotations

import time

import pytest
import torch

from onggi.train import outlook

# SmolLM2-135M and Llama 3 8B, by their configs.
SMOL = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
LLAMA = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


def test_arithmetic_of_known_models() -> None:
    small = outlook.shape(SMOL, 134_515_008)
    assert small.multiplied == small.parameters and small.attention == 576
    large = outlook.shape(LLAMA, 8_030_261_248)
    assert large.multiplied == 8_030_261_248 - 128256 * 4096
    # PaLM's appendix B: 6N and 12LHQT.
    assert outlook.arithmetic(large, 8192) == 6 * large.multiplied + 12 * 32 * 4096 * 8192
    # A text model inside another config, and heads wider than the width over their number (Gemma 3 270M).
    inner = {**SMOL, "hidden_size": 640, "num_attention_heads": 4, "head_dim": 256}
    assert outlook.shape({"text_config": inner}, 268_098_176).attention == 1024


def test_memory_counts_weights_four_times_and_what_is_kept() -> None:
    small = outlook.shape(SMOL, 134_515_008)
    whole = outlook.memory(small, 4096, False, torch.float32)
    less = outlook.memory(small, 4096, True, torch.float32)
    assert 16 * small.parameters < less < whole
    assert outlook.memory(small, 1024, False, torch.float32) < whole


def test_hours_on_named_gpus() -> None:
    small, large = outlook.shape(SMOL, 134_515_008), outlook.shape(LLAMA, 8_030_261_248)
    hours = outlook.hours(1e18, large)
    assert hours["A100"] == pytest.approx(1e18 / (312e12 * 0.35) / 3600)
    assert hours["H100"] < hours["A100"] < hours["L4"] and outlook.hours(1e18, small)["A100"] > hours["A100"]


def test_a_step_is_timed_without_its_first() -> None:
    calls: list[int] = []

    def step() -> torch.Tensor:
        calls.append(1)
        time.sleep(0.2 if len(calls) == 1 else 0.005)
        return torch.ones(1, requires_grad=True).sum()

    assert outlook.seconds(step, budget=0.05) == pytest.approx(0.006, abs=0.004)


@pytest.mark.parametrize(
    ("parameters", "tokens", "unique", "new", "said"),
    [
        (
            8_000_000,
            5_000_000,
            5_000_000,
            True,
            ["0.6 tokens a parameter are few", "160,000,000", "read once, 100%"],
        ),
        (
            8_000_000,
            160_000_000,
            80_000_000,
            True,
            ["about what makes the most", "2.0 times, which is worth nearly"],
        ),
        (8_000_000, 800_000_000, 100_000_000, True, ["more than makes the most", "8.0 times: beyond 4"]),
        (8_000_000, 1_000_000, 50_000, False, ["20.0 times: beyond 16 it teaches nothing"]),
    ],
)
def test_whether_it_makes_sense(
    parameters: int, tokens: int, unique: int, new: bool, said: list[str]
) -> None:
    found = outlook.judged(parameters, tokens, unique, new)
    assert len(found) == (2 if new else 1)
    for words in said:
        assert any(words in sentence for sentence in found), (words, found)
