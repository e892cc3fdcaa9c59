"""A local Ray cluster of two workers for a module's tests, and a driver beside it that does no work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cluster(module: str) -> Iterator[None]:
    """Ray with two cores; the functions of `module`, which workers cannot import, are sent as they are."""
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=200_000_000,
    )
    ray.cloudpickle.register_pickle_by_value(sys.modules[module])
    try:
        yield
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[module])
        ray.shutdown()
