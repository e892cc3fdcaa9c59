"""Options of a stage as jsonargparse sees them: the config dataclass is the command line and the schema.

Each field's type, default and docstring become a flag of `onggi VERB` and a key of a recipe, checked
by the same parser, so that the two cannot drift apart.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import jsonargparse
from jsonargparse.typing import register_type

from .errors import OnggiError
from .languages import Languages
from .stages import Stage
from .stages.base import Names, flag

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


def _register(kind: type[Languages] | type[Names]) -> None:
    """Make a list of one type an option: `a,b` on the command line, that or a list in YAML."""

    def parse(value: Any) -> Any:
        try:
            return value if isinstance(value, kind) else kind(value)
        except OnggiError as error:
            raise ValueError(str(error)) from error

    register_type(kind, str, parse, deserializer_exceptions=(ValueError,), fail_already_registered=False)


_register(Languages)
_register(Names)


class HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Help in which the type of languages reads `en,ko` and text keeps its words."""

    def _expand_help(self, action: Any) -> str:
        text = super()._expand_help(action)
        kinds = r"<class '(?:[\w.]+\.)?(Languages|Names)'>|(?<=\(type: )(Languages|Names)\b"
        return re.sub(kinds, lambda found: (found[1] or found[2]).lower(), text)


def parser(stage: Stage) -> jsonargparse.ArgumentParser:
    """The parser of `onggi VERB`, without `--out`. What is off by default is a switch."""
    plain: dict[str, dict[str, Any]] = {
        name: {"nargs": nargs} if nargs else {} for name, nargs in stage.positional.items()
    }
    plain |= {f"--{f.name}": {"action": "store_true"} for f in fields(stage.config) if f.default is False}
    return verb_parser(stage.verb, stage.config, plain)


def verb_parser(
    verb: str, config: type[Any], plain: Mapping[str, Mapping[str, Any]]
) -> jsonargparse.ArgumentParser:
    """The parser of a verb whose options are the fields of `config`. plain: those that argparse is to
    take its own way, with its settings; a name with dashes is an option, one without is positional.
    """
    made = jsonargparse.ArgumentParser(
        prog=f"onggi {verb}",
        description=(config.__doc__ or "").strip(),
        exit_on_error=False,
        formatter_class=HelpFormatter,
    )
    said = said_of(config)
    for name, settings in plain.items():
        made.add_argument(name, help=said[name.lstrip("-")], **settings)
    made.add_class_arguments(config, skip={name.lstrip("-") for name in plain}, as_group=False)
    for action in made._actions:
        for name in [name for name in action.option_strings if name != flag(name)]:
            action.option_strings, action.metavar = [flag(name)], flag(action.dest).upper()
            made._option_string_actions[flag(name)] = made._option_string_actions.pop(name)
    return made


@functools.cache
def docs(stage: Stage) -> dict[str, str]:
    """Option → its docstring, of a stage's config."""
    return said_of(stage.config)


def said_of(config: type[Any]) -> dict[str, str]:
    """Field → its docstring, of a dataclass."""
    from docstring_parser import parse_from_object

    parsed = parse_from_object(config)
    return {item.args[1]: " ".join((item.description or "").split()) for item in parsed.params}


@functools.cache
def _checker(stage: Stage) -> jsonargparse.ArgumentParser:
    made = jsonargparse.ArgumentParser(exit_on_error=False)
    made.add_class_arguments(stage.config)
    return made


def typed(stage: Stage, key: str, value: Any) -> Any:
    """`value` as the type of the config's field `key`; OnggiError saying what was expected."""
    required: dict[str, Any] = {
        field.name: []
        if str(field.type).startswith("list")
        else "en"
        if "Languages" in str(field.type)
        else "x"
        for field in fields(stage.config)
        if field.default is MISSING and field.default_factory is MISSING
    }
    if value is None and "None" not in str(next(f.type for f in fields(stage.config) if f.name == key)):
        raise OnggiError("has no value; leave the key out to have the default.")
    try:
        parsed = _checker(stage).parse_object({**required, key: value})
    except jsonargparse.ArgumentError as error:
        raise OnggiError(said(str(error))) from error
    return parsed[key]


def said(message: str) -> str:
    """A message of jsonargparse's in words for a user."""
    message = re.sub(r"\s+", " ", message).strip()
    match = re.search(r"Expected an? (.+?)\. Got value: (.*)$", message)
    if not match:  # of an option that may be left out
        union = (
            r"Union subtypes .*? - Expected an? (.+?) - Expected an? <class 'NoneType'> .*?Given value: (.*)$"
        )
        match = re.search(union, message)
    if match:
        kind = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", match[1]).replace("typing.", "")
        options = re.search(r"Literal\[(.+?)\]", kind)
        if options:
            kind = "one of " + options[1].replace("'", "")
        value = match[2].strip()
        return f"expected {kind}, not {value if value else 'nothing'}."
    return re.sub(r'^(Parser key "[\w.]+":\s*)?(Not of type \w+:\s*)?', "", message)
