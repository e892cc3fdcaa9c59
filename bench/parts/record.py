"""What the record of a bench begins with, the page of it, and where both are written."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "benchmarks"


def begun(name: str, machine: Mapping[str, Any], quick: bool) -> dict[str, Any]:
    """The record of `bench/NAME.py`, to which its measurements are added. machine: its facts before they were made."""
    return {
        "command": f"python bench/{name}.py " + " ".join(sys.argv[1:]),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "machine": machine,
        "versions": {name: importlib.metadata.version(name) for name in ("onggi", "torch", "transformers")},
        "quick": quick,
    }


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
    print(f"bench: written: {out / name}.md", file=sys.stderr, flush=True)
