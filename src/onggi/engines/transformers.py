"""Models in Hugging Face layout, through transformers: hidden states and the head apart, and generation.

The logits are not computed here: what predicts each token is its hidden state, and `head/` turns
states into scores a tile of the vocabulary at a time. The split is checked on the model itself
when it is loaded, so that an architecture which does something else to its logits is refused
rather than scored wrongly. Everything is fp32: on a CPU bf16 products return bf16, which alone
costs as much KL as 8-bit weights do (DESIGN §4).
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import OnggiError, one_line
from ..head import Head
from ..models.checkpoint import Checkpoint, finite
from ..text.chat import TURN_ENDS, Template, template
from ..text.tokens import Tokens, shared
from . import generation, scoring
from .generation import choose
from .protocol import Answer, Prompt, Sampling, Scored

# Positions run through the model in one batch, padding included.
_BATCH = 4096


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def memory_of(device: torch.device) -> int:
    """Bytes of memory that a GPU has, or this machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Engine:
    """A loaded model: `tokens`, `body` (all but the head), `head`, `states` of texts, and what it would
    `generate`.

    window: the most positions it takes, None where it has no such bound. ends: ids that end an answer. plain: set it
    for a model that has not learnt its chat template yet: chats are then asked as text.

    Raises OnggiError where the folder is not a sound checkpoint, a weight is not finite, or the
    logits are not those of `head` over the last hidden state.
    """

    def __init__(self, folder: Path, device: torch.device | None = None):
        from transformers import AutoModelForCausalLM

        # Refuses code, pickles and damaged files with the reason, before transformers sees them.
        Checkpoint(folder)
        self.folder, self.device = folder, device or default_device()
        self.plain = False
        try:
            with no_bars():
                model: Any
                model, loading = AutoModelForCausalLM.from_pretrained(
                    folder,
                    dtype=torch.float32,
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
                )
        except Exception as error:  # the library raises many kinds for what it cannot load
            raise OnggiError(f"{folder}: transformers cannot load this model ({one_line(error)}).") from error
        if loading["missing_keys"]:  # transformers makes random ones
            raise OnggiError(f"{folder}: holds no tensor named {sorted(loading['missing_keys'])[0]}.")
        for parameter in model.parameters():
            # Experts that were packed are unpacked to their scales' type, whatever was asked for.
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()
        # Only now: while weights are converted, the file that they come from is in memory as well.
        self.tokens = shared(folder)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.body = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        self.head = head_of(model)
        self.window: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.ends = _ends(model, self.tokens)
        with no_bars():
            self._check()

    @torch.no_grad()
    def _check(self) -> None:
        """One short text through both ways: also unpacks weights that unpack at the first use."""
        ids = [self.tokens.prefix, *self.tokens.encode("onggi 옹기 ឱ")][:8]
        whole = self.model(torch.tensor([ids], device=self.device), use_cache=False).logits[0].float()
        for name, tensor in self.model.named_parameters():
            if tensor.is_floating_point() and not finite(tensor):
                raise OnggiError(f"{self.folder}: tensor {name} holds NaN or infinite values.")
        own = self.head.logits(self._run([ids])[0])
        if own.shape != whole.shape or not torch.allclose(own, whole, rtol=1e-3, atol=1e-3):
            raise OnggiError(
                f"{self.folder}: {type(self.model).__name__} computes its logits in a way onggi does not know."
            )

    def _run(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        width = max(len(ids) for ids in sequences)
        batch = torch.full((len(sequences), width), self.tokens.prefix, device=self.device)
        for i, ids in enumerate(sequences):
            batch[i, : len(ids)] = torch.tensor(ids, device=self.device)
        # Padding stands on the right, where a causal model cannot see it: no mask is needed.
        states = self.body(input_ids=batch, use_cache=False).last_hidden_state
        return [states[i, : len(ids)] for i, ids in enumerate(sequences)]

    def score(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[int, Scored]]:
        """Log-likelihoods of continuations after contexts (see `scoring.encode`), what they share
        computed once; by number, in the order they are ready. A context too long for the window is cut
        at its beginning. Raises OnggiError where a continuation alone is too long.
        """
        sequences = [
            scoring.fit(ids, start, self.window) for ids, start in scoring.encode(self.tokens, pairs)
        ]
        yield from self._scorer.score(sequences)

    def score_ids(self, sequences: Sequence[tuple[Sequence[int], int]]) -> Iterator[tuple[int, Scored]]:
        """The same of token ids: each sequence (ids, start), the start token among the ids, from `start` on."""
        yield from self._scorer.score(sequences)

    @functools.cached_property
    def _scorer(self) -> scoring.Scorer:
        return scoring.Scorer(self.body, self.head, self.model.config, self.device)

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """For each text the hidden states that predict its tokens, (tokens, hidden) fp32, and the
        token ids, (tokens,) int64; both on the CPU. The start token is seen but not predicted.
        Raises OnggiError for a text longer than the model's window.
        """
        encoded = [self.tokens.encode(text) for text in texts]
        for text, ids in zip(texts, encoded, strict=True):
            if self.window and len(ids) > self.window:
                raise OnggiError(
                    f"a passage of {len(ids)} tokens ({text[:40]!r} …) exceeds the window of {self.window}."
                )
            if not ids:
                raise OnggiError(f"a passage has no tokens ({text[:40]!r}).")
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        results: dict[int, tuple[Tensor, Tensor]] = {}
        while order:
            batch = [order.pop()]
            while order and (len(batch) + 1) * len(encoded[batch[0]]) <= _BATCH:
                batch.append(order.pop())
            # The last token predicts what comes after the text, which is not scored.
            sequences = [[self.tokens.prefix, *encoded[i]][:-1] for i in batch]
            for i, states in zip(batch, self._run(sequences), strict=True):
                if not finite(states):
                    raise OnggiError(f"{self.folder}: NaN or infinite states for {texts[i][:40]!r} …")
                results[i] = (states.float().cpu(), torch.tensor(encoded[i]))
        return [results[i] for i in range(len(texts))]

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """Answers of many prompts in batches; see `generation.generate`. Messages go through the
        model's own chat template where it has one.
        """
        yield from generation.generate(self, prompts, sampling, None if self.plain else self._template)

    @functools.cached_property
    def _template(self) -> Template | None:
        return template(self.folder, self.tokens)

    def follow(
        self,
        ids: Sequence[int],
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """The token ids that follow `ids` (its start token among them), each as soon as it is known.

        Ends before a token of `ends`, after `max_tokens`, or where the window is full. temperature: 0
        takes the likeliest token, else logits are divided by it. top_p: draw among the likeliest
        tokens that together have this probability (Holtzman et al., arXiv 1904.09751, section 3.1).
        The same seed draws the same tokens. Raises OnggiError, at once and not at the first token,
        where `ids` leaves no room in the window.
        """
        if not ids:
            raise OnggiError("a prompt has no tokens.")
        if self.window and len(ids) >= self.window:
            raise OnggiError(
                f"the prompt has {len(ids)} tokens, which leave no room in the window of {self.window}."
            )
        room = self.window - len(ids) if self.window else max_tokens
        draw = torch.Generator().manual_seed(seed)
        return self._follow(list(ids), min(max_tokens, room), temperature, top_p, draw)

    @torch.no_grad()
    def _follow(
        self, ids: list[int], count: int, temperature: float, top_p: float, draw: torch.Generator
    ) -> Iterator[int]:
        cache = None
        for _ in range(count):
            # The whole prompt at first, then one token: the cache has the rest.
            batch = torch.tensor([ids], device=self.device)
            out = self.body(input_ids=batch, cache=cache, use_cache=True)
            cache = out.cache
            if cache is None:
                raise OnggiError(f"{self.folder}: {type(self.model).__name__} keeps no cache to go on from.")
            logits = self.head.logits(out.last_hidden_state[0, -1:])[0].cpu()  # (vocab,)
            token = choose(logits, temperature, top_p, draw)
            if token in self.ends:
                return
            yield token
            ids = [token]


def _ends(model: Any, tokens: Tokens) -> frozenset[int]:
    """What ends an answer: by the generation config, by the config, and the ends of a turn."""
    found: set[int] = set()
    for config in (model.generation_config, model.config, model.config.get_text_config()):
        given = getattr(config, "eos_token_id", None)
        found.update(given if isinstance(given, list) else [] if given is None else [given])
    special = {t.content: i for i, t in tokens.tokenizer.get_added_tokens_decoder().items() if t.special}
    return frozenset(found | {special[end] for end in TURN_ENDS if end in special})


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Keep quiet the bars that compressed-tensors draws whatever it is told; ours says what goes on."""
    from tqdm import tqdm

    original = tqdm.__init__

    def silent(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{**kwargs, "disable": True})

    tqdm.__init__ = silent
    try:
        yield
    finally:
        tqdm.__init__ = original


def head_of(model: Any) -> Head:
    """The output head of a transformers model, on the model's own weights."""
    config, output = model.config, model.get_output_embeddings()
    scale = 1.0
    if getattr(config, "logit_scale", None):  # Cohere
        scale = float(config.logit_scale)
    elif getattr(config, "logits_scaling", None):  # Granite
        scale = 1.0 / float(config.logits_scaling)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(output.weight, getattr(output, "bias", None), softcap, scale)
