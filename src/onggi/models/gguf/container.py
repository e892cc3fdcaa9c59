"""The container: a GGUF's metadata, its table of tensors, and the values of a tensor.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Our own reader, because `gguf.GGUFReader`
makes Python objects of every element of every array (13 s for Gemma's vocabulary; this takes 0.3),
and because a damaged or truncated file has to be named as such before anything is made of it.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as GridType

from ...errors import OnggiError

# Elements dequantised at a time (or one row, where that is longer): 1 MiB of fp32.
_CHUNK = 1 << 18

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LOOKS_LIKE = {
    b"PK\x03\x04": "a zip archive (a PyTorch checkpoint?)",
    b"vers": "a Git LFS pointer, not the file itself",
    b"<!DO": "a web page",
    b"<htm": "a web page",
    b"FUGG": "a big-endian GGUF",
    b"ggml": "an old GGML file, from before GGUF",
    b"ggjt": "an old GGML file, from before GGUF",
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file; `shape` in torch's order, `start` and `size` in bytes of the file."""

    name: str
    shape: tuple[int, ...]
    grid: GridType
    start: int
    size: int


class File:
    """A GGUF's metadata and its table of tensors, all of it checked against the file's length."""

    def __init__(self, path: Path):
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        try:
            with path.open("rb") as handle:
                head = handle.read(4)
                if head != b"GGUF":
                    what = _LOOKS_LIKE.get(
                        head, f"a file that begins with {head!r}" if head else "an empty file"
                    )
                    raise OnggiError(f"{path} is not a GGUF file: it is {what}.")
                self.data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise OnggiError(f"{path} cannot be read: {error.strerror or error}.") from error
        self._at = 4
        try:
            self._read()
        except (struct.error, EOFError):
            raise OnggiError(
                f"{path} is truncated: its {len(self.data):,} bytes end inside the header. Fetch it again."
            ) from None
        except UnicodeDecodeError as error:
            raise OnggiError(
                f"{path} is damaged: its header holds text that is not UTF-8 ({error})."
            ) from None

    def _read(self) -> None:
        version = self._scalar("I")
        if version not in (2, 3):
            raise OnggiError(
                f"{self.path} is GGUF version {version if version < 2**16 else 'of a big-endian machine'}; "
                "versions 2 and 3 (little-endian) can be read."
            )
        n_tensors, n_values = self._scalar("Q"), self._scalar("Q")
        for _ in range(n_values):
            key = self._string()
            self.metadata[key] = self._value(key, self._scalar("I"))
        table = [self._tensor_entry() for _ in range(n_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise OnggiError(f"{self.path} is damaged: general.alignment is {alignment!r}.")
        origin = -(-self._at // alignment) * alignment
        for name, shape, kind, offset in table:
            self.tensors[name] = self._tensor(name, shape, kind, origin + offset)

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        rank = self._scalar("I")
        if not 1 <= rank <= 4:
            raise OnggiError(f"{self.path} is damaged: tensor {name} has {rank} dimensions.")
        dims = tuple(self._scalar("Q") for _ in range(rank))
        if 0 in dims:
            raise OnggiError(f"{self.path} is damaged: tensor {name} is empty.")
        return name, dims[::-1], self._scalar("I"), self._scalar("Q")

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> Tensor:
        if name in self.tensors:
            raise OnggiError(f"{self.path} is damaged: it holds two tensors named {name}.")
        try:
            grid = GridType(kind)
        except ValueError:
            raise OnggiError(
                f"{self.path}: tensor {name} has type {kind}, which gguf does not know."
            ) from None
        block, block_bytes = gguf.GGML_QUANT_SIZES[grid]
        if shape[-1] % block:
            raise OnggiError(
                f"{self.path} is damaged: rows of tensor {name} hold {shape[-1]} values, "
                f"which {grid.name} cannot store (blocks of {block})."
            )
        size = math.prod(shape) // block * block_bytes
        if start + size > len(self.data):
            raise OnggiError(
                f"{self.path} is truncated: tensor {name} ends at byte {start + size:,} of a file of "
                f"{len(self.data):,}. Fetch it again."
            )
        return Tensor(name, shape, grid, start, size)

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        end = self._at + length
        if end > len(self.data):
            raise EOFError
        text = self.data[self._at : end].decode()
        self._at = end
        return text

    def _value(self, key: str, kind: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise OnggiError(f"{self.path} is damaged: metadata {key} has the unknown type {kind}.")
        item, count = self._scalar("I"), self._scalar("Q")
        if item in _SCALARS:
            layout = struct.Struct(f"<{min(count, len(self.data))}{_SCALARS[item]}")
            values = layout.unpack_from(self.data, self._at)
            self._at += layout.size
            return list(values)
        if item != _STRING:
            raise OnggiError(f"{self.path}: metadata {key} is an array of type {item}, which cannot be read.")
        return [self._string() for _ in range(count)]

    def values(self, tensor: Tensor, order: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """The tensor in fp32, flat, a few rows at a time; `order` picks the rows (all of them, if None).

        One flat call per piece, because `gguf.dequantize` goes through sixteen rows at a time, and
        pieces that stay in a core's cache: together several times faster than the tensor at once.
        """
        rows = tensor.shape[0] if order is not None else math.prod(tensor.shape[:-1])
        raw = np.frombuffer(self.data, np.uint8, tensor.size, tensor.start).reshape(rows, -1)
        step = max(1, _CHUNK * rows // math.prod(tensor.shape))
        for at in range(0, rows, step):
            part = raw[at : at + step] if order is None else raw[order[at : at + step]]
            try:
                # A damaged scale gives inf or NaN; the caller finds them and names the tensor.
                with np.errstate(all="ignore"):
                    values = gguf.dequantize(part.reshape(1, -1), tensor.grid).reshape(-1)
            except NotImplementedError:
                raise OnggiError(
                    f"{self.path}: tensor {tensor.name} is stored as {tensor.grid.name}, "
                    "which the gguf package cannot dequantise."
                ) from None
            yield values


class Facts:
    """What a file says about its architecture: `file.metadata` under the prefix `llama.` and so on."""

    def __init__(self, file: File):
        self.file = file
        self.architecture = str(file.metadata.get("general.architecture", ""))

    def _get(self, key: str, default: Any, kinds: tuple[type, ...]) -> Any:
        name = f"{self.architecture}.{key}"
        value = self.file.metadata.get(name, default)
        if value is ...:
            raise OnggiError(
                f"{self.file.path}: the metadata lacks {name}, without which the model is unknown."
            )
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]  # one entry a layer, all the same
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            hint = " (differs by layer, which is not supported)" if isinstance(value, list) else ""
            raise OnggiError(f"{self.file.path}: metadata {name} is not a number{hint}.")
        return value

    def integer(self, key: str, default: Any = ...) -> Any:
        return self._get(key, default, (int,))

    def number(self, key: str, default: Any = ...) -> Any:
        value = self._get(key, default, (int, float))
        # fp32 in the file: 1e-6 reads as 9.99999997e-07; the shortest decimal of that fp32 is 1e-06.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def text(self, key: str, default: str) -> str:
        return str(self.file.metadata.get(f"{self.architecture}.{key}", default))

    def token_id(self, name: str) -> int | None:
        value = self.file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        tokens = self.file.metadata.get("tokenizer.ggml.tokens", ())
        return value if isinstance(value, int) and 0 <= value < len(tokens) else None

    @property
    def heads(self) -> int:
        return int(self.integer("attention.head_count"))

    @property
    def head_dim(self) -> int:
        size = self.integer("attention.key_length", None)
        return int(self.integer("embedding_length") // max(self.heads, 1) if size is None else size)

    def has(self, tensor: str) -> bool:
        return tensor in self.file.tensors
