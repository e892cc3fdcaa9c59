"""A folder becomes an engine: what is refused, and what variants of one model share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from onggi.engines.transformers import Engine
from onggi.errors import OnggiError

TEXTS = ["물이 끓는다", "Water boils", "ទឹកពុះ", "الماء يغلي"]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_no_number_is_refused(bad: float, tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "bad"))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    # Of a token that the engine's own trial does not meet.
    tensors["model.embed_tokens.weight"][1000, 5] = bad
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(OnggiError, match=r"embed_tokens\.weight holds NaN or infinite"):
        Engine(folder)


def test_variants_of_a_model_share_its_tokenizer(tiny: Path, tmp_path: Path) -> None:
    first = Engine(tiny)
    variant = Path(shutil.copytree(tiny, tmp_path / "variant"))
    assert Engine(variant).tokens is first.tokens
    # The same tokenizer.json, another start token: another tokenizer.
    config = variant / "tokenizer_config.json"
    said = json.loads(config.read_text(encoding="utf-8"))
    said["bos_token"] = "</s>"
    config.write_text(json.dumps(said), encoding="utf-8")
    other = Engine(variant).tokens
    assert other is not first.tokens
    # The first again, loaded anew, is what it was.
    again = Engine(tiny).tokens
    assert again is not first.tokens
    for text in TEXTS:
        assert again.encode(text) == first.tokens.encode(text)
    assert (again.prefix, again.starts) == (first.tokens.prefix, first.tokens.starts)
