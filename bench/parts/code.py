"""A digest of the code that makes an artifact, by which a bench knows what other code left behind."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "onggi"
# What the weights of a quantised or recovered model come from; and what scores do.
_UNDER = ("grids", "head", "engines", "models", "text", "languages.py")
MAKES = (*_UNDER, "quantize", "distill", "train", "stages/base.py", "stages/training.py", "stages/text*.py")
MAKES = (*MAKES, "stages/quantize*.py", "stages/healing.py", "stages/distill*.py", "stages/pretrain*.py")
MEASURES = (*_UNDER, "evaluate", "statistics.py", "stages/base.py", "stages/evaluate*.py")


def digest(rooms: Sequence[str], *others: Path, package: Path = PACKAGE) -> str:
    """Of the files of `rooms` (folders, files or patterns of `package`) and of `others`."""
    found = set(others)
    for room in rooms:
        paths = sorted(package.glob(room))
        if not paths:
            raise FileNotFoundError(package / room)
        for path in paths:
            found |= {path} if path.is_file() else {file for file in path.rglob("*") if file.is_file()}
    whole = hashlib.sha256()
    for file in sorted(found):
        if "__pycache__" not in file.parts:
            whole.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def fresh(out: Path, key: str) -> Path:
    """The folder `out`, finished or half made by code of that digest; what other code left there is removed."""
    note = out.with_name(f"{out.name}.code")
    if not note.is_file() or note.read_text() != key:
        shutil.rmtree(out, ignore_errors=True)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(key)
    return out
