"""Text as tokens, with the one start token that every sequence gets.

Gemma without its start token returns nonsense, and a model that has none (SmolLM2) could not be
scored on the first token of a passage: it is given its end-of-text token there, which is what
stood before a document when it was trained. Scores thus cover the whole passage for every model.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import tokenizers

from .. import ledger
from ..errors import OnggiError, one_line


class Tokens:
    """A model's tokenizer: `encode` for content, `prefix` for what every sequence begins with,
    `starts` for whether the tokenizer sets that token itself.

    `tokenizer.json` is used as it stands: it is the whole tokenizer, and for a vocabulary of 262,144
    transformers' wrapper around it takes as much memory again as the small models it serves.
    """

    def __init__(self, folder: Path):
        """Load from a model `folder`; OnggiError where it has no tokenizer that loads."""
        try:
            self.tokenizer = self._load(folder)
        except Exception as error:  # the libraries raise many kinds for a broken or missing file
            raise OnggiError(f"{folder}: no tokenizer that loads ({one_line(error)}).") from error
        bos, eos = special_token(folder, "bos_token"), special_token(folder, "eos_token")
        first = self.tokenizer.encode("a", add_special_tokens=True).ids[:1]
        # A tokenizer may have a start token and not set it: SmolLM2-Instruct's starts a chat turn.
        candidates = [bos] if self._id(bos) in first else ["<|endoftext|>" if bos else None, bos, eos]
        known = [found for found in map(self._id, candidates) if found is not None]
        if not known:
            raise OnggiError(f"{folder}: the tokenizer has neither a start nor an end token.")
        self.prefix: int = known[0]
        self.starts: bool = first == [self.prefix]

    def _load(self, folder: Path) -> tokenizers.Tokenizer:
        if (folder / "tokenizer.json").is_file():
            whole = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            # A fine-tuned model's file often keeps the length that it was trained with.
            whole.no_truncation()
            whole.no_padding()
            return whole
        from transformers import AutoTokenizer

        loaded: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        found: tokenizers.Tokenizer = loaded.backend_tokenizer
        return found

    def _id(self, token: str | None) -> int | None:
        found: int | None = self.tokenizer.token_to_id(token) if token else None
        return found

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of the text alone, nothing added. Where `special` is false, the text of a special
        token is text like any other.
        """
        self.tokenizer.encode_special_tokens = not special
        try:
            return list(self.tokenizer.encode(text, add_special_tokens=False).ids)
        finally:
            self.tokenizer.encode_special_tokens = False


_last: list[tuple[bytes, Tokens]] = []  # one at most


def shared(folder: Path) -> Tokens:
    """The tokenizer of a folder: the one of the last call where the files are equal, as with variants of one
    model. For a vocabulary of 262,144 it takes as long to load as the small models that it serves.
    Raises OnggiError as `Tokens` does.
    """
    files = [folder / name for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")]
    if not files[0].is_file():
        return Tokens(folder)
    key = hashlib.sha256()
    for file in files:
        key.update(hashlib.sha256(file.read_bytes() if file.is_file() else b"").digest())
    if not _last or _last[0][0] != key.digest():
        _last.clear()
        _last.append((key.digest(), Tokens(folder)))
    return _last[0][1]


class Parts:
    """The tokens that are only a part of a character, whatever kind of tokenizer: `token in parts`.

    SentencePiece's `<0xE1>` and a byte-level token that ends within a character have this in common:
    decoded alone, they are U+FFFD. The one token that may say U+FFFD itself is none of them.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self._tokenizer = tokenizer
        own = tokenizer.encode("\ufffd", add_special_tokens=False).ids
        self._known: dict[int, bool] = {own[0]: False} if len(own) == 1 else {}

    def __contains__(self, token: int) -> bool:
        if token not in self._known:
            self._known[token] = "\ufffd" in self._tokenizer.decode([token], skip_special_tokens=False)
        return self._known[token]


class Stream:
    """The text of tokens that come one at a time, in pieces of whole characters.

    A character may be made of several tokens (bytes). Decoded too early it is U+FFFD, so what ends in
    that is held back until it is whole. Each token decodes all so far again: what a token's text is
    depends on those before it, in ways that differ from tokenizer to tokenizer.
    """

    def __init__(self, tokens: Tokens):
        self._tokenizer = tokens.tokenizer
        self._ids: list[int] = []
        self._said = 0  # characters given out

    def push(self, token: int) -> str:
        """The text that `token` completes, perhaps none."""
        self._ids.append(token)
        return self._rest(self._decoded().rstrip("\ufffd"))

    def end(self) -> str:
        """What is held back when no more tokens come: broken characters, as U+FFFD."""
        return self._rest(self._decoded())

    def _decoded(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=True)

    def _rest(self, text: str) -> str:
        piece = text[self._said :]
        self._said += len(piece)
        return piece


def special_token(folder: Path, name: str) -> str | None:
    """The special token `name` of a model folder's tokenizer, as its config spells it."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / file).is_file():
            value = ledger.read_json(folder / file).get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                return value
    return None
