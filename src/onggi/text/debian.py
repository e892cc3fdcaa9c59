"""Text out of Debian's documentation packages: `debian:libreoffice-help` and others.

Balanced calibration and fair measurement need the same content in many languages, under a licence
that lets it be used, without an account or a download that may vanish. LibreOffice's help is that:
33 languages, 60,000 paragraphs, MPL-2.0, one package a language in Debian and Ubuntu. The
same file and element id is the same paragraph in all of them, so the text is parallel by
construction and nothing has to be aligned.

What it takes to get from the packages to text that can be trusted:

- A paragraph that nobody has translated stands in the package in English. Equal to the English, it
  counts as missing. In a language not written in Latin letters `in_language` catches more: what has
  next to no letters of its own (key names, formulae, `Ctrl + E` for `Ctrl+E`), and translations in
  which a sentence of English was left standing.
- Alternatives (macOS or another system, Writer or Calc) stand side by side in the file and a script
  of the page hides all but one. Read straight through they give "CommandCtrl", so one is taken, by
  its place, which is the same in every language.
- Up to two dozen rows of a package are damaged in the package itself: a letter that lost its first
  byte, an embedded section "not found". They are dropped.
- Headings such as "Example" come hundreds of times. Of paragraphs with the same English text the
  first is kept, or calibration would be labels repeated.

Three more are read by the same rules. `gnome-user-docs` and `installation-guide` hold all their languages
in one package; a page of them is a source translated block by block, so the same place on a page is the
same block, wherever the page has as many blocks as the English one (others are left out). `manpages` are
not parallel so strictly: a row is a whole page, and the same page in two languages may be of two versions;
paragraphs left in English are dropped. There are none in Korean.

A package is read, never installed: `apt-get download` into the cache, `dpkg-deb` to unpack it in
memory. What was read from it is kept as one parquet for each language, moved into place when it is
whole, so that the second time is instant and needs no apt.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import regex
from lxml import etree

from .. import languages as tags
from .. import ledger
from ..errors import OnggiError, UnavailableError, nearest
from ..progress import progress, say
from . import manuals, scripts

LICENCES = {
    "libreoffice-help": "MPL-2.0",
    "gnome-user-docs": "CC-BY-SA-3.0",
    "installation-guide": "GPL-2.0-only",
    "manpages": "various free licences, of each page its own",
}

# Counts up whenever the same package would give other text: it is part of every cached file's name
# and of every fingerprint.
EXTRACTOR = 1

# The packages of Debian 12. `libreoffice-help-sk` is there too, but empty (a link to the Czech).
_SAME = "ca cs da de dz el es et eu fi fr gl hi hu id it ja km ko nl om pl ru sl sv tr vi"
# Without he, hi, kn, lt, pa, ro and tr, of which next to nothing is translated.
_GNOME = (
    "en as ca cs da de el es fa fi fr gl gu hr hu id it ja ko lv mr nl pl pt pt-PT ru sl sr sr-Latn sv ta te "
    "uk vi zh-Hans"
)
_GUIDE = "en ca cs da de el es fr id it ja ko nl pt-PT ro ru sv vi zh-Hans"
_MAN = "cs da de el es fi fr hu id it ja mk nb nl pl ro ru sr sv tr uk vi"
_PACKAGES = {
    "libreoffice-help": {
        "en": "libreoffice-help-en-us",
        "en-GB": "libreoffice-help-en-gb",
        "pt": "libreoffice-help-pt-br",
        "pt-PT": "libreoffice-help-pt",
        "zh-Hans": "libreoffice-help-zh-cn",
        "zh-Hant": "libreoffice-help-zh-tw",
        **{tag: f"libreoffice-help-{tag}" for tag in _SAME.split()},
    },
    "gnome-user-docs": dict.fromkeys(_GNOME.split(), "gnome-user-docs"),
    "installation-guide": dict.fromkeys(_GUIDE.split(), "installation-guide-amd64"),
    "manpages": {
        "en": "manpages",
        "pt": "manpages-pt-br",
        "zh-Hans": "manpages-zh",
        "zh-Hant": "manpages-zh",
        **{tag: f"manpages-{tag}" for tag in _MAN.split()},
    },
}
_SHARED = {"gnome-user-docs", "installation-guide-amd64", "manpages-zh"}  # several languages in one package
# What a language's folder in a package is called, where it is not its tag.
_FOLDERS = {"pt": "pt_BR", "pt-PT": "pt", "zh-Hans": "zh_CN", "zh-Hant": "zh_TW", "sr-Latn": "sr@latin"}
_SIZES = {
    "libreoffice-help": "3 MB each",
    "gnome-user-docs": "9 MB together",
    "installation-guide": "18 MB together",
    "manpages": "1 to 5 MB each",
}

# Fewer own letters than one in twenty: a formula, a list of products or a line of code. Lower than
# one would guess because one syllable of Hangul stands for several Latin letters, and rows such as
# "LibreOffice Math 예" (0.06), good Korean for "LibreOffice Math Examples", are to stay.
MIN_OWN_SHARE = 0.05

# A sentence of English in a text of another script: six words or more in a row, and two of them such
# that names, formulae and code do not have. In Debian 12 it finds up to 35 rows in a language (Greek:
# none), all of them half translated.
_RUN = regex.compile(r"[A-Za-z][A-Za-z'\u2019\-]*+(?:[ ,]{1,2}[A-Za-z][A-Za-z'\u2019\-]*+){5,}+")
_FUNCTION_WORD = regex.compile(
    r"\b(?:the|of|and|to|is|are|be|in|on|with|this|that|which|for|from|by|as|if|you|your|it|not|can|will"
    r"|has|when|where|or|an|at)\b"
)
# Half a letter (control characters that no text has) or an embedded section that was not found.
_DAMAGED = regex.compile(r"[\x00-\x1f\x7f-\x9f\ufffd]|\[text/\S+ not found\]")

_HELP_FILE = regex.compile(r"(?:\./)?usr/share/libreoffice/help/[^/]+/text/(.+\.html)")
_PARAGRAPHS = etree.XPath('//*[@id="DisplayArea"]//*[starts-with(@id, "par_") or starts-with(@id, "hd_")]')
_PARSER = etree.HTMLParser(encoding="utf-8", no_network=True, remove_comments=True, remove_pis=True)
_SCHEMA = pa.schema([("_id", pa.string()), ("text", pa.string())])


def load(name: str, languages: Sequence[str], cache: Path) -> pa.Table:
    """The parallel set `name` in `languages` (canonical tags): columns `_id` and one per language.

    Null where a paragraph is not translated; rows without text in any of `languages` are left out.
    `_id` is `FILE#ELEMENT`, as in `scalc/04/01020000.html#par_id3153967`, or `FILE#NUMBER`; of man pages,
    which are whole, `man1/cp.1`. What is not in the folder
    `cache` yet is fetched into it. Raises `OnggiError` for an unknown name or language, where there
    is no apt, and where fetching fails.
    """
    packages = _packages(name, languages)
    folder = cache / "debian" / name
    try:
        tables = _cached(folder, packages) or _fetch(name, folder, packages)
    except OnggiError as error:
        raise UnavailableError(str(error)) from error
    return _side_by_side(tables, languages) if parallel(name) else _by_page(tables, languages)


def version(name: str, languages: Sequence[str] = ()) -> str:
    """A string for fingerprints: changes when the text would. Needs no network and no cache."""
    _packages(name, languages)
    return f"debian:{name} extractor {EXTRACTOR}"


def available(name: str) -> tuple[str, ...]:
    """The languages that `name` comes in, as canonical tags."""
    return tuple(sorted(_known(name)))


def parallel(name: str) -> bool:
    """Whether a row of `name` says the same in every language. A man page may be of another version in each."""
    return name != "manpages"


def in_language(text: str, language: str) -> bool:
    """The script check: False where `text` is not, or only in part, in `language`.

    It can tell only languages not written in Latin letters from English; of the others it asks no
    more than that there are letters at all.
    """
    if tags.is_latin(language):
        return scripts.count(text) > 0
    if scripts.own_share(text, language) < MIN_OWN_SHARE:
        return False
    return all(len(_FUNCTION_WORD.findall(run)) < 2 for run in _RUN.findall(text))


def paragraphs(html: bytes) -> Iterator[tuple[str, str]]:
    """Element id and text of the paragraphs of one page of the help, in the order of the page.

    Text is in NFC, its whitespace collapsed (zero-width spaces stay: Khmer parts words with them).
    """
    root = etree.fromstring(html, _PARSER) if html.strip() else None
    if root is None:
        return
    for element in _PARAGRAPHS(root):
        text = "".join(_pieces(element)).replace("\u00ad", "")
        text = unicodedata.normalize("NFC", " ".join(text.split()))
        if text:
            yield element.get("id"), text


def extract(deb: Path, language: str, name: str = "libreoffice-help") -> pa.Table:
    """All paragraphs of the package `deb`, one of `name`, that are in `language`: columns `_id` and `text`.

    Nothing is installed or run. Raises `OnggiError` where the package is damaged or holds no help.
    """
    rows = _READERS[name](deb, language)
    if not rows:
        raise OnggiError(f"{deb.name}: holds no help text.")
    kept = {key: text for key, text in rows.items() if not _DAMAGED.search(text.replace("\n", " "))}
    if name != "manpages":  # whose paragraphs have been looked at one by one
        kept = {key: text for key, text in kept.items() if in_language(text, language)}
    return pa.table({"_id": list(kept), "text": list(kept.values())}, schema=_SCHEMA)


def _help(deb: Path, language: str) -> dict[str, str]:
    """LibreOffice's help."""
    rows: dict[str, str] = {}
    for page, html in sorted(_pages(deb, _HELP_FILE).items()):
        for identifier, text in paragraphs(html):
            # A section that is embedded twice brings its ids twice; the first is the same in all languages.
            rows.setdefault(f"{page}#{identifier}", text)
    return rows


def _gnome(deb: Path, language: str) -> dict[str, str]:
    return _blocks(deb, "usr/share/help", _folder(language, "C"), "C", "page", manuals.mallard)


def _guide(deb: Path, language: str) -> dict[str, str]:
    root = "usr/share/doc/installation-guide-amd64"
    return _blocks(deb, root, _folder(language, "en"), "en", "html", manuals.docbook)


def _blocks(
    deb: Path, root: str, own: str, english: str, kind: str, read: Callable[[bytes], list[str]]
) -> dict[str, str]:
    """Blocks by page and number, of the pages that have as many as the English page of that name."""
    pattern = rf"(?:\./)?{root}/((?:{own}|{english})/.+\.{kind})"
    pages = {name: read(content) for name, content in sorted(_pages(deb, regex.compile(pattern)).items())}
    rows: dict[str, str] = {}
    for name, blocks in pages.items():
        folder, _, page = name.partition("/")
        if folder == own and len(blocks) == len(pages.get(f"{english}/{page}", ())):
            rows |= {f"{page}#{number}": text for number, text in enumerate(blocks)}
    return rows


def _man(deb: Path, language: str) -> dict[str, str]:
    """Man pages, each as one text: its paragraphs that are in the language, a line each."""
    folder = _folder(language, ".")
    rows: dict[str, str] = {}
    pattern = regex.compile(
        rf"(?:\./)?usr/share/man/{'' if folder == '.' else f'{folder}/'}(man[1-9][^/]*/.+)\.gz"
    )
    for page, content in sorted(_pages(deb, pattern).items()):
        try:
            source = gzip.decompress(content).decode()
        except (OSError, EOFError, UnicodeDecodeError):
            continue  # a page or two in an encoding of old
        kept = [text for text in manuals.roff(source) if in_language(text, language)]
        if kept:
            rows[page] = "\n".join(kept)
    return rows


def _folder(language: str, english: str) -> str:
    return english if language == "en" else _FOLDERS.get(language, language)


_READERS: dict[str, Callable[[Path, str], dict[str, str]]] = {
    "libreoffice-help": _help,
    "gnome-user-docs": _gnome,
    "installation-guide": _guide,
    "manpages": _man,
}


def _known(name: str) -> dict[str, str]:
    try:
        return _PACKAGES[name]
    except KeyError:
        raise OnggiError(f"debian:{name} is not a text onggi knows.{nearest(name, _PACKAGES)}") from None


def _packages(name: str, languages: Sequence[str]) -> dict[str, str]:
    """Language → package, English first: without it there is no telling what is untranslated."""
    known = _known(name)
    missing = [language for language in languages if language not in known]
    if missing:
        raise OnggiError(
            f"debian:{name} has no text in {', '.join(missing)}. There is: {', '.join(available(name))}."
        )
    return {language: known[language] for language in dict.fromkeys(("en", *languages))}


def _pieces(element: etree._Element) -> Iterator[str]:
    """The text of `element` in pieces, with one of each set of alternatives."""
    if element.text:
        yield element.text
    children = list(element)
    if element.get("class") == "switchinline":
        # As the page does it: the variant without a class is what shows where no other applies.
        variants = [child for child in children if child.get("class") != "MAC"]
        shown = [child for child in variants if child.get("class") is None][:1] or variants[:1]
    else:
        shown = [child for child in children if child.get("class") != "MAC"]
    for child in children:
        if child.tag == "br":
            yield " "
        elif child in shown:
            yield from _pieces(child)
        if child.tail:
            yield child.tail


def _pages(deb: Path, pattern: regex.Pattern[str]) -> dict[str, bytes]:
    """The files whose path `pattern` matches, by its first group."""
    unpacked = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", str(deb)], capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    try:
        if unpacked.returncode != 0:
            raise OSError(_last_line(unpacked.stderr.decode(errors="replace")))
        with tarfile.open(fileobj=io.BytesIO(unpacked.stdout), mode="r:") as archive:
            pages: dict[str, bytes] = {}
            for member in archive:
                match = pattern.fullmatch(member.name)
                content = archive.extractfile(member) if match and member.isreg() else None
                if match and content is not None:
                    pages[match[1]] = content.read()
            return pages
    except (OSError, tarfile.TarError) as error:
        raise OnggiError(f"{deb}: is damaged ({error}). Delete it and try again.") from error


def _side_by_side(tables: dict[str, pa.Table], languages: Sequence[str]) -> pa.Table:
    """One row for each distinct English paragraph, one column for each language."""
    english = tables["en"]
    codes = english["text"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    english = english.take(pa.array(np.sort(first)))
    ids, source = english["_id"].combine_chunks(), english["text"].combine_chunks()
    columns = {"_id": ids}
    for language in languages:
        if language == "en":
            columns[language] = source
            continue
        table = tables[language].combine_chunks()
        text = table["text"].combine_chunks().take(pc.index_in(ids, value_set=table["_id"].combine_chunks()))
        if language.split("-")[0] != "en":  # what British English shares with American is not untranslated
            text = pc.if_else(pc.not_equal(text, source), text, pa.scalar(None, pa.string()))
        columns[language] = text
    joined = pa.table(columns)
    there = np.zeros(len(joined), dtype=bool)
    for language in languages:
        there |= joined[language].is_valid().to_numpy()
    return joined.filter(pa.array(there))


def _by_page(tables: dict[str, pa.Table], languages: Sequence[str]) -> pa.Table:
    """One row for each page that is there in any of `languages`."""
    texts = {language: dict(zip(*tables[language].to_pydict().values(), strict=True)) for language in tables}
    for language in languages:
        if language != "en":
            texts[language] = {
                key: text for key, text in texts[language].items() if text != texts["en"].get(key)
            }
    ids = sorted({key for language in languages for key in texts[language]})
    columns = {language: [texts[language].get(key) for key in ids] for language in languages}
    return pa.table(
        {"_id": pa.array(ids, pa.string())}
        | {language: pa.array(values, pa.string()) for language, values in columns.items()}
    )


# ── the cache ──────────────────────────────────────────────────────────────────────────────────


def _parquet(deb: Path, language: str) -> Path:
    package = deb.name.split("_")[0]
    return deb.with_name(f"{deb.name.removesuffix('.deb')}{_kept(package, language)}")


def _kept(package: str, language: str) -> str:
    """How the file of a language's text is called behind the name of its package."""
    return f"{f'.{language}' if package in _SHARED else ''}.x{EXTRACTOR}.parquet"


def _cached(folder: Path, packages: dict[str, str]) -> dict[str, pa.Table] | None:
    """The tables of `packages` if all are there in one version of the help, the newest fetched first.

    Texts of two versions are not mixed: an id may have got another text in between.
    """
    found: dict[str, dict[str, Path]] = {}  # version → language → file
    for language, package in packages.items():
        # apt names a package's file PACKAGE_VERSION_ARCHITECTURE.deb
        for path in folder.glob(f"{package}_*{_kept(package, language)}"):
            found.setdefault(path.name.split("_")[1], {})[language] = path
    whole = [files for files in found.values() if len(files) == len(packages)]
    for files in sorted(whole, key=lambda files: files["en"].stat().st_mtime, reverse=True):
        tables = {language: _read(path) for language, path in files.items()}
        sound = {language: table for language, table in tables.items() if table is not None}
        if len(sound) == len(packages):
            return sound
    return None


def _read(path: Path) -> pa.Table | None:
    """A cached table, or None where there is none; a damaged file is removed, to be made anew."""
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        if table.schema.equals(_SCHEMA) and len(table):
            return table
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException):
        pass
    say(f"{path.name} in the cache is damaged; making it anew.")
    path.unlink(missing_ok=True)
    return None


def _write(table: pa.Table, path: Path) -> None:
    with ledger.writing(path) as aside:
        pq.write_table(table, aside, compression="zstd", write_page_checksum=True)


# ── apt ────────────────────────────────────────────────────────────────────────────────────────


class _Package(NamedTuple):
    name: str
    file: str
    sha256: str | None


class _OldListsError(OnggiError):
    """apt's lists do not hold the package, or hold one that is no longer on the server."""


def _fetch(name: str, folder: Path, packages: dict[str, str]) -> dict[str, pa.Table]:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise OnggiError(
                f"debian:{name} is fetched with apt and there is no {tool} here: it needs Debian or Ubuntu. "
                "Elsewhere name a JSONL file of your own, or `starter`, the small text that ships with onggi."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return _obtain(name, folder, packages)
        except _OldListsError as error:
            if os.geteuid() != 0:
                raise OnggiError(f"{error} Run `sudo apt-get update`, then try again.") from error
            say(f"{error} Running apt-get update.")
            # One unreachable source of several fails it, and need not be ours: what counts comes next.
            updated = _apt("update")
            try:
                return _obtain(name, folder, packages)
            except _OldListsError as again:
                why = f" apt-get update said: {_last_line(updated.stderr)}" if updated.returncode else ""
                raise OnggiError(
                    f"{again} The lists were renewed: this release has no such package, or its archive "
                    f"is not among apt's sources.{why}"
                ) from again
    except OSError as error:
        raise OnggiError(f"debian:{name}: could not write to the cache {folder} ({error}).") from error


def _obtain(name: str, folder: Path, packages: dict[str, str]) -> dict[str, pa.Table]:
    located = _locate(list(dict.fromkeys(packages.values())))
    tables: dict[str, pa.Table] = {}
    todo: dict[str, tuple[_Package, Path]] = {}
    for language, package in packages.items():
        deb = folder / located[package].file
        table = _read(_parquet(deb, language))
        if table is None:
            todo[language] = located[package], deb
        else:
            tables[language] = table
    if todo:
        say(f"Fetching {name} in {', '.join(todo)} with apt-get, about {_SIZES[name]} ({LICENCES[name]}).")
    with progress(name, len(todo)) as bar:
        for language, (wanted, deb) in todo.items():
            bar.step(0, f"fetching {language}")
            if not _is_whole(deb, wanted):
                _download(wanted, deb)
            bar.step(0.3, f"reading {language}")
            tables[language] = extract(deb, language, name)
            _write(tables[language], _parquet(deb, language))
            bar.step(0.7, f"read {language}")
    return tables


def _apt(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["apt-get", "-q", "-o", "Acquire::Retries=2", *arguments],
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _locate(names: Sequence[str]) -> dict[str, _Package]:
    """What apt would download for each package: nothing is fetched, only apt's lists are read."""
    answer = _apt("download", "--print-uris", *names)
    located = {}
    for line in answer.stdout.splitlines():
        # 'http://…' libreoffice-help-ko_4%3a7.4.7-1_all.deb 3276556 SHA256:…
        fields = line.rsplit(" ", 3)
        if len(fields) == 4 and line.startswith("'") and fields[1] == Path(fields[1]).name:
            kind, _, digest = fields[3].partition(":")
            package = fields[1].split("_")[0]
            located[package] = _Package(package, fields[1], digest if kind == "SHA256" else None)
    missing = [name for name in names if name not in located]
    if missing:  # one that apt does not know, and it prints none of the others either
        missing = [name for name in missing if f"package {name}\n" in answer.stderr] or missing
        raise _OldListsError(f"apt does not know {', '.join(missing)}.")
    return located


def _is_whole(deb: Path, package: _Package) -> bool:
    return deb.is_file() and package.sha256 in (ledger.sha256(deb), None)


def _download(package: _Package, deb: Path) -> None:
    """Fetches into a folder aside, so that a download cut short is never taken for a package."""
    with tempfile.TemporaryDirectory(dir=deb.parent, prefix=".download-") as aside:
        done = _apt("download", package.name, folder=Path(aside))
        path = Path(aside) / deb.name
        if done.returncode == 0 and _is_whole(path, package):
            path.replace(deb)
            return
    reason = _last_line(done.stderr) or "the file is not what the list says"
    if "404" in done.stderr or done.returncode == 0:
        raise _OldListsError(f"apt could not find {deb.name} ({reason}).")
    raise OnggiError(f"apt could not fetch {deb.name}: {reason}")


def _last_line(output: str) -> str:
    """The line of a tool's complaints that says most: its last error, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:") or "error:" in line]
    return (errors or lines or [""])[-1].removeprefix("E: ")
