"""Log-likelihoods of continuations, what they share computed once.

`prefixes.plan` says what to compute; here a decoder computes it: a segment is one row of tokens
with the positions of their own branches and a mask through which each sees its ancestors alone.
Whether a model takes such a mask as it should is tried on the model itself; one that does not is
scored sequence by sequence. The output head, over half of a small multilingual model's work, runs
only for positions that predict a continuation, and once for all choices that follow one position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import OnggiError
from ..head import Head, score
from ..text.tokens import Tokens
from .prefixes import PACK, SHARED, Segment, Want, plan
from .protocol import Scored

# Positions whose likelihoods are computed together.
_POSITIONS = 512
# Branches inside and across segments, to try a model's masks on, and how much of the vocabulary shows it.
_TRIAL = [([3, 5, 8, 9, 4, 6], 3), ([3, 5, 8, 7, 7, 6], 3), ([3, 5, 2, 9, 4, 6], 2)]
_SHOWS = 1024


def encode(tokens: Tokens, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """Each (context, continuation) as token ids and where the continuation starts in them.

    The two are encoded together and split where the context's own encoding ends, spaces at its end
    counted to the continuation: the rule of lm-eval (`TemplateLM._encode_pair`), for the same numbers.
    Every sequence begins with the start token, which a continuation without a context follows.
    """
    alone: dict[str, int] = {}
    found = []
    for context, continuation in pairs:
        stripped = context.rstrip()
        if stripped not in alone:
            alone[stripped] = len(tokens.encode(stripped)) if stripped else 0
        ids = [tokens.prefix, *tokens.encode(context + continuation)]
        found.append((ids, min(1 + alone[stripped], len(ids))))
    return found


class Scorer:
    """Log-likelihoods by one loaded decoder. body: the model without its head; config: the model's."""

    def __init__(self, body: Any, head: Head, config: Any, device: torch.device):
        self.body, self.head, self.device = body, head, device
        self.window: int | None = getattr(config, "sliding_window", None)
        self.kinds: set[str] = set(getattr(config, "layer_types", None) or ())
        # A mask for each kind of layer, one for all, or none that works.
        self._mask: str | None = None
        ways = ("each", "one") if self.kinds else ("one",)
        self.head = head.part(_SHOWS)  # a walk over a large vocabulary costs more than the whole trial
        self._mask = next((way for way in ways if self._works(way)), None)
        self.head = head

    def _works(self, way: str) -> bool:
        """Whether a small tree, of one segment and of several, scores as its branches do alone."""
        self._mask = None
        alone = dict(self.score(_TRIAL))
        self._mask = way
        for pack, shared in ((64, 64), (3, 2)):
            try:
                found = dict(self.score(_TRIAL, pack, shared))
            # What a model's code raises for a mask it does not know may be anything.
            except (TypeError, ValueError, RuntimeError, AttributeError, LookupError):
                return False
            if any(abs(found[i].logprob - alone[i].logprob) > 1e-2 for i in alone):
                return False
        return True

    @torch.no_grad()
    def score(
        self, sequences: Sequence[tuple[Sequence[int], int]], pack: int = PACK, shared: int = SHARED
    ) -> Iterator[tuple[int, Scored]]:
        """(number, score) of each sequence (ids, start), of its tokens from `start` on, as they are known."""
        left = [len(ids) - start for ids, start in sequences]
        sums, greedy = [0.0] * len(sequences), [True] * len(sequences)
        for i, count in enumerate(left):
            if count == 0:
                yield i, Scored(0.0, 0, True)
        waiting: list[tuple[list[Want], Tensor]] = []
        size = 0
        for wants, hidden in self._hidden(sequences, pack, shared):
            waiting.append((wants, hidden))
            size += len(hidden)
            if size >= _POSITIONS:
                yield from self._settle(waiting, sequences, left, sums, greedy)
                waiting, size = [], 0
        yield from self._settle(waiting, sequences, left, sums, greedy)

    def _hidden(
        self, sequences: Sequence[tuple[Sequence[int], int]], pack: int, shared: int
    ) -> Iterator[tuple[list[Want], Tensor]]:
        """Wants, and the hidden state of each, (wants, hidden) fp32; `Want.node` is its row there."""
        if self._mask is not None:
            yield from self._run(plan(sequences, pack, shared), None)
            return
        for i, (ids, start) in enumerate(sequences):
            if start < len(ids):
                batch = torch.tensor([list(ids[:-1])], device=self.device)
                states = self.body(input_ids=batch, use_cache=False).last_hidden_state[0, start - 1 :]
                yield [Want(k, token, i) for k, token in enumerate(ids[start:])], states.float()

    def _run(self, segments: Sequence[Segment], above: Any) -> Iterator[tuple[list[Want], Tensor]]:
        """Compute segments below the keys and values `above`; depth first, so that one path is kept."""
        for segment in segments:
            states, kept = self._compute(segment, above)
            if segment.wants:
                rows = sorted({want.node for want in segment.wants})
                number = {node: row for row, node in enumerate(rows)}
                yield (
                    [Want(number[want.node], want.token, want.sequence) for want in segment.wants],
                    states[rows].float(),
                )
            if segment.children:
                yield from self._run(segment.children, kept)

    def _compute(self, segment: Segment, above: Any) -> tuple[Tensor, Any]:
        """Last hidden states (nodes, hidden) of a segment, and the keys and values down to its end."""
        from transformers import DynamicCache

        # Layers with windows forget in their own caches; here the mask says what is seen.
        cache = DynamicCache(above) if above else DynamicCache()
        length = above[0][0].shape[-2] if above else 0
        if segment.depths[0] != length:
            raise ValueError("a segment does not follow what is above it.")
        out = self.body(
            input_ids=torch.tensor([segment.tokens], device=self.device),
            position_ids=torch.tensor([segment.depths], device=self.device),
            attention_mask=self._masks(segment, length),
            cache=cache,
            use_cache=True,
        )
        kept = [(layer.keys, layer.values) for layer in out.cache.layers] if segment.children else None
        return out.last_hidden_state[0], kept

    def _masks(self, segment: Segment, length: int) -> Any:
        """True where a node (row) sees a position (column): (1, 1, nodes, length + nodes)."""
        count = len(segment.tokens)
        seen = np.zeros((count, length + count), dtype=bool)
        seen[:, :length] = True
        for node, parent in enumerate(segment.parents):
            if parent >= 0:
                seen[node] = seen[parent]
            seen[node, length + node] = True
        depths = np.concatenate([np.arange(length), segment.depths])
        near = seen
        if self.window:
            near = seen & (np.asarray(segment.depths)[:, None] - depths[None] < self.window)

        def mask(of: Any) -> Tensor:
            return torch.from_numpy(of)[None, None].to(self.device)

        if self._mask == "one":
            return mask(near)
        return {kind: mask(near if kind == "sliding_attention" else seen) for kind in self.kinds}

    def _settle(
        self,
        waiting: Sequence[tuple[list[Want], Tensor]],
        sequences: Sequence[tuple[Sequence[int], int]],
        left: list[int],
        sums: list[float],
        greedy: list[bool],
    ) -> Iterator[tuple[int, Scored]]:
        """Run the head over what waits and yield the sequences that are complete."""
        if not waiting:
            return
        hidden = torch.cat([states for _, states in waiting])  # (positions, hidden)
        wants: list[Want] = []
        offset = 0
        for own, states in waiting:
            wants += [Want(want.node + offset, want.token, want.sequence) for want in own]
            offset += len(states)
        first: dict[int, int] = {}
        for want in wants:
            first.setdefault(want.node, want.token)
        targets = torch.tensor([first[row] for row in range(len(hidden))], device=hidden.device)
        found = score(hidden, self.head, targets)
        rows = torch.tensor([want.node for want in wants])
        asked = torch.tensor([want.token for want in wants])
        # The likelihood of one token of a position gives those of its others by their logits.
        gap = (
            self.head.logits_of(hidden, targets).cpu()[rows]
            - self.head.logits_of(hidden[rows], asked.to(hidden.device)).cpu()
        )
        nll = (found.nll[rows] + gap).tolist()
        top = (found.top1[rows] == asked).tolist()
        for want, nats, likeliest in zip(wants, nll, top, strict=True):
            i = want.sequence
            sums[i] -= nats
            greedy[i] = greedy[i] and likeliest
            left[i] -= 1
            if left[i] == 0:
                ids, start = sequences[i]
                yield i, Scored(sums[i], len(ids) - start, greedy[i])


def fit(ids: list[int], start: int, window: int | None) -> tuple[list[int], int]:
    """A sequence cut at its beginning, after the start token, to what the model's window takes.

    Raises OnggiError where the continuation alone does not fit.
    """
    over = len(ids) - 1 - window if window else 0
    if over <= 0:
        return ids, start
    if start - over < 1:
        raise OnggiError(f"a continuation of {len(ids) - start} tokens exceeds the window of {window}.")
    return [ids[0], *ids[1 + over :]], start - over
