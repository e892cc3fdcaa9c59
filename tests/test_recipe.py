"""Everything that can be wrong with a recipe is said in one line, before anything is done."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from onggi import recipe, run
from onggi.errors import OnggiError
from onggi.stages import EvaluateConfig, QuantizeConfig, ReportConfig, TextConfig

Write = Callable[[str], Path]

# Written from the last stage to the first.
FULL = """
name: small
stages:
  report: {verb: report, inputs: ["${scores}"]}
  scores: {verb: evaluate, models: ["w4=${w4}", "rtn=${rtn}"], reference: owner/base, limit: 2}
  w4: {verb: quantize, model: owner/base, text: "${calibration}", languages: "en,ko", tokens: 100}
  rtn: {verb: quantize, model: owner/base, method: rtn}
  calibration: {verb: text, source: starter, languages: [en, zh-cn, kor_Hang]}
"""
ONE = "stages: {a: {verb: text, source: probe, languages: en}}"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(content, encoding="utf-8")
        return path

    return write


def test_order_and_references(write: Write) -> None:
    loaded = recipe.load(write(FULL))
    order = [step.name for step in loaded.steps]
    assert loaded.name == "small"
    assert sorted(order) == ["calibration", "report", "rtn", "scores", "w4"]
    assert order.index("calibration") < order.index("w4") < order.index("scores") < order.index("report")
    assert order.index("rtn") < order.index("scores")
    folders = {name: Path("runs") / name for name in order}
    made = {step.name: recipe.config(step, folders) for step in loaded.steps}
    assert made["calibration"] == TextConfig("starter", ("en", "zh-Hans", "ko"))  # type: ignore[arg-type]
    assert made["w4"] == QuantizeConfig(
        "owner/base",
        text="runs/calibration",
        languages=("en", "ko"),  # type: ignore[arg-type]
        tokens=100,
    )
    assert made["scores"] == EvaluateConfig(["w4=runs/w4", "rtn=runs/rtn"], "owner/base", limit=2)
    assert made["report"] == ReportConfig(["runs/scores"])


@pytest.mark.parametrize("prefix", ["", "--"])
def test_overrides(write: Write, prefix: str) -> None:
    overrides = ["w4.tokens=64", "w4.languages=[no, ko]", "scores.limit=null", "w4.scheme=w4a16-g64"]
    steps = recipe.load(write(FULL), [prefix + override for override in overrides]).steps
    made = {step.name: recipe.config(step, {s.name: Path(s.name) for s in steps}) for step in steps}
    assert (made["w4"].tokens, made["w4"].languages, made["w4"].scheme) == (64, ("no", "ko"), "w4a16-g64")
    assert made["scores"].limit is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("score.limit=3", "no stage 'score'. Did you mean 'scores'?"),
        ("w4.tokns=64", "stages.w4.tokns: quantize has no option 'tokns'. Did you mean 'tokens'?"),
        ("w4.tokens=many", "stages.w4.tokens: expected int, not many"),
        ("w4.damping=", "stages.w4.damping: has no value"),
        ("w4.text=${calibratio}", "stages.w4: refers to ${calibratio}, which is no stage here. Did you mean"),
        ("w4.text=[", "'w4.text=[': the value is not valid YAML"),
        ("w4.tokens", "an override is STAGE.KEY=VALUE"),
        ("tokens=4", "an override is STAGE.KEY=VALUE"),
    ],
)
def test_wrong_overrides(write: Write, override: str, said: str) -> None:
    with pytest.raises(OnggiError, match=re.escape(said)) as error:
        recipe.load(write(FULL), [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", 'a recipe is a mapping with "name" and "stages"'),
        ("- a", 'a recipe is a mapping with "name" and "stages"'),
        ("stages: {}", '"stages" is missing or empty'),
        ("stages: [a]", '"stages" is missing or empty'),
        ("stagse: {a: {verb: text}}", "unknown key 'stagse'. Did you mean 'stages'?"),
        ("stages: {a: [text]}", "stages.a: is not a mapping"),
        (
            "stages: {a: {source: probe}}",
            'stages.a: has no "verb". There is: text, tokenizer, pack, reshape',
        ),
        ("stages: {a: {verb: quantise, model: m}}", "there is no verb 'quantise'. Did you mean 'quantize'?"),
        ("stages: {a: {verb: [text]}}", "stages.a.verb: there is no verb"),
        ("stages: {a: {verb: text, languages: en}}", "stages.a: text needs 'source'"),
        (
            ONE.replace("source", "sorce"),
            "stages.a.sorce: text has no option 'sorce'. Did you mean 'source'?",
        ),
        (ONE.replace("probe", "3"), "stages.a.source: expected list, not 3"),
        (ONE.replace("en}", "3}"), "stages.a.languages: 3 is not a list of languages"),
        (ONE.replace("en}", "[ko, klingonish]}"), "stages.a.languages: 'klingonish' is not a language tag"),
        (ONE.replace("a:", "../a:"), "'../a' cannot be a name"),
        (ONE.replace("en}", "en, fallback: '${b}'}"), "refers to ${b}, which is no stage here. There is: a."),
        ("stages: {a: {verb: quantize, model: m, tokens: 8.5}}", "stages.a.tokens: expected int, not 8.5"),
        ("stages: {a: {verb: quantize, model: m, damping: null}}", "stages.a.damping: has no value"),
        (
            "stages: {a: {verb: quantize, model: m, scheme: w4}}",
            "stages.a.scheme: expected one of w4a16-g128, w4a16-g64, ",
        ),
        ("stages: {a: {verb: evaluate, models: [1], reference: r}}", "stages.a.models: expected str, not 1"),
        ("stages: {a: {verb: report, inputs: ['${a}']}}", "in a circle: a → a"),
        (
            "stages: {a: {verb: report, inputs: ['${b}']}, b: {verb: report, inputs: ['${a}']}}",
            "in a circle: ",
        ),
        (
            "stages:\n  a: {verb: text}\n  a: {verb: text}",
            "line 3: is not valid YAML (the key 'a' stands twice)",
        ),
        ("stages:\n  a:\n    verb: text\n    verb: text", "line 4: is not valid YAML (the key 'verb' stands"),
        ("stages:\n\ta: b", "line 2: is not valid YAML"),
        ("? [a]\n: b", "line 1: is not valid YAML (found unhashable key)"),
        ("a: \x00", "is not valid YAML (unacceptable character"),
        (
            "a: !!python/object/apply:os.getcwd []",
            "line 1: is not valid YAML (could not determine a constructor",
        ),
        ("stages: " + "[" * 5000, "nested too deep"),
        ("stages: {a: {verb: text, source: &x [*x], languages: en}}", "stages.a: a value holds itself"),
    ],
)
def test_wrong_recipes(write: Write, content: str, said: str) -> None:
    path = write(content)
    with pytest.raises(OnggiError, match=re.escape(said)) as error:
        recipe.load(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: café".encode("latin-1"))
    for name, said in [("latin.yaml", "not UTF-8"), ("none.yaml", "No such file"), (".", "Is a directory")]:
        with pytest.raises(OnggiError, match=said):
            recipe.load(tmp_path / name)


def test_shared_options_by_merge_key(write: Write) -> None:
    text = """
stages:
  a: &base {verb: text, source: probe, languages: en}
  b: {<<: *base, languages: ko}
"""
    steps = {step.name: step for step in recipe.load(write(text)).steps}
    assert recipe.config(steps["b"], {}) == TextConfig("probe", ("ko",))  # type: ignore[arg-type]


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_dry_run_touches_nothing_and_says_what_is_done(write: Write, tmp_path: Path, tiny: Path) -> None:
    source = tmp_path / "own.jsonl"
    source.write_text(json.dumps({"_id": 1, "en": "Good day.", "ko": "안녕하세요.", "km": "សួស្តី។"}))
    path = write(f"""
name: small
stages:
  calibration: {{verb: text, source: {source}, languages: "en,ko,km"}}
  rtn: {{verb: quantize, model: {tiny}, method: rtn}}
  w4: {{verb: quantize, model: {tiny}, text: "${{calibration}}", tokens: 64}}
  scores: {{verb: evaluate, models: ["w4=${{w4}}"], reference: {tiny}, text: "${{calibration}}"}}
""")
    runs = tmp_path / "runs"
    before = tree(tmp_path)
    rows = {row["stage"]: row for row in run.dry_run(path, (), runs)}
    assert tree(tmp_path) == before
    assert {name: row["state"] for name, row in rows.items()} == dict.fromkeys(rows, "to do")
    assert (rows["w4"]["tokens"], rows["rtn"]["tokens"]) == (64, 0)
    memory, weights = rows["w4"]["memory"], (tiny / "model.safetensors").stat().st_size
    assert isinstance(memory, int) and memory > weights

    recipe_of_text = write(
        f"name: small\nstages: {{calibration: {{verb: text, source: {source}, languages: 'en,ko,km'}}}}"
    )
    made = run.run(recipe_of_text, (), runs)
    assert made["calibration"].path == runs / "small" / "calibration"
    before = tree(tmp_path)
    again = run.run(recipe_of_text, (), runs)
    assert tree(tmp_path) == before
    assert again["calibration"].record == made["calibration"].record
    assert run.dry_run(recipe_of_text, (), runs)[0]["state"] == "done"
    assert run.dry_run(recipe_of_text, ["calibration.languages=en"], runs)[0]["state"] == "to do"


def test_a_failing_stage_is_named(write: Write, tmp_path: Path) -> None:
    path = write("stages: {first: {verb: text, source: probe, languages: 'ko,vi'}}")
    with pytest.raises(OnggiError, match=re.escape(f"{path}: stages.first: probe: has no text in vi")):
        run.run(path, (), tmp_path / "runs")
