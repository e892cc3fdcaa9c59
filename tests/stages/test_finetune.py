"""`onggi finetune` on tiny models: what it writes and says, resuming it, two processes, guards, preferences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from forks import killed
from onggi import ledger, recipe
from onggi.cli import main
from onggi.engines.transformers import Engine
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.stages import FinetuneConfig, ReportConfig, finetune, report
from onggi.stages.base import Names
from onggi.stages.finetune_measures import Measures, compared
from onggi.stages.finetune_plan import plan as stage_plan
from onggi.text.prompts import Prompt
from processes import same_curves, same_weights, torchrun

pytest.importorskip("peft")
ROOT = Path(__file__).parent.parent.parent
TALKS = {
    "ko": [
        "버스가 언제 와요?|곧 올 거예요.",
        "김치는 어떻게 보관해요?|냉장고에 두세요.",
        "안녕?|안녕하세요. 반가워요.",
    ],
    "el": [
        "Πού είναι ο σταθμός;|Εδώ δίπλα, στην αγορά.",
        "Τι ώρα είναι;|Είναι τρεις και τέταρτο.",
        "Γεια;|Γεια σου, καλημέρα!",
    ],
    "km": ["តើនៅឯណា?|នៅទីនេះ ជិតផ្សារ។", "អរុណសួស្តី|អរុណសួស្តី! សុខសប្បាយទេ?", "ម៉ោងប៉ុន្មាន?|ម៉ោងបី។"],
}


def rows(times: int = 2) -> list[dict[str, Any]]:
    found = []
    for n in range(times):
        for tag, own in TALKS.items():
            for talk in own:
                asked, answer = talk.split("|")
                said = [
                    {"role": "user", "content": f"{asked} {n}"},
                    {"role": "assistant", "content": f"{answer} {n}"},
                ]
                found.append({"messages": said, "lang": tag})
    return found


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    bad = {
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "깨진\ufffd"}],
        "lang": "ko",
    }
    file.write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in [*rows(), bad]), encoding="utf-8"
    )
    return file


SMALL: dict[str, Any] = {
    "batch_tokens": 256,
    "length": 128,
    "samples": 1,
    "max_tokens": 4,
    "probe_passages": 6,
    "probe_languages": Languages("ko,ja,ar"),
    "measure_every": 100,
    "replay_languages": Languages("ja,ru"),
    "precision": "fp32",
    "learning_rate": 3e-3,
    "warmup": 1,
}


def config(model: Path, data: Path, **options: Any) -> FinetuneConfig:
    return FinetuneConfig(str(model), Names(str(data)), **{**SMALL, "steps": 8, **options})


def flags(**options: Any) -> list[str]:
    return [word for name, value in {**SMALL, **options}.items() for word in (f"--{name}", str(value))]


def test_a_base_model_becomes_an_assistant(
    tiny_gemma: Path, chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tied tables, no tokens for turns: they are added, trained, and end answers in all that load the result."""
    import transformers

    out = tmp_path / "out"
    words = ["finetune", str(tiny_gemma), "--data", str(chat), "--steps", "12", "--out", str(out), *flags()]
    assert main(words) == 0
    told = capsys.readouterr()
    assert told.out.startswith("You gained ") and told.out.rstrip().endswith(f"onggi chat {out}")
    assert (
        f"Left out 1 of {len(rows()) + 1} rows" in told.err
        and f"{chat}, line {len(rows()) + 1}: has an answer" in told.err
    )

    record = json.loads((out / "stage.json").read_text())
    assert {"adapter/adapter_model.safetensors", "tuning.json", "report.html", "left-out.txt"} <= set(
        record["outputs"]
    )
    assert not list(out.rglob("*.bin")) and not list(out.rglob("*.pt"))
    tuning = json.loads((out / "tuning.json").read_text())
    assert list(tuning["answers"]) == ["ko", "el", "km"] and list(tuning["probe"]) == ["ko", "ja", "ar"]
    for own in tuning["answers"].values():
        assert own["after"] < own["before"] - 0.2
    facts = tuning["facts"]
    assert (facts["template"], facts["left_out"], facts["steps"]) == ("ChatML", 1, 12)
    assert facts["tokens"]["ja"]["replayed"] > 0 and facts["tokens"]["ja"]["learnt"] == 0
    assert facts["parameters"]["trained"] < facts["parameters"]["all"] / 5

    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (
        end == 1025 and model.get_input_embeddings().weight.shape[0] == 1026 and model.dtype == torch.bfloat16
    )
    assert end in model.generation_config.eos_token_id and end in Engine(out).ends
    talk = [{"role": "user", "content": "버스가 언제 와요?"}]
    rendered = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert rendered == "<s><|im_start|>user\n버스가 언제 와요?<|im_end|>\n<|im_start|>assistant\n"
    # The adapter over the base, with its new rows, is the merged model, bf16 aside.
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_gemma, dtype=torch.float32)
    base.resize_token_embeddings(1026, mean_resizing=False)
    import peft

    adapted = peft.PeftModel.from_pretrained(base, str(out / "adapter"))
    ids = torch.tensor([tokenizer(rendered, add_special_tokens=False).input_ids])
    near = (adapted(ids).logits - model.float()(ids).logits).abs().max()
    assert float(near.detach()) < 0.1
    before = load_file(tiny_gemma / "model.safetensors")["model.embed_tokens.weight"]
    after = load_file(out / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(after[:1024], before) and not torch.equal(after[1024], before[0])

    page = (out / "report.md").read_text()
    assert page.split("\n\n")[1].startswith("**You gained ") and "អរុណសួស្តី" in page
    assert (
        "## While it was trained\n\n![" in page and "](curves.svg)" in page and (out / "curves.svg").is_file()
    )
    assert (
        "Khmer" in (out / "README.md").read_text()
        and "base_model_relation: finetune" in (out / "README.md").read_text()
    )
    about = json.loads((out / "onggi.json").read_text())
    assert about["tuned"]["moved"]["linears"]["moved"] > 0

    made = report(ReportConfig([str(out)], "ko"), tmp_path / "report")
    korean = (made.path / "report.md").read_text()
    assert "얻은 것은" in korean and "크메르어" in korean and "curves.svg" not in korean
    written = (out / "stage.json").stat().st_mtime_ns
    assert main([*words, "--json"]) == 0 and (out / "stage.json").stat().st_mtime_ns == written


def test_all_weights_by_last_answers(tiny: Path, chat: Path, tmp_path: Path) -> None:
    made = finetune(
        config(
            tiny, chat, method="full", neftune=5.0, languages=Languages("ko,km"), turns="last", balance="none"
        ),
        tmp_path / "out",
    )
    found = made.record["tuning"]
    assert set(found["answers"]) == {"ko", "km"}
    assert all(own["after"] < own["before"] for own in found["answers"].values())
    assert not (made.path / "adapter").exists()
    Engine(made.path)


def stopped(words: list[str], out: Path) -> None:
    """Run until a checkpoint stands, kill, and run to the end."""
    training = out / ".partial" / "training"
    killed(
        *(*words, str(out)),
        when=lambda: list(training.glob("step-*[1-9]/checkpoint.json")),
        settings={f"onggi.train.{name}:CHECKPOINT_EVERY": 0.0 for name in ("trainer", "preference")},
    )
    assert list(training.glob("step-*[1-9]")) and not (out / "stage.json").exists(), (
        "the kill came after the end"
    )
    assert main([*words, str(out)]) == 0


def test_killed_it_ends_in_the_same_bytes(tiny_gemma: Path, chat: Path, tmp_path: Path) -> None:
    """With noise and dropout, whose dice are kept too, and a guard."""
    words = ["finetune", str(tiny_gemma), "--data", str(chat), "--steps", "20", "--guard", "ja:0.5"]
    words += [*flags(dropout=0.1, neftune=5.0, measure_every=4), "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    stopped(words, tmp_path / "killed")
    outputs = [ledger.read_json(tmp_path / name / "stage.json")["outputs"] for name in ("whole", "killed")]
    apart = {name for name in outputs[0] if outputs[0][name] != outputs[1][name]}
    assert apart <= {"report.html", "report.md", "tuning.json"}  # the name of the folder stands in them
    assert outputs[0]["adapter/adapter_model.safetensors"] == outputs[1]["adapter/adapter_model.safetensors"]


def test_a_guard_keeps_the_last_state_that_held(tiny: Path, chat: Path, tmp_path: Path) -> None:
    options = {
        "method": "full",
        "steps": 24,
        "measure_every": 2,
        "learning_rate": 1e-2,
        "replay": 0.5,
        "warmup": 8,
    }
    guarded = FinetuneConfig(
        str(tiny),
        Names(str(chat)),
        **{
            **SMALL,
            **options,
            "replay_languages": Languages("ko"),
            "guard": Names("ru:0.02"),
            "keep": "last",
        },
    )
    held = finetune(guarded, tmp_path / "held")
    lines = [json.loads(line) for line in (held.path / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["bits_per_byte"]["ru"] for line in lines if "bits_per_byte" in line}
    stopped = [line for line in lines if "stopped" in line]
    back = [line for line in lines if line.get("because") == "guard"]
    assert stopped and back and stopped[0]["stopped"]["ru"] > 0.02
    kept = back[0]["step"]
    assert 0 < kept < stopped[0]["step"] == held.record["facts"]["steps"]
    assert measured[kept] / measured[0] - 1 <= 0.02 < measured[stopped[0]["step"]] / measured[0] - 1
    assert "the last at which the guard held" in (held.path / "report.md").read_text()


def test_a_question_that_is_rightly_answered_in_code_says_nothing_of_languages() -> None:
    said = {
        "ko": ("짝수만 골라 주세요.", "def evens(numbers):\n    return [n for n in numbers if n % 2 == 0]"),
        "th": ("สวัสดีภาษาอังกฤษว่าอะไร", "The usual greeting in the morning is good morning."),
        "ar": ("ما عاصمة كوريا؟", "عاصمة كوريا الجنوبية هي مدينة سيول الكبيرة."),
        "en": ("What is kimchi?", None),
    }
    prompts = [Prompt(tag, tag, (asked,), (written,), "held out") for tag, (asked, written) in said.items()]
    rows = [{"_id": tag, "output": "x", "finish": "stop", "values": {"script": 0.0}} for tag in said]
    side = {"answers": {}, "rejected": {}, "probe": {}, "rows": rows}
    found = compared(Measures({}, {}, {}, prompts), side, side, ["ko"])
    assert {tag: own["after"]["n"] for tag, own in found["right"].items()} == {"ar": 1, "en": 1}
    assert [sample["_id"] for sample in found["samples"]] == list(said)


@pytest.mark.long
def test_two_processes_make_the_curve_of_one(tiny: Path, chat: Path, tmp_path: Path) -> None:
    words = ["finetune", str(tiny), "--data", str(chat), "--steps", "4", "--at_once", "1"]
    words += [*flags(batch_tokens=384, measure_every=2), "--json", "--out"]
    assert main([*words, str(tmp_path / "one")]) == 0
    torchrun([*words, str(tmp_path / "two")])
    one, other = tmp_path / "one", tmp_path / "two"
    same_curves(one, other, 10)
    adapter = Path("adapter") / "adapter_model.safetensors"
    same_weights(one / adapter, other / adapter, 2e-3, 2e-5)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    made = [
        {
            "prompt": row["messages"][0]["content"],
            "chosen": row["messages"][1]["content"],
            "rejected": "…!",
            "lang": row["lang"],
        }
        for row in rows()
    ]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in made), encoding="utf-8")
    return file


@pytest.mark.parametrize("objective", ["dpo", "simpo"])
def test_preferences(objective: str, tiny_gemma: Path, pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    out = tmp_path / "out"
    words = ["finetune", str(tiny_gemma), "--data", str(pairs), "--objective", objective, "--steps", "8"]
    words += [*flags(learning_rate=1e-3), "--out"]
    assert main([*words, str(out)]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and all(line["preferred"] is not None for line in lines)
    assert sum(line["loss"] for line in lines[-2:]) < sum(line["loss"] for line in lines[:2])
    record = json.loads((out / "stage.json").read_text())
    for own in record["tuning"]["answers"].values():
        assert own["preferred"][1] >= own["preferred"][0]
    files = sorted(path.name for path in (out / "adapter").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"] and not list(out.rglob("*.bin"))
    assert "chosen answer likelier" in (out / "report.md").read_text()
    Engine(out)
    if objective == "simpo":
        stopped(words, tmp_path / "killed")
        again = ledger.read_json(tmp_path / "killed" / "stage.json")["outputs"]
        for name in ("model.safetensors", "adapter/adapter_model.safetensors", "metrics.jsonl"):
            assert again[name] == record["outputs"][name], name


def test_preview_and_dry_run(
    tiny: Path,
    chat: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from onggi.train.outlook import seconds

    monkeypatch.setattr(seconds, "__defaults__", (0.2,))
    words = ["finetune", str(tiny), "--data", str(chat)]
    assert main([*words, "--preview"]) == 0
    told = capsys.readouterr().out
    assert "loss on " in told and '"곧 올 거예요. 0<|im_end|>"' in told and "<|im_start|>user" in told
    assert "given ChatML's" in told
    assert main([*words, "--dry-run"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "weights are trained, in" in told and "km" in told
    assert main([*words, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dialogues"]["ko"] == 5 and found["left_out"] == 1 and found["hours"]["here"] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps: 0 is not more than 0"),
        ({"epochs": 2.0}, "epochs: --steps says how long"),
        ({"length": 512}, "length: 512 is not between 8 and the 256 places"),
        ({"replay": 0.9}, "replay: 0.9 is not a share from 0 to 0.5"),
        ({"guard": Names("ja")}, "guard: 'ja' is not LANGUAGE:SHARE, as in ja:0.02"),
        ({"guard": Names("th:0.02")}, "guard: starter has no text in th"),
        ({"replay_text": "probe"}, "probe is for measuring and never for training"),
        ({"languages": Languages("ka")}, "no dialogues in ka; languages that there are: none"),
        ({"objective": "dpo"}, "has no chosen and rejected, which --objective dpo learns from"),
        ({"strict": True}, "Left out 1 of 19 rows"),
        ({"method": "qlora"}, "only a GPU"),
        ({"report_to": Names("comet")}, "report_to: 'comet' is none of"),
        ({"data": Names("nowhere.jsonl")}, "nowhere.jsonl: there is no such file"),
        ({"length": 8}, "every dialogue in Korean is longer than 8 tokens"),
    ],
)
def test_what_cannot_work_is_said(
    options: dict[str, Any], said: str, tiny: Path, chat: Path, tmp_path: Path
) -> None:
    data = options.pop("data", Names(str(chat)))
    with pytest.raises(OnggiError, match=said):
        finetune(FinetuneConfig(str(tiny), data, **{**SMALL, "steps": 8, **options}), tmp_path / "out")
    assert not (tmp_path / "out" / "stage.json").exists()


def test_the_plan_counts_no_more_places_than_a_step_has(tiny: Path, chat: Path) -> None:
    few, more, most = (
        stage_plan(config(tiny, chat, batch_tokens=512, length=64, at_once=at_once)).memory or 0
        for at_once in (2, 8, 800)
    )
    assert 0 < few < more == most


def test_what_is_said_of_gains_and_losses() -> None:
    """Verdicts by paired tests: a gain in Korean, a loss in Japanese, nothing in Khmer's noise."""
    from onggi.phrases import Phrases
    from onggi.report import tuning
    from onggi.stages.finetune_measures import Measures, compared, in_language

    def side(answers: float, japanese: float, noise: float) -> dict[str, Any]:
        own = {"nats": [answers * (10 + i) for i in range(8)], "tokens": [10 + i for i in range(8)]}
        nll = {
            "ja": [japanese * (100 + i) for i in range(12)],
            "km": [200 + noise * (-1) ** i * (i + 3) for i in range(12)],
        }
        probe = {tag: {"nll": values, "tokens": [50] * 12} for tag, values in nll.items()}
        return {"answers": {"ko": own}, "rejected": {}, "probe": probe, "rows": []}

    measures = Measures({}, {}, {}, [])
    found = compared(measures, side(3.0, 1.0, 0.0), side(2.1, 1.05, 3.0), ["ko"])
    assert found["answers"]["ko"]["verdict"] == "better" and found["probe"]["ja"]["verdict"] == "worse"
    assert found["probe"]["km"]["verdict"] == "no significant difference"
    assert tuning.headline(found, Phrases("en")) == "You gained 30.0% in Korean and lost 5.0% in Japanese."
    assert tuning.headline(found, Phrases("ko")) == "얻은 것은 한국어 30.0%, 잃은 것은 일본어 5.0%입니다."
    same = compared(measures, side(3.0, 1.0, 0.0), side(3.001, 1.001, 0.0), ["ko"])
    assert same["answers"]["ko"]["verdict"] == same["probe"]["ja"]["verdict"] == "equivalent within 1%"
    said = tuning.headline(same, Phrases("en"))
    assert said == "You gained nothing and lost nothing that the probe shows in 2 languages."
    assert in_language({"line": 1.0, "empty": 0.0}) and in_language({"script": 1.0})
    assert (
        not in_language({})
        and not in_language({"line": 0.0, "script": 1.0})
        and not in_language({"empty": 1.0})
    )


def test_the_recipe_is_sound() -> None:
    steps = recipe.load(ROOT / "recipes" / "finetune-korean.yaml").steps
    assert [step.stage.verb for step in steps] == ["finetune", "quantize", "evaluate", "report"]
    made = recipe.config(steps[0], {step.name: Path(step.name) for step in steps})
    assert (
        made.model == "package:gemma3-270m"
        and made.limits == {"ja": 0.02}
        and set(made.languages) == {"ko", "en"}
    )
    assert "seed" in made.data
