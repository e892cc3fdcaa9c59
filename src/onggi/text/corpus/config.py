"""What is cleaned, and by what: the keys of `--config clean.yaml`, each with its default.

A filter is a pair `[from, to]`, not one number. How much of a clean text is symbols, or said twice,
differs from script to script and from corpus to corpus, so the limit of each language is taken from its
own rows (measures.py); the pair says how strict and how lax that may come out.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from ... import languages as tags
from ...errors import OnggiError, nearest, reading_yaml

Pair = tuple[float, float]
MASKS = ("email", "phone", "resident", "card")


@dataclass(frozen=True)
class Cleaning:
    """Every key of clean.yaml."""

    markup: bool = True
    """Take HTML tags, comments, scripts and entities out of texts that are HTML."""
    boilerplate: float = 0.01
    """A line that stands in more than this share of a language's documents of three lines and more (and in
    at least 10) is taken out of them; 0 takes none."""
    mask: tuple[str, ...] = MASKS
    """Personal data to put a mark in place of: email, phone, resident (Korean resident registration
    numbers, by date and check digit), card (by check digit); [] for none."""
    length: float = 20
    """Letters that a row needs, counted in English; another language's by what it takes for the same content."""
    language: Pair = (0.1, 0.5)
    """Lower limit of the identified language's probability (where a script is one language's: of the share
    of letters in it); a row in another language has 0."""
    letters: Pair = (0.4, 0.6)
    """Lower limit of the share of letters among the characters that are not spaces, in English; another
    language's by the letters it takes for the same content. So too `symbols` and `digits`."""
    symbols: Pair = (0.15, 0.4)
    """Upper limit of the share of punctuation and symbols."""
    digits: Pair = (0.2, 0.5)
    """Upper limit of the share of digits."""
    broken: Pair = (0.001, 0.001)
    """Upper limit of the share of U+FFFD, which stands for text that was lost."""
    word_length: Pair = (15.0, 30.0)
    """Upper limit of the letters to a word; not measured where words are not set apart."""
    bullets: Pair = (0.9, 0.95)
    """Upper limit of the share of lines that begin with a bullet, in texts of four lines and more."""
    ellipses: Pair = (0.3, 0.6)
    """Upper limit of the share of lines that end in an ellipsis."""
    lines: Pair = (0.2, 0.4)
    """Upper limit of the share of letters in lines that stood before in the text."""
    paragraphs: Pair = (0.2, 0.4)
    """The same for paragraphs."""
    repetition: Pair = (1.0, 2.0)
    """Limits of repeated n-grams in multiples of Gopher's (2112.11446, table A1): the most frequent 2-, 3-,
    4-gram 0.2, 0.18, 0.16 of the letters; any said twice of 5 to 10 words 0.15 to 0.1. Where words are not
    set apart an n-gram is the characters that take the place of n English words. In a text of less than 50
    words, Gopher's least, a share counts in proportion."""
    few: int = 100
    """A language with fewer rows than this takes its limits from all rows in its script."""
    overrides: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Limits set by hand, by language: {ko: {symbols: 0.3, language: 0.6}}."""
    exact: bool = True
    """Drop a row whose letters and digits are those of an earlier one."""
    near: bool = True
    """Drop a row that is nearly an earlier one (MinHash)."""
    shingle: int = 5
    """Words of one shingle of MinHash."""
    buckets: int = 14
    """Groups of hashes; two rows are near duplicates where all hashes of one group agree."""
    hashes: int = 8
    """Hashes of a group. 14 groups of 8 find 92% of pairs that share 80% of their shingles, 7% at 50%."""
    korean: Literal["auto", "morphemes", "characters"] = "auto"
    """Words of Korean for MinHash: morphemes (kiwipiepy; about 0.1 MB a second and core) or characters.
    auto: morphemes where kiwipiepy is installed."""
    against: tuple[str, ...] = ("probe", "tasks")
    """Evaluation sets to find in the text: sources as `onggi text` takes, and `tasks`, the tasks that ship
    with onggi."""
    overlap: int = 13
    """English words, or as much in another language, that stand alike in a row and an evaluation set."""
    contaminated: Literal["drop", "keep"] = "drop"
    """What becomes of a row with such an overlap; it is reported either way."""
    temperature: float = 1.0
    """Shares of the languages in the mix, as content to the power of 1/temperature: 1 as they are, 3.3 nearer
    to equal."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Shares of the mix by hand, instead: {ko: 0.5, en: 0.3, km: 0.2}, of every language."""
    epochs: float = 4.0
    """No language's rows are repeated more often than this."""
    content: float | None = None
    """Content of the whole mix, in bytes of English; default: as much as there is."""
    seed: int = 0
    """Of the order of the rows, and of which are repeated or left out by the mix."""
    longest: int = 16 << 20
    """Bytes of the longest line or text; a longer one is bad input."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the key and the mend."""
        for name in LIMITS:
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise OnggiError(f"{name}: [{low:g}, {high:g}] is not a pair from low to high.")
        for kind in self.mask:
            if kind not in MASKS:
                raise OnggiError(f"mask: {kind!r} is not known.{nearest(kind, MASKS)}")
        for name in ("length", "boilerplate", "few", "seed"):
            if getattr(self, name) < 0:
                raise OnggiError(f"{name}: {getattr(self, name)} is less than 0.")
        for name in ("shingle", "buckets", "hashes", "overlap", "longest", "temperature", "epochs"):
            if not getattr(self, name) > 0:
                raise OnggiError(f"{name}: {getattr(self, name)} is not more than 0.")
        if self.boilerplate > 1:
            raise OnggiError(f"boilerplate: {self.boilerplate} is not a share from 0 to 1.")
        if self.content is not None and self.content <= 0:
            raise OnggiError(f"content: {self.content} is not a number of bytes.")
        if any(share <= 0 for share in self.shares.values()):
            raise OnggiError("shares: each is more than 0; leave a language out of --languages instead.")


# The keys that are limits, in the order in which rows go through them.
LIMITS = tuple(item.name for item in fields(Cleaning) if item.type == "Pair")


def load(path: Path | None, languages: tuple[str, ...]) -> Cleaning:
    """The defaults with what the YAML file at `path` says. Raises OnggiError with file, line and key."""
    if path is None:
        return Cleaning()
    with reading_yaml(path):
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    if root is None:
        return Cleaning()
    hints = typing.get_type_hints(Cleaning)
    found: dict[str, Any] = {}
    for key, node in _entries(root, path):
        where = f"{path}, line {node.start_mark.line + 1}: {key}"
        if key not in hints:
            raise OnggiError(f"{where}: is not a key.{nearest(key, hints)}")
        value = _value(node, path)
        try:
            if key == "overrides":
                value = {
                    _language(tag, languages): {name: _limit(name, limit) for name, limit in limits.items()}
                    for tag, limits in value.items()
                }
            elif key == "shares":
                value = {_language(tag, languages): _typed(share, float) for tag, share in value.items()}
            else:
                value = _typed(value, hints[key])
            found[key] = value
        except (ValueError, TypeError, AttributeError) as error:
            kind = str(hints[key]).replace("typing.", "")
            kind = kind if not isinstance(hints[key], type) else hints[key].__name__
            raise OnggiError(f"{where}: {value!r} is not {kind}.") from error
        except OnggiError as error:
            raise OnggiError(f"{where}: {error}") from error
    if found.get("shares") and (lacking := [tag for tag in languages if tag not in found["shares"]]):
        raise OnggiError(f"{path}: shares: says nothing of {', '.join(lacking)}.")
    try:
        return replace(Cleaning(), **found)
    except OnggiError as error:
        raise OnggiError(f"{path}: {error}") from error


def _entries(node: yaml.Node, path: Path) -> list[tuple[str, yaml.Node]]:
    """The pairs of a mapping. A plain `no` is Norwegian here: every scalar is read as it is written."""
    if not isinstance(node, yaml.MappingNode):
        raise OnggiError(f"{path}, line {node.start_mark.line + 1}: is not a mapping of keys to values.")
    seen: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise OnggiError(f"{path}, line {key.start_mark.line + 1}: a key is a word.")
        if key.value in seen:
            raise OnggiError(f"{path}, line {key.start_mark.line + 1}: the key {key.value!r} stands twice.")
        seen[key.value] = value
    return list(seen.items())


def _value(node: yaml.Node, path: Path) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {key: _value(value, path) for key, value in _entries(node, path)}
    if isinstance(node, yaml.SequenceNode):
        return [_value(value, path) for value in node.value]
    return node.value


def _typed(value: Any, kind: Any) -> Any:
    """A scalar's text, or a list of them, as `kind`; ValueError where it is not one."""
    if kind is bool:
        return (
            {"true": True, "false": False}[value.lower()] if value.lower() in ("true", "false") else int("x")
        )
    if kind in (int, float):
        if not isinstance(value, str):
            raise ValueError(value)
        number = kind(value.replace("_", ""))
        if number != number:
            raise ValueError(value)
        return number
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise OnggiError(f"{value!r} is not known.{nearest(str(value), typing.get_args(kind))}")
        return value
    if typing.get_origin(kind) is types.UnionType:
        return None if value in ("null", "~", "") else _typed(value, typing.get_args(kind)[0])
    if kind == Pair:
        one = value if isinstance(value, list) else [value, value]
        low, high = (_typed(item, float) for item in one)
        return low, high
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(value)
    return tuple(value)


def _language(tag: str, languages: tuple[str, ...]) -> str:
    found = tags.canonical(tag)
    if found not in languages:
        raise OnggiError(f"{tag} is not one of --languages ({', '.join(languages)}).")
    return found


def _limit(name: str, value: Any) -> float:
    known = (*(key for key in LIMITS if key != "repetition"), *GOPHER)
    if name not in known:
        raise OnggiError(f"{name!r} has no limit.{nearest(name, known)}")
    return float(_typed(value, float))


# Gopher's limits for repeated n-grams (2112.11446, table A1), by the name of our measure.
GOPHER = {
    **{f"top_{n}": share for n, share in ((2, 0.2), (3, 0.18), (4, 0.16))},
    **{f"repeated_{n}": round(0.2 - n / 100, 2) for n in range(5, 11)},
}
