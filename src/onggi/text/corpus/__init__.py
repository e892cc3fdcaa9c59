"""Text to train on out of text as it is found: cleaned, without duplicates, mixed, as rows text, lang, licence, source."""

from .build import Work, build
from .config import Cleaning

__all__ = ["Cleaning", "Work", "build"]
