"""`onggi distill` and `onggi capture` on tiny models: what is learnt, what is refused, and going on after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import save_model
from divergences import on_probe
from onggi import ledger, recipe
from onggi.distill.store import Captured
from onggi.engines.transformers import Engine
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.report import card
from onggi.stages import (
    VERBS,
    CaptureConfig,
    DistillConfig,
    PackConfig,
    PretrainConfig,
    ReshapeConfig,
    capture,
    distill,
    pack,
    pretrain,
    reshape,
)
from onggi.train import trainer

ROOT = Path(__file__).parents[2]
TAGS = ("en", "ko", "km")
SIZE: dict[str, Any] = {"batch_tokens": 192, "length": 64, "languages": Languages(",".join(TAGS))}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny_gemma: Path) -> Path:
    """A tiny model that has learnt something."""
    out = tmp_path_factory.mktemp("teacher") / "teacher"
    config = PretrainConfig(
        "starter", str(tiny_gemma), steps=60, learning_rate=1e-2, warmup=5, precision="fp32", seed=3, **SIZE
    )
    return pretrain(config, out).path


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """Half of its layers."""
    out = tmp_path_factory.mktemp("student") / "student"
    return reshape(ReshapeConfig(str(teacher), layers=2, choice="naive"), out).path


def config(teacher: Path, student: Path, **options: Any) -> DistillConfig:
    given = {"steps": 20, "learning_rate": 3e-3, "warmup": 3, "precision": "fp32", **SIZE}
    return DistillConfig(str(teacher), str(student), **{"text": "starter", **given, **options})


@pytest.mark.parametrize("loss", ["kl", "jsd:0.5"])
def test_the_student_comes_closer_in_every_language(
    loss: str, teacher: Path, student: Path, tmp_path: Path
) -> None:
    before = on_probe(teacher, student, TAGS, 4)
    made = distill(config(teacher, student, loss=loss), tmp_path / "out")
    after = on_probe(teacher, made.path, TAGS, 4)
    assert all(after[language] < 0.8 * before[language] for language in TAGS), (before, after)
    bits, closed = made.record["bits_per_byte"], made.record["closed"]
    assert set(closed) == set(TAGS)
    for language in TAGS:
        lead = bits["before"][language] - bits["teacher"][language]
        share = (bits["before"][language] - bits["after"][language]) / lead
        assert closed[language] == pytest.approx(share, abs=2e-3) and share > 0.1
    assert made.record["tokens"] == dict.fromkeys(TAGS, 20 * 64)


def test_what_is_said_of_it(teacher: Path, student: Path, tmp_path: Path) -> None:
    own = tmp_path / "teacher"
    shutil.copytree(teacher, own)
    about = json.loads((own / "onggi.json").read_text())
    ledger.write_json(
        own / "onggi.json", {**about, "licence": "gemma", "terms": "이어받는다, ተከተል, passed on."}
    )
    made = distill(config(own, student, steps=2, cross_entropy=0.25, temperature=2.0), tmp_path / "out")
    about = json.loads((made.path / "onggi.json").read_text())
    lesson = about["distilled"]
    assert (lesson["loss"], lesson["cross_entropy"], lesson["temperature"]) == ("kl", 0.25, 2.0)
    page = (made.path / "README.md").read_text()
    assert page == card.distilled(about)
    assert "이어받는다, ተከተል, passed on." in page and "The teacher's licence: gemma." in page
    assert "| Korean |" in page and "of its lead closed" in page
    assert {"curves.svg", "metrics.jsonl", "model.safetensors"} <= made.record["outputs"].keys()
    # Twice does nothing.
    stamp = (made.path / "stage.json").stat().st_mtime_ns
    distill(config(own, student, steps=2, cross_entropy=0.25, temperature=2.0), tmp_path / "out")
    assert (made.path / "stage.json").stat().st_mtime_ns == stamp
    plan = VERBS["distill"].plan(config(own, student))
    assert (
        plan.tokens == 20 * 192
        and plan.memory
        and plan.memory > VERBS["pretrain"].plan(config(own, student).training).memory
    )


def test_minimax_follows_the_gap(teacher: Path, student: Path, tmp_path: Path) -> None:
    made = distill(config(teacher, student, steps=8, fairness="minimax", validate_every=2), tmp_path / "out")
    lines = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    measured = [line["bits_per_byte"] for line in lines if "bits_per_byte" in line]
    found, bits = made.record["weights"], made.record["bits_per_byte"]["teacher"]
    assert len(measured) == 5 and sum(found.values()) == pytest.approx(3, abs=1e-4)
    behind = {tag: sum(line[tag] / bits[tag] for line in measured) for tag in TAGS}
    assert max(found, key=found.get) == max(behind, key=behind.get)
    even = distill(config(teacher, student, steps=8, validate_every=2), tmp_path / "even")
    assert even.record["weights"] == dict.fromkeys(TAGS, 1.0)


def test_killed_it_ends_in_the_same_bytes(
    teacher: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights of languages that follow measurements, and text of the student's own: both must be found again."""
    options: dict[str, Any] = {"steps": 6, "fairness": "minimax", "validate_every": 2, "on_policy": 0.5}
    whole = distill(config(teacher, student, **options), tmp_path / "whole")
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 0.0)
    from onggi.distill import lesson

    call, calls = lesson.Lesson.__call__, []

    def dies(self: Any, model: Any, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return call(self, model, batch)

    monkeypatch.setattr(lesson.Lesson, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        distill(config(teacher, student, **options), tmp_path / "killed")
    monkeypatch.setattr(lesson.Lesson, "__call__", call)
    again = distill(config(teacher, student, **options), tmp_path / "killed")
    assert again.record["outputs"] == whole.record["outputs"]


def test_a_stored_teacher_teaches_as_the_one_it_was(teacher: Path, student: Path, tmp_path: Path) -> None:
    """All but a few of its tokens stored: the student is what it would be with the teacher beside it."""
    stored = capture(
        CaptureConfig(
            str(teacher),
            "starter",
            4000,
            tokens=20 * 192,
            length=64,
            languages=SIZE["languages"],
            precision="fp32",
        ),
        tmp_path / "stored",
    )
    assert stored.record["entries"] == 999 and max(stored.record["lost"].values()) < 0.01
    whole = distill(config(teacher, student), tmp_path / "resident")
    made = distill(
        config(stored.path, student, text=None, languages=None, length=None), tmp_path / "from-stored"
    )
    losses = [
        [json.loads(line)["loss"] for line in (run.path / "metrics.jsonl").open() if '"loss"' in line]
        for run in (whole, made)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02, atol=2e-3)
    assert made.record["tokens"] == whole.record["tokens"]
    for side in ("before", "teacher"):
        assert made.record["bits_per_byte"][side] == whole.record["bits_per_byte"][side]
    for language in TAGS:
        mine, theirs = (run.record["bits_per_byte"]["after"][language] for run in (made, whole))
        assert mine == pytest.approx(theirs, rel=0.01)


def test_a_capture_that_was_killed_ends_the_same(
    teacher: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = CaptureConfig(
        str(teacher), "starter", 60, "draws", 1152, 64, SIZE["languages"], shard=20_000, precision="fp32"
    )
    whole = capture(given, tmp_path / "whole")
    from onggi.distill import store

    encoded, calls = store.encoded, []

    def dies(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encoded(*args)

    monkeypatch.setattr(store, "encoded", dies)
    with pytest.raises(KeyboardInterrupt):
        capture(given, tmp_path / "killed")
    assert len(list((tmp_path / "killed" / ".partial").glob("shard-*.json"))) == 2
    again = capture(given, tmp_path / "killed")
    with pytest.raises(OnggiError, match="draws of the teacher's tail, which are for kl"):
        distill(
            config(again.path, student, text=None, languages=None, length=None, loss="jsd:0.5"),
            tmp_path / "x",
        )
    assert len(calls) == 5  # two of four shards were there
    assert again.record["outputs"] == whole.record["outputs"]
    assert len([name for name in whole.record["outputs"] if "entries" in name]) == 4
    assert (whole.record["entries"], whole.record["draws"]) == (14, 7)


def test_packed_text_is_captured_as_it_is(teacher: Path, student: Path, tmp_path: Path) -> None:
    packed = pack(PackConfig("starter", str(teacher), 96, SIZE["languages"]), tmp_path / "packed")
    made = capture(CaptureConfig(str(teacher), str(packed.path), 60, precision="fp32"), tmp_path / "stored")
    assert made.record["tokens"] == packed.record["tokens"] and made.record["bits_per_byte"] == {}
    from onggi.text.packing import Packed

    text, engine, captured = Packed(packed.path), Engine(teacher), Captured(made.path)
    # A document's second token, wherever the document lies: what was stored before it is what the model says of it.
    for number in (0, len(text) - 1):
        part = text.parts(number)[-1]
        ids = text.batch(number).ids[0][part["start"] : part["stop"]]
        states = engine._run([ids.tolist()])[0]
        log_p = engine.head.logits(states).log_softmax(-1)
        entries, stored, tail = captured.of(number)
        inside = slice(int(part["start"]), int(part["stop"]))
        wanted = log_p.gather(1, entries[inside].long())
        torch.testing.assert_close(stored[inside], wanted, rtol=0, atol=2e-3)
        torch.testing.assert_close(stored[inside].exp().sum(-1) + tail[inside].exp(), torch.ones(len(ids)))
    learnt = distill(
        config(made.path, student, text=None, steps=3, length=None, languages=None), tmp_path / "out"
    )
    assert learnt.record["closed"] == {} and sum(learnt.record["tokens"].values()) > 0


def test_what_cannot_work_is_said(teacher: Path, student: Path, tiny: Path, tmp_path: Path) -> None:
    def refused(said: str, **options: Any) -> None:
        with pytest.raises(OnggiError, match=said):
            distill(config(teacher, student, **options), tmp_path / "out")

    refused("is none of kl, reverse-kl", loss="l2")
    refused("is for measuring and never for training", text="probe")
    refused("text: is needed to teach on", text=None)
    refused("is not a share below 1", cross_entropy=1.0)
    refused("temperature: 0 is not above 0", temperature=0)
    refused("is not a share between 0 and 1", on_policy=1.5)
    refused("judged by a teacher that is here", on_policy=0.5, loss="spans")
    with pytest.raises(OnggiError, match="is the teacher itself"):
        config(teacher, teacher)
    with pytest.raises(OnggiError, match="hold no two entries"):
        CaptureConfig(str(teacher), "starter", 4)


def test_another_tokenizer_is_refused(teacher: Path, student: Path, tmp_path: Path) -> None:
    """Silently wrong elsewhere: every id would be another token."""
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(OnggiError, match="have different tokenizers"):
        distill(config(other, student), tmp_path / "out")
    stored = capture(
        CaptureConfig(str(other), "starter", 60, tokens=384, length=64, languages=SIZE["languages"]),
        tmp_path / "stored",
    )
    with pytest.raises(OnggiError, match="packed with the tokenizer of"):
        distill(config(stored.path, student, text=None, length=None, languages=None), tmp_path / "out")


def test_a_teacher_with_another_tokenizer_by_spans(teacher: Path, tmp_path: Path) -> None:
    """A larger vocabulary teaches a smaller one: what the teacher holds likely becomes likelier to the student."""
    own = save_model(tmp_path / "small", "Llama", 400, num_hidden_layers=1, tie_word_embeddings=True)
    options: dict[str, Any] = {"loss": "spans", "cross_entropy": 0.2, "temperature": 20.0, "steps": 30}
    with pytest.raises(OnggiError, match="--loss spans compares them"):
        distill(config(teacher, own), tmp_path / "out")
    made = distill(config(teacher, own, **options), tmp_path / "out")
    bits = made.record["bits_per_byte"]
    assert all(bits["after"][tag] < bits["before"][tag] - 0.1 for tag in TAGS)
    assert set(made.record["shared_boundaries"]) == set(TAGS)
    packed = pack(PackConfig("starter", str(own), 64, SIZE["languages"]), tmp_path / "packed")
    with pytest.raises(OnggiError, match="spans are cut from plain text"):
        config(teacher, own, text=str(packed.path), **options)


def test_minimax_needs_something_measured(teacher: Path, student: Path, tmp_path: Path) -> None:
    packed = pack(PackConfig("starter", str(teacher), 64, SIZE["languages"]), tmp_path / "packed")
    with pytest.raises(OnggiError, match="follows what is measured on text held out"):
        distill(config(teacher, student, text=str(packed.path), fairness="minimax"), tmp_path / "out")


def test_a_harmed_shard_is_named(teacher: Path, student: Path, tmp_path: Path) -> None:
    stored = capture(
        CaptureConfig(str(teacher), "starter", 60, tokens=384, length=64, languages=SIZE["languages"]),
        tmp_path / "stored",
    )
    with (stored.path / "shard-00000.chances.npy").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x00\x01")
    with pytest.raises(OnggiError, match=r"chances\.npy: is damaged"):
        distill(config(stored.path, student, text=None, length=None, languages=None), tmp_path / "out")


@pytest.mark.parametrize("name", ["distill-small", "distill-answers"])
def test_the_recipes_are_sound(name: str) -> None:
    steps = recipe.load(ROOT / "recipes" / f"{name}.yaml").steps
    made = {step.name: recipe.config(step, {step.name: Path(step.name) for step in steps}) for step in steps}
    if name == "distill-small":
        # The same student and the same tokens, taught and alone.
        assert made["taught"].into == made["alone"].init
        for field in ("text", "steps", "batch_tokens", "length", "learning_rate", "seed"):
            assert getattr(made["taught"], field) == getattr(made["alone"], field)
    else:
        assert made["data"].samples > 1 and made["data"].prompts == "seed"
