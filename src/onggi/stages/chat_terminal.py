"""Answers side by side in a terminal, as they come; in a pipe or a log, whole and as plain text."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import signal
import sys
import time
from collections.abc import Iterator
from threading import Event
from types import FrameType

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..errors import OnggiError
from ..progress import say
from .chat import Answer, ChatConfig, Conversation

_NARROWEST = 40  # columns of a terminal, for one answer beside another
_REFRESH = 0.08  # seconds between two pictures
_HELP = "/new starts afresh, /quit or Ctrl-D ends, Ctrl-C stops an answer."
_ENDS = {"max_tokens": "cut", "window": "window full", "stopped": "stopped"}


def run(config: ChatConfig) -> int:
    """Ask once where there is a prompt (or a pipe that brings one), else line by line; the exit code."""
    config = with_prompt(config)
    conversation = Conversation(config)
    if config.prompt is not None:
        return 0 if _show(conversation, config.prompt) else 130
    _loop(conversation)
    return 0


def with_prompt(config: ChatConfig) -> ChatConfig:
    """The config with what a pipe brings as its prompt, where it asks for that or there is no terminal."""
    if config.prompt == "-" or (config.prompt is None and not sys.stdin.isatty()):
        return dataclasses.replace(config, prompt=_piped())
    return config


def _piped() -> str:
    try:
        return sys.stdin.read().rstrip("\r\n")  # the line break is the pipe's, not the prompt's
    except UnicodeDecodeError as error:
        raise OnggiError("prompt: standard input is not UTF-8 text.") from error


def _loop(conversation: Conversation) -> None:
    with contextlib.suppress(ImportError):  # arrow keys and history, where the system has them
        import readline  # noqa: F401
    say(_HELP)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except UnicodeDecodeError:
            say("onggi: that was not UTF-8 text.")
            continue
        except KeyboardInterrupt:
            say(f"\n{_HELP}")
            continue
        if line == "/quit":
            return
        if line == "/new":
            conversation.new()
        elif re.fullmatch(r"/\w*", line):
            say(_HELP)
        elif line:
            try:
                _show(conversation, line)
            except OnggiError as error:  # too long for a window: there is still /new
                say(f"onggi: {error}")


def _show(conversation: Conversation, prompt: str) -> bool:
    """Ask and show; False where the user stopped the answers."""
    console = Console(highlight=False)
    live = sys.stdout.isatty() and not console.is_dumb_terminal
    # On a terminal what has gone by cannot be redrawn: while they grow, the answers' ends are shown,
    # and the whole of them once at the end.
    picture = Live(console=console, transient=True, auto_refresh=False, vertical_overflow="crop")
    with (
        _interrupts() as stopped,
        contextlib.closing(conversation.ask(prompt)) as pieces,
        picture if live else contextlib.nullcontext(),
    ):
        drawn = 0.0
        for _ in pieces:
            if stopped.is_set():
                break
            if live and time.monotonic() - drawn >= _REFRESH:
                picture.update(_view(conversation.answers, console, console.height - 1), refresh=True)
                drawn = time.monotonic()
    if live:
        console.print(_view(conversation.answers, console))
    else:
        for name, answer in conversation.answers.items():
            # A pipe gets what was said, byte for byte; any terminal only what cannot move its cursor.
            text = _shown(answer.text).plain if sys.stdout.isatty() else answer.text
            print(f"{name}:\n{text}\n({_facts(answer)})\n", flush=True)
    return not stopped.is_set()


@contextlib.contextmanager
def _interrupts() -> Iterator[Event]:
    """An event that Ctrl-C sets, so that an answer ends between two tokens and not in the midst of
    one, or of a picture. A second Ctrl-C, while a long prompt is still read, ends the program.
    """
    stopped, before = Event(), signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _facts(answer: Answer) -> str:
    parts = [f"{answer.tokens} token{'' if answer.tokens == 1 else 's'}"]
    if answer.speed:
        parts.append(f"{answer.speed:.1f} tokens/s")
    if answer.end in _ENDS:
        parts.append(_ENDS[answer.end])
    return ", ".join(parts)


def _view(answers: dict[str, Answer], console: Console, height: int | None = None) -> RenderableType:
    """The answers beside each other, or below each other where that leaves too little width; the
    last lines of each where `height` is fewer than they need.
    """
    beside = len(answers) > 1 and console.width // len(answers) >= _NARROWEST
    width = console.width // len(answers) if beside else console.width
    # Frames without sides leave answers that can be copied.
    frame = box.ROUNDED if beside else box.HORIZONTALS
    wrapped = {name: _shown(a.text).wrap(console, width - 4) for name, a in answers.items()}
    most = max(map(len, wrapped.values()))
    if height is not None:
        most = min(most, max(1, height // (1 if beside else len(answers)) - 2))
    panels = [
        Panel(
            Text("\n").join(lines[-most:]),
            box=frame,
            title=Text(name, "bold"),
            title_align="left",
            subtitle=Text(_facts(answers[name]), "dim"),
            subtitle_align="right",
            width=width,
            height=max(most, 1) + 2 if beside else None,
        )
        for name, lines in wrapped.items()
    ]
    if not beside:
        return Group(*panels)
    row = Table.grid()
    for _ in panels:
        row.add_column(width=width)
    row.add_row(*panels)
    return row


def _shown(text: str) -> Text:
    """What a terminal may be given of a model's text: no code that would move its cursor or worse."""
    return Text(re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", " ", text.strip("\n")), overflow="fold")
