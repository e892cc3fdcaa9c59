"""Architectures by their structure: nothing of onggi names one of these, and each goes through whole."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from layouts import compressed, tensors
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.quantize import passes
from onggi.stages import QuantizeConfig, quantize

COMMON = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "initializer_range": 0.1,
}
KINDS = {
    "Llama": {},
    "Gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 32},
    "Gemma3Text": {"sliding_window": 16, "query_pre_attn_scalar": 32},
    "Qwen2": {},
    "Qwen3": {},
    "Mistral": {"sliding_window": 16},
    "Phi3": {},  # one matrix for query, key and value, one for gate and up
    "Phi": {"num_key_value_heads": 4},  # LayerNorm, attention and MLP side by side
    "Exaone4": {"sliding_window": 16, "sliding_window_pattern": 2},  # norms behind, none before
    "SmolLM3": {},
}
MIXTURES = {
    "Qwen3Moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 1},
}
IDS = torch.arange(2, 90).reshape(2, 44)


def made_model(kind: str, options: dict, tiny: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in tiny.glob("tokenizer*"):
        shutil.copy(file, folder)
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")(vocab_size=1024, **COMMON | options)
    AutoModelForCausalLM.from_config(made).to(torch.bfloat16).save_pretrained(folder)
    return folder


def config(model: Path, **options) -> QuantizeConfig:
    return QuantizeConfig(
        **{
            "model": str(model),
            "text": "starter",
            "languages": Languages("en,ko,km"),
            "tokens": 400,
            **options,
        }
    )


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for parameter in model.parameters():  # experts come in bf16 whatever one asks for
        if parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_goes_through_whole(kind: str, tiny: Path, tmp_path: Path) -> None:
    # Scales that move between modules ask more of the structure than error feedback does.
    options = {"method": "awq"} if kind in ("Gemma2", "Qwen2", "Phi3", "Phi", "Exaone4") else {}
    folder = made_model(kind, KINDS[kind], tiny, tmp_path / "model")
    made = quantize(config(folder, **options), tmp_path / "w4")
    weights = compressed(made.path, 4)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    stored = tensors(made.path)
    linears = [n for n, m in expected.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    assert set(weights) == {f"{name}.weight" for name in linears}
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            parameter.copy_(weights[name] if name in weights else stored.get(name, parameter))
        wanted = expected(IDS).logits
    torch.testing.assert_close(logits(made.path), wanted, rtol=0, atol=2e-3)
    # What AWQ moved out of the norms it moved into the matrices: the model is still the model.
    original = logits(folder)
    p, q = original.log_softmax(-1), wanted.log_softmax(-1)
    assert float((p.exp() * (p - q)).sum(-1).mean()) < 0.5


@pytest.mark.parametrize(("kind", "scheme", "bits"), [("Qwen3Moe", "w4a16-g128", 4), ("Mixtral", "w8a16", 8)])
def test_a_mixture_of_experts_is_quantised_expert_by_expert(
    kind: str, scheme: str, bits: int, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made_model(kind, MIXTURES[kind], tiny, tmp_path / "model")
    made = quantize(config(folder, scheme=scheme), tmp_path / "made")
    assert "a router" in capsys.readouterr().err
    weights = compressed(made.path, bits)
    experts = [name for name in weights if ".experts." in name]
    count = MIXTURES[kind].get("num_experts") or MIXTURES[kind]["num_local_experts"]
    assert len(experts) == 2 * count * 3
    # The same weights, unpacked, in the original's place.
    plain = tmp_path / "plain"
    shutil.copytree(folder, plain)
    # transformers unpacks experts in their scales' own type.
    weights = {k: v.bfloat16().float() if ".experts." in k else v for k, v in weights.items()}
    stored = tensors(plain)
    assert set(weights) <= set(stored)
    save_file(
        {k: weights.get(k, v.float()).contiguous() for k, v in stored.items()},
        plain / "model.safetensors",
        {"format": "pt"},
    )
    torch.testing.assert_close(logits(made.path), logits(plain), rtol=0, atol=2e-3)
    layers = json.loads((made.path / "onggi.json").read_text())["layers"]
    reached = [layer for layer in layers if ".experts." in layer["name"] and layer["tokens"]]
    assert reached and all(layer["error"] <= layer["rounding_error"] for layer in reached)


def test_experts_in_batches_see_the_same_tokens(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made_model("Qwen3Moe", MIXTURES["Qwen3Moe"], tiny, tmp_path / "model")
    options = {"precision": "fp32", "tokens": 1200}
    whole = quantize(config(folder, **options), tmp_path / "whole")
    monkeypatch.setattr(passes, "batches", lambda n, *_, **__: [slice(i, i + 1) for i in range(n)])
    monkeypatch.setattr(passes, "_EXPERTS", 3 * 128**2)  # three experts at a time
    made = quantize(config(folder, **options), tmp_path / "batches")
    first, second = (
        {
            layer["name"]: (layer["tokens"], layer["error"])
            for layer in json.loads((folder / "onggi.json").read_text())["layers"]
            if ".layers.0." in layer["name"]
        }
        for folder in (whole.path, made.path)
    )
    assert set(first) == set(second)
    for name, (tokens, error) in first.items():
        assert second[name][0] == tokens and second[name][1] == pytest.approx(error, rel=0.05), name


def test_experts_that_a_checkpoint_holds_in_one_piece_stay_and_are_named(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made_model("Qwen3Moe", MIXTURES["Qwen3Moe"], tiny, tmp_path / "model")
    stored = tensors(folder)
    for place in ("model.layers.0.mlp.experts", "model.layers.1.mlp.experts"):
        parts = {
            leaf: torch.stack([stored.pop(f"{place}.{i}.{leaf}.weight") for i in range(8)])
            for leaf in ("gate_proj", "up_proj", "down_proj")
        }
        stored[f"{place}.gate_up_proj"] = torch.cat([parts["gate_proj"], parts["up_proj"]], dim=1)
        stored[f"{place}.down_proj"] = parts["down_proj"]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    made = quantize(config(folder), tmp_path / "w4")
    assert "mlp.experts.gate_up_proj stays as it is in 2 layers" in capsys.readouterr().err
    assert not [name for name in compressed(made.path, 4) if "experts" in name]
    assert bool(torch.isfinite(logits(made.path)).all())


def test_experts_that_no_token_reached_are_rounded_and_said(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**MIXTURES["Qwen3Moe"], "num_experts": 64, "num_experts_per_tok": 1}
    folder = made_model("Qwen3Moe", options, tiny, tmp_path / "model")
    made = quantize(config(folder, tokens=30), tmp_path / "w4")
    assert "never reached" in capsys.readouterr().err
    layers = json.loads((made.path / "onggi.json").read_text())["layers"]
    silent = [layer for layer in layers if layer["tokens"] == 0]
    assert silent and all(".experts." in layer["name"] for layer in silent)
    weights, original = compressed(made.path, 4), tensors(folder)
    for layer in silent[:9]:
        name = f"{layer['name']}.weight"
        assert float((weights[name] - original[name].float()).norm() / original[name].float().norm()) < 0.2


def test_awq_says_that_it_has_no_scales_for_experts(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made_model("Qwen3Moe", MIXTURES["Qwen3Moe"], tiny, tmp_path / "model")
    quantize(config(folder, method="awq"), tmp_path / "w4")
    assert "no scales for a mixture's experts: 48 matrices (first: model.layers.0" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16-g128-asym"])
def test_schemes_that_fused_experts_cannot_compute_are_refused(
    scheme: str, tiny: Path, tmp_path: Path
) -> None:
    folder = made_model("Qwen3Moe", MIXTURES["Qwen3Moe"], tiny, tmp_path / "model")
    with pytest.raises(OnggiError, match=r"experts\.0\.gate_proj.*does not work"):
        quantize(config(folder, scheme=scheme), tmp_path / "out")
