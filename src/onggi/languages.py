"""Languages as data: one canonical tag for each, its script and its names.

People write `zh-cn`, `en_US`, `kor_Hang` and `arb_Arab` for `zh-Hans`, `en`, `ko` and `ar`, and a
report that counts them apart is wrong. Every tag that enters onggi passes through `canonical`
once; from there on a language is a short BCP-47 tag in which only what distinguishes is kept:
the script where the language alone does not imply it (`sr-Latn`, and always for Chinese), the
region where it is not the usual one (`pt-PT`, but `pt` for Brazil).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import langcodes

from .errors import OnggiError

# Scripts of which another is a part, as CLDR's likely subtags name the whole.
_PART_OF = {"Hang": "Kore", "Hira": "Jpan", "Kana": "Jpan"}


def canonical(tag: str) -> str:
    """`tag` (BCP-47 or FLORES style such as `kor_Hang`) as onggi's one tag for it.

    Raises `OnggiError` for what is not a language.
    """
    if not isinstance(tag, str):
        raise OnggiError(
            f"{tag!r} is not a language tag but a {type(tag).__name__}; quote it (Norwegian is 'no')."
        )
    return _canonical(tag)


@functools.cache
def _canonical(tag: str) -> str:
    try:
        language = langcodes.Language.get(langcodes.standardize_tag(tag.strip(), macro=True))
    except (langcodes.LanguageTagError, ValueError) as error:
        raise OnggiError(f"{tag!r} is not a language tag (examples: ko, zh-Hans, kor_Hang).") from error
    if not language.language or not langcodes.Language.make(language.language).is_valid():
        raise OnggiError(f"{tag!r} is not a known language (examples: ko, zh-Hans, kor_Hang).")
    usual = langcodes.Language.make(language.language).maximize()
    script = _PART_OF.get(language.script or "", language.script)
    if language.language == "zh":
        script = language.maximize().script
    elif script == usual.script:
        script = None
    with_script = langcodes.Language.make(language.language, script=script).maximize()
    territory = language.territory if language.territory != with_script.territory else None
    return langcodes.Language.make(language.language, script=script, territory=territory).to_tag()


def parse(value: str | Iterable[str]) -> tuple[str, ...]:
    """A list of languages from `"en,ko"` or `["en", "ko"]`: canonical, in order, no doubles.

    Raises `OnggiError` where a tag is unknown or the list is empty.
    """
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise OnggiError(f"{value!r} is not a list of languages, as in en,ko,km.")
    parts = value.split(",") if isinstance(value, str) else list(value)
    tags = [canonical(part) for part in parts if not (isinstance(part, str) and not part.strip())]
    if not tags:
        raise OnggiError("The list of languages is empty; name at least one, as in en,ko,km.")
    return tuple(dict.fromkeys(tags))


@functools.cache
def script(tag: str) -> str:
    """ISO 15924 code of the script the language is written in: `Latn`, `Kore`, `Hans`, `Khmr` …"""
    return langcodes.Language.get(tag).maximize().script or "Zyyy"


def is_latin(tag: str) -> bool:
    """True where the language is written in Latin letters."""
    return script(tag) == "Latn"


def is_right_to_left(tag: str) -> bool:
    """True where the language is written from right to left."""
    return script(tag) in _RIGHT_TO_LEFT


_RIGHT_TO_LEFT = {"Arab", "Hebr", "Thaa", "Syrc", "Nkoo", "Adlm", "Rohg", "Mand", "Samr"}


@functools.cache
def name(tag: str, language: str = "en") -> str:
    """The language's name in `language`: `name("km") == "Khmer"`, `name("km", "ko") == "크메르어"`."""
    return langcodes.Language.get(tag).display_name(language)


class Languages(tuple[str, ...]):
    """The one type of a list of languages: `en,ko` on a command line, a list or that string in YAML.

    `Languages("en,zh-cn") == ("en", "zh-Hans")`. Raises `OnggiError` as `parse` does.
    """

    def __new__(cls, value: str | Iterable[str]) -> Languages:
        """Parse `value`; see `parse`."""
        return super().__new__(cls, parse(value))

    def __str__(self) -> str:
        """As on a command line: `en,zh-Hans`."""
        return ",".join(self)
