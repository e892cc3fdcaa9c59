"""Every source becomes rows, whatever its form; what is not a row is named by file and line."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onggi.errors import OnggiError, UnavailableError
from onggi.text.corpus import rows
from onggi.text.corpus.rows import Bad, Row, Source

LANGUAGES = ("en", "ko", "km", "ar")
TEXTS = [("en", "It rains."), ("ko", "비가 온다."), ("km", "ភ្លៀងធ្លាក់។"), ("ar", "تُمطر اليوم.")]
RECORDS = [{"text": text, "lang": lang, "licence": "CC0-1.0", "source": "weather"} for lang, text in TEXTS]


def lines(*records: Any) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def everything(
    name: str, limit: int | None = None, longest: int = 1 << 20, field: str = "text"
) -> list[Row | Bad]:
    pieces, bad = rows.pieces(rows.parse(name), LANGUAGES, limit, None)
    return [
        *bad,
        *(one for piece in pieces for found in rows.read(piece, LANGUAGES, field, longest) for one in found),
    ]


def texts(found: list[Row | Bad]) -> list[tuple[str | None, str]]:
    assert all(isinstance(one, Row) for one in found), found
    return [(one.lang, one.text) for one in found if isinstance(one, Row)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "folder"])
def test_records(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(RECORDS), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines(*RECORDS)))
    elif name == "folder":
        (path / "deep").mkdir(parents=True)
        (path / "1.jsonl").write_bytes(lines(*RECORDS[:2]))
        pq.write_table(pa.Table.from_pylist(RECORDS[2:]), path / "deep" / "2.parquet")
        (path / "0.pdf").write_bytes(b"%PDF")
    else:
        path.write_bytes(lines(*RECORDS))
    found = everything(str(path))
    assert texts(found) == TEXTS
    assert all(isinstance(one, Row) and (one.licence, one.source) == ("CC0-1.0", "weather") for one in found)


def test_plain_text_by_folder_and_name(tmp_path: Path) -> None:
    for name, text in (
        ("ko/a.txt", "안녕\n하세요"),
        ("b.ar.txt", "مرحبا"),
        ("km/x/c.md", "សួស្តី"),
        ("d.txt", "Hello"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = everything(str(tmp_path))
    assert sorted(texts(found), key=str) == sorted(
        [("ko", "안녕\n하세요"), ("ar", "مرحبا"), ("km", "សួស្តី"), (None, "Hello")], key=str
    )
    assert {one.licence for one in found if isinstance(one, Row)} == {"unknown"}
    assert texts(everything(f"ko={tmp_path / 'd.txt'}")) == [("ko", "Hello")]


def test_the_language_on_the_line(tmp_path: Path) -> None:
    assert rows.parse("kor_Hang=x.jsonl") == Source("x.jsonl", "ko")
    assert rows.parse("debian:libreoffice-help") == Source("debian:libreoffice-help", None)
    assert rows.parse(f"{tmp_path}/ko=1.txt").lang is None
    with pytest.raises(OnggiError, match="not a known language"):
        rows.parse("qq=x.jsonl")


def test_parallel_records_are_a_row_for_each_language(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"_id": "w1", "id": "w1", "de": "Es regnet.", "source": "own", **dict(TEXTS)}))
    assert texts(everything(str(path))) == TEXTS


def test_texts_known_by_name() -> None:
    found = everything("probe")
    assert len(found) == 4 * 40 and {one.lang for one in found if isinstance(one, Row)} == set(LANGUAGES)
    some = everything("probe", limit=3)
    assert len(some) == 12
    assert len(everything("starter")) > 100


def test_fields_under_other_names(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    records = [
        {"content": text, "language": lang, "license": "MIT", "url": "http://a.b"} for lang, text in TEXTS
    ]
    pq.write_table(pa.Table.from_pylist(records), path)
    found = everything(str(path), field="content")
    assert texts(found) == TEXTS
    assert {(one.licence, one.source) for one in found if isinstance(one, Row)} == {("MIT", "http://a.b")}


@pytest.mark.parametrize("size", [1, 40, 100, 1000])
def test_cut_anywhere_nothing_is_lost(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PIECE", size)
    monkeypatch.setattr(rows, "_BLOCK", 7)
    path = tmp_path / "a.jsonl"
    records = [{"text": f"{text} {n}", "lang": lang} for n in range(10) for lang, text in TEXTS]
    path.write_bytes(lines(*records).rstrip(b"\n"))
    pieces, _ = rows.pieces(Source(str(path), None), LANGUAGES, None, None)
    assert (len(pieces) == 40) == (size == 1)
    found = everything(str(path))
    assert [one.text for one in found if isinstance(one, Row)] == [record["text"] for record in records]
    assert [one.place for one in found] == [f"{path}, line {n}" for n in range(1, 41)]
    assert len(everything(str(path), limit=13)) == 13
    table = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(records), table, row_group_size=3)
    found = everything(str(table))
    assert [one.place for one in found] == [f"{table}, row {n}" for n in range(1, 41)]
    assert len(everything(str(table), limit=13)) == 13
    assert len(everything(str(tmp_path), limit=50)) == 50


BAD = [
    (b'{"lang": "ko", "body": "x"}', 'has no "text"'),
    (b'{"text": null, "lang": "ko"}', 'has no "text"'),
    (b'{"text": 7, "lang": "ko"}', "its text is a int"),
    (b'{"text": "x", "lang": "xx-nobody"}', "field \"lang\": 'xx-nobody' is not a known language"),
    (b'{"text": "x", "lang": 7}', 'field "lang": 7 is not a language tag'),
    ('{"text": "깨진 '.encode() + b'\xff\xfe", "lang": "ko"}', "is not UTF-8 (byte 18 of the line)"),
    (b'{"text": "half', "is not JSON ("),
    (b'{"text": "a", "text": "b", "lang": "en"}', "is not JSON ('text' stands twice)"),
    (b"[1, 2]", "is a list, not an object"),
    (b'{"text": "\\ud83d", "lang": "en"}', "holds half a surrogate pair"),
    (b'{"text": "' + b"x" * 300 + b'", "lang": "en"}', "is longer than 200 bytes (326)"),
    (b"[" * 100_000, "is longer than 200 bytes (100,000)"),
]


@pytest.mark.parametrize(("line", "said"), BAD)
def test_bad_lines_are_named_and_the_next_is_read(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(RECORDS[1]) + b"\n" + line + b"\n" + lines(RECORDS[3]))
    before, bad, after = everything(str(path), longest=200)
    assert texts([before, after]) == [TEXTS[1], TEXTS[3]]
    assert isinstance(bad, Bad) and bad.place == f"{path}, line 3"
    assert bad.reason.startswith(said), bad.reason


def test_bad_values_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    broken = pa.array([b"fine", b"br\xffken", None, "괜찮다".encode()]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, broken.buffers())
    pq.write_table(pa.table({"text": text, "lang": ["en", "en", "ko", "ko"]}), path)
    found = everything(str(path))
    assert texts([found[0], found[3]]) == [("en", "fine"), ("ko", "괜찮다")]
    assert found[1] == Bad(f"{path}, row 2", "is not UTF-8 (byte 3 of the text)")
    assert found[2] == Bad(f"{path}, row 3", 'has no "text"')
    pq.write_table(pa.table({"number": [1, 2]}), path)
    assert everything(str(path)) == [Bad(f"{path}, row {n}", 'has no "text"') for n in (1, 2)]


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_bytes(b"")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "2.parquet")
    (tmp_path / "3.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "4.jsonl.gz").write_bytes(gzip.compress(lines(*RECORDS))[:-4])
    (tmp_path / "5.txt").write_bytes("첫 줄\nبعد\n".encode() + b"\xff")
    found = everything(str(tmp_path))
    bad = [one for one in found if isinstance(one, Bad)]
    assert [one.place.removeprefix(f"{tmp_path}/") for one in bad] == [
        "3.parquet",
        "4.jsonl.gz, after line 4",
        "5.txt, line 3",
    ]
    assert texts([one for one in found if isinstance(one, Row)]) == TEXTS


def test_a_line_longer_than_memory(tmp_path: Path) -> None:
    """Half a gigabyte in one line, read by a process that may take a quarter of that."""
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(lines(RECORDS[1]) + b'{"text": "')
        file.seek(512 << 20, os.SEEK_CUR)  # a hole in the file: nothing is stored
        file.write(b'"}\n' + lines(RECORDS[2]))
    program = f"""
import resource
from onggi.text.corpus import rows
pieces, _ = rows.pieces(rows.Source({str(path)!r}, None), ("ko", "km"), None, None)
limit = int(open("/proc/self/statm").read().split()[0]) * 4096 + (128 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print([type(r).__name__ + " " + r.place.split(", ")[-1] for p in pieces for f in rows.read(p, ("ko", "km"), "text", 4 << 20) for r in f])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "['Row line 1', 'Bad line 2', 'Row line 3']\n", done.stderr


def test_no_such_source(tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match="no such text"):
        rows.kind("nowhere.jsonl")
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(OnggiError, match=r"is none of \.jsonl"):
        rows.kind(str(tmp_path / "a.pdf"))
    with pytest.raises(OnggiError, match="holds no"):
        everything(str(tmp_path))
    with pytest.raises(OnggiError, match="has no text in sw"):
        rows.known("probe", ("sw",))


def test_a_data_set_as_the_hub_streams_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through `datasets`, whose names may also be folders: a data set of two shards."""
    folder = tmp_path / "someone" / "weather"
    folder.mkdir(parents=True)
    for number in (0, 1):
        pq.write_table(
            pa.Table.from_pylist(RECORDS[2 * number : 2 * number + 2]), folder / f"train-{number}.parquet"
        )
    monkeypatch.chdir(tmp_path)
    pieces, _ = rows.pieces(Source("hub:someone/weather", None), LANGUAGES, None, None)
    assert [(piece.start, piece.stop) for piece in pieces] == [(0, 2), (1, 2)]
    found = everything("hub:someone/weather")
    assert texts(found) == TEXTS
    assert found[2].place == "hub:someone/weather, shard 1, row 1"
    assert texts(everything("hub:someone/weather", limit=3)) == TEXTS[:3]


def test_a_hub_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnavailableError, match="someone/nothing-at-all: the hub's data set cannot be had"):
        rows.fingerprint("someone/nothing-at-all", LANGUAGES)
