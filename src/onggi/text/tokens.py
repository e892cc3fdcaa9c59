"""Text as tokens, with the one start token that every sequence gets.

Gemma without its start token returns nonsense, and a model that has none (SmolLM2) could not be
scored on the first token of a passage: it is given its end-of-text token there, which is what
stood before a document when it was trained. Scores thus cover the whole passage for every model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import OnggiError, one_line


class Tokens:
    """A model's tokenizer: `encode` for content, `prefix` for what every sequence begins with."""

    def __init__(self, folder: Path):
        """Load from a model `folder`; OnggiError where it has no tokenizer that loads."""
        from transformers import AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # the library raises many kinds for a broken or missing file
            raise OnggiError(f"{folder}: no tokenizer that loads ({one_line(error)}).") from error
        prefix = self.tokenizer.bos_token_id
        if prefix is None or not self._adds_prefix(prefix):
            prefix = self.tokenizer.eos_token_id if prefix is None else self._document_start(prefix)
        if prefix is None:
            raise OnggiError(f"{folder}: the tokenizer has neither a start nor an end token.")
        self.prefix: int = int(prefix)

    def _adds_prefix(self, bos: int) -> bool:
        ids = self.tokenizer("a").input_ids
        return bool(ids) and ids[0] == bos

    def _document_start(self, bos: int) -> int:
        """For a tokenizer that has a start token but does not set it (SmolLM2-Instruct's starts a
        chat turn): the end-of-text token where it has one, else the start token.
        """
        text_end = self.tokenizer.convert_tokens_to_ids("<|endoftext|>")
        unknown = self.tokenizer.unk_token_id
        return bos if text_end is None or text_end == unknown else text_end

    def __len__(self) -> int:
        return len(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of the text alone, nothing added."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)
