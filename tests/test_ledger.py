"""Whatever happens to a run, its folder is either finished, or taken up or cleared by the next."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onggi import ledger, run
from onggi.errors import OnggiError
from onggi.ledger import MARKER, PARTIAL, Artifact


def work(out: Path, value: str, names: tuple[str, ...] = ("a.txt", "b.txt"), at_work: Any = None) -> Artifact:
    """A stage of two units, whose outputs depend on `value`."""
    job = ledger.begin(out, "work", {"value": value, "names": list(names)}, {})
    if job.done:
        return job.done
    with job:
        for name in names:
            unit = job.partial / f"unit-{name}"
            if not unit.is_file():
                with ledger.writing(unit) as aside:
                    aside.write_text(f"{value} 옹기 {name}", encoding="utf-8")
                job.tick()
            if at_work:
                at_work(job)
            (job.work / name).write_text(unit.read_text(encoding="utf-8"), encoding="utf-8")
        return job.finish(list(names))


def contents(folder: Path) -> dict[str, str]:
    """Everything in a folder but the marker, which holds the time it took."""
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MARKER
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_the_marker_comes_last_and_says_what_there_is(tmp_path: Path) -> None:
    seen = []
    made = work(tmp_path / "out", "x", at_work=lambda job: seen.append(names(job.out)))
    assert seen == [[PARTIAL]] * 2
    record = json.loads((tmp_path / "out" / MARKER).read_text())
    assert record == made.record
    assert record["options"] == {"value": "x", "names": ["a.txt", "b.txt"]}
    assert record["outputs"]["a.txt"] == {
        "sha256": hashlib.sha256("x 옹기 a.txt".encode()).hexdigest(),
        "bytes": len("x 옹기 a.txt".encode()),
    }
    assert record["versions"]["python"] and record["peak_memory_bytes"] > 0
    assert names(tmp_path / "out") == ["a.txt", "b.txt", MARKER]


def test_a_rerun_does_nothing(tmp_path: Path) -> None:
    first = work(tmp_path / "out", "x")
    before = times(tmp_path)
    assert work(tmp_path / "out", "x") == first
    assert times(tmp_path) == before


def test_other_options_replace_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    work(out, "x", ("old.txt", "a.txt"))
    work(out, "y", ("a.txt",))
    assert contents(out) == {"a.txt": "y 옹기 a.txt"}


@pytest.mark.parametrize("harm", [lambda f: f.unlink(), lambda f: f.write_text("x")], ids=["gone", "short"])
def test_a_harmed_output_is_made_again(tmp_path: Path, harm: Callable[[Path], Any]) -> None:
    out = tmp_path / "out"
    work(out, "x")
    whole = contents(out)
    harm(out / "a.txt")
    assert ledger.artifact(out) is None
    work(out, "x")
    assert contents(out) == whole


def test_an_earlier_artifact_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = work(out, "x", ("old.txt", "a.txt"))

    def fail(job: ledger.Job) -> None:
        assert work(out, "x", ("old.txt", "a.txt")) == first  # done already, whoever is at work here
        raise OnggiError("line 3: is not JSON")

    with pytest.raises(OnggiError, match="line 3"):
        work(out, "y", at_work=fail)
    assert ledger.artifact(out) == first
    work(out, "y")
    assert contents(out) == {name: f"y 옹기 {name}" for name in ("a.txt", "b.txt")}


# ── killed ─────────────────────────────────────────────────────────────────────────────────────


def killed(out: Path, moment: int, doing: Callable[[], Any]) -> bool:
    """Do it in a process that is killed just before its `moment`-th change to `out`; False where it
    had ended by then.
    """
    pid = os.fork()
    if pid == 0:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") or (
                event == "open" and arguments[1] not in ("r", "rb")
            )
            # rmtree goes by descriptors and bare names, so all names are taken to be in `out`.
            if changes:
                count += 1
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            doing()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("earlier", "then"), [("nothing", "x"), ("nothing", "z"), ("other", "x"), ("other", "z"), ("harmed", "x")]
)
def test_killed_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: str, then: str
) -> None:
    """Before x, the folder held `earlier`; after the kill comes `then`, the same work or another."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # slow, and a kill loses nothing that was written
    monkeypatch.setattr(ledger, "versions", dict)
    work(tmp_path / "whole", then)
    whole = contents(tmp_path / "whole")
    before, out, moment = tmp_path / "before", tmp_path / "out", 0
    if earlier == "other":
        work(before, "y", ("old.txt", "a.txt"))
    elif earlier == "harmed":
        work(before, "x")
        (before / "b.txt").unlink()
    else:
        before.mkdir()
    while True:
        moment += 1
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(before, out)
        if not killed(out, moment, lambda: work(out, "x")):
            break
        found = ledger.artifact(out)  # a marker is never over less than the whole
        if found and found.record["options"]["value"] == "x":
            assert all((out / name).is_file() for name in ("a.txt", "b.txt"))
        work(out, then)
        assert contents(out) == whole, moment
    assert moment > 15  # the child was killed, and more than once


@pytest.mark.parametrize("earlier", ["nothing", "other", "harmed"])
def test_what_was_finished_is_not_done_again(tmp_path: Path, earlier: str) -> None:
    out = tmp_path / "out"
    done: list[list[str]] = []
    if earlier != "nothing":
        work(out, "x" if earlier == "harmed" else "y")
        (out / "b.txt").write_text("!")

    def stop(job: ledger.Job) -> None:
        done.append(sorted(file.name for file in job.partial.glob("unit-*")))
        if len(done) == 1:
            (job.partial / "unit-a.txt").write_text("of the first run", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(out, "x", at_work=stop)
    assert ledger.artifact(out) is None
    work(out, "x", at_work=stop)
    assert contents(out)["a.txt"] == "of the first run"
    assert done == [["unit-a.txt"], ["unit-a.txt"], ["unit-a.txt", "unit-b.txt"]]


def test_other_options_do_not_go_on_from_a_killed_run(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def stop(job: ledger.Job) -> None:
        assert (job.partial / "unit-a.txt").is_file()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(out, "x", at_work=stop)
    work(out, "y")
    assert contents(out) == {name: f"y 옹기 {name}" for name in ("a.txt", "b.txt")}


def test_the_clock_counts_the_killed_run_too(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def slow(job: ledger.Job) -> None:
        time.sleep(0.05)
        raise KeyboardInterrupt

    spent = []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            work(out, "x", at_work=slow)
        spent.append(float((out / PARTIAL / "clock").read_text()))
    made = work(out, "x")
    assert 0 < spent[0] < spent[1] < made.record["wall_seconds"] + 0.001  # it is rounded to a thousandth


# ── not ours ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "files",
    [
        {"논문.txt": "mine"},
        {"stage.json": '{"outputs": {"a.txt": 3}}', "a.txt": "mine"},
        {"stage.json": '{"outputs": ["a.txt"]}', "a.txt": "mine"},
        {"stage.json": "[]", "a.txt": "mine"},
        {"stage.json": "no JSON", "a.txt": "mine"},
        {".partial/theirs": "mine", "a.txt": "mine"},
    ],
    ids=["own file", "other outputs", "list of outputs", "no record", "no JSON", "own .partial"],
)
def test_a_foreign_folder_is_refused_and_unharmed(tmp_path: Path, files: dict[str, str]) -> None:
    out = tmp_path / "out"
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(content)
    before = times(tmp_path)
    with pytest.raises(OnggiError, match=str(out)):
        work(out, "x")
    assert times(tmp_path) == before


def test_a_marker_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    mine, out = tmp_path / "mine.txt", tmp_path / "out"
    mine.write_text("mine")
    work(out, "x")
    record = json.loads((out / MARKER).read_text())
    record["outputs"]["../mine.txt"] = {"sha256": "", "bytes": 4}
    (out / MARKER).write_text(json.dumps(record))
    with pytest.raises(OnggiError, match="did not make"):
        work(out, "y")
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("out", ["a file", "a file/below", "/proc/onggi"])
def test_no_folder_can_be_there(tmp_path: Path, out: str) -> None:
    (tmp_path / "a file").write_text("mine")
    with pytest.raises(OnggiError) as error:
        work(tmp_path / out, "x")
    assert str(error.value).startswith(str(tmp_path / out))
    assert (tmp_path / "a file").read_text() == "mine"


@pytest.mark.parametrize("value", ["x", "y"], ids=["the same work", "other work"])
def test_a_folder_at_work_is_left_alone(tmp_path: Path, value: str) -> None:
    out = tmp_path / "out"
    hear, tell = os.pipe()
    wait, go_on = os.pipe()
    pid = os.fork()
    if pid == 0:  # another process, which stops in the midst of its work until it is told to go on
        os.close(go_on)

        def pause(job: ledger.Job) -> None:
            os.write(tell, b".")
            os.read(wait, 1)

        try:
            work(out, "x", at_work=pause)
        finally:
            os._exit(0)
    os.close(wait)
    try:
        os.read(hear, 1)
        before = {path: time for path, time in times(out).items() if not path.endswith("/lock")}
        with pytest.raises(OnggiError, match="another onggi is at work on this folder"):
            work(out, value)
        assert {path: time for path, time in times(out).items() if not path.endswith("/lock")} == before
    finally:
        os.close(go_on)  # its reads return at once
        os.waitpid(pid, 0)
        os.close(hear)
        os.close(tell)
    assert contents(out) == {name: f"x 옹기 {name}" for name in ("a.txt", "b.txt")}


# ── what depends on what ───────────────────────────────────────────────────────────────────────


def test_a_moved_folder_is_still_done(tmp_path: Path) -> None:
    made = work(tmp_path / "out", "x")
    (tmp_path / "out").rename(tmp_path / "moved")
    before = times(tmp_path / "moved")
    moved = work(tmp_path / "moved", "x")
    assert moved.fingerprint == made.fingerprint
    assert times(tmp_path / "moved") == before


def test_just_what_depends_on_a_change_runs_again(tmp_path: Path) -> None:
    rows = [{"_id": i, "en": f"Day {i}", "ko": f"{i}일", "km": f"ថ្ងៃទី {i}"} for i in range(3)]
    source = tmp_path / "own.jsonl"

    def write(space: str = "") -> None:
        source.write_text(f"{space}\n".join(json.dumps(row, ensure_ascii=False) for row in rows))

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""
name: r
stages:
  first: {{verb: text, source: {source}, languages: "en,ko,km"}}
  second: {{verb: text, source: "${{first}}", languages: "ko,km"}}
  aside: {{verb: text, source: starter, languages: ko}}
""")
    runs = tmp_path / "runs"

    def rerun(*overrides: str) -> set[str]:
        old = {path.parent.name: path.stat().st_mtime_ns for path in runs.rglob(MARKER)}
        made = run.run(recipe, overrides, runs)
        return {name for name, a in made.items() if (a.path / MARKER).stat().st_mtime_ns != old.get(name)}

    write()
    assert rerun() == {"first", "second", "aside"}
    assert rerun() == set()
    runs.rename(tmp_path / "elsewhere")
    runs = tmp_path / "elsewhere"
    assert rerun() == set()
    assert rerun("second.languages=km") == {"second"}
    write(space=" ")  # other bytes, the same text: what comes after has the same input as before
    assert rerun("second.languages=km") == {"first"}
    rows[0]["km"] = "ថ្ងៃច័ន្ទ"
    write()
    assert rerun("second.languages=km") == {"first", "second"}


# ── files ──────────────────────────────────────────────────────────────────────────────────────


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "파일.json"
    ledger.write_json(path, {"한국어": "ខ្មែរ"})
    before = path.read_bytes()
    assert "ខ្មែរ" in before.decode()  # as text, not as escapes
    with pytest.raises(ZeroDivisionError), ledger.writing(path) as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert path.read_bytes() == before
    assert names(path.parent) == [path.name]
    assert ledger.read_json(path) == {"한국어": "ខ្មែរ"}


@pytest.mark.parametrize(
    "content", [b"{", b"", b"\xff", b"[" * 100_000], ids=["half", "empty", "bytes", "deep"]
)
def test_what_is_no_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(OnggiError, match=r"x\.json: is not valid JSON"):
        ledger.read_json(tmp_path / "x.json")
    with pytest.raises(OnggiError, match=r"y\.json: cannot be read"):
        ledger.read_json(tmp_path / "y.json")


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONGGI_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert ledger.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("ONGGI_CACHE")
    assert ledger.cache_folder() == tmp_path / "xdg" / "onggi"
