"""What the record of a bench begins with, what its files are told apart by, the page of it, and where both are written."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onggi import ledger

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs" / "benchmarks"


def folder(given: Path | None, name: str, quick: bool) -> Path:
    """Where a bench works: build/NAME, or as --work says. A trial never works where a full run does: what one has made
    is no use to the other.
    """
    if given is None:
        return ROOT / "build" / (f"{name}-quick" if quick else name)
    return (given / "quick" if quick else given).resolve()


def digest(*paths: Path) -> str:
    """Of the bytes of files and of all in folders, but for notes of how they came about (`stage.json`, cards) and what
    Python compiles.
    """
    found = []
    for path in paths:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [
            (str(file.relative_to(path)), ledger.sha256(file))
            for file in inside
            if file.is_file() and file.name != ledger.MARKER and file.suffix not in (".md", ".pyc")
        ]
    return ledger.digest(found)


def made(
    file: Path, inputs: Mapping[str, Any], make: Callable[[], Mapping[str, Any] | None]
) -> dict[str, Any]:
    """What is kept of `file` (beside it, as FILE.made.json): what `make` returned, its sha256, its bytes and its inputs. Made
    where it is not there, was made of other inputs, or is not as it was made.
    """
    beside, key = file.with_name(f"{file.name}.made.json"), dict(json.loads(json.dumps(inputs)))
    if file.is_file() and beside.is_file():
        kept: dict[str, Any] = json.loads(beside.read_text())
        if kept["inputs"] == key and kept["sha256"] == ledger.sha256(file):
            return kept
    beside.unlink(missing_ok=True)
    file.unlink(missing_ok=True)
    cost = make() or {}
    found = {
        **cost,
        "inputs": key,
        "sha256": ledger.sha256(file),
        "bytes": file.stat().st_size,
        "date": now(),
    }
    beside.write_text(json.dumps(found, ensure_ascii=False))
    return found


def now() -> str:
    """The time, to the minute."""
    return datetime.datetime.now().astimezone().isoformat(timespec="minutes")


def begun(name: str, machine: Mapping[str, Any], quick: bool) -> dict[str, Any]:
    """The record of `bench/NAME.py`, to which its measurements are added. machine: its facts before they were made."""
    return {
        "command": f"python bench/{name}.py " + " ".join(sys.argv[1:]),
        "date": now(),
        "machine": machine,
        "versions": {name: importlib.metadata.version(name) for name in ("onggi", "torch", "transformers")},
        "quick": quick,
    }


def made_by(found: Mapping[str, Any]) -> list[str]:
    """First lines of a part of a page: by which command it was measured, when, where. found: as `begun` begins it."""
    machine, versions = found["machine"], found["versions"]
    return [
        f"- command: `{found['command'].strip()}`, {found['date']}",
        f"- machine: {machine['processor']}, {machine['cores']} cores; "
        + ", ".join(f"{name} {version}" for name, version in versions.items()),
        "",
    ]


def say(message: str) -> None:
    """To whoever watches."""
    print(f"bench: {message}", file=sys.stderr, flush=True)


def head(result: Mapping[str, Any], title: str, about: str | None, machine: str) -> list[str]:
    """The first lines of the page. about: the bench's docstring, whose second paragraph says what is done. machine:
    what to say beside its processor and cores.
    """
    its, versions = result["machine"], result["versions"]
    return [
        f"# {title}",
        "",
        *(["**A trial of the bench itself; its numbers mean nothing.**", ""] if result["quick"] else []),
        *(about or "").split("\n\n")[1].splitlines(),
        "Made by `make bench`; this page is written by the bench and not by hand.",
        "",
        f"- command: `{result['command']}`, {result['date']}",
        f"- machine: {its['processor']} (family-model-stepping {its['family']}), {its['cores']} cores{machine}",
        f"- versions: {', '.join(f'{name} {version}' for name, version in versions.items())}",
    ]


def write(
    name: str, result: dict[str, Any], pages: Mapping[str, Callable[[dict[str, Any]], str]], out: Path = DOCS
) -> None:
    """Write NAME.json to `out`, then `pages` (ending of the name → what makes it of `result`), and say so."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    for ending, page in pages.items():
        (out / f"{name}.{ending}").write_text(page(result), encoding="utf-8")
    say(f"written: {out / name}.md")
