"""A checkpoint in Hugging Face layout, read and written a tensor at a time.

Reading goes through the file, not through a memory map of it: pages of a map count as memory of
the process, and a model larger than memory must pass through. What is not a sound checkpoint is
refused with the file and the reason, before any work begins.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .. import ledger
from ..errors import OnggiError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_COPY = 16 << 20  # bytes copied at a time


def finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite. Its extremes say so: `isfinite` takes as much memory again, and longer."""
    return not tensor.numel() or all(map(torch.isfinite, tensor.aminmax()))


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: its file, first byte, and number of bytes."""

    file: Path
    start: int
    bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class Checkpoint:
    """The tensors of a model folder by name.

    Raises OnggiError for a folder without safetensors (pickled weights are not read), one that
    wants code of its own to be run, a truncated or mislabelled file, a tensor the index promises
    and the files lack.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = read_config(folder)
        self.entries: dict[str, Entry] = {}
        for file in _files(folder):
            self.entries.update(_header(file))
        index = folder / INDEX
        if index.is_file():
            lacking = [name for name in _weight_map(index) if name not in self.entries]
            if lacking:
                raise OnggiError(f"{folder}: the index names {lacking[0]}, which no file holds.")

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.bytes for entry in self.entries.values())

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`, a copy in its stored dtype. OnggiError where it is absent or not finite."""
        tensor = self._read(self._entry(name), 0, self._entry(name).bytes).reshape(self._entry(name).shape)
        self._check(tensor, name)
        return tensor

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """Rows (sorted or not) of the matrix `name` without reading the others; rows: (n,) int64.
        OnggiError for a row that it does not have.
        """
        entry = self._entry(name)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < entry.shape[0]:
            raise OnggiError(
                f"{self.folder}: the tokenizer knows token {int(rows.max())}, but {name} has only "
                f"{entry.shape[0]} rows; they are of different models."
            )
        width = entry.bytes // entry.shape[0]
        with entry.file.open("rb") as file:
            parts = [self._read(entry, int(row) * width, width, file) for row in rows]
        tensor = torch.stack(parts)
        self._check(tensor, name)
        return tensor

    def part(self, name: str, rows: slice) -> Tensor:
        """Some rows, one after the other, of the matrix `name`, without reading the others."""
        entry = self._entry(name)
        start, stop, _ = rows.indices(entry.shape[0])
        width = entry.bytes // entry.shape[0]
        tensor = self._read(entry, start * width, (stop - start) * width).reshape(-1, *entry.shape[1:])
        self._check(tensor, name)
        return tensor

    def copy(self, name: str, to: BinaryIO) -> None:
        """Write the bytes of tensor `name` to an open file, a piece at a time; checks it is finite."""
        entry = self._entry(name)
        with entry.file.open("rb") as file:
            for start in range(0, entry.bytes, _COPY):
                piece = self._read(entry, start, min(_COPY, entry.bytes - start), file)
                self._check(piece, name)
                _write_all(to, piece.view(torch.uint8))

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise OnggiError(f"{self.folder}: holds no tensor named {name}.")
        return self.entries[name]

    def _check(self, tensor: Tensor, name: str) -> None:
        if tensor.is_floating_point() and tensor.itemsize > 1 and not finite(tensor):
            raise OnggiError(f"{self.folder}: tensor {name} holds NaN or infinite values.")

    def _read(self, entry: Entry, start: int, count: int, file: BinaryIO | None = None) -> Tensor:
        if file is None:
            with entry.file.open("rb") as opened:
                return self._read(entry, start, count, opened)
        tensor = torch.empty(count // entry.dtype.itemsize, dtype=entry.dtype)
        file.seek(entry.start + start)
        if file.readinto(_buffer(tensor)) != count:  # type: ignore[attr-defined]
            raise OnggiError(f"{entry.file}: ends too early; the file is truncated.")
        return tensor


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder; OnggiError where absent, not JSON, or in need of code."""
    path = folder / "config.json"
    if not path.is_file():
        raise OnggiError(f"{folder}: is not a model folder (it has no config.json).")
    config = ledger.read_json(path)
    if not isinstance(config, dict) or "model_type" not in config:
        raise OnggiError(f'{path}: has no "model_type".')
    if "auto_map" in config:
        raise OnggiError(f"{path}: the model needs code of its own to be run, which onggi never does.")
    return config


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        files = [folder / name for name in sorted(set(_weight_map(index).values()))]
        for file in files:
            if not file.is_file():
                raise OnggiError(f"{folder}: {file.name} is missing.")
        return files
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise OnggiError(
            f"{folder}: only pickled weights (.bin, .pt), which onggi does not read since they can run "
            "code; save the model again with safetensors."
        )
    raise OnggiError(f"{folder}: holds no {SINGLE}.")


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name → file name, of an index."""
    content = ledger.read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise OnggiError(f'{index}: has no "weight_map".')
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise OnggiError(f"{index}: names {name!r}, which is no file of the folder.")
    return weight_map


def _header(file: Path) -> dict[str, Entry]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(100 << 20, size - 8):
            raise OnggiError(f"{file}: is not a safetensors file (or is truncated).")
        try:
            header = json.loads(opened.read(length))
            entries = {
                name: _entry(file, 8 + length, item)
                for name, item in header.items()
                if name != "__metadata__"
            }
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise OnggiError(f"{file}: its safetensors header is damaged ({error!r}).") from error
    for name, entry in entries.items():
        if entry.start + entry.bytes > size:
            raise OnggiError(
                f"{file}: is truncated; tensor {name} should end at byte {entry.start + entry.bytes}."
            )
        count = 1
        for extent in entry.shape:
            count *= extent
        if count * entry.dtype.itemsize != entry.bytes:
            raise OnggiError(f"{file}: tensor {name} has {entry.bytes} bytes, not what its shape needs.")
    return entries


def _entry(file: Path, data: int, item: Mapping[str, Any]) -> Entry:
    """An entry of the header of `file`, whose tensors begin at byte `data`."""
    start, stop = item["data_offsets"]
    shape = tuple(item["shape"])
    if not all(type(number) is int and number >= 0 for number in (start, stop, *shape)):
        raise ValueError(f"offsets {start} to {stop}, shape {shape}")
    if item["dtype"] not in _DTYPES:
        raise ValueError(f"onggi reads no {item['dtype']}")
    return Entry(file, data + start, stop - start, _DTYPES[item["dtype"]], shape)


@dataclass(frozen=True)
class Pending:
    """A tensor to be written: its kind, and the function that writes its bytes to an open file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    write: Callable[[BinaryIO], None]

    @property
    def bytes(self) -> int:
        """Bytes it will take."""
        count = self.dtype.itemsize
        for extent in self.shape:
            count *= extent
        return count


def pending(tensor: Tensor) -> Pending:
    """A tensor at hand, to be written."""
    data = tensor.detach().cpu().contiguous()
    return Pending(
        data.dtype, tuple(data.shape), lambda file: _write_all(file, data.reshape(-1).view(torch.uint8))
    )


def copied(checkpoint: Checkpoint, name: str) -> Pending:
    """A tensor of another checkpoint, copied as it stands without being held."""
    entry = checkpoint.entries[name]
    return Pending(entry.dtype, entry.shape, lambda file: checkpoint.copy(name, file))


def _buffer(tensor: Tensor) -> memoryview:
    """The tensor's own memory as bytes."""
    data: Any = tensor.view(torch.uint8).numpy()
    return memoryview(data)


def _write_all(file: BinaryIO, data: Tensor) -> None:
    file.write(_buffer(data))


def write_shard(path: Path, tensors: Mapping[str, Pending]) -> None:
    """Write `tensors` as one safetensors file, atomically, holding at most one of them."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.bytes],
        }
        offset += tensor.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned
    with ledger.writing(path) as aside, aside.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            tensor.write(file)


def write_index(folder: Path, shards: Mapping[str, Mapping[str, int]]) -> None:
    """Write the index over `shards`: file name → tensor name → bytes."""
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    total = sum(size for tensors in shards.values() for size in tensors.values())
    ledger.write_json(
        folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    )


def shard_sizes(path: Path) -> dict[str, int]:
    """Tensor name → bytes of one safetensors file."""
    return {name: entry.bytes for name, entry in _header(path).items()}


def companions(folder: Path) -> Iterator[Path]:
    """Files of a model folder that go with any model made from it: tokenizer, template, licence."""
    for pattern in (
        "tokenizer*",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab*",
        "merges.txt",
        "*.jinja",
        "generation_config.json",
        "LICENSE*",
        "NOTICE*",
    ):
        yield from sorted(file for file in folder.glob(pattern) if file.is_file())
