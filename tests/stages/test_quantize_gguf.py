"""`onggi quantize --format gguf:…`: the file runs in llama.cpp, reads back, and is as good as it says."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from onggi import ledger
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.models import references
from onggi.models.gguf import container
from onggi.stages import QuantizeConfig, quantize, quantize_gguf
from onggi.stages.base import Names

TEXTS = {
    "ko": "비가 그치자 마을 사람들은 하나둘씩 밖으로 나와 무너진 담장을 고치기 시작했다.",
    "en": "The committee decided on Tuesday that the bridge would be open to cyclists.",
    "km": "ថ្ងៃនេះអាកាសធាតុល្អណាស់ យើងនឹងទៅផ្សារដើម្បីទិញបន្លែ",
    "ar": "وصل القطار إلى المحطة متأخراً ساعتين",
}


def config(model: Path, **options: Any) -> QuantizeConfig:
    return QuantizeConfig(
        **{
            "model": str(model),
            "text": "starter",
            "languages": Languages("en,ko,km"),
            "tokens": 600,
            "format": "gguf:Q4_0",
            **options,
        }
    )


def logits(folder: Path, ids: list[list[int]]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return torch.cat([model(torch.tensor([own])).logits[0] for own in ids]).log_softmax(-1)


def loss(before: Path, made: Path) -> float:
    """KL from a model to what a GGUF of it reads as."""
    ids = AutoTokenizer.from_pretrained(before)(list(TEXTS.values()))["input_ids"]
    first, second = logits(before, ids), logits(references.resolve(str(made)), ids)
    return float((first.exp() * (first - second)).sum(-1).mean())


def test_a_file_runs_reads_back_and_says_what_it_is(tiny: Path, tmp_path: Path) -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    assert xllamacpp
    from onggi.engines import llamacpp
    from onggi.engines.protocol import Sampling

    made = quantize(config(tiny), tmp_path / "made")
    assert set(made.record["outputs"]) == {"model.gguf", "Modelfile", "onggi.json", "README.md"}
    file = container.File(tmp_path / "made" / "model.gguf")
    assert file.tensors["blk.0.ffn_up.weight"].grid.name == "Q4_0"
    assert file.tensors["output.weight"].grid.name == "Q8_0"  # 128 columns: no Q6_K
    assert file.metadata["general.languages"] == ["en", "ko", "km"]
    assert file.metadata["general.file_type"] == 2
    card = (tmp_path / "made" / "README.md").read_text()
    assert "Q6_K → Q8_0 (1)" in card and "llama-server" in card
    assert (tmp_path / "made" / "Modelfile").read_text().startswith("FROM ./model.gguf\n")

    folder = references.resolve(str(tmp_path / "made"))
    ours, theirs = (AutoTokenizer.from_pretrained(one) for one in (folder, tiny))
    for text in TEXTS.values():
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert loss(tiny, tmp_path / "made") < 0.4

    with llamacpp.running(tmp_path / "made" / "model.gguf", cache=False) as engine:
        for _, answer in engine.generate(list(TEXTS.values()), Sampling(max_tokens=4)):
            assert answer.tokens > 0


def test_error_feedback_beats_rounding_and_small_types_lose_more(tiny_gemma: Path, tmp_path: Path) -> None:
    found = {}
    for name, options in {
        "fed": {"format": "gguf:IQ4_NL"},
        "rounded": {"format": "gguf:IQ4_NL", "method": "rtn", "text": "starter", "languages": None},
        "eight": {"format": "gguf:Q8_0", "method": "rtn", "text": "starter", "languages": None},
        "plain": {"format": "gguf:BF16", "text": "starter", "languages": None},
    }.items():
        quantize(config(tiny_gemma, **options), tmp_path / name)
        found[name] = loss(tiny_gemma, tmp_path / name)
    assert found["fed"] < 0.9 * found["rounded"]
    assert found["eight"] < 0.1 * found["fed"]
    assert found["plain"] == pytest.approx(0, abs=1e-6)


def test_a_budget_mixes_types_of_the_same_size(tiny: Path, tmp_path: Path) -> None:
    plain = quantize(config(tiny, format="gguf:Q4_K_M"), tmp_path / "plain")
    options = {"format": "gguf", "like": "Q4_K_M", "choices": Names("Q3_K,Q4_K,Q6_K")}
    mixed = quantize(config(tiny, **options), tmp_path / "mixed")
    bytes_ = [one.record["outputs"]["model.gguf"]["bytes"] for one in (plain, mixed)]
    assert 0.9 * bytes_[0] < bytes_[1] <= 1.01 * bytes_[0]
    note = ledger.read_json(tmp_path / "mixed" / "onggi.json")["bits"]
    assert note["like"] == "Q4_K_M" and sum(note["modules"].values()) == 3 * 4 + 2
    matrix = ledger.read_json(tmp_path / "mixed" / "sensitivity.json")
    for unit in [*matrix["units"], *matrix["outside"]]:
        damage = [sum(unit["damage"][choice].values()) for choice in ("Q3_K", "Q4_K", "Q6_K")]
        assert damage[0] > damage[1] > damage[2] >= 0
    assert loss(tiny, tmp_path / "mixed") < 1.5 * loss(tiny, tmp_path / "plain")


def test_minimax_and_a_killed_run_end_in_a_file(tiny: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Killed as the file is written; what is made then is what a run without a stop makes."""
    from onggi.quantize.formats import gguf

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize(config(tiny, fairness="minimax"), tmp_path / "made")
    made = quantize(config(tiny, fairness="minimax"), tmp_path / "made")
    whole = quantize(config(tiny, fairness="minimax"), tmp_path / "whole")
    sums = [one.record["outputs"]["model.gguf"]["sha256"] for one in (made, whole)]
    assert sums[0] == sums[1]
    assert json.loads((tmp_path / "made" / "onggi.json").read_text())["balance"]["rounds"]


def test_minimax_solves_the_head_for_calibration_text_in_the_shares_it_found(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the states of the written model on all text: that which was held out only measures."""
    from safetensors.torch import load_file

    from onggi.quantize import balance, fairness
    from onggi.quantize.formats import gguf
    from onggi.quantize.moments import second_moments

    asked = config(tiny, fairness="minimax", precision="fp32")
    found: dict[str, Any] = {"drawn": [], "damage": []}
    draw, write, damage = balance.draw, gguf.write, fairness.damage
    monkeypatch.setattr(fairness, "ROUNDS", 2)

    def lost(*given: Any) -> dict[str, float]:
        """Far apart, so that shares move, and less in the second round, so that it is the better."""
        found["damage"].append(damage(*given))
        of = enumerate(found["damage"][-1].items(), 1)
        return {name: value * number / len(found["damage"]) ** 4 for number, (name, value) in of}

    monkeypatch.setattr(fairness, "damage", lost)

    def drawn(*given: Any, **named: Any) -> Any:
        found["drawn"].append(draw(*given, **named))
        return found["drawn"][-1]

    monkeypatch.setattr(balance, "draw", drawn)

    def looked(path: Path, *given: Any, **named: Any) -> None:
        found["moments"] = load_file(path.parent / "moments.safetensors")["moments"]
        write(path, *given, **named)

    monkeypatch.setattr(gguf, "write", looked)
    quantize(asked, tmp_path / "made")
    held_out, calibration = found["drawn"]
    balanced = ledger.read_json(tmp_path / "made" / "onggi.json")["balance"]
    assert balanced["best"] == 1
    shares = balanced["rounds"][1]["shares"]
    assert max(shares.values()) > 1.2 * min(shares.values())

    model = AutoModelForCausalLM.from_pretrained(
        references.resolve(str(tmp_path / "made")), dtype=torch.float32
    )
    # The pass looks tokens up as they were.
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    model.model.embed_tokens.weight.data = plain.model.embed_tokens.weight.data

    def moments(text: Any) -> torch.Tensor:
        with torch.no_grad():
            states = model.model(input_ids=text.ids).last_hidden_state
        return second_moments(states.flatten(0, 1), text.weights.flatten())

    def off(text: Any) -> float:
        mine = moments(text)
        return float((found["moments"] - mine).norm() / mine.norm())

    assert off(calibration.portion(shares, 600)) < 0.01
    assert off(calibration) > 0.02 and off(held_out) > 0.02


def test_a_file_says_under_what_terms_it_may_be_passed_on(tiny_gemma: Path, tmp_path: Path) -> None:
    """Read back by the package that llama.cpp's own tools use, and by ours, which quantises it further."""
    import shutil

    import gguf

    model = tmp_path / "옹기"
    shutil.copytree(tiny_gemma, model)
    ledger.write_json(model / "onggi.json", {"licence": "gemma", "base": {"name": "gemma3-270m"}})
    plain = {"format": "gguf:Q8_0", "method": "rtn", "text": "starter", "languages": None}
    quantize(config(model, **plain), tmp_path / "made")
    fields = gguf.GGUFReader(tmp_path / "made" / "model.gguf").fields
    said = {key: field.contents() for key, field in fields.items()}
    terms = references.PACKAGES["gemma3-270m"].terms
    assert said["general.license"] == "gemma" and said["general.license.name"] == terms
    assert said["general.license.link"] == "https://ai.google.dev/gemma/terms"
    assert said["general.base_model.count"] == 2
    assert [said[f"general.base_model.{i}.name"] for i in range(2)] == ["옹기", "gemma3-270m"]
    again = references.about(references.resolve(str(tmp_path / "made")))
    assert (again["licence"], again["terms"], again["base_model"]) == ("gemma", terms, "옹기")

    # A model whose licence nobody stated makes none up; one from a hub has its own card's.
    (model / "onggi.json").unlink()
    (model / "README.md").write_text(
        "---\nlicense: other\nlicense_name: 사용권\nlicense_link: https://x.kr/l\n---\n"
    )
    quantize(config(model, **plain), tmp_path / "other")
    other = container.File(tmp_path / "other" / "model.gguf").metadata
    assert [other[f"general.license{part}"] for part in ("", ".name", ".link")] == [
        "other",
        "사용권",
        "https://x.kr/l",
    ]
    (model / "README.md").unlink()
    quantize(config(model, **plain), tmp_path / "none")
    assert not [key for key in container.File(tmp_path / "none" / "model.gguf").metadata if "license" in key]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"scheme": "w8a16"}, "leave --scheme w8a16 out"),
        ({"method": "awq"}, "awq is not for GGUF"),
        ({"format": "gguf"}, "gguf alone says no size"),
        ({"budget": "190MB", "like": "Q4_K_M"}, "both say a size"),
        ({"budget": "4.5", "choices": Names("Q4_K,w8a16")}, "w8a16 is no type"),
        ({"format": "gptq", "like": "Q4_K_M"}, "ask for one with --format gguf"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match=why):
        config(tmp_path, **options)


def test_what_cannot_be_expressed_is_refused_before_the_work(tiny: Path, tmp_path: Path) -> None:
    import conftest

    model = tmp_path / "phi"
    model.mkdir()
    conftest.save_model(model, "Phi3", num_hidden_layers=1)
    with pytest.raises(OnggiError, match="cannot be written as GGUF"):
        quantize(config(model), tmp_path / "made")
    assert not (tmp_path / "made" / "model.gguf").exists()


def test_ollama_is_told_how_turns_are_written(tmp_path: Path) -> None:
    metadata = {
        "tokenizer.chat_template": "{{ '<|im_start|>' }}",
        "tokenizer.ggml.tokens": ["<|endoftext|>", "<|im_end|>", "버"],
        "tokenizer.ggml.token_type": [3, 3, 1],
        "tokenizer.ggml.eos_token_id": 1,
    }
    described: Any = SimpleNamespace(metadata=metadata)
    quantize_gguf._modelfile(tmp_path / "Modelfile", described, {"terms": "Terms."})
    text = (tmp_path / "Modelfile").read_text()
    assert 'PARAMETER stop "<|im_end|>"' in text and "<|im_start|>{{ .Role }}" in text
    assert 'LICENSE """Terms."""' in text
