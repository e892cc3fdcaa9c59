"""Tasks and answers in the report: what each model did in each language, and what is lost."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from onggi.phrases import Phrases
from onggi.report import content, items, markdown, terminal
from scores_examples import RECORD

EN, KO = Phrases("en"), Phrases("ko")
METRIC = "capitals/acc"


def entry(value: float, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 100, **more}


def lost(value: float, change: float, verdict: str = "worse") -> dict[str, Any]:
    flips = {"right_to_wrong": 31, "wrong_to_right": 2, "detectable": 0.081}
    return entry(value, chance=0.25, change=change, verdict=verdict, **flips)


def scores(korean: dict[str, Any]) -> dict[str, Any]:
    """As `onggi evaluate --tasks` writes it: a reference and one variant, in three scripts."""
    tags = ("ko", "en", "th")
    base = {tag: {METRIC: entry(0.6, chance=0.25)} for tag in tags}
    w4 = {tag: {METRIC: lost(0.59, -0.01, "no significant difference")} for tag in tags}
    w4["ko"] = {METRIC: korean}
    about = {"source": "runs/x", "bytes": 300_000_000, "about": {}, "worst": {}}
    return {
        "reference": "base",
        "text": None,
        "parallel": False,
        "languages": [],
        "passages": {},
        "margin": 0.01,
        "models": {"base": {**about, "languages": base}, "w4|한국": {**about, "languages": w4}},
        "comparisons": [],
        "tasks": {
            "capitals": {
                "metric": "acc",
                "about": "country → its capital",
                "shots": 5,
                "languages": list(tags),
            }
        },
    }


def test_the_largest_loss_is_the_headline() -> None:
    whole = scores(lost(0.31, -0.29))
    assert (
        items.headline(whole, EN)
        == "“w4|한국” loses most in Korean, on capitals: 31.0% against 60.0% of “base”."
    )
    assert "한국어의 capitals 과제" in items.headline(whole, KO)
    page = markdown.section(content.section(whole, RECORD, "onggi report s --out r", EN))
    assert r"| Korean (ko) | 60.0% [50.0%, 70.0%] | 31.0% [21.0%, 41.0%] worse (−31 +2) | 25.0% |" in page
    assert "a loss under 8.1 points" in page and "5 solved items shown first" in page
    assert "300 MB" in page and "Damage by language" not in page


def test_no_loss_is_claimed_without_a_verdict() -> None:
    same = scores(lost(0.5, -0.1, "no significant difference"))
    assert items.headline(same, EN).startswith("No model is shown to be worse than “base”")


def test_on_the_terminal() -> None:
    file = io.StringIO()
    terminal.show(Console(file=file, width=160), scores(lost(0.31, -0.29)), KO)
    assert "31.0% [21.0%, 41.0%] 악화 (−31 +2)" in file.getvalue()
    assert "w4|한국" in file.getvalue() and "**" not in file.getvalue()


@pytest.mark.parametrize("say", [EN, KO])
def test_answers_to_prompts(say: Phrases) -> None:
    whole = scores(lost(0.31, -0.29))
    del whole["tasks"]
    whole["prompts"] = {"source": "p.jsonl", "languages": {"ko": 3, "ar": 3}, "sampling": {}}
    for name, model in whole["models"].items():
        served = name != "base"
        model["bytes"] = None if served else model["bytes"]
        model["languages"] = {
            tag: {
                "prompts/line": entry(0.5),
                "prompts/script": {"value": 1.0, "low": None, "high": None, "n": 1},
                "prompts/failed": {"value": int(served), "n": 3},
            }
            for tag in ("ko", "ar")
        }
    page = markdown.section(content.section(whole, RECORD, "again", say))
    assert "50% [40%, 60%] | 100% |" in page
    assert f"3 ({say('answers.failed')}: 1)" in page
    assert f"{say.name('ar')} (ar)" in page
