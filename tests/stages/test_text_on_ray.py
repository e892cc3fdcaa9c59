"""Text is cleaned on a local Ray cluster of two workers to the bytes that it is here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from onggi import fanout, text
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.stages import TextConfig
from onggi.stages import text as stage
from onggi.text.corpus import jobs

TAGS = ("ko", "en", "km")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two files and what cleans them, named from where the driver is."""
    monkeypatch.chdir(tmp_path)
    probe = text.load("probe")
    for number, name in enumerate(("a.jsonl", "b.jsonl")):
        records = [
            {"text": passage, "lang": tag}
            for tag in TAGS
            for passage in list(probe.passages(tag).values())[10 * number : 10 * number + 16]
        ]
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        Path(name).write_text("\n".join(lines), encoding="utf-8")
    Path("clean.yaml").write_text("against: []\n")
    return ["a.jsonl", "b.jsonl"]


def config(sources: list[str], **words: Any) -> TextConfig:
    return TextConfig(sources, Languages(TAGS), rows=True, config="clean.yaml", **words)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "stage.json"}


def test_two_workers_write_what_one_process_writes(
    sources: list[str], ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = stage(config(sources, workers=1), Path("here"))
    # On Ray from the start, killed when both pieces are read and one is sifted, and on again.
    each, seen = fanout.each, []

    def stopping(calls: Any, on: Any, memory: int) -> Any:
        for found in each(calls, on, memory):
            seen.append(on)
            if len(seen) == 3:
                raise KeyboardInterrupt
            yield found

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fanout, "each", stopping)
        stage(config(sources, on="ray"), Path("there"))
    assert seen == ["ray"] * 3 and len(list(Path("there/.partial/read").glob("*.json"))) == 2
    # No piece is worked on in the driver.
    for name in ("sift_piece", "draw_piece", "gather_shard"):
        monkeypatch.setattr(jobs, name, _elsewhere(getattr(jobs, name)))
    there = stage(config(sources, on="ray"), Path("there"))
    assert files(there.path) == files(here.path)
    assert there.record["fingerprint"] == here.record["fingerprint"]
    assert "--on ray" in there.record["command"]


def _elsewhere(job: Callable[[jobs.Work, int], None]) -> Callable[[jobs.Work, int], None]:
    driver = os.getpid()

    def run(work: jobs.Work, number: int) -> None:
        assert os.getpid() != driver
        job(work, number)

    return run


def test_what_stops_a_run_comes_back_from_there(sources: list[str], ray: None) -> None:
    with Path("b.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"lang": "ko"}\n')
    with pytest.raises(OnggiError, match=r'b\.jsonl, line 49: .*"text".*--bad skip'):
        stage(config(sources, on="ray"), Path("out"))


def test_a_machine_that_does_not_see_the_folder(sources: list[str]) -> None:
    work = jobs.Work("λ", Path("gone"), Path("out"), TAGS, None, "text", True, False)  # type: ignore[arg-type]
    with pytest.raises(OnggiError, match=r"gone: is not on .*, a machine of the cluster; name an --out"):
        list(jobs._call(jobs.read_piece, work, "read", 0, Path.cwd()))


def test_what_another_call_has_done_meanwhile(tmp_path: Path) -> None:
    work = jobs.Work("λ", tmp_path, tmp_path, TAGS, None, "text", True, False)  # type: ignore[arg-type]

    def lost(work: jobs.Work, number: int) -> None:
        raise FileNotFoundError("read/00000.parquet")

    with pytest.raises(FileNotFoundError):
        list(jobs._call(lost, work, "sift", 0, Path.cwd()))
    work.path("sift", 0, ".json").parent.mkdir()
    work.path("sift", 0, ".json").write_text("{}")
    assert len(list(jobs._call(lost, work, "sift", 0, Path.cwd()))) == 1


def test_processes_are_here_or_there() -> None:
    with pytest.raises(OnggiError, match="workers: are this machine's"):
        config(["probe"], workers=2, on="ray")
    with pytest.raises(OnggiError, match="on: is of --rows"):
        TextConfig(["probe"], Languages(TAGS), on="ray")
