"""`onggi pretrain` over packed text: random starts, what is measured, what is refused, many processes, the recipes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import save_fallback_tokenizer, save_model
from forks import two
from onggi import recipe, run
from onggi.cli import main
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.stages import PackConfig, PretrainConfig, pack, pretrain
from onggi.stages.pretrain_plan import outlook
from onggi.text.packing import Packed
from processes import same_curves, same_weights, torchrun

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """Three scripts, packed with the tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "words").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny / name, folder / "words" / name)
    made = pack(PackConfig("starter", str(folder / "words"), 64, Languages("ko,el,km")), folder / "text")
    return made.path


def config(packed: Path, init: str = "random", **options: Any) -> PretrainConfig:
    given: dict[str, Any] = {"steps": 6, "batch_tokens": 512, "precision": "fp32"}
    if init == "random":
        given["size"] = "300k"
    return PretrainConfig(str(packed), init, **{**given, **options})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_model_from_nothing(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small"
    words = ["pretrain", "--text", str(packed), "--init", "random", "--size", "300k", "--steps", "6"]
    words += ["--batch-tokens", "512", "--validation", "probe", "--validation-passages", "2"]
    words += ["--validate-every", "3", "--precision", "fp32", "--out", str(out)]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "bits per byte before" in said.out and "Korean (ko)" in said.out
    assert "Step 3, bits per byte: " in said.err

    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert abs(count / 300_000 - 1) < 0.06 and model.dtype == torch.bfloat16
    assert transformers.AutoTokenizer.from_pretrained(out)("버스")["input_ids"]

    record = json.loads((out / "stage.json").read_text())
    assert record["parameters"] == count and record["tokens_per_second"] > 0
    assert set(record["tokens"]) == {"ko", "el", "km"} and 2900 < sum(record["tokens"].values()) <= 6 * 512
    for language in ("ko", "el", "km"):
        assert record["bits_per_byte"]["after"][language] < record["bits_per_byte"]["before"][language]
    found = lines(out)
    assert [line["step"] for line in found if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in found if "bits_per_byte" in line] == [0, 3, 6]
    # What was written is what was measured, but for the rounding to bf16.
    last, after = found[-1]["bits_per_byte"], record["bits_per_byte"]["after"]
    assert after == pytest.approx(last, rel=2e-3)
    about = json.loads((out / "onggi.json").read_text())
    assert about["pretrained"]["optimizer"] == "muon" and about["pretrained"]["validation"] == "probe"
    page = (out / "README.md").read_text()
    assert "from a random start" in page and "Khmer" in page and "base_model" not in page
    assert (out / "curves.svg").read_text().startswith("<svg") and not list(out.rglob("*.bin"))

    written = (out / "stage.json").stat().st_mtime_ns
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == count
    assert (out / "stage.json").stat().st_mtime_ns == written


def test_a_model_trained_further(packed: Path, tiny: Path, tmp_path: Path) -> None:
    made = pretrain(
        config(packed, str(tiny), tokens=1500, steps=None, learning_rate=1e-3, checkpointing=True),
        tmp_path / "a",
    )
    about = json.loads((made.path / "onggi.json").read_text())
    facts = about["continued"]
    assert (facts["steps"], facts["optimizer"], facts["weight_decay"]) == (3, "adamw", 0.0)
    assert facts["held_out"] == {} and about["base"]["source"] == str(tiny)
    assert made.record["moved"]["linears"]["moved"] > 0
    assert "trained further" in (made.path / "README.md").read_text()


def test_the_text_is_read_once_unless_told_otherwise(packed: Path, tmp_path: Path) -> None:
    made = pretrain(config(packed, steps=None, batch_tokens=2048), tmp_path / "once")
    about = json.loads((made.path / "onggi.json").read_text())["pretrained"]
    assert about["steps"] == -(-len(Packed(packed)) // 32)
    index = json.loads((packed / "index.json").read_text())
    for language, facts in index["by_language"].items():
        assert about["tokens"][language] >= facts["tokens"]


def test_minutes_are_steps_that_are_kept(
    packed: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onggi.stages import pretrain as stage
    from onggi.stages.pretrain_text import Material
    from onggi.train.outlook import seconds

    module = sys.modules[stage.__module__]
    monkeypatch.setattr(module, "step_seconds", lambda *_: 2.0)
    made = pretrain(config(packed, steps=None, minutes=0.2), tmp_path / "a")
    assert json.loads((made.path / "onggi.json").read_text())["pretrained"]["steps"] == 6
    # A plain text is drawn as far as it is read, and what is drawn does not depend on how far.
    monkeypatch.setattr(sys.modules[Material.__module__], "STEPS", 2)
    plain = {"languages": Languages("ko,el,km"), "batch_tokens": 96, "length": 32}
    by_time = pretrain(PretrainConfig("starter", str(tiny), minutes=0.2, **plain), tmp_path / "plain")
    by_steps = pretrain(PretrainConfig("starter", str(tiny), steps=5, **plain), tmp_path / "steps")
    assert by_time.record["outputs"]["model.safetensors"] == by_steps.record["outputs"]["model.safetensors"]
    assert by_time.record["tokens"] == by_steps.record["tokens"]
    monkeypatch.undo()
    # A measurement for real.
    monkeypatch.setattr(seconds, "__defaults__", (0.1,))
    made = pretrain(config(packed, steps=None, minutes=0.01), tmp_path / "b")
    assert 1 <= json.loads((made.path / "onggi.json").read_text())["pretrained"]["steps"] < 600


def test_another_tokenizer_is_refused(packed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save_fallback_tokenizer(other)
    with pytest.raises(OnggiError, match=r"packed with the tokenizer of .*words, and .*other has another"):
        pretrain(config(packed, tokenizer=str(other)), tmp_path / "a")
    model = save_model(tmp_path / "model", "Llama", num_hidden_layers=1, tie_word_embeddings=True)
    save_fallback_tokenizer(model)
    with pytest.raises(OnggiError, match="the ids would mean other text"):
        pretrain(config(packed, str(model)), tmp_path / "b")
    # Its own, which has since been moved elsewhere.
    shutil.copytree(packed.parent / "words", tmp_path / "words")
    made = pack(PackConfig("starter", str(tmp_path / "words"), 64, Languages("ko,el,km")), tmp_path / "text")
    (tmp_path / "words").rename(tmp_path / "elsewhere")
    with pytest.raises(
        OnggiError, match=r"was packed with .*words, which is not there; name its folder with"
    ):
        pretrain(config(made.path), tmp_path / "c")
    assert pretrain(config(made.path, tokenizer=str(tmp_path / "elsewhere"), steps=1), tmp_path / "d").path
    (made.path / "index.json").write_text("{}")
    with pytest.raises(OnggiError, match="is no packed text"):
        pretrain(config(made.path), tmp_path / "e")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": None}, "size: --init random needs it, as in --size 8m"),
        ({"size": "huge"}, "size: 'huge' is not a size"),
        ({"tokens": 100}, "tokens: --steps says how long"),
        ({"steps": None, "minutes": 0.0}, "minutes: 0.0 is not a number of minutes"),
        ({"length": 128}, "is packed into sequences of 64; pack it again"),
        ({"batch_tokens": 32}, "batch_tokens: 32 are less than one sequence of 64"),
        ({"validation": "probe", "languages": Languages("ka")}, "probe: has no text in ka"),
        ({"report_to": ("comet",)}, "report_to: 'comet' is none of tensorboard, wandb"),
        ({"learning_rate": 2.0}, "learning_rate: 2.0 is not between 0 and 1"),
        ({"z_loss": -1.0}, "z_loss: -1.0 is less than nothing"),
    ],
)
def test_what_cannot_work_is_said(options: dict[str, Any], said: str, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match=said):
        pretrain(config(packed, **options), tmp_path / "out")
    assert not (tmp_path / "out" / "stage.json").exists()


def test_what_is_not_packed_or_has_a_size_of_its_own(packed: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match=r"needs text that `onggi pack` made, .*; starter is none"):
        pretrain(PretrainConfig("starter", "random", "300k", languages=Languages("ko,el,km")), tmp_path / "a")
    with pytest.raises(OnggiError, match=r"size: .* has its own"):
        config(packed, str(tiny), size="8m")


def test_a_service_that_is_not_installed(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.integrations

    monkeypatch.setattr(transformers.integrations, "get_available_reporting_integrations", lambda: ["mlflow"])
    with pytest.raises(OnggiError, match="report_to: wandb is not installed; `pip install wandb`"):
        pretrain(config(packed, report_to=("wandb",)), tmp_path / "a")


def test_dry_run(
    packed: Path,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from onggi.train.outlook import seconds

    monkeypatch.setattr(seconds, "__defaults__", (0.3,))  # not five seconds
    words = ["pretrain", "--text", str(packed), "--init", "random", "--size", "1m", "--tokens", "200000"]
    assert main([*words, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "200,000 tokens in 25 steps" in said and "H100" in said and "here" in said
    assert "tokens a parameter are few" in said and "GiB of memory" in said
    assert main([*words, "--dry-run", "--json", "--out", str(tmp_path / "never")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert abs(found["parameters"] / 1e6 - 1) < 0.06 and found["hours"]["here"] > found["hours"]["A100"] > 0
    assert found["operations"] > 6 * found["parameters"] * 200_000
    assert not (tmp_path / "never").exists()
    further = outlook(config(packed, str(tiny), steps=10))
    assert further["tokens"] == 5120 and len(further["advice"]) == 1
    with pytest.raises(OnggiError, match="is not packed yet"):
        outlook(PretrainConfig("starter", "random", "1m"))


@pytest.mark.parametrize("shard", [False, pytest.param(True, marks=pytest.mark.long)])
def test_two_processes_make_the_curve_of_one(shard: bool, packed: Path, tmp_path: Path) -> None:
    words = ["pretrain", "--text", str(packed), "--init", "random", "--size", "300k", "--steps", "6"]
    words += [
        "--batch-tokens",
        "448",
        "--at-once",
        "2",
        "--validation",
        "probe",
        "--validation-passages",
        "2",
    ]
    # Not Muon, which makes its steps orthogonal in bf16.
    words += ["--validate-every", "3", "--precision", "fp32", "--optimizer", "adamw", "--json", "--out"]
    one, other = tmp_path / "one", tmp_path / "two"
    assert main([*words, str(one)]) == 0
    told = (
        torchrun([*words, str(other), "--shard"]) if shard else "".join(two([*words, str(other)], tmp_path))
    )
    assert json.loads(told)["path"] == str(other)  # the first alone speaks
    same_curves(one, other, 9)
    same_weights(one / "model.safetensors", other / "model.safetensors", 0.02, 2e-4)


def test_the_quick_recipe_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run.run(ROOT / "recipes" / "quick-pretrain.yaml", ["model.steps=20", "early.steps=2"], tmp_path)
    assert [artifact.record["verb"] for artifact in made.values()] == [
        *("text", "tokenizer", "pack", "pretrain", "pretrain", "evaluate"),
    ]
    bits = made["model"].record["bits_per_byte"]
    assert len(bits["after"]) == 8
    for language, value in bits["after"].items():
        assert value < bits["before"][language], language
    scores = json.loads((made["scores"].path / "scores.json").read_text())
    assert scores["reference"] == "early" and set(scores["models"]) == {"early", "model"}
    for language in ("en", "ko", "km", "el"):
        early, late = (scores["models"][name]["languages"][language] for name in ("early", "model"))
        assert late["nll_per_passage"]["value"] < early["nll_per_passage"]["value"], language


def test_the_small_recipe_is_sound() -> None:
    steps = recipe.load(ROOT / "recipes" / "pretrain-small.yaml").steps
    verbs = [step.stage.verb for step in steps]
    assert verbs[:4] == ["text", "tokenizer", "pack", "pretrain"] and "evaluate" in verbs
    places = {step.name: Path(step.name) for step in steps}
    made = recipe.config(steps[3], places)
    assert made.size == "8m" and made.init == "random" and made.validation == "probe"
    assert len(recipe.config(steps[0], places).languages) >= 8
