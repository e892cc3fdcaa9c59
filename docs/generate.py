"""Writes what in docs/ comes from the code: each verb's option table, and the list of verbs.

    python docs/generate.py           # writes (make docs)
    python docs/generate.py --check   # says what is not up to date, and fails

docs/cleaning.md holds the keys of clean.yaml between `<!-- keys -->` and `<!-- /keys -->`.
docs/rate.md has a table for each verb of `onggi rate`, between marks of that verb's name.
A page holds its table between `<!-- options -->` and `<!-- /options -->`; docs/README.md holds the list
between `<!-- verbs -->` and `<!-- /verbs -->`. All else on a page is written by hand.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal

from onggi import arguments, cli
from onggi.languages import Languages
from onggi.stages import VERBS, Plan, Stage, rate_people, rate_results
from onggi.stages.base import Names, flag

DOCS = Path(__file__).parent
KINDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "switch",
    Languages: "languages",
    Names: "names",
    Path: "path",
    list[str]: "list of text",
}


def verbs() -> dict[str, str]:
    """Every verb of the command line → its summary."""
    stages = {verb: (stage.config.__doc__ or "").strip().split("\n")[0] for verb, stage in VERBS.items()}
    return {**stages, **cli._OTHER}


def stage_of(verb: str) -> Stage | None:
    """The stage of `verb`; of one that makes no artifact (chat), its config as if it were one."""
    if verb in VERBS:
        return VERBS[verb]
    if verb == "rate results":
        return rate_results.STAGE
    if verb.startswith("rate "):
        own = rate_people.VERBS[verb.removeprefix("rate ")]
        return Stage(verb, own.config, _none, _none, _none, dict.fromkeys(own.positional))
    if importlib.util.find_spec(f"onggi.stages.{verb}") is None:
        return None
    module = importlib.import_module(f"onggi.stages.{verb}")
    config = getattr(module, f"{verb.capitalize()}Config", None)
    if config is None:
        return None
    required = [f.name for f in fields(config) if f.default is MISSING and f.default_factory is MISSING]
    return Stage(verb, config, _none, _none, _none, dict.fromkeys(required))


def _none(*_arguments: Any) -> Any:
    return Plan()


def kind(hint: Any) -> str:
    """A type in words."""
    if typing.get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(hint))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(kind(part) for part in typing.get_args(hint) if part is not type(None))
    return KINDS.get(hint) or str(hint)


def rows(verb: str) -> Iterator[tuple[str, str, str, str]]:
    """Option, type, default, what and why; those of the config first, as it has them."""
    stage = stage_of(verb)
    own: set[str] = set()
    if stage:
        hints = typing.get_type_hints(stage.config)
        for field in fields(stage.config):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            name = field.name if field.name in stage.positional else f"--{flag(field.name)}"
            own.add(field.name)
            yield name, kind(hints[field.name]), _default(default), arguments.docs(stage)[field.name]
    try:
        parser = cli.parser(verb)
    except KeyError:  # its config is all that is known of it
        return
    for action in parser._actions:
        if action.dest in own or action.dest == "help":
            continue
        name = action.option_strings[0] if action.option_strings else action.dest
        is_switch = action.nargs == 0
        default = MISSING if action.required else action.default
        yield (
            f"{name} {action.metavar}" if action.metavar else name,
            "switch" if is_switch else "text",
            "off" if is_switch else _default(default),
            action.help,
        )


def _default(value: Any) -> str:
    if value is MISSING:
        return "required"
    if value is False:
        return "off"
    if value is None or value == "":
        return "none"
    return f"`{','.join(value) if isinstance(value, list | tuple) else value}`"


def table(verb: str) -> str:
    """The option table of `verb` in Markdown."""
    lines = ["| option | type | default | what and why |", "| --- | --- | --- | --- |"]
    for name, *cells in rows(verb):
        lines.append(" | ".join((f"| `{name}`", *(cell.replace("|", "\\|") for cell in cells))) + " |")
    return "\n".join(lines)


def keys() -> str:
    """The keys of clean.yaml in Markdown, each with its default as YAML has it."""
    from onggi.text.corpus import Cleaning

    said, defaults = arguments.said_of(Cleaning), Cleaning()
    lines = ["| key | default | what and why |", "| --- | --- | --- |"]
    for field in fields(Cleaning):
        value = getattr(defaults, field.name)
        value = list(value) if isinstance(value, tuple) else value
        shown = json.dumps(value).replace('"', "")
        lines.append(f"| `{field.name}` | `{shown}` | {said[field.name]} |")
    return "\n".join(lines)


def listing() -> str:
    """The list of verbs for docs/README.md."""
    return "\n".join(f"- [{verb}]({verb}.md): {said}" for verb, said in verbs().items())


def filled(page: Path, mark: str, content: str) -> str:
    """The text of `page` with `content` between its marks. Raises ValueError where they are not there."""
    text = page.read_text(encoding="utf-8")
    start, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"{page.name} needs the lines {start.strip()} and {end}, once each.")
    before, rest = text.split(start)
    return f"{before}{start}{content}\n{end}{rest.split(end)[1]}"


def main(check: bool, docs: Path = DOCS) -> list[str]:
    """Write the pages, or with `check` only compare; returns what is wrong, a line each."""
    wrong = []
    parts = [
        ("README.md", "verbs", listing()),
        ("cleaning.md", "keys", keys()),
        *((f"{verb}.md", "options", table(verb)) for verb in verbs()),
        *(("rate.md", verb, table(f"rate {verb}")) for verb in (*rate_people.VERBS, "results")),
    ]
    for name, mark, content in parts:
        page = docs / name
        if not page.is_file():
            wrong.append(
                f"docs/{name} is missing: every verb has a page. Write it, with the lines <!-- {mark} --> "
                f"and <!-- /{mark} --> in it, and run `make docs`."
            )
            continue
        try:
            new = filled(page, mark, content)
        except ValueError as error:
            wrong.append(f"docs/{error}")
            continue
        if check and new != page.read_text(encoding="utf-8"):
            wrong.append(f"docs/{name} is not what the code says; run `make docs`.")
        elif not check:
            page.write_text(new, encoding="utf-8")
    return wrong


if __name__ == "__main__":
    sys.exit("\n".join(main("--check" in sys.argv)) or 0)
