"""A quantised model put together to be trained, tuned by `quantize --effort best`, and recovered by `distill`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from divergences import on_probe
from layouts import compressed, gptq, tensors
from onggi import ledger, text
from onggi.cli import main
from onggi.engines.transformers import Engine
from onggi.errors import OnggiError
from onggi.head import compare
from onggi.languages import Languages
from onggi.models.checkpoint import Checkpoint
from onggi.models.decoder import skeleton
from onggi.progress import Progress
from onggi.quantize import balance, stream
from onggi.quantize.formats import compressed_tensors
from onggi.quantize.schemes import SCHEMES
from onggi.report import card
from onggi.stages import VERBS, DistillConfig, QuantizeConfig, distill, healing, quantize
from onggi.stages.pretrain_text import Material
from onggi.text.tokens import Tokens
from onggi.train import outlook, trainer

TAGS = ("en", "ko", "km", "el")
MEASURED = (*TAGS, "ar")  # one that neither calibration nor tuning saw
LANGUAGES = Languages(",".join(TAGS))
IDS = torch.arange(2, 90).reshape(2, 44)


def config(model: Path, **options: Any) -> QuantizeConfig:
    given = {"text": "starter", "languages": LANGUAGES, "tokens": 900, "precision": "fp32"}
    return QuantizeConfig(str(model), **{**given, **options})


def rounded(model: Path, out: Path, scheme: str) -> Path:
    return quantize(QuantizeConfig(str(model), scheme, "rtn"), out).path  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in folder.glob("*.safetensors")}


def student(model: Path, made: Path) -> healing.Student:
    layers = ledger.read_json(made / "onggi.json")["layers"]
    return healing.Student(made, layers, Engine(model))


CASES = [
    ("tiny", "w4a16-g32", {}),
    ("tiny_gemma", "w3a16-g128", {}),
    ("tiny", "w4a16-g128-asym", {}),
    ("tiny_gemma", "w8a8", {}),
    ("tiny", "fp8", {}),
    ("tiny_gemma", "w4a16-g128", {"format": "gptq"}),
    ("tiny", "w8a8-smooth", {"text": "starter", "languages": LANGUAGES, "tokens": 400}),
]


@pytest.mark.parametrize(("fixture", "scheme", "options"), CASES)
def test_it_computes_as_what_is_loaded_and_is_written_as_it_was(
    fixture: str, scheme: str, options: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = request.getfixturevalue(fixture)
    made = quantize(QuantizeConfig(str(model), scheme, "rtn", **options), tmp_path / "made").path  # type: ignore[arg-type]
    found = student(model, made)
    if options.get("format") == "gptq":  # transformers wants gptqmodel for it
        expected = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        with torch.no_grad():
            for name, weight in gptq(made, 4).items():
                expected.get_parameter(name).copy_(weight)
    else:
        expected = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    with torch.no_grad():
        wanted, own = expected(IDS).logits, found.model(IDS).logits
    # With zeros transformers unpacks into bf16; a rounded activation may tip by a last bit.
    loose = scheme.endswith("asym") or SCHEMES[scheme].activations
    torch.testing.assert_close(own, wanted, rtol=0, atol=8e-2 if loose else 1e-3)
    assert len(found.gains) == {"tiny": 7, "tiny_gemma": 25}[fixture]
    trained = {name for name, parameter in found.model.named_parameters() if parameter.requires_grad}
    assert trained and all("parametrizations" in name for name in trained)
    (tmp_path / "again").mkdir()
    found.write(tmp_path / "again")
    assert files(tmp_path / "again") == files(made)


def test_a_mixture_is_put_together_too(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixture"
    folder.mkdir()
    for file in tiny.glob("tokenizer*"):
        shutil.copy(file, folder)
    torch.manual_seed(0)
    made_config = transformers.Qwen3MoeConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
    AutoModelForCausalLM.from_config(made_config).to(torch.bfloat16).save_pretrained(folder)
    made = rounded(folder, tmp_path / "made", "w4a16-g64")
    found = student(folder, made)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = compressed(made, 4)
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
            elif name.endswith("gate_up_proj"):
                place = name.removesuffix("gate_up_proj")
                for i in range(4):
                    both = [weights[f"{place}{i}.{leaf}.weight"] for leaf in ("gate_proj", "up_proj")]
                    parameter[i].copy_(torch.cat(both))
            elif name.endswith("down_proj"):
                for i in range(4):
                    parameter[i].copy_(weights[f"{name.removesuffix('down_proj')}{i}.down_proj.weight"])
    with found.made_once():
        own = found.model(IDS).logits
        own.square().mean().backward()
    torch.testing.assert_close(own.detach(), expected(IDS).logits.detach(), rtol=0, atol=1e-3)
    experts = [m for m in found.matrices.values() if len(m.shape) == 3]
    assert len(experts) == 2 and all(bool((m.scale.grad != 0).any()) for m in experts)
    (tmp_path / "again").mkdir()
    found.write(tmp_path / "again")
    assert files(tmp_path / "again") == files(made)


def test_fast_is_the_plain_solver_and_default_too_on_the_same_tokens(tiny: Path, tmp_path: Path) -> None:
    """Against the solver called by itself, on text drawn by itself."""
    found, own = text.load("starter", LANGUAGES), Tokens(tiny)
    passages = {tag: found.passages(tag) for tag in TAGS}
    drawn = balance.draw(passages, own.encode, own.prefix, 900, balanced=True)
    plain = tmp_path / "plain"
    plain.mkdir()
    stream.quantize_layers(
        Checkpoint(tiny),
        skeleton(tiny, torch.float32),
        SCHEMES["w4a16-g128"],
        compressed_tensors.store,
        plain,
        drawn,
        Progress("test", 3),
        lambda: None,
        torch.device("cpu"),
    )
    wanted = files(plain)
    assert len(wanted) == 3
    for effort in ("fast", "default"):
        made = quantize(config(tiny, effort=effort), tmp_path / effort)
        assert files(made.path).items() >= wanted.items()
    module = __import__("onggi.stages.quantize", fromlist=["TOKENS"])
    amounts = [config(tiny, effort=effort, tokens=None).calibration_tokens for effort in module.TOKENS]
    assert amounts == sorted(amounts) and amounts[0] == 8192


@pytest.mark.parametrize(
    ("fixture", "options"),
    [
        ("tiny_gemma", {"scheme": "w2a16-g32", "tune": "rounding"}),
        ("tiny", {"scheme": "w3a16-g128"}),
    ],
)
def test_best_loses_less_in_the_same_bytes(
    fixture: str, options: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = request.getfixturevalue(fixture)
    made = quantize(config(model, effort="best", tokens=6_000, **options), tmp_path / "best")
    plain = quantize(
        config(model, effort="fast", tokens=6_000, **options | {"tune": "scales"}), tmp_path / "fast"
    )
    assert sizes(made.path) == sizes(plain.path)
    assert json.loads((made.path / "config.json").read_text()) == json.loads(
        (plain.path / "config.json").read_text()
    )
    about = ledger.read_json(made.path / "onggi.json")
    noted = about["healed"]["damage"]
    assert made.record["damage"] == noted and set(noted["after"]) == set(TAGS)
    assert max(noted["after"].values()) < 0.98 * max(noted["before"].values())
    # On text that neither saw, loaded as anybody loads it.
    before, after = on_probe(model, plain.path, MEASURED, 6), on_probe(model, made.path, MEASURED, 6)
    assert sum(after.values()) < 0.99 * sum(before.values()), (before, after)
    page = (made.path / "README.md").read_text()
    assert page == card.quantized(about) and f"| Khmer | {noted['before']['km']:.4f} |" in page
    changed = [
        name
        for name, value in tensors(made.path).items()
        if name.endswith("weight_packed") and not torch.equal(value, tensors(plain.path)[name])
    ]
    assert bool(changed) or options.get("tune") != "rounding"


def test_what_is_noted_is_what_the_artifact_does(tiny_gemma: Path, tmp_path: Path) -> None:
    made = rounded(tiny_gemma, tmp_path / "w3", "w3a16-g128")
    own = text.load("starter", LANGUAGES)
    validation = tmp_path / "held.jsonl"
    rows = [
        {"text": passage, "lang": tag} for tag in TAGS for passage in list(own.passages(tag).values())[:3]
    ]
    validation.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    given = recovery(tiny_gemma, made, validation=str(validation), steps=6)
    found = distill(given, tmp_path / "healed")
    engines, noted = [Engine(tiny_gemma), Engine(found.path)], found.record["damage"]["after"]
    for tag in TAGS:
        passages = [row["text"] for row in rows if row["lang"] == tag]
        both = [engine.states(passages) for engine in engines]
        states = [torch.cat([hidden for hidden, _ in side]) for side in both]
        kl = compare(states, [e.head for e in engines], torch.cat([ids for _, ids in both[0]]))[1].kl
        assert kl is not None and noted[tag] == pytest.approx(float(kl.mean()), rel=1e-3)


def recovery(model: Path, made: Path, **options: Any) -> DistillConfig:
    given = {
        "text": "starter",
        "languages": LANGUAGES,
        "steps": 24,
        "batch_tokens": 384,
        "length": 96,
        "learning_rate": 4e-3,
        "precision": "fp32",
    }
    return DistillConfig(str(model), str(made), **{**given, **options})


def test_a_quantised_model_recovers_in_every_language(tiny: Path, tmp_path: Path) -> None:
    made = rounded(tiny, tmp_path / "w2", "w2a16-g32")
    found = distill(recovery(tiny, made, tune="rounding"), tmp_path / "healed")
    before, after = on_probe(tiny, made, MEASURED, 6), on_probe(tiny, found.path, MEASURED, 6)
    assert all(after[tag] < 0.9 * before[tag] for tag in MEASURED), (before, after)
    assert sizes(found.path) == sizes(made)
    kept = {file.name for file in made.iterdir()} - {"stage.json"}
    assert {file.name for file in found.path.iterdir()} == kept | {"stage.json", "metrics.jsonl"}
    assert (found.path / "config.json").read_bytes() == (made / "config.json").read_bytes()
    about = ledger.read_json(found.path / "onggi.json")
    assert about["scheme"] == "w2a16-g32" and set(about["healed"]["parts"]) == {"scales", "rounding"}
    page = (found.path / "README.md").read_text()
    assert page == card.quantized(about) and "| Greek |" in page and "codes too" in page
    lines = [json.loads(line) for line in (found.path / "metrics.jsonl").read_text().splitlines()]
    assert {line["tuned"] for line in lines} == {"scales", "rounding"}
    # Twice does nothing; and what recovered recovers further.
    stamp = (found.path / "stage.json").stat().st_mtime_ns
    distill(recovery(tiny, made, tune="rounding"), tmp_path / "healed")
    assert (found.path / "stage.json").stat().st_mtime_ns == stamp
    again = distill(recovery(tiny, found.path, steps=2), tmp_path / "again")
    assert sizes(again.path) == sizes(made)
    show = VERBS["distill"].show
    assert show
    show(found)


@pytest.mark.parametrize(
    ("scheme", "format", "tune"),
    [
        ("w4a16-g128-asym", "compressed-tensors", "scales"),
        ("w4a16-g128", "gptq", "rounding"),
        ("w8a8", "compressed-tensors", "rounding"),
    ],
)
def test_the_plan_is_what_a_run_then_writes(
    scheme: str,
    format: str,
    tune: Any,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outlook.seconds, "__defaults__", (0.1,))  # not five seconds
    made = quantize(
        QuantizeConfig(str(tiny), scheme, "rtn", format=format),  # type: ignore[arg-type]
        tmp_path / "made",
    ).path
    words = [
        "distill",
        str(tiny),
        "--into",
        str(made),
        "--text",
        "starter",
        "--languages",
        str(LANGUAGES),
    ]
    words += [
        "--steps",
        "2",
        "--batch-tokens",
        "128",
        "--length",
        "32",
        "--precision",
        "fp32",
        "--tune",
        tune,
    ]
    assert main([*words, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert main([*words, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    given = DistillConfig(
        str(tiny),
        str(made),
        "starter",
        Languages("ko,el,km"),
        tune=tune,
        steps=2,
        batch_tokens=128,
        length=32,
        precision="fp32",
    )
    plan = VERBS["distill"].plan(given)
    run = distill(given, tmp_path / "healed")
    written = sum(sizes(run.path).values())
    assert found["bytes"] == written and f"{written:,} bytes of weights" in said
    about = ledger.read_json(run.path / "onggi.json")
    assert (found["scheme"], found["format"]) == (about["scheme"], about["format"])
    assert found["parts"] == {name: part["steps"] for name, part in run.record["parts"].items()}
    assert found["steps"] == 2 and found["tokens"] == plan.tokens == sum(run.record["tokens"].values())
    assert plan.disk and plan.disk > written and plan.memory == found["memory"] > 4 * 128 * 1024
    # What is tuned, counted on the model as it is put together.
    trained = student(tiny, run.path)
    expected = {
        "scales": sum(m.scale.numel() for m in trained.matrices.values()),
        "zeros": sum(m.zero.numel() for m in trained.matrices.values() if m.zero is not None),
        "norms": sum(gain.moved.numel() for gain in trained.gains.values()),
        "codes": sum(m.codes.numel() for m in trained.matrices.values()) if tune == "rounding" else 0,
    }
    assert found["tuned"] == {kind: count for kind, count in expected.items() if count}
    assert f"{expected['norms']:,} weights of norms" in said


def test_minutes_of_a_plain_text(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = rounded(tiny, tmp_path / "w2", "w2a16-g32")
    monkeypatch.setattr(healing, "step_seconds", lambda *_: 2.0)
    monkeypatch.setattr(sys.modules[Material.__module__], "STEPS", 2)
    # 0.15 minutes are 9 s, of which a fifth is for measuring: 3 steps.
    by_time = distill(recovery(tiny, made, steps=None, minutes=0.15), tmp_path / "minutes")
    by_steps = distill(recovery(tiny, made, steps=3), tmp_path / "steps")
    assert by_time.record["parts"]["scales"]["steps"] == 3
    assert by_time.record["tokens"] == by_steps.record["tokens"]
    assert files(by_time.path) == files(by_steps.path)


def test_killed_it_ends_in_the_same_bytes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the first part, and within the second: with weights of languages that follow what was measured."""
    made = rounded(tiny, tmp_path / "w2", "w2a16-g32")
    given = recovery(tiny, made, tune="rounding", steps=8, fairness="minimax", validate_every=1)
    whole = distill(given, tmp_path / "whole")
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 0.0)
    from onggi.distill import lesson

    call, calls = lesson.Lesson.__call__, []

    def dies(self: Any, model: Any, batch: Any) -> Any:
        calls.append(1)
        if len(calls) in (4, 9):
            raise KeyboardInterrupt
        return call(self, model, batch)

    monkeypatch.setattr(lesson.Lesson, "__call__", dies)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            distill(given, tmp_path / "killed")
    assert (tmp_path / "killed" / ".partial" / "healing" / "scales" / "done.json").is_file()
    again = distill(given, tmp_path / "killed")
    assert again.record["outputs"] == whole.record["outputs"]
    assert whole.record["parts"]["rounding"]["steps"]


def test_best_that_was_killed_while_tuning_ends_the_same(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(tiny, effort="best", scheme="w3a16-g128")
    whole = quantize(given, tmp_path / "whole")
    write = healing.Student.write

    def dies(self: Any, out: Path) -> list[str]:
        write(self, out)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(healing.Student, "write", dies)
        quantize(given, tmp_path / "killed")
    again = quantize(given, tmp_path / "killed")
    assert again.record["outputs"] == whole.record["outputs"]


def test_what_cannot_be_tuned_is_said(
    tiny: Path, tiny_gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OnggiError, match="effort: best tunes what error feedback"):
        config(tiny, effort="best", method="rtn")
    with pytest.raises(OnggiError, match="effort: best tunes what error feedback"):
        config(tiny, effort="best", scheme="nf4")
    with pytest.raises(OnggiError, match="embedding is packed"):
        config(tiny, effort="best", scheme="w8a16", embedding="w8")
    with pytest.raises(OnggiError, match="tune: is for --effort best"):
        config(tiny, tune="rounding")
    with pytest.raises(OnggiError, match="original's own weights"):
        config(tiny, effort="best", tune="rounding", method="awq")
    made = rounded(tiny, tmp_path / "w4", "w4a16-g32")
    with pytest.raises(OnggiError, match=r"loss: .* is quantised"):
        recovery(tiny, made, loss="spans")
    with pytest.raises(OnggiError, match="optimizer: is for training weights"):
        recovery(tiny, made, optimizer="muon")
    with pytest.raises(OnggiError, match="checkpointing: is for training weights"):
        recovery(tiny, made, checkpointing=True)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "index.json").write_text("{}")
    with pytest.raises(OnggiError, match="validation: a recovery ends where text held out"):
        recovery(tiny, made, text=str(tmp_path / "packed"))
    with pytest.raises(OnggiError, match="tune: is for a quantised model"):
        distill(recovery(tiny_gemma, tiny, tune="rounding"), tmp_path / "out")
    other = tmp_path / "other"  # the same but for one row of the embedding
    shutil.copytree(tiny, other)
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.get_input_embeddings().weight[7] += 1
    model.save_pretrained(other)
    with pytest.raises(OnggiError, match=r"was not made from .*Name the model that it was made from"):
        distill(recovery(other, made), tmp_path / "out")
    (made / "onggi.json").unlink()
    with pytest.raises(OnggiError, match=r"has no onggi.json that says how it was quantised"):
        distill(recovery(tiny, made), tmp_path / "out2")
    known = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: 1 if name == "SC_PHYS_PAGES" else known(name))
    with pytest.raises(OnggiError, match=r"GiB, for the original .* --effort fast needs a layer at a time"):
        quantize(config(tiny, effort="best"), tmp_path / "large")


def test_a_gguf_does_not_recover(tiny: Path, tmp_path: Path) -> None:
    made = quantize(QuantizeConfig(str(tiny), method="rtn", format="gguf:Q8_0"), tmp_path / "옹기").path
    with pytest.raises(
        OnggiError, match=r"into: .*옹기 is a GGUF, which cannot recover: .* compressed-tensors or gptq"
    ):
        distill(DistillConfig(str(tiny), into=str(made), text="starter", steps=1), tmp_path / "out")
