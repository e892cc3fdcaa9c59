"""The one error a user should ever see.

A mistake in a recipe, a file that is not what it claims, a missing tool: each is an
`OnggiError` whose message names the place, what is wrong and the mend. The command line prints
it without a traceback; anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path


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


@contextlib.contextmanager
def reading_yaml(path: Path) -> Iterator[None]:
    """What goes wrong with the YAML file at `path` inside is an OnggiError with its line."""
    import yaml

    try:
        yield
    except OSError as error:
        raise OnggiError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise OnggiError(f"{path}: is not UTF-8 (byte {error.start}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or one_line(error)
        raise OnggiError(f"{path}{line}: is not valid YAML ({problem}).") from error
    except RecursionError as error:
        raise OnggiError(f"{path}: is nested too deep.") from error
