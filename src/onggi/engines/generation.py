"""Answers of a local decoder, many prompts at a time.

Prompts of about one length stand in one batch, padded on the left where a mask hides it; a row
that has ended leaves the batch, and with it its keys and values. What a row draws depends on the
seed and its own prompt, never on who else is asked: a run that goes on asks for fewer, and draws the same.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import OnggiError
from ..text.chat import Template
from ..text.tokens import Stream, Tokens
from .protocol import Answer, Prompt, Sampling, as_text

if TYPE_CHECKING:
    from .transformers import Engine

# Tokens of prompts in one batch, padding included, and rows: each new token reads all weights once
# for all rows together.
_TOKENS, _ROWS = 4096, 32
# Nats below the likeliest token, within which others are looked at first.
_NEAR = 12.0


def choose(logits: Tensor, temperature: float, top_p: float, draw: torch.Generator) -> int:
    """The next token, by logits (vocab,) on the CPU."""
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits / temperature
    if top_p >= 1:
        return int(torch.multinomial(scaled.double().softmax(-1), 1, generator=draw))
    scaled = scaled - scaled.logsumexp(0)
    # To sort a large vocabulary takes longer than the model: nearly always those near the likeliest hold what is wanted.
    looked = (scaled > scaled.max() - _NEAR).nonzero().squeeze(1)
    if float(scaled[looked].double().exp().sum()) < top_p:
        looked = torch.arange(len(scaled))
    values, order = scaled[looked].sort(descending=True)
    chances = values.double().exp()
    # The likeliest token stays whatever top_p is: nothing stands before it.
    kept = chances.masked_fill(chances.cumsum(-1) - chances >= top_p, 0.0)
    return int(looked[order[torch.multinomial(kept, 1, generator=draw)]])


def prompt_ids(prompt: Prompt, tokens: Tokens, template: Template | None) -> list[int]:
    """A prompt as token ids: messages through the chat template, text as it stands after the start token.

    A base model has no template: it continues the text of the messages, one below the other.
    """
    if isinstance(prompt, str):
        ids = tokens.encode(prompt)
        return ids if ids[:1] == [tokens.prefix] else [tokens.prefix, *ids]
    if template is not None:
        return template.encode(prompt)
    return prompt_ids(as_text(prompt), tokens, None)


@dataclass
class _Row:
    """One prompt at work. finish: why it ended, None while it goes on."""

    number: int
    ids: list[int]
    stream: Stream
    draw: torch.Generator
    text: str = ""
    tokens: int = 0
    finish: str | None = None

    def take(self, token: int, ends: frozenset[int], sampling: Sampling, window: int | None) -> None:
        """Take in the next token; sets `finish` where it is the last."""
        if token in ends:
            self.text += self.stream.end()
            self.finish = "stop"
        else:
            self.tokens += 1
            self.text += self.stream.push(token)
            if self.tokens >= sampling.max_tokens or (window and len(self.ids) + self.tokens >= window):
                self.text += self.stream.end()
                self.finish = "length"
        found = [place for stop in sampling.stop if (place := self.text.find(stop)) >= 0]
        if found:
            self.text, self.finish = self.text[: min(found)], "stop"


def generate(
    engine: Engine, prompts: Sequence[Prompt], sampling: Sampling, template: Template | None
) -> Iterator[tuple[int, Answer]]:
    """Each answer by its prompt's number, as it ends. Raises OnggiError for a prompt without tokens or
    one that leaves no room in the window.
    """
    encoded = [prompt_ids(prompt, engine.tokens, template) for prompt in prompts]
    for ids in encoded:
        if engine.window and len(ids) >= engine.window:
            raise OnggiError(
                f"a prompt of {len(ids)} tokens leaves no room in the window of {engine.window}."
            )
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    while order:
        batch = [order.pop()]  # the longest first: what does not fit in memory fails at once
        width = len(encoded[batch[0]])
        while order and len(batch) < _ROWS and (len(batch) + 1) * width <= _TOKENS:
            batch.append(order.pop())
        rows = [_Row(i, encoded[i], Stream(engine.tokens), _draw(sampling, i, encoded[i])) for i in batch]
        yield from _batch(engine, rows, sampling)


def _draw(sampling: Sampling, number: int, ids: Sequence[int]) -> torch.Generator:
    if sampling.seeds:
        return torch.Generator().manual_seed(sampling.seeds[number])
    key = hashlib.blake2b(repr((sampling.seed, list(ids))).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(key))


@torch.no_grad()
def _batch(engine: Engine, rows: list[_Row], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
    started, size = time.monotonic(), len(rows)
    width = max(len(row.ids) for row in rows)
    ids = torch.full((size, width), engine.tokens.prefix)
    mask = torch.zeros((size, width), dtype=torch.int64)
    for k, row in enumerate(rows):
        ids[k, width - len(row.ids) :] = torch.tensor(row.ids)
        mask[k, width - len(row.ids) :] = 1
    cache: Any = None
    while rows:
        positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        out = engine.body(
            input_ids=ids.to(engine.device),
            # Without padding none is needed, and the faster kernel serves.
            attention_mask=None if bool(mask.all()) else mask.to(engine.device),
            position_ids=positions.to(engine.device),
            cache=cache,
            use_cache=True,
        )
        cache = out.cache
        if cache is None:
            raise OnggiError(f"{engine.folder}: {type(engine.model).__name__} keeps no cache to go on from.")
        logits = engine.head.logits(out.last_hidden_state[:, -1]).cpu()  # (rows, vocab)
        chosen = [
            choose(logits[k], sampling.temperature, sampling.top_p, row.draw) for k, row in enumerate(rows)
        ]
        for row, token in zip(rows, chosen, strict=True):
            row.take(token, engine.ends, sampling, engine.window)
            if row.finish:
                spent = (time.monotonic() - started) / size
                yield row.number, Answer(row.text, row.finish, len(row.ids), row.tokens, spent)
        left = [k for k, row in enumerate(rows) if row.finish is None]
        if left and len(left) < len(rows):
            cache.batch_select_indices(torch.tensor(left, device=engine.device))
        rows, mask = [rows[k] for k in left], mask[left]
        ids = torch.tensor([[chosen[k]] for k in left])
        mask = torch.cat([mask, torch.ones((len(left), 1), dtype=torch.int64)], dim=1)
