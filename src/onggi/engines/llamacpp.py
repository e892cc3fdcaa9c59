"""GGUF files as they are, through llama.cpp in this process.

`xllamacpp` brings llama.cpp's own server as a wheel; it listens on this machine only, and what asks
it is the engine for servers. So a `.gguf` is run by the code that will serve it, on its own grid and
with its own activations of 8 bits, not dequantised. Several requests share a batch there: the last
bits of the logits, and now and then a greedy token, depend on which ones did.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import ledger
from ..errors import OnggiError, one_line
from ..models.gguf.container import File
from . import server
from .protocol import Answer, Prompt, Sampling, as_text

LOCAL = server.Options(concurrency=4, timeout=3600.0, retries=1)
_LOADED_WITHIN = 60.0  # seconds, from a model in memory to a server that answers


class Engine(server.Engine):
    """Answers from a GGUF file that `running` has opened."""

    def __init__(self, source: str, file: File, options: server.Options, identity: str, cache: bool):
        super().__init__(source, options, identity=identity, cache=cache)
        self.path = file.path
        self.chats = bool(file.metadata.get("tokenizer.chat_template"))

    def __repr__(self) -> str:
        return f"Engine({str(self.path)!r})"

    def score(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[int, server.Scored]]:
        """Refused: see `llamascores`."""
        raise OnggiError(
            f"{self.path}: llama.cpp's server gives no log-likelihoods of a given text; its library does "
            f"(pip install llama-cpp-python compiles it in about five minutes)."
        )

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """As of any server. Where the file has no chat template llama.cpp would make up one, and the model
        has never seen it: it continues the messages' text, as every base model here does.
        """
        if not self.chats:
            prompts = [as_text(prompt) for prompt in prompts]
        return super().generate(prompts, sampling)

    def tokenize(self, text: str, *, start: bool = True) -> list[int]:
        """Token ids of the text as llama.cpp cuts it; `start`: with the start token, where the file asks for it."""
        return [int(i) for i in self._post("/tokenize", content=text, add_special=start)["tokens"]]

    def likeliest(self, ids: Sequence[int], count: int) -> list[tuple[int, float]]:
        """The `count` likeliest tokens after `ids`, each with its log-probability, before any sampling."""
        # The server tells nothing of a token that ends the text or is half a character. A bias makes it sample
        # another one; the probabilities that it tells are those before the bias.
        bias = [[self._whole, 1000.0]]
        reply = self._post(
            "/completion", prompt=list(ids), n_predict=1, n_probs=count, temperature=0, logit_bias=bias
        )
        found = reply["completion_probabilities"][0]["top_logprobs"]
        return [(int(entry["id"]), float(entry["logprob"])) for entry in found]

    @functools.cached_property
    def _whole(self) -> int:
        """A token that is a whole character."""
        return self.tokenize("x", start=False)[-1]

    def _post(self, path: str, **body: object) -> Any:
        """What the server answers beside /v1. Raises OnggiError where it does not."""
        url = self.at.url.removesuffix("/v1") + path
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=self.options.timeout) as reply:
                return json.load(reply)
        except OSError as error:
            raise OnggiError(f"{self.path}: llama.cpp does not answer ({one_line(error)}).") from error


def cores() -> int:
    """Cores that this process may use, or is told to (`OMP_NUM_THREADS`)."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told):
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require(wanting: str) -> Any:
    """The module xllamacpp. Raises OnggiError where it is not installed; wanting: what it is for."""
    try:
        import xllamacpp
    except ImportError:
        raise OnggiError(
            f"{wanting}: running a .gguf as it is needs xllamacpp; pip install 'onggi[llama]' brings it."
        ) from None
    return xllamacpp


@contextlib.contextmanager
def running(
    path: Path,
    options: server.Options = LOCAL,
    *,
    context: int = 4096,
    threads: int | None = None,
    cache: bool = True,
) -> Iterator[Engine]:
    """`with running(path) as engine:` loads the model and serves it until the block ends.

    `context`: tokens of prompt and answer, for each of `options.concurrency` requests at a time (or the
    model's own window, where that is shorter); `threads`: default all cores. Answers are kept by the
    file's contents. Raises OnggiError where xllamacpp is not installed, the file is damaged, or
    llama.cpp cannot run it.
    """
    file = File(path)
    xllamacpp = require(str(path))
    window = file.metadata.get(f"{file.metadata.get('general.architecture')}.context_length")
    context = min(context, window) if isinstance(window, int) else context
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel = context * options.concurrency, options.concurrency
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads or cores()
    params.warmup, params.ui, params.verbosity = False, False, -1
    # Nothing but what Sampling says: llama.cpp's own defaults cut the tail off.
    params.sampling.top_k, params.sampling.top_p, params.sampling.min_p = 0, 1.0, 0.0
    try:
        at = xllamacpp.Server(params)
    except Exception as error:  # the wheel raises bare RuntimeErrors
        raise OnggiError(f"{path}: llama.cpp cannot run this file ({one_line(error)}).") from error
    try:
        _wait(at.listening_address, path)
        version = importlib.metadata.version("xllamacpp")
        identity = f"gguf:{ledger.sha256(path)}:{version}:{context}#{path.stem}"
        yield Engine(f"{at.listening_address}/v1#{path.stem}", file, options, identity, cache)
    finally:
        del at  # stops it


def _wait(address: str, path: Path) -> None:
    """Until the server is well."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _LOADED_WITHIN
    while True:
        with contextlib.suppress(OSError), opener.open(f"{address}/health", timeout=5):
            return
        if time.monotonic() > deadline:
            raise OnggiError(f"{path}: llama.cpp has not answered for {_LOADED_WITHIN:.0f} s.")
        time.sleep(0.05)
