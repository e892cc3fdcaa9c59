"""What requests to a server may cost: the limits, the estimate before, the counts after."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from ..errors import OnggiError
from .protocol import Answer, Prompt, Sampling

# Without the server's tokenizer: Gemma's takes 3.6 to 8.4 bytes a token over the probe's 12 languages.
BYTES_PER_TOKEN = 3


@dataclass(frozen=True)
class Options:
    """How to treat the server."""

    concurrency: int = 8
    """Requests in flight at a time."""
    requests_per_minute: float | None = None
    """Most requests a minute, evenly spaced; default: no limit of ours."""
    tokens_per_minute: float | None = None
    """Most tokens a minute, in and out; default: no limit of ours."""
    timeout: float = 300.0
    """Seconds one request may take, from connecting to the last byte."""
    retries: int = 5
    """How often a request that failed is sent again."""
    backoff: float = 1.0
    """Seconds before the first of them; each further pause is about twice as long, up to 60. A server
    that says how long to wait (Retry-After) is heeded instead."""
    patience: float = 300.0
    """Seconds; a server that asks to wait longer ends the run (a quota of the day, say)."""
    give_up: int = 32
    """So many requests in a row that fail for good end the run: the server is gone."""
    input_price: float | None = None
    """Price of a million input tokens, in any currency; default: unknown."""
    output_price: float | None = None
    """Price of a million output tokens."""
    cache: bool = True
    """Take answers that an earlier run has kept of the same request to the same address and name."""
    budget: float | None = None
    """A run that may cost more is refused before it spends; default: no limit."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option."""
        if self.concurrency < 1:
            raise OnggiError(f"concurrency: {self.concurrency} is not a number of requests.")
        for name in ("requests_per_minute", "tokens_per_minute", "timeout", "give_up"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OnggiError(f"{name}: {value} is not above 0.")
        for name in ("retries", "backoff", "patience", "input_price", "output_price", "budget"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise OnggiError(f"{name}: {value} is below 0.")
        if (self.input_price is None) != (self.output_price is None):
            raise OnggiError("input_price and output_price: give both or neither.")
        if self.budget is not None and self.input_price is None:
            raise OnggiError("budget: needs input_price and output_price, which it is reckoned by.")

    def money(self, prompt_tokens: int, tokens: int) -> float | None:
        """The price of so many tokens; None where it is unknown."""
        if self.input_price is None or self.output_price is None:
            return None
        return (prompt_tokens * self.input_price + tokens * self.output_price) / 1e6


@dataclass(frozen=True)
class Estimate:
    """What a run would cost, before anything is sent."""

    requests: int
    """To be sent."""
    cached: int
    """Answered already, free."""
    prompt_tokens: int
    """Approximately."""
    tokens: int
    """At most."""
    money: float | None
    """At most, in the currency of the prices; None where they are unknown."""

    how: ClassVar[str] = (
        f"input: 1 token per {BYTES_PER_TOKEN} bytes of UTF-8, which overstates for tokenizers of many languages "
        f"and understates outside English for tokenizers of English; output: max_tokens for every request"
    )

    def __add__(self, other: Estimate) -> Estimate:
        """Both together."""
        both = self.money is not None and other.money is not None
        return Estimate(
            self.requests + other.requests,
            self.cached + other.cached,
            self.prompt_tokens + other.prompt_tokens,
            self.tokens + other.tokens,
            (self.money or 0.0) + (other.money or 0.0) if both else None,
        )

    def __str__(self) -> str:
        money = "price unknown" if self.money is None else f"at most {self.money:.4g}"
        return (
            f"{self.requests:,} requests ({self.cached:,} more answered already, free), about "
            f"{self.prompt_tokens:,} tokens in, at most {self.tokens:,} out: {money} ({self.how})"
        )


class Estimates(Protocol):
    """What knows the cost of requests before it sends them: the engine for servers."""

    def estimate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Estimate:
        """Of what `generate` would send."""
        ...


class Rehearsal:
    """In an engine's place: sends nothing, answers nothing, and adds up in `estimate` what would be sent.

    What depends on an answer (a second turn) is reckoned as if that were empty.
    """

    def __init__(self, engine: Estimates):
        self._engine = engine
        self.estimate: Estimate | None = None

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """An empty answer to each prompt."""
        more = self._engine.estimate(prompts, sampling)
        self.estimate = more if self.estimate is None else self.estimate + more
        for number in range(len(prompts)):
            yield number, Answer("", "length", 0, 0, 0.0)


@dataclass
class Counters:
    """What an engine's requests have come to so far."""

    options: Options
    requests: int = 0
    """Sent, every retry included."""
    cached: int = 0
    """Answers that cost nothing: on disk, or asked twice."""
    answered: int = 0
    retried: int = 0
    failed: int = 0
    """Requests without an answer after all retries."""
    empty: int = 0
    """Answers without text."""
    approximated: int = 0
    """Answers whose tokens are approximated, since the server gave no usage."""
    prompt_tokens: int = 0
    tokens: int = 0
    latencies: list[float] = field(default_factory=list, repr=False)
    """Seconds of each answered request, pauses and failed attempts apart."""

    @property
    def money(self) -> float | None:
        """Price of the tokens so far; requests that failed half-way may have cost more."""
        return self.options.money(self.prompt_tokens, self.tokens)

    def latency(self, share: float) -> float | None:
        """Seconds within which this share of the answers came; None where none came."""
        ordered = sorted(self.latencies)
        return ordered[max(math.ceil(share * len(ordered)), 1) - 1] if ordered else None

    def summary(self) -> dict[str, Any]:
        """All of it, for a record."""
        facts = {name: value for name, value in vars(self).items() if name not in ("options", "latencies")}
        seconds = {f"p{share}": self.latency(share / 100) for share in (50, 95, 99)}
        return {**facts, "seconds": seconds, "money": self.money}

    def __str__(self) -> str:
        half, most = self.latency(0.5), self.latency(0.95)
        parts = [
            f"{self.answered:,} answers from {self.requests:,} requests, {self.cached:,} cached (free)",
            f"{self.retried:,} retried, {self.failed:,} failed",
            f"{self.prompt_tokens:,} tokens in, {self.tokens:,} out"
            + (f" (approximated for {self.approximated:,})" if self.approximated else ""),
        ]
        if half is not None:
            parts.append(f"{half:.2f} s median, {most:.2f} s at 95%")
        if self.money is not None:
            parts.append(f"cost {self.money:.4g}")
        return "; ".join(parts)


def approximate(texts: Sequence[str]) -> int:
    """About how many tokens these texts are, without the server's tokenizer."""
    return sum(math.ceil(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN) for text in texts)
