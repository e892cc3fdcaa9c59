"""A recipe: named stages in YAML, their order from their references, overrides from the command line.

Everything a recipe can be wrong about is found before its first stage runs, and is said in one
line with the file, the key and the nearest valid name.
"""

from __future__ import annotations

import graphlib
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from .errors import OnggiError, nearest, one_line, reading_yaml
from .stages import VERBS, Stage
from .stages.base import flag

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z0-9][\w-]*")  # no dot: an override is STAGE.KEY=VALUE


@dataclass(frozen=True)
class Step:
    """One stage of a recipe. options: as written, references and all. needs: stages it refers to."""

    name: str
    stage: Stage
    options: dict[str, Any]
    needs: tuple[str, ...]
    where: str  # for messages: file and key


@dataclass(frozen=True)
class Recipe:
    """name: of the run. steps: in an order in which each comes after those it needs."""

    name: str
    steps: tuple[Step, ...]


class _Loader(yaml.SafeLoader):
    """YAML in which `no` is Norwegian, not false, and a key may stand only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            if isinstance(key, Hashable):  # what is not is refused below
                seen.add(key)
        return super().construct_mapping(node, deep)


# Only true and false are booleans (as in YAML 1.2); yes, no, on and off stay words.
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.I), list("tTfF"))


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` with `overrides` (`stage.key=value`) applied, checked throughout.

    Raises OnggiError for whatever is wrong with it.
    """
    with reading_yaml(path):
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    if not isinstance(content, dict):
        raise OnggiError(f'{path}: a recipe is a mapping with "name" and "stages".')
    for key in content:
        if key not in ("name", "stages"):
            raise OnggiError(f"{path}: unknown key {key!r}.{nearest(str(key), ('name', 'stages'))}")
    stages = content.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise OnggiError(f'{path}: "stages" is missing or empty; it maps names to stages.')
    stages = {str(name): _mapping(path, str(name), body) for name, body in stages.items()}
    for override in overrides:
        _override(path, stages, override)
    name = str(content.get("name") or path.stem)
    for label in (name, *stages):
        if not _NAME.fullmatch(label):
            raise OnggiError(f"{path}: {label!r} cannot be a name; use letters, digits, '_' and '-'.")
    steps = {label: _step(path, label, body, stages) for label, body in stages.items()}
    sorter = graphlib.TopologicalSorter({label: step.needs for label, step in steps.items()})
    try:
        order = list(sorter.static_order())
    except graphlib.CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        raise OnggiError(f"{path}: stages refer to each other in a circle: {circle}.") from error
    recipe = Recipe(name, tuple(steps[label] for label in order))
    for step in recipe.steps:
        config(step, {label: Path(label) for label in steps})
    return recipe


def config(step: Step, folders: Mapping[str, Path]) -> Any:
    """The step's config dataclass, `${stage}` replaced by that stage's folder."""
    return build(step.stage, _resolve(step.options, folders), step.where)


def build(stage: Stage, options: Mapping[str, Any], where: str) -> Any:
    """A stage's config from plain values, typed as its fields are.

    where: what to name in messages, `recipe.yaml: stages.w4`. Raises OnggiError for an unknown key,
    one that is missing, or a value of another type.
    """
    from . import arguments

    known = {flag(field.name): field for field in fields(stage.config)}
    for key in options:
        if key not in known:
            raise OnggiError(f"{where}.{key}: {stage.verb} has no option {key!r}.{nearest(str(key), known)}")
    for key, field in known.items():
        required = field.default is MISSING and field.default_factory is MISSING
        if required and options.get(key) is None:
            raise OnggiError(f"{where}: {stage.verb} needs {key!r}.")
    values = {}
    for key, value in options.items():
        try:
            # A single model where a list is asked for is a list of one.
            if known[key].type == "list[str]" and isinstance(value, str):
                value = [value]
            name = known[key].name
            values[name] = arguments.typed(stage, name, value)
        except OnggiError as error:
            raise OnggiError(f"{where}.{key}: {error}") from error
    try:
        return stage.config(**values)
    except OnggiError as error:
        raise OnggiError(f"{where}.{error}") from error


def _mapping(path: Path, name: str, body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise OnggiError(f"{path}: stages.{name}: is not a mapping with a verb and its options.")
    return {str(key): value for key, value in body.items()}


def _override(path: Path, stages: dict[str, dict[str, Any]], text: str) -> None:
    key, equals, value = text.removeprefix("--").partition("=")
    name, dot, option = key.partition(".")
    if not equals or not dot or not option:
        raise OnggiError(f"{text!r}: an override is STAGE.KEY=VALUE, as in {next(iter(stages))}.tokens=4096.")
    if name not in stages:
        raise OnggiError(f"{text!r}: {path} has no stage {name!r}.{nearest(name, stages)}")
    try:
        stages[name][option] = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or one_line(error)
        raise OnggiError(f"{text!r}: the value is not valid YAML ({problem}); quote it.") from error


def _step(path: Path, name: str, body: dict[str, Any], stages: Mapping[str, Any]) -> Step:
    where = f"{path}: stages.{name}"
    verb = body.get("verb")
    if verb is None:
        raise OnggiError(f'{where}: has no "verb".{nearest("", VERBS)}')
    if not isinstance(verb, str) or verb not in VERBS:
        raise OnggiError(f"{where}.verb: there is no verb {verb!r}.{nearest(str(verb), VERBS)}")
    options = {key: value for key, value in body.items() if key != "verb"}
    try:
        needs = _references(options)
    except RecursionError as error:
        raise OnggiError(f"{where}: a value holds itself.") from error
    for needed in needs:
        if needed not in stages:
            raise OnggiError(
                f"{where}: refers to ${{{needed}}}, which is no stage here.{nearest(needed, stages)}"
            )
    return Step(name, VERBS[verb], options, tuple(needs), where)


def _references(value: Any) -> list[str]:
    if isinstance(value, str):
        return _REFERENCE.findall(value)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return list(dict.fromkeys(name for item in value for name in _references(item)))
    return []


def _resolve(value: Any, folders: Mapping[str, Path]) -> Any:
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: str(folders[match[1]]), value)
    if isinstance(value, dict):
        return {key: _resolve(item, folders) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, folders) for item in value]
    return value
