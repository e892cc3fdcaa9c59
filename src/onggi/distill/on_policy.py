"""What the student writes itself, for its teacher to judge: it learns where it would go, not only where the text went.

A share of the sequences of a step keeps its first half, and the student draws the second (GKD, arXiv 2306.13649,
algorithm 1). The loss is the same divergence, at what was drawn. Small students drift into another language, and a
teacher that scores such text scores it as it stands: what is not in the language of its sequence is left out, and
counted by language.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..engines.transformers import head_of
from ..text import identify
from ..text.tokens import Tokens
from ..train.tokens import Batch


@dataclasses.dataclass
class Writing:
    """`Writing(…)(model, batch)`: the batch with some of its rows written on by the model.

    share: of the rows of a batch. languages: what the numbers of a batch's languages stand for. written, strayed:
    rows so far by language, and those of them that were left out.
    """

    share: float
    tokens: Tokens
    languages: Sequence[str]
    written: Counter[str] = dataclasses.field(default_factory=Counter)
    strayed: Counter[str] = dataclasses.field(default_factory=Counter)

    @torch.no_grad()
    def __call__(self, model: Any, batch: Batch) -> Batch:
        """Draws with torch's own random numbers, which checkpoints keep: a run that goes on draws the same. Rows too
        short for a half, and all of a batch of packed documents, stay as they are.
        """
        ids, weights = batch["ids"].clone(), batch["weights"].clone()
        first = ids.shape[1] // 2
        # Whose text goes on in the second half; chosen anew for each batch.
        long = (weights[:, -1] > 0).nonzero().flatten()
        count = int(torch.binomial(torch.tensor(float(len(long))), torch.tensor(self.share)))
        rows = long[torch.randperm(len(long))[:count].to(long.device)]
        if not len(rows) or first < 2 or "positions" in batch:
            return batch
        ids[rows, first:] = draw(model, ids[rows, :first], ids.shape[1] - first)
        for row in rows.tolist():
            language = self.languages[int(batch["languages"][row, 0])]
            total = weights[row].sum()
            weights[row] = 0
            self.written[language] += 1
            if self._strays(ids[row, first:].tolist(), language):
                self.strayed[language] += 1
            else:
                weights[row, first:] = total / (ids.shape[1] - first)
        return {**batch, "ids": ids, "weights": weights}

    def _strays(self, ids: list[int], language: str) -> bool:
        """Whether what was written is in another language, as far as its letters tell."""
        text = self.tokens.tokenizer.decode(ids, skip_special_tokens=True).strip("\ufffd")
        found = identify.identify(text, expected=language).language
        return found is not None and not identify.alike(found, language)


def draw(model: Any, ids: Tensor, count: int) -> Tensor:
    """(rows, count) tokens that the model draws, at temperature 1, after `ids`, (rows, length)."""
    body = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    head, cache, given, drawn = head_of(model), None, ids, []
    for _ in range(count):
        out = body(input_ids=given, cache=cache, use_cache=True)
        cache = out.cache
        chances = head.logits(out.last_hidden_state[:, -1]).softmax(-1)  # (rows, vocab)
        given = torch.multinomial(chances.cpu(), 1).to(ids.device)
        drawn.append(given)
    return torch.cat(drawn, 1)
