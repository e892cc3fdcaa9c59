"""Was the answer in the language that was asked for, and is it text at all?

Quantised models fail in ways that a score of right answers hides: Hanja and kana in Korean, a paragraph
of English in the middle, half a syllable's bytes, a sentence without end. `check` looks at one answer,
`rates` sums up many. Three rates say how much of it is in the wrong language:

- **line** and **word**, after the Language Confusion Benchmark (Marchisio et al. 2024,
  arXiv 2406.20052, §3 and its `compute_metrics.py`): the share of answers all of whose lines are identified
  as the language asked for, and, of those, the share without an English word, for languages not
  written in Latin letters. Lines of fewer than five words are not looked at.
- **script**, ours: the share of answers without a letter of a script that the language is not written in,
  in lines of any length; also by line and by letter. It sees one Hanja in a Korean word.

Deviations from the benchmark. The identifier is `identify` with the language expected, not fastText at
0.3. Languages that `identify.alike` holds indistinguishable pass for each other. In scripts without spaces
two letters count as a word (there: a word segmenter for Chinese and Japanese, spaces for Thai). An
English word is a Latin one of four or more letters in lower case, without a dictionary, inside a Korean
word too, in any language not written in Latin rather than in six. What may stand in any script is taken
out first; punctuation is not. Nothing is cut at a "Q:".

What may stand in any script (`Confusion.excused` counts its letters by reason): code blocks, inline code,
formulas, URLs, e-mail addresses, HTML tags, file names; units and symbols of one letter; acronyms (GPU, KL,
H2O); terms of the prompt; a gloss in parentheses after a word of the language, 인공지능(人工智能); and, beside
text of the language in the same line, words with a capital (names) and what is in quotation marks.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

import regex

from .. import languages
from . import identify, scripts

MIN_WORDS = 5
"""A line of fewer words is not identified (the benchmark's figure)."""

_UNSPACED = frozenset(["Hani", "Hira", "Kana", "Bopo", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"])
_ALPHABETS = frozenset(["Latn", "Cyrl", "Grek", "Armn", "Geor", "Copt"])
_LETTERS_PER_WORD = 2  # in a script without spaces

# What is in no language: fenced code (an unclosed fence runs to the end), inline code, formulas,
# addresses, HTML tags. Replaced by a space, so that lines stay lines.
_ADDRESS = r"[^\s<>\"'，。、）」\p{Script=Hani}\p{Script=Hang}\p{Script=Hira}\p{Script=Kana}\p{Script=Thai}]+"
_CODE = regex.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`"
    r"|\$\$.+?\$\$|\$(?=[^\s$])[^$\n]*[\\^_=][^$\n]*\$|\\\(.+?\\\)|\\\[.+?\\\]|\\[A-Za-z]+"
    rf"|(?:https?|ftp)://{_ADDRESS}|www\.{_ADDRESS}|[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+"
    r"|</?[A-Za-z][^<>\n]*>",
    regex.DOTALL,
)
_LINES = regex.compile(r"[^\n\r\u2028\u2029]+")
_QUOTED = regex.compile(
    r"“[^”\n]+”|\"[^\"\n]+\"|‘[^’\n]+’|「[^」\n]+」|『[^』\n]+』|«[^»\n]+»|《[^》\n]+》|„[^“”\n]+[“”]"
)
# Parentheses after a word, no longer than a term or a title; group 1 is the word's last letter.
_GLOSS = regex.compile(r"(\p{L})\p{M}*[\p{N}\"'”’」』»》*]*\s?(?:\([^()\n]{1,80}\)|（[^（）\n]{1,80}）)")
_UNIT = regex.compile(
    r"(?:da|[kKMGTPmµnpdcfh])?(?:m|g|l|L|s|A|V|W|J|N|K|B|b|bit|byte|Hz|Pa|eV|Wh|cal|mol|bar|bps|Ω|F|Bq|Sv|Gy|T|lx|lm|px)"
    r"|min|h|in|ft|yd|mi|oz|lbs?|pt|ha|rpm|fps|mph|dB|pp[mb]|pH|st|nd|rd|th|am|pm"
)
_BARE_UNITS = frozenset(
    [
        "km",
        "cm",
        "mm",
        "kg",
        "mg",
        "ml",
        "mL",
        "kW",
        "kWh",
        "kcal",
        "Hz",
        "kHz",
        "MHz",
        "GHz",
        "dB",
        "kB",
        "pH",
        "eV",
    ]
)
# Greek letters that no Latin one looks like stand alone or in a word as symbols: Δt, μm.
_GREEK_TWINS = frozenset("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧικνορυχ")
_BROKEN = regex.compile(
    r"[\uFFFD\p{Cs}\p{Co}\p{Cn}]|[\p{Cc}--[\t\n\r\x0b\x0c\x85]]|(?:<0x[0-9A-F]{2}>)+", regex.V1
)

# Letters of one script or of several alphabets together; Latin within a Korean word apart.
_WORD = regex.compile(
    r"[[\p{Script=Latn}\p{Script=Cyrl}\p{Script=Grek}]&&\p{L}][\p{Script=Latn}\p{Script=Cyrl}\p{Script=Grek}\p{M}]*",
    regex.V1,
)
_HAN = frozenset({"Hans", "Hant", "Jpan"})

_LOOP_TIMES = 4
_LOOP_LENGTH = 24
_GRAM = 4  # words; for scripts without spaces twice as many characters


@dataclasses.dataclass(frozen=True)
class Confusion:
    """What `check` found in one answer. Letters are Unicode letters outside code and addresses."""

    language: str
    """The canonical tag that was asked for."""
    lines: int
    """Lines with letters."""
    letters: int
    identified: tuple[str, ...]
    """The language of each line of `MIN_WORDS` words or more, in order; empty where `identify` does not
    know the language asked for."""
    foreign: Mapping[str, int]
    """Letters per script that the language is not written in and that nothing excuses: {"Hani": 2}. For
    Chinese and Japanese `Hans` and `Hant` count the characters of a way of writing that is not theirs."""
    foreign_lines: int
    leaks: tuple[str, ...]
    """The foreign runs themselves, in order, each once."""
    excused: Mapping[str, int]
    """Foreign letters that may stand there, by reason: prompt, unit, acronym, gloss, name, quoted; code
    counts the letters of all that was taken out."""
    glossed_han: int
    """Han characters in parentheses after Hangul, as in 한자(漢字); within excused["gloss"]."""
    words: tuple[str, ...] | None
    """Latin words that the word rate counts; None for a language written in Latin letters."""
    lookalikes: tuple[str, ...]
    """Words that mix Latin, Cyrillic and Greek letters, as `pаypal` with a Cyrillic а."""
    broken: int
    """Replacement characters, lone surrogates, private-use, unassigned and control characters, and byte
    tokens printed as <0xEA>; not those that end an answer cut at its length."""
    repetition: float
    """Share of n-grams that stood before in the answer (0: none): of four words, or of eight characters in
    scripts without spaces. 1 - distinct / all, seq-rep-4 of Welleck et al. 2019 (arXiv 1908.04319)."""
    loop: bool
    """The end is one unit, at least four times over and 24 characters long."""
    empty: bool
    """No letter, digit or symbol at all."""
    cut: bool
    """Ended for its length (`finish`), within a character, or within a code block."""

    @property
    def line_pass(self) -> bool | None:
        """Every identified line is in the language; None where no line is long enough."""
        return all(identify.alike(tag, self.language) for tag in self.identified) if self.identified else None

    @property
    def word_pass(self) -> bool | None:
        """No English word; None where the line rate does not pass and for Latin-script languages."""
        return not self.words if self.line_pass and self.words is not None else None

    @property
    def script_pass(self) -> bool | None:
        """No foreign letter; None without letters."""
        return not self.foreign if self.letters else None

    def values(self) -> dict[str, float]:
        """One number per measure, those that are defined for this answer: what `rates` averages.

        `line`, `word`, `script` 1 for a pass; `script_lines`, `script_letters` the shares of lines and
        letters without fault; `broken`, `loop`, `empty`, `cut`, `lookalikes`, `gloss` 1 where there is one;
        `repetition` the share. `line/en` and `script/Hani` are 1 where a line is identified as English,
        where a Han character leaks.
        """
        found: dict[str, bool | float | None] = {
            "line": self.line_pass,
            "word": self.word_pass,
            "script": self.script_pass,
            "script_lines": 1 - self.foreign_lines / self.lines if self.lines else None,
            "script_letters": 1 - sum(self.foreign.values()) / self.letters if self.letters else None,
            "gloss": self.glossed_han > 0 if languages.script(self.language) == "Kore" else None,
            "lookalikes": bool(self.lookalikes),
            "broken": self.broken > 0,
            "repetition": self.repetition,
            "loop": self.loop,
            "empty": self.empty,
            "cut": self.cut,
        }
        found |= {f"line/{tag}": True for tag in self.identified if not identify.alike(tag, self.language)}
        found |= {f"script/{script}": True for script in self.foreign}
        return {name: float(value) for name, value in found.items() if value is not None}


def check(answer: str, language: str, prompt: str = "", *, finish: str | None = None) -> Confusion:
    """What is wrong with `answer`, which should be in `language` (any tag), as far as its letters tell.

    `prompt` excuses the terms that stood in it: all of them where it is mostly in the script of `language`,
    else (a request in English for an answer in Korean) only those with a capital or a digit. `finish`
    is the engine's word for why it stopped ("length": the answer was cut). Raises `OnggiError` for what is
    not a language.
    """
    tag = languages.canonical(language)
    own = own_scripts(tag)
    text = _CODE.sub(" ", answer)
    terms = _terms(prompt, own)
    foreign: Counter[str] = Counter()
    excused: Counter[str] = Counter()
    if code := scripts.count(answer) - scripts.count(text):
        excused["code"] = code
    leaks: dict[str, None] = {}
    identified: list[str] = []
    words: list[str] = []
    lines = foreign_lines = glossed = 0
    for line in _LINES.findall(text):
        if not scripts.count(line):
            continue
        lines += 1
        wrong: Counter[str] = Counter()
        rest = line
        excuses = _Excuses(line, own, terms)
        for run in _foreign_runs(line, own):
            reason = excuses.reason(run)
            if reason is None:
                wrong[run.script] += run.letters
                leaks[run.text] = None
                continue
            excused[reason] += run.letters
            if reason == "gloss" and run.script == "Hani" and own == {"Hang"}:
                glossed += run.letters
            rest = rest[: run.start] + " " * len(run.text) + rest[run.end :]
        if (script := languages.script(tag)) in _HAN and (chars := _other_form(line, script, prompt)):
            wrong["Hant" if script == "Hans" else "Hans"] += len(chars)
            leaks |= dict.fromkeys(chars)
        foreign += wrong
        foreign_lines += bool(wrong)
        if word_count(line) >= MIN_WORDS:
            words += filter(_english, _WORD.findall(rest))
            if identify.known(tag):
                judged = rest if scripts.count(rest) else line
                identified.append(identify.identify(judged, expected=tag).language or "und")
    ending = answer.rstrip()
    cut = finish == "length" or ending.endswith("\ufffd") or ending.count("```") % 2 == 1
    whole = ending.rstrip("\ufffd") if finish == "length" else ending
    return Confusion(
        language=tag,
        lines=lines,
        letters=scripts.count(text),
        identified=tuple(identified),
        foreign=dict(foreign),
        foreign_lines=foreign_lines,
        leaks=tuple(leaks),
        excused=dict(excused),
        glossed_han=glossed,
        words=None if "Latn" in own else tuple(dict.fromkeys(words)),
        lookalikes=tuple(dict.fromkeys(filter(_mixed, _WORD.findall(text)))),
        broken=len(_BROKEN.findall(whole)),
        repetition=repetition(answer),
        loop=loops(answer),
        empty=not regex.search(r"[\p{L}\p{N}\p{S}]", answer),
        cut=cut,
    )


def rates(found: Iterable[Confusion]) -> dict[str, dict[str, dict[str, float]]]:
    """`values` averaged per language: `{"ko": {"line": {"value": 0.9, "n": 40}, …}, …}`.

    `n` is the answers for which the measure is defined: with a line long enough, with a pass of
    the line rate, with letters. Those of `line/en` and `script/Hani` are all with `line` and `script`; a
    language or script that no answer leaked has no entry. Languages are in the order they came.
    """
    by_language: dict[str, list[Confusion]] = defaultdict(list)
    for each in found:
        by_language[each.language].append(each)
    result = {}
    for tag, answers in by_language.items():
        sums: dict[str, float] = defaultdict(float)
        counts: Counter[str] = Counter()
        for answer in answers:
            for name, value in answer.values().items():
                sums[name] += value
                counts[name] += 1
        result[tag] = {
            name: {"value": sums[name] / n, "n": n}
            for name in counts
            for n in (counts[name.partition("/")[0]],)
        }
    return result


@functools.cache
def own_scripts(language: str) -> frozenset[str]:
    """The Unicode scripts an answer in `language` may be written in. Korean is Hangul alone: Hanja outside
    a gloss is what this module looks for."""
    script = languages.script(language)
    return frozenset({"Hang"}) if script == "Kore" else frozenset(scripts.unicode_scripts(script))


def repetition(text: str) -> float:
    """The share of the n-grams of `text` that stood in it before: see `Confusion.repetition`."""
    found = scripts.counts(text)
    unspaced = sum(found[name] for name in _UNSPACED)
    if 2 * unspaced > found.total():
        units, n = regex.findall(r"\X", regex.sub(r"\s+", "", text)), 2 * _GRAM
    else:
        units, n = text.split(), _GRAM
    grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def loops(text: str) -> bool:
    """True where `text` ends in one unit with a letter or digit, four times over and 24 characters long.

    The last repeat may be cut short, as an answer that ran to its token limit is. Linear in the text.
    """
    backwards = text.strip()[::-1]
    border = [0] * len(backwards)  # Knuth–Morris–Pratt: longest prefix that is also a suffix, at each length
    for i in range(1, len(backwards)):
        k = border[i - 1]
        while k and backwards[i] != backwards[k]:
            k = border[k - 1]
        border[i] = k + (backwards[i] == backwards[k])
        length, period = i + 1, i + 1 - border[i]
        if length >= _LOOP_LENGTH and length >= _LOOP_TIMES * period:
            return any(char.isalnum() for char in backwards[:period])
    return False


@dataclasses.dataclass(frozen=True)
class _Run:
    """A word, or the part of one, in a script that is not the language's."""

    text: str
    script: str
    start: int
    letters: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


@dataclasses.dataclass(frozen=True)
class _Terms:
    """The words of a prompt that an answer may repeat, and the prompt itself for scripts without spaces."""

    words: frozenset[str]
    text: str
    same: bool
    """The prompt is in the script of the answer's language."""

    def __contains__(self, run: _Run) -> bool:
        if run.script not in _ALPHABETS:
            return self.same and run.text in self.text
        return (run.text.lower() if self.same else run.text) in self.words


def _terms(prompt: str, own: frozenset[str]) -> _Terms:
    found = scripts.counts(prompt)
    same = 5 * sum(found[name] for name in own) >= found.total()
    words = {run.text for run in _foreign_runs(prompt, own)}
    words |= {part for word in words for part in regex.split(r"['’.&/+_-]", word)}
    if same:
        return _Terms(frozenset(word.lower() for word in words), prompt, True)
    return _Terms(frozenset(w for w in words if any(c.isupper() or c.isdigit() for c in w)), prompt, False)


class _Excuses:
    """Why a run of another script may stand in `line`."""

    def __init__(self, line: str, own: frozenset[str], terms: _Terms):
        self.line, self.own, self.terms = line, own, terms
        self.has_own = any(scripts.counts(line)[name] for name in own)
        self.glosses = [m.span() for m in _GLOSS.finditer(line) if self._is_own(m[1])]
        self.quotes = [m.span() for m in _QUOTED.finditer(line)] if self.has_own else []

    def reason(self, run: _Run) -> str | None:
        """prompt, unit, acronym, code, gloss, name or quoted; None where it may not."""
        alphabetic = run.script in _ALPHABETS
        if run.script == "Grek" and run.letters == 1 and run.text not in _GREEK_TWINS:
            return "unit"
        if not self._within_word(run):
            if run in self.terms:
                return "prompt"
            if alphabetic and self._is_unit(run):
                return "unit"
            if alphabetic and _acronym(run.text):
                return "acronym"
            if alphabetic and regex.search(r"\w[._]\w", run.text):
                return "code"
        if any(start < run.start < end for start, end in self.glosses):
            return "gloss"
        if alphabetic and self.has_own and not self._within_word(run) and any(c.isupper() for c in run.text):
            return "name"
        return "quoted" if any(start < run.start < end for start, end in self.quotes) else None

    def _is_own(self, char: str) -> bool:
        return any(scripts.counts(char)[name] for name in self.own)

    def _within_word(self, run: _Run) -> bool:
        """Part of a word in the alphabet of the language, as the Cyrillic а of `pаypal`: no word of its own."""
        if not self.own & _ALPHABETS:
            return False
        return self._is_own(self.line[run.start - 1 : run.start]) or self._is_own(
            self.line[run.end : run.end + 1]
        )

    def _is_unit(self, run: _Run) -> bool:
        if run.text in _BARE_UNITS or (run.script == "Latn" and run.letters == 1):
            return True
        parts = run.text.rstrip("23").split("/")
        if not all(_UNIT.fullmatch(part) for part in parts):
            return False
        return len(parts) > 1 or bool(regex.search(r"[\d²³]\s?$", self.line[: run.start]))


@functools.cache
def _runs_of(script: str) -> regex.Pattern[str]:
    letter = rf"\p{{Script={script}}}"
    start = rf"[{letter}&&\p{{L}}]"
    if script not in _ALPHABETS:
        return regex.compile(rf"{start}[{letter}\p{{M}}]*", regex.V1)
    return regex.compile(rf"{start}[{letter}\p{{M}}\d]*(?:['’.&/+_-][{letter}\d]+)*", regex.V1)


def _foreign_runs(line: str, own: frozenset[str]) -> Iterator[_Run]:
    for script in scripts.counts(line):
        if script not in own:
            for match in _runs_of(script).finditer(line):
                yield _Run(match.group(), script, match.start(), scripts.count(match.group()))


def _acronym(word: str) -> bool:
    """GPU, H2O, COVID-19, mRNA: two to six letters, at least two of them and half of them capitals."""
    capitals, letters = sum(map(str.isupper, word)), scripts.count(word)
    return letters <= 6 and capitals >= 2 and 2 * capitals >= letters


def _english(word: str) -> bool:
    return len(word) >= 4 and word.islower() and set(scripts.counts(word)) == {"Latn"}


def _mixed(word: str) -> bool:
    found = scripts.counts("".join(c for c in word if scripts.counts(c)["Grek"] == 0 or c in _GREEK_TWINS))
    return len(set(found) & {"Latn", "Cyrl", "Grek"}) > 1


def _other_form(line: str, script: str, prompt: str) -> list[str]:
    """The characters of `line`, not in `prompt`, that Chinese or Japanese written so does not have."""
    return [char for char in line if identify.other_form(char, script) and char not in prompt]


def word_count(line: str) -> int:
    """Words between spaces; in scripts without spaces two letters are one."""
    total = 0
    for word in line.split():
        found = scripts.counts(word)
        total += max(bool(found), sum(found[name] for name in _UNSPACED) // _LETTERS_PER_WORD)
    return total
