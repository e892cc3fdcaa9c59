"""Answers that were paid for once, on disk, so that a rerun asks nothing twice.

One file of JSON lines for each model, a line for each answer, appended as it comes in one write: a
killed process loses the requests in flight and nothing else. A line that is cut short (a kill, a full
disk) is no answer and is passed over; whatever follows begins on a line of its own. The request itself
is kept only as its digest, and only answers are kept, no failures.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
from pathlib import Path

from .. import ledger
from ..errors import OnggiError
from .protocol import Answer


def path_for(identity: str) -> Path:
    """The file of the answers of the model that `identity` says."""
    readable = re.sub(r"[^\w.-]+", "-", identity.split("#")[-1])[-40:]
    return ledger.cache_folder() / "answers" / f"{readable}-{ledger.digest(identity)[:16]}.jsonl"


class Answers:
    """The answers in a file, by the digest of their request. Texts stay on disk until asked for.

    Raises OnggiError where the file cannot be read or written.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: io.FileIO | None = None
        self._lines: dict[str, tuple[int, int]] = {}  # where the line of a key begins, its length
        self._cut = False
        try:
            if path.exists():
                self._scan()
        except OSError as error:
            raise OnggiError(f"{path}: cannot be read ({error.strerror}).") from error

    def _scan(self) -> None:
        start = 0
        with self.path.open("rb") as file:
            for line in file:
                self._cut = not line.endswith(b"\n")
                entry = _entry(line)
                if entry and not self._cut:
                    self._lines[entry[0]] = (start, len(line))
                start += len(line)

    def __contains__(self, key: str) -> bool:
        return key in self._lines

    def get(self, key: str) -> Answer | None:
        """The answer kept under `key`, as it was when it came; None where there is none."""
        if key not in self._lines:
            return None
        start, length = self._lines[key]
        entry = _entry(os.pread(self._open().fileno(), length, start))
        return entry[1] if entry and entry[0] == key else None

    def put(self, key: str, answer: Answer) -> None:
        """Keep `answer` under `key`; on disk when this returns."""
        line = json.dumps({"key": key, **dataclasses.asdict(answer)}, ensure_ascii=False).encode() + b"\n"
        file = self._open()
        whole = b"\n" + line if self._cut else line
        try:
            self._cut = file.write(whole) < len(whole)
        except OSError as error:
            raise OnggiError(f"{self.path}: could not be written ({error.strerror}).") from error
        if self._cut:
            raise OnggiError(f"{self.path}: could not be written whole; is the disk full?")
        self._lines[key] = (file.tell() - len(line), len(line))

    def _open(self) -> io.FileIO:
        if self._file is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # Appending and unbuffered: a line is one write, at the end, whoever else writes.
                self._file = io.FileIO(self.path, "a+")
            except OSError as error:
                raise OnggiError(f"{self.path}: could not be written ({error.strerror}).") from error
        return self._file


def _entry(line: bytes) -> tuple[str, Answer] | None:
    """The key and answer of a line; None where it holds none."""
    try:
        fields = json.loads(line)
        return str(fields.pop("key")), Answer(**fields)
    except (ValueError, TypeError, AttributeError, KeyError):
        return None
