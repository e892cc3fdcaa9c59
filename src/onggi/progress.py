"""How long work looks while it goes on.

On a terminal: one live line with what is being done, how far, time left and peak memory, never wider
than the window. In a log file, a pipe or a terminal that cannot move its cursor: a plain line now
and then, because a bar there is noise. With `console.quiet` neither. Rooms below the stages only
ever call `Progress.step`; they do not know which is shown.
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

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.text import Text

console = Console(stderr=True, highlight=False)

# In a log, one line at most this often (seconds).
_LOG_EVERY = 15.0
_LEAST_SHARE = 0.05
# In cells of the terminal: how long a bar is, and from where on a window has room to space things out.
_LEAST_BAR, _MOST_BAR, _ROOMY = 8, 40, 60


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


def duration(seconds: float) -> str:
    """Seconds in words of at most two units: `35 s`, `4 min 10 s`, `2 h 5 min`, `3 d 4 h`."""
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    left, parts = round(seconds), []
    for index, (size, unit) in enumerate(units):
        if left >= size or unit == "s":
            parts = [f"{left // size} {unit}"]
            if unit != "s" and (rest := left % size // units[index + 1][0]):
                parts.append(f"{rest} {units[index + 1][1]}")
            break
    return " ".join(parts)


def line(description: str, share: float, left: float | None, memory: int, width: int) -> Text:
    """What is being done, a bar, `share` done, seconds `left` (None: not known yet) and peak memory
    in bytes, in at most `width` cells of a terminal (a Hangul syllable takes two).

    Figures come first: the bar gives way to them, then the description is cut.
    """
    clock = "? left" if left is None else f"{_clock(left)} left"
    gap = "  " if width >= _ROOMY else " "
    figures = gap.join((f"{share:4.0%}", clock, f"{memory / 2**30:.1f} GiB"))
    words, room = Text(description), max(width - cell_len(figures) - 1, 0)
    # The bar takes what the words leave, but in a narrow window they need all of it.
    bar = min(max(room - words.cell_len - 1, _LEAST_BAR), _MOST_BAR) if room > 3 * _LEAST_BAR else 0
    words = words if room else Text()
    words.truncate(room - bar - 1 if bar else room, overflow="ellipsis")
    full = round(bar * share)
    parts = (words, Text("━" * full, "cyan") + Text("━" * (bar - full), "dim"), Text(figures))
    whole = Text(" ").join(part for part in parts if part.plain)
    whole.truncate(width)
    return whole


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


class Progress:
    """A counter of work units towards `total`; `step` may say what the unit was."""

    def __init__(self, label: str, total: float):
        self.label, self.total, self.done, self.skipped = label, max(total, 1e-9), 0.0, 0.0
        self.what = ""
        self._started = self._stepped = self._said = time.monotonic()
        self._live: Live | None = None
        # A CI service may claim colours for what is a log file: only a real terminal has a bar.
        if console.is_interactive and console.file.isatty() and not console.quiet:
            self._live = Live(
                get_renderable=self._line, console=console, transient=True, redirect_stdout=False
            )
            self._live.start()

    @property
    def share(self) -> float:
        """How much is done, from 0 to 1."""
        return min(self.done / self.total, 1.0)

    @property
    def left(self) -> float | None:
        """Seconds left, from the pace of this run; None while too little is done to tell."""
        own, todo = self.done - self.skipped, max(self.total - self.done, 0.0)
        if not own or own < _LEAST_SHARE * (self.total - self.skipped):
            return None
        last = self._stepped
        return max((last - self._started) * todo / own - (time.monotonic() - last), 0.0)

    def skip(self, amount: float) -> None:
        """Count what an earlier run has done: it says nothing about how fast this one goes."""
        self.done += amount
        self.skipped += amount

    def step(self, amount: float = 1.0, what: str = "") -> None:
        """Add `amount` to what is done; `what` names the piece now in hand."""
        self.done += amount
        self.what = what
        now = time.monotonic()
        if amount:
            self._stepped = now
        if self._live is None and now - self._said >= _LOG_EVERY:
            self._said = now
            guess = "" if self.left is None else f", {duration(self.left)} left"
            say(f"{self._description}  {self.share:.0%}{guess}, {peak_memory() / 2**30:.1f} GiB peak")

    @property
    def _description(self) -> str:
        return f"{self.label}: {self.what}" if self.what else self.label

    def _line(self) -> Text:
        # One cell stays free: some terminals break the line when the last one is filled.
        return line(self._description, self.share, self.left, peak_memory(), console.width - 1)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._live is not None:
            self._live.stop()


@contextlib.contextmanager
def progress(label: str, total: float) -> Iterator[Progress]:
    """`with progress("quantize", 18) as bar: … bar.step(1, "layer 3")`."""
    bar = Progress(label, total)
    try:
        yield bar
    finally:
        bar.close()
