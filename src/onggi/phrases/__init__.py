"""What onggi says to readers, in their language: one YAML file of phrases a language.

A phrase is a `str.format` template whose fields are filled by name. Two things languages need and
`str.format` lacks are format specifications here: `{count:passage|passages}` picks by number, and
`{language:은/는}` puts the Korean particle that fits the last sound of the word. To add a language,
translate `en.yaml` into a file named by its tag; a test compares keys and fields.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from .. import languages
from ..errors import OnggiError


class _Formatter(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        if "|" in format_spec:
            one, other = format_spec.split("|")
            return f"{value:,} {one if value == 1 else other}"
        if "/" in format_spec:
            return with_particle(str(value), *format_spec.split("/"))
        return str(super().format_field(value, format_spec))


# Final consonants of the digits as Korean reads them: 영 일 이 삼 사 오 육 칠 팔 구.
_DIGITS = {"0": "ㅇ", "1": "ㄹ", "3": "ㅁ", "6": "ㄱ", "7": "ㄹ", "8": "ㄹ"}


def with_particle(word: str, closed: str, opened: str) -> str:
    """`word` with `closed` after a final consonant (`을`), `opened` after a vowel (`를`).

    `으로` stands after ㄹ as after a vowel. What cannot be told from the letters gets both: `w4을(를)`.
    """
    spoken = word.rstrip(")]}`*'\" \u2069")  # the last closes a bidi isolate
    if word.endswith(")") and "(" in word:  # 크메르어(km): the bracket is not read
        spoken = word[: word.rindex("(")].rstrip()
    last = spoken[-1:]
    if "가" <= last <= "힣":
        final = (ord(last) - ord("가")) % 28
        vowel, liquid = final == 0, final == 8
    elif last.isdecimal() and last.isascii():
        vowel, liquid = last not in _DIGITS, _DIGITS.get(last) == "ㄹ"
    else:
        return f"{word}(으)로" if closed == "으로" else f"{word}{closed}({opened})"
    return word + (opened if vowel or (liquid and closed == "으로") else closed)


def available(of: str = "") -> list[str]:
    """Tags of the languages there are phrases in. of: a folder here, for what has its own (the page of rate)."""
    files = resources.files(__package__).joinpath(of).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


@functools.cache
def _file(tag: str, of: str) -> Mapping[str, str]:
    flat: dict[str, str] = {}

    def walk(node: Mapping[str, Any], path: tuple[str, ...]) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, (*path, key))
            else:
                flat[".".join((*path, key))] = value

    content = resources.files(__package__).joinpath(of, f"{tag}.yaml").read_text(encoding="utf-8")
    walk(yaml.safe_load(content), ())
    return flat


class Phrases:
    """The phrases of one language: `Phrases("ko")("headline.alone", language="크메르어", …)`.

    Raises OnggiError for a language without phrases, naming those there are.
    """

    def __init__(self, language: str = "en", of: str = ""):
        self.language = languages.canonical(language)
        if self.language not in available(of):
            raise OnggiError(
                f"there are no phrases in {languages.name(self.language)} ({self.language}), only in "
                f"{', '.join(available(of))}; another language is one file, see {Path('onggi/phrases', of, 'en.yaml')}."
            )
        self.templates = _file(self.language, of)

    def __call__(self, key: str, **values: Any) -> str:
        """The phrase `key` with its fields filled; KeyError for a key or field that is not there."""
        template = self.templates[key]
        return _Formatter().vformat(template, (), values) if "{" in template or "}" in template else template

    def __contains__(self, key: str) -> bool:
        return key in self.templates

    def name(self, tag: str) -> str:
        """A language's name in this language."""
        return languages.name(tag, self.language)
