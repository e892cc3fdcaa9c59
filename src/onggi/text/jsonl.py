"""Rows of JSON lines, each with its place, so that what is wrong in one can be found and mended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import OnggiError


def read(path: Path, name: str) -> list[tuple[int, dict[str, Any]]]:
    """(line, object) of each line that is not blank; `name` is what errors call the file.

    Raises OnggiError, with the line, for what is not UTF-8, not JSON or no object, for a key that stands
    twice in one, and for a file without rows.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise OnggiError(f"{name}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise OnggiError(f"{name}: is not UTF-8 (byte {error.start}); convert it first.") from error
    rows = []
    # Not splitlines(): a text may hold U+2028, which is no end of line in JSON.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            raise OnggiError(f"{name}, line {number}: is not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise OnggiError(f"{name}, line {number}: is a {type(row).__name__}, not an object.")
        rows.append((number, row))
    if not rows:
        raise OnggiError(f"{name}: is empty.")
    return rows


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose every key stands once: of two texts under one key, one would be lost."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return row
