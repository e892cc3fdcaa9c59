"""What an engine gives, whatever runs the model: likelihoods of texts, and answers to prompts.

The rooms above ask through these two protocols and never for a kind of engine. Results come as they
are done, each with the index of what was asked, so that a long run can be kept item by item.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Prompt = str | Sequence[Mapping[str, str]]
"""A text to continue, or a chat: messages of `role` (system, user, assistant) and `content`."""


def as_text(prompt: Prompt) -> str:
    """What a base model, which has no chat template, continues: the messages, one below the other."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


@dataclass(frozen=True)
class Scored:
    """The log-likelihood of a continuation after its context."""

    logprob: float
    """Nats, summed over the continuation's tokens."""
    tokens: int
    """Of the continuation."""
    greedy: bool
    """Every token of it was the likeliest."""


@dataclass(frozen=True)
class Answer:
    """What a model said to one prompt."""

    text: str
    finish: str
    """`stop`, `length` (cut at `max_tokens`), `filter` (withheld by the server) or `error`."""
    prompt_tokens: int
    tokens: int
    """Generated, as the model counts them."""
    seconds: float
    """Latency of this request; in a local batch, the batch's time over its size."""
    error: str | None = None
    """Why there is no answer, where `finish` is `error`."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn."""

    max_tokens: int = 256
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    seeds: tuple[int, ...] = ()
    """One of each prompt, where what it draws must not hang on who else is asked; without, `seed` for all."""


class Scores(Protocol):
    """An engine that knows how likely a given text is."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[int, Scored]]:
        """For each (context, continuation) its index and score, in any order."""
        ...


class Generates(Protocol):
    """An engine that answers."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """For each prompt its index and answer, as they are done."""
        ...
