"""Facts of the world and numbers in words: items that ship, made by workshop/world_facts.py from CLDR.

`data/items.json` holds each item as keys of concepts (a country, a time zone whose city is the
capital, a currency, a number), `data/names/` what these are called in each language, and which items it cannot ask (`without`),
`data/prompts.yaml` what is asked.

Names are of very unlike frequency, and by plain probability a small model names Paris wherever it can:
so choices are compared by how much more likely the question makes them (`acc_mutual_info`). Of 40
Korean capitals Gemma 3 270M then gets 19 right, not 12; docs/tasks.md has the figures.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from ... import text as texts
from .items import Choice, Item, Task

_DATA = resources.files(__package__) / "data"


@functools.cache
def _prompts() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = yaml.safe_load((_DATA / "prompts.yaml").read_text(encoding="utf-8"))
    return found


@functools.cache
def _items() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, Any] = json.loads((_DATA / "items.json").read_text(encoding="utf-8"))
    tasks: dict[str, list[dict[str, Any]]] = found["tasks"]
    return tasks


@functools.cache
def _names(language: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((_DATA / "names" / f"{language}.json").read_text(encoding="utf-8"))
    return found


def _split(template: str) -> tuple[str, str]:
    """What stands before the answer, and the space that the answer begins with (or nothing)."""
    before, _ = template.split("{answer}")
    context = before.rstrip(" \u00a0")
    return context, before[len(context) :]


@dataclass(frozen=True)
class Facts(Task):
    """Country → something of it. `names` is the kind of name that answers."""

    names: str = ""

    def languages(self, text: texts.Text | None = None) -> tuple[str, ...]:
        """The languages with a prompt, the twelve of the probe first."""
        return tuple(language for language, prompts in _prompts().items() if self.name in prompts)

    def _all(self, languages: Sequence[str], text: texts.Text | None) -> dict[str, list[Item]]:
        return {language: self._in(language) for language in languages}

    def _in(self, language: str) -> list[Item]:
        names = _names(language)
        context, space = _split(_prompts()[language][self.name])
        items: list[Item] = []
        for item in _items()[self.name]:
            country = names["country"].get(item["country"])
            answers = [names[self.names].get(key) for key in item["choices"]]
            if country and all(answers) and item["id"] not in names["without"]:
                choices = tuple(f"{space}{answer}" for answer in answers)
                asked = context.format(country=country)
                items.append(Choice(item["id"], asked, choices, item["answer"], context.split("\n")[-1]))
        return items


@dataclass(frozen=True)
class Numbers(Task):
    """Numbers in words, to be read or to be added."""

    def languages(self, text: texts.Text | None = None) -> tuple[str, ...]:
        """The languages with number words, the twelve of the probe first."""
        return tuple(
            language for language in _prompts() if language != "any" and "number" in _names(language)
        )

    def _all(self, languages: Sequence[str], text: texts.Text | None) -> dict[str, list[Item]]:
        return {language: self._in(language) for language in languages}

    def _in(self, language: str) -> list[Item]:
        words = _names(language)["number"]
        context, space = _split(_prompts()["any"][self.name])
        items: list[Item] = []
        for item in _items()[self.name]:
            if "number" in item:
                values = {"number": words[str(item["number"])]}
                answers = [str(choice) for choice in item["choices"]]
            else:
                values = dict(zip("ab", (words[str(number)] for number in item["numbers"]), strict=True))
                answers = [words[str(choice)] for choice in item["choices"]]
            choices = tuple(f"{space}{answer}" for answer in answers)
            items.append(Choice(item["id"], context.format(**values), choices, item["answer"]))
        return items


FACTS: tuple[Task, ...] = (
    Facts(
        "capitals",
        "country → its capital, among capitals of its continent",
        "acc_mutual_info",
        names="capital",
    ),
    Facts(
        "currencies", "country → its currency, named without the country", "acc_mutual_info", names="currency"
    ),
    Facts(
        "languages_of",
        "country → an official language whose name does not give it away",
        "acc_mutual_info",
        names="language",
    ),
    Facts("continents", "country → one of five continents", "acc_mutual_info", names="continent"),
    Numbers("number_words", "a number in words → its figures", "acc"),
    Numbers("sums", "two numbers in words → their sum in words", "acc"),
)
