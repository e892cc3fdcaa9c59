"""What an engine is to the rooms above: something that scores given text, or generates some, or both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Scored:
    """Log-likelihood of a continuation after a context: nats, summed over its `tokens`; greedy where
    every token was the likeliest.
    """

    logprob: float
    tokens: int
    greedy: bool


# Text to continue, or chat messages {"role", "content"}.
Prompt = str | Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Answer:
    """What came after a prompt. finish: stop, length, filter or error. seconds: latency of the request;
    for a batch on this machine its time by its size.
    """

    text: str
    finish: str
    prompt_tokens: int
    tokens: int
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; temperature 0 takes the likeliest token. stop: texts that end an answer."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


class Scores(Protocol):
    """An engine that gives log-likelihoods."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[int, Scored]]:
        """Each (context, continuation), by number, in whatever order they are ready."""
        ...


class Generates(Protocol):
    """An engine that answers prompts."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """Each answer, by the prompt's number, in whatever order they are ready."""
        ...
