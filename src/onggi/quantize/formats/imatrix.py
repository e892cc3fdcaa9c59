"""llama.cpp's importance matrices: what `llama-quantize --imatrix` weighs rounding errors by.

Of each matrix it holds, for every column, the sum of the squares of the inputs that reached it, Σ_t x_t², and how many
tokens t there were: the diagonal of the second moments that the house's solver works with. Since 2025 it is
a GGUF file of two fp32 tensors a matrix, `NAME.in_sum2` (matrices, columns) and `NAME.counts` (matrices, 1), more than
one matrix where it holds experts; metadata name the texts and how many chunks of how many tokens they were. The older
`.dat` (means times chunks, one after the other) is read as well.

    from onggi.quantize.formats import imatrix
    both = imatrix.merge([imatrix.read(Path("ko.gguf")), imatrix.read(Path("en.gguf"))])
    imatrix.write(Path("imatrix.gguf"), both)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from ... import ledger
from ...errors import OnggiError
from ...models.gguf.container import File

SUMS, COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNKS, _CHUNK = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """Of one tensor: sums (matrices, columns) of squared inputs, counts (matrices,) of tokens that reached each."""

    sums: _Floats
    counts: _Floats

    @property
    def means(self) -> npt.NDArray[np.float64]:
        """(matrices, columns): the mean square of an input; where no token came by, nought."""
        counts = self.counts.astype(np.float64)[:, None]
        return np.divide(self.sums, counts, out=np.zeros(self.sums.shape), where=counts > 0)


@dataclass(frozen=True)
class Imatrix:
    """entries: by the tensor's name in GGUF (`blk.0.attn_q.weight`). datasets: what the text is called. chunks: how
    many pieces of `chunk` tokens the text was.
    """

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...] = field(default=())
    chunks: int = 0
    chunk: int = 512


def write(path: Path, imatrix: Imatrix) -> None:
    """Write the GGUF, aside and renamed. Raises OnggiError where there is nothing to write or a sum is not finite."""
    if not imatrix.entries:
        raise OnggiError(f"{path}: an importance matrix without entries says nothing.")
    with ledger.writing(path) as aside:
        writer = gguf.GGUFWriter(aside, "imatrix")
        writer.add_type("imatrix")
        writer.add_array(_DATASETS, list(imatrix.datasets) or ["unnamed"])
        writer.add_uint32(_CHUNKS, imatrix.chunks)
        writer.add_uint32(_CHUNK, imatrix.chunk)
        for name, entry in sorted(imatrix.entries.items()):
            if not np.isfinite(entry.sums).all():
                raise OnggiError(f"{path}: the inputs of {name} are not finite.")
            writer.add_tensor(name + SUMS, np.ascontiguousarray(entry.sums, np.float32))
            writer.add_tensor(name + COUNTS, np.ascontiguousarray(entry.counts[:, None], np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read(path: Path) -> Imatrix:
    """An importance matrix of either layout. Raises OnggiError, naming the file, for what is none or is damaged."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise OnggiError(f"{path} cannot be read: {error.strerror or error}.") from error
    return _read_gguf(path) if head == b"GGUF" else _read_dat(path)


def _read_gguf(path: Path) -> Imatrix:
    file = File(path)
    names = {name.removesuffix(SUMS) for name in file.tensors if name.endswith(SUMS)}
    counted = {name.removesuffix(COUNTS) for name in file.tensors if name.endswith(COUNTS)}
    if not names:
        raise OnggiError(f"{path}: is a GGUF, but no importance matrix (llama-imatrix writes one).")
    if odd := sorted(names ^ counted):
        raise OnggiError(f"{path}: {odd[0]} has sums without counts, or counts without sums.")

    def values(name: str) -> _Floats:
        tensor = file.tensors[name]
        return np.concatenate(list(file.values(tensor))).reshape(tensor.shape).astype(np.float32)

    entries = {}
    for name in sorted(names):
        sums, counts = np.atleast_2d(values(name + SUMS)), values(name + COUNTS).reshape(-1)
        sums = sums.reshape(-1, sums.shape[-1])
        if len(counts) not in (1, len(sums)):
            raise OnggiError(f"{path}: {name} has {len(sums)} matrices and {len(counts)} counts.")
        entries[name] = _checked(path, name, Entry(sums, np.broadcast_to(counts, (len(sums),)).copy()))
    get = file.metadata.get
    return Imatrix(entries, tuple(get(_DATASETS) or ()), int(get(_CHUNKS) or 0), int(get(_CHUNK) or 512))


def _read_dat(path: Path) -> Imatrix:
    data, at = path.read_bytes(), 0

    def number() -> int:
        nonlocal at
        (found,) = struct.unpack_from("<i", data, at)
        at += 4
        if found < 0:
            raise struct.error
        return int(found)

    def piece(size: int) -> bytes:
        nonlocal at
        if at + size > len(data):
            raise struct.error
        at += size
        return data[at - size : at]

    entries = {}
    try:
        for _ in range(number()):
            name = piece(number()).decode()
            calls, columns = number(), number()
            sums = np.frombuffer(piece(4 * columns), "<f4").astype(np.float32)
            # Means times calls: the tokens are not told, and nothing but the mean is ever used.
            entries[name] = _checked(path, name, Entry(sums[None], np.full(1, max(calls, 1), np.float32)))
        chunks = number() if at < len(data) else 0
        dataset = piece(number()).decode() if at < len(data) else ""
    except (struct.error, UnicodeDecodeError):
        raise OnggiError(
            f"{path}: is no importance matrix of llama.cpp's, neither a GGUF nor a whole .dat file."
        ) from None
    if not entries:
        raise OnggiError(f"{path}: an importance matrix without entries says nothing.")
    return Imatrix(entries, (dataset,) if dataset else (), chunks)


def _checked(path: Path, name: str, entry: Entry) -> Entry:
    if not (np.isfinite(entry.sums).all() and np.isfinite(entry.counts).all()) or (entry.sums < 0).any():
        raise OnggiError(f"{path}: the sums of {name} are no sums of squares.")
    return entry


def merge(parts: Sequence[Imatrix], shares: Sequence[float] | None = None) -> Imatrix:
    """One of several, each language's say in it its share (default: all the same), however much text it was taken from.

    The mean squares are averaged by `shares`; of an expert that a part's text never reached, over the others. (What
    `llama-imatrix --in-file a --in-file b` does instead is to add up sums: the one with more tokens leads.)
    Raises OnggiError where parts are of different models or shares are not positive.
    """
    shares = [1.0] * len(parts) if shares is None else list(shares)
    if not parts or len(shares) != len(parts) or not all(share > 0 for share in shares):
        raise OnggiError("imatrix: each part needs a share above 0.")
    entries = {}
    for name in sorted({name for part in parts for name in part.entries}):
        own = [
            (part.entries[name], share)
            for part, share in zip(parts, shares, strict=True)
            if name in part.entries
        ]
        shapes = {entry.sums.shape for entry, _ in own}
        if len(shapes) != 1:
            raise OnggiError(
                f"imatrix: {name} has {' and '.join(map(str, sorted(shapes)))}; these are of two models."
            )
        counts = np.stack([entry.counts for entry, _ in own]).astype(np.float64)  # (parts, matrices)
        weights = np.array([share for _, share in own])[:, None] * (counts > 0)
        means = np.einsum("pm,pmc->mc", weights, np.stack([entry.means for entry, _ in own]))
        means /= np.maximum(weights.sum(axis=0), np.finfo(np.float64).tiny)[:, None]
        total = counts.sum(axis=0)
        entries[name] = Entry((means * total[:, None]).astype(np.float32), total.astype(np.float32))
    datasets = tuple(dict.fromkeys(name for part in parts for name in part.datasets))
    return Imatrix(entries, datasets, sum(part.chunks for part in parts), max(part.chunk for part in parts))
