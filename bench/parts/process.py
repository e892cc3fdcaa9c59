"""What a whole process costs, and the facts of the machine it ran on.

Nothing here imports torch: on Linux a child's peak memory begins with its parent's at the moment of
the fork, so a bench that measures memory has to stay small itself.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """Of a process and the children it waited for, from exec to exit.

    wall: seconds. cpu: user + system seconds. peak: largest resident set, bytes. others: CPU seconds
    that the rest of the machine was busy meanwhile (None where the system does not say): timings
    taken beside other work are worth little.
    """

    wall: float
    cpu: float
    peak: int
    others: float | None


class Failed(RuntimeError):
    """A child that ended with an error; the message ends with the last lines that it wrote."""


def measure(command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Cost:
    """Run `command` with its output in `log`; raises Failed where its exit code is not 0."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        busy, started = _busy(), time.perf_counter()
        child = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **(env or {})})
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise Failed(f"{' '.join(command)}\nended with {child.returncode}; its output ({log}) ends:\n{tail}")
    cpu = used.ru_utime + used.ru_stime
    now = _busy()
    others = None if busy is None or now is None else max(now - busy - cpu, 0.0)
    return Cost(wall, cpu, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024), others)


def _busy() -> float | None:
    """CPU seconds all processors have been busy since the machine started, stolen time included."""
    try:
        user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    except OSError:
        return None
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def facts() -> dict[str, object]:
    """Processor, cores that this process may use, its instructions for bf16, memory, system."""
    info = _read("/proc/cpuinfo").splitlines()
    fields = dict(map(str.strip, line.split(":", 1)) for line in info if ":" in line)
    flags = fields.get("flags", fields.get("Features", "")).split()
    memory = [line.split()[1] for line in _read("/proc/meminfo").splitlines() if line.startswith("MemTotal")]
    return {
        "processor": fields.get("model name", platform.processor() or platform.machine()),
        "family": "-".join(fields.get(key, "?") for key in ("cpu family", "model", "stepping")),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "bf16": [flag for flag in ("avx512_bf16", "amx_bf16", "bf16") if flag in flags],
        "memory_bytes": int(memory[0]) * 1024 if memory else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).is_file() else ""
