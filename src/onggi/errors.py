"""The one error a user should ever see.

A mistake in a recipe, a file that is not what it claims, a missing tool: each is an
`OnggiError` whose message names the place, what is wrong and the mend. The command line prints
it without a traceback; anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OnggiError(Exception):
    """Something the user can mend; `str(error)` is the whole message."""


class UnavailableError(OnggiError):
    """A source that is not to be had here and now (no apt, no network), though nothing is wrong with it."""


def one_line(error: object) -> str:
    """A library's message without its line breaks."""
    return " ".join(str(error).split())


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a misspelt `name`: ` Did you mean 'x'?`, or the list of what there is."""
    names = [str(v) for v in valid]
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if match:
        return f" Did you mean {match[0]!r}?"
    return f" There is: {', '.join(names)}." if names else ""
