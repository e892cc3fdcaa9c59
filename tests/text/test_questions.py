"""The questions that ship: are they whole, apart, in their language, and are their references right?"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import re
import sqlite3
import unicodedata
from collections import Counter, deque
from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from onggi.text import prompts, scripts

LANGUAGES = ("ko", "en", "ja")
CATEGORIES = ("reasoning", "math", "writing", "coding", "understanding", "grammar")
ANSWERS: dict[str, str] = yaml.safe_load(
    Path(__file__).with_name("question_answers.yaml").read_text(encoding="utf-8")
)


CONTENT = prompts.file("questions").read_text(encoding="utf-8")
ALL: list[dict[str, Any]] = [json.loads(line) for line in CONTENT.splitlines()]
ROWS = {lang: [row for row in ALL if row["lang"] == lang] for lang in LANGUAGES}
BY_ID = {row["_id"]: row for row in ALL}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_forty_two_questions_of_two_turns(lang: str) -> None:
    rows = ROWS[lang]
    assert Counter(row["category"] for row in rows) == dict.fromkeys(CATEGORIES, 7)
    for row in rows:
        assert set(row) == {"_id", "lang", "category", "turns", "references"} and row["lang"] == lang
        assert len(row["turns"]) == len(row["references"]) == 2
        assert all(isinstance(turn, str) for turn in row["turns"])
        if row["category"] in ("reasoning", "math", "coding", "grammar"):
            assert all(row["references"]), row["_id"]
    assert len(BY_ID) == len(ALL) == 3 * 42


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_text_is_clean_and_in_its_script(lang: str) -> None:
    assert unicodedata.is_normalized("NFC", CONTENT)
    for row in ROWS[lang]:
        for text in [*row["turns"], *filter(None, row["references"])]:
            assert text == text.strip() != "" and "placeholder" not in text
            assert not {unicodedata.category(c) for c in text} & {"Cf", "Cn", "Co", "Cs"}
            assert set(text) & set("\t\r\ufffd") == set()
        lines = "\n".join(row["turns"]).split("\n")
        prose = "\n".join(line for line in lines if lang == "en" or not line.isascii())  # not the code
        assert scripts.own_share(prose, lang) > 0.6, (row["_id"], scripts.own_share(prose, lang))
        if lang == "ja":
            assert scripts.count_in(prose, "Hrkt") > 8


@pytest.mark.parametrize("lang", LANGUAGES)
def test_no_two_questions_are_nearly_the_same(lang: str) -> None:
    pieces = {}
    for row in ROWS[lang]:
        text = "".join("".join(row["turns"]).split())
        pieces[row["_id"]] = {text[i : i + 4] for i in range(len(text) - 3)}
    for (a, first), (b, second) in itertools.combinations(pieces.items(), 2):
        assert len(first & second) < 0.25 * min(len(first), len(second)), (a, b)


# --- the references, worked out another way -------------------------------------------------------


def jugs(a: int, b: int, wanted: int) -> int | None:
    """The fewest steps that leave `wanted` in one of two jugs; None where nothing does."""
    queue, seen = deque([((0, 0), 0)]), {(0, 0)}
    while queue:
        (x, y), steps = queue.popleft()
        if wanted in (x, y):
            return steps
        over, back = min(x, b - y), min(y, a - x)
        for state in ((a, y), (x, b), (0, y), (x, 0), (x - over, y + over), (x + back, y - back)):
            if state not in seen:
                seen.add(state)
                queue.append((state, steps + 1))
    return None


def bridge(*times: int) -> int:
    """The least time in which all cross, two at a time with one torch."""
    everyone = frozenset(range(len(times)))
    best: dict[tuple[frozenset[int], bool], int] = {(everyone, True): 0}
    queue = deque(best)
    while queue:
        near, torch = state = queue.popleft()
        side = near if torch else everyone - near
        for size in (1, 2):
            for group in itertools.combinations(sorted(side), size):
                after = (near - set(group) if torch else near | set(group), not torch)
                time = best[state] + max(times[i] for i in group)
                if time < best.get(after, 10**9):
                    best[after] = time
                    queue.append(after)
    return best[frozenset(), False]


def sql(query: str, table: str, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """What `query` finds in a `table` of `rows`."""
    with contextlib.closing(sqlite3.connect(":memory:")) as base:
        base.execute(f"CREATE TABLE {table}")
        base.executemany(f"INSERT INTO {table.split('(')[0]} VALUES ({','.join('?' * len(rows[0]))})", rows)
        return base.execute(query).fetchall()


def fails(function: Any, *arguments: Any) -> bool:
    try:
        function(*arguments)
    except ValueError:
        return True
    return False


NAMES: dict[str, Any] = {
    "jugs": jugs,
    "bridge": bridge,
    "sql": sql,
    "fails": fails,
    "math": math,
    "comb": math.comb,
    "lcm": math.lcm,
    "Fraction": Fraction,
    "date": date,
    "timedelta": timedelta,
    "permutations": itertools.permutations,
    "combinations": itertools.combinations,
}
RUN = {key: code for key, code in ANSWERS.items() if code.startswith("run: ")}
WORKED_OUT = {key: code for key, code in ANSWERS.items() if key not in RUN}


def reference(key: str) -> str:
    name, turn = key.rsplit(".", 1)
    return str(BY_ID[name]["references"][int(turn) - 1])


def test_there_is_a_check_wherever_one_can_be() -> None:
    for row in BY_ID.values():
        keys = [f"{row['_id']}.{turn}" for turn in (1, 2)]
        if row["category"] in ("math", "coding"):
            assert set(keys) <= ANSWERS.keys(), row["_id"]
    for lang in LANGUAGES:
        reasoning = [key for key in ANSWERS if key.startswith(f"{lang}-reasoning")]
        assert len(reasoning) >= 7, lang  # the others turn on kinship or on the meaning of words
    assert not [key for key in ANSWERS if key.rsplit(".", 1)[0] not in BY_ID]


@pytest.mark.parametrize("key", WORKED_OUT)
def test_the_reference_states_what_comes_out(key: str) -> None:
    value = eval(WORKED_OUT[key], dict(NAMES))
    stated = re.split(r"(?<=\D)[.。](?:\s|$)|。|: ", reference(key).replace(",", ""))[0]
    for each in value if isinstance(value, list | tuple) else [value]:
        wanted = str(each).replace(",", "").removesuffix(".0")
        found = re.search(rf"(?<![\d./]){re.escape(wanted)}(?![\d/]|\.\d)", stated)
        assert found, (wanted, stated)


@pytest.mark.parametrize("key", RUN)
def test_the_reference_runs(key: str) -> None:
    name, turn = key.rsplit(".", 1)
    found = re.search(r"```(?:python|sql)\n(.*?)\n```", reference(key), re.S)
    # Without code in the reference ("what does this print?") the question's runs, and the reference must say it.
    code = found[1] if found else BY_ID[name]["turns"][int(turn) - 1].split("\n\n", 1)[1]
    names = dict(NAMES, code=code)
    printed = io.StringIO()
    if "```sql" not in reference(key):
        with contextlib.redirect_stdout(printed):
            exec(code, names)
    names["printed"] = printed.getvalue().strip()
    exec(RUN[key].removeprefix("run: "), names)
    if not found:
        assert names["printed"] in reference(key)
