"""What guards languages while a model is tuned: when it is broken, what it does, and that a resumed run knows of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onggi.engines.transformers import Engine
from onggi.errors import OnggiError
from onggi.progress import Progress
from onggi.text.chat import Taught
from onggi.train import checkpoints
from onggi.train.checkpoints import Kept
from onggi.train.dialogues import DialogueBatches, packed
from onggi.train.schedule import Schedule
from onggi.train.tokens import next_token
from onggi.train.trainer import METRICS, Options
from onggi.train.tuner import HELD, Guard, Tuner

ROWS = packed([Taught([0, 5, 6, 7, 1], [False, False, True, True, True])], 8)


def tuner(
    tiny: Path, folder: Path, text: list[float], answers: list[dict[str, float]] | None = None
) -> Tuner:
    """One whose held-out Japanese is measured to be `text`, a value a measurement; with `answers`, the nats of those that
    are held out, the likeliest are to be kept.
    """
    values, nats = iter(text), iter(answers or ())

    def validate(model: Any) -> dict[str, float]:
        return {"ja": next(values), "ko": 3.0}

    model = Engine(tiny).model.requires_grad_(True)
    source = DialogueBatches({"ko": ROWS}, {"ja": ROWS}, 10, 0.2, 1, 0)
    schedule, options = Schedule(6, 1e-4, 1), Options(validate_every=1)
    made = (model, next_token(torch.float32), source, schedule, options, folder, Progress("test", 6))
    measure: Any = (lambda model: next(nats)) if answers else None
    return Tuner(
        *made, validate=validate, answers=measure, guard=Guard({"ja": 0.02}), best=answers is not None
    )


def test_text_is_doubled_and_then_it_stops(tiny: Path, tmp_path: Path) -> None:
    made = tuner(tiny, tmp_path, [2.0, 2.03, 2.05, 2.06, 2.03, 2.05, 2.07])
    lines = made.fit()
    assert [(line["step"], line["replay"]) for line in lines if "replay" in line] == [(2, 0.4), (3, 0.5)]
    assert [line["step"] for line in lines if "stopped" in line] == [5]
    assert made.source.shares == [(0, 0.2), (20, 0.4), (30, 0.5)] and made.state.global_step == 5
    assert [sum(made.source.row(10 * step + i)[1] for i in range(10)) for step in range(5)] == [2, 2, 4, 5, 5]
    moved = made.model.model.lm_head.weight.clone()
    assert made.go_back() == 4
    assert not torch.equal(made.model.model.lm_head.weight, moved)
    assert sorted(path.name for path in (tmp_path / HELD).iterdir()) == ["step-00000001", "step-00000004"]


def test_it_holds(tiny: Path, tmp_path: Path) -> None:
    made = tuner(tiny, tmp_path, [2.0, 2.03, 2.039, 2.03, 1.9, 2.0, 2.0])
    lines = made.fit()
    assert made.state.global_step == 6 and made.go_back() == 6
    assert not any("replay" in line or "stopped" in line for line in lines)


def test_the_likeliest_answers_are_kept(tiny: Path, tmp_path: Path) -> None:
    """Of all languages alike, and of no step at which the guard was broken."""
    korean, thai = [3.0, 2.5, 2.0, 1.9, 1.0, 2.2, 2.4], [2.0, 1.0, 0.8, 0.9, 0.5, 1.5, 1.9]
    answers = [{"ko": ko, "th": th} for ko, th in zip(korean, thai, strict=True)]
    made = tuner(tiny, tmp_path, [2.0, 2.0, 2.0, 2.0, 2.05, 2.0, 2.0], answers)
    weights = {}
    log = made._note

    def note(line: dict[str, Any]) -> None:
        if "answers" in line:
            weights[line["step"]] = made.model.model.lm_head.weight.clone()
        log(line)

    made._note = note  # type: ignore[method-assign]
    lines = made.fit()
    assert made.go_back() == 2 and made.state.global_step == 6
    assert torch.equal(made.model.model.lm_head.weight, weights[2]) and not torch.equal(
        weights[2], weights[6]
    )
    assert lines[-1] == {"step": 2, "went_back_from": 6, "because": "answers"}


def test_a_course_that_was_given_up_is_not_kept(tiny: Path, tmp_path: Path) -> None:
    """Astray after a better measurement, it goes on from before it, and what was kept then is not taken for what comes now."""
    answers = [{"ko": nats} for nats in (3.0, 2.0, 1.5, 1.0, 1.8, 1.9, 2.0)]
    made = tuner(tiny, tmp_path, [2.0] * 7, answers)
    made.fit()
    assert [kept.step for kept in checkpoints.whole_ones(tmp_path / HELD)] == [3, 2]
    before = [line for line in made.lines if line["step"] <= 1]
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in before))
    made._load(Kept(tmp_path, 1, {"watch": {"recent": [], "lowest": None}, "lines": len(before)}))
    assert not list(checkpoints.whole_ones(tmp_path / HELD))
    # What was wanted at step 1 was dropped for better ones: the last is taken rather than what is not there.
    made.lines += [{"step": 6, "bits_per_byte": {"ja": 2.0}}, {"step": 6, "answers": {"ko": 2.5}}]
    assert made.go_back() == 6 and made.lines[-1] == {"step": 6, "because": "answers"}


def test_it_never_held(tiny: Path, tmp_path: Path) -> None:
    made = tuner(tiny, tmp_path, [2.0, 2.1, 2.1, 2.1])
    made.fit()
    assert made.state.global_step == 3
    with pytest.raises(OnggiError, match=r"guard: broken at each measurement \(ja by 5.0% in the end\)"):
        made.go_back()


def test_a_resumed_run_knows_the_shares(tiny: Path, tmp_path: Path) -> None:
    made = tuner(tiny, tmp_path, [])
    lines: list[dict[str, Any]] = [
        {"step": 0, "bits_per_byte": {"ja": 2.0}},
        {"step": 3, "replay": 0.4, "from": 5, "because": {"ja": 0.03}},
        {"step": 4, "loss": 1.0},
    ]
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = {"watch": {"recent": [], "lowest": None}, "lines": 2}
    made._load(Kept(tmp_path, 3, facts))
    assert made.source.shares == [(0, 0.2), (50, 0.4)] and made.source.share == pytest.approx(0.4)
    made._load(Kept(tmp_path, 0, {**facts, "lines": 1}))
    assert made.source.shares == [(0, 0.2)]
