"""The README says the same in English and in Korean, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.ko.md")
TWINS = {"docs/report.en.png": "docs/report.ko.png", "README.ko.md": "README.md"}  # English to Korean


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands(page: str) -> list[list[str]]:
    """The words of each line in the code blocks; comments are each language's own."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [
        words
        for block in blocks
        for line in block.splitlines()
        if (words := shlex.split(line, comments=True))
    ]


def named(page: str) -> set[str]:
    """The `code` between the sentences, wherever a line breaks in it."""
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    return {" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)}


def results(page: str) -> list[list[str]]:
    """Of each row of the table what no language says otherwise: tags, figures, intervals, stars."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return [re.findall(r"\(([a-z]{2}(?:-\w+)?)\)$", row[0]) + row[2:] for row in rows]


def figures(page: str) -> list[str]:
    """Every 0.60 and 8,192, in sentences too, where each language has its own order."""
    return sorted(re.findall(r"\d+(?:[.,]\d+)+", page))


def links(page: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", page) + re.findall(r"(?<!\]\()https?://[^\s)>]+", page)


def test_the_same_commands() -> None:
    english, korean = (text(name) for name in READMES)
    assert commands(english) == commands(korean)
    assert ["make", "run"] in commands(english)
    assert any("대한민국의 수도는" in words for words in commands(english))
    assert named(english) == named(korean)


def test_the_same_results() -> None:
    english, korean = (text(name) for name in READMES)
    assert results(english) == results(korean)
    assert len(results(english)) == 18 and results(english)[11][:2] == ["zh-Hans", "1.22 [1.13, 1.29]"]
    assert figures(english) == figures(korean)


def test_the_same_links() -> None:
    english, korean = (links(text(name)) for name in READMES)
    assert set(TWINS) < set(english)
    assert [TWINS.get(target, target) for target in english] == korean


@pytest.mark.parametrize(
    ("read", "said", "otherwise"),
    [
        (commands, '"대한민국의 수도는"', '"រាជធានីនៃកម្ពុជា"'),
        (named, "`make run`", "`make اختبار`"),
        (results, "0.34 [0.30, 0.41]*", "0.34 [0.30, 0.41]"),
        (figures, "0.96", "0.56"),
        (links, "(docs/probe.md)", "(docs/ตัวอย่าง.md)"),
    ],
)
def test_what_differs_is_seen(read: Callable[[str], list[Any] | set[str]], said: str, otherwise: str) -> None:
    page = text("README.ko.md")
    assert said in page and read(page) != read(page.replace(said, otherwise, 1))


@pytest.mark.parametrize("name", READMES)
def test_links_lead_somewhere(name: str) -> None:
    for target in links(text(name)):
        assert target.startswith("http") or (ROOT / target.partition("#")[0]).exists(), f"{name}: {target}"
