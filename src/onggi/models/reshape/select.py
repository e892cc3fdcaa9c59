"""What is kept of a model: by what was measured in every language, or by place alone.

Each language's measure of a set of parts is divided by its sum over the set, and the largest share that any
language gives a part counts. So a part on which one language leans stays, whatever the others make of it, and
a language with more tokens, or one in which everything is larger, has no louder voice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import OnggiError
from .importance import Importance
from .shape import Shape


@dataclass(frozen=True)
class Wanted:
    """How much is to be left; None: all of it."""

    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    mlp: int | None = None
    width: int | None = None


def checked(wanted: Wanted, have: Shape) -> tuple[int, int]:
    """Query heads and key-value heads that will be left. Groups of heads with their key-value head go whole
    where that comes out even; else every group loses the same number of heads.

    Raises OnggiError for what there is not enough of, and for heads that do not divide.
    """
    for name, want, there in (
        ("layers", wanted.layers, have.layers),
        ("heads", wanted.heads, have.heads),
        ("kv_heads", wanted.kv_heads, have.kv_heads),
        ("mlp", wanted.mlp, have.mlp),
        ("width", wanted.width, have.width),
    ):
        if want is not None and not 1 <= want <= there:
            raise OnggiError(f"{name}: {want} cannot be kept of {there}; name a number from 1 to {there}.")
    each = have.heads // have.kv_heads
    heads, groups = wanted.heads, wanted.kv_heads
    if heads is None:
        groups = groups or have.kv_heads
        return groups * each, groups
    if groups is None:
        groups = heads // each if heads % each == 0 else have.kv_heads
    if heads % groups or heads // groups > each:
        able = sorted(
            {n * each for n in range(1, have.kv_heads)} | {n * have.kv_heads for n in range(1, each)}
        )
        raise OnggiError(
            f"heads: {heads} do not divide over {groups} key-value heads of at most {each} each; "
            f"of {have.heads} heads, {', '.join(map(str, able)) or 'all'} can be kept."
        )
    return heads, groups


def together(measures: list[Tensor]) -> Tensor:
    """One measure of many languages: the largest share that any of them gives, (…, parts) fp64."""
    shares = [measure / measure.sum(dim=-1, keepdim=True).clamp_min(1e-300) for measure in measures]
    return torch.stack(shares).amax(dim=0)


def layers(found: Mapping[str, Importance] | None, have: int, keep: int) -> list[int]:
    """The layers to keep, in their order: those that turn the stream most; without measures the first and
    last of them.
    """
    if found is None:
        first = -(-keep // 2)
        return [*range(first), *range(have - (keep - first), have)]
    return _top(together([one.layers for one in found.values()]), keep)


def heads(
    found: Mapping[str, Importance] | None, have: Shape, keep: int, groups: int
) -> tuple[list[list[int]], list[list[int]]]:
    """For each layer the query heads and the key-value heads to keep."""
    each, within = have.heads // have.kv_heads, keep // groups
    score = (
        _by_place(have.layers, have.heads)
        if found is None
        else together([one.heads for one in found.values()])
    ).reshape(have.layers, have.kv_heads, each)
    queries, keys = [], []
    for layer in score:
        best = [_top(group, within) for group in layer]
        worth = torch.stack([group[kept].sum() for group, kept in zip(layer, best, strict=True)])
        keys.append(_top(worth, groups))
        queries.append([index * each + head for index in keys[-1] for head in best[index]])
    return queries, keys


def columns(found: Mapping[str, Importance] | None, have: Shape, keep: int) -> list[list[int]]:
    """For each layer the columns of its MLP to keep."""
    score = (
        _by_place(have.layers, have.mlp)
        if found is None
        else together([one.columns for one in found.values()])
    )
    return [_top(layer, keep) for layer in score]


def width(found: Mapping[str, Importance] | None, have: int, keep: int) -> list[int]:
    """The channels of the residual stream to keep."""
    if found is None:
        return list(range(keep))
    return _top(together([_channels(one) for one in found.values()]), keep)


def _channels(one: Importance) -> Tensor:
    return (one.channels / one.channels.sum(dim=-1, keepdim=True).clamp_min(1e-300)).mean(dim=0)


def squares(found: Mapping[str, Importance]) -> dict[str, Tensor]:
    """Norm → mean square of each channel of its input, every language alike, (width,) fp64."""
    names = next(iter(found.values())).squares
    return {
        name: torch.stack([one.squares[name] / one.tokens for one in found.values()]).mean(dim=0)
        for name in names
    }


def _top(score: Tensor, keep: int) -> list[int]:
    """Indices of the `keep` highest, ascending; of equals the first."""
    order = torch.sort(score, descending=True, stable=True).indices[:keep]
    return sorted(int(index) for index in order)


def _by_place(rows: int, parts: int) -> Tensor:
    return -torch.arange(parts, dtype=torch.float64).expand(rows, parts)
