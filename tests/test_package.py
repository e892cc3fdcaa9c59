"""What is built for others to install holds all of onggi and nothing else, and works from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]
DATA = {"onggi/text/data/probe.jsonl", "onggi/text/data/starter.jsonl", "onggi/py.typed"}
DATA |= {"onggi/text/data/everyday.jsonl", "onggi/text/data/questions.jsonl"}
DATA |= {"onggi/text/data/starts.jsonl"}
DATA |= {f"onggi/text/data/seed-{tag}.jsonl" for tag in ("de", "en", "es", "ja", "ko", "zh-Hans")}
DATA |= {"onggi/phrases/ko.yaml", "onggi/report/page.html"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, as pip makes it, and the sdist."""
    folder = tmp_path_factory.mktemp("built")
    pip = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    for words in ([*pip, str(ROOT)], ["hatchling", "build", "-t", "sdist", "-d", str(folder)]):
        subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True, capture_output=True)
    return folder


def test_the_wheel(built: Path) -> None:
    [wheel] = built.glob("onggi-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [info] = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(info).decode()
    here = {
        str(file.relative_to(ROOT / "src"))
        for file in (ROOT / "src" / "onggi").rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    assert here >= DATA
    assert names == here | {name for name in names if ".dist-info/" in name}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    for extra in ("gemma", "llama", "bench", "dev"):
        assert f"Provides-Extra: {extra}\n" in metadata
    assert "Requires-Dist: torch" in metadata and "License-Expression: Apache-2.0" in metadata


def test_the_sdist(built: Path) -> None:
    [sdist] = built.glob("onggi-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {f"src/{name}" for name in DATA} <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "recipes/quickstart.yaml"} <= names
    assert not [
        name for name in names if name.startswith(("tests", "bench", ".", "runs")) and name != ".gitignore"
    ]


def test_the_wheel_works_from_another_folder(built: Path, tmp_path: Path) -> None:
    [wheel] = built.glob("onggi-*.whl")
    place = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    run = lambda *words: subprocess.run(  # noqa: E731
        [sys.executable, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(place)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(run("-c", "import onggi; print(onggi.__file__)").stdout.strip()).is_relative_to(place)
    assert "usage: onggi VERB" in run("-m", "onggi", "--help").stdout
    run("-m", "onggi", "text", "probe", "--languages", "ko,th,el", "--out", "글")
    assert pq.read_table(tmp_path / "글" / "text.parquet").column_names == ["_id", "ko", "th", "el"]
