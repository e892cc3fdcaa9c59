"""Which part of many sequences is computed once: a plan of what they share.

A four-choice question with five shots is four sequences of a thousand tokens that differ in the
last one or two; the next question has the same shots again. Scored one by one, nine tenths of the
work is done over. Sorted, the sequences are a tree, and a decoder can compute a tree: every token
sees its ancestors and nobody else, at the position that is its depth. The plan cuts the tree into
*segments*: a prefix shared by more than one segment's worth of tokens is computed once and its keys
and values are kept for what hangs below it; all else is packed, branches side by side, into
segments of about `pack` tokens, where a question still serves all of its choices.

Exact: no token sees more or less than it would alone (tests compare with that).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

# Tokens computed together. More would spend on attention between branches that do not see each
# other; fewer would not fill the matrix products.
PACK = 512
# A prefix shorter than this is not worth a segment of its own.
SHARED = 32


@dataclass(frozen=True)
class Want:
    """The likelihood of `token` after a node is asked for by sequence number `sequence`."""

    node: int
    token: int
    sequence: int


@dataclass
class Segment:
    """Tokens computed in one pass, after those of the segments above it.

    tokens: (nodes,) ids. parents: for each the node before it in this segment, −1 where that is the
    last one of the segment above. depths: (nodes,) positions from the start of the sequence.
    children: what hangs below the last node; segments with children are chains.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    wants: list[Want] = field(default_factory=list)
    children: list[Segment] = field(default_factory=list)

    @property
    def work(self) -> int:
        """Tokens to compute here and below."""
        return len(self.tokens) + sum(child.work for child in self.children)


def plan(
    sequences: Sequence[tuple[Sequence[int], int]], pack: int = PACK, shared: int = SHARED
) -> list[Segment]:
    """Segments that score every sequence (ids, start): the tokens from ids[start] on, each after all
    before it. start ≥ 1: the first token has nothing before it.
    """
    for ids, start in sequences:
        if not 1 <= start <= len(ids):
            raise ValueError(f"a sequence of {len(ids)} tokens cannot be scored from token {start}.")
    root = Segment()
    planner = _Planner(sequences, pack, shared)
    planner.split(0, len(planner.order), 0, root)
    return root.children


class _Planner:
    """The sequences in sorted order, and how much each shares with the one before it."""

    def __init__(self, sequences: Sequence[tuple[Sequence[int], int]], pack: int, shared: int):
        self.sequences, self.pack, self.shared = sequences, pack, shared
        # The last token is predicted, never read.
        self.paths = [list(ids[:-1]) for ids, _ in sequences]
        scored = (i for i, (ids, start) in enumerate(sequences) if start < len(ids))
        self.order = sorted(scored, key=self.paths.__getitem__)
        ordered = [self.paths[i] for i in self.order]
        self.lengths = np.array([len(path) for path in ordered], dtype=np.int64)
        self.common = np.array([0, *(_lcp(a, b) for a, b in itertools.pairwise(ordered))], dtype=np.int64)

    def split(self, low: int, high: int, done: int, above: Segment) -> None:
        """Segments below `above`, whose last node is at depth `done` − 1, for order[low:high]."""
        loose = low  # from here to the group in hand: of no prefix worth keeping, packed together
        stack = [(low, high)] if low < high else []
        while stack:
            first, last = stack.pop()
            inner = self.common[first + 1 : last]
            common = int(inner.min()) if len(inner) else int(self.lengths[first])
            nodes = int(self.lengths[first] - done + (self.lengths[first + 1 : last] - inner).sum())
            if nodes <= self.pack or last - first == 1 or common == int(self.lengths[first:last].max()):
                continue
            if common - done >= self.shared:
                self._flush(loose, first, done, above)
                loose = last
                chain = self._chain(first, last, done, common)
                above.children.append(chain)
                self.split(first, last, common, chain)
            else:  # apart where they differ; pushed so that the order stays
                cuts = [first, *(first + 1 + np.flatnonzero(inner == common)).tolist(), last]
                stack += reversed(list(itertools.pairwise(cuts)))
        self._flush(loose, high, done, above)

    def _wants(self, i: int, first: int, last: int, nodes: Sequence[int]) -> list[Want]:
        """What sequence i asks of its nodes at depths first … last − 1; nodes: their numbers."""
        ids, start = self.sequences[i]
        depths = range(max(first, start - 1), min(last, len(ids) - 1))
        return [Want(nodes[depth - first], ids[depth + 1], i) for depth in depths]

    def _chain(self, first: int, last: int, done: int, common: int) -> Segment:
        count = common - done
        path = self.paths[self.order[first]][done:common]
        chain = Segment(list(path), list(range(-1, count - 1)), list(range(done, common)))
        for i in self.order[first:last]:
            chain.wants += self._wants(i, done, common, range(count))
        return chain

    def _flush(self, first: int, last: int, done: int, above: Segment) -> None:
        """Pack the trees of order[first:last] into segments below `above`."""
        segment, nodes = Segment(), list[int]()
        for place in range(first, last):
            i = self.order[place]
            path = self.paths[i]
            kept = max(int(self.common[place]), done) if place > first else done
            fresh, size = len(path) - kept, len(segment.tokens)
            # A full segment still takes what it has the better part of, as the next choice of a question.
            if size and size + fresh > (self.pack if kept - done < fresh else 2 * self.pack):
                above.children.append(segment)
                segment, nodes, kept = Segment(), [], done
            nodes = nodes[: kept - done]  # numbers of the nodes on this path, by depth
            for depth in range(kept, len(path)):
                segment.parents.append(nodes[-1] if nodes else -1)
                nodes.append(len(segment.tokens))
                segment.tokens.append(path[depth])
                segment.depths.append(depth)
            segment.wants += self._wants(i, done, len(path), nodes)
        if segment.tokens:
            above.children.append(segment)


def _lcp(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    for depth, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return depth
    return min(len(a), len(b))
