"""Text: where it comes from, in which languages, and as what tokens. Nothing here imports torch."""

from .sources import Text, fingerprint, load, shards

__all__ = ["Text", "fingerprint", "load", "shards"]
