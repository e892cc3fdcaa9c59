"""Which script the letters of a text are in.

A translation that was never made, or was made by half, stands in the file as English. Where a
language is not written in Latin letters the letters give it away, without a model that identifies
languages: Korean text is made of Hangul, whatever English names it quotes. What is counted is
letters (Unicode category L), because digits, punctuation and spaces belong to no script.

Scripts are named by their ISO 15924 codes as `languages.script` gives them. Some of those are more
than one Unicode script (`Kore` is Hangul and Han), some less (`Hans` and `Hant` are both Han, which
Unicode does not tell apart).
"""

from __future__ import annotations

import functools
from collections import Counter

import regex

from .. import languages
from ..errors import OnggiError

# ISO 15924 codes that are not themselves a script of Unicode's, and the scripts they are made of.
_MADE_OF = {
    "Kore": ("Hang", "Hani"),
    "Jpan": ("Hira", "Kana", "Hani"),
    "Hrkt": ("Hira", "Kana"),
    "Hans": ("Hani",),
    "Hant": ("Hani",),
    "Hanb": ("Hani", "Bopo"),
    "Jamo": ("Hang",),
    "Latf": ("Latn",),
    "Latg": ("Latn",),
    "Aran": ("Arab",),
    "Cyrs": ("Cyrl",),
    "Geok": ("Geor",),
    "Syre": ("Syrc",),
    "Syrj": ("Syrc",),
    "Syrn": ("Syrc",),
}
# Unicode's names for "any script" and "no known script".
_NO_SCRIPT = ("Zyyy", "Zinh", "Zzzz")

# The scripts in everyday use, by Unicode's four-letter names; any other letter is of no script's.
# fmt: off
_LIVING = (
    "Latn", "Cyrl", "Grek", "Hang", "Hani", "Hira", "Kana", "Arab", "Deva", "Thai", "Khmr", "Beng",
    "Taml", "Telu", "Geor", "Hebr", "Armn", "Gujr", "Guru", "Knda", "Mlym", "Orya", "Sinh", "Laoo",
    "Mymr", "Ethi", "Tibt", "Bopo", "Mong", "Cher", "Cans", "Tfng", "Nkoo", "Thaa", "Syrc", "Java",
    "Bali", "Sund", "Yiii", "Olck", "Mtei", "Cham", "Lana", "Talu", "Adlm", "Vaii", "Rohg", "Lisu",
    "Copt",
)
# fmt: on

_LETTERS = regex.compile(r"\p{L}+")
_RUNS = regex.compile("|".join(rf"(?P<{name}>[\p{{Script={name}}}&&\p{{L}}]+)" for name in _LIVING), regex.V1)


def unicode_scripts(script: str) -> tuple[str, ...]:
    """The Unicode scripts that make up the ISO 15924 `script`: `Jpan` → Hira, Kana, Hani.

    Raises `OnggiError` where Unicode has no such script.
    """
    _pattern(script)
    return _MADE_OF.get(script, (script,))


def count(text: str) -> int:
    """How many letters `text` has, in any script."""
    return sum(map(len, _LETTERS.findall(text)))


def count_in(text: str, script: str) -> int:
    """How many letters of `text` are in the ISO 15924 `script` (`Khmr`, `Kore`, `Hans` …).

    A letter that several scripts use, as the Japanese `ー` of hiragana and katakana, counts in each
    of them (Unicode's Script_Extensions, UAX #24). Raises `OnggiError` for an unknown script.
    """
    return sum(map(len, _pattern(script).findall(text)))


def counts(text: str) -> Counter[str]:
    """How many letters of `text` are in each Unicode script: `Hang`, `Hani`, `Hira`, `Latn` …

    Each letter counts once, in the script it belongs to (Unicode's Script property); those that belong
    to none alone (the Japanese `ー`, `µ`) and scripts out of everyday use are left out.
    """
    found: Counter[str] = Counter()
    for run in _RUNS.finditer(text):
        found[run.lastgroup or ""] += run.end() - run.start()
    return found


def share(text: str, script: str) -> float:
    """The share of the letters of `text` that are in `script`, 0 to 1; 0 where it has no letters."""
    letters = count(text)
    return count_in(text, script) / letters if letters else 0.0


def own_share(text: str, language: str) -> float:
    """`share` for the script in which `language` (a canonical tag) is written."""
    return share(text, languages.script(language))


@functools.cache
def _pattern(script: str) -> regex.Pattern[str]:
    parts = _MADE_OF.get(script, (script,))
    unknown = OnggiError(f"{script!r} is not a script of Unicode's (examples: Kore, Khmr, Latn).")
    if script in _NO_SCRIPT or not all(part.isascii() and part.isalpha() for part in parts):
        raise unknown
    wanted = "".join(rf"\p{{Script_Extensions={part}}}" for part in parts)
    try:
        return regex.compile(rf"[[{wanted}]&&\p{{L}}]+", regex.V1)
    except regex.error as error:
        raise unknown from error
