"""A model behind an OpenAI-compatible server, `http://HOST:PORT/v1#NAME`: vLLM, Ollama, llama-server, closed APIs.

Servers are slow, dear and fail in many ways; a run of thousands of requests must come through all
the same. So requests go out several at a time under the limits of the server; what may pass (a
timeout, a full queue, half a reply) is tried again after a pause that doubles; what cannot pass (no
such model, no valid key, no server) ends the run at once with the mend; and every answer is kept on
disk as it comes, so that a rerun pays for nothing twice. A request that failed for good is an answer
whose `finish` is `error`, counted like any other and asked again by the next run.

The key is read from the environment when requests are sent. It is never held by the engine, never
written, and taken out of whatever a server says before anybody sees it.
"""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import json
import os
import queue
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

import httpx2
import openai

from .. import ledger
from ..errors import OnggiError, nearest, one_line
from ..models.references import served
from .answers import Answers, path_for
from .protocol import Answer, Prompt, Sampling, Scored
from .spending import Counters, Estimate, Options, approximate

_MESSAGE_TOKENS = 8  # what a chat template adds to a message
_LONGEST_PAUSE = 60.0  # seconds, of our own accord
_FINISH = {"length": "length", "max_tokens": "length", "content_filter": "filter"}


class _Failure(Exception):
    """A request without a proper reply. `retry`: it may pass; `wait`: the seconds that the server asks for;
    `wrong`: it looks like a wrong address rather than a bad moment.
    """

    def __init__(self, message: str, retry: bool = True, wait: float | None = None, wrong: bool = False):
        super().__init__(message)
        self.retry, self.wait, self.wrong = retry, wait, wrong


class Engine:
    """Answers from one model behind a server. `counters` says what they cost.

    `identity` stands for the model in the cache's keys (default: its address and name), `cache=False`
    keeps no answers. Raises OnggiError for a source that names no model behind a server.
    """

    def __init__(
        self, source: str, options: Options | None = None, *, identity: str | None = None, cache: bool = True
    ):
        at = served(source)
        if at is None:
            raise OnggiError(f"{source}: is no model behind a server (http://HOST:PORT/v1#NAME).")
        self.source, self.at, self.options = source, at, options or Options()
        self.counters = Counters(self.options)
        self._identity = identity or f"{at.url}#{at.name}"
        self._answers = Answers(path_for(self._identity)) if cache and self.options.cache else None
        self._pace = _Pace(self.options)
        self._limit = "max_tokens"  # of a chat, or what the server calls it instead
        self._reached = False
        self._failed_in_row = 0

    def __repr__(self) -> str:
        return f"Engine({self.source!r})"

    def score(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[int, Scored]]:
        """Refused: an API gives the likelihoods of what it wrote itself and of nothing else."""
        raise OnggiError(
            f"{self.source}: a server gives no log-likelihoods of a given text; name the model itself "
            f"(a folder, a .gguf file, a hub id), or use tasks that generate."
        )

    def estimate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Estimate:
        """What `generate` would send and cost; sends nothing."""
        todo: dict[str, int] = {}
        for index, prompt in enumerate(prompts):
            request = self._request(index, prompt, sampling)
            if self._answers is None or request.key not in self._answers:
                todo[request.key] = request.prompt_tokens
        tokens = len(todo) * sampling.max_tokens
        into = sum(todo.values())
        return Estimate(len(todo), len(prompts) - len(todo), into, tokens, self.options.money(into, tokens))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """For each prompt its index and answer: those on disk first, the others as they come.

        A text goes to /completions, messages to /chat/completions. The same request twice is sent once.
        Raises OnggiError for what ends the run: no server there, no such model, a key refused, a
        sampling option that the model does not take, a quota used up. Stopping early cancels what is in flight.
        """
        todo: dict[str, _Request] = {}
        indices: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            request = self._request(index, prompt, sampling)
            known = self._answers.get(request.key) if self._answers is not None else None
            if known:
                self.counters.cached += 1
                yield index, known
            else:
                todo[request.key] = request
                indices.setdefault(request.key, []).append(index)
        if not todo:
            return
        for key, answer in self._send(list(todo.values())):
            if answer.finish != "error":
                self.counters.cached += len(indices[key]) - 1
            for index in indices[key]:
                yield index, answer

    def _request(self, index: int, prompt: Prompt, sampling: Sampling) -> _Request:
        body: dict[str, Any] = {"model": self.at.name}
        if isinstance(prompt, str):
            path, texts = "completions", [prompt]
            body["prompt"] = prompt
        else:
            path, messages = "chat/completions", [dict(message) for message in prompt]
            if not messages or any(
                message.keys() != {"role", "content"} or not all(isinstance(v, str) for v in message.values())
                for message in messages
            ):
                raise OnggiError(f"prompt {index}: is neither a text nor messages of role and content.")
            texts = [message["content"] for message in messages]
            body["messages"] = messages
        body["max_tokens"], body["temperature"] = sampling.max_tokens, sampling.temperature
        if sampling.temperature > 0:
            body["seed"] = sampling.seeds[index] if sampling.seeds else sampling.seed
        if sampling.top_p != 1:
            body["top_p"] = sampling.top_p
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        try:
            key = ledger.digest([self._identity, path, body])
        except UnicodeEncodeError:
            raise OnggiError(f"prompt {index}: holds half a character (a lone surrogate).") from None
        extra = 0 if isinstance(prompt, str) else _MESSAGE_TOKENS * len(texts)
        return _Request(key, path, body, approximate(texts) + extra)

    def _send(self, requests: Sequence[_Request]) -> Iterator[tuple[str, Answer]]:
        """Send all, from an event loop in a thread: the caller may have a loop of its own (a notebook)."""
        results: queue.SimpleQueue[tuple[str, Answer] | None] = queue.SimpleQueue()
        loop = asyncio.new_event_loop()
        work = loop.create_task(self._workers(requests, results))
        work.add_done_callback(lambda _: results.put(None))
        thread = threading.Thread(
            target=lambda: loop.run_until_complete(asyncio.wait([work])), name="onggi-requests", daemon=True
        )
        thread.start()
        try:
            while (result := results.get()) is not None:
                yield result
            work.result()  # raises what ended it early
        finally:
            loop.call_soon_threadsafe(work.cancel)
            thread.join()
            loop.close()

    async def _workers(
        self, requests: Sequence[_Request], results: queue.SimpleQueue[tuple[str, Answer] | None]
    ) -> None:
        key = _key(self.at.url)
        local = _is_local(self.at.url)
        todo = iter(requests)
        client = openai.AsyncOpenAI(
            base_url=self.at.url,
            api_key=key or "none",
            max_retries=0,
            timeout=self.options.timeout,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False) if local else None,  # no proxy
        )

        async def work() -> None:
            for request in todo:
                answer = await self._ask(client, request, key)
                if self._answers is not None and answer.finish != "error":
                    self._answers.put(request.key, answer)
                results.put((request.key, answer))

        try:
            async with client, asyncio.TaskGroup() as group:
                for _ in range(min(self.options.concurrency, len(requests))):
                    group.create_task(work())
        except ExceptionGroup as errors:
            ours, others = errors.split(OnggiError)
            if ours is None or others is not None:
                raise
            raise ours.exceptions[0] from None

    async def _ask(self, client: openai.AsyncOpenAI, request: _Request, key: str) -> Answer:
        """One request, until it is answered or has failed for good."""
        options, counters = self.options, self.counters
        for attempt in range(options.retries + 1):
            cost = request.prompt_tokens + int(request.body["max_tokens"])
            await self._pace.turn(cost)
            started = time.monotonic()
            try:
                answer, exact = await self._once(client, request, key, started)
            except _Failure as failure:
                last = failure
            else:
                self._reached, self._failed_in_row = True, 0
                self._pace.spent(cost, answer.prompt_tokens + answer.tokens)
                counters.answered += 1
                counters.empty += not answer.text
                counters.approximated += not exact
                counters.prompt_tokens += answer.prompt_tokens
                counters.tokens += answer.tokens
                counters.latencies.append(answer.seconds)
                return answer
            if last.wrong and not self._reached:
                raise OnggiError(f"{self.source}: {last}")
            if last.wait is not None and last.wait > options.patience:
                raise OnggiError(
                    f"{self.source}: asks to wait {last.wait:.0f} s ({last}); run again then, what was answered is kept."
                )
            if not last.retry or attempt == options.retries:
                break
            counters.retried += 1
            pause = min(options.backoff * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.5, 1)
            if last.wait is not None:
                self._pace.hold(last.wait)  # all of them wait, and then not all at the same moment
                pause *= 0.1
            await asyncio.sleep(pause)
        counters.failed += 1
        self._failed_in_row += last.retry
        if self._failed_in_row >= options.give_up:
            raise OnggiError(
                f"{self.source}: {self._failed_in_row} requests in a row have failed, the last one: {last}; "
                f"run again when the server is well, what was answered is kept."
            )
        return Answer("", "error", 0, 0, time.monotonic() - started, str(last))

    async def _once(
        self, client: openai.AsyncOpenAI, request: _Request, key: str, started: float
    ) -> tuple[Answer, bool]:
        """One attempt: the answer, and whether its tokens are the server's count. Raises _Failure."""
        body, limit = dict(request.body), self._limit
        kind: Any = client.completions
        if request.path != "completions":
            kind = client.chat.completions
            body[limit] = body.pop("max_tokens")
        self.counters.requests += 1
        try:
            async with asyncio.timeout(self.options.timeout):
                reply = await kind.with_raw_response.create(**body)
        except openai.APIStatusError as error:
            # OpenAI's newer models.
            if error.param == limit == "max_tokens" and request.path != "completions":
                self._limit = "max_completion_tokens"
                return await self._once(client, request, key, started)
            return await self._refused(client, request, key, started, error)
        except (TimeoutError, openai.APITimeoutError):
            raise _Failure(f"no answer within {self.options.timeout:g} s") from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ or error
            words = _hidden(one_line(cause) or type(cause).__name__, key)
            if isinstance(cause, httpx2.ConnectError):
                raise _Failure(f"cannot be reached ({words}); is the server running?", wrong=True) from None
            raise _Failure(f"the connection broke off ({words})") from None
        return self._read(reply.content, request, key, time.monotonic() - started)

    def _read(self, content: bytes, request: _Request, key: str, seconds: float) -> tuple[Answer, bool]:
        """The answer in the body of a good reply."""
        if _is_page(content):
            raise _Failure(
                "answers with a web page, not JSON; is this the address of an API (often it ends in /v1)?",
                wrong=True,
            )
        try:
            data = json.loads(content)
        except ValueError:
            raise _Failure(f"the reply is cut short or no JSON ({len(content)} bytes)") from None
        try:
            if data.get("error"):
                raise _Failure(_words(data["error"], key))
            choice = data["choices"][0]
            if choice.get("finish_reason") == "error":
                raise _Failure(_words(choice.get("error") or "the server failed half-way", key))
            if request.path == "completions":
                text = choice["text"]
            else:
                text = choice["message"].get("content") or choice["message"].get("refusal") or ""
            finish = _FINISH.get(choice.get("finish_reason"), "stop")
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        except (AttributeError, KeyError, IndexError, TypeError):
            raise _Failure(f"the reply holds no answer ({_words(data, key)})") from None
        text = _hidden(text, key)
        usage = data.get("usage")
        into, out = request.prompt_tokens, approximate([text])
        exact = isinstance(usage, dict) and all(
            isinstance(usage.get(name), int) for name in ("prompt_tokens", "completion_tokens")
        )
        if exact:
            into, out = usage["prompt_tokens"], usage["completion_tokens"]
        return Answer(text, finish, into, out, seconds), exact

    async def _refused(
        self,
        client: openai.AsyncOpenAI,
        request: _Request,
        key: str,
        started: float,
        error: openai.APIStatusError,
    ) -> tuple[Answer, bool]:
        """What a status other than 2xx means: a failure, the end of the run, or something to send otherwise."""
        status, code, parameter = error.status_code, error.code or "", error.param or ""
        words = _words(error.body, key)
        said = f"status {status}: {words}" if words else f"status {status}"
        if status == 401 or (status == 403 and not self._reached):
            raise OnggiError(f"{self.source}: {_no_entry(self.at.url, key)} ({said}).")
        if status == 402 or code == "insufficient_quota":
            raise OnggiError(f"{self.source}: the account has nothing left to spend ({said}).")
        if status in (404, 405) or code == "model_not_found":
            await self._not_found(client, request, said)
        if code == "content_filter":
            return Answer("", "filter", 0, 0, time.monotonic() - started), True
        if status in (400, 422) and parameter == "temperature" and request.body.get("temperature") == 0.0:
            # Models that think take their own temperature only; the nearest to greedy that there is.
            del request.body["temperature"]
            return await self._once(client, request, key, started)
        if status in (400, 422) and parameter in ("temperature", "top_p", "seed", "stop"):
            raise OnggiError(
                f"{self.source}: does not take {parameter}={request.body.get(parameter)} ({said}); "
                f"set another {parameter}."
            )
        passing = status in (408, 409, 425, 429) or (status >= 500 and status != 501)
        raise _Failure(said, retry=passing, wait=_wait(error.response.headers) if passing else None)

    async def _not_found(self, client: openai.AsyncOpenAI, request: _Request, said: str) -> NoReturn:
        """End the run with what the server does have."""
        try:
            async with asyncio.timeout(min(self.options.timeout, 30)):
                listing: Any = await client.models.with_raw_response.list()
            names = [str(model["id"]) for model in json.loads(listing.content)["data"]]
        except (TimeoutError, openai.OpenAIError, httpx2.HTTPError, ValueError, KeyError, TypeError):
            raise OnggiError(
                f"{self.source}: no API at {self.at.url} ({said}); the address is that of the API, often ending in /v1."
            ) from None
        if self.at.name in names:
            kind, other = (
                ("texts to continue", "chat") if request.path == "completions" else ("chat", "texts")
            )
            raise OnggiError(
                f"{self.source}: the server offers no {request.path} for this model, so no {kind}; use {other}."
            )
        raise OnggiError(
            f"{self.source}: the server has no model {self.at.name!r}.{nearest(self.at.name, names)}"
        )


@dataclass(frozen=True)
class _Request:
    key: str
    path: str
    body: dict[str, Any]
    prompt_tokens: int  # approximately


class _Pace:
    """Turns for requests, so spaced that no minute holds more than the limits."""

    def __init__(self, options: Options):
        self._per_request = 60 / options.requests_per_minute if options.requests_per_minute else 0.0
        self._per_token = 60 / options.tokens_per_minute if options.tokens_per_minute else 0.0
        self._request = self._token = self._held = 0.0  # no turn before these times

    async def turn(self, tokens: int) -> None:
        """Wait until a request of so many tokens may go out."""
        while (wait := max(self._request, self._token, self._held) - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        now = time.monotonic()
        self._request = now + self._per_request
        self._token = now + self._per_token * tokens

    def spent(self, reserved: int, tokens: int) -> None:
        """A request came to `tokens`, not the `reserved`."""
        self._token -= self._per_token * (reserved - tokens)

    def hold(self, seconds: float) -> None:
        """No turn for so long: the server has said so."""
        self._held = max(self._held, time.monotonic() + seconds)


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _key(url: str) -> str:
    """The key for the server at `url`, empty where there is none.

    Its own (`ONGGI_API_KEY_API_EXAMPLE_COM` for api.example.com) comes before the one for all. `OPENAI_API_KEY`
    may be another server's: it goes nowhere in the clear, except to this machine.
    """
    host = (urlsplit(url).hostname or "").upper()
    name = "ONGGI_API_KEY_" + "".join(letter if letter.isalnum() else "_" for letter in host)
    if not os.environ.get(name):
        name = "ONGGI_API_KEY"
    if not os.environ.get(name) and (url.startswith("https://") or _is_local(url)):
        name = "OPENAI_API_KEY"
    key = os.environ.get(name, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise OnggiError(f"{name}: holds characters that no key has.")
    return key


def _no_entry(url: str, key: str) -> str:
    if key:
        return "the server refuses the key in the environment (ONGGI_API_KEY, else OPENAI_API_KEY)"
    if os.environ.get("OPENAI_API_KEY"):
        return (
            f"asks for a key; OPENAI_API_KEY is not sent in the clear, set ONGGI_API_KEY if {url} may have it"
        )
    return "asks for a key; set ONGGI_API_KEY or OPENAI_API_KEY in the environment"


def _hidden(text: str, key: str) -> str:
    """`text` without the key, should the server have repeated it."""
    return text.replace(key, "[key]") if key else text


def _is_page(content: bytes) -> bool:
    return content.lstrip()[:1] == b"<"


def _words(body: object, key: str) -> str:
    """What a server says in the body of an error, in at most 200 characters of one line."""
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    text = _hidden(one_line(body if body is not None else ""), key)
    if text.startswith("<"):
        return "a web page"
    return text if len(text) <= 200 else text[:199] + "…"


def _wait(headers: httpx2.Headers) -> float | None:
    """Seconds that the server asks to wait: a number, or a date (RFC 9110, 10.2.3)."""
    try:
        if "retry-after-ms" in headers:
            return max(float(headers["retry-after-ms"]) / 1000, 0.0)
        said = headers.get("retry-after", "")
        try:
            return max(float(said), 0.0)
        except ValueError:
            return max(email.utils.parsedate_to_datetime(said).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None
