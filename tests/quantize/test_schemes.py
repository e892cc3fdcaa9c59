"""Every scheme: what is written is what plain `from_pretrained` computes with, weights and activations."""

import importlib.util
import json
import typing
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import save_model, save_outliers
from layouts import compressed, gptq, rounded_activations, tensors
from onggi.engines.transformers import Engine
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.quantize.formats import gptq as gptq_layout
from onggi.quantize.schemes import SCHEMES
from onggi.stages import QuantizeConfig, inspect, quantize

LANGUAGES = Languages("en,ko,km")
WEIGHTS = [name for name, scheme in SCHEMES.items() if scheme.grid]
IDS = torch.arange(2, 90).reshape(2, 44)


def config(model: Path, **options) -> QuantizeConfig:
    return QuantizeConfig(
        **{"model": str(model), "text": "starter", "languages": LANGUAGES, "tokens": 600, **options}
    )


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def expected(model: Path, made: Path, weights: dict[str, torch.Tensor], activations: str | None):
    """The original with the artifact's weights and norms put in, its inputs rounded by hooks of the test's own."""
    found = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    stored = tensors(made)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
            elif name in stored:
                parameter.copy_(stored[name])
    if activations:
        for name, module in found.named_modules():
            if f"{name}.weight" in weights:
                module.register_forward_pre_hook(
                    lambda _, inputs: (rounded_activations(inputs[0], activations),)
                )
    return found


def drift(reference: torch.Tensor, other: torch.Tensor) -> float:
    p, q = reference.log_softmax(-1), other.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_the_command_line_offers_the_schemes_there_are() -> None:
    hints = typing.get_type_hints(QuantizeConfig)
    assert typing.get_args(hints["scheme"]) == tuple(SCHEMES)
    module = importlib.import_module("onggi.stages.quantize")
    assert tuple(name for name, scheme in SCHEMES.items() if scheme.activations) == module.ACTIVATIONS
    assert tuple(name for name, scheme in SCHEMES.items() if scheme.grid is None) == module.LIBRARY
    assert module.GPTQ_LAYOUT == gptq_layout.SCHEMES
    for name, scheme in SCHEMES.items():
        assert module._bits(name) == pytest.approx(scheme.bits_per_weight)


@pytest.mark.parametrize("fixture", ["tiny", "tiny_gemma"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_loads_plainly_and_computes_what_is_stored(
    name: str, fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model, scheme = request.getfixturevalue(fixture), SCHEMES[name]
    made = quantize(config(model, scheme=name), tmp_path / "made")
    weights = compressed(made.path, scheme.grid.bits)
    if name.endswith("asym"):  # unpacked while it is loaded, in the scales' own type
        weights = {key: value.bfloat16().float() for key, value in weights.items()}
    layers = 3 if fixture == "tiny" else 4
    assert len(weights) == 7 * layers
    wanted = logits(expected(model, made.path, weights, scheme.activations))
    loaded = logits(AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32))
    # Rounded activations: a last bit more or less may tip a value to the next step.
    torch.testing.assert_close(loaded, wanted, rtol=0, atol=2e-2 if scheme.activations else 1e-3)
    original = logits(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))
    assert 0 < drift(original, loaded) < {2: 6, 3: 1, 4: 0.3, 8: 0.03}[scheme.grid.bits]
    if scheme.activations:
        plain = logits(expected(model, made.path, weights, None))
        assert not torch.allclose(plain, loaded, atol=1e-3), "the activations were not rounded"
        # What `onggi evaluate` measures: the body alone, with the activations rounded too.
        engine = Engine(made.path)
        with torch.no_grad():
            states = engine.body(input_ids=IDS, use_cache=False).last_hidden_state
            measured = engine.head.logits(states.reshape(-1, states.shape[-1])).reshape(wanted.shape)
        torch.testing.assert_close(measured, wanted, rtol=0, atol=2e-2)
    facts = inspect(str(made.path))
    assert facts["scheme"] == name and facts["quantization"] == facts["format"]


@pytest.mark.parametrize("fixture", ["tiny", "tiny_gemma"])
def test_bits_cost_what_they_say(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Bytes of the quantised matrices, and less damage the more of them."""
    model = request.getfixturevalue(fixture)
    original = logits(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))
    damage = {}
    for name in ("w2a16-g32", "w3a16-g128", "w4a16-g128", "w8a16"):
        made = quantize(config(model, scheme=name, method="rtn"), tmp_path / name)
        stored = {key: value for key, value in tensors(made.path).items() if "weight_" in key}
        count = sum(w.numel() for w in compressed(made.path, SCHEMES[name].grid.bits).values())
        bits = sum(v.nbytes for k, v in stored.items() if "shape" not in k) * 8 / count
        assert SCHEMES[name].bits_per_weight == pytest.approx(bits, abs=0.15)
        damage[name] = drift(
            original, logits(AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32))
        )
    assert sorted(damage, key=damage.__getitem__, reverse=True) == list(damage)


@pytest.mark.parametrize("fixture", ["tiny", "tiny_gemma"])
def test_smoothing_moves_outliers_and_helps(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A norm that gives a few channels fifty times the others' size: what SmoothQuant is for."""
    model = save_outliers(
        request.getfixturevalue(fixture), tmp_path / "model", one_plus=fixture == "tiny_gemma"
    )
    original = logits(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))
    found = {}
    for name in ("w8a8", "w8a8-smooth"):
        made = quantize(config(model, scheme=name, method="rtn"), tmp_path / name)
        found[name] = drift(
            original, logits(AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32))
        )
    layers = json.loads((tmp_path / "w8a8-smooth" / "onggi.json").read_text())["layers"]
    moved = {layer["name"].split(".")[-1]: layer["migration"] for layer in layers}
    assert moved["q_proj"] and moved["gate_proj"] and moved["o_proj"] is None
    assert found["w8a8-smooth"] < 0.6 * found["w8a8"]


@pytest.mark.parametrize("fixture", ["tiny", "tiny_gemma"])
def test_awq_loses_less_than_rounding_and_changes_nothing_else(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = save_outliers(
        request.getfixturevalue(fixture), tmp_path / "model", one_plus=fixture == "tiny_gemma"
    )
    original = logits(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))
    damage = {}
    for method in ("awq", "rtn"):
        made = quantize(config(model, method=method), tmp_path / method)
        weights = compressed(made.path, 4)
        loaded = logits(AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32))
        wanted = logits(expected(model, made.path, weights, None))
        torch.testing.assert_close(loaded, wanted, rtol=0, atol=1e-3)
        damage[method] = drift(original, loaded)
    layers = json.loads((tmp_path / "awq" / "onggi.json").read_text())["layers"]
    moved = {layer["name"].split(".")[-1]: layer["migration"] for layer in layers}
    assert moved["q_proj"] and moved["down_proj"] is not None  # a norm and a matrix took scales up
    assert damage["awq"] < (0.8 if fixture == "tiny" else 0.95) * damage["rtn"]


@pytest.mark.parametrize("name", gptq_layout.SCHEMES)
def test_the_gptq_layout_by_its_definition(name: str, tiny: Path, tmp_path: Path) -> None:
    made = quantize(config(tiny, scheme=name, format="gptq"), tmp_path / "made")
    weights = gptq(made.path, SCHEMES[name].grid.bits)
    assert len(weights) == 21
    original = tensors(tiny)
    for key, value in weights.items():
        relative = float((value - original[key].float()).norm() / original[key].float().norm())
        assert relative < (0.02 if name == "w8a16" else 0.35), key
    wanted = json.loads((made.path / "quantize_config.json").read_text())
    facts = json.loads((made.path / "config.json").read_text())["quantization_config"]
    assert wanted == facts and facts["quant_method"] == "gptq" and facts["sym"] and not facts["desc_act"]
    stored = tensors(made.path)
    assert stored["model.layers.0.mlp.up_proj.scales"].dtype == torch.float16
    assert facts["group_size"] == (SCHEMES[name].group or -1)


def test_rows_that_fill_no_word_are_refused_by_the_gptq_layout() -> None:
    from onggi.grids import Steps

    scheme = SCHEMES["w4a16"]
    with pytest.raises(OnggiError, match="odd: 7 × 64 does not fill"):
        gptq_layout.store("odd", scheme, torch.zeros(7, 64, dtype=torch.int8), Steps(torch.ones(7, 1)))


@pytest.mark.parametrize("fixture", ["tiny", "tiny_gemma"])
@pytest.mark.parametrize(
    ("embedding", "scheme", "bits"),
    [("w8", "w8a16", 8), ("w8-g128", "w8a16-g128", 8), ("w4-g32", "w4a16-g32", 4)],
)
def test_a_packed_embedding_loads_plainly_tied_or_not(
    embedding: str, scheme: str, bits: int, fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = request.getfixturevalue(fixture)
    made = quantize(config(model, scheme=scheme, method="rtn", embedding=embedding), tmp_path / "made")
    # Unpacked while they are loaded, in the scales' own type.
    weights = {key: value.bfloat16().float() for key, value in compressed(made.path, bits).items()}
    outer = (
        {"model.embed_tokens.weight", "lm_head.weight"}
        if fixture == "tiny"
        else {"model.embed_tokens.weight"}
    )
    assert outer < set(weights)
    loaded = logits(AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32))
    torch.testing.assert_close(loaded, logits(expected(model, made.path, weights, None)), rtol=0, atol=1e-3)
    engine = Engine(made.path)
    with torch.no_grad():
        states = engine.body(input_ids=IDS, use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(engine.head.logits(states), loaded[0], rtol=0, atol=1e-3)
    assert inspect(str(made.path))["embedding"] == embedding


@pytest.mark.parametrize(
    ("options", "group"), [({"scheme": "w4a16-g128-asym"}, 64), ({"format": "gptq"}, 64)]
)
def test_layouts_with_one_group_for_all_take_the_one_that_fits_all(
    options: dict, group: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """192 = 3 · 64, as SmolLM2's 576 = 9 · 64, beside 256."""

    folder = tmp_path / "model"
    folder.mkdir()
    save_model(folder, "Llama", num_hidden_layers=1, intermediate_size=192, tie_word_embeddings=False)
    made = quantize(config(folder, method="rtn", **options), tmp_path / "made")
    assert "not a multiple of 128" in capsys.readouterr().err
    layers = json.loads((made.path / "onggi.json").read_text())["layers"]
    assert {layer["group"] for layer in layers} == {group}
    if "scheme" in options:
        AutoModelForCausalLM.from_pretrained(made.path)
    else:
        assert json.loads((made.path / "quantize_config.json").read_text())["group_size"] == group


@pytest.mark.parametrize("options", [{}, {"method": "rtn", "scheme": "w4a16-g128-asym"}])
def test_rows_that_no_group_divides_stay_as_they_are_and_are_named(
    options: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(folder, "Llama", num_hidden_layers=2, intermediate_size=200, tie_word_embeddings=False)
    made = quantize(config(folder, **options), tmp_path / "made")
    said = capsys.readouterr().err
    assert "mlp.down_proj stays as it is in 2 layers (its 200 columns are no multiple of 32" in said
    original = tensors(folder)
    loaded = AutoModelForCausalLM.from_pretrained(made.path)
    for name, value in tensors(made.path).items():
        if "down_proj" in name:
            assert name.endswith(".weight") and torch.equal(value, original[name])
    names = {layer["name"] for layer in json.loads((made.path / "onggi.json").read_text())["layers"]}
    assert len(names) == 2 * 6 and not any("down_proj" in name for name in names)
    before = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert 0 < drift(logits(before), logits(loaded)) < 0.3
    with pytest.raises(
        OnggiError, match=r"layers\.0\.mlp\.down_proj has 200 columns, which no group divides"
    ):
        quantize(config(folder, method="rtn", format="gptq"), tmp_path / "gptq")
    with pytest.raises(
        OnggiError, match=r"choices: w3a16-g128 does not fit .*down_proj.*--choices w4a16,w8a16"
    ):
        quantize(config(folder, budget="3.6"), tmp_path / "mixed")


def test_a_model_of_which_nothing_fits_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(folder, "Llama", num_hidden_layers=1, hidden_size=144, head_dim=36, intermediate_size=200)
    for options in ({}, {"scheme": "w4a16-g128-asym"}, {"method": "rtn"}):
        with pytest.raises(OnggiError, match=r"scheme: w4a16-g128.* fits no matrix .*q_proj, 144 columns"):
            quantize(config(folder, **options), tmp_path / "made")
    quantize(config(folder, scheme="w4a16"), tmp_path / "made")
    narrow = tmp_path / "narrow"
    narrow.mkdir()
    save_model(narrow, "Llama", num_hidden_layers=1, hidden_size=144, head_dim=36, intermediate_size=256)
    quantize(config(narrow, scheme="w4a16-g128-asym"), tmp_path / "asym")
    with pytest.raises(OnggiError, match="embedding: 144 input columns"):
        quantize(config(narrow, scheme="w4a16-g32", embedding="w4-g32"), tmp_path / "packed")


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_bitsandbytes_makes_what_transformers_loads(
    name: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(OnggiError, match="bitsandbytes"):
            quantize(config(tiny, scheme=name, text="starter"), tmp_path / "made")
        return
    made = quantize(config(tiny, scheme=name, text="starter"), tmp_path / "made")
    original = logits(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32))
    loaded = AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32)
    kinds = {type(module).__name__ for module in loaded.modules()}
    assert {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[name] in kinds
    # vLLM's plugin reads these very names, and wants to be there.
    stored = tensors(made.path)
    packed = [key.removesuffix(".weight") for key in stored if stored[key].dtype in (torch.uint8, torch.int8)]
    state = {"nf4": "weight.quant_state.bitsandbytes__nf4", "int8": "SCB"}[name]
    assert any(f"{key}.{state}" in stored for key in packed)
    said = capsys.readouterr().err
    assert "vllm serve" in said and "pip install vllm-bnb-plugin" in said
    assert "after `pip install vllm-bnb-plugin`" in (made.path / "README.md").read_text()
    assert 0 < drift(original, logits(loaded)) < (0.3 if name == "nf4" else 0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "w8a8", "method": "awq"}, "w8a8-smooth"),
        ({"scheme": "nf4", "method": "awq"}, "bitsandbytes"),
        ({"embedding": "w8"}, "goes with --scheme w8a16"),
        ({"embedding": "w4-g32", "scheme": "w4a16-g32", "format": "gptq"}, "GGUF"),
        ({"scheme": "w3a16-g128", "format": "gptq"}, "does not hold w3a16-g128"),
        ({"scheme": "w4a16-g128-asym", "format": "gptq"}, "compressed-tensors"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_done(options: dict, message: str) -> None:
    with pytest.raises(OnggiError, match=message):
        config(Path("model"), **options)


@pytest.mark.parametrize(("name", "said"), [("w3a16-g128", "transformers only"), ("w8a8", "vllm serve")])
def test_what_serves_it_is_said_and_in_the_card(
    name: str, said: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = quantize(config(tiny, scheme=name, method="rtn"), tmp_path / "made")
    assert said in capsys.readouterr().err
    card = (made.path / "README.md").read_text()
    assert ("`vllm serve FOLDER`" in card) == SCHEMES[name].vllm


def test_plan_knows_the_schemes(tiny: Path) -> None:
    disk = {
        n: stage_plan(config(tiny, scheme=n, method="rtn")).disk for n in ("w2a16-g32", "w4a16-g128", "w8a8")
    }
    assert disk["w2a16-g32"] < disk["w4a16-g128"] < disk["w8a8"]


def stage_plan(options: QuantizeConfig):
    return importlib.import_module("onggi.stages.quantize").plan(options)
