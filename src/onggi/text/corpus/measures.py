"""What is measured of a text, and from where on a language has too much or too little of it.

English constants do not carry over: a Khmer sentence has no spaces, Korean says the same in half the
letters, a manual has more symbols than a novel. So each limit is the far fence of the language's own rows,
three interquartile ranges beyond the quartile (Tukey's "far out"): it drops what is unlike the rest, and
nothing where all rows are alike. It is held within the pair that the configuration gives: never stricter
than the one, or a clean corpus would lose its tail; never laxer than the other, or a corpus that is
mostly dirt would set its own standard.
"""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import regex

from ... import languages as tags
from .. import identify, scripts
from .config import GOPHER, LIMITS, Cleaning
from .scale import Scale, word
from .shingles import Shingled, simplify, spaced

# Measures of which a row needs at least so much; of all others at most.
LOWER = frozenset({"length", "language", "letters"})
NAMES = ("length", *(name for name in LIMITS if name != "repetition"), *GOPHER)

_BULLET = regex.compile(r"^\s*(?:[•●‣▪◦·∙※○■□▶-]|\*|\d{1,3}[.)])\s", regex.M)
_ELLIPSIS = regex.compile(r"(?:\.{3}|…|⋯)\s*$", regex.M)
_PARAGRAPH = regex.compile(r"\n\s*\n")
_WHOLE = 50  # English words of a text in which repetition counts in full
_LINES = 4  # a text of fewer says nothing by how its lines begin and end
_SAMPLE = 400  # characters, from start, middle and end, by which a long text's language is told
_LETTER, _DIGIT, _SPACE, _LOST, _SYMBOL = range(5)


@functools.cache
def _classes() -> np.ndarray:
    """The class of every code point; those of planes 2 and 3 are Han, of the planes above nobody's."""
    table = np.full(0x110000, _SYMBOL, np.uint8)
    table[0x20000:0x40000] = _LETTER
    for code in range(0x20000):
        category = unicodedata.category(chr(code))
        if category[0] in "LM" or category == "Cf":
            table[code] = _LETTER
        elif category[0] == "N":
            table[code] = _DIGIT
        elif category[0] == "Z" or code in (9, 10):
            table[code] = _SPACE
    table[0xFFFD] = _LOST
    return table


def tell(text: str, lang: str | None, languages: tuple[str, ...]) -> tuple[str | None, float]:
    """The language of `text` and how sure. Where the row says one, that one with its own probability, 0 where
    it is in another.
    """
    if len(text) > 4 * _SAMPLE:
        middle = len(text) // 2
        text = f"{text[:_SAMPLE]} {text[middle : middle + _SAMPLE]} {text[-_SAMPLE:]}"
    if lang is None:
        # Among all languages: of those asked for alone, German would be the likeliest English.
        found = identify.identify(text)
        same = (tag for tag in languages if found.language and identify.alike(found.language, tag))
        return next(same, found.language), found.confidence
    if not identify.known(lang):
        return lang, scripts.own_share(text, lang)
    found = identify.identify(text, expected=lang)
    if found.language is None or not identify.alike(found.language, lang):
        return lang, 0.0
    return lang, found.confidence


def measure(text: str, lang: str, sure: float, scale: Scale) -> dict[str, float]:
    """Every measure of a text that is not empty, by its name in `NAMES`."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    counts = np.bincount(_classes()[codes], minlength=5)
    visible = max(1, len(codes) - int(counts[_SPACE]))
    simple = simplify(text)
    words = spaced(lang)
    grams = Shingled(simple, words)
    found = dict.fromkeys(NAMES, 0.0)
    found["length"] = grams.letters / scale.letters
    found["language"] = sure
    found["letters"] = float(counts[_LETTER]) / visible
    found["symbols"] = float(counts[_SYMBOL]) / visible
    found["digits"] = float(counts[_DIGIT]) / visible
    found["broken"] = float(counts[_LOST]) / len(codes)
    if words and grams.tokens:
        found["word_length"] = grams.letters / grams.tokens
    if "\n" in text:
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        if len(lines) >= _LINES:
            found["bullets"] = len(_BULLET.findall(text)) / len(lines)
            found["ellipses"] = len(_ELLIPSIS.findall(text)) / len(lines)
        found["lines"] = _again(lines)
        found["paragraphs"] = _again([part.strip() for part in _PARAGRAPH.split(text)])
    width = functools.partial(window, words=words, scale=scale)
    weight = min(1.0, grams.letters / (_WHOLE * word() * scale.letters))
    for n in (2, 3, 4):
        found[f"top_{n}"] = weight * grams.top(width(n))
        if not found[f"top_{n}"]:  # a longer one stands no more often
            break
    for n in range(5, 11):
        found[f"repeated_{n}"] = weight * grams.repeated(width(n))
        if not found[f"repeated_{n}"]:
            break
    return found


def window(n: float, words: bool, scale: Scale) -> int:
    """What takes the place of n English words: n words, or so many characters."""
    return int(n) if words else max(2, round(n * word() * scale.letters))


def _again(parts: list[str]) -> float:
    """The share of characters in parts that stood before."""
    if len(parts) == len(set(parts)):
        return 0.0
    twice = sum(len(part) * (count - 1) for part, count in Counter(parts).items())
    return twice / max(1, sum(map(len, parts)))


@dataclass(frozen=True)
class Limit:
    """value: of a measure. chosen: how it came about: the fence, an end of the pair (from, to), a pair of one
    value (fixed), or the override. rows: that the fence is of. of: their language, or the script where it has
    too few.
    """

    value: float
    chosen: str
    rows: int
    of: str


def pairs(config: Cleaning, scale: Scale) -> dict[str, tuple[float, float]]:
    """Measure → the pair that its limit is held within, in a language of this scale.

    The configuration's shares of letters, symbols and digits are of English text. A language that says the
    same in half the letters has the same commas and figures: the odds of a symbol are twice as high.
    """
    low, high = config.repetition
    grams = {name: (share * low, min(1.0, share * high)) for name, share in GOPHER.items()}
    own = {name: getattr(config, name) for name in LIMITS if name != "repetition"}
    own |= {name: tuple(_scaled(share, scale) for share in own[name]) for name in ("symbols", "digits")}
    own["letters"] = tuple(1 - _scaled(1 - share, scale) for share in config.letters)
    return {"length": (config.length, config.length), **own, **grams}


def _scaled(share: float, scale: Scale) -> float:
    if share >= 1:
        return 1.0
    odds = share / (1 - share) / scale.letters
    return odds / (1 + odds)


def limits(
    values: Mapping[str, Mapping[str, np.ndarray]], config: Cleaning, scales: Mapping[str, Scale]
) -> dict[str, dict[str, Limit]]:
    """Language → measure → its limit. values: language → measure → of each of its rows."""
    found: dict[str, dict[str, Limit]] = {}
    for language, own in values.items():
        of, used = language, own
        script = tags.script(language)
        kin = [other for other in values if tags.script(other) == script]
        if len(own["length"]) < config.few and len(kin) > 1:
            of = f"all rows in {script}"
            used = {name: np.concatenate([values[other][name] for other in kin]) for name in NAMES}
        fixed = config.overrides.get(language, {})
        found[language] = {
            name: Limit(fixed[name], "override", 0, language)
            if name in fixed
            else _limit(used[name], *pair, name in LOWER, of)
            for name, pair in pairs(config, scales[language]).items()
        }
    return found


def _limit(values: np.ndarray, low: float, high: float, lower: bool, of: str) -> Limit:
    rows = len(values)
    if low == high:
        return Limit(low, "fixed", rows, of)
    first, third = np.quantile(values, [0.25, 0.75])
    spread = 3 * (third - first)
    fence = float(first - spread if lower else third + spread)
    chosen = "from" if fence <= low else "to" if fence >= high else "fence"
    return Limit(min(max(fence, low), high), chosen, rows, of)


def fails(found: Mapping[str, float], limit: Mapping[str, Limit]) -> str | None:
    """The first measure that a row fails by; None where it passes."""
    for name in NAMES:
        value = limit[name].value
        if found[name] < value if name in LOWER else found[name] > value:
            return name
    return None
