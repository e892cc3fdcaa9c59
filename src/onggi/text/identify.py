"""Which language a text is in, offline: the script decides where it can, `py3langid` where it cannot.

Hangul is Korean and Khmer letters are Khmer, whatever a statistical model makes of a line of eight of
them; only where several languages share a script (Latin, Cyrillic, Arabic, Devanagari, Bengali …) is there
something to weigh, and then only among the languages of that script. Chinese characters are told apart
into `zh-Hans` and `zh-Hant` (and Japanese written without kana) by the characters that only one of them
has; Japanese with kana from Chinese by its kana.

Measured on the probe (`python tests/text/test_identify.py`; no candidates given, so the choice is among
all the model's languages; a piece is the first 15 to 60 characters of a sentence):

                  passages      n   sentences      n      pieces      n   pieces taken for
    en              100.0%     40      100.0%    138       99.3%    138   nn 1
    de              100.0%     40       99.4%    158       98.7%    158   af 1, sv 1
    es              100.0%     40       98.7%    149       94.0%    149   gl 3, oc 1, hu 1, ca 1 …
    ru              100.0%     40       98.7%    149       90.6%    149   bg 7, uk 3, mk 2, sr 1 …
    ar              100.0%     40      100.0%    122      100.0%    122
    hi              100.0%     40      100.0%    113       98.2%    113   mr 1, gom 1
    el ko ja zh-Hans th km: 100.0% of 240, 723 and 723

What these figures do not show, since the probe has no such pair: Indonesian is taken for Malay (14% of
pieces of LibreOffice's help), Portuguese for Galician (10%), Czech for Slovak (6%), Hindi for Nepali (10%),
and Bosnian, Croatian and Serbian in Latin letters for each other: docs/confusion.md. `alike` and
`expected` keep that from being held against a model. A text in two languages gets one answer. A word
or two in a shared script is a guess: "hello world" is Fulfulde at 0.17.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable
from typing import Any

from .. import languages
from ..errors import OnggiError
from . import scripts

# Of the model's labels, those that name a variety few ask a model for and that take short texts away
# from the language they are a variety of (or that nobody writes to a chat). Only where they are candidates.
_VARIETIES = frozenset(
    ["an", "ary", "arz", "ext", "gcf", "gcr", "grc", "hbo", "ltg", "pcm", "uzs", "vo", "wuu", "yue"]
)

# Languages that identifiers take for each other more often than a line of text can decide.
_ALIKE = (
    frozenset({"id", "ms"}),
    frozenset({"bs", "hr", "sr-Latn"}),
    frozenset({"no", "nn"}),
)

# One letter in a syllabic or ideographic script says about as much as two in an alphabet.
_DENSE = frozenset({"Hang", "Hani", "Hira", "Kana"})

# Han text with fewer kana than this to a letter is Chinese that quotes a の, not Japanese.
_KANA = 0.1

# Japanese of so many Han characters has kana among them; a name or a heading may not.
_SENTENCE = 10


EXPECTED = 0.1
"""The probability at which an expected language is believed. By the best guess alone up to 4.9% of lines of
five words of LibreOffice's help are wrong (Portuguese; Hindi 3.7%), so at most 0.5%; the price is that 2 to 3%
of Spanish lines pass for Portuguese and the reverse (docs/confusion.md)."""

# The languages of Han characters and the way of writing that `other_form` measures.
_HAN = {"zh-Hans": "Hans", "zh-Hant": "Hant", "ja": "Jpan"}


@dataclasses.dataclass(frozen=True)
class Identified:
    """A language and how sure."""

    language: str | None
    """A canonical tag, without region; None for a text without letters or in a script nobody here knows."""
    confidence: float
    """0 to 1. The model's probability among the languages of the script; where the script decided alone, the
    share of the text's letters that are in it."""


def identify(
    text: str, candidates: Iterable[str] | None = None, *, expected: str | None = None
) -> Identified:
    """The language that most of `text` is in.

    With `candidates` (tags), those of them written in the text's script are what is chosen from; they do
    not force a language on a text in letters that none of them uses: Thai text is Thai, whether
    or not Thai was a candidate. An `expected` language is what the text is taken for unless that is unlikely:
    where it is `alike` to the best guess, has a tenth of the probability, or is written in characters that
    decide nothing. Raises `OnggiError` for a tag that is not a language's, or a candidate that is one of
    several in a script and unknown to the model.
    """
    wanted = None if candidates is None else tuple(dict.fromkeys(map(_bare, candidates)))
    hoped = None if expected is None else _bare(expected)
    found = scripts.counts(text)
    if not found:
        return Identified(None, 0.0)
    script = _main_script(found)
    total = sum(count * _weight(name) for name, count in found.items())
    if script == "Hani":
        own = sum(found[name] * _weight(name) for name in ("Hani", "Hira", "Kana", "Bopo"))
        return Identified(_han(text, found, wanted, hoped), own / total)
    possible = [tag for tag in wanted or () if _scripts(tag) & {script}] or _everyday(script)
    if not possible:
        return Identified(None, 0.0)
    if len(possible) == 1:
        own = sum(found[name] * _weight(name) for name in _scripts(possible[0]))
        return Identified(possible[0], own / total)
    for tag in possible:
        if tag not in _labels():
            others = ", ".join(other for other in possible if other != tag)
            raise OnggiError(f"candidates: {tag} is unknown to the model that would tell it from {others}.")
    return _weigh(text, possible, hoped)


def known(language: str) -> bool:
    """True where `identify` can return `language` without its being named as a candidate."""
    tag = _bare(language)
    if _scripts(tag) & {"Hani"}:
        return tag in ("zh-Hans", "zh-Hant", "ja", "ko")
    return any(tag in _everyday(script) for script in _scripts(tag))


def alike(one: str, other: str) -> bool:
    """True for the same language (region aside), or for two that a line of text does not tell apart."""
    one, other = _bare(one), _bare(other)
    return one == other or any({one, other} <= group for group in _ALIKE)


def other_form(text: str, script: str) -> int:
    """How many characters of `text` are not of this way of writing Han: `Hans`, `Hant` or `Jpan`.

    A character is of the other way where the national standards say so: of Big5's frequent level and not
    in GB 2312 for `Hans`; in GB 2312 and not in Big5 for `Hant`; in neither JIS X 0208 nor its extension
    in cp932 for `Jpan` (们, 这, 你). Characters that both have count in none.
    """
    return sum(_only(char, script) for char in text if char >= "\u3400")


@functools.cache
def _only(char: str, script: str) -> bool:
    if not scripts.counts(char)["Hani"]:
        return False
    simplified, traditional = _has(char, "gb2312"), _has(char, "big5")
    if script == "Hans":
        return bool(traditional) and traditional < b"\xc9" and not simplified
    if script == "Hant":
        return bool(simplified) and not traditional
    return bool(simplified or traditional) and not _has(char, "cp932")


def _has(char: str, codec: str) -> bytes:
    return char.encode(codec, errors="ignore")


def _han(text: str, found: Counter[str], wanted: tuple[str, ...] | None, hoped: str | None) -> str:
    """Japanese, Simplified or Traditional Chinese; where no character decides, the first hoped for."""
    kana = found["Hira"] + found["Kana"]
    if kana >= _KANA * (kana + found["Hani"]):
        return "ja"
    possible = [tag for tag in (hoped, *(wanted or ()), "zh-Hans") if tag in _HAN]
    if wanted and (named := [tag for tag in wanted if tag in _HAN]):
        possible = [tag for tag in possible if tag in named]
    else:
        named = list(_HAN)
    foreign = {tag: other_form(text, script) for tag, script in _HAN.items()}
    if "ja" in named and not foreign["ja"] and any(map(_japanese, text)):
        return "ja"
    if possible[0] == "ja" and not foreign["ja"] and found["Hani"] < _SENTENCE:
        return "ja"
    chinese = [tag for tag in (*possible, *named) if tag != "ja"]
    return min(chinese, key=lambda tag: foreign[tag]) if chinese else "ja"


def _japanese(char: str) -> bool:
    """In the Japanese standard and in neither Chinese one: 駅, 働, 図."""
    return bool(_has(char, "cp932")) and not _has(char, "gb2312") and not _has(char, "big5")


def _main_script(found: Counter[str]) -> str:
    """The script of most letters; kana counts with the Han it stands among, Han among Hangul with Hangul."""
    weight = {name: count * _weight(name) for name, count in found.items()}
    if weight.get("Hang", 0) >= weight.get("Hani", 0):
        weight["Hang"] = weight.get("Hang", 0) + weight.pop("Hani", 0)
    if weight.get("Hani", 0) + weight.get("Hira", 0) + weight.get("Kana", 0):
        weight["Hani"] = sum(weight.pop(name, 0) for name in ("Hani", "Hira", "Kana", "Bopo"))
    return max(weight, key=lambda name: weight[name])


def _weight(script: str) -> int:
    return 2 if script in _DENSE else 1


def _weigh(text: str, possible: list[str], hoped: str | None) -> Identified:
    """The likeliest of `possible`, or the one hoped for, with its probability among them."""
    labels = {_labels()[tag]: tag for tag in possible}
    ranked = {labels[label]: p for label, p in _model().rank(text) if label in labels}
    total = sum(ranked.values())
    if not total:
        return Identified(None, 0.0)
    best = next(iter(ranked))
    if hoped in ranked and (alike(best, hoped) or ranked[hoped] >= EXPECTED * total):
        best = hoped
    return Identified(best, ranked[best] / total)


@functools.cache
def _model() -> Any:
    """The identifier with its packaged weights (4.6 MB; half a second), loaded when first needed."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@functools.cache
def _labels() -> dict[str, str]:
    """The model's own label of each language, by our tag."""
    found = {languages.canonical(label): label for label in _model().labels if label != "zxx"}
    return found | {"sr-Latn": "sr"}  # one label for both of its scripts


@functools.cache
def _everyday(script: str) -> list[str]:
    """The languages chosen from for a text in `script` when nothing else is said."""
    return [tag for tag, label in _labels().items() if label not in _VARIETIES and _scripts(tag) & {script}]


@functools.cache
def _scripts(tag: str) -> frozenset[str]:
    """The Unicode scripts that `tag` is written in."""
    return frozenset(scripts.unicode_scripts(languages.script(tag)))


@functools.cache
def _bare(tag: str) -> str:
    """`tag`, canonical, without its region: no identifier tells pt-PT from pt."""
    parts = languages.canonical(tag).split("-")
    return "-".join(part for part in parts if not (len(part) == 2 and part.isupper()) and not part.isdigit())
