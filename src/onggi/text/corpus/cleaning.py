"""A text made clean without changing what it says: one form of each character, no markup, no personal data.

What looks like dirt in one script is spelling in another. The zero-width non-joiner stands inside Persian
words, the joiner in Sinhala and in emoji, the zero-width space between the words of Khmer: they are kept
there and dropped elsewhere.
"""

from __future__ import annotations

import html
import itertools
import unicodedata
from collections import Counter
from collections.abc import Callable
from datetime import date

import regex

# Scripts in which (non-)joiners are spelling, and those in which U+200B stands between words.
_JOINING = (
    r"[\p{Arab}\p{Syrc}\p{Mong}\p{Deva}\p{Beng}\p{Guru}\p{Gujr}\p{Orya}\p{Taml}\p{Telu}\p{Knda}\p{Mlym}"
    r"\p{Sinh}\p{Khmr}\p{Mymr}\p{Tibt}]"
)
_WORDLESS = r"[\p{Thai}\p{Khmr}\p{Laoo}\p{Mymr}\p{Tibt}]"
_RTL = r"[\p{Arab}\p{Hebr}\p{Syrc}\p{Thaa}\p{Nkoo}\p{Adlm}]"
_PICTURE = r"[\p{Extended_Pictographic}\p{Emoji_Modifier}\uFE0F]"

# One look tells that a text has none of what follows, as most have not.
_SUSPECT = regex.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u1680\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufdd0-\ufdef"
    r"\ufeff\ufff0-\uffff\ue000-\uf8ff\U000e0000-\U0010ffff]|[^\n]\s+\n|\n\n\n"
)
_NEWLINE = regex.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_SPACE = regex.compile(r"[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_CONTROL = regex.compile(
    r"[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u180e\u202a-\u202e\u2060-\u2064\u206a-\u206f\ufdd0-\ufdef\ufeff\ufff0-\ufffb"
    r"\ufffe\uffff\ue000-\uf8ff\U000e0000-\U000e007f\U000f0000-\U0010ffff]"
)
_ZERO_WIDTH = regex.compile(
    rf"(?P<keep>(?<={_JOINING}\p{{M}}*)[\u200c\u200d]|[\u200c\u200d](?={_JOINING})|(?<={_PICTURE})\u200d(?={_PICTURE})"
    rf"|(?<={_WORDLESS}\p{{M}}*)\u200b(?={_WORDLESS})|(?<={_RTL}\p{{P}}*)[\u200e\u200f]|[\u200e\u200f](?=\p{{P}}*{_RTL}))"
    r"|[\u200b-\u200f]"
)
_ISOLATE = regex.compile(r"[\u2066-\u2069]")
_HAS_RTL = regex.compile(_RTL)
_LINE_END = regex.compile(r"[ \t]+(?=\n|$)")
_BLANK = regex.compile(r"\n{3,}")

_TAGS = "a|abbr|article|aside|b|blockquote|body|br|button|center|code|dd|div|dl|dt|em|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|label|li|link|main|meta|nav|ol|option|p|pre|section|select|small|span|strong|style|script|sub|sup|table|tbody|td|th|thead|title|tr|u|ul|video"
_TAG = regex.compile(rf"</?(?:{_TAGS})(?:\s[^<>]*)?/?>", regex.I)
_CLOSED = regex.compile(rf"<(?P<name>{_TAGS})(?:\s[^<>]*)?>[^<]*</(?P=name)\s*>", regex.I)
_BLOCK = regex.compile(
    r"</?(?:article|aside|blockquote|body|br|dd|div|dl|dt|footer|form|h[1-6]|header|hr|li|main|nav|ol|p|pre|section|"
    r"table|tbody|td|th|thead|title|tr|ul)(?:\s[^<>]*)?/?>\s*",
    regex.I,
)
_HIDDEN = regex.compile(
    r"<!--.*?-->|<(?P<name>script|style|iframe)\b[^<>]*>.*?</(?P=name)\s*>|<!DOCTYPE[^<>]*>",
    regex.I | regex.S,
)
_LEAST_TAGS = 3


def normalised(text: str) -> str:
    """NFC; one kind of line end and of space; no controls, private or invisible characters but those that
    are spelling; no more than one empty line together.
    """
    text = unicodedata.normalize("NFC", text)
    if not _SUSPECT.search(text):
        return text.strip()
    text = _SPACE.sub(" ", _NEWLINE.sub("\n", text))
    text = _ZERO_WIDTH.sub(lambda found: found["keep"] or "", _CONTROL.sub("", text))
    if not _HAS_RTL.search(text):
        text = _ISOLATE.sub("", text)
    # A character that was taken out may have kept two others from being one.
    return unicodedata.normalize("NFC", _BLANK.sub("\n\n", _LINE_END.sub("", text)).strip())


def without_markup(text: str) -> str:
    """The text of HTML: where there are a few tags and one of them closes. Prose about `<b>` stays as it is."""
    if "<" not in text or not (_HIDDEN.search(text) or _is_html(text)):
        return text
    text = _HIDDEN.sub("", text)
    return html.unescape(_TAG.sub("", _BLOCK.sub("\n", text)))


def _is_html(text: str) -> bool:
    enough = next(itertools.islice(_TAG.finditer(text), _LEAST_TAGS - 1, None), None)
    return enough is not None and _CLOSED.search(text) is not None


# ── personal data ──────────────────────────────────────────────────────────────────────────────

_EMAIL = regex.compile(
    r"(?<![\w.+-])[A-Za-z0-9][\w.+%-]{0,63}@(?:[\p{L}\p{M}\p{N}](?:[\p{L}\p{M}\p{N}-]{0,62})?\.){1,8}\p{L}[\p{L}\p{M}]{1,24}(?![\w@])"
)
_RESIDENT = regex.compile(r"(?<!\d)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]) ?[-–] ?[1-8]\d{6}(?!\d)")
_CARD = regex.compile(r"(?<![\d.,-])[3-6]\d{3}(?:(?P<gap>[ -]?)\d{4}){2}(?P=gap)\d{1,7}(?![\d]|[.,]\d)")
# With its country; of Korea; in brackets or in three groups, as in most countries that dial a 0 first.
_PHONE = regex.compile(
    r"(?<![\d.,/-])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d"
    r"|0(?:2|1[016-9]|[3-6][1-5]|70|80|50\d)[ .)-]{1,2}\d{3,4}[ .-]\d{4}|01[016-9]\d{7,8}"
    r"|\(0?\d{2,4}\)[ .-]?\d{3,4}[ .-]?\d{3,4}|0\d{1,4}[ .-]\d{2,4}[ .-]\d{3,4}|\d{3}-\d{3}-\d{4})(?![\d/]|[.,-]\d)"
)
_RESIDENT_WEIGHTS = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
# From October 2020 the digits after the first of the second part are drawn, and there is no check digit.
_NO_CHECK_SINCE = date(2020, 10, 1)


def _digits(text: str) -> list[int]:
    return [int(char) for char in text if char.isdecimal()]


def _is_phone(text: str) -> bool:
    return 9 <= len(_digits(text)) <= 15


def _is_resident(text: str) -> bool:
    """A Korean resident registration number: a date of birth that there is, and the check digit."""
    numbers = _digits(text)
    century = 1900 if numbers[6] in (1, 2, 5, 6) else 2000
    year, month, day = (10 * numbers[i] + numbers[i + 1] for i in (0, 2, 4))
    try:
        born = date(century + year, month, day)
    except ValueError:
        return False
    if born >= _NO_CHECK_SINCE:
        return True
    rest = sum(a * b for a, b in zip(_RESIDENT_WEIGHTS, numbers, strict=False)) % 11
    return ((13 if numbers[6] > 4 else 11) - rest) % 10 == numbers[12]


def _is_card(text: str) -> bool:
    """13 to 19 digits with Luhn's check digit."""
    numbers = _digits(text)
    doubled = [n if i % 2 == 0 else sum(divmod(2 * n, 10)) for i, n in enumerate(reversed(numbers))]
    return 13 <= len(numbers) <= 19 and sum(doubled) % 10 == 0


_KINDS: dict[str, tuple[regex.Pattern[str], Callable[[str], bool], str]] = {
    "email": (_EMAIL, lambda text: True, "<EMAIL>"),
    "resident": (_RESIDENT, _is_resident, "<RESIDENT>"),
    "card": (_CARD, _is_card, "<CARD>"),
    "phone": (_PHONE, _is_phone, "<PHONE>"),
}
_OTHER_DIGIT = regex.compile(r"[\p{Nd}--[0-9]]", regex.V1)
_NUMBER = regex.compile(r"\d[\d ().–-]{6,}\d")


def masked(text: str, kinds: tuple[str, ...], counts: Counter[str]) -> str:
    """`text` with a mark in place of personal data of these `kinds` (config.MASKS); adds to `counts` by kind."""
    # What is looked at has every digit as ASCII has it, ٠١٠ as 010, and each character in its place.
    plain = _OTHER_DIGIT.sub(lambda found: str(unicodedata.digit(found[0])), text)
    at, number = "@" in text, _NUMBER.search(plain)
    for kind, (pattern, is_one, mark) in _KINDS.items():
        if kind not in kinds or not (at if kind == "email" else number):
            continue
        for found in reversed([found for found in pattern.finditer(plain) if is_one(found[0])]):
            start, end = found.span()
            text, plain = (f"{whole[:start]}{mark}{whole[end:]}" for whole in (text, plain))
            counts[kind] += 1
    return text
