"""`onggi inspect`: what a model or an artifact is, and the folder to load it from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import ledger
from ..errors import OnggiError


def inspect(source: str) -> dict[str, Any]:
    """Facts about a model or an artifact's folder; `path` is the loadable folder.

    Raises OnggiError where `source` is neither.

    >>> from onggi.stages import inspect
    >>> facts = inspect("w4")
    >>> facts["verb"], facts["options"]["model"], facts["quantization"]
    ('quantize', 'model', 'pack-quantized')
    """
    folder = Path(source).expanduser()
    found = ledger.artifact(folder) if folder.is_dir() else None
    if found is None and folder.is_dir() and (folder / ledger.PARTIAL).is_dir():
        raise OnggiError(f"{source}: is unfinished; the command that made it goes on from where it stopped.")
    facts: dict[str, Any] = {"path": str(folder.resolve())} if found else {}
    if found:
        record = found.record
        facts |= {
            "verb": record["verb"],
            "options": record["options"],
            "wall_seconds": record["wall_seconds"],
            "peak_memory_bytes": record["peak_memory_bytes"],
            "versions": record["versions"],
            "outputs": {name: entry["bytes"] for name, entry in record["outputs"].items()},
        }
        facts |= {key: record[key] for key in ("text", "licence", "parallel", "passages") if key in record}
    if found is None or (folder / "config.json").is_file():
        facts |= _model(source)
    return facts


def _model(source: str) -> dict[str, Any]:
    from ..models import references
    from ..models.checkpoint import Checkpoint

    folder = references.resolve(source)
    checkpoint = Checkpoint(folder)
    config = checkpoint.config
    about = references.about(folder)
    dtypes: dict[str, int] = {}
    for entry in checkpoint.entries.values():
        kind = str(entry.dtype).removeprefix("torch.")
        dtypes[kind] = dtypes.get(kind, 0) + entry.bytes
    return {
        "path": str(folder.resolve()),
        "architecture": (config.get("architectures") or [config["model_type"]])[0],
        "layers": config.get("num_hidden_layers"),
        "hidden_size": config.get("hidden_size"),
        "vocabulary": config.get("vocab_size"),
        "bytes": checkpoint.bytes,
        "bytes_by_type": dtypes,
        "quantization": (config.get("quantization_config") or {}).get("format"),
        **{key: value for key, value in about.items() if key != "layers"},
    }
