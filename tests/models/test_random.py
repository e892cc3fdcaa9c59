"""Random starts: the rules of the dial, and weights that are sound and the same each time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from conftest import save_tokenizer
from onggi.engines.transformers import Engine
from onggi.errors import OnggiError
from onggi.head import score
from onggi.models import random
from onggi.models.reshape import shape


@pytest.mark.parametrize(
    ("size", "vocabulary"),
    [
        ("1m", 2000),
        ("8m", 16000),
        ("15m", 16000),
        ("60m", 32000),
        ("125m", 49152),
        ("350m", 64000),
        ("1b", 32000),
    ],
)
def test_the_dial_follows_its_rules(size: str, vocabulary: int) -> None:
    config = random.configuration(size, vocabulary)
    wanted = random.parameters(size)
    assert abs(shape.parameters(config) / wanted - 1) <= 0.05
    assert config.hidden_size % 64 == 0 and config.intermediate_size % 64 == 0
    assert 8 / 3 <= config.intermediate_size / config.hidden_size < 8 / 3 + 64 / config.hidden_size
    assert config.head_dim == (32 if config.hidden_size < 512 else 64)
    assert config.num_attention_heads * config.head_dim == config.hidden_size
    assert config.num_attention_heads % config.num_key_value_heads == 0
    assert config.num_key_value_heads == 1 or config.num_key_value_heads * 3 <= config.num_attention_heads
    assert 10 < config.hidden_size / config.num_hidden_layers < 64
    assert config.tie_word_embeddings


def test_sizes_beside_known_models() -> None:
    assert random.parameters("1.5M") == 1_500_000
    small = random.configuration("8m", 16000)
    assert (small.hidden_size, small.num_hidden_layers, small.num_key_value_heads) == (256, 6, 2)
    assert not random.configuration("2b", 64000).tie_word_embeddings


def test_the_course_s_model_has_the_course_s_parameters() -> None:
    assert shape.parameters(course()) == 248_013_824


def course(layers: int = 12) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
    )


@pytest.mark.parametrize("size", ["", "8", "8 mb", "-8m", "0m", "팔m", "nanm"])
def test_what_is_no_size(size: str) -> None:
    with pytest.raises(OnggiError, match="is not a size; write 8m"):
        random.parameters(size)


def test_a_vocabulary_too_large_for_the_size() -> None:
    with pytest.raises(OnggiError, match="a vocabulary of 262,144 tokens leaves no room"):
        random.configuration("8m", 262_144)


def test_a_start_is_flat_in_every_script_and_the_same_each_time(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    for folder, seed in ((one, 7), (two, 7), (other, 8)):
        vocabulary = save_tokenizer(folder)
        random.initialise(random.configuration("1m", vocabulary, length=256, bos=0, eos=1), seed, folder)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (one, two, other)]
    assert weights[0] == weights[1] != weights[2]
    model = AutoModelForCausalLM.from_pretrained(one)
    assert model.dtype == torch.float32 and model.generation_config.eos_token_id == 1
    layer = model.model.layers[0]
    spread, depth = model.config.initializer_range, model.config.num_hidden_layers
    assert math.isclose(float(layer.mlp.up_proj.weight.std()), spread, rel_tol=0.05)
    assert math.isclose(float(layer.mlp.down_proj.weight.std()), spread / math.sqrt(2 * depth), rel_tol=0.05)
    assert bool((layer.input_layernorm.weight == 1).all())
    engine = Engine(one)
    for text in ("장독대에 볕이 든다", "the jars stand in the sun", "ក្រឡ​ស្ថិត​ក្រោម​ព្រះអាទិត្យ", "الجرار في الشمس"):
        [(states, ids)] = engine.states([text])
        nats = float(score(states, engine.head, ids).nll.mean())
        assert abs(nats - math.log(vocabulary)) < 0.5  # knows nothing, and is not sure of it either
