"""Tasks of lm-eval through our engine: the same numbers as lm-eval's own transformers model."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("lm_eval")

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from onggi.cli import main
from onggi.engines.transformers import Engine
from onggi.errors import OnggiError
from onggi.evaluate import harness, tallies
from onggi.stages import EvaluateConfig, evaluate
from onggi.stages.base import Names

ROWS = {
    "ko": [
        ("대한민국의 수도는", ["서울", "부산", "파리"], 0),
        ("물이 얼면", ["돌", "얼음", "불"], 1),
        ("하늘은", ["초록색이다", "빨갛다", "파랗다"], 2),
        ("고양이는", ["동물이다", "식물이다", "광물이다"], 0),
    ],
    "th": [
        ("เมืองหลวงของไทยคือ", ["กรุงเทพ", "โตเกียว", "ปารีส"], 0),
        ("น้ำแข็งคือ", ["ไฟ", "น้ำ", "หิน"], 1),
        ("ท้องฟ้าสี", ["เขียว", "แดง", "ฟ้า"], 2),
        ("แมวเป็น", ["สัตว์", "พืช", "แร่"], 0),
    ],
    "en": [
        ("The capital of Korea is", ["Seoul", "Busan", "Paris"], 0),
        ("Frozen water is", ["stone", "ice", "fire"], 1),
        ("The sky is", ["green", "red", "blue"], 2),
        ("A cat is", ["an animal", "a plant", "a mineral"], 0),
    ],
}
OPEN = {"output_type": "generate_until", "doc_to_target": "{{choices[answer]}}"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No connection but to this process; `datasets` keeps its tables in the test's folder."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("a test may not use the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def task(folder: Path, name: str, language: str, **config: Any) -> str:
    """A task's YAML file beside its data."""
    data = folder / f"{language}.jsonl"
    rows = [{"question": q, "choices": c, "answer": a} for q, c, a in ROWS[language]]
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    whole = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "fewshot_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "num_fewshot": 1,
        **config,
    }
    if whole["output_type"] == "generate_until":
        whole["generation_kwargs"] = {"until": ["\n"], "max_gen_toks": 8}
        del whole["doc_to_choice"]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in whole.items() if v is not None}), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    tasks = [task(tmp_path, f"pick_{language}", language) for language in ROWS]
    return [*tasks, task(tmp_path, "say_th", "th", **OPEN), task(tmp_path, "say_ko", "ko", **OPEN)]


def theirs(folder: Path, files: list[str], bos: bool | None = None, **options: Any) -> Any:
    model = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4, add_bos_token=bos)
    manager = TaskManager(include_defaults=False)
    return lm_eval.simple_evaluate(model, tasks=files, task_manager=manager, bootstrap_iters=10, **options)


@pytest.mark.parametrize("kind", ["tiny", "tiny_gemma"])
def test_as_lm_eval_itself(kind: str, files: list[str], tmp_path: Path, request: Any) -> None:
    folder = request.getfixturevalue(kind)
    out = evaluate(EvaluateConfig([f"m={folder}"], tasks=Names(files)), tmp_path / "out").path
    found = theirs(folder, files)
    ours = json.loads((out / "results_m.json").read_text(encoding="utf-8"))
    for name, entry in found["results"].items():
        assert ours["results"][name].keys() == entry.keys()
        for key, value in entry.items():
            if key.startswith(("acc", "exact_match")) and "stderr" not in key:
                assert ours["results"][name][key] == value
    # What lm-eval adds for the machine and the clock is not there; all that is told of tasks is.
    for part in ("n-shot", "versions", "higher_is_better", "n-samples", "group_subtasks"):
        assert ours[part] == json.loads(json.dumps(found[part]))
    assert "|pick_ko|" in make_table(ours).replace(" ", "")
    for language in ROWS:
        lines = (out / f"samples_m_pick_{language}.jsonl").read_text(encoding="utf-8").splitlines()
        own = [json.loads(line) for line in lines]
        for sample, other in zip(own, found["samples"][f"pick_{language}"], strict=True):
            assert sample.keys() == other.keys()
            for mark in ("doc_hash", "prompt_hash", "target_hash", "acc"):
                assert sample[mark] == other[mark]
            nats = [float(nats) for nats, _ in sample["filtered_resps"]]
            assert nats == pytest.approx([nats for nats, _ in other["filtered_resps"]], abs=1e-3)
    for language in ("th", "ko"):
        lines = (out / f"samples_m_say_{language}.jsonl").read_text(encoding="utf-8").splitlines()
        said = [json.loads(line)["filtered_resps"] for line in lines]
        assert said == [s["filtered_resps"] for s in found["samples"][f"say_{language}"]]


def test_scores_by_language_and_verdicts(
    tiny: Path, tiny_gemma: Path, files: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = [file for file in files if not file.endswith("_en.yaml")]
    words = ["--tasks", ",".join([*asked, "capitals"]), "--limit", "3", "--languages", "ko,th"]
    assert main(["evaluate", f"a={tiny}", f"b={tiny_gemma}", *words, "--out", str(out), "--quiet"]) == 0
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert scores["tasks"]["pick"]["languages"] == ["ko", "th"] and scores["tasks"]["pick"]["shots"] == 1
    for language in ("ko", "th"):
        entry = scores["models"]["b"]["languages"][language]["pick/acc"]
        assert entry["n"] == 3 and entry["chance"] == pytest.approx(1 / 3)
        assert {"right_to_wrong", "wrong_to_right", "p", "verdict"} <= entry.keys()
        assert "say/exact_match" in scores["models"]["a"]["languages"][language]
        assert "capitals/acc_mutual_info" in scores["models"]["a"]["languages"][language]
    with pytest.raises(OnggiError, match=r"pick_en\.yaml is in none of ko,th"):
        harness.prepare([file for file in files if file not in asked], ["ko", "th"], None, None)
    ours = json.loads((out / "results_b.json").read_text(encoding="utf-8"))
    assert ours["group_subtasks"]["capitals"] == ["capitals_ko", "capitals_th"]
    value = scores["models"]["b"]["languages"]["ko"]["capitals/acc_mutual_info"]["value"]
    assert ours["results"]["capitals_ko"]["acc_mutual_info,none"] == value
    assert "capitals_th|" in make_table(ours).replace(" ", "")
    sample = json.loads((out / "samples_b_capitals_ko.jsonl").read_text(encoding="utf-8").splitlines()[0])
    theirs = json.loads((out / "samples_b_pick_ko.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert sample.keys() - {"acc_mutual_info"} == theirs.keys() - {"acc", "acc_norm"}


def test_a_stopped_run_asks_only_for_the_rest(
    tiny: Path, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluateConfig([f"a={tiny}"], tasks=Names(files))
    whole = evaluate(config, tmp_path / "whole").path
    score, count = Engine.score, 0

    def stops(self: Engine, pairs: Any) -> Iterator[Any]:
        for number, found in enumerate(score(self, pairs)):
            if number == 20:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(Engine, "score", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, tmp_path / "again")

    def counts(self: Engine, pairs: Any) -> Iterator[Any]:
        nonlocal count
        count += len(pairs)
        return score(self, pairs)

    monkeypatch.setattr(Engine, "score", counts)
    again = evaluate(config, tmp_path / "again").path
    assert count == 3 * 4 * 3 - 20
    for path in whole.iterdir():
        if path.name != "stage.json":
            assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_whole_texts_longer_than_the_window(tiny: Path, tmp_path: Path) -> None:
    # 2,048 positions: the Thai text goes through in pieces.
    text = " ".join(q + c[a] for language in ROWS for q, c, a in ROWS[language]) * 14
    file = task(
        tmp_path,
        "read_th",
        "th",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target=text,
        num_fewshot=0,
        doc_to_choice=None,
        metric_list=[{"metric": "bits_per_byte"}],
    )
    out = evaluate(EvaluateConfig([f"m={tiny}"], tasks=Names([file]), limit=2), tmp_path / "out").path
    ours = json.loads((out / "results_m.json").read_text(encoding="utf-8"))["results"]["read_th"]
    # Its default sets a start token after the start token, and scores that as part of the text.
    found = theirs(tiny, [file], bos=False, limit=2)["results"]["read_th"]
    assert len(Engine(tiny).tokens.encode(text)) > 2048
    assert ours["bits_per_byte,none"] == pytest.approx(found["bits_per_byte,none"], abs=1e-5)
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert scores["tasks"]["read"]["higher_is_better"] is False


def test_a_loss_is_a_rise_where_lower_is_better() -> None:
    before = [{"item": str(i), "value": 2.0 + i / 100} for i in range(40)]
    after = [{"item": row["item"], "value": row["value"] * 1.5} for row in before]
    rows = {"a": dict.fromkeys(ROWS, before), "b": dict.fromkeys(ROWS, after)}
    for higher, word in ((False, "worse"), (True, "better")):
        entries = tallies.tally_metric(rows, "a", 0.01, {}, higher)["b"]
        assert {entry["verdict"] for entry in entries.values()} == {word}
        assert all(entry["change"] > 0 for entry in entries.values())


@pytest.mark.parametrize(
    ("name", "config", "language"),
    [
        ("xcopa_th", {}, "th"),
        ("kobest_copa", {"dataset_name": "copa"}, "ko"),
        ("hrm8k_math_en", {}, "en"),
        ("belebele_arb_Arab", {}, "ar"),
        ("global_mmlu_full_ja_stem", {}, "ja"),
        ("xnli_eu_mt", {"dataset_name": "eu"}, "eu"),
        ("catalan_bench_flores_de-ca", {"dataset_name": "all"}, "ca"),
        ("mine", {"metadata": {"lang": "khm_Khmr"}}, "km"),
        ("mine_th", {"metadata": {"lang": "lo"}}, "lo"),
        ("arc_easy", {"dataset_name": "ARC-Easy"}, None),
    ],
)
def test_the_language_a_task_says(name: str, config: dict[str, Any], language: str | None) -> None:
    assert harness._told(name, config) == language


def test_the_language_a_task_is_seen_to_be_in(tmp_path: Path) -> None:
    made = [task(tmp_path, f"plain{language}", language) for language in ("ko", "th")]
    found = harness.prepare(made, None, None, None)
    assert [one.language for one in found] == ["ko", "th"]


def test_mistakes(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("task: [", encoding="utf-8")
    lost = task(tmp_path, "lost_ko", "ko")
    (tmp_path / "ko.jsonl").unlink()
    cases = [
        (str(broken), "broken.yaml: not a task that lm-eval reads"),
        (str(tmp_path / "nowhere.yaml"), "there is no such file"),
        (lost, "tasks: lost_ko (of"),
        (lost, "its data set json cannot be loaded"),
    ]
    for name, said in cases:
        assert main(["evaluate", str(tiny), "--tasks", name, "--out", str(tmp_path / "s"), "--quiet"]) == 1
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1, error
    language = task(tmp_path, "tongue", "en", metadata={"lang": "xx-nothing-at-all"})
    with pytest.raises(OnggiError, match=r"metadata\.lang"):
        harness.prepare([language], None, None, None)


@pytest.mark.parametrize("name", ["capitols", "mine_km.yaml"])
def test_without_the_extra(
    tiny: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["evaluate", str(tiny), "--tasks", name, "--out", str(tmp_path / "s"), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert "pip install 'onggi[tasks]'" in error
    assert ("Did you mean 'capitals'?" in error) == (name == "capitols")


def test_what_is_drawn_hangs_on_its_request_alone(tiny: Path) -> None:
    given = {"do_sample": True, "temperature": 5.0, "max_gen_toks": 6, "until": []}
    texts = ("옹기는", "Le pain", "ภาษาไทย")
    requests = [harness.Request("generate_until", (text, given), turn) for turn in (0, 1) for text in texts]
    engine = Engine(tiny)
    whole = {row["item"]: row["response"] for row in harness.respond(requests, engine, {})}
    kept = {one.id: {"item": one.id} for one in requests[:4]}  # a run that was stopped
    assert {row["item"]: row["response"] for row in harness.respond(requests, engine, kept)} == {
        one.id: whole[one.id] for one in requests[4:]
    }
    assert len(set(whole.values())) == len(requests)  # a repeated request is drawn anew


def test_a_name_of_ours_is_refused(tmp_path: Path) -> None:
    for name in ("capitals_ko", "sums"):
        with pytest.raises(OnggiError, match=f"{name}: a task of onggi's has this name"):
            harness.prepare([task(tmp_path, name, "ko")], None, None, None)


def test_names_of_lm_eval() -> None:
    # One test for all that needs the index of its 14,000 files.
    with pytest.raises(OnggiError, match=r"no task 'kobest_cop'\. Did you mean 'kobest_copa'"):
        harness.prepare(["kobest_cop"], None, None, None)
    assert {"kobest_copa", "haerae_history", "kmmlu_law", "hrm8k_ksm", "click_lang_grammar"} <= set(
        harness._leaves("korean")
    )
    many = harness._leaves("multilingual")
    starts = ("belebele_kor_Hang", "global_mmlu_ja_", "mgsm_direct_th", "xcopa_ta", "xnli_ar", "flores")
    for start in starts:
        assert any(start in name for name in many), start
    assert harness._told("xcopa_th", harness._config("xcopa_th")) == "th"
