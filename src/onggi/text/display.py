"""Text that anybody may have written, made fit to be shown: in a page, a terminal, a figure.

A model's answer can hold anything: characters that act rather than being read, letters that run either way,
a hundred kilobytes of one letter. What is shown is text from beginning to end.
"""

from __future__ import annotations

import unicodedata
from typing import Literal

import regex

from .. import languages

Direction = Literal["ltr", "rtl"]
LONG = 400  # characters of an answer that stand open


def cut(text: str, long: int = LONG) -> tuple[str, str]:
    """`text` in two where it is long: between words where there are any, never within a character as people
    see it (a letter with its marks).
    """
    if len(text) <= long * 1.25:
        return text, ""
    seen = 0
    for character in regex.findall(r"\X", text):
        if seen + len(character) > long:
            break
        seen += len(character)
    space = max(text.rfind(" ", 0, seen), text.rfind("\n", 0, seen))
    seen = space + 1 if space > 0.8 * seen else seen or long
    return text[:seen], text[seen:]


def shown(text: str) -> str:
    """`text` with every character that acts rather than being read as a sign: ␀ for NUL, � for what has none."""
    return "".join(map(_sign, text.replace("\r\n", "\n")))


def _sign(character: str) -> str:
    if character in "\n\t":
        return character
    code = ord(character)
    if code < 32:
        return chr(0x2400 + code)
    if code == 127:
        return "␡"
    # Overrides of direction, C1 controls, halves of surrogate pairs, code points that are no characters.
    lost = (
        0x80 <= code < 0xA0 or 0xD800 <= code < 0xE000 or code & 0xFFFE == 0xFFFE or 0xFDD0 <= code < 0xFDF0
    )
    return "�" if lost or character in "\u202d\u202e" else character


def direction(text: str, language: str) -> Direction:
    """Which way most of `text`'s letters run; of a text without letters, which way the language does."""
    kinds = [unicodedata.bidirectional(character) for character in text]
    right, left = sum(kind in ("R", "AL") for kind in kinds), kinds.count("L")
    if right == left:
        return "rtl" if languages.is_right_to_left(language) else "ltr"
    return "rtl" if right > left else "ltr"
