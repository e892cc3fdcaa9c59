"""`onggi chat`: one prompt to several models at once.

Numbers say how much a step cost; a few answers side by side say what that looks like. All models
stand in one process and take turns, a token each, so that their answers grow together.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OnggiError
from ..progress import progress, say

if TYPE_CHECKING:  # jsonargparse runs this block for --help: nothing here may import torch
    from ..text.chat import Message


@dataclass(frozen=True)
class ChatConfig:
    """Ask several models the same and see their answers side by side, as they come.

    Models with a chat template answer and remember the conversation; a base model, which has none,
    continues the text. Without --prompt: a line at a time, /new starts afresh, /quit or Ctrl-D ends,
    Ctrl-C stops an answer. In a pipe: the answers as plain text, each under its model's name.
    """

    models: list[str]
    """Models to ask, each MODEL or NAME=MODEL; NAME stands above its answers."""
    prompt: str | None = None
    """Ask this and end; - reads it from stdin, as does a pipe (onggi chat MODEL < question.txt)."""
    max_tokens: int = 256
    """Longest answer, in tokens; one that reaches it is marked `cut`."""
    temperature: float = 0.0
    """0 takes the likeliest token every time, so that a comparison can be repeated; 1 draws from the
    model's own distribution, less draws nearer to the likeliest."""
    top_p: float = 1.0
    """With a temperature: draw among the likeliest tokens that together have this probability."""
    seed: int = 0
    """With a temperature: the same seed draws the same answer. Each model has dice of its own."""
    system: str = ""
    """System prompt, for models whose chat template has one."""
    raw: bool = False
    """Leave chat templates aside: every model continues the text, and special tokens written in the
    prompt (<|im_start|>) are those tokens. Nothing is remembered from prompt to prompt."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if not self.models:
            raise OnggiError("models: name at least one.")
        if self.prompt is not None:
            check_prompt(self.prompt)
        if self.max_tokens < 1:
            raise OnggiError(f"max_tokens: {self.max_tokens} is not a number of tokens.")
        if not 0 <= self.temperature < float("inf"):
            raise OnggiError(f"temperature: {self.temperature} is not 0 (the likeliest token) or more.")
        if not 0 < self.top_p <= 1:
            raise OnggiError(f"top_p: {self.top_p} is not a probability above 0 and up to 1.")
        if not 0 <= self.seed < 2**63:
            raise OnggiError(f"seed: {self.seed} is not a whole number from 0 to 2⁶³ − 1.")
        if self.raw and self.system:
            raise OnggiError(
                "system: --raw leaves the chat templates aside, and with them the system prompt."
            )


def check_prompt(prompt: str) -> None:
    """OnggiError for a prompt without text, or one that is not text."""
    if not prompt.strip():
        raise OnggiError("prompt: is empty.")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # bytes that the system's encoding does not know
        raise OnggiError("prompt: is not UTF-8 text.") from error


@dataclass
class Answer:
    """What a model has said so far. tokens: how many, its end token not among them. first: seconds
    to the first of them. seconds: the model's own time for the rest, others' turns not counted. end:
    why it is over ("end", "max_tokens", "window"), "stopped" by whoever asked, or None while it goes on.
    """

    text: str = ""
    tokens: int = 0
    first: float = 0.0
    seconds: float = 0.0
    end: str | None = None

    @property
    def speed(self) -> float | None:
        """Tokens a second after the first; None where there is no second one."""
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds else None


def chat(config: ChatConfig) -> dict[str, Answer]:
    """The whole answer of each model, by its name, to `config.prompt`; prints nothing of them.

    For answers as they come and for more than one turn see `Conversation`. Raises OnggiError for no
    prompt, two models of one name, a model that is not sound, a prompt longer than a model's window.
    """
    if config.prompt is None:
        raise OnggiError("prompt: is needed here; Conversation(config).ask(prompt) takes one at a time.")
    conversation = Conversation(config)
    for _ in conversation.ask(config.prompt):
        pass
    return conversation.answers


class Conversation:
    """Models loaded once and asked as often as one likes; `answers` holds the latest by name.

        conversation = Conversation(ChatConfig(["package:gemma3-270m", "w4=runs/quickstart/balanced"]))
        for name, piece in conversation.ask("Bonjour"):
            print(name, piece)

    Raises OnggiError for two models of one name and a model that is not sound.
    """

    def __init__(self, config: ChatConfig):
        from transformers.utils import logging as transformers_logging

        from ..models import references

        self.config = config
        line = references.parse_all(config.models)
        folders = {r.name: references.resolve(r.source) for r in line}  # all there before any is loaded
        transformers_logging.disable_progress_bar()
        self.voices: dict[str, _Voice] = {}
        with progress("chat", len(folders)) as bar:
            for name, folder in folders.items():
                bar.step(0, f"loading {name}")
                self.voices[name] = _Voice(name, folder, config)
                bar.step(1, f"loading {name}")
        self.answers: dict[str, Answer] = {}

    def ask(self, prompt: str) -> Generator[tuple[str, str], None, None]:
        """(name, piece of text, perhaps empty) as the models answer, a token each in turn.

        Close the iterator to stop them; what was said is remembered. Raises OnggiError for an empty
        prompt and one that leaves no room in a model's window.
        """
        check_prompt(prompt)
        self.answers = {name: Answer() for name in self.voices}
        turns = {name: voice.answer(prompt, self.answers[name]) for name, voice in self.voices.items()}
        try:
            while turns:
                for name in list(turns):
                    piece = next(turns[name], None)
                    if piece is None:
                        del turns[name]
                    else:
                        yield name, piece
        finally:
            for name, voice in self.voices.items():
                self.answers[name].end = self.answers[name].end or "stopped"
                voice.remember(prompt, self.answers[name])

    def new(self) -> None:
        """Forget what was said."""
        for voice in self.voices.values():
            voice.history.clear()


class _Voice:
    """One model in a conversation: its engine, its template if it has one, what it remembers."""

    def __init__(self, name: str, folder: Path, config: ChatConfig):
        from ..engines.transformers import Engine
        from ..text.chat import template

        self.name, self.config = name, config
        self.engine = Engine(folder)
        self.template = None if config.raw else template(folder, self.engine.tokens)
        self.history: list[Message] = []
        self.system: list[Message] = []
        if config.system:
            if self.template and self.template.takes_system():
                self.system = [{"role": "system", "content": config.system}]
            else:
                what = "its chat template" if self.template else "a base model"
                say(f"{name}: {what} has no system prompt; it answers without.")

    def answer(self, prompt: str, answer: Answer) -> Iterator[str]:
        """A piece of text, perhaps none, for each token; `answer` is kept up to date. Raises
        OnggiError, at once, where the prompt leaves no room in the window.
        """
        config, window, ids = self.config, self.engine.window, self._ids(prompt)
        try:
            found = self.engine.generate(
                ids, config.max_tokens, config.temperature, config.top_p, config.seed
            )
        except OnggiError as error:
            forget = " /new forgets what was said before." if self.history else ""
            raise OnggiError(f"{self.name}: {error}{forget}") from error
        room = window - len(ids) if window else config.max_tokens
        return self._pieces(found, answer, room)

    def _pieces(self, found: Iterator[int], answer: Answer, room: int) -> Iterator[str]:
        from ..text.tokens import Stream

        stream = Stream(self.engine.tokens)
        while answer.end is None:
            began = time.monotonic()
            token = next(found, None)
            spent = time.monotonic() - began
            if token is None:
                limit = min(self.config.max_tokens, room)
                whole = "max_tokens" if limit == self.config.max_tokens else "window"
                answer.end = "end" if answer.tokens < limit else whole
                piece = stream.end()
            else:
                piece = stream.push(token)
                answer.first += 0 if answer.tokens else spent
                answer.seconds += spent if answer.tokens else 0
                answer.tokens += 1
            answer.text += piece
            yield piece

    def _ids(self, prompt: str) -> list[int]:
        if self.template:
            return self.template.encode([*self.system, *self.history, {"role": "user", "content": prompt}])
        tokens = self.engine.tokens
        ids = tokens.encode(prompt)
        return ids if ids[:1] == [tokens.prefix] else [tokens.prefix, *ids]

    def remember(self, prompt: str, answer: Answer) -> None:
        """Keep a turn for the next one, where the model has turns and it said anything."""
        if self.template and answer.tokens:
            self.history.append({"role": "user", "content": prompt})
            self.history.append({"role": "assistant", "content": answer.text})
