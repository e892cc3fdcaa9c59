"""Exact log-likelihoods from a GGUF file as it is, through llama-cpp-python.

llama.cpp's server tells the likeliest few tokens and never the likelihood of a given one, so this goes
to the library itself. llama-cpp-python has no wheel and compiles for some minutes, which is why it is
never needed by anything else. Pairs are taken in the order of their tokens: what one shares with the
one before stays in llama.cpp's memory and is not computed again. Its kernels round activations to 8
bits and differ with the number of positions run together, so a score moves by up to 0.14 nats (Gemma 3
270M, Q4_K_M) with what was shared; it is the same for the same list of pairs.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OnggiError
from ..models.gguf.container import File
from ..text.tokens import Tokens
from .llamacpp import cores
from .protocol import Scored
from .scoring import encode

# Positions decoded at a time; the logits of all of them may be wanted at once: 1 MB each for Gemma.
_BATCH = 128


class Scorer:
    """A GGUF file in memory, for scores. Use as a context manager, or `close` it.

    `tokens`: the tokenizer of the file's dequantised folder (`references.resolve`), the same for every
    engine. `context`: tokens of the longest pair. Raises OnggiError where llama-cpp-python is not
    installed or llama.cpp cannot run the file.
    """

    def __init__(self, path: Path, tokens: Tokens, *, context: int = 4096, threads: int | None = None):
        try:
            import llama_cpp
        except ImportError:
            raise OnggiError(
                f"{path}: exact scores of a .gguf as it is need llama-cpp-python; "
                f"pip install llama-cpp-python compiles it in about five minutes."
            ) from None
        self.path, self.tokens, self._llama = path, tokens, llama_cpp
        window = File(path).metadata
        trained = window.get(f"{window.get('general.architecture')}.context_length")
        self.context = min(context, trained) if isinstance(trained, int) else context
        llama_cpp.llama_log_set(_quiet(llama_cpp), None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise OnggiError(f"{path}: llama.cpp cannot run this file.")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = self.context, _BATCH, _BATCH
        params.n_threads = params.n_threads_batch = threads or cores()
        params.swa_full = True  # a window's memory would forget what the next pair shares
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise OnggiError(f"{path}: llama.cpp has no memory for a context of {self.context} tokens.")
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self._width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._held: list[int] = []  # the tokens in llama.cpp's memory

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back."""
        self._llama.llama_batch_free(self._batch)
        self._llama.llama_free(self._context)
        self._llama.llama_model_free(self._model)

    def score(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[int, Scored]]:
        """For each (context, continuation) its index and score, in the order of their tokens.

        Both are encoded as `scoring.encode` does for every engine. A context that is too long loses its
        beginning; OnggiError where the continuation alone is too long.
        """
        encoded = [
            self._cut(ids, start, continuation)
            for (ids, start), (_, continuation) in zip(encode(self.tokens, pairs), pairs, strict=True)
        ]
        for index in sorted(range(len(pairs)), key=lambda i: encoded[i][0]):
            yield index, self._score(*encoded[index])

    def _cut(self, ids: list[int], start: int, continuation: str) -> tuple[list[int], int]:
        lost = max(len(ids) - 1 - self.context, 0)  # the last token is not run, the start token is
        if lost > start - 1:
            raise OnggiError(
                f"a continuation of {len(ids) - start} tokens ({continuation[:40]!r} …) "
                f"exceeds the context of {self.context}."
            )
        return [ids[0], *ids[1 + lost :]], start - lost

    def _score(self, ids: list[int], start: int) -> Scored:
        """`start`: where the continuation begins in `ids`, 1 or more."""
        llama, total, greedy = self._llama, 0.0, True
        # The token before the continuation is always run: it predicts the first of it.
        shared = 0
        while shared < min(len(self._held), start - 1) and self._held[shared] == ids[shared]:
            shared += 1
        memory = llama.llama_get_memory(self._context)
        if not llama.llama_memory_seq_rm(memory, 0, shared, -1):
            llama.llama_memory_clear(memory, True)
            shared = 0
        self._held = ids[:shared]
        for first in range(shared, len(ids) - 1, _BATCH):
            last = min(first + _BATCH, len(ids) - 1)
            wanted = range(max(first, start - 1), last)
            self._decode(ids[first:last], first, wanted)
            for position in wanted:
                row = llama.llama_get_logits_ith(self._context, position - first)
                logits = np.ctypeslib.as_array(row, shape=(self._width,)).astype(np.float64)
                target, top = ids[position + 1], logits.max()
                total += float(logits[target] - top - np.log(np.exp(logits - top).sum()))
                greedy = greedy and int(logits.argmax()) == target
        return Scored(total, len(ids) - start, greedy)

    def logits(self, ids: Sequence[int], wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """For each position `wanted` of `ids`, the start token among them, in their order: the position, and the
        logits (vocabulary,) fp32 of what comes after it. OnggiError where the context is too short.
        """
        ids = list(ids[: max(wanted) + 1])
        if len(ids) > self.context:
            raise OnggiError(f"{self.path}: {len(ids)} tokens exceed the context of {self.context}.")
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        self._held = []
        for first in range(0, len(ids), _BATCH):
            last = min(first + _BATCH, len(ids))
            here = sorted({position for position in wanted if first <= position < last})
            self._decode(ids[first:last], first, here)
            for position in here:
                row = self._llama.llama_get_logits_ith(self._context, position - first)
                yield position, np.ctypeslib.as_array(row, shape=(self._width,)).copy()

    def _decode(self, ids: list[int], first: int, wanted: Container[int]) -> None:
        batch: Any = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, first + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = first + i in wanted
        if self._llama.llama_decode(self._context, batch) != 0:
            raise OnggiError(f"{self.path}: llama.cpp failed on {len(ids)} tokens at position {first}.")
        self._held += ids


_SILENCE: list[Any] = []  # llama.cpp keeps a pointer to the function, which has to live as long


def _quiet(llama_cpp: Any) -> Any:
    """A log that says nothing."""
    if not _SILENCE:
        _SILENCE.append(llama_cpp.llama_log_callback(lambda _level, _text, _data: None))
    return _SILENCE[0]
