"""`onggi` in a process of its own, to be killed, without the seconds that its imports take: forked from a process that
has them and does nothing else.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["onggi.cli", "onggi.engines.transformers", "onggi.train.trainer"])


def killed(
    *words: str,
    when: Callable[[], object],
    after: float = 0.0,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Run `onggi WORDS` without its output, and kill it `after` so many seconds when `when` holds, if it has not ended
    by then. settings: `module:variable` → value, set before.
    """
    process = _CONTEXT.Process(target=_run, args=(words, dict(os.environ), settings or {}))
    process.start()
    while process.is_alive() and not when():
        time.sleep(0.002)
    time.sleep(after)
    process.kill()
    process.join()


def _run(words: Sequence[str], environment: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    for name, value in settings.items():
        module, _, variable = name.partition(":")
        setattr(importlib.import_module(module), variable, value)
    from onggi.cli import main

    os._exit(main(words))
