"""Many independent calls: here, one after another, or on a Ray cluster.

What fans out (models × tasks × languages) is written as calls that yield results, so that where they
run is decided in one place and a result is kept as soon as it is there.

On Ray every call is a task that streams its results. The cluster is the one that `RAY_ADDRESS` names or that
runs on this machine (`ray start`), else one of this machine's cores, started for the occasion. A call takes the
cores that go with the memory it needs, so that a machine of many cores does not load more models than it
holds; where there are GPUs it takes one. A worker that dies (out of memory, a machine that left) is no
end: its call is sent again as it is by then, and may yield again what it had yielded, so results need names.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeVar

from .errors import OnggiError, one_line

T = TypeVar("T")
On = Literal["ray"]
# How often a call is sent again when its worker dies.
_AGAIN = 3

_joined = False  # whether `each` started or joined a cluster, which `stop` is to leave


def each(
    calls: Sequence[Callable[[], Iterator[T]]], on: On | None = None, memory: int = 0
) -> Iterator[tuple[int, T]]:
    """Every result of every call as it comes, with the number of its call.

    on: "ray" for a cluster, where calls run at the same time, begun in their order; they are pickled, and an
    OnggiError of theirs is raised here. It stays joined until `stop`. memory: bytes that a call needs there.
    Whoever stops asking (Ctrl-C) cancels what is in hand. Raises OnggiError where Ray is not to be had.
    """
    if on is not None:
        if calls:
            yield from _on_ray(calls, memory)
        return
    for number, call in enumerate(calls):
        for result in call():
            yield number, result


def check(on: On | None) -> None:
    """Raises OnggiError where `on` needs what is not installed."""
    if on is not None and importlib.util.find_spec("ray") is None:
        raise OnggiError("on: ray is not installed; pip install 'onggi[ray]' brings it.")


def stop() -> None:
    """Leave the cluster that `each` joined, and end it where `each` started it."""
    global _joined
    if _joined:
        import ray

        ray.shutdown()
        _joined = False


def _join() -> None:
    global _joined
    check("ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers unless told not to
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdecimal():
            # Ray would wait for minutes; and its client (ray://) streams no results.
            if "//" in host:
                raise ValueError("name the cluster itself, as HOST:6379")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # of many kinds, from an address that is none to a full disk
        where = f"at RAY_ADDRESS={address} cannot be joined" if address else "cannot be joined or started"
        raise OnggiError(f"on: the Ray cluster {where} ({one_line(error)}).") from error
    _joined = True


def _on_ray(calls: Sequence[Callable[[], Iterator[T]]], memory: int) -> Iterator[tuple[int, T]]:
    _join()
    import ray
    from ray.exceptions import RayError, RayTaskError

    cores, gpus = _share(len(calls), memory)
    # Ray's own retry would run the call as it was, and count on the same results in the same order.
    remote = ray.remote(_run).options(
        num_returns="streaming", num_cpus=cores, num_gpus=gpus, max_retries=0, name="onggi"
    )
    in_hand = {remote.remote(call, cores): number for number, call in enumerate(calls)}
    died: Counter[int] = Counter()
    try:
        while in_hand:
            ray.wait(list(in_hand), num_returns=1)
            ready, _ = ray.wait(list(in_hand), num_returns=len(in_hand), timeout=0)
            for stream in ready:
                number = in_hand[stream]
                try:
                    result = ray.get(next(stream))
                except StopIteration:
                    del in_hand[stream]
                except RayTaskError as error:
                    if isinstance(error.cause, OnggiError):
                        raise error.cause from None
                    raise
                except RayError as error:  # a worker or its machine
                    del in_hand[stream]
                    died[number] += 1
                    if died[number] > _AGAIN:
                        raise OnggiError(
                            f"on: a worker of the Ray cluster died {died[number]} times at the same work "
                            f"({one_line(error)[:300]})."
                        ) from error
                    in_hand[remote.remote(calls[number], cores)] = number
                else:
                    yield number, result
    finally:
        with contextlib.suppress(RayError):
            for stream in in_hand:
                ray.cancel(stream)


def _share(calls: int, memory: int) -> tuple[int, int]:
    """The cores and GPUs of each of so many calls that need `memory` bytes."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if any(machine.get("GPU") for machine in machines):
        return 1, 1
    if not machines:  # a cluster that grows when it is asked
        return 1, 0
    fitting = max(math.ceil(machine["CPU"] * memory / machine["memory"]) for machine in machines)
    spread = int(sum(machine["CPU"] for machine in machines)) // calls
    return min(max(1, fitting, spread), int(max(machine["CPU"] for machine in machines))), 0


def _run(call: Callable[[], Iterator[T]], cores: int) -> Iterator[T]:
    """A call at its worker, which may have had another with other cores: torch reads its environment once."""
    os.environ["OMP_NUM_THREADS"] = str(cores)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(cores)
    yield from call()
