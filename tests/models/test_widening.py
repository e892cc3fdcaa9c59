"""New rows are the mean of those they stand for; all else is as it was, tied heads or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from onggi.errors import OnggiError
from onggi.models.checkpoint import Checkpoint
from onggi.models.widening import widen, with_vocabulary

MADE_OF = [[3, 4], [7], [3, 4, 7, 9]]


@pytest.mark.parametrize("name", ["tiny", "tiny_gemma"])
def test_rows_are_means(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(name)
    source = Checkpoint(folder)
    size = source.config["vocab_size"]
    assert widen(source, MADE_OF, size, tmp_path / "model.safetensors") == size + 3
    config = with_vocabulary(source.config, size + 3)
    (tmp_path / "config.json").write_text(json.dumps(config))
    old, new = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert old.keys() == new.keys()
    tables = [key for key in old if old[key].shape[0] == size]
    assert len(tables) == (2 if name == "tiny" else 1)
    for key in old:
        assert torch.equal(new[key][: len(old[key])], old[key])
        if key in tables:
            for row, pieces in zip(new[key][size:], MADE_OF, strict=True):
                assert torch.equal(row, old[key][pieces].float().mean(0).to(row.dtype))
    before, after = (
        AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)(
            torch.tensor([[5, 6, 7, 8]]), output_hidden_states=True
        )
        for place in (folder, tmp_path)
    )
    assert torch.equal(before.hidden_states[-1], after.hidden_states[-1])
    # The head's rows are the same (above), but a product of another width may be summed in another order.
    torch.testing.assert_close(after.logits[..., :size], before.logits, rtol=1e-5, atol=1e-5)


def test_rows_that_were_only_padding_are_used(tiny: Path, tmp_path: Path) -> None:
    source = Checkpoint(tiny)
    size = source.config["vocab_size"]
    assert widen(source, MADE_OF, size - 2, tmp_path / "m.safetensors") == size + 1
    assert widen(source, MADE_OF[:1], size - 2, tmp_path / "n.safetensors") == size


def test_a_quantised_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "항아리")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "x"}}))
    with pytest.raises(OnggiError, match="is quantised"):
        widen(Checkpoint(folder), MADE_OF, 1024, tmp_path / "m.safetensors")


def test_the_config_of_a_model_in_a_model() -> None:
    assert with_vocabulary({"text_config": {"vocab_size": 5, "x": 1}}, 7) == {
        "text_config": {"vocab_size": 7, "x": 1}
    }
    assert with_vocabulary({"vocab_size": 5}, 7) == {"vocab_size": 7}
