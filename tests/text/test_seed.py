"""The instruction data that ships: is its form right, is it in its language, and are its answers true?"""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import math
import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from onggi import languages, text
from onggi.text import prompts, scripts
from onggi.text.corpus import shingles

DATA = Path(str(resources.files("onggi.text"))) / "data"
FILES = {path.stem.removeprefix("seed-"): path for path in sorted(DATA.glob("seed-*.jsonl"))}
KINDS = {
    "summary",
    "rewrite",
    "extract",
    "arithmetic",
    "etiquette",
    "email",
    "classify",
    "explain",
    "write",
    "plan",
    "translate",
    "correct",
    "converse",
    "advice",
    "code",
}
# Kinds whose answers may be in another language or in none.
FREE = {"translate", "extract", "code", "correct"}
ROWS: dict[str, list[dict[str, Any]]] = {
    tag: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for tag, path in FILES.items()
}
BY_ID = {row["_id"]: row for rows in ROWS.values() for row in rows}
# What an answer must say, worked out, or what its code must do: of the files that are here.
CHECKS: dict[str, str] = {
    key: check
    for key, check in yaml.safe_load(
        Path(__file__).with_name("seed_answers.yaml").read_text(encoding="utf-8")
    ).items()
    if key.rsplit("-", 1)[0] in FILES
}
RUN = {key for key, check in CHECKS.items() if check.startswith("run: ")}


def said(row: dict[str, Any], *roles: str) -> list[str]:
    """What these `roles` say in the row, in order."""
    return [message["content"] for message in row["messages"] if message["role"] in roles]


def of_kind(*kinds: str, tags: tuple[str, ...] = tuple(ROWS)) -> Iterator[dict[str, Any]]:
    return (row for tag in tags for row in ROWS[tag] if row["kind"] in kinds)


def test_korean_is_half_of_it_and_has_every_kind() -> None:
    counts = {tag: Counter(row["kind"] for row in rows) for tag, rows in ROWS.items()}
    assert set(counts["ko"]) == KINDS and min(counts["ko"].values()) >= 8
    assert len(ROWS["ko"]) >= 170 and 2 * len(ROWS["ko"]) >= len(BY_ID)
    lengths = sorted(len(answer) for row in ROWS["ko"] for answer in said(row, "assistant"))
    assert 120 <= lengths[len(lengths) // 2] <= 250
    assert lengths[len(lengths) // 10] < 60 and lengths[-1] > 400  # short ones too, and long ones


@pytest.mark.parametrize("tag", ROWS)
def test_the_form_is_that_of_a_conversation(tag: str) -> None:
    rows = ROWS[tag]
    assert [row["_id"] for row in rows] == [f"{tag}-{number:03}" for number in range(1, len(rows) + 1)]
    assert {row["kind"] for row in rows} == KINDS and len(rows) >= 25
    for row in rows:
        assert list(row) == ["_id", "lang", "kind", "messages"] and row["lang"] == tag
        assert all(list(message) == ["role", "content"] for message in row["messages"])
        order = "".join(message["role"][0] for message in row["messages"])
        assert re.fullmatch("s?(ua){1,4}", order), row["_id"]
    assert any(said(row, "system") for row in rows)
    assert sum(len(said(row, "user")) > 1 for row in rows) >= 3
    asked = ["\n".join(said(row, "system", "user")) for row in rows]
    assert len(set(asked)) == len({said(row, "user")[0] for row in rows}) == len(rows)


@pytest.mark.parametrize("tag", ROWS)
def test_the_text_is_clean(tag: str) -> None:
    content = FILES[tag].read_text(encoding="utf-8")
    assert unicodedata.is_normalized("NFC", content) and content.endswith("}\n")
    for row in ROWS[tag]:
        for each in said(row, "system", "user", "assistant"):
            assert each == each.strip() != "" and "\n\n\n" not in each, row["_id"]
            invisible = {c for c in each if unicodedata.category(c) in ("Cc", "Cf", "Cn", "Co", "Cs")}
            assert invisible <= {"\n", "\ufe0f"}, row["_id"]  # the second: a picture in colour
            prose = re.sub(r"```.*?```", "", each, flags=re.S)
            assert not re.search(r"[^ \n] {2,}[^ #]|[ \t]+\n|\*\*|^#", prose) or row["kind"] == "code", row[
                "_id"
            ]
            assert each.count("```") % 2 == 0 and "�" not in each


@pytest.mark.parametrize("tag", ROWS)
def test_it_asks_and_answers_in_its_script(tag: str) -> None:
    for row in ROWS[tag]:
        asked, answers = said(row, "user"), said(row, "assistant")
        assert scripts.own_share("\n".join(asked), tag) > 0, row["_id"]
        if row["kind"] in FREE:
            continue
        for answer in answers:
            assert scripts.own_share(answer, tag) > 0.85 or not scripts.count(answer), row["_id"]


def test_korean_is_answered_in_korean_whatever_the_text_in_it_is() -> None:
    mixed = [row for row in ROWS["ko"] if scripts.share("\n".join(said(row, "user")), "Latn") > 0.3]
    korean = [row for row in mixed if scripts.own_share(said(row, "assistant")[-1], "ko") > 0.6]
    assert len(korean) >= 15
    # Those answered in English were asked for English, or are what a text in English was reduced to.
    for row in ROWS["ko"]:
        if scripts.own_share(said(row, "assistant")[0], "ko") < 0.5:
            asked = said(row, "user")[0]
            assert row["kind"] in ("code", "extract") or (row["kind"] == "translate" and "영어" in asked), row
    foreign = [row for row in ROWS["ko"] if scripts.share("\n".join(said(row, "system")), "Latn") > 0.9]
    assert len(foreign) >= 3 and all(
        scripts.own_share(said(row, "assistant")[0], "ko") > 0.9 for row in foreign
    )


@pytest.mark.parametrize("tag", ROWS)
def test_no_two_requests_are_nearly_the_same(tag: str) -> None:
    pieces = {}
    for row in ROWS[tag]:
        asked = "".join("".join(said(row, "user")).split())
        pieces[row["_id"]] = {asked[i : i + 6] for i in range(max(1, len(asked) - 5))}
    for (a, first), (b, second) in itertools.combinations(pieces.items(), 2):
        assert len(first & second) < 0.5 * min(len(first), len(second)), (a, b)


@pytest.mark.parametrize("tag", ROWS)
def test_nothing_of_what_models_are_measured_with_is_in_it(tag: str) -> None:
    measured = list(text.load("probe").passages(tag).values())
    for row in (json.loads(line) for each in prompts.SHIPPED for line in prompts.file(each).open("rb")):
        if row["lang"] == tag:
            measured += [row["prompt"]] if "prompt" in row else row["turns"]
            measured += filter(None, row.get("references", ()))
    size = 40 if languages.script(tag) == "Latn" else 20  # characters: about seven words

    def runs(passage: str) -> set[str]:
        bare = shingles.simplify(passage)
        return {bare[i : i + size] for i in range(len(bare) - size + 1)}

    known = set().union(*map(runs, measured))
    assert known
    for row in ROWS[tag]:
        found = set().union(*map(runs, said(row, "user", "assistant"))) & known
        assert not [run for run in found if scripts.own_share(run, tag) > 0.5], row["_id"]  # code is alike


# --- JSON -----------------------------------------------------------------------------------------


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)
    else:
        yield value


@pytest.mark.parametrize("tag", ROWS)
def test_what_is_extracted_is_json(tag: str) -> None:
    for row in of_kind("extract", tags=(tag,)):
        for answer in said(row, "assistant"):
            assert isinstance(json.loads(answer), dict | list), row["_id"]
            assert list(leaves(json.loads(answer))), row["_id"]


def test_what_is_extracted_stands_in_the_text() -> None:
    """Korean: every value word for word, but for numbers, times of day and what had to be put otherwise."""
    otherwise = []
    for row in of_kind("extract", tags=("ko",)):
        asked = "\n".join(said(row, "user"))
        for value in (each for answer in said(row, "assistant") for each in leaves(json.loads(answer))):
            if isinstance(value, bool) or value is None:
                continue
            if isinstance(value, int):
                forms = {str(value), f"{value:,}", native(value, "살")} if value < 100 else {f"{value:,}"}
            elif found := re.fullmatch(r"(\d\d):(\d\d)", value):
                hour, minute = int(found[1]), int(found[2])
                forms = {f"{h}시" + (f" {minute}분" if minute else "") for h in (hour, hour - 12) if h > 0}
            else:
                forms = {value}
            if not any(form in asked for form in forms):
                # Its first word, at least, less its ending.
                assert isinstance(value, str) and value.split()[0][:2] in asked, (row["_id"], value)
                otherwise.append(value)
    assert len(otherwise) <= 12, otherwise


# --- numbers --------------------------------------------------------------------------------------

_ONES = ["", "하나", "둘", "셋", "넷", "다섯", "여섯", "일곱", "여덟", "아홉"]
_TENS = ["", "열", "스물", "서른", "마흔", "쉰", "예순", "일흔", "여든", "아흔"]
_BEFORE_A_COUNTER = {"하나": "한", "둘": "두", "셋": "세", "넷": "네", "스물": "스무"}


def native(number: int, counter: str = "") -> str:
    """A number from 1 to 99 in native Korean words, as said before a `counter`: 23, "명" → "스물세 명"."""
    tens, ones = _TENS[number // 10], _ONES[number % 10]
    if not counter:
        return tens + ones
    last = _BEFORE_A_COUNTER.get(ones or tens, ones or tens)
    return f"{tens if ones else ''}{last} {counter}"


def test_native_numbers() -> None:
    assert native(23, "명") == "스물세 명" and native(20, "살") == "스무 살" and native(85) == "여든다섯"
    assert native(4, "자루") == "네 자루" and native(30, "판") == "서른 판" and native(1) == "하나"


def number(written: str, tag: str) -> float:
    """A number as the language writes it: `1.234,5` in German and Spanish, `1,234.5` elsewhere."""
    if tag in ("de", "es"):
        written = written.translate(str.maketrans(",.", ".,"))
    return float(written.replace(",", ""))


_NUMBER = r"[$£€]?(\d+(?:[.,]\d+)*)"
_SUM = re.compile(rf"(?<![\d.,]){_NUMBER}((?: ?[×÷+\-−] ?{_NUMBER})+) ?[=＝] ?{_NUMBER}")


def test_every_sum_written_out_is_right() -> None:
    seen: Counter[str] = Counter()
    for row in BY_ID.values():
        for found in _SUM.finditer("\n".join(said(row, "assistant"))):
            left, right = re.split("[=＝]", found[0])
            parts = re.split(r"([×÷+\-−])", left.translate(str.maketrans("", "", "$£€ ")))
            signs = {"×": "*", "÷": "/", "−": "-"}
            sums = [
                signs.get(part, part) if i % 2 else str(number(part, row["lang"]))
                for i, part in enumerate(parts)
            ]
            value = eval("".join(sums))  # digits and signs alone
            assert math.isclose(value, number(right.strip(" $£€"), row["lang"])), (row["_id"], found[0])
            seen[row["lang"]] += 1
    assert seen["ko"] >= 20


def sql(query: str, table: str, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """What `query` finds in a `table` of `rows`."""
    with contextlib.closing(sqlite3.connect(":memory:")) as base:
        base.execute(f"CREATE TABLE {table}")
        base.executemany(f"INSERT INTO {table.split('(')[0]} VALUES ({','.join('?' * len(rows[0]))})", rows)
        return base.execute(query).fetchall()


NAMES: dict[str, Any] = {"math": math, "native": native, "sql": sql}


def test_there_is_a_check_wherever_one_can_be() -> None:
    assert not CHECKS.keys() - BY_ID.keys()
    assert {row["_id"] for row in of_kind("arithmetic")} <= CHECKS.keys() - RUN
    assert {row["_id"] for row in of_kind("code", tags=("ko",))} <= RUN


@pytest.mark.parametrize("key", sorted(CHECKS.keys() - RUN))
def test_the_answer_says_what_comes_out(key: str) -> None:
    answer = "\n".join(said(BY_ID[key], "assistant"))
    numbers = [number(written, BY_ID[key]["lang"]) for written in re.findall(r"\d+(?:[.,]\d+)*", answer)]
    value = eval(CHECKS[key], dict(NAMES))
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str):
            assert each in answer
        else:
            assert any(math.isclose(each, one) for one in numbers), each


def _parses(code: str) -> bool:
    try:
        return bool(ast.parse(code).body)
    except SyntaxError:
        return False


def code_in(row: dict[str, Any]) -> str:
    """The code of the last answer: in its last fence, else a query, else the lines it begins with that are
    Python. Without any ("what does this do?") the code that the question brought.
    """
    answer = said(row, "assistant")[-1]
    if fenced := re.findall(r"```(?:python|sql)\n(.*?)\n```", answer, re.S):
        return str(fenced[-1])
    if answer.startswith("SELECT"):
        return answer
    lines = answer.split("\n")
    starts = ("\n".join(lines[:count]) for count in range(len(lines), 0, -1))
    return next(filter(_parses, starts), "") or said(row, "user")[0].split("\n\n", 1)[-1]


@pytest.mark.parametrize("key", sorted(RUN))
def test_the_code_does_what_it_should(key: str, tmp_path: Path) -> None:
    code = code_in(BY_ID[key])
    names = dict(NAMES, code=code, path=tmp_path / "text")
    printed = io.StringIO()
    if "(code" not in CHECKS[key]:  # else the check runs it: a query, an expression
        with contextlib.redirect_stdout(printed):
            exec(code, names)
    names["printed"] = printed.getvalue().strip()
    exec(CHECKS[key].removeprefix("run: "), names)
