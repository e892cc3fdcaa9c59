"""What was made, from what, with what, at what cost.

A stage's output folder is complete when its `stage.json` exists, which is written last and by a
rename. Its fingerprint covers the stage's options and the *contents* of its inputs, so a folder
can be moved, a rerun with nothing changed does nothing, and a changed input reruns exactly what
depends on it. While a stage works, its finished units lie in `.partial/`, tied to the same
fingerprint: a killed run goes on after the last of them, and one with other options starts afresh.
An earlier artifact in the folder stays until the new one is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import __version__
from .errors import OnggiError
from .progress import peak_memory, reset_peak_memory

MARKER = "stage.json"
PARTIAL = ".partial"
_LIBRARIES = (
    *("torch", "transformers", "peft", "trl", "compressed-tensors"),
    *("tokenizers", "safetensors", "numpy", "pyarrow"),
)


def cache_folder() -> Path:
    """Where converted models and fetched text are kept: `$ONGGI_CACHE`, else the user's cache."""
    own = os.environ.get("ONGGI_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onggi"


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes; read once for as long as its size and time stay the same."""
    facts = path.stat()
    return _sha256(path, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, _size: int, _modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Hex digest of a JSON-able value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A path to write to in place of `path`; it is renamed there, whole, when the block ends well."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise OnggiError(f"{path}: could not be written ({error.strerror or error}).") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically."""
    with writing(path) as aside:
        aside.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The JSON in `path`; `OnggiError` names the file where it is not JSON or not there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OnggiError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise OnggiError(f"{path}: is not valid JSON ({error}).") from error


@dataclass(frozen=True)
class Artifact:
    """A finished stage's folder and its record, the content of `stage.json`."""

    path: Path
    record: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Of the artifact's contents (not of how they came about)."""
        return digest({name: entry["sha256"] for name, entry in self.record["outputs"].items()})


def artifact(path: Path) -> Artifact | None:
    """The artifact in `path`, or None where there is none or its files are not as recorded."""
    record = _record(path)
    if record is None:
        return None
    for name, entry in record["outputs"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            return None
    return Artifact(path, record)


def _record(path: Path) -> dict[str, Any] | None:
    """What the marker in `path` says; None where there is none or it is another program's."""
    if not (path / MARKER).is_file():
        return None
    record = read_json(path / MARKER)
    outputs = record.get("outputs") if isinstance(record, dict) else None
    if not isinstance(outputs, dict) or not isinstance(record.get("fingerprint"), str):
        return None
    for name, entry in outputs.items():
        if not isinstance(entry, dict) or not {"sha256", "bytes"} <= entry.keys() or not _within(name):
            return None
    return dict(record)


def _within(name: str) -> bool:
    """Whether `name` is a file's of the folder itself, or of a folder in it."""
    path = Path(name)
    return (
        not path.is_absolute()
        and name == path.as_posix()
        and 1 <= len(path.parts) <= 2
        and ".." not in path.parts
    )


class Job:
    """One stage at work on one folder. Use as a context manager; see `begin`."""

    def __init__(
        self, out: Path, verb: str, options: Mapping[str, Any], inputs: Mapping[str, Any], revision: int
    ):
        self.out, self.verb, self.options, self.inputs = out, verb, dict(options), dict(inputs)
        self.partial = out / PARTIAL
        self.work = self.partial / "out"  # outputs are made here and moved into place by `finish`
        choices = {key: value for key, value in self.options.items() if key not in self.inputs}
        self.fingerprint = digest(
            {"verb": verb, "revision": revision, "options": choices, "inputs": self.inputs}
        )
        self._earlier = 0.0
        found = artifact(out)
        self.done = found if found and found.record.get("fingerprint") == self.fingerprint else None
        if self.done and self._tag() == self.fingerprint:  # killed between the marker and dropping the units
            shutil.rmtree(self.partial, ignore_errors=True)

    def __enter__(self) -> Self:
        if self.done:
            return self
        self._refuse_foreign()
        self._take_lock()
        self._clear_old()
        clock = self.partial / "clock"
        if clock.is_file():
            with contextlib.suppress(ValueError):
                self._earlier = float(clock.read_text())
        reset_peak_memory()
        self._started = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.done:
            try:
                if self.partial.is_dir():
                    self.tick()
            finally:
                self._lock.close()

    def _refuse_foreign(self) -> None:
        """A folder with files in it that no run of ours left is not written to."""
        if self.out.exists() and not self.out.is_dir():
            raise OnggiError(f"{self.out}: is a file; --out names a folder.")
        if not self.out.is_dir() or _record(self.out) or (self.partial / "lock").is_file():
            return
        if any(entry.name != PARTIAL for entry in self.out.iterdir()):
            raise OnggiError(f"{self.out}: holds files that onggi did not make; name an empty or new folder.")

    def _take_lock(self) -> None:
        """Held until the work ends. Nothing in the folder is touched before: it may be at work there."""
        path = self.partial / "lock"
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            self._lock = path.open("w")
        except OSError as error:
            raise OnggiError(f"{self.out}: cannot be written to ({error.strerror}).") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # One that has just finished has removed the file that was locked.
            if not os.path.samestat(os.fstat(self._lock.fileno()), path.stat()):
                raise FileNotFoundError(path)
        except OSError as error:
            self._lock.close()
            raise OnggiError(
                f"{self.out}: another onggi is at work on this folder; wait for it or use another --out."
            ) from error

    def _tag(self) -> str | None:
        """The fingerprint of the work whose units lie in `.partial/`."""
        tag = self.partial / "fingerprint"
        return tag.read_text() if tag.is_file() else None

    def _clear_old(self) -> None:
        """Take up what an earlier run of the same work left; drop the units of a different one.

        Killed at any moment, this leaves a folder that the next run takes up or clears.
        """
        marker, tag, moving = self.out / MARKER, self.partial / "fingerprint", self.partial / "moving"
        record = _record(self.out)
        if record and record["fingerprint"] == self.fingerprint:  # finished and harmed since: no artifact
            tag.unlink(missing_ok=True)
            with writing(moving) as aside:
                aside.write_text("\n".join(record["outputs"]))
            marker.unlink()
            record = None
        same = self._tag() == self.fingerprint
        if moving.is_file() and record is None:  # killed while the outputs were being moved into place
            for name in moving.read_text().split("\n"):
                if name and same and (self.out / name).is_file() and not (self.work / name).exists():
                    (self.work / name).parent.mkdir(exist_ok=True)
                    (self.out / name).replace(self.work / name)
                elif name:
                    (self.out / name).unlink(missing_ok=True)
        if not same:
            tag.unlink(missing_ok=True)  # first: half the units are none
            self._drop_units("lock", "moving")
            self.work.mkdir()
        moving.unlink(missing_ok=True)
        for litter in self.out.glob(f".{MARKER}.*.part"):  # killed while writing the marker
            litter.unlink()
        with writing(tag) as aside:
            aside.write_text(self.fingerprint)

    def _drop_units(self, *but: str) -> None:
        for entry in self.partial.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name not in but:
                entry.unlink()

    def tick(self) -> None:
        """Note the time spent so far, so that a resumed run counts what the killed one spent."""
        with writing(self.partial / "clock") as aside:
            aside.write_text(str(self._earlier + time.monotonic() - self._started))

    def finish(self, outputs: list[str], **facts: Any) -> Artifact:
        """Move `outputs` (names of files in `work`, or in a folder there) into the folder in place of an earlier artifact's,
        write the marker over them, drop the partial units.
        """
        old = set((_record(self.out) or {"outputs": ()})["outputs"]) - set(outputs)
        with writing(self.partial / "moving") as aside:
            aside.write_text("\n".join([*outputs, *sorted(old)]))
        (self.out / MARKER).unlink(missing_ok=True)
        for name in old:
            (self.out / name).unlink(missing_ok=True)
        for name in outputs:
            (self.out / name).parent.mkdir(exist_ok=True)
            (self.work / name).replace(self.out / name)
        seconds = self._earlier + time.monotonic() - self._started
        record = {
            "verb": self.verb,
            "fingerprint": self.fingerprint,
            "options": self.options,
            "inputs": self.inputs,
            "versions": versions(),
            "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "system": platform.platform()},
            "wall_seconds": round(seconds, 3),
            "peak_memory_bytes": peak_memory(),
            "outputs": {
                name: {"sha256": sha256(self.out / name), "bytes": (self.out / name).stat().st_size}
                for name in sorted(outputs)
            },
            **facts,
        }
        write_json(self.out / MARKER, record)
        self._drop_units("fingerprint")
        shutil.rmtree(self.partial, ignore_errors=True)
        self.done = Artifact(self.out, record)
        self._lock.close()
        return self.done


def begin(
    out: Path, verb: str, options: Mapping[str, Any], inputs: Mapping[str, Any], revision: int = 1
) -> Job:
    """A stage's job on `out`.

    `options` is the whole configuration, `inputs` maps those of its keys that name models or text
    to the fingerprint of what they name. `revision` is raised when a verb's results change.
    `job.done` is the artifact where there is nothing to do; otherwise `with job:` works, keeps
    its finished units under `job.partial`, its outputs under `job.work`, and ends with `job.finish`.
    """
    return Job(out, verb, options, inputs, revision)


def versions() -> dict[str, str]:
    """Versions of onggi, Python and the libraries a result may depend on."""
    found = {"onggi": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[library] = importlib.metadata.version(library)
    return found
