"""An evaluation on a local Ray cluster of two workers comes to the same numbers as one without."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytest.importorskip("ray")

from clusters import sent
from onggi import fanout, ledger
from onggi.engines.transformers import Engine
from onggi.errors import OnggiError
from onggi.evaluate import pieces
from onggi.evaluate.answering import read
from onggi.evaluate.pieces import Piece, Row
from onggi.languages import Languages
from onggi.stages import EvaluateConfig, QuantizeConfig, evaluate, quantize
from onggi.stages.base import Names

LANGUAGES = Languages("ko,el,th")


@pytest.fixture(scope="module", autouse=True)
def functions(ray: None) -> Iterator[None]:
    with sent(__name__):
        yield


@pytest.fixture(scope="module")
def w4(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(QuantizeConfig(str(tiny), method="rtn"), tmp_path_factory.mktemp("w4") / "w4").path


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    file = tmp_path / "prompts.jsonl"
    rows = [
        {"_id": "k", "prompt": "대한민국의 수도는 어디인가요?", "lang": "ko", "answer": "서울"},
        {"_id": "t", "prompt": "เมืองหลวงของไทยคืออะไร", "lang": "th"},
        {"_id": "g", "turns": ["Ποια είναι η πρωτεύουσα;", "Γιατί;"], "lang": "el"},
    ]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return str(file)


def same(one: Any, other: Any) -> None:
    """Two JSON values: the same, numbers to float tolerance."""
    if isinstance(one, Mapping):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    else:
        assert one == other


def same_files(one: Path, other: Path) -> None:
    assert {file.name for file in one.iterdir()} == {file.name for file in other.iterdir()}
    scores = [json.loads((path / "scores.json").read_text(encoding="utf-8")) for path in (one, other)]
    same(*scores)
    same(*(pq.read_table(path / "items.parquet").to_pylist() for path in (one, other)))
    for file in one.glob("*.jsonl"):
        lines = [(path / file.name).read_text(encoding="utf-8").splitlines() for path in (one, other)]
        same(*([json.loads(line) for line in own] for own in lines))


def test_text_tasks_and_prompts(tiny: Path, tiny_gemma: Path, w4: Path, prompts: str, tmp_path: Path) -> None:
    # A variant with the reference's vocabulary, and a model with layers and a head of another kind.
    words: dict[str, Any] = {"text": "probe", "tasks": Names("capitals,number_words"), "prompts": prompts}
    words |= {"languages": LANGUAGES, "limit": 3, "max_tokens": 4}
    models = [f"base={tiny}", f"w4={w4}", f"gemma={tiny_gemma}"]
    here = evaluate(EvaluateConfig(models, **words), tmp_path / "here")
    there = evaluate(EvaluateConfig(models, **words, on="ray"), tmp_path / "there")
    same_files(here.path, there.path)
    # Where it is done is no part of what is done.
    assert here.record["fingerprint"] == there.record["fingerprint"]
    assert "--on ray" in there.record["command"] and "--on" not in here.record["command"]


def test_a_run_goes_on_with_and_without(
    tiny: Path, tiny_gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [f"a={tiny}", f"b={tiny_gemma}"]
    words: dict[str, Any] = {"text": "probe", "tasks": Names("capitals"), "languages": LANGUAGES, "limit": 4}
    here, there = EvaluateConfig(models, **words), EvaluateConfig(models, **words, on="ray")
    whole = evaluate(here, tmp_path / "whole").path
    out, kept = tmp_path / "out", tmp_path / "out" / ".partial"

    def stopping(call: Any, after: int, where: Any) -> Any:
        def each(*given: Any) -> Iterator[Any]:
            for count, found in enumerate(call(*given)):
                if given[1:2] == (where,) and count == after:
                    raise KeyboardInterrupt
                yield found

        return each

    # On Ray, when two of the three states of the reference are there.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fanout, "each", stopping(fanout.each, 2, "ray"))
        evaluate(there, out)
    states = {file: file.stat().st_mtime_ns for file in kept.glob("states-0-*")}
    assert len(states) == 2 and not list(kept.glob("scores-*"))
    # Here, in the middle of the tasks of the second model.
    score = Engine.score

    def stops(self: Engine, pairs: Any) -> Iterator[Any]:
        for count, found in enumerate(score(self, pairs)):
            if self.folder == tiny_gemma and count == 20:
                raise KeyboardInterrupt
            yield found

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Engine, "score", stops)
        evaluate(here, out)
    assert len(list(kept.glob("scores-??.json"))) == 3
    rows = {file.name: read(file) for file in kept.glob("task-*")}
    assert any(name.startswith("task-1") for name in rows) and len(rows["task-0-capitals-th.jsonl"]) == 4
    same_files(evaluate(there, out).path, whole)


LM_EVAL = {
    "ko": [("대한민국의 수도는", ["서울", "부산"], 0), ("물이 얼면", ["돌", "얼음"], 1)],
    "th": [("เมืองหลวงของไทยคือ", ["กรุงเทพ", "ปารีส"], 0), ("น้ำแข็งคือ", ["ไฟ", "น้ำ"], 1)],
    "en": [("The capital of Korea is", ["Seoul", "Busan"], 0), ("Ice is", ["fire", "water"], 1)],
}


def lm_eval_task(folder: Path, language: str, **config: Any) -> str:
    import yaml

    data = folder / f"{language}.jsonl"
    rows = [{"question": q, "choices": c, "answer": a} for q, c, a in LM_EVAL[language]]
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    name = f"{config.get('output_type', 'pick')}_{language}"
    whole = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[answer]}}",
        "metadata": {"lang": language},
        **config,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return str(path)


@pytest.mark.long
def test_tasks_of_lm_eval(
    tiny: Path, tiny_gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    pick = {"doc_to_choice": "choices", "doc_to_target": "answer"}
    said = {"until": ["\n"], "max_gen_toks": 4}
    tasks = [lm_eval_task(tmp_path, language, **pick) for language in LM_EVAL]
    tasks += [
        lm_eval_task(tmp_path, tag, output_type="generate_until", generation_kwargs=said, repeats=2)
        for tag in ("ko", "en")
    ]
    tasks += [
        lm_eval_task(
            tmp_path, "th", output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{question}}"
        )
    ]
    models = [f"a={tiny}", f"b={tiny_gemma}"]
    here = evaluate(EvaluateConfig(models, tasks=Names(tasks)), tmp_path / "here")

    def refuse(*given: Any) -> None:
        raise AssertionError("the driver loads no model")

    monkeypatch.setattr(Engine, "__init__", refuse)
    there = evaluate(EvaluateConfig(models, tasks=Names(tasks), on="ray"), tmp_path / "there")
    same_files(here.path, there.path)
    results = [json.loads((made.path / "results_b.json").read_text()) for made in (here, there)]
    same(results[0]["results"], results[1]["results"])


def ask(words: list[str], engine: Any, kept: Mapping[str, Row]) -> Iterator[Row]:
    for _, scored in engine.score([("옹기 ", word) for word in words if word not in kept]):
        yield {"item": words[0], "nats": scored.logprob}


def test_a_model_that_a_worker_has_not(tiny: Path, tmp_path: Path) -> None:
    lost = tmp_path / "모델"
    with ledger.begin(tmp_path / "out", "evaluate", {}, {}) as job:
        piece = Piece("ko", str(lost), "score", ["된장"], functools.partial(ask, ["된장"]), job.partial / "p")
        with pytest.raises(OnggiError, match=r"모델: is not on .*, a machine of the cluster; name a folder"):
            pieces.complete(job, "words", [piece], on="ray")


def test_a_relative_path_is_the_drivers(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "δοχείο").symlink_to(tiny)
    monkeypatch.chdir(tmp_path)
    with ledger.begin(tmp_path / "out", "evaluate", {}, {}) as job:
        piece = Piece("el", "δοχείο", "score", ["λάδι"], functools.partial(ask, ["λάδι"]), job.partial / "p")
        assert pieces.complete(job, "words", [piece], on="ray")[0]["λάδι"]["nats"] < 0
