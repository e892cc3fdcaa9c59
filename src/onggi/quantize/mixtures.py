"""Which type each tensor gets in a GGUF of a given name, as llama-quantize gives them.

A name such as Q4_K_M means a mixture: most matrices in one type, those that are known to matter in a larger
one (`src/llama-quant.cpp`). Ours follow the same rules, so that a file of a name has the size and the speed
that people know it by; what differs is how the weights are rounded. Rows that are not whole blocks of 256
fall back to a type with blocks of 32, as theirs do; where theirs takes Q4_0 (for Q2_K and Q3_K), ours takes
IQ4_NL, which is as many bytes and rounds with less error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..grids import BLOCKS
from .schemes import Scheme

# Types of plain numbers, and bytes of a weight in each.
PLAIN = {"F32": 4, "F16": 2, "BF16": 2}
# Name of a mixture → the type of most of it.
MIXTURES = {
    **{name: name for name in PLAIN},
    **{name: name for name in ("Q8_0", "Q6_K", "Q5_0", "Q5_1", "Q4_0", "Q4_1", "Q2_K", "IQ4_NL", "IQ4_XS")},
    **{f"Q{bits}_K_{size}": f"Q{bits}_K" for bits in (4, 5) for size in "SM"},
    **{f"Q3_K_{size}": "Q3_K" for size in "SML"},
}
# Type → the one that takes its place where rows are not whole blocks of 256.
FALLBACK = {
    "Q2_K": "IQ4_NL",
    "Q3_K": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}
EMBEDDING, HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class BlockScheme(Scheme):
    """A type of GGUF as a scheme."""

    vllm: bool = False

    def fits(self, columns: int) -> bool:
        """Always: another type takes its place."""
        return True

    def for_columns(self, columns: int) -> BlockScheme:
        """This, or what takes its place in rows of so many columns."""
        name = fitting(self.name, columns)
        return self if name == self.name else scheme(name)


def scheme(name: str) -> BlockScheme:
    """Of one of `BLOCKS`. KeyError for a type of plain numbers, which has no grid."""
    return BlockScheme(name, BLOCKS[name])


def fitting(name: str, columns: int) -> str:
    """The type that a row of `columns` weights gets where `name` is wanted."""
    if name in PLAIN:
        return name
    if columns % BLOCKS[name].block:
        name = FALLBACK.get(name, name)
    return "F16" if columns % BLOCKS[name].block else name


def bytes_of(name: str, weights: int) -> int:
    """Bytes that so many weights take in a type."""
    return weights * PLAIN[name] if name in PLAIN else weights // BLOCKS[name].block * BLOCKS[name].bytes


def wanted(
    mixture: str, shapes: Mapping[str, tuple[int, ...]], gqa: int, *, calibrated: bool, large: bool = False
) -> dict[str, str]:
    """The type of every tensor by llama-quantize's rules, before rows that do not fit fall back.

    shapes: GGUF's name of each tensor → its shape. gqa: query heads to a key head. calibrated: whether an
    importance matrix (here: calibration text) is at hand. large: Llama of 80 layers, whose values eight heads share.
    """
    most = MIXTURES[mixture]
    layers = 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith("blk.")), default=0)
    tied = HEAD not in shapes
    found = {}
    for name, shape in shapes.items():
        if len(shape) < 2 or not name.endswith(".weight") or "_norm." in name:
            found[name] = "F32"
        elif most in PLAIN:
            found[name] = most
        elif name == HEAD or (tied and name == EMBEDDING):
            found[name] = (
                "Q8_0" if most == "Q8_0" or (most in BLOCKS and shape[-1] % BLOCKS[most].block) else "Q6_K"
            )
        elif name.startswith("blk."):
            _, index, kind, *_ = name.split(".")
            found[name] = _in_layer(
                mixture, kind, int(index), layers, gqa, calibrated=calibrated, large=large
            )
        else:
            found[name] = most
    return found


def _more(index: int, layers: int) -> bool:
    """Layers that get more bits: the first and last eighth, and every third between."""
    return index < layers // 8 or index >= 7 * layers // 8 or (index - layers // 8) % 3 == 2


def _in_layer(
    mixture: str, kind: str, index: int, layers: int, gqa: int, *, calibrated: bool, large: bool
) -> str:
    most = MIXTURES[mixture]
    early = index < layers // 8
    if kind == "attn_v":
        found = {
            "Q2_K": "Q4_K" if gqa >= 4 else "Q3_K",
            "Q3_K_M": "Q5_K" if index < 2 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "Q4_K_S": "Q5_K" if index < 4 else most,
            "Q4_K_M": "Q6_K" if _more(index, layers) else most,
            "Q5_K_M": "Q6_K" if _more(index, layers) else most,
            "IQ4_NL": "Q5_K" if gqa >= 4 else most,
            "IQ4_XS": "Q5_K" if gqa >= 4 else most,
        }.get(mixture, most)
        return "Q5_K" if large and found in ("Q3_K", "Q4_K") else found
    if kind == "ffn_down":
        return {
            "Q2_K": "Q3_K",
            "Q3_K_M": "Q5_K" if index < layers // 16 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "Q4_K_S": "Q5_K" if early else most,
            "Q4_K_M": "Q6_K" if _more(index, layers) else most,
            "Q5_K_M": "Q6_K" if _more(index, layers) else most,
            "IQ4_NL": "Q5_K" if early and not calibrated else most,
            "IQ4_XS": "Q5_K" if early and not calibrated else most,
            "Q4_0": "Q4_1" if early and calibrated else most,
            "Q5_0": "Q5_1" if early and calibrated else most,
        }.get(mixture, most)
    if kind == "attn_output":
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mixture, most)
    if kind == "attn_qkv":
        return {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}.get(mixture, most)
    return most
