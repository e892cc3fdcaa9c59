"""`onggi tokenizer` on real text: parity watched and told, killed runs, and models with new tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from onggi import cli, recipe, text
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.stages import TokenizerConfig, tokenizer
from onggi.text import vocabulary
from onggi.text.tokens import Tokens

KO = list(text.load("starter").passages("ko").values())


def config(**options: Any) -> TokenizerConfig:
    return TokenizerConfig(
        **{
            "text": "starter",
            "vocabulary": 1500,
            "languages": Languages("en,ko,km"),
            "sample": 200_000,
            **options,
        }
    )


def test_what_each_language_pays_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tokenizer(config(parity=1.8), tmp_path / "말")
    report = json.loads((made.path / "parity.json").read_text())
    assert (
        report["met"] and report["reference"] == "en" and report["gguf"] == {"model": "gpt2", "pre": "qwen35"}
    )
    assert list(report["languages"]) == ["en", "ko", "km"]
    tokens = Tokens(made.path)
    probe = text.load("probe")
    for tag, facts in report["languages"].items():
        passages = probe.common(["en", "ko", "km"])[tag]
        count = sum(len(tokens.encode(passage)) for passage in passages.values())
        assert facts["tokens_per_passage"] == pytest.approx(count / len(passages), abs=0.01)
        assert facts["parity"] == pytest.approx(
            facts["tokens_per_passage"] / report["languages"]["en"]["tokens_per_passage"], abs=0.001
        )
    assert sum(facts["share"] for facts in report["languages"].values()) == pytest.approx(1, abs=0.001)
    assert made.record["tokenizer"] == vocabulary.fingerprint(tokens.tokenizer)
    assert "The text in Khmer was gone over" in capsys.readouterr().err


def test_a_dear_language_gets_more_text(tmp_path: Path) -> None:
    """Khmer is the dearest; each round gives it more, and it pays less."""
    made = tokenizer(config(vocabulary=8000, parity=1.05, rounds=3), tmp_path / "x")
    report = json.loads((made.path / "parity.json").read_text())
    first, *_, last = report["rounds"]
    assert first["worst"] == "km" and last["shares"]["km"] > first["shares"]["km"]
    assert last["parity"] < first["parity"]
    chosen = report["rounds"][report["chosen"] - 1]
    assert chosen["parity"] == min(entry["parity"] for entry in report["rounds"])


def test_a_bound_that_cannot_be_kept_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tokenizer(config(vocabulary=8000, parity=1.0, rounds=2), tmp_path / "x")
    assert made.record["met"] is False
    said = capsys.readouterr().err
    assert "A parity of 1 was not reached in 2 rounds:" in said and "times the tokens of English" in said


def test_languages_that_nothing_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "글.jsonl"
    rows = [{"text": passage, "lang": "ko"} for passage in KO] + [
        {"text": "שלום עולם, מה שלומך היום?", "lang": "he"}
    ]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    made = tokenizer(config(text=str(file), languages=None, vocabulary=600, sample=9000), tmp_path / "x")
    assert made.record["reference"] == "ko"
    assert made.record["languages"]["he"]["parity"] is None
    assert made.record["languages"]["he"]["tokens_per_passage"] > 0
    assert "probe has no text in Hebrew: the parity there is not known" in capsys.readouterr().err


def test_killed_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tokenizer(config(vocabulary=8000, parity=1.0, rounds=3), tmp_path / "whole")
    train, calls = vocabulary.train, []

    def killed(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(vocabulary, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        tokenizer(config(vocabulary=8000, parity=1.0, rounds=3), tmp_path / "cut")
    resumed = tokenizer(config(vocabulary=8000, parity=1.0, rounds=3), tmp_path / "cut")
    assert len(calls) == 4
    assert resumed.record["outputs"] == whole.record["outputs"]
    assert (
        tokenizer(config(vocabulary=8000, parity=1.0, rounds=3), tmp_path / "cut").record == resumed.record
        and len(calls) == 4
    )


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_it_stands_in_front_of_a_model(kind: Any, tmp_path: Path) -> None:
    made = tokenizer(config(kind=kind, parity=9.0, vocabulary=2000), tmp_path / "x")
    loaded = AutoTokenizer.from_pretrained(made.path)
    for passage in [*KO, "  ខ្មែរ\n\n😀 1234 <|im_end|>x ▁"]:
        ids = loaded(passage, add_special_tokens=False)["input_ids"]
        assert loaded.decode(ids, skip_special_tokens=False) == passage


# ── new tokens for a model ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["tiny", "tiny_gemma"])
def test_a_model_with_new_tokens(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(name)
    made = tokenizer(
        TokenizerConfig("starter", 120, extend=str(folder), for_=Languages("ko")), tmp_path / "더 많은"
    )
    old, new = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(made.path)
    assert len(new) == len(old) + 120 == made.record["first"] + 120
    assert old.get_vocab().items() <= new.get_vocab().items()
    model = AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32)
    before = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.config.vocab_size == len(new) == model.get_input_embeddings().weight.shape[0]
    english = new("The bridge is closed. 다리", return_tensors="pt")["input_ids"][:, :6]
    assert torch.equal(english, old("The bridge is closed. 다리", return_tensors="pt")["input_ids"][:, :6])
    assert torch.equal(model(english).logits[..., : len(old)], before(english).logits)
    # A new token starts as the mean of the old ones of its text.
    token = max(new.get_vocab().items(), key=lambda item: item[1])
    row = load_file(made.path / "model.safetensors")["model.embed_tokens.weight"][token[1]]
    pieces = [piece.id for piece in old.backend_tokenizer.model.tokenize(token[0])]
    assert torch.equal(row, before.get_input_embeddings().weight[pieces].mean(0).to(row.dtype))
    facts = made.record["languages"]
    assert facts["ko"]["tokens_per_passage"] < facts["ko"]["before"]["tokens_per_passage"]
    assert facts["ko"]["changed"] > 0.1
    for tag in ("en", "ar", "hi", "km"):
        assert (
            facts[tag]["changed"] == 0
            and facts[tag]["tokens_per_passage"] == facts[tag]["before"]["tokens_per_passage"]
        )
    assert (
        facts["ko"]["nll_per_passage"].keys() == facts["en"]["nll_per_passage"].keys() == {"before", "after"}
    )
    card = (made.path / "README.md").read_text()
    assert "with more tokens for Korean" in card and "120 tokens more" in card


def test_a_model_without_a_sound_tokenizer(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "ម៉ូដែល")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(OnggiError, match="no tokenizer that loads"):
        tokenizer(TokenizerConfig("starter", 10, extend=str(folder), for_=Languages("ko")), tmp_path / "x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "probe"}, "text: the probe is for measuring"),
        ({"vocabulary": 0}, "vocabulary: 0 is not"),
        ({"parity": 0.9}, "parity: 0.9 is below 1"),
        ({"rounds": 0}, "rounds: 0"),
        ({"sample": 0}, "sample: 0"),
        ({"kind": "unigram", "pre": "gpt-2"}, "pre: is for bpe"),
        ({"for_": Languages("ko")}, "for: goes with --extend"),
        ({"extend": "model", "languages": None}, "for: name the language"),
        ({"extend": "model", "for_": Languages("ko")}, "languages: --for names"),
        ({"extend": "m", "for_": Languages("ko"), "languages": None, "kind": "unigram"}, "the model's own"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OnggiError, match=message):
        config(**options)


def test_text_to_measure_on_has_to_be_parallel(tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match="measure: starter is not parallel"):
        tokenizer(config(measure="starter"), tmp_path / "x")


def test_the_option_is_for_in_every_place(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tokenizer", "starter", "--extend", str(tiny), "--for", "km", "--vocabulary", "20"]
    assert cli.main([*words, "--out", str(tmp_path / "x"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["command"].endswith(f"--vocabulary 20 --extend {tiny} --for km --out {tmp_path / 'x'}")
    assert cli.main([*words[:2], "--for", "km", "--out", str(tmp_path / "y")]) == 1
    assert "for: goes with --extend" in capsys.readouterr().err
    assert cli.main([*words, "--out", str(tmp_path / "x")]) == 0
    assert "20 tokens added from id" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["tokenizer", "--help"])
    assert "--for FOR" in capsys.readouterr().out
    file = tmp_path / "recipe.yaml"
    file.write_text(f"stages: {{more: {{verb: tokenizer, text: starter, extend: {tiny}, for: [ko, km]}}}}")
    [step] = recipe.load(file).steps
    assert recipe.config(step, {}).for_ == ("ko", "km")
