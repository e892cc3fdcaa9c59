"""The table of Latin script against other scripts: every number in its place, in Markdown and in HTML."""

from __future__ import annotations

import re
from typing import Any

from onggi.phrases import Phrases
from onggi.report import content, html, markdown
from scores_examples import BASE, RECORD, W4, W8, compared

EN, KO = Phrases("en"), Phrases("ko")
TAGS = {"latin": ["en"], "other": ["ko", "km", "ar"]}


def groups(latin: float, other: float, spread: float = 0.01) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for group, value in (("latin", latin), ("other", other), ("gap", other - latin)):
        tags = TAGS.get(group, [tag for own in TAGS.values() for tag in own])
        limits = {"low": value - spread, "high": value + spread}
        found[group] = {"value": value, **limits, "n": 40, "languages": tags}
    return found


def whole() -> dict[str, Any]:
    return compared() | {
        "by_script": {
            "relative_change": {
                "nll_per_passage": {W8: groups(0.002, 0.004), W4: groups(0.052, 0.119)},
                "capitals/acc": {W8: groups(-0.01, -0.005), W4: groups(-0.05, -0.2)},
                "prompts/line": {W4: groups(-0.1, 0.0)},
            },
            "mean": {"kl": {W8: groups(0.022, 0.03), W4: groups(0.12, 0.3)}},
            "left_out": {"capitals/acc": ["km"]},
        }
    }


def written(scores: dict[str, Any], say: Phrases) -> tuple[str, str]:
    blocks = content.section(scores, RECORD, "onggi report scores", say)
    return markdown.section(blocks), html.page([blocks], "제목", say)


def test_rows_are_models_by_script() -> None:
    page, as_html = written(whole(), EN)
    lines = page.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| model | script | nats"))
    header = "| model | script | nats for the same passage ↓ | capitals ↑ | in the language ↑ | KL a token |"
    assert lines[start] == header
    rows = lines[start + 2 : start + 6]
    assert rows[0].startswith("| w8 | Latin | +0.2% [-0.8, +1.2] | -1.0% [-2.0, +0.0] | – |")
    assert rows[3].startswith(r"| w4\|작은 | other | +11.9% [+10.9, +12.9] | -20.0% [-21.0, -19.0] | +0.0%")
    assert "Latin: English. Other: Korean, Khmer, Arabic." in page
    assert "capitals: the reference scores nothing in Khmer" in page
    for words in ("+11.9% [+10.9, +12.9]", "-20.0% [-21.0, -19.0]", "w4|작은"):
        assert words in as_html


def test_a_gap_is_named_where_its_interval_leaves_out_0() -> None:
    page, _ = written(whole(), EN)
    gaps = [line for line in page.splitlines() if re.match(r"- (nats|capitals|in the)", line)]
    assert gaps == [
        "- nats for the same passage: other scripts lose more with w4|작은 (by 6.7 points).",
        "- capitals: other scripts lose more with w4|작은 (by 15.0 points).",  # fewer right is more lost
        "- in the language: Latin script loses more with w4|작은 (by 10.0 points).",
    ]
    scores = whole()
    scores["by_script"]["relative_change"] = {"nll_per_passage": {W8: groups(0.002, 0.004)}}
    assert "- nats for the same passage: no difference is shown." in written(scores, EN)[0]


def test_in_korean_and_where_there_is_nothing_to_set_apart() -> None:
    page, as_html = written(whole(), KO)
    assert "| 모델 | 문자 | 같은 지문의 nat ↓ | capitals ↑ |" in page and "로마자와 그 밖의 문자" in as_html
    assert "로마자: 영어. 그 밖: 한국어, 크메르어, 아랍어." in page
    scores = whole()
    for own in scores["by_script"]["relative_change"].values():
        for found in own.values():
            del found["gap"], found["latin"]
    assert "## Latin script and other scripts" not in written(scores, EN)[0]
    assert "로마자와 그 밖의" not in written(compared(), KO)[0]  # made before there was such a table
    assert BASE in page
