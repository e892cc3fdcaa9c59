"""A checkpoint quantised layer by layer: what is written loads plainly, and survives being killed."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from forks import killed
from onggi import ledger, text
from onggi.cli import main
from onggi.errors import OnggiError
from onggi.grids import IntegerGrid, Steps
from onggi.languages import Languages
from onggi.models.checkpoint import Checkpoint
from onggi.models.decoder import skeleton
from onggi.quantize import balance
from onggi.quantize.schemes import SCHEMES
from onggi.stages import QuantizeConfig, quantize
from onggi.text.tokens import Tokens

LANGUAGES = Languages("en,ko,km")


def config(model: Path, **options) -> QuantizeConfig:
    return QuantizeConfig(
        **{"model": str(model), "text": "starter", "languages": LANGUAGES, "tokens": 1200, **options}
    )


def digests(folder: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
        if file.is_file() and file.name != "stage.json"
    }


def decoded(folder: Path) -> dict[str, torch.Tensor]:
    """Every quantised weight of an artifact, from its packed codes."""
    checkpoint = Checkpoint(folder)
    found = {}
    for name in checkpoint.entries:
        if name.endswith(".weight_packed"):
            module = name.removesuffix(".weight_packed")
            shape = checkpoint.tensor(f"{module}.weight_shape").tolist()
            scales = checkpoint.tensor(f"{module}.weight_scale")
            grid = IntegerGrid(4, shape[1] // scales.shape[1])
            codes = grid.unpack(checkpoint.tensor(name), shape[1])
            found[f"{module}.weight"] = grid.decode(codes, Steps(scales))
    return found


OTHERS = {
    "GPTNeo": {  # layers return tuples and hold masks of their own; names unlike Llama's
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 512,
    },
    "Bloom": {"hidden_size": 128, "n_layer": 2, "n_head": 4},  # no positions; one matrix for q, k and v
}


@pytest.mark.parametrize("kind", OTHERS)
def test_structure_is_found_not_listed(
    kind: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other architectures go through, and go on after a kill, without a line about them."""
    folder = tmp_path / kind
    folder.mkdir()
    for file in tiny.glob("tokenizer*"):
        shutil.copy(file, folder)
    torch.manual_seed(0)
    made_config = getattr(transformers, f"{kind}Config")(vocab_size=1024, **OTHERS[kind])
    AutoModelForCausalLM.from_config(made_config).to(torch.bfloat16).save_pretrained(folder)
    made = quantize(config(folder), tmp_path / "w4")

    def stop(_job: ledger.Job) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ledger.Job, "tick", stop)  # called when the first layer is finished
        quantize(config(folder), tmp_path / "stopped")
    assert digests(quantize(config(folder), tmp_path / "stopped").path) == digests(made.path)

    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = decoded(made.path)
    assert weights
    with torch.no_grad():
        for name, weight in weights.items():
            expected.get_parameter(name).copy_(weight)
    loaded = AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32)
    ids = torch.arange(2, 90).reshape(2, 44)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, expected(ids).logits, rtol=0, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_error_feedback_moves_the_outputs_less_than_rounding(
    precision: str, tiny: Path, tmp_path: Path
) -> None:
    made = quantize(config(tiny, precision=precision), tmp_path / "gptq")
    layers = json.loads((made.path / "onggi.json").read_text())["layers"]
    assert all(layer["error"] <= layer["rounding_error"] for layer in layers)
    assert sum(layer["error"] for layer in layers) < 0.7 * sum(layer["rounding_error"] for layer in layers)
    rounded = quantize(config(tiny, method="rtn", text="starter"), tmp_path / "rtn")
    reference = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    passages = text.load("probe", LANGUAGES).common(LANGUAGES, 4)
    tokens = Tokens(tiny)
    rows = [[tokens.prefix, *tokens.encode(p)][:60] for texts in passages.values() for p in texts.values()]
    ids = torch.tensor(rows)
    drift = {}
    with torch.no_grad():
        log_p = reference(ids).logits.log_softmax(-1)
        for name, folder in {"gptq": made.path, "rtn": rounded.path}.items():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            log_q = model(ids).logits.log_softmax(-1)
            drift[name] = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    assert drift["gptq"] < drift["rtn"]


def test_inputs_that_are_shared_are_found(tiny: Path) -> None:
    from onggi.models.decoder import sharing

    decoder = skeleton(tiny, torch.float32)
    layer = decoder.layers[0]
    hidden = torch.zeros(1, 5, 128)
    rotary = decoder.model.model.rotary_emb(hidden, torch.arange(5).unsqueeze(0))
    found = sharing(layer, (hidden,), {"position_embeddings": rotary, "attention_mask": None})
    assert [(shared.names, shared.producer) for shared in found] == [
        (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "input_layernorm"),
        (["self_attn.o_proj"], None),
        (["mlp.gate_proj", "mlp.up_proj"], "post_attention_layernorm"),
        (["mlp.down_proj"], None),
    ]


def test_widths_that_128_does_not_divide_fall_back() -> None:
    scheme = SCHEMES["w4a16-g128-asym"]
    assert [scheme.for_columns(columns).group for columns in (256, 576, 96)] == [128, 64, 32]
    assert SCHEMES["w4a16"].for_columns(100).group is None
    with pytest.raises(OnggiError, match="100 input columns"):
        scheme.for_columns(100)


def test_killed_at_random_moments_it_ends_in_the_same_bytes(tiny_gemma: Path, tmp_path: Path) -> None:
    whole = quantize(config(tiny_gemma, tokens=3000), tmp_path / "whole")
    out = tmp_path / "killed"
    work = out / ".partial" / "out"
    generator = random.Random(0)
    seen: set[int] = set()
    words = ["quantize", str(tiny_gemma), "--text", "starter", "--languages", "en,ko,km", "--tokens", "3000"]
    words += ["--out", str(out)]
    for wanted in (1, 3):
        # Killed a random moment after so many layers are finished.
        killed(
            *words,
            when=lambda wanted=wanted: len(list(work.glob("layer-*.json"))) >= wanted,
            after=generator.random() * 0.05,
        )
        if not (out / "stage.json").exists():
            seen.add(len(list(work.glob("layer-*.json"))))
    assert max(seen) >= 1, "every kill came before the first layer or after the end"
    assert main(words) == 0 and digests(out) == digests(whole.path)
    assert not (out / ".partial").exists()


def test_a_damaged_weight_is_named_and_nothing_is_left_as_done(tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(OnggiError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        quantize(config(broken), tmp_path / "out")
    assert not (tmp_path / "out" / "stage.json").exists()


def test_the_probe_is_refused_as_calibration(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match="never for calibration"):
        quantize(config(tiny, text="probe"), tmp_path / "out")


def test_the_card_says_what_was_done_in_which_languages(tiny: Path, tmp_path: Path) -> None:
    made = quantize(config(tiny), tmp_path / "w4")
    card = (made.path / "README.md").read_text()
    for words in ("base_model_relation: quantized", "Khmer 400", "Korean 400", "starter", "w4a16-g128"):
        assert words in card


def test_each_matrixs_error_is_told_by_language(tiny: Path, tmp_path: Path) -> None:
    """Against the outputs of the first matrices on all calibration tokens of a language."""
    made = quantize(config(tiny, tokens=600, precision="fp32"), tmp_path / "w4")
    layers = {layer["name"]: layer for layer in json.loads((made.path / "onggi.json").read_text())["layers"]}
    assert all(set(layer["languages"]) == {"en", "ko", "km"} for layer in layers.values())
    own, found = Tokens(tiny), text.load("starter", LANGUAGES)
    passages = {tag: found.passages(tag) for tag in LANGUAGES}
    drawn = balance.draw(passages, own.encode, own.prefix, 600, balanced=True)
    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
    model, rounded = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), decoded(made.path)
    with torch.no_grad():
        inputs = model.model.layers[0].input_layernorm(model.model.embed_tokens(drawn.ids))
        exact = torch.cat([model.get_parameter(f"{name}.weight") for name in names])
        wrong = exact - torch.cat([rounded[f"{name}.weight"].float() for name in names])
        for number, tag in enumerate(drawn.names):
            there = (drawn.owner == number).unsqueeze(1) & (drawn.weights > 0)
            there[:, 0] = False
            assert 100 < there.sum() <= 256  # all of them are looked at, and every other row of 256
            error, energy = ((inputs[there] @ side[::2].T).square().sum() for side in (wrong, exact))
            for name in names:
                assert layers[name]["languages"][tag] == pytest.approx(float(error / energy), rel=2e-3)
    card = (made.path / "README.md").read_text(encoding="utf-8")
    assert all(f"\n| {name} | 0." in card for name in ("English", "Korean", "Khmer"))
    single = quantize(config(tiny, languages=Languages("ko"), tokens=300), tmp_path / "ko")
    about = json.loads((single.path / "onggi.json").read_text())
    assert about["layers"][0]["languages"] is None  # nothing to tell apart


def test_options_that_rounding_does_not_look_at_are_named(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize(config(tiny, method="rtn", text="own.jsonl", seed=3), tmp_path / "rtn")
    said = capsys.readouterr()
    words = "--text, --languages, --tokens, --seed: not used, since rtn rounds w4a16-g128 without any text."
    assert words in said.out + said.err
    quantize(config(tiny, method="rtn", text="starter", languages=None, tokens=None), tmp_path / "plain")
    again = capsys.readouterr()
    assert "not used" not in again.out + again.err


def test_an_artifact_is_not_quantised_again(tiny: Path, tmp_path: Path) -> None:
    made = quantize(config(tiny, method="rtn", text="starter"), tmp_path / "w4")
    with pytest.raises(OnggiError, match="quantised already"):
        quantize(config(made.path), tmp_path / "again")
