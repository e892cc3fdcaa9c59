"""Text: where it comes from, in which languages, and as what tokens. Nothing here imports torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sources import Text, available, fingerprint, load, shards

__all__ = ["Text", "available", "fingerprint", "load", "shards"]


def __getattr__(name: str) -> Any:
    """Those of `__all__`, when first asked for: pyarrow, which they want, costs a server of pages 40 MB and its start."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import sources

    return getattr(sources, name)
