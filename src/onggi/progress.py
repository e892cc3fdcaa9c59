"""How long work looks while it goes on.

On a terminal: one live bar with what is being done, how far, time left and peak memory. In a log
file or a pipe: a plain line now and then, because a bar there is noise. Rooms below the stages
only ever call `Progress.step`; they do not know which of the two is shown.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

console = Console(stderr=True, highlight=False)

# In a log, one line at most this often (seconds).
_LOG_EVERY = 15.0
_LEAST_SHARE = 0.05


def reset_peak_memory() -> None:
    """Start counting `peak_memory` afresh, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def release_memory() -> None:
    """Give what was freed back to the system, where the C library can (glibc).

    It otherwise keeps the pages of a tokenizer's half a million small objects, which for a small
    model are as much as all that follows.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory() -> int:
    """Largest resident size since `reset_peak_memory` (else since the process began), in bytes."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def say(message: str) -> None:
    """One line for the user, on stderr, above whatever bar is live."""
    console.print(message, markup=False, soft_wrap=True)


class _Memory(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{peak_memory() / 2**30:.1f} GiB", style="dim")


class Progress:
    """A counter of work units towards `total`; `step` may say what the unit was."""

    def __init__(self, label: str, total: float):
        self.label, self.total, self.done, self.skipped = label, max(total, 1e-9), 0.0, 0.0
        self._started = self._said = time.monotonic()
        self._bar: Bar | None = None
        if console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(compact=True),
                _Memory(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(label, total=self.total)
            self._bar.start()

    def skip(self, amount: float) -> None:
        """Count what an earlier run has done: it says nothing about how fast this one goes."""
        self.done += amount
        self.skipped += amount
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
            self._bar.reset(self._task, total=self.total, completed=int(self.done))

    def step(self, amount: float = 1.0, what: str = "") -> None:
        """Add `amount` to what is done; `what` names the piece now in hand."""
        self.done += amount
        description = f"{self.label}: {what}" if what else self.label
        if self._bar is not None:
            self._bar.update(self._task, advance=amount, description=description)
            return
        now = time.monotonic()
        if now - self._said >= _LOG_EVERY:
            self._said = now
            share = min(self.done / self.total, 1.0)
            own = self.done - self.skipped
            left = (now - self._started) * max(self.total - self.done, 0) / max(own, 1e-9)
            # What little is done at first says nothing about the rest.
            guess = f", {left:.0f} s left" if own >= _LEAST_SHARE * self.total else ""
            say(f"{description}  {share:.0%}{guess}, {peak_memory() / 2**30:.1f} GiB peak")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


@contextlib.contextmanager
def progress(label: str, total: float) -> Iterator[Progress]:
    """`with progress("quantize", 18) as bar: … bar.step(1, "layer 3")`."""
    bar = Progress(label, total)
    try:
        yield bar
    finally:
        bar.close()
