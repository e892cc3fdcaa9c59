"""Bits per byte by language while a model is trained: what the curves are made of.

Passages are tokenised once. Each begins with the start token and is predicted whole, a long one in parts as
packing cuts it; its bits are divided by its bytes of UTF-8, so that a curve is comparable with that of a model
with another tokenizer (within a language: UTF-8 charges scripts differently). In fp32, as all scores
are. With several processes each takes its part of the batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engines.transformers import head_of
from ..head import score
from ..text.tokens import Tokens

# Positions in one pass, padding included.
_BATCH = 4096


class Validation:
    """`Validation(tokens, texts, window)(model)` → language → bits per byte.

    texts: language → passages. window: the longest part, start token included.
    """

    def __init__(self, tokens: Tokens, texts: Mapping[str, Sequence[str]], window: int):
        self.languages = list(texts)
        self.bytes = {language: sum(len(text.encode()) for text in own) for language, own in texts.items()}
        parts: list[tuple[int, list[int]]] = []
        for number, own in enumerate(texts.values()):
            for text in own:
                ids = tokens.encode(text, special=False)
                parts += [
                    (number, [tokens.prefix, *ids[at : at + window - 1]])
                    for at in range(0, len(ids), window - 1)
                ]
        self.counts = dict.fromkeys(self.languages, 0)  # language → tokens that are predicted
        for number, ids in parts:
            self.counts[self.languages[number]] += len(ids) - 1
        self.tokens = sum(self.counts.values())
        parts.sort(key=lambda part: -len(part[1]))
        self._batches: list[list[tuple[int, list[int]]]] = []
        for part in parts:
            last = self._batches[-1] if self._batches else []
            if last and (len(last) + 1) * len(last[0][1]) <= _BATCH:
                last.append(part)
            else:
                self._batches.append([part])

    @torch.no_grad()
    def __call__(self, model: Any) -> dict[str, float]:
        """Measure `model` as it stands."""
        device = next(model.parameters()).device
        body = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        head, nats = head_of(model), torch.zeros(len(self.languages), dtype=torch.float64)
        many = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, count = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if many else (0, 1)
        was = model.training
        model.eval()
        for turn in range(0, len(self._batches), count):
            # Where weights lie in pieces all processes must take part in every pass, so the last turn is whole.
            batch = self._batches[min(turn + rank, len(self._batches) - 1)]
            ids = torch.zeros(len(batch), len(batch[0][1]), dtype=torch.int64)
            for row, (_, own) in enumerate(batch):
                ids[row, : len(own)] = torch.tensor(own)
            # Padding stands on the right, where a causal model cannot see it: no mask is needed.
            states = body(input_ids=ids.to(device), use_cache=False).last_hidden_state
            if turn + rank >= len(self._batches):
                continue
            rows, targets, owners = _predicted(batch, states)
            nll = score(rows, head, targets).nll
            nats.index_add_(0, owners, nll.double())
        model.train(was)
        if many:
            shared = nats.to(device)
            torch.distributed.all_reduce(shared)
            nats = shared.cpu()
        return {
            language: round(float(nats[i]) / math.log(2) / self.bytes[language], 5)
            for i, language in enumerate(self.languages)
        }

    def nats(self, bits: Mapping[str, float]) -> dict[str, float]:
        """Bits per byte of each language as nats a token."""
        return {
            language: round(value * math.log(2) * self.bytes[language] / self.counts[language], 4)
            for language, value in bits.items()
        }


def _predicted(batch: list[tuple[int, list[int]]], states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states that predict something, what they predict, and the number of its language."""
    rows = torch.cat([states[row, : len(ids) - 1] for row, (_, ids) in enumerate(batch)])
    targets = torch.tensor([token for _, ids in batch for token in ids[1:]])
    owners = torch.tensor([number for number, ids in batch for _ in ids[1:]])
    return rows, targets, owners
