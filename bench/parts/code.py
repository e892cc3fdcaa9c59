"""A digest of the code that makes an artifact, by which a bench knows what other code left behind."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from . import record

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "onggi"
# What the weights of a quantised or recovered model come from; and what scores do.
_UNDER = ("grids", "head", "engines", "models", "text", "languages.py")
MAKES = (*_UNDER, "quantize", "distill", "train", "stages/base.py", "stages/training.py", "stages/text*.py")
MAKES = (*MAKES, "stages/quantize*.py", "stages/healing.py", "stages/distill*.py", "stages/pretrain*.py")
MEASURES = (*_UNDER, "evaluate", "statistics.py", "stages/base.py", "stages/evaluate*.py")


def digest(rooms: Sequence[str], *others: Path, package: Path = PACKAGE) -> str:
    """Of `rooms` (folders, files or patterns of `package`) and of the files `others`."""
    found: list[Path] = []
    for room in rooms:
        paths = sorted(package.glob(room))
        if not paths:
            raise FileNotFoundError(package / room)
        found += paths
    return record.digest(*found, *others)


def fresh(out: Path, key: str) -> Path:
    """The folder `out`, finished or half made by code of that digest; what other code left there is removed."""
    note = out.with_name(f"{out.name}.code")
    if not note.is_file() or note.read_text() != key:
        shutil.rmtree(out, ignore_errors=True)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(key)
    return out
