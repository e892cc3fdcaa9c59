"""Many independent calls: here, one after another.

What fans out (models × tasks × languages) is written as calls that yield results, so that where they
run is decided in one place and a result is kept as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def each(calls: Sequence[Callable[[], Iterator[T]]]) -> Iterator[tuple[int, T]]:
    """Every result of every call as it comes, with the number of its call."""
    for number, call in enumerate(calls):
        for result in call():
            yield number, result
