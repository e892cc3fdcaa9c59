"""Questions and answers made from the facts of CLDR that the tasks ship: more dialogues, in many languages, all of them true.

Small and dull beside what people write: they teach the form of an answer, and to answer in the language of the question. What a
template asks stands in `data/dialogues.yaml`, beside it why it is grammatical for every name. A model that was tuned on
them knows the tasks `capitals`, `currencies`, `continents`, `languages_of`, `number_words` and `sums` by heart:
those measure nothing of it.
"""

from __future__ import annotations

import functools
import random
import string
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

import yaml

from ... import ledger
from ...errors import OnggiError
from ...phrases import with_particle
from .facts import _items, _names

ROWS = 40
TASKS = ("capitals", "currencies", "continents", "languages_of", "number_words", "sums")
_DATA = resources.files(__package__) / "data"
_NAMES = {
    "capitals": "capital",
    "currencies": "currency",
    "continents": "continent",
    "languages_of": "language",
}


@functools.cache
def _templates() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((_DATA / "dialogues.yaml").read_text(encoding="utf-8"))
    return found


def languages() -> tuple[str, ...]:
    """Those there are templates in."""
    return tuple(_templates())


def fingerprint() -> str:
    """Changes when what is made would."""
    names = [(tag, _names(tag)) for tag in languages()]
    return ledger.digest([_templates(), _items(), names])


def rows(
    wanted: Sequence[str] | None, count: int = ROWS, seed: int = 0
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of `count` dialogues at most in each language of `wanted` that there are templates in, of all kinds in turn,
    drawn by `seed`. The facts are the same ones in every language, as far as it has names for them.

    Raises OnggiError where there are templates in none of `wanted`.
    """
    chosen = [tag for tag in languages() if wanted is None or tag in wanted]
    if not chosen:
        raise OnggiError(
            f"data: cldr: has no templates in {', '.join(wanted or ())}; it has {', '.join(languages())}."
        )
    for tag in chosen:
        kinds = {}
        for task in TASKS:
            own = [row for item in _items()[task] for row in _asked(tag, task, item)]
            random.Random(f"{seed}/{task}").shuffle(own)
            kinds[task] = own
        made = 0
        for place in range(max(map(len, kinds.values()))):
            for task, own in kinds.items():
                if place < len(own) and made < count:
                    made += 1
                    name = f"cldr-{tag}-{task}-{place + 1}"
                    yield (
                        name,
                        {"_id": name, "lang": tag, "kind": task, "messages": own[place], "source": "cldr"},
                    )


def _asked(tag: str, task: str, item: dict[str, Any]) -> Iterator[list[dict[str, str]]]:
    """One dialogue of an item, by the item's own number in one of the wordings; none where a name is lacking."""
    names, templates = _names(tag), _templates()[tag].get(task)
    if not templates:
        return
    if task in _NAMES:
        values = {
            "country": names["country"].get(item["country"]),
            "answer": names[_NAMES[task]].get(item["choices"][item["answer"]]),
        }
        if item["id"] in names["without"]:
            return
    elif "number" not in names:
        return
    elif task == "number_words":
        values = {"answer": str(item["number"]), "number": names["number"][str(item["number"])]}
    else:
        a, b = item["numbers"]
        words = names["number"]
        values = {"a": words[str(a)], "b": words[str(b)], "answer": words[str(a + b)]}
    if not all(values.values()):
        return
    number = random.Random(item["id"]).randrange(len(templates))
    template = templates[number]
    texts = {key: _filled(template[key], values) for key in ("user", "assistant")}
    yield [{"role": role, "content": text} for role, text in texts.items()]


def _filled(template: str, values: dict[str, str]) -> str:
    """`{country:은/는}` is 프랑스는, and 미국은."""
    return _Formatter().vformat(template, (), values)


class _Formatter(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        return with_particle(str(value), *format_spec.split("/")) if format_spec else str(value)
