"""Text to train on out of text as it is found: cleaned, without duplicates, mixed, as rows text, lang, licence, source."""

from .config import Cleaning
from .jobs import Work, build

__all__ = ["Cleaning", "Work", "build"]
