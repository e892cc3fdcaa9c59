"""Sources of text by name, and the one table they all become.

A source is a JSONL or parquet file, a folder that `onggi text` made, `debian:NAME`, or one of the
three texts that ship with onggi: `probe` (measured on, never calibrated on), `starter` (the other
way round) and `starts` (beginnings of sentences, from which a model writes text of its own).
Parallel text stays parallel: a row is one passage, a column a language, so that the same content
can be compared in all of them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .. import languages as tags
from .. import ledger
from ..errors import OnggiError, nearest, one_line
from . import debian, jsonl

SHIPPED = dict.fromkeys(("probe", "starter", "starts"), "Apache-2.0")
TABLE = "text.parquet"
# Fields of a parallel set that are about the row, though some would also do as a language's code.
ABOUT_THE_ROW = {
    "licence",
    "license",
    "source",
    "src",
    "url",
    "doc",
    "key",
    "tag",
    "set",
    "topic",
    "register",
}


@dataclass(frozen=True)
class Text:
    """A named text. `parallel`: columns `_id` and one per language (null where missing);
    otherwise columns `_id`, `text`, `lang`.
    """

    name: str
    table: pa.Table
    parallel: bool
    licence: str | None = None

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages there is text in, in the order of the source."""
        if self.parallel:
            return tuple(name for name in self.table.column_names if name != "_id")
        return tuple(dict.fromkeys(self.table["lang"].to_pylist()))

    def passages(self, language: str) -> dict[str, str]:
        """Passages of one language, id → text, in the order of the source."""
        if self.parallel:
            pairs = zip(self.table["_id"].to_pylist(), self.table[language].to_pylist(), strict=True)
            return {key: text for key, text in pairs if text}
        rows = zip(*(self.table[name].to_pylist() for name in ("_id", "text", "lang")), strict=True)
        return {key: text for key, text, lang in rows if lang == language and text}

    def common(self, languages: Sequence[str], limit: int | None = None) -> dict[str, dict[str, str]]:
        """Passages to measure, language → id → text: for a parallel text those that are there in
        all `languages`, so that every language is measured on the same content; else the first of
        each. `limit` passages at most in each.
        """
        found = {language: self.passages(language) for language in languages}
        if self.parallel:
            shared = [key for key in found[languages[0]] if all(key in found[lang] for lang in languages)]
            found = {language: {key: texts[key] for key in shared} for language, texts in found.items()}
        cut = {lang: dict(list(texts.items())[:limit]) for lang, texts in found.items()}
        empty = [language for language, texts in cut.items() if not texts]
        if empty:
            raise OnggiError(
                f"{self.name}: no passage is there in all of {', '.join(languages)}."
                if self.parallel
                else f"{self.name}: no text in {', '.join(empty)}."
            )
        return cut


def load(source: str, languages: Sequence[str] | None = None) -> Text:
    """The text that `source` names, in `languages` (canonical tags; None: all it has).

    Raises OnggiError, naming file, line and field, for what is not there or not well formed, and
    where a language that was asked for has no text at all.
    """
    text = _load(source, languages)
    if languages is None:
        return text
    missing = [language for language in languages if language not in text.languages]
    if missing:
        raise OnggiError(
            f"{source}: has no text in {', '.join(missing)}; it has {', '.join(text.languages)}."
        )
    if text.parallel:
        return Text(text.name, text.table.select(["_id", *languages]), True, text.licence)
    keep = pc.is_in(text.table["lang"], pa.array(languages))
    return Text(text.name, text.table.filter(keep), False, text.licence)


def available(source: str) -> tuple[str, ...]:
    """The languages that `source` has text in, without fetching any of it. Raises as `load` does."""
    if source.startswith("debian:"):
        return debian.available(source.removeprefix("debian:"))
    return _load(source, None).languages


def _load(source: str, languages: Sequence[str] | None) -> Text:
    if source in SHIPPED:
        return _table(source, _jsonl(_shipped(source), source), SHIPPED[source])
    if source.startswith("debian:"):
        if languages is None:
            raise OnggiError(f"{source}: name the languages to fetch (--languages en,ko,km).")
        name = source.removeprefix("debian:")
        table = debian.load(name, tuple(languages), ledger.cache_folder() / "text")
        found = Text(source, table, True, debian.LICENCES[name])
        return found if debian.parallel(name) else _one_by_one(found)
    path = Path(source)
    if path.is_dir():
        made = ledger.artifact(path)
        if made and (parts := shards(made)):
            table = pa.concat_tables([_read(part).select(["text", "lang"]) for part in parts])
            ids = pa.array([str(number) for number in range(1, len(table) + 1)])
            return Text(made.record["text"], table.add_column(0, "_id", ids), False, made.record["licence"])
        if not (path / TABLE).is_file():
            raise OnggiError(f"{source}: is a folder without a {TABLE}; `onggi text` makes one.")
        if made is None or made.record["verb"] != "text":
            return _parquet(path / TABLE, path.name, None)
        # `onggi text` has checked every row. The folder has no name of its own: its source's is it.
        name, licence = made.record["text"], made.record["licence"]
        return Text(name, _read(path / TABLE), made.record["parallel"], licence)
    if not path.is_file():
        raise OnggiError(
            f"{source}: no such text. A source is a JSONL or parquet file, a folder made by "
            f"`onggi text`, debian:NAME, or one of: {', '.join(SHIPPED)}.{nearest(source, SHIPPED)}"
        )
    if path.suffix == ".parquet":
        return _parquet(path, path.name, None)
    if path.suffix in (".jsonl", ".json", ".ndjson"):
        return _table(path.name, _jsonl(path, source), None)
    raise OnggiError(f"{source}: is neither .jsonl nor .parquet.")


def _one_by_one(text: Text) -> Text:
    """A text whose languages stand side by side, as one in which they do not belong together."""
    parts = []
    for language in text.languages:
        own = text.table.select(["_id", language]).rename_columns(["_id", "text"]).drop_null()
        parts.append(own.append_column("lang", pa.array([language] * len(own), pa.string())))
    return Text(text.name, pa.concat_tables(parts), False, text.licence)


def shards(made: ledger.Artifact) -> list[Path]:
    """The files of rows (text, lang, licence, source) that `onggi text --rows` made, in order; none where
    `made` is something else.
    """
    if made.record["verb"] != "text":
        return []
    return [made.path / name for name in sorted(made.record["outputs"]) if name.startswith("rows-")]


def fingerprint(source: str, languages: Sequence[str] | None) -> str:
    """A string that changes when the text does, without fetching anything."""
    if source in SHIPPED:
        return f"{source}:{ledger.sha256(_shipped(source))}"
    if source.startswith("debian:"):
        return debian.version(source.removeprefix("debian:"), tuple(languages or ()))
    path = Path(source)
    if path.is_dir():
        found = ledger.artifact(path)
        if found:
            return found.fingerprint
        path = path / TABLE
    if not path.is_file():
        _load(source, languages)  # raises with the reason
    return ledger.sha256(path)


def _shipped(name: str) -> Path:
    return Path(__file__).parent / "data" / f"{name}.jsonl"


def _jsonl(path: Path, source: str) -> list[dict[str, Any]]:
    return [{**row, "__line": number} for number, row in jsonl.read(path, source)]


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise OnggiError(f"{path}: is not a readable parquet file ({one_line(error)}).") from error


def _parquet(path: Path, name: str, licence: str | None) -> Text:
    try:
        rows = _read(path).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise OnggiError(f"{path}: is not a readable parquet file ({one_line(error)}).") from error
    if not rows:
        raise OnggiError(f"{path}: is empty.")
    return _table(name, [{**row, "__line": i} for i, row in enumerate(rows, 1)], licence)


def _table(name: str, rows: list[dict[str, Any]], licence: str | None) -> Text:
    keys = dict.fromkeys(key for row in rows for key in row if key != "__line")
    if "text" in keys:
        return _rows_table(name, rows, licence)
    id_key = "_id" if "_id" in keys else "id" if "id" in keys and _is_identifier(rows, name) else None
    columns = _language_columns(keys, id_key, name)
    if not columns:
        raise OnggiError(
            f'{name}: rows need either "text" and "lang", or "_id" and one field per language '
            f"(found: {', '.join(keys)})."
        )
    ids = _ids(rows, id_key, name)
    data: dict[str, list[str | None]] = {tag: [] for tag in columns}
    for row in rows:
        for tag, key in columns.items():
            value = row.get(key)
            data[tag].append(None if value is None else _clean(value, name, row["__line"], key))
    present = {tag: values for tag, values in data.items() if any(values)}
    if not present:
        raise OnggiError(f"{name}: every passage is empty.")
    return Text(name, pa.table({"_id": ids, **present}), True, licence)


def _rows_table(name: str, rows: list[dict[str, Any]], licence: str | None) -> Text:
    texts, langs = [], []
    for row in rows:
        for field in ("text", "lang"):
            if row.get(field) is None:
                raise OnggiError(f'{name}, line {row["__line"]}: has no "{field}".')
        texts.append(_clean(row["text"], name, row["__line"], "text"))
        try:
            langs.append(tags.canonical(row["lang"]))
        except OnggiError as error:
            raise OnggiError(f'{name}, line {row["__line"]}, field "lang": {error}') from error
    if not any(texts):
        raise OnggiError(f"{name}: every passage is empty.")
    ids = _ids(rows, "_id" if all("_id" in row for row in rows) else None, name)
    licences = {str(row["licence"]) for row in rows if row.get("licence")}
    if len(licences) == 1 and licence is None:
        licence = licences.pop()
    return Text(name, pa.table({"_id": ids, "text": texts, "lang": langs}), False, licence)


def _is_identifier(rows: Iterable[Mapping[str, Any]], name: str) -> bool:
    """`id` is also the tag of Indonesian: it names rows only if no value of it reads like text."""
    values = [row["id"] for row in rows if row.get("id") not in (None, "")]
    if values and all(isinstance(value, str) and " " in value for value in values):
        return False
    if any(isinstance(value, str) and any(c.isspace() for c in value) for value in values):
        raise OnggiError(f'{name}: some values of "id" are text, some are not; name the rows "_id".')
    return True


def _language_columns(keys: Iterable[str], id_key: str | None, name: str) -> dict[str, str]:
    columns: dict[str, str] = {}
    for key in keys:
        if key == id_key or key in ABOUT_THE_ROW:
            continue
        try:
            tag = tags.canonical(key)
        except OnggiError:
            continue  # licence, source, topic …: about the row, not text of it
        if tag in columns:
            raise OnggiError(f"{name}: fields {columns[tag]!r} and {key!r} are the same language, {tag}.")
        columns[tag] = key
    return columns


def _ids(rows: Sequence[Mapping[str, Any]], key: str | None, name: str) -> list[str]:
    ids = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        if key and row.get(key) is None:
            raise OnggiError(f'{name}, line {row["__line"]}: has no "{key}".')
        value = _clean(str(row[key]), name, row["__line"], key) if key else str(number)
        if value in seen:
            raise OnggiError(
                f'{name}: "{key}" {value!r} stands twice (lines {seen[value]} and {row["__line"]}).'
            )
        seen[value] = row["__line"]
        ids.append(value)
    return ids


def _clean(value: Any, name: str, line: int, field: str) -> str:
    if not isinstance(value, str):
        raise OnggiError(f'{name}, line {line}, field "{field}": is {type(value).__name__}, not text.')
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise OnggiError(
            f'{name}, line {line}, field "{field}": holds half a surrogate pair; the text was cut.'
        )
    return unicodedata.normalize("NFC", value).strip()
