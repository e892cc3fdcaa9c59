"""A page for each language: everything measured there, and answers that can hold anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from onggi.phrases import Phrases
from onggi.report import content, markdown, pages
from onggi.report.blocks import Pages, Sample
from scores_examples import (
    BALANCED,
    BASE,
    COMPARED,
    HOSTILE,
    RECORD,
    SERVED,
    answers,
    compared,
    model,
    scores,
)

EN, KO = Phrases("en"), Phrases("ko")


def of(whole: dict[str, Any], tag: str, say: Phrases = EN) -> str:
    """One language's page as Markdown."""
    found = pages.pages(whole, answers(), say)[1]
    assert isinstance(found, Pages)
    return markdown.section(next(page.blocks for page in found.pages if page.language == tag))


def test_the_first_prompts_of_each_language_with_all_answers(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    assert pages.first_answers(file) == []
    file.write_text("".join(json.dumps(row) + "\n" for row in answers()), encoding="utf-8")
    rows = pages.first_answers(file)
    for tag in COMPARED:
        shown = {row["_id"] for row in rows if row["lang"] == tag and "turn" not in row}
        assert shown == {"q|0", "q|1", "q|2"}
    # Of four models in four languages: three prompts, and both turns of a question.
    assert len(rows) == 4 * 4 * (3 + 2)


def test_everything_of_a_language_is_on_its_page() -> None:
    khmer = of(compared(), "km")
    assert khmer.startswith("**In Khmer, ship “base”")
    assert "| w8 | 289 [260, 318] | +3.1% [+2.1, +4.1]<br>worse | 0.082 [0.074, 0.090] |" in khmer
    assert "14.3 [12.9, 15.7]" in khmer  # KL a passage
    assert "45% |" in khmer  # what the worst tenth carries
    assert "60.0% [55.0%, 65.0%]<br>worse<br>(−3 +2)" in khmer
    assert "6.5 [5.9, 7.1]" in khmer and "unreadable verdict: 3" in khmer and "속담" in khmer
    assert "sum, turn 2" in khmer and "grade 7" in khmer and "cut off at the limit" in khmer
    assert "ភ្នំពេញ" in khmer and "서울" not in khmer


def test_old_scores_have_pages_too() -> None:
    whole = scores({"balanced": model(BALANCED)})
    page = markdown.section(content.section(whole, RECORD, "again", KO))
    assert page.count("\n### ") == 4 and "None" not in page
    assert "지문당 KL" not in page  # it was not measured here


def test_no_answer_leaves_its_fence() -> None:
    page = markdown.section(content.section(compared(), RECORD, "again", EN, answers()))
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    fenced = [token.content for token in tokens if token.type == "fence"]
    hostile = pages.shown(HOSTILE)
    assert sum(hostile in text for text in fenced) >= 4
    assert not any(token.type == "html_block" for token in tokens)
    rest = [token for token in tokens if token.type != "fence"]
    assert not any("alert" in token.content for token in rest)
    page.encode()  # no half of a surrogate pair


def test_models_stand_side_by_side_in_one_order() -> None:
    rows = [row for row in answers() if row["lang"] == "ar"]
    found = pages.samples(reversed(rows), [BASE, SERVED], EN)
    assert all(isinstance(sample, Sample) for sample in found)
    assert {tuple(answer.model for answer in sample.answers) for sample in found} == {("base", r"خادم \<b\>")}
    assert {sample.direction for sample in found} == {"rtl"}
