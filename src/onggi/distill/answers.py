"""Which of a teacher's answers a student is to learn from: what is wrong with each, the best of several, and pairs.

What a teacher writes is not all worth learning, and what is wrong with it differs by language: a strong model refuses
in Korean what it answers in English, drifts into English after a paragraph of Thai, or says the same thing to every
prompt of a kind. So every answer that is left out is left out for one reason, the first that holds, and reasons are
counted by language:

    failed       the teacher gave no answer
    empty        nothing in it
    cut          it ended for its length
    language     it is not in the language of its prompt, or a tenth of its letters are of a foreign script
    broken       characters that are none, or an end that is said over and over
    refusal      a short answer that begins as refusals do in its language or in English
    judge        the judge's score is too low, or it gave none
    agreement    it says something else than the other answers to its prompt do
    contaminated it holds a piece of a text that is evaluated on
    second       another answer to its prompt is better
    duplicate    it is nearly what an answer before it says
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import regex
import yaml

from ..text import confusion
from ..text.corpus import Cleaning
from ..text.corpus.duplicates import KEEP, Contamination, duplicates, exact, signature
from ..text.corpus.measures import window
from ..text.corpus.scale import Scale, scales
from ..text.corpus.shingles import Shingled, simplify, spaced
from ..text.prompts import Prompt

REASONS = (
    "failed",
    "empty",
    "cut",
    "language",
    "broken",
    "refusal",
    "judge",
    "agreement",
    "contaminated",
    "second",
    "duplicate",
)
# A refusal begins like one, and is short: an apology within a long letter is none.
_BEGINNING, _SHORT = 160, 600
_FOREIGN = 0.1  # share of letters


@dataclass
class Candidate:
    """One answer to one prompt, all of its turns. rows: of `evaluate.answering`, a row a turn. score: the judge's mean
    over the turns, None where there is none. agreement: with the other answers to its prompt, None where it
    is alone. reason: why it is left out, None while it is not.
    """

    prompt: Prompt
    sample: int
    rows: Sequence[Mapping[str, Any]]
    score: float | None = None
    agreement: float | None = None
    reason: str | None = None
    evidence: str = ""
    said: str = field(init=False)

    def __post_init__(self) -> None:
        """What the teacher says in all turns together."""
        self.said = "\n".join(row["output"] for row in self.rows)

    @property
    def messages(self) -> list[Mapping[str, str]]:
        """The whole chat, answers with it."""
        outputs = [row["output"].strip() for row in self.rows]
        return [*self.prompt.chat(outputs[:-1]), {"role": "assistant", "content": outputs[-1]}]

    @property
    def worth(self) -> tuple[float, float, int]:
        """What the best of several answers has most of: the judge's score, then agreement, then being first."""
        return (self.score or 0.0, self.agreement or 0.0, -self.sample)


@dataclass(frozen=True)
class Rules:
    """What is left out; a threshold of None leaves nothing out. judged: whether there is a judge. agreement: the least
    similarity with the other answers to the same prompt, 0 to 1.
    """

    judged: bool = False
    score: float | None = None
    agreement: float | None = None
    refusals: bool = True


def sift(
    candidates: Sequence[Candidate], rules: Rules, against: Contamination | None = None, best: bool = True
) -> None:
    """Set the reason of each that is left out. best: keep one answer to a prompt, else all that are sound.

    candidates: in the order of the prompts.
    """
    for candidate in candidates:
        candidate.reason, candidate.evidence = _fault(candidate, rules)
    _agree(candidates, rules)
    for candidate in candidates if against else ():
        assert against is not None
        if candidate.reason is None and (found := _seen(candidate, against)):
            candidate.reason, candidate.evidence = "contaminated", ", ".join(found[:3])
    for own in _by_prompt(candidates) if best else ():
        sound = [candidate for candidate in own if candidate.reason is None]
        for candidate in sound:
            if candidate is not max(sound, key=lambda one: one.worth):
                candidate.reason = "second"
    _repeated(candidates)


def _by_prompt(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    found: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        found.setdefault(candidate.prompt.id, []).append(candidate)
    return list(found.values())


def _fault(candidate: Candidate, rules: Rules) -> tuple[str | None, str]:
    """The first of the reasons that an answer alone can give, and what shows it."""
    rows, prompt = candidate.rows, candidate.prompt
    for row in rows:
        if row["finish"] == "error":
            return "failed", str(row["error"])
    checked = [
        confusion.check(row["output"], prompt.lang, prompt.text(turn), finish=row["finish"])
        for turn, row in enumerate(rows, 1)
    ]
    if any(found.empty for found in checked):
        return "empty", ""
    if any(row["finish"] == "length" or found.cut for row, found in zip(rows, checked, strict=True)):
        return "cut", f"{sum(row['tokens'] for row in rows)} tokens"
    for found in checked:
        if found.line_pass is False:
            return "language", ", ".join(sorted(set(found.identified)))
        foreign = sum(found.foreign.values())
        if found.letters and foreign > _FOREIGN * found.letters:
            return "language", ", ".join(found.leaks[:3])
        if found.broken or found.loop:
            return "broken", "a loop" if found.loop else f"{found.broken} characters"
    if rules.refusals and (words := refusal(candidate.said, prompt.lang)):
        return "refusal", words
    if rules.judged and rules.score is not None:
        if candidate.score is None:
            return "judge", "no score"
        if candidate.score < rules.score:
            return "judge", f"{candidate.score:g}"
    return None, ""


def refusal(text: str, lang: str) -> str | None:
    """The words that refuse, where `text` is short and begins with such; None where it does not."""
    if len(text) > _SHORT:
        return None
    for pattern in _refusals(lang):
        if found := pattern.search(text[:_BEGINNING]):
            return found[0]
    return None


@functools.cache
def _refusals(lang: str) -> tuple[regex.Pattern[str], ...]:
    every = yaml.safe_load((Path(__file__).parent / "data" / "refusals.yaml").read_text(encoding="utf-8"))
    own = every.get(lang) or every.get(lang.partition("-")[0]) or []
    return tuple(regex.compile(words, regex.IGNORECASE) for words in dict.fromkeys([*own, *every["en"]]))


def _scale(lang: str) -> Scale:
    return scales([lang], {})[lang]


def _pieces(text: str, lang: str, n: int) -> np.ndarray:
    """Its shingles: of n words, else the windows of characters that take their place."""
    words = spaced(lang) and lang != "ko"
    return Shingled(simplify(text), words).shingles(window(n, words, _scale(lang)))


def alike(one: str, other: str, lang: str) -> float:
    """How much two answers say the same, 0 to 1: the shingles that both have, of all that either has (Jaccard)."""
    a, b = _pieces(one, lang, 1), _pieces(other, lang, 1)
    both = len(np.intersect1d(a, b))
    return both / max(len(a) + len(b) - both, 1)


def _agree(candidates: Sequence[Candidate], rules: Rules) -> None:
    """Each answer's mean likeness to the other sound ones of its prompt."""
    for own in _by_prompt(candidates):
        sound = [candidate for candidate in own if candidate.reason is None]
        if len(sound) < 2:
            continue
        likeness: dict[int, list[float]] = {id(candidate): [] for candidate in sound}
        for one, other in itertools.combinations(sound, 2):
            value = alike(one.said, other.said, one.prompt.lang)
            likeness[id(one)].append(value)
            likeness[id(other)].append(value)
        for candidate in sound:
            values = likeness[id(candidate)]
            candidate.agreement = round(sum(values) / len(values), 4)
            if rules.agreement is not None and candidate.agreement < rules.agreement:
                candidate.reason, candidate.evidence = "agreement", f"{candidate.agreement:g}"


def _seen(candidate: Candidate, against: Contamination) -> list[str]:
    """Texts that are evaluated on of which the chat holds a piece."""
    chat = "\n".join(message["content"] for message in candidate.messages)
    return against.find(simplify(chat), candidate.prompt.lang)


def _repeated(candidates: Sequence[Candidate]) -> None:
    """Leave out what is nearly said before, in the same language, among what is kept. Prompts count too: the same
    short answer (`Yes.`) to another question is no duplicate.
    """
    config = Cleaning()
    by_language: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        if candidate.reason is None:
            by_language.setdefault(candidate.prompt.lang, []).append(candidate)
    for lang, own in by_language.items():
        texts = ["\n".join(message["content"] for message in candidate.messages) for candidate in own]
        hashes = np.array([np.frombuffer(exact(simplify(text)), np.uint64) for text in texts])
        signatures = np.array([signature(_pieces(text, lang, config.shingle), config) for text in texts])
        for candidate, verdict in zip(own, duplicates(hashes, signatures.T, True, True), strict=True):
            if verdict != KEEP:
                candidate.reason = "duplicate"


@dataclass(frozen=True)
class Pair:
    """A preference: to the same chat one answer rather than another. why: `score`, or the fault of the rejected."""

    chosen: Candidate
    rejected: Candidate
    why: str


def pairs(candidates: Sequence[Candidate], gap: float) -> list[Pair]:
    """For each prompt the answer that is kept, and the worst of the others: one with a fault that a preference can
    mend (the wrong language, broken, a refusal), else one whose score is lower by `gap` at least.
    """
    found = []
    for own in _by_prompt(candidates):
        kept = next((candidate for candidate in own if candidate.reason is None), None)
        if kept is None or len(kept.rows) > 1:  # of a chat of several turns the earlier ones would differ too
            continue
        faulty = [c for c in own if c.reason in ("language", "broken", "refusal")]
        worse = [
            c for c in own if c.score is not None and kept.score is not None and c.score <= kept.score - gap
        ]
        if faulty:
            found.append(Pair(kept, faulty[0], str(faulty[0].reason)))
        elif worse:
            found.append(Pair(kept, min(worse, key=lambda one: one.worth), "score"))
    return found


def counted(candidates: Sequence[Candidate]) -> dict[str, dict[str, int]]:
    """Language → answers `asked` for and `kept`, and the number left out for each reason."""
    found: dict[str, Counter[str]] = {}
    for candidate in candidates:
        own = found.setdefault(candidate.prompt.lang, Counter())
        own["asked"] += 1
        own[candidate.reason or "kept"] += 1
    return {
        lang: {key: own[key] for key in ("asked", "kept", *REASONS) if own[key] or key in ("asked", "kept")}
        for lang, own in found.items()
    }
