"""A conversation as the tokens that a chat model was trained on.

How turns are marked is the model's own matter: a template (Jinja) that comes with its tokenizer. It
is rendered in transformers' sandbox, so it can compute text and nothing else.

A base model has none. The one that it is given when it is tuned (`standard`) is that of its family where its
vocabulary has the tokens for it (Gemma's `<start_of_turn>`), else ChatML; both take a system prompt and tools, and are
written in the part of Jinja that transformers (which vLLM calls for it) and llama.cpp render alike.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import ledger
from ..errors import OnggiError, one_line
from .tokens import Tokens, special_token

# {"role": "system" | "user" | "assistant" | "tool", "content": …}, and what a template knows of tools.
Message = Mapping[str, Any]
Turns = Literal["all", "last"]

FILE, _CONFIG = "chat_template.jinja", "tokenizer_config.json"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Two code points that Unicode keeps out of text for good ("noncharacters").
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"

# Tokens that end a turn, where a vocabulary has them: a base model's config names its end of text only.
TURN_ENDS = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>")

# The standard templates. A call of a tool is JSON between <tool_call> and </tool_call>, which every model can write as text.
_CALLS = (
    "{% for call in message['tool_calls'] or [] %}{% set made = call['function'] or call %}"
    "{{ '<tool_call>' }}{{ made | tojson }}{{ '</tool_call>' }}{% endfor %}"
)
_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
)
_DEFINED = (
    "{{ 'Tools, to be called with JSON between <tool_call> and </tool_call>:\n' }}"
    "{% for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}"
)
_GEMMA = (
    _SYSTEM + "{% for message in rest %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = 'user' %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' }}"
    "{% if loop.first %}{% if tools %}" + _DEFINED + "{{ '\n' }}{% endif %}"
    "{% if system %}{{ system | trim }}{{ '\n\n' }}{% endif %}{% endif %}"
    "{% if message['role'] == 'tool' %}{{ '<tool_response>' }}{% endif %}{{ message['content'] | trim }}"
    "{% if message['role'] == 'tool' %}{{ '</tool_response>' }}{% endif %}"
    + _CALLS
    + "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_CHATML = (
    _SYSTEM + "{% if system or tools %}{{ '<|im_start|>system\n' }}{% if tools %}" + _DEFINED + "{% endif %}"
    "{{ system }}{{ '<|im_end|>\n' }}{% endif %}"
    "{% for message in rest %}{{ '<|im_start|>' + message['role'] + '\n' }}{{ message['content'] }}"
    + _CALLS
    + "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Standard:
    """A template for a model that has none. source: its Jinja. tokens: begin and end of a turn, which are to be trained."""

    name: str
    source: str
    tokens: tuple[str, str]


def standard(tokens: Tokens) -> Standard:
    """The template for a base model with this tokenizer. It may name tokens that the tokenizer lacks."""
    known = tokens.tokenizer.token_to_id
    # Whoever renders it has then no need to add the start token, nor to know that it would be.
    start = "{{ bos_token }}" if tokens.starts else ""
    for name, source, pair in (
        ("Gemma", _GEMMA, ("<start_of_turn>", "<end_of_turn>")),
        ("ChatML", _CHATML, ("<|im_start|>", "<|im_end|>")),
    ):
        if name == "ChatML" or all(known(token) is not None for token in pair):
            return Standard(name, start + source, pair)
    raise AssertionError("ChatML is for all")


@dataclass(frozen=True)
class Taught:
    """A dialogue as token ids; learnt: of each whether the loss is on it."""

    ids: list[int]
    learnt: list[bool]


class Template:
    """A model's chat template: `render` to text, `encode` to token ids, `teach` a whole dialogue."""

    def __init__(self, source: str, tokens: Tokens, names: Mapping[str, str], place: str):
        """names: the special tokens as templates call them, {"bos_token": "<s>", …}; place: for errors."""
        self._source, self._tokens, self._names, self._place = source, tokens, names, place
        added = tokens.tokenizer.get_added_tokens_decoder().values()
        special = sorted((t.content for t in added if t.special), key=len, reverse=True)
        self._special = "|".join(map(re.escape, special))

    def render(
        self,
        messages: Sequence[Message],
        answering: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The conversation, and with `answering` up to where the model's next answer begins. OnggiError where the
        template does not take it (some refuse a system prompt).
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered, _ = render_jinja_template(
                [[dict(message) for message in messages]],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=self._source,
                add_generation_prompt=answering,
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
        return self._begun(self._ids(self.render(self._marked(messages))))

    def teach(
        self,
        messages: Sequence[Message],
        ends: Collection[int],
        turns: Turns = "all",
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Taught:
        """A whole dialogue, and which of its tokens are learnt: those of the assistant's answers (all, or the last)
        with the token of `ends` that ends each, and nothing else.

        An answer is what stands between the text that asks for it and the text with it in it, so this holds for any
        template. It is encoded by itself, as it is when the model is asked. Raises OnggiError for a template that ends answers with no such token, or that
        writes earlier turns in another way once there are later ones.
        """
        marked = self._marked(messages)
        whole = self.render(marked, False, tools)
        spoken = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        ids: list[int] = []
        learnt: list[bool] = []
        at = 0
        for i in spoken if turns == "all" else spoken[-1:]:
            before = self.render(marked[:i], True, tools)
            after = whole if i == len(marked) - 1 else self.render(marked[: i + 1], False, tools)
            if not whole.startswith(after) or not after.startswith(before) or len(before) < at:
                raise OnggiError(
                    f"{self._place}: the chat template writes an answer in another way once others follow; learn of the "
                    "last answer alone (--turns last)."
                    if turns == "all" and i < len(marked) - 1
                    else f"{self._place}: the chat template asks for an answer in another way than it writes it."
                )
            asked, answer = self._ids(whole[at : len(before)]), self._ids(whole[len(before) : len(after)])
            end = next((place for place, token in enumerate(answer) if token in ends), None)
            if end is None:
                raise OnggiError(
                    f"{self._place}: the chat template ends an answer with none of the tokens at which generation stops."
                )
            ids += [*asked, *answer]
            learnt += [*[False] * len(asked), *[place <= end for place in range(len(answer))]]
            at = len(after)
        rest = self._ids(whole[at:])
        begun = self._begun([*ids, *rest])
        learnt += [False] * len(rest)
        return Taught(begun, [*[False] * (len(begun) - len(learnt)), *learnt])

    def _begun(self, ids: list[int]) -> list[int]:
        # Many templates write the start token, some leave it to the tokenizer. transformers then has
        # none, but the training scripts of their time let the tokenizer add it, and Gemma is lost without.
        if self._tokens.starts and ids[:1] != [self._tokens.prefix]:
            return [self._tokens.prefix, *ids]
        return ids

    def _marked(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with marks around what would be a special token in them."""
        marked: list[Message] = []
        for message in messages:
            content = re.sub(f"[{_OPEN}{_CLOSE}]", "", message["content"])
            if self._special:
                content = re.sub(self._special, rf"{_OPEN}\g<0>{_CLOSE}", content)
            marked.append({**message, "content": content})
        return marked

    def _ids(self, rendered: str) -> list[int]:
        """Token ids of rendered text with marks; nothing added."""
        parts = self._apart(rendered)
        return [token for text, special in parts for token in self._tokens.encode(text, special)]

    def _apart(self, rendered: str) -> list[tuple[str, bool]]:
        """The rendered text in stretches, each with whether special tokens count in it."""
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
    if (folder / FILE).is_file():
        source = (folder / FILE).read_text(encoding="utf-8", errors="replace")
    elif (folder / _CONFIG).is_file():
        source = ledger.read_json(folder / _CONFIG).get("chat_template")
        if isinstance(source, list):  # several by name
            named = {entry["name"]: entry["template"] for entry in source}
            source = named.get("default")
    if not isinstance(source, str) or not source.strip():
        return None
    return Template(source, tokens, _names(folder), str(folder))


def given(made: Standard, folder: Path, tokens: Tokens) -> Template:
    """The standard template for the base model in `folder`, whose `tokens` have the template's."""
    return Template(made.source, tokens, _names(folder), str(folder))


def _names(folder: Path) -> dict[str, str]:
    return {name: token for name in _SPECIAL if (token := special_token(folder, name))}
