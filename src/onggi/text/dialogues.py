"""Dialogues to learn from: rows in any of the usual shapes as one kind of dialogue, and what is wrong with them.

What a row may be:

- `{"messages": [{"role", "content"}, …], "lang"?, "tools"?}`: system, user, assistant, tool
- `{"prompt", "chosen", "rejected", "lang"?}`: texts or lists of messages; or two whole dialogues without `prompt`
- `{"prompt", "completion"}`: texts or messages
- `{"instruction", "input"?, "output", "system"?}` (Alpaca)
- `{"conversations": [{"from": "human" | "gpt" | …, "value"}, …], "system"?}` (ShareGPT)

A row that is none of these, or whose answers would teach a model something that nobody wants (half a character,
another language than the row says), is left out and named with its line. `lang` is the language of the answers; where it is not given
the text says it.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import regex

from .. import languages as tags
from .. import ledger
from ..errors import OnggiError
from . import confusion, identify, jsonl

# A message: `role`, `content`, and what tools need (`tool_calls`, `tool_call_id`, `name`).
Message = Mapping[str, Any]

SEED = "seed"
_ROLES = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
_ABOUT_TOOLS = ("tool_calls", "tool_call_id", "name")
# What cannot begin or end a text that is whole: a combining mark before any letter; Khmer's coeng, which another
# consonant follows; a joiner.
_MARK_FIRST = regex.compile(r"^\s*\p{M}")
_COENG_LAST = regex.compile(r"[\u17d2\u200d]\s*$")
# Conjoining jamo that NFC makes no syllable of, but for an old vowel or final after its own initial.
_HALF = regex.compile(
    r"[\u1100-\u115f\ua960-\ua97c](?![\u1100-\u115f\ua960-\ua97c\u1160-\u11a7\ud7b0-\ud7c6])"
    r"|(?<![\u1100-\u11ff\ua960-\ua97c\ud7b0-\ud7fb\uac00-\ud7a3])[\u1160-\u11ff\ud7b0-\ud7fb]"
)
# A syllable and one letter more at the end, as a keyboard has it before the syllable is whole; ㅋ, ㅎ, ㅠ, ㅜ laugh and cry.
_LETTER_LAST = regex.compile(r"[가-힣][ㄱ-ㅊㅌㅍㅏ-ㅛㅝ-ㅟㅡ-ㅣ]\s*$")
_BROKEN = regex.compile(r"[\ufffd\ud800-\udfff]|<0x[0-9A-F]{2}>")
_DATA = regex.compile(r"\s*(?:```|[{\[])")


@dataclass(frozen=True)
class Dialogue:
    """One row. place: its file and line. messages: all of them, the last the assistant's; of a preference those
    before the answer. chosen, rejected: of a preference, the two answers. lang: a canonical tag, of the answers.
    """

    place: str
    lang: str
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    chosen: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    kind: str | None = None
    source: str | None = None

    @property
    def is_preference(self) -> bool:
        """Whether it says which of two answers is better."""
        return bool(self.chosen)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last answer."""
        return self.messages if self.is_preference else self.messages[:-1]

    @property
    def answers(self) -> list[str]:
        """What the assistant says, all turns; of a preference both answers."""
        return [
            text
            for message in (*self.messages, *self.chosen, *self.rejected)
            if message["role"] == "assistant" and (text := message["content"])
        ]

    @property
    def key(self) -> str:
        """A hash of what is asked: of rows that ask the same all are held out or none."""
        asked = json.dumps([message["content"] for message in self.prompt], ensure_ascii=False)
        return hashlib.sha256(f"{self.lang}\0{asked}".encode()).hexdigest()


@dataclass(frozen=True)
class Fault:
    """What is wrong with a row that is left out. kind: one word for counting; why: for the one who mends it."""

    place: str
    kind: str
    why: str

    def __str__(self) -> str:
        return f"{self.place}: {self.why}"


@dataclass
class Read:
    """What sources hold: dialogues that are sound, and what is wrong with the others. licences: of the sources
    whose rows name one.
    """

    dialogues: list[Dialogue] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    licences: dict[str, None] = field(default_factory=dict)

    @property
    def languages(self) -> tuple[str, ...]:
        """Those of the dialogues, in their order."""
        return tuple(dict.fromkeys(dialogue.lang for dialogue in self.dialogues))

    @property
    def licence(self) -> str | None:
        """The licences of all rows that name one."""
        return ", ".join(self.licences) or None


class _Wrong(Exception):
    """A row that is no sound dialogue."""

    def __init__(self, kind: str, why: str):
        super().__init__(why)
        self.kind = kind


# ── sources ────────────────────────────────────────────────────────────────────────────────────


def fingerprint(source: str) -> str:
    """A string that changes when the rows do; of a hub's data set its revision."""
    if source == SEED:
        return "seed:" + ledger.digest([ledger.sha256(path) for path in _seeds()])
    path = Path(source)
    if path.is_file():
        return ledger.sha256(path)
    from .corpus import rows

    _check_hub(source)
    return rows.fingerprint(source, ())


def records(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of `seed`, a .jsonl or .parquet file, or a hub's data set (OWNER/NAME). Raises OnggiError for
    what is not there or cannot be read.
    """
    if source == SEED:
        for path in _seeds():
            yield from ((f"{SEED} ({path.name}), line {n}", row) for n, row in jsonl.read(path, path.name))
        return
    path = Path(source)
    if path.is_file() and path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise OnggiError(f"{source}: is not a readable parquet file ({error}).") from error
        yield from ((f"{source}, row {n}", row) for n, row in enumerate(table, 1))
        return
    if path.is_file():
        if path.suffix not in (".jsonl", ".ndjson", ".json"):
            raise OnggiError(f"data: {source}: is neither .jsonl nor .parquet.")
        yield from ((f"{source}, line {n}", row) for n, row in jsonl.read(path, source))
        return
    from .corpus import rows

    _check_hub(source)
    yield from ((f"{source}, row {n}", dict(row)) for n, row in enumerate(rows.hub(source), 1))


def _check_hub(source: str) -> None:
    from .corpus import rows

    if Path(source).is_dir() or not rows.is_hub(source):
        raise OnggiError(
            f"data: {source}: there is no such file; dialogues are a .jsonl or .parquet file, a folder that "
            f"`onggi answers` made, a hub's data set (OWNER/NAME), or {SEED}, those that ship."
        )


def _seeds() -> list[Path]:
    """The files of the dialogues that ship with onggi."""
    found = sorted((Path(__file__).parent / "data").glob("seed-*.jsonl"))
    if not found:
        raise OnggiError("data: seed: no dialogues ship with this installation; name a file of your own.")
    return found


# ── reading and checking ───────────────────────────────────────────────────────────────────────


def read(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    wanted: Sequence[str] | None = None,
    leaks: Callable[[str, str], str | None] = lambda text, lang: None,
) -> Read:
    """The sound dialogues among `rows` (place, row), and what is wrong with the others, in their order.

    wanted: languages to keep (canonical tags); rows in others are passed over in silence. leaks: (text, lang) →
    the evaluation item that the text is of, or None.
    """
    found = Read()
    seen: dict[bytes, str] = {}
    for place, row in rows:
        try:
            dialogue = dialogue_of(place, row)
            if wanted is not None and dialogue.lang not in wanted:
                continue
            _check_text(dialogue)
            _check_language(dialogue)
            _check_new(dialogue, seen)
            for message in (*dialogue.messages, *dialogue.chosen):
                if item := leaks(message["content"], dialogue.lang):
                    raise _Wrong(
                        "leaked",
                        f"holds text of an evaluation set ({item}), which would then measure nothing",
                    )
        except _Wrong as wrong:
            found.faults.append(Fault(place, wrong.kind, str(wrong)))
            continue
        found.dialogues.append(dialogue)
        if row.get("licence"):
            found.licences[str(row["licence"])] = None
    return found


def dialogue_of(place: str, row: Mapping[str, Any]) -> Dialogue:
    """One row as a dialogue. Raises for what is none (see the module's docstring)."""
    chosen: Sequence[Message] = ()
    rejected: Sequence[Message] = ()
    row = {key: value for key, value in row.items() if value is not None}
    if "chosen" in row or "rejected" in row:
        messages, chosen, rejected = _preference(row)
    elif "messages" in row:
        messages = _messages(row["messages"], "messages")
    elif "conversations" in row:
        messages = _messages(row["conversations"], "conversations", "from", "value")
    elif "instruction" in row:
        asked = [
            str(row[name]).strip() for name in ("instruction", "input") if str(row.get(name, "")).strip()
        ]
        messages = [
            {"role": "user", "content": "\n\n".join(asked)},
            {"role": "assistant", "content": _text(row.get("output"), "output")},
        ]
    elif "prompt" in row and "completion" in row:
        messages = [
            *_side(row["prompt"], "prompt", "user"),
            *_side(row["completion"], "completion", "assistant"),
        ]
    else:
        raise _Wrong(
            "shape",
            f"is no dialogue (it has {', '.join(map(str, row)) or 'nothing'}); a row has messages, or prompt with chosen and "
            "rejected or with completion, or instruction with output, or conversations",
        )
    if row.get("system") and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": _text(row["system"], "system")}, *messages]
    _check_order(messages, asks=bool(chosen))
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if chosen and (len(side) != 1 or side[0]["role"] != "assistant"):
            raise _Wrong("roles", f"{name} is not one answer of the assistant's")
    if chosen and chosen[0]["content"] == rejected[0]["content"]:
        raise _Wrong("duplicate", "chosen and rejected are the same")
    made = Dialogue(
        place,
        "und",
        tuple(messages),
        tuple(_tools(row.get("tools"))),
        tuple(chosen),
        tuple(rejected),
        kind=str(row["kind"]) if row.get("kind") else None,
        source=str(row["source"]) if row.get("source") else None,
    )
    return replace(made, lang=_lang(row, made))


def _lang(row: Mapping[str, Any], dialogue: Dialogue) -> str:
    given = row.get("lang", row.get("language"))
    if given is not None:
        try:
            return tags.canonical(given)
        except OnggiError as error:
            raise _Wrong("language", f"lang: {error}".rstrip(".")) from error
    found = identify.identify("\n".join(dialogue.answers)).language
    if found is None:
        raise _Wrong("language", 'its language is not to be told; give it a "lang"')
    return found


def _messages(value: Any, name: str, role: str = "role", content: str = "content") -> list[Message]:
    if isinstance(value, str):  # JSON in a column of text
        try:
            value = json.loads(value)
        except ValueError as error:
            raise _Wrong("shape", f"{name} is a text, not a list of messages") from error
    if not isinstance(value, list | tuple) or not value:
        raise _Wrong("shape", f"{name} is not a list of messages")
    found: list[Message] = []
    for each in value:
        if not isinstance(each, Mapping):
            raise _Wrong("shape", f"{name} holds a {type(each).__name__}; each message is an object")
        # A dialogue of one kind may stand in a row of the other.
        key, text = (
            (role, content) if role in each else ("role", "content") if "role" in each else ("from", "value")
        )
        said = each.get(key)
        if said not in _ROLES:
            raise _Wrong(
                "roles", f"{name} has a message of {said!r}; there are system, user, assistant and tool"
            )
        message: dict[str, Any] = {"role": _ROLES[said], "content": each.get(text) or ""}
        if isinstance(message["content"], list):  # parts, as of models that see pictures
            parts = message["content"]
            if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
                raise _Wrong("shape", f"{name} holds a message with a part that is no text")
            message["content"] = "".join(part["text"] for part in parts)
        if not isinstance(message["content"], str):
            raise _Wrong(
                "shape", f"{name} holds a message whose content is a {type(message['content']).__name__}"
            )
        message |= {key: each[key] for key in _ABOUT_TOOLS if each.get(key)}
        found.append(message)
    return found


def _side(value: Any, name: str, role: str) -> list[Message]:
    return (
        [{"role": role, "content": _text(value, name)}] if isinstance(value, str) else _messages(value, name)
    )


def _preference(row: Mapping[str, Any]) -> tuple[list[Message], list[Message], list[Message]]:
    sides = []
    for name in ("chosen", "rejected"):
        if name not in row:
            raise _Wrong("shape", f"has no {name}; a preference has both")
        sides.append(_side(row[name], name, "assistant"))
    if "prompt" in row:
        prompt = _side(row["prompt"], "prompt", "user")
        # Some data sets say the prompt again before each answer.
        return (prompt, *(side[len(prompt) :] if side[: len(prompt)] == prompt else side for side in sides))  # type: ignore[return-value]
    chosen, rejected = sides
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise _Wrong("shape", "has no prompt, and chosen and rejected do not begin alike")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _Wrong(
            "shape", f"{name} is {'not there' if value is None else f'a {type(value).__name__}'}, not a text"
        )
    return value


def _tools(value: Any) -> list[Mapping[str, Any]]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise _Wrong("shape", "tools is a text that is no JSON") from error
    if not value:
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) for tool in value):
        raise _Wrong("shape", "tools is not a list of objects")
    return list(value)


def _check_order(messages: Sequence[Message], asks: bool) -> None:
    """Raises for roles that no chat has in that order. asks: whether the assistant's answer is still to come."""
    before: str | None = None
    for number, message in enumerate(messages, 1):
        role = message["role"]
        allowed = {
            None: ("system", "user"),
            "system": ("user",),
            "user": ("assistant",),
            "assistant": ("tool",) if number > 1 and messages[number - 2].get("tool_calls") else ("user",),
            "tool": ("tool", "assistant"),
        }[before]
        if role not in allowed:
            after = "begins with" if before is None else f"has, after {before},"
            raise _Wrong(
                "roles", f"{after} {role} (message {number}); there should be {' or '.join(allowed)}"
            )
        before = role
    last = ("user", "tool") if asks else ("assistant",)
    if before not in last:
        raise _Wrong("roles", f"ends with {before}; there should be {' or '.join(last)}")


def _check_text(dialogue: Dialogue) -> None:
    for message in (*dialogue.messages, *dialogue.chosen, *dialogue.rejected):
        role, text = message["role"], message["content"]
        if not text.strip() and not message.get("tool_calls") and role != "tool":
            raise _Wrong("empty", f"has an empty {'answer' if role == 'assistant' else f'message of {role}'}")
        if why := cut(text):
            what = "an answer" if role == "assistant" else f"a message of {role}"
            raise _Wrong("cut", f"has {what} that {why}")


def cut(text: str) -> str | None:
    """How `text` gives away that it was cut in the middle of a character; None where it does not.

    U+FFFD, half a surrogate pair and printed byte tokens (`<0xEA>`) anywhere; at the beginning a combining mark without
    a letter; jamo that make no syllable; at the end a letter more than a Hangul syllable (안녕하세ㅇ) or a
    Khmer coeng that nothing follows.
    """
    if found := _BROKEN.search(text):
        return f"holds {_shown(found[0])}, which is what is left of a character cut in the middle"
    if found := _MARK_FIRST.search(text):
        return f"begins with {_shown(found[0].strip())}, a mark whose letter was cut off"
    if found := _HALF.search(unicodedata.normalize("NFC", text)):
        return f"holds {_shown(found[0])}, half a Hangul syllable"
    if found := _LETTER_LAST.search(text):
        return f"ends in {found[0].strip()[-1]}, half a Hangul syllable"
    if found := _COENG_LAST.search(text):
        return f"ends in {_shown(found[0].strip())}, which another letter follows"
    return None


def _shown(characters: str) -> str:
    if characters.startswith("<0x"):
        return characters
    return " ".join(f"U+{ord(character):04X}" for character in characters)


def _check_language(dialogue: Dialogue) -> None:
    """Raises where answers are in another language than the row's, unless what is asked has or names that language,
    as in a translation.
    """
    if not identify.known(dialogue.lang):
        return
    asked = "\n".join(message["content"] for message in dialogue.prompt)
    for answer in dialogue.answers:
        if _DATA.match(answer):
            continue
        found = confusion.check(answer, dialogue.lang, asked).identified
        if not found or any(identify.alike(tag, dialogue.lang) for tag in found):
            continue
        other = found[0]
        own = tags.name(other, dialogue.lang)
        named = (own, regex.sub("[语語]$", "文", own), tags.name(other, "en"), tags.name(other, other))
        if any(name and name.casefold() in asked.casefold() for name in named):
            continue
        lines = [line for line in asked.splitlines() if confusion.word_count(line) >= confusion.MIN_WORDS]
        if any(identify.alike(identify.identify(line).language or "und", other) for line in lines) and any(
            identify.alike(identify.identify(line, expected=dialogue.lang).language or "und", dialogue.lang)
            for line in lines
        ):
            continue
        raise _Wrong(
            "language",
            f"has an answer in {tags.name(other)}, but is tagged {dialogue.lang} ({tags.name(dialogue.lang)})",
        )


def _check_new(dialogue: Dialogue, seen: dict[bytes, str]) -> None:
    from .corpus import duplicates
    from .corpus.shingles import simplify

    said = [message["content"] for message in (*dialogue.messages, *dialogue.chosen, *dialogue.rejected)]
    key = duplicates.exact("\0".join(map(simplify, said)) + "\0" + json.dumps(dialogue.tools, sort_keys=True))
    if key in seen:
        raise _Wrong("duplicate", f"says what {seen[key]} says")
    seen[key] = dialogue.place


class Leaks:
    """Finds text of evaluation sets: `Leaks(exams, languages)(text, lang)` → the item's name, or None.

    exams: name → language → texts. A text of which a stretch as long as 13 English words stands in an item is taken for
    it, and a short one that is the whole item.
    """

    def __init__(self, exams: Mapping[str, Mapping[str, Sequence[str]]], languages: Iterable[str]):
        from .corpus import Cleaning, scale
        from .corpus.duplicates import Contamination, Exam, exact
        from .corpus.shingles import simplify

        sets = [Exam(name, texts) for name, texts in exams.items()]
        self._windows = Contamination(sets, Cleaning(), scale.scales(languages, {}))
        self._whole = {
            (language, exact(simplify(text))): f"{name} {language} {number}"
            for name, texts in exams.items()
            for language, own in texts.items()
            for number, text in enumerate(own, 1)
        }

    def __call__(self, text: str, lang: str) -> str | None:
        """The item that `text` has a part of."""
        from .corpus.duplicates import exact
        from .corpus.shingles import simplify

        simple = simplify(text)
        whole = self._whole.get((lang, exact(simple))) if simple else None
        return whole or next(iter(self._windows.find(simple, lang)), None)


# ── shares ─────────────────────────────────────────────────────────────────────────────────────


def hold_out(dialogues: Sequence[Dialogue], share: float) -> tuple[list[Dialogue], list[Dialogue]]:
    """(the rest, those held out): of each language a `share`, one at least, chosen by what is asked, so that the same
    question is on one side only. Raises OnggiError for a language with fewer than two questions.
    """
    keys: dict[str, list[str]] = {}
    for dialogue in dialogues:
        keys.setdefault(dialogue.lang, []).append(dialogue.key)
    apart: set[str] = set()
    for language, own in keys.items():
        order = sorted(set(own))
        if len(order) < 2:
            raise OnggiError(
                f"data: one dialogue in {tags.name(language)} is too little: one is held out to measure on. Give more, or "
                f"leave the language out (--languages)."
            )
        apart |= set(order[: max(1, round(share * len(order)))])
    return (
        [dialogue for dialogue in dialogues if dialogue.key not in apart],
        [dialogue for dialogue in dialogues if dialogue.key in apart],
    )


def said_of(faults: Sequence[Fault], rows: int, shown: int = 5) -> str:
    """What is left out, in a sentence or two and the first few places of each kind."""
    counts: dict[str, list[Fault]] = {}
    for fault in faults:
        counts.setdefault(fault.kind, []).append(fault)
    lines = [f"Left out {len(faults)} of {rows} rows:"]
    for own in counts.values():
        lines += [f"  {fault}." for fault in own[:shown]]
        if len(own) > shown:
            lines.append(f"  … and {len(own) - shown} more of this kind.")
    return "\n".join(lines)
