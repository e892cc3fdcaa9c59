"""reshape from the command line to a folder that loads, and what it says of each language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from onggi.cli import main
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.models import references
from onggi.models.reshape import shape
from onggi.stages import ReshapeConfig, reshape
from onggi.stages import reshape as stage_function

TEXT = {"text": "starter", "languages": Languages("ko,el,km"), "tokens": 768}


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "stage.json"}


@pytest.mark.parametrize("model", ["tiny", "tiny_gemma"])
def test_all_changes_at_once(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source, out = request.getfixturevalue(model), tmp_path / "작은 것"
    options = ["--layers", "2", "--heads", "2", "--mlp", "192", "--width", "96", "--keep-languages", "ko,el"]
    words = ["reshape", str(source), *options, "--languages", "ko,el,km", "--text", "starter"]
    assert main([*words, "--tokens", "512", "--words", "none", "--out", str(out), "--quiet"]) == 0
    loaded, loading = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    config = loaded.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (2, 2, 1)
    assert (config.intermediate_size, config.hidden_size, config.head_dim) == (192, 96, 32)
    record = json.loads((out / "stage.json").read_text())
    assert record["parameters"]["after"] == loaded.num_parameters() < 0.5 * record["parameters"]["before"]
    assert record["bytes"]["after"] == 2 * loaded.num_parameters()
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert len(tokenizer) == config.vocab_size == record["shape"]["after"]["vocabulary"] < 1024
    ids = tokenizer("장독대 πιθάρι ពាង")["input_ids"]
    assert ids[0] == config.bos_token_id == tokenizer.bos_token_id and max(ids) < config.vocab_size
    assert tokenizer.decode(ids, skip_special_tokens=True) == "장독대 πιθάρι ពាង"
    assert torch.isfinite(loaded(torch.tensor([ids])).logits).all()
    assert set(record["loss"]["after"]) == {"ko", "el", "km"}
    growth = record["vocabulary"]["tokens_on_probe"]
    assert growth["ko"] < 1.05 < 1.5 < growth["km"]  # Khmer was read, and not kept
    kept = json.loads((out / "kept.json").read_text())
    assert len(kept["layers"]) == 2 and len(kept["columns"][0]) == 192 and len(kept["width"]) == 96
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "Nats for a passage held out" in card and "Khmer ×" in card and "- el" in card
    assert references.about(out)["base"]["source"] == str(source)


def test_a_cut_vocabulary_loses_its_own_languages_nothing(tiny_gemma: Path, tmp_path: Path) -> None:
    trimmed = reshape(
        ReshapeConfig(
            str(tiny_gemma), keep_languages=Languages("ko,el,km"), coverage=1.0, words="none", text="starter"
        ),
        tmp_path / "trimmed",
    )
    before, after = (trimmed.record["loss"][side] for side in ("before", "after"))
    # What the lost tokens had of the likelihood is the others' now.
    assert all(after[tag] < before[tag] for tag in ("ko", "el", "km"))
    lines = (trimmed.path / "retokenised.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines:
        assert {"language", "from", "word", "before", "after"} <= json.loads(line).keys()
    same = trimmed.record["vocabulary"]["same"]
    assert all(share["text held out"] > 0.97 for share in same.values())
    assert trimmed.record["shape"]["after"]["layers"] == 4


def test_deeper_without_text(tiny_gemma: Path, tmp_path: Path) -> None:
    made = reshape(ReshapeConfig(str(tiny_gemma), deepen=7), tmp_path / "깊은 것")
    config = AutoModelForCausalLM.from_pretrained(made.path).config
    full = "full_attention"
    assert [kind == full for kind in config.layer_types] == [0, 0, 0, 1, 0, 0, 1]
    assert made.record["loss"] is None and made.record["layers"] == [0, 1, 2, 3, 1, 2, 3]
    assert config.num_hidden_layers == 7


def test_a_killed_run_ends_in_the_same_bytes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ReshapeConfig(
        str(tiny), layers=2, mlp=200, keep_languages=Languages("ko,el"), words="none", **TEXT
    )
    whole = outputs(reshape(config, tmp_path / "whole").path)
    real = shape.tensors

    def killed(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(shape, "tensors", killed)
    with pytest.raises(KeyboardInterrupt):
        reshape(config, tmp_path / "again")
    monkeypatch.setattr(shape, "tensors", real)
    # What was chosen is not chosen again.
    monkeypatch.setattr("onggi.models.reshape.importance.measure", killed)
    assert outputs(reshape(config, tmp_path / "again").path) == whole
    assert stage_function(config, tmp_path / "again").path == tmp_path / "again"  # nothing left to do


def test_naive_is_by_place(tiny: Path, tmp_path: Path) -> None:
    made = reshape(ReshapeConfig(str(tiny), layers=2, mlp=64, choice="naive"), tmp_path / "out")
    kept = json.loads((made.path / "kept.json").read_text())
    assert kept["layers"] == [0, 2] and kept["columns"] == [list(range(64))] * 3


def test_the_plan_is_what_is_made(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reshape", str(tiny), "--layers", "2", "--heads", "2", "--keep-languages", "ko,el,km"]
    words += ["--text", "starter", "--out", str(tmp_path / "out"), "--quiet", "--tokens", "512"]
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(words) == 0
    record = json.loads((tmp_path / "out" / "stage.json").read_text())
    assert f"→ {record['parameters']['after']:,} (" in said and f"→ {record['bytes']['after']:,} (" in said
    assert "layers: 3 → 2" in said and "kv_heads: 2 → 1" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "reshape: nothing to change; name --layers"),
        ({"layers": 2, "deepen": 5}, "deepen: goes one way and --layers the other"),
        ({"layers": 2}, "text: what is kept is chosen by text"),
        ({"keep_languages": Languages("ko"), "choice": "naive"}, "text: what is kept is chosen by text"),
        ({"layers": 2, "text": "probe"}, "text: the probe is for measuring"),
        ({"layers": 2, "text": "starter", "coverage": 1.5}, "coverage: 1.5 is not a share"),
        ({"layers": 2, "text": "starter", "tokens": 0}, "tokens: 0 is not a number"),
        ({"layers": 4, "choice": "naive"}, "layers: 4 cannot be kept of 3"),
        ({"layers": 0, "choice": "naive"}, "layers: 0 cannot be kept of 3"),
        ({"heads": 3, "choice": "naive"}, "heads: 3 do not divide over 2 key-value heads"),
        ({"deepen": 3}, "deepen: 3 layers cannot be made of two copies of 3; from 4 to 6 can."),
        (
            {"width": 98, "heads": 4, "choice": "naive"},
            "transformers refuses this shape: The hidden size (98)",
        ),
        (
            {"keep_languages": Languages("ko,el"), "languages": Languages("el,km"), "text": "starter"},
            "languages: lack ko, which --keep_languages names",
        ),
    ],
)
def test_what_cannot_be_is_said_before_the_work(
    options: dict[str, Any], said: str, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(OnggiError) as error:
        reshape(ReshapeConfig(str(tiny), **options), tmp_path / "out")
    assert str(error.value).startswith(said)
