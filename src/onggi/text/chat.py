"""A conversation as the tokens that a chat model was trained on.

How turns are marked is the model's own matter: a template (Jinja) that comes with its tokenizer. It
is rendered in transformers' sandbox, so it can compute text and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import ledger
from ..errors import OnggiError, one_line
from .tokens import Tokens, special_token

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": …}

_FILE, _CONFIG = "chat_template.jinja", "tokenizer_config.json"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Two code points that Unicode keeps out of text for good ("noncharacters").
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"


class Template:
    """A model's chat template: `render` to text, `encode` to token ids."""

    def __init__(self, source: str, tokens: Tokens, names: Mapping[str, str], place: str):
        """names: the special tokens as templates call them, {"bos_token": "<s>", …}; place: for errors."""
        self._source, self._tokens, self._names, self._place = source, tokens, names, place
        added = tokens.tokenizer.get_added_tokens_decoder().values()
        special = sorted((t.content for t in added if t.special), key=len, reverse=True)
        self._special = "|".join(map(re.escape, special))

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation up to where the model's answer begins. OnggiError where the template
        does not take it (some refuse a system prompt).
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered, _ = render_jinja_template(
                [[dict(message) for message in messages]],
                chat_template=self._source,
                add_generation_prompt=True,
                **self._names,
            )
        except Exception as error:  # a template can raise what Python can
            raise OnggiError(f"{self._place}: the chat template fails ({one_line(error)}).") from error
        text: str = rendered[0]
        return text

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the rendered conversation, start token included.

        Special tokens that the template writes are those tokens. The same text in a message is what
        somebody typed or pasted, and stays text: it cannot end a turn or begin another one. To that
        end it is set apart by marks before rendering, and encoded by itself; the text beside it may
        then be cut a little differently than it would be in one stretch.
        """
        parts = self._apart(messages)
        ids = [token for text, special in parts for token in self._tokens.encode(text, special)]
        # Many templates write the start token, some leave it to the tokenizer. transformers then has
        # none, but the training scripts of their time let the tokenizer add it, and Gemma is lost without.
        if self._tokens.starts and ids[:1] != [self._tokens.prefix]:
            ids.insert(0, self._tokens.prefix)
        return ids

    def _apart(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """The rendered text in stretches, each with whether special tokens count in it."""
        marked = []
        for message in messages:
            content = re.sub(f"[{_OPEN}{_CLOSE}]", "", message["content"])
            if self._special:
                content = re.sub(self._special, rf"{_OPEN}\g<0>{_CLOSE}", content)
            marked.append({**message, "content": content})
        rendered = self.render(marked)
        # A template may cut a message anywhere; a mark that lost its other half is dropped.
        return [
            (text, not (piece[0] == _OPEN and piece[-1] == _CLOSE))
            for piece in re.split(f"({_OPEN}[^{_OPEN}{_CLOSE}]*{_CLOSE})", rendered)
            if (text := re.sub(f"[{_OPEN}{_CLOSE}]", "", piece))
        ]

    def takes_system(self) -> bool:
        """Whether a system prompt gets through: some templates refuse it, some leave it out."""
        user = {"role": "user", "content": "?"}
        try:
            return "onggi" in self.render([{"role": "system", "content": "onggi"}, user])
        except OnggiError:
            return False


def template(folder: Path, tokens: Tokens) -> Template | None:
    """The chat template in a model `folder`; None for a base model, which has none."""
    source: Any = None
    if (folder / _FILE).is_file():
        source = (folder / _FILE).read_text(encoding="utf-8", errors="replace")
    elif (folder / _CONFIG).is_file():
        source = ledger.read_json(folder / _CONFIG).get("chat_template")
        if isinstance(source, list):  # several by name
            named = {entry["name"]: entry["template"] for entry in source}
            source = named.get("default")
    if not isinstance(source, str) or not source.strip():
        return None
    names = {name: token for name in _SPECIAL if (token := special_token(folder, name))}
    return Template(source, tokens, names, str(folder))
