"""Whatever form a text comes in, it becomes one table, or is refused by file, line and field."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onggi import text
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.stages import TextConfig
from onggi.stages import text as text_stage

Save = Callable[..., str]

ROWS = [
    {"_id": "w1", "en": "It rains.", "ko": "비가 온다.", "km": "ភ្លៀងធ្លាក់។", "ar": "تُمطر اليوم."},
    {
        "_id": "w2",
        "en": "The bus is late.",
        "ko": "버스가 늦는다.",
        "km": "រថយន្តក្រុងយឺត។",
        "ar": "تأخّرت الحافلة.",
    },
]


def lines(*rows: Any) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save content, as JSON lines if it is not bytes yet, and return the path."""

    def save(content: str | bytes, name: str = "own.jsonl") -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return save


# ── what is read ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ["jsonl", "bom", "crlf", "blank lines", "escapes", "parquet", "folder"])
def test_one_text_in_every_form(save: Save, tmp_path: Path, form: str) -> None:
    content = lines(*ROWS)
    if form == "parquet":
        source = str(tmp_path / "own.parquet")
        pq.write_table(pa.Table.from_pylist(ROWS), source)
    elif form == "folder":
        source = str(tmp_path / "made")
        text_stage(TextConfig(save(content), Languages("en,ko,km,ar")), Path(source))
    else:
        source = save(
            {
                "jsonl": content.encode(),
                "bom": content.encode("utf-8-sig"),
                "crlf": content.replace("\n", "\r\n").encode() + b"\r\n",
                "blank lines": f"\n{content}\n\n ".encode(),
                "escapes": "\n".join(json.dumps(row, ensure_ascii=True) for row in ROWS).encode(),
            }[form]
        )
    found = text.load(source)
    assert found.parallel
    assert found.languages == ("en", "ko", "km", "ar")
    assert found.table.to_pylist() == ROWS


def test_rows_of_text_and_language(save: Save) -> None:
    rows = [
        {"text": "비가 온다.", "lang": "kor_Hang", "licence": "CC0-1.0", "source": "mine"},
        {"text": "It rains.", "lang": "en-US", "licence": "CC0-1.0"},
        {"text": "ភ្លៀងធ្លាក់។", "lang": "km"},
        {"text": "눈이 온다.", "lang": "ko"},
    ]
    found = text.load(save(lines(*rows)))
    assert not found.parallel
    assert found.licence == "CC0-1.0"
    assert found.languages == ("ko", "en", "km")
    assert found.passages("ko") == {"1": "비가 온다.", "4": "눈이 온다."}
    assert text.load(save(lines(*rows)), ["km", "en"]).languages == ("en", "km")


def test_language_keys_are_canonical(save: Save) -> None:
    row = {
        "_id": 1,
        "eng_Latn": "rain",
        "kor_Hang": "비",
        "zh-cn": "雨",
        "arb_Arab": "مطر",
        "licence": "CC0-1.0",
    }
    found = text.load(save(lines(row)))
    assert found.languages == ("en", "ko", "zh-Hans", "ar")
    assert text.load(save(lines(row)), Languages("ar,ko")).table.column_names == ["_id", "ar", "ko"]


def test_line_ends_that_are_none(save: Save) -> None:
    passage = "한 줄\u2028두 줄\u2029세 줄\x85네 줄\x0c끝"
    assert text.load(save(lines({"_id": 1, "ko": passage}, {"_id": 2, "ko": "다음"}))).passages("ko") == {
        "1": passage,
        "2": "다음",
    }


@pytest.mark.parametrize(
    ("tag", "given", "kept"),
    [
        ("ko", "\u1112\u1161\u11ab\u1100\u1173\u11af", "한글"),
        ("vi", "Tie\u0302\u0301ng Vie\u0323\u0302t", "Ti\u1ebfng Vi\u1ec7t"),
        ("hi", "\u0958लम", "\u0915\u093cलम"),  # excluded from composition: the two are the composed form
        ("km", "ខ្ញុំ\u200bទៅផ្សារ", "ខ្ញុំ\u200bទៅផ្សារ"),  # words parted by a space of no width
        ("ar", "كِتَابٌ\u200f (١٢٣) \u202bنص\u202c", "كِتَابٌ\u200f (١٢٣) \u202bنص\u202c"),  # marks of direction
        ("fa", "می\u200cخواهم", "می\u200cخواهم"),
    ],
)
def test_text_is_composed_and_no_character_is_lost(save: Save, tag: str, given: str, kept: str) -> None:
    (found,) = text.load(save(lines({"_id": 1, tag: f"  {given}\n"}))).passages(tag).values()
    assert found == kept
    assert unicodedata.normalize("NFD", found) == unicodedata.normalize("NFD", given)


def test_a_pair_of_escapes_is_one_character(save: Save) -> None:
    assert text.load(save('{"_id": 1, "ko": "\\ud83c\\udf27 비"}')).passages("ko") == {"1": "🌧 비"}


def test_what_is_missing_in_one_language(save: Save) -> None:
    rows = [{**ROWS[0], "km": None}, {**ROWS[1], "ar": "  "}, {**ROWS[1], "_id": "w3"}]
    found = text.load(save(lines(*rows)))
    assert list(found.passages("km")) == ["w2", "w3"]
    assert list(found.passages("ar")) == ["w1", "w3"]
    assert {tag: list(texts) for tag, texts in found.common(["en", "km", "ar"]).items()} == {
        tag: ["w3"] for tag in ("en", "km", "ar")
    }
    assert list(found.common(["en", "km"], limit=1)["en"]) == ["w2"]
    with pytest.raises(OnggiError, match="no passage is there in all of km, ar"):
        text.load(save(lines({**ROWS[0], "km": None}, {**ROWS[1], "ar": None}))).common(["km", "ar"])


# ── `id` is a language, too ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rows", "ids", "languages"),
    [
        ([{"id": "a1", "ko": "비"}, {"id": "a2", "ko": "눈"}], ["a1", "a2"], ("ko",)),
        ([{"id": 1, "ko": "비"}, {"id": 2, "ko": "눈"}], ["1", "2"], ("ko",)),
        ([{"_id": "a1", "id": "Hari ini hujan.", "ko": "비"}], ["a1"], ("id", "ko")),
        (
            [{"id": "Hari ini hujan.", "ko": "비"}, {"id": "Salju turun.", "ko": "눈"}],
            ["1", "2"],
            ("id", "ko"),
        ),
        ([{"id": "Hari ini hujan.", "ko": "비"}, {"id": None, "ko": "눈"}], ["1", "2"], ("id", "ko")),
        ([{"id": "a1", "ind_Latn": "Hari ini hujan.", "km": "ភ្លៀង"}], ["a1"], ("id", "km")),
    ],
)
def test_id_names_rows_where_it_is_no_text(
    save: Save, rows: list[dict[str, Any]], ids: list[str], languages: tuple[str, ...]
) -> None:
    found = text.load(save(lines(*rows)))
    assert found.table["_id"].to_pylist() == ids
    assert found.languages == languages


# ── what is refused ────────────────────────────────────────────────────────────────────────────

KO = {"_id": 1, "ko": "비"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "own.jsonl: is empty"),
        (b" \n\n", "own.jsonl: is empty"),
        (lines(KO).encode("utf-16"), "own.jsonl: is not UTF-8 (byte 0)"),
        (
            lines({"_id": 1, "ko": "한국어"}).encode("cp949"),
            "own.jsonl: is not UTF-8 (byte 18); convert it first",
        ),
        (lines(KO) + '\n{"_id": 2, "ko": "나', "own.jsonl, line 2: is not JSON"),
        ("[" * 100_000, "own.jsonl, line 1: is not JSON"),
        (lines(KO, [KO]), "own.jsonl, line 2: is a list, not an object"),
        ('{"_id": 1, "ko": "비", "ko": "눈"}', "own.jsonl, line 1: is not JSON ('ko' stands twice)"),
        (lines(KO, {"_id": 2, "ko": 3}), 'own.jsonl, line 2, field "ko": is int, not text'),
        (lines(KO, {"_id": 2, "ko": ["눈"]}), 'own.jsonl, line 2, field "ko": is list, not text'),
        (
            lines(KO) + '\n{"_id": 2, "ko": "\\ud83c"}',
            'own.jsonl, line 2, field "ko": holds half a surrogate',
        ),
        ('{"_id": "\\ud83c", "ko": "비"}', 'own.jsonl, line 1, field "_id": holds half a surrogate'),
        (lines(KO, {"_id": 1, "ko": "눈"}), "own.jsonl: \"_id\" '1' stands twice (lines 1 and 2)"),
        (lines(KO, {"_id": "1", "ko": "눈"}), "own.jsonl: \"_id\" '1' stands twice (lines 1 and 2)"),
        (lines(KO, {"ko": "눈"}), 'own.jsonl, line 2: has no "_id"'),
        (lines({"_id": 1, "en": "a", "en-US": "b"}), "fields 'en' and 'en-US' are the same language, en"),
        (
            lines({"_id": 1, "zh": "雨", "zh-CN": "雨"}),
            "fields 'zh' and 'zh-CN' are the same language, zh-Hans",
        ),
        (
            lines({"id": "Hari ini hujan.", "ko": "비"}, {"id": "a2", "ko": "눈"}),
            'some values of "id" are text',
        ),
        (lines({"_id": 1, "title": "비"}), 'rows need either "text" and "lang", or "_id" and one field per'),
        (lines({"_id": 1, "ko": " ", "km": ""}), "every passage is empty"),
        (lines({"text": "비", "lang": "ko"}, {"text": "눈"}), 'own.jsonl, line 2: has no "lang"'),
        (
            lines({"text": "비", "lang": "ko"}, {"text": None, "lang": "ko"}),
            'own.jsonl, line 2: has no "text"',
        ),
        (
            lines({"text": "비", "lang": "Korean"}),
            "own.jsonl, line 1, field \"lang\": 'Korean' is not a language",
        ),
        (
            lines({"text": "비", "lang": ["ko"]}),
            "own.jsonl, line 1, field \"lang\": ['ko'] is not a language",
        ),
        (lines({"text": ["비"], "lang": "ko"}), 'own.jsonl, line 1, field "text": is list, not text'),
    ],
)
def test_malformed_lines(save: Save, content: str | bytes, said: str) -> None:
    with pytest.raises(OnggiError, match=re.escape(said)) as error:
        text.load(save(content))
    assert "own.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_malformed_parquet(save: Save, tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), whole)
    half = save(whole.read_bytes()[:-20], "half.parquet")
    bytes_as_text = pa.StringArray.from_buffers(
        1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")
    )
    tables = {
        "bytes.parquet": pa.table({"_id": ["1"], "ko": bytes_as_text}),
        "none.parquet": pa.Table.from_pylist([], pa.schema([("_id", pa.string()), ("ko", pa.string())])),
        "twice.parquet": pa.Table.from_arrays([pa.array(["비"])] * 2, names=["ko", "ko"]),
        "number.parquet": pa.table({"_id": ["1"], "ko": [3]}),
    }
    for name, table in tables.items():
        pq.write_table(table, tmp_path / name)
    for source in (half, save(b"text", "no.parquet"), *(str(tmp_path / name) for name in tables)):
        with pytest.raises(OnggiError, match=Path(source).name) as error:
            text.load(source)
        assert "\n" not in str(error.value)


def test_sources_that_are_not_there(save: Save, tmp_path: Path) -> None:
    for source, said in [
        ("probee", "Did you mean 'probe'?"),
        (str(tmp_path / "none.jsonl"), "no such text"),
        (str(tmp_path), "is a folder without a text.parquet"),
        (save("비", "own.txt"), "is neither .jsonl nor .parquet"),
        ("debian:libreoffice", "Did you mean 'libreoffice-help'?"),
    ]:
        with pytest.raises(OnggiError, match=re.escape(said)):
            text.load(source, ["ko"])
    with pytest.raises(OnggiError, match="has no text in th, vi; it has ko, km"):
        text.load(save(lines({"_id": 1, "ko": "비", "km": "ភ្លៀង"})), ["ko", "th", "vi"])


def test_the_fingerprint_is_of_the_content(save: Save, tmp_path: Path) -> None:
    first = text.fingerprint(save(lines(*ROWS)), None)
    assert text.fingerprint(save(lines(*ROWS), "other.jsonl"), None) == first
    assert text.fingerprint(save(lines(*ROWS[::-1])), None) != first
    assert text.fingerprint("probe", None) != text.fingerprint("starter", None)
    with pytest.raises(OnggiError, match="no such text"):
        text.fingerprint(str(tmp_path / "none.jsonl"), None)
