"""Rows of text out of any source, in pieces that can be read apart, by any process, in bounded memory.

A piece is a range of bytes of a JSONL file, row groups of a parquet file, some files of a folder, one
language of a text that onggi knows by name, or one shard of a hub's data set. Reading gives for each
record a `Row`, several where it is parallel, or a `Bad` that says where it stands and what is wrong:
nothing is passed over in silence.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ... import languages as tags
from ... import ledger
from ...errors import OnggiError, UnavailableError, one_line
from .. import debian, jsonl, sources

PIECE = 32 << 20  # bytes of one piece, about
_BLOCK = 1 << 20
_JSON = (".jsonl", ".ndjson", ".json")
_PLAIN = (".txt", ".text", ".md")
_HUB = re.compile(r"(?:hub:)?([\w.-]+/[\w.-]+)(?::([\w.-]+))?")
_FIELDS = {
    "lang": ("lang", "language"),
    "licence": ("licence", "license"),
    "source": ("source", "url"),
}
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Row:
    """One text. lang: a canonical tag, None where nothing says it. place: file and line, for messages."""

    text: str
    lang: str | None
    licence: str
    source: str
    place: str


@dataclass(frozen=True)
class Bad:
    """A record that is not a row, and why."""

    place: str
    reason: str


@dataclass(frozen=True)
class Piece:
    """What one call of `read` reads. kind: jsonl, parquet, plain, known or hub. start, stop: bytes of a JSONL
    file, row groups of a parquet file, places among `files`, rows of a known text, or shard and number of
    shards of a data set. first: the number of its first record. lang, licence: of records that do not say.
    """

    source: str
    kind: str
    files: tuple[str, ...]
    start: int
    stop: int | None
    first: int
    lang: str | None
    licence: str | None
    limit: int | None = None  # records at most


@dataclass(frozen=True)
class Source:
    """A source as it was named on the line, and its language where that was named too (`ko=notes/`)."""

    name: str
    lang: str | None


def parse(word: str) -> Source:
    """`SOURCE` or `LANGUAGE=SOURCE`."""
    head, equals, rest = word.partition("=")
    if equals and rest and re.fullmatch(r"[A-Za-z]{2,3}([-_]\w+)*", head) and not Path(word).exists():
        return Source(rest, tags.canonical(head))
    return Source(word, None)


def kind(name: str) -> str:
    """How a source is read: jsonl, parquet, plain, folder, known or hub. Raises OnggiError for none of them."""
    path = Path(name)
    if name in sources.SHIPPED or name.startswith("debian:"):
        return "known"
    if path.is_dir():
        return "known" if (path / sources.TABLE).is_file() else "folder"
    if path.is_file():
        found = _kind(path)
        if found is None:
            raise OnggiError(
                f"{name}: is none of {', '.join((*_JSON, '.parquet', *_PLAIN))}, with or without .gz."
            )
        return found
    if is_hub(name):
        return "hub"
    sources.load(name)  # raises, saying what a source may be
    raise AssertionError(name)


def _kind(path: Path) -> str | None:
    suffixes = path.suffixes[-2:]
    suffix = suffixes[0] if suffixes[1:] == [".gz"] else path.suffix
    if suffix in _JSON:
        return "jsonl"
    if suffix == ".parquet":
        return "parquet"
    return "plain" if suffix in _PLAIN else None


def files(name: str) -> tuple[list[Path], list[Path]]:
    """The files of a folder in order, those that are read and those that are not."""
    found = sorted(path for path in Path(name).rglob("*") if path.is_file() and not path.name.startswith("."))
    if (Path(name) / ledger.MARKER).is_file():  # a folder that this command made: its rows
        found = [path for path in found if path.suffix == ".parquet"]
    return [p for p in found if _kind(p)], [p for p in found if not _kind(p)]


def fingerprint(name: str, languages: Sequence[str]) -> str:
    """A string that changes when the source does; of a file, of its contents."""
    which = kind(name)
    if which == "hub":
        return f"{name}@{_hub_facts(name)[0]}"
    if which == "folder":
        made = ledger.artifact(Path(name))
        if made:
            return made.fingerprint
        return ledger.digest({str(path.relative_to(name)): ledger.sha256(path) for path in files(name)[0]})
    if which == "known":
        return sources.fingerprint(name, _spoken(name, languages))
    return ledger.sha256(Path(name))


def prepare(name: str, languages: Sequence[str]) -> None:
    """Fetch what is fetched once. Raises UnavailableError where the source cannot be had here and now."""
    which = kind(name)
    if which == "known":
        known(name, languages)
    elif which == "hub":
        _hub(name)


def known(name: str, languages: Sequence[str]) -> sources.Text:
    """A text that onggi knows by name, in those of `languages` that it has."""
    return sources.load(name, _spoken(name, languages))


def _spoken(name: str, languages: Sequence[str]) -> list[str]:
    if name.startswith("debian:"):
        has: Sequence[str] = debian.available(name.removeprefix("debian:"))
    else:
        has = sources.load(name).languages
    found = [language for language in languages if language in has]
    if not found:
        raise OnggiError(f"{name}: has no text in {', '.join(languages)}; it has {', '.join(has)}.")
    return found


def pieces(
    source: Source, languages: Sequence[str], limit: int | None, licence: str | None
) -> tuple[list[Piece], list[Bad]]:
    """The pieces of a source, `limit` records of it at most, and files that cannot be read at all."""
    which = kind(source.name)
    if which == "known":
        text = known(source.name, languages)
        said = text.licence or licence
        if text.parallel or source.name.startswith("debian:"):
            made = [
                Piece(source.name, "known", (language,), 0, limit, 1, language, said)
                for language in text.languages
            ]
        else:
            made = [Piece(source.name, "known", (), 0, limit, 1, None, said)]
        return made, []
    if which == "hub":
        _, said, shards = _hub_facts(source.name)
        if limit is not None or shards == 1:
            return [Piece(source.name, "hub", (), 0, 1, 1, source.lang, said or licence, limit)], []
        return [
            Piece(source.name, "hub", (), shard, shards, 1, source.lang, said or licence)
            for shard in range(shards)
        ], []
    made, bad, left = [], [], limit
    paths = files(source.name)[0] if which == "folder" else [Path(source.name)]
    if not paths:
        raise OnggiError(f"{source.name}: holds no {', '.join((*_JSON, '.parquet', *_PLAIN))}.")
    plain: list[Path] = []
    for path in paths:
        lang = source.lang or _folder_language(path, Path(source.name), languages)
        one = Piece(source.name, _kind(path) or "", (str(path),), 0, None, 1, lang, licence)
        if one.kind == "plain":
            plain.append(path)
            continue
        try:
            cut, records = _cut_jsonl(one, left) if one.kind == "jsonl" else _cut_parquet(one, left)
        except (OSError, pa.ArrowException) as error:
            bad.append(Bad(str(path), f"cannot be read ({one_line(error)})"))
            continue
        made += cut
        if left is not None:
            left = max(0, left - records)
    made += _cut_plain(source, plain[:left], languages, licence)
    return made, bad


def _folder_language(path: Path, root: Path, languages: Sequence[str]) -> str | None:
    """The nearest folder, or middle of the name (`a.ko.txt`), that is the tag of a language asked for."""
    if path == root:
        return None
    for part in (*path.name.split(".")[1:-1], *reversed(path.relative_to(root).parts[:-1])):
        try:
            tag = tags.canonical(part)
        except OnggiError:
            continue
        if tag in languages:
            return tag
    return None


def _cut_jsonl(one: Piece, limit: int | None) -> tuple[list[Piece], int]:
    """Ranges of about PIECE bytes, each from the start of a line to the end of one, and the number of lines;
    read in blocks, since a line may be longer than the memory.
    """
    path = Path(one.files[0])
    if path.suffix == ".gz":  # cannot be entered in the middle
        records = sum(1 for _ in itertools.islice(_read_jsonl(one, (), "", _BLOCK), limit)) if limit else 0
        return [replace(one, limit=limit)] if limit != 0 else [], records
    made: list[Piece] = []
    start, first, position, lines = 0, 1, 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            at = 0
            while at < len(block):
                wanted = max(start + PIECE - 1 - position, at)
                end = block.find(b"\n", wanted) + 1 if wanted < len(block) else 0
                stop = end or len(block)
                lines += block.count(b"\n", at, stop)
                if end:
                    made.append(replace(one, start=start, stop=position + end, first=first))
                    start, first = position + end, lines + 1
                at = stop
            position += len(block)
            if limit is not None and lines >= limit:
                break
    if position > start:
        made.append(replace(one, start=start, stop=position, first=first))
    return _limited(made, limit), lines + 1


def _limited(made: list[Piece], limit: int | None) -> list[Piece]:
    if limit is None:
        return made
    return [replace(piece, limit=limit - piece.first + 1) for piece in made if piece.first <= limit]


def _cut_parquet(one: Piece, limit: int | None) -> tuple[list[Piece], int]:
    made: list[Piece] = []
    facts = pq.ParquetFile(one.files[0]).metadata
    start, size, first, row = 0, 0, 1, 1
    for group in range(facts.num_row_groups):
        size += facts.row_group(group).total_byte_size
        row += facts.row_group(group).num_rows
        if size >= PIECE or group == facts.num_row_groups - 1:
            made.append(replace(one, start=start, stop=group + 1, first=first))
            start, size, first = group + 1, 0, row
    return _limited(made, limit), row - 1


def _cut_plain(
    source: Source, paths: list[Path], languages: Sequence[str], licence: str | None
) -> list[Piece]:
    made: list[Piece] = []
    for lang, group in itertools.groupby(
        paths, lambda path: source.lang or _folder_language(path, Path(source.name), languages)
    ):
        batch: list[str] = []
        size = 0
        for path in group:
            batch.append(str(path))
            size += path.stat().st_size
            if size >= PIECE:
                made.append(Piece(source.name, "plain", tuple(batch), 0, None, 1, lang, licence))
                batch, size = [], 0
        if batch:
            made.append(Piece(source.name, "plain", tuple(batch), 0, None, 1, lang, licence))
    return made


# ── reading ────────────────────────────────────────────────────────────────────────────────────


def read(piece: Piece, languages: Sequence[str], field: str, longest: int) -> Iterator[list[Row | Bad]]:
    """Each record of a piece: its row, or rows where it is parallel and has no `field`, or what is wrong."""
    kinds = {
        "jsonl": _read_jsonl,
        "parquet": _read_parquet,
        "plain": _read_plain,
        "known": _read_known,
        "hub": _read_hub,
    }
    found = kinds[piece.kind](piece, languages, field, longest)
    return itertools.islice(found, piece.limit)


def _open(path: str) -> IO[bytes]:
    return gzip.open(path, "rb") if path.endswith(".gz") else Path(path).open("rb")  # type: ignore[return-value]


def _read_jsonl(
    piece: Piece, languages: Sequence[str], field: str, longest: int
) -> Iterator[list[Row | Bad]]:
    path = piece.files[0]
    number = piece.first - 1
    try:
        with _open(path) as file:
            file.seek(piece.start)
            left = None if piece.stop is None else piece.stop - piece.start
            while left is None or left > 0:
                line = file.readline(longest + 1)
                if not line:
                    break
                number, size = number + 1, len(line)
                place = f"{path}, line {number}"
                if size > longest and not line.endswith(b"\n"):
                    while (more := file.readline(_BLOCK)) and not more.endswith(b"\n"):
                        size += len(more)
                    size += len(more)
                    length = size - more.endswith(b"\n")
                    yield [Bad(place, f"is longer than {longest:,} bytes ({length:,})")]
                elif line.strip():
                    yield _record(_parsed(line, number == 1), piece, languages, field, longest, place)
                left = None if left is None else left - size
    except (OSError, EOFError, zlib.error) as error:
        yield [Bad(f"{path}, after line {number}", f"cannot be read ({one_line(error)})")]


def _parsed(line: bytes, first: bool) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig" if first else "utf-8"), object_pairs_hook=jsonl.once)
    except UnicodeDecodeError as error:
        return OnggiError(f"is not UTF-8 (byte {error.start + 1} of the line)")
    except (ValueError, RecursionError) as error:
        return OnggiError(f"is not JSON ({one_line(error)})")


def _record(
    record: Any, piece: Piece, languages: Sequence[str], field: str, longest: int, place: str
) -> list[Row | Bad]:
    if isinstance(record, OnggiError):
        return [Bad(place, str(record))]
    if not isinstance(record, Mapping):
        return [Bad(place, f"is a {type(record).__name__}, not an object")]
    about: dict[str, Any] = {}
    for name, keys in _FIELDS.items():
        about[name] = next((record[key] for key in keys if record.get(key) not in (None, "")), None)
    licence = str(about["licence"] or piece.licence or UNKNOWN)
    source = str(about["source"] or piece.source)
    if record.get(field) is None:
        texts = _parallel(record, languages)
        if not texts:
            return [Bad(place, f'has no "{field}"')]
    else:
        lang = about["lang"] or piece.lang
        try:
            texts = {None if lang is None else tags.canonical(lang): record[field]}
        except OnggiError as error:
            return [Bad(place, f'field "lang": {str(error).rstrip(".")}')]
    return [_row(text, tag, licence, source, longest, place) for tag, text in texts.items()]


def _parallel(record: Mapping[str, Any], languages: Sequence[str]) -> dict[str | None, Any]:
    """The texts of a parallel record, of those `languages` it has. A plain `id` without spaces is a name."""
    found: dict[str | None, Any] = {}
    for key, value in record.items():
        if value is None or key in sources.ABOUT_THE_ROW or (key == "id" and " " not in str(value)):
            continue
        try:
            tag = tags.canonical(key)
        except OnggiError:
            continue
        if tag in languages:
            found[tag] = value
    return found


def _row(text: Any, lang: str | None, licence: str, source: str, longest: int, place: str) -> Row | Bad:
    if isinstance(text, OnggiError):
        return Bad(place, str(text))
    if not isinstance(text, str):
        return Bad(place, f"its text is a {type(text).__name__}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return Bad(place, "holds half a surrogate pair; the text was cut")
    if size > longest:
        return Bad(place, f"is longer than {longest:,} bytes ({size:,})")
    return Row(text, lang, licence, source, place)


def _read_parquet(
    piece: Piece, languages: Sequence[str], field: str, longest: int
) -> Iterator[list[Row | Bad]]:
    path = piece.files[0]
    number = piece.first - 1
    try:
        file = pq.ParquetFile(path)
        wanted = [name for name in file.schema_arrow.names if name == field or _about(name, languages)]
        groups = list(range(piece.start, piece.stop or 0))
        for batch in file.iter_batches(batch_size=64, row_groups=groups, columns=wanted):
            for record in zip(*(_values(batch.column(name)) for name in wanted), strict=True):
                number += 1
                yield _record(
                    dict(zip(wanted, record, strict=True)),
                    piece,
                    languages,
                    field,
                    longest,
                    f"{path}, row {number}",
                )
            for _ in range(0 if wanted else batch.num_rows):
                number += 1
                yield [Bad(f"{path}, row {number}", f'has no "{field}"')]
    except (OSError, pa.ArrowException) as error:
        yield [Bad(f"{path}, after row {number}", f"cannot be read ({one_line(error)})")]


def _about(name: str, languages: Sequence[str]) -> bool:
    return name in sum(_FIELDS.values(), ()) or bool(_parallel({name: "a text"}, languages))


def _values(column: pa.Array) -> list[Any]:
    """Python values; a string that is not UTF-8 is an OnggiError that says so."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
        return [None if value is None else _text(value) for value in column.to_pylist()]
    return list(column.to_pylist())


def _text(value: bytes) -> str | OnggiError:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        return OnggiError(f"is not UTF-8 (byte {error.start + 1} of the text)")


def _read_plain(
    piece: Piece, languages: Sequence[str], field: str, longest: int
) -> Iterator[list[Row | Bad]]:
    licence = piece.licence or UNKNOWN
    for path in piece.files:
        try:
            with _open(path) as file:
                content = file.read(longest + 1)
        except (OSError, EOFError, zlib.error) as error:
            yield [Bad(path, f"cannot be read ({one_line(error)})")]
            continue
        if len(content) > longest:
            yield [Bad(path, f"is longer than {longest:,} bytes")]
            continue
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            yield [Bad(f"{path}, line {line}", "is not UTF-8")]
            continue
        yield [Row(text, piece.lang, licence, piece.source, path)]


def _read_known(
    piece: Piece, languages: Sequence[str], field: str, longest: int
) -> Iterator[list[Row | Bad]]:
    text = known(piece.source, piece.files or languages)
    licence = piece.licence or UNKNOWN
    if piece.lang:
        records = [(key, piece.lang, passage) for key, passage in text.passages(piece.lang).items()]
    else:
        columns = (text.table[name].to_pylist() for name in ("_id", "lang", "text"))
        records = list(zip(*columns, strict=True))
    for key, lang, passage in records[: piece.stop]:
        yield [_row(passage, lang, licence, piece.source, longest, f"{piece.source}, {key}")]


# ── a hub's data sets ──────────────────────────────────────────────────────────────────────────


def is_hub(name: str) -> bool:
    """Whether `name` is a data set's on a hub, and no file's."""
    return bool(_HUB.fullmatch(name)) and not name.startswith((".", "/")) and _kind(Path(name)) is None


def hub(name: str) -> Iterator[dict[str, Any]]:
    """The records of a hub's data set as they are. Raises OnggiError as `read` does."""
    yield from _hub(name)


def _hub(name: str) -> Any:
    """The data set as a stream of records. `OWNER/NAME`, `OWNER/NAME:CONFIGURATION`, hub: before it or not."""
    try:
        import datasets
    except ImportError as error:
        raise OnggiError(f"{name}: reading a hub's data set needs pip install 'onggi[corpus]'.") from error
    found = _HUB.fullmatch(name)
    assert found
    try:
        return datasets.load_dataset(found[1], found[2], split="train", streaming=True)
    except Exception as error:  # a dozen kinds, of datasets, huggingface_hub, httpx and fsspec
        raise UnavailableError(
            f"{name}: the hub's data set cannot be had ({one_line(error)[:200]})."
        ) from error


def _hub_facts(name: str) -> tuple[str, str | None, int]:
    """Revision, licence and number of shards."""
    stream = _hub(name)
    info = stream.info
    checksums = sorted(str(key) for key in (info.download_checksums or {}))
    revision = hashlib.sha256(json.dumps([checksums, str(info.version)]).encode()).hexdigest()[:16]
    licence = info.license or None
    path = _HUB.fullmatch(name)
    if path and not Path(path[1]).is_dir():
        from huggingface_hub import HfApi

        try:
            facts = HfApi().dataset_info(path[1])
        except Exception as error:
            raise UnavailableError(f"{name}: the hub does not answer ({one_line(error)[:200]}).") from error
        revision = facts.sha or revision
        card = facts.card_data.get("license") if facts.card_data else None
        licence = ", ".join(card) if isinstance(card, list) else card or licence
    return revision, licence, int(stream.num_shards)


def _read_hub(piece: Piece, languages: Sequence[str], field: str, longest: int) -> Iterator[list[Row | Bad]]:
    stream = _hub(piece.source)
    if piece.stop and piece.stop > 1:
        stream = stream.shard(num_shards=piece.stop, index=piece.start)
    where = f"{piece.source}, shard {piece.start}"
    number = 0
    try:
        for number, record in enumerate(stream, 1):
            yield _record(record, piece, languages, field, longest, f"{where}, row {number}")
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        yield [Bad(f"{where}, after row {number}", f"cannot be read ({one_line(error)})")]
