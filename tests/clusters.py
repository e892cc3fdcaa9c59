"""A local Ray cluster of two workers for all tests that want one, and a driver beside it that does no work."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cluster() -> Iterator[None]:
    """Ray with two cores."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray's own 15 starves beside another process of tests.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=200_000_000,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def sent(module: str) -> Iterator[None]:
    """The functions of `module`, which workers cannot import, are sent as they are."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[module])
    try:
        yield
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[module])
