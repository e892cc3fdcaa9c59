"""`onggi` in processes of its own without the seconds that its imports take: forked from one that has them and does
nothing else.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["onggi.cli", "onggi.engines.transformers", "onggi.train.trainer"])


def killed(
    *words: str,
    when: Callable[[], object],
    after: float = 0.0,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Run `onggi WORDS`, and kill it `after` so many seconds when `when` holds, if it has not ended by then. settings:
    `module:variable` → value, set before.
    """
    process = _CONTEXT.Process(target=_run, args=(words, dict(os.environ), os.devnull, settings or {}))
    process.start()
    while process.is_alive() and not when():
        time.sleep(0.002)
    time.sleep(after)
    process.kill()
    process.join()


def two(words: Sequence[str], folder: Path) -> list[str]:
    """Run the command in two processes with the environment that torchrun gives them; returns what each of them printed,
    which is kept in `folder`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    said = [folder / f"said-{rank}" for rank in range(2)]
    both = [
        _CONTEXT.Process(
            target=_run,
            args=(words, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, str(said[rank]), {}),
            daemon=True,  # ends with this one, should it wait for ever
        )
        for rank in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(240)
    assert [process.exitcode for process in both] == [0, 0]
    return [file.read_text(encoding="utf-8") for file in said]


def _run(
    words: Sequence[str], environment: Mapping[str, str], said: str, settings: Mapping[str, Any]
) -> None:
    """In the new process: what it prints goes to the file `said`, what it says of its progress nowhere."""
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT, 0o600), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for name, value in settings.items():
        module, _, variable = name.partition(":")
        setattr(importlib.import_module(module), variable, value)
    from onggi.cli import main

    os._exit(main(words))
