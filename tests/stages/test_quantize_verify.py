"""A GGUF in llama.cpp against what was written: it passes what is sound and sees what is not."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xllamacpp")

from gguf import GGMLQuantizationType as GridType
from safetensors.torch import load_file, save_file

from gguf_families import TEXTS, TINY
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.models import gguf
from onggi.stages import QuantizeConfig, quantize, quantize_verify

PASSAGES = {tag: [TEXTS[tag]] for tag in ("ko", "en", "km", "ar")}


def write(path: Path, family: str, grid: GridType = GridType.Q8_0) -> Path:
    import dataclasses

    return dataclasses.replace(TINY[family], grid=grid).write(path)


@pytest.mark.parametrize(("family", "grid"), [("gemma3", GridType.Q8_0), ("llama", GridType.Q4_0)])
def test_a_sound_file_passes(family: str, grid: GridType, tmp_path: Path) -> None:
    found = quantize_verify.verify(write(tmp_path / "옹기.gguf", family, grid), tmp_path / "work", PASSAGES)
    assert found["kl"].keys() == PASSAGES.keys() and found["positions"] == 8 * 4
    assert 0 <= found["mean"] < 0.02
    assert found["written"].keys() == {"ko", "en", "km"}
    assert not list((tmp_path / "work").iterdir())


def spoil(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """What is compared with is another model than the file's."""
    whole = gguf.convert

    def convert(path: Path, out: Path) -> None:
        whole(path, out)
        weights = load_file(out / "model.safetensors")
        change(weights)
        save_file(weights, out / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(gguf, "convert", convert)


def rows_in_another_order(weights: dict[str, Any]) -> None:
    for name in weights:
        if "q_proj" in name or "k_proj" in name:
            weights[name] = weights[name].flip(0).contiguous()


def a_norm_as_stored(weights: dict[str, Any]) -> None:
    for name in weights:
        if name.endswith("layernorm.weight"):
            weights[name] = weights[name] + 1


@pytest.mark.parametrize("change", [rows_in_another_order, a_norm_as_stored])
def test_another_model_is_seen(change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, change)
    with pytest.raises(
        OnggiError, match=r"옹기\.gguf: llama\.cpp predicts otherwise .* The file is not sound"
    ):
        quantize_verify.verify(write(tmp_path / "옹기.gguf", "gemma3"), tmp_path / "work", PASSAGES)
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("change", [rows_in_another_order, a_norm_as_stored])
def test_a_file_of_another_model_is_seen(change: Any, tmp_path: Path) -> None:
    path, source = write(tmp_path / "옹기.gguf", "llama"), tmp_path / "source"
    source.mkdir()
    gguf.convert(path, source)
    quantize_verify.verify(path, tmp_path / "work", PASSAGES, source=source)
    weights = load_file(source / "model.safetensors")
    change(weights)
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(OnggiError, match=r"옹기\.gguf: .* is off by \d\.\d\d of itself, more than rounding"):
        quantize_verify.verify(path, tmp_path / "work", PASSAGES, source=source)


def test_other_tokens_are_seen(tmp_path: Path) -> None:
    # Qwen's own tokenizer composes Hangul from its letters; llama.cpp leaves that to whoever calls it.
    apart = {"en": PASSAGES["en"], "ko": [unicodedata.normalize("NFD", TEXTS["ko"])]}
    with pytest.raises(
        OnggiError, match=r"\(ko\) into other tokens than the model's own tokenizer, from the"
    ):
        quantize_verify.verify(write(tmp_path / "x.gguf", "qwen2"), tmp_path / "work", apart)


def test_onggi_quantize_verifies_before_it_is_done(tiny: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"text": "starter", "languages": Languages("en,ko,km"), "tokens": 300}
    made = quantize(QuantizeConfig(str(tiny), format="gguf:Q8_0", verify=True, **options), tmp_path / "made")
    about = json.loads((made.path / "onggi.json").read_text())
    assert about["verified"]["mean"] <= about["verified"]["tolerance"] and len(about["verified"]["kl"]) == 12
    with pytest.raises(OnggiError, match=r"verify: runs a GGUF in llama\.cpp, and --format is gptq"):
        QuantizeConfig(str(tiny), format="gptq", verify=True, **options)
