"""More prompts than there are: a teacher is shown some and asked for another, in the same language.

Half of them are new (self-instruct, arXiv 2212.10560) and half are harder forms of one that is there (Evol-Instruct,
arXiv 2304.12244). Asked for the same again and again a teacher says the same again and again, so each request names a
persona and a topic, drawn from lists that every language shares; what comes back in another language, or nearly says
what is there already, is left out.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from .. import languages
from ..errors import OnggiError
from ..text import confusion
from ..text.prompts import Prompt
from .answers import alike

# Prompts that are shown for a new one; how alike two prompts may be; letters of a prompt, at most.
_SHOWN, _ALIKE, _LONGEST = 3, 0.6, 2000


@functools.cache
def _forms() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(
        (Path(__file__).parent / "data" / "grow.yaml").read_text(encoding="utf-8")
    )
    return found


def asking(seeds: Sequence[Prompt], lang: str, count: int, seed: int) -> list[Prompt]:
    """`count` requests for a new prompt in `lang`; their ids are those of the prompts that come of them.

    seeds: prompts in that language, one at least. The same seed asks the same, whatever the other languages are.
    """
    forms, found = _forms(), []
    for number in range(1, count + 1):
        draw = random.Random(f"{seed}:{lang}:{number}")
        evolve = number % 2 == 0
        shown = draw.sample(list(seeds), min(1 if evolve else _SHOWN, len(seeds)))
        words = forms["evolve" if evolve else "new"].format(
            language=languages.name(lang),
            count=len(shown),
            seeds="\n".join(f"---\n{prompt.turns[0]}" for prompt in shown) + "\n---",
            persona=draw.choice(forms["personas"]),
            topic=draw.choice(forms["topics"]),
            change=draw.choice(forms["changes"]),
        )
        kind = "evolved" if evolve else "new"
        found.append(Prompt(f"{lang}-{kind}-{number}", lang, (words.strip(),), (None,), kind))
    return found


def grown(
    seeds: Sequence[Prompt], asked: Sequence[Prompt], rows: Mapping[str, Mapping[str, Any]]
) -> list[Prompt]:
    """The prompts that came of `asked`, in its order, without those that are no good or not new.

    rows: id → the teacher's answer, a row of `evaluate.answering`.
    """
    found: list[Prompt] = []
    for request in asked:
        row = rows[request.id]
        text = row["output"].strip().strip("-\"'“”«»「」").strip()
        checked = confusion.check(text, request.lang, finish=row["finish"])
        if row["finish"] != "stop" or checked.empty or len(text) > _LONGEST:
            continue
        if checked.line_pass is False or checked.script_pass is False or checked.loop:
            continue
        if any(alike(text, known.turns[0], request.lang) > _ALIKE for known in (*seeds, *found)):
            continue
        found.append(Prompt(request.id, request.lang, (text,), (None,), request.category))
    return found


def seeds(wanted: Sequence[str] | None = None) -> list[Prompt]:
    """The requests of the seed set that ships, for a teacher to answer anew. wanted: languages to keep.

    Raises OnggiError for a language that it does not have.
    """
    folder = resources.files("onggi.text") / "data"
    files = sorted(file.name for file in folder.iterdir() if file.name.startswith("seed-"))
    have = [name.removeprefix("seed-").removesuffix(".jsonl") for name in files]
    if missing := [tag for tag in wanted or () if tag not in have]:
        raise OnggiError(f"seed: has no prompts in {', '.join(missing)} (it has {', '.join(have)}).")
    found = []
    for tag in wanted or have:
        for line in (folder / f"seed-{tag}.jsonl").read_text(encoding="utf-8").split("\n"):
            if not line.strip():
                continue
            row = json.loads(line)
            *before, asked, _ = row["messages"]  # the last is the answer
            found.append(
                Prompt(row["_id"], tag, (asked["content"],), (None,), row.get("kind"), tuple(before))
            )
    return found
