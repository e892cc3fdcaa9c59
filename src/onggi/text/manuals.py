"""Manuals as paragraphs: GNOME's help (Mallard), DocBook's HTML and man pages (roff).

Of each, the text that somebody wrote to be read, in the order of the page: no navigation, no lists of
contents, no code. `mallard` and `docbook` give every block of a page, short ones too, so that the same
page in two languages, which is one source translated piece by piece, can be laid side by side by counting.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from lxml import etree

_XML = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True)
_HTML = etree.HTMLParser(encoding="utf-8", no_network=True, remove_comments=True, remove_pis=True)

_MALLARD_BLOCKS = {"title", "p", "desc", "cite"}
_MALLARD_NO_TEXT = {"code", "screen", "credit", "license", "links", "comment"}
_HTML_BLOCKS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "dt", "dd", "th", "td", "li", "caption"}
_HTML_NO_TEXT = {"pre", "script", "style", "head"}
_HTML_NO_CLASS = {"navheader", "navfooter", "toc", "footnote", "legalnotice", "footnoteref"}


def mallard(page: bytes) -> list[str]:
    """The blocks of a page of GNOME's help: titles, descriptions, paragraphs. Empty where it is no XML."""
    try:
        root = etree.fromstring(page, _XML)
    except etree.XMLSyntaxError:
        return []
    return [text for block in _mallard(root) if (text := _text(block, _MALLARD_NO_TEXT))]


def _mallard(element: etree._Element) -> Iterator[etree._Element]:
    for child in _elements(element):
        name = etree.QName(child).localname
        if name in _MALLARD_NO_TEXT or (name == "title" and etree.QName(element).localname == "info"):
            continue
        if name in _MALLARD_BLOCKS:
            yield child
        else:
            yield from _mallard(child)


def docbook(page: bytes) -> list[str]:
    """The blocks of a page of HTML that DocBook made: headings, paragraphs, cells, the innermost of each."""
    root = etree.fromstring(page, _HTML) if page.strip() else None
    if root is None:
        return []
    return [text for block in _html(root) if (text := _text(block, _HTML_NO_TEXT))]


def _html(element: etree._Element) -> Iterator[etree._Element]:
    for child in _elements(element):
        if child.tag in _HTML_NO_TEXT or _HTML_NO_CLASS & set((child.get("class") or "").split()):
            continue
        inner = list(_html(child))
        if child.tag in _HTML_BLOCKS and not inner:
            yield child
        else:
            yield from inner


def _is_element(node: etree._Element) -> bool:
    """Not the reference to an entity, none of which is resolved."""
    return isinstance(node.tag, str)


def _elements(element: etree._Element) -> Iterator[etree._Element]:
    return filter(_is_element, element)


def _text(element: etree._Element, without: set[str]) -> str:
    return clean("".join(_pieces(element, without)))


def _pieces(element: etree._Element, without: set[str]) -> Iterator[str]:
    if element.text:
        yield element.text
    for child in element:
        # Code within a sentence is part of it; a block of code is not.
        if (
            _is_element(child)
            and (etree.QName(child).localname == "code" or child.tag not in without)
            and "footnote" not in (child.get("class") or "")
        ):
            yield " " if child.tag == "br" else ""
            yield from _pieces(child, without)
        if child.tail:
            yield child.tail


def clean(text: str) -> str:
    """`text` in NFC, white space collapsed, without soft hyphens."""
    return unicodedata.normalize("NFC", " ".join(text.replace("\u00ad", "").split()))


# ── roff ───────────────────────────────────────────────────────────────────────────────────────

# fmt: off
_BREAK = {"PP", "P", "LP", "TP", "TQ", "IP", "HP", "SH", "SS", "RS", "RE", "sp", "br", "bp", "in", "ti"}
_FONT = {"B", "I", "R", "SM", "SB"}
_MIXED = {"BR", "IR", "RB", "RI", "BI", "IB"}
# Blocks that are left out, and what ends each.
_SKIPPED = {"nf": "fi", "EX": "EE", "TS": "TE", "EQ": "EN", "de": ".", "de1": ".", "ig": ".", "am": "."}
_SPECIAL = {
    "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "aq": "'", "dq": '"', "em": "—", "en": "–", "hy": "-",
    "bu": "•", "co": "©", "rg": "®", "tm": "™", "de": "°", "+-": "±", "mu": "×", "di": "÷", "->": "→",
    "<-": "←", "<=": "≤", ">=": "≥", "!=": "≠", "==": "≡", "at": "@", "sh": "#", "ul": "_", "or": "|",
    "ha": "^", "ti": "~", "ga": "`", "rs": "\\", "lB": "[", "rB": "]", "lC": "{", "rC": "}", "sc": "§",
    "Eu": "€", "Po": "£", "Fo": "«", "Fc": "»", "12": "½", "14": "¼", "34": "¾", "S1": "¹", "S2": "²", "S3": "³",
    "ss": "ß", ":a": "ä", ":o": "ö", ":u": "ü", ":A": "Ä", ":O": "Ö", ":U": "Ü", "'e": "é", "`e": "è",
    "'a": "á", "`a": "à", "^e": "ê", ",c": "ç", "~n": "ñ", "/o": "ø", "oa": "å", "AE": "Æ", "ae": "æ",
}
_ALONE = {"-": "-", "e": "\\", "E": "\\", " ": " ", "~": " ", "0": " ", "'": "'", "`": "`", ".": ".", "\\": "\\"}
# fmt: on
_ESCAPE = re.compile(
    r"\\(?:(?P<quoted>[hvwlLDNoZbSHAXxRYp])'(?P<inside>[^']*)'"
    r"|(?P<drop>[fFmMgkn])(?:\[[^\]]*\]|\(..|[+-]?.)"
    r"|s(?:\[[^\]]*\]|\(..|[+-]?\d{1,2}|'[^']*')"
    r"|\*(?:\[(?P<string>[^\]]*)\]|\((?P<string2>..)|(?P<string1>.))"
    r"|\[(?P<long>[^\]]*)\]|\((?P<two>..)"
    r'|"(?P<comment>.*)|(?P<alone>.)|$)',
    re.DOTALL,
)
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|((?:\\ |\S)+)')
_REQUEST = re.compile(r"[.'][ \t]*([^\s\\]*)[ \t]*(.*)", re.DOTALL)


def roff(page: str) -> list[str]:
    """The paragraphs of a man page, headings and the texts of options among them. Examples and tables are
    left out; a page in BSD's macros (mdoc), or one that only names another, gives nothing.
    """
    found: list[str] = []
    line: list[str] = []
    skipping: str | None = None
    tag = False  # the next line is the tag of a paragraph, which goes on behind it

    def finish() -> None:
        text = clean(" ".join(line))
        if text:
            found.append(text)
        line.clear()

    for raw in page.split("\n"):
        request = _REQUEST.fullmatch(raw)
        name, rest = (request[1], request[2]) if request else ("", raw)
        if skipping:
            skipping = None if request and name == skipping else skipping
            continue
        if not request:
            if not raw.strip():
                finish()
            else:
                line.append(unescaped(raw))
                tag = False
            continue
        if name in ("Dd", "so"):
            return []
        if name in _SKIPPED:
            finish()
            skipping = _SKIPPED[name]
        elif name in _BREAK:
            if not tag:
                finish()
            tag = name == "TP"
            arguments = _arguments(rest)
            if name in ("SH", "SS"):
                line.append(" ".join(arguments))
                if arguments:
                    finish()
            elif name == "IP":
                line += [text for text in arguments[:1] if text not in ("•", "-", "*", "·", "o")]
        elif name in _FONT or name in _MIXED:
            line.append((" " if name in _FONT else "").join(_arguments(rest)))
            tag = False
    finish()
    return found


def _arguments(rest: str) -> list[str]:
    rest = re.sub(r'(?<!\\)\\".*', "", rest)
    return [
        unescaped(quoted.replace('""', '"') if quoted else plain) for quoted, plain in _ARGUMENT.findall(rest)
    ]


def unescaped(text: str) -> str:
    """A line of roff with its escapes as what they print."""
    return _ESCAPE.sub(_printed, text)


def _printed(match: re.Match[str]) -> str:
    name = match["long"] or match["two"] or match["string"] or match["string2"]
    if name is not None:
        if re.fullmatch(r"u[0-9A-Fa-f]{4,5}", name):
            return chr(int(name[1:], 16))
        return _SPECIAL.get(name, "")
    if match["alone"] is not None:
        return _ALONE.get(match["alone"], "")
    return ""
