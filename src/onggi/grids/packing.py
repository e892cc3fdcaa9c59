"""Codes and scales as the bytes of GGUF's blocks.

Each type has its own order of bits, made for the kernels that read them. The definition is ggml's
(`ggml-common.h`, and `gguf.quants` in Python, which the tests compare with). A block is written as the
pieces it is made of, one after the other; all blocks of a matrix at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# codes (blocks, weights) uint8, and what is stored of the scales, (blocks, …) each → pieces (blocks, bytes).
Pack = Callable[[Tensor, Sequence[Tensor]], list[Tensor]]


def _bytes(values: Tensor) -> Tensor:
    """(blocks, n) of any dtype as (blocks, n · size) uint8."""
    return values.contiguous().view(torch.uint8)


def _joined(parts: Tensor, bits: int) -> Tensor:
    """parts (…, n, width): n fields of `bits` in each byte, the first in the lowest → (blocks, …)."""
    found = torch.zeros_like(parts[..., 0, :])
    for i in range(parts.shape[-2]):
        found |= parts[..., i, :] << (bits * i)
    return found.flatten(1)


def _halves(codes: Tensor, run: int) -> Tensor:
    """Four bits each: of every `run` weights the first half in the low nibbles, the second in the high."""
    return _joined((codes & 15).reshape(len(codes), -1, 2, run // 2), 4)


def _quarters(codes: Tensor) -> Tensor:
    """Two bits each: 32 bytes for 128 weights, 32 weights in each pair of bits."""
    return _joined((codes & 3).reshape(len(codes), -1, 4, 32), 2)


def _one_bit(codes: Tensor) -> Tensor:
    """A bit each: 32 weights in each bit of 32 bytes."""
    return _joined((codes & 1).reshape(len(codes), -1, 32), 1)


def _fifth_bits(codes: Tensor) -> Tensor:
    """Bit 4 of 32 codes as four bytes, in their order."""
    bits = (codes >> 4).reshape(len(codes), 4, 8).transpose(1, 2)
    return _joined(bits.contiguous(), 1)


def q8_0(codes: Tensor, stored: Sequence[Tensor]) -> list[Tensor]:
    """A scale, 32 signed bytes (a code is stored as it is: uint8 of the same bits)."""
    return [_bytes(stored[0]), codes]


def nibbles(codes: Tensor, stored: Sequence[Tensor]) -> list[Tensor]:
    """Q4_0, Q4_1, IQ4_NL: a scale (and an offset), 32 nibbles."""
    return [*map(_bytes, stored), _halves(codes, 32)]


def five(codes: Tensor, stored: Sequence[Tensor]) -> list[Tensor]:
    """Q5_0, Q5_1: a scale (and an offset), the fifth bits, 32 nibbles."""
    return [*map(_bytes, stored), _fifth_bits(codes), _halves(codes, 32)]


def _six_bits(scales: Tensor, offsets: Tensor) -> Tensor:
    """Eight scales and eight offsets of six bits in twelve bytes, as Q4_K and Q5_K have them."""
    low = [scales[:, :4] | (scales[:, 4:] >> 4) << 6, offsets[:, :4] | (offsets[:, 4:] >> 4) << 6]
    return torch.cat([*low, (scales[:, 4:] & 15) | (offsets[:, 4:] & 15) << 4], dim=1)


def q4_k(codes: Tensor, stored: Sequence[Tensor]) -> list[Tensor]:
    """Two scales, six-bit codes, nibbles."""
    d, least, scales, offsets = stored
    return [_bytes(d), _bytes(least), _six_bits(_bytes(scales), _bytes(offsets)), _halves(codes, 64)]


def q5_k(codes: Tensor, stored: Sequence[Tensor]) -> list[Tensor]:
    """As Q4_K, the fifth bits before the nibbles."""
    *scales, low = q4_k(codes, stored)
    return [*scales, _one_bit(codes >> 4), low]


def q2_k(codes: Tensor, stored: Sequence[Tensor]) -> list[Tensor]:
    """Four-bit scales and offsets, pairs of bits, two scales."""
    d, least, scales, offsets = stored
    return [_bytes(scales) | _bytes(offsets) << 4, _quarters(codes), _bytes(d), _bytes(least)]


def q3_k(codes: Tensor, stored: Sequence[Tensor]) -> list[Tensor]:
    """Third bits, pairs of bits, sixteen six-bit scales in twelve bytes, a scale."""
    d, scales = stored
    six = _bytes(scales + 32)
    packed = [_halves(six, 16), _joined((six >> 4).reshape(len(six), 4, 4), 2)]
    return [_one_bit(codes >> 2), _quarters(codes), *packed, _bytes(d)]


def q6_k(codes: Tensor, stored: Sequence[Tensor]) -> list[Tensor]:
    """Nibbles, the two bits above, signed bytes as scales, a scale."""
    d, scales = stored
    return [_halves(codes, 128), _quarters(codes >> 4), _bytes(scales), _bytes(d)]


def iq4_xs(codes: Tensor, stored: Sequence[Tensor]) -> list[Tensor]:
    """A scale, eight six-bit scales (two bits of each first, then nibbles), nibbles."""
    d, scales = stored
    six = _bytes(scales + 32)
    high = _joined((six >> 4).reshape(len(six), 2, 4).transpose(1, 2), 2)
    low = _joined(six.reshape(len(six), 4, 2).transpose(1, 2) & 15, 4)
    return [_bytes(d), high, low, _halves(codes, 32)]
