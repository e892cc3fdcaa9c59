"""The engine for a model, whatever the model is: what runs it, what it can do, and the one that is open.

A folder or package is run by transformers, a server answers for itself, and a `.gguf` is run as it is
by llama.cpp: answers through `xllamacpp`, likelihoods through `llama-cpp-python`, each only where it is
installed. Without, the file is dequantised and run by transformers, and `how` says so, since a model
that was run on another grid than the one it is served on may differ from it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

from ..models import references
from .spending import Options

Need = Literal["score", "generate", "states"]
How = Literal["transformers", "llama.cpp", "dequantised", "server"]


def how(source: str, need: Need) -> How:
    """What runs `source` to `score` given texts, to `generate`, or to give the hidden `states` that the
    divergence from another model is made of; `dequantised`: a GGUF file by transformers.
    """
    if references.served(source):
        return "server"
    if not references.is_gguf(source):
        return "transformers"
    library = {"score": "llama_cpp", "generate": "xllamacpp"}.get(need)
    return "llama.cpp" if library and importlib.util.find_spec(library) else "dequantised"


def versions(source: str) -> dict[str, str]:
    """What runs a GGUF file for each need, with the version of the library: other numbers come of another."""
    found = {}
    for need, library in (("score", "llama-cpp-python"), ("generate", "xllamacpp")):
        way = how(source, need)  # type: ignore[arg-type]
        found[need] = f"{library} {importlib.metadata.version(library)}" if way == "llama.cpp" else way
    return found


@dataclass
class _Open:
    key: tuple[str, Need]
    engine: Any
    stack: contextlib.ExitStack


_open: list[_Open] = []  # one at most


def engine(source: str, need: Need, options: Options | None = None) -> Any:
    """The engine that runs `source`, ready to `score` or to `generate`. options: of a server.

    It stays open in this process until another is asked for or `close` is called: a model is loaded
    once for all that it is asked, and never two at a time. Raises OnggiError for what cannot be run.
    """
    way = how(source, need)
    # transformers' engine does both.
    key: tuple[str, Need] = (source, need if way == "llama.cpp" else "generate")
    if _open and _open[0].key == key:
        return _open[0].engine
    close()
    with contextlib.ExitStack() as stack:
        made = _made(source, need, way, options, stack)
        _open.append(_Open(key, made, stack.pop_all()))
    return made


def _made(source: str, need: Need, way: How, options: Options | None, stack: contextlib.ExitStack) -> Any:
    if way == "server":
        from . import server

        return server.Engine(source, options)
    if way == "llama.cpp":
        path = references.gguf(source)
        assert path is not None
        if need == "generate":
            from . import llamacpp

            return stack.enter_context(llamacpp.running(path))
        from ..text.tokens import Tokens
        from . import llamascores

        return stack.enter_context(llamascores.Scorer(path, Tokens(references.resolve(source))))
    from . import transformers

    return transformers.Engine(references.resolve(source))


def close() -> None:
    """Close the engine that is open and give its memory back."""
    while _open:
        _open.pop().stack.close()
    gc.collect()
