"""What a task is: items that are the same in every language, and shots that are never items.

The first `DEV` items of a task are its shots, always the same and in the same order, so that the
few-shot block is one prefix for all items of a language; they are left out of the items whether
shots are asked for or not, so that the same items are scored at zero shots and at five.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ... import text as texts
from ...errors import OnggiError

DEV = 5


@dataclass(frozen=True)
class Choice:
    """A multiple-choice item: `question` is to be continued by one of `choices`, of which `answer` is right.

    A choice begins with the space that parts it from the question, where the language writes one. `prior`
    is the question without what is asked about (`Capital:`), for `acc_mutual_info`. shots: solved items.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    prior: str | None = None
    shots: tuple[Choice, ...] = ()

    @property
    def context(self) -> str:
        """The question after its shots."""
        return "".join(f"{s.question}{s.choices[s.answer]}\n\n" for s in self.shots) + self.question


@dataclass(frozen=True)
class Open:
    """An item to be answered in free text, and the `answer` it is compared with. shots: solved items."""

    id: str
    question: str
    answer: str
    shots: tuple[Open, ...] = ()

    @property
    def prompt(self) -> str:
        """The question after its shots."""
        return "".join(f"{s.question} {s.answer}\n\n" for s in self.shots) + self.question


Item = Choice | Open


@dataclass(frozen=True)
class Floor:
    """What no knowledge earns, as shares of the items: `chance` by picking at random, `majority` by
    picking the one answer that pays best wherever it is offered ("dollar"), and else at random.
    """

    chance: float
    majority: float


def floor(items: Sequence[Choice]) -> Floor:
    """The floor under the accuracy on `items`, as they were drawn for one language."""
    chance = sum(1 / len(item.choices) for item in items)
    gain: defaultdict[str, float] = defaultdict(float)
    for item in items:
        for place, choice in enumerate(item.choices):
            gain[choice] += (place == item.answer) - 1 / len(item.choices)
    return Floor(chance / len(items), (chance + max(gain.values())) / len(items))


@dataclass(frozen=True)
class Task(ABC):
    """A task; its items by `items`.

    `metric` is `acc` (the choice of highest log-probability is the answer), `acc_norm` (of highest
    log-probability per byte of UTF-8, for choices of unlike length), `acc_mutual_info` (of highest
    log-probability after the context less that after `prior`, for choices of which some are rare words)
    or `chrf`; the first three are named as lm-eval names them. Generation ends at one
    of `stop`. A `parallel` task is made from a parallel text; the others ship their items.
    """

    name: str
    about: str
    """One line for --list-tasks."""
    metric: str
    parallel: bool = False
    stop: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """`choice` or `open`: whether its items are `Choice` or `Open`."""
        return "open" if self.metric == "chrf" else "choice"

    @abstractmethod
    def languages(self, text: texts.Text | None = None) -> tuple[str, ...]:
        """The languages it can ask in; for a parallel task those of `text` (default: the probe)."""

    @abstractmethod
    def _all(self, languages: Sequence[str], text: texts.Text | None) -> dict[str, list[Item]]:
        """Every item without shots, language → items in the task's own order; a language may lack some.
        `text` is there where the task is parallel.
        """

    def items(
        self,
        languages: Sequence[str],
        *,
        shots: int = 0,
        limit: int | None = None,
        seed: int = 0,
        text: texts.Text | None = None,
    ) -> dict[str, list[Item]]:
        """Language → items: in each of `languages` the same ids in the same order.

        Items that one of the languages cannot ask are left out of all. `shots` solved items stand
        before each (5 at most); `limit` items at most, drawn by `seed`. Raises OnggiError for a
        language the task does not have, too many shots, and a text that is not parallel.
        """
        if not 0 <= shots <= DEV:
            raise OnggiError(
                f"{self.name}: has {DEV} solved items to show, not {shots} (--shots 0 to {DEV})."
            )
        if self.parallel:
            text = _parallel(self.name, text)
        have = self.languages(text)
        missing = [language for language in languages if language not in have]
        if missing:
            raise OnggiError(
                f"{self.name}: is not there in {', '.join(missing)}; it is in {', '.join(have)}."
            )
        found = self._all(languages, text)
        common = set.intersection(*({item.id for item in found[language]} for language in languages))
        order = [item.id for item in found[languages[0]] if item.id in common]
        solved, asked = order[:DEV], order[DEV:]
        if not asked:
            raise OnggiError(
                f"{self.name}: only {len(order)} items are there in all of {', '.join(languages)}, "
                f"and {DEV} of them are kept as shots."
            )
        random.Random(f"{self.name}/{seed}").shuffle(asked)
        return {
            language: _with_shots({item.id: item for item in found[language]}, solved[:shots], asked[:limit])
            for language in languages
        }


def _parallel(name: str, text: texts.Text | None) -> texts.Text:
    text = text or texts.load("probe")
    if not text.parallel:
        raise OnggiError(
            f"{name}: needs a parallel text (one row a passage, a field a language), not {text.name}."
        )
    return text


def _with_shots(items: dict[str, Item], solved: list[str], asked: list[str]) -> list[Item]:
    shots: Any = tuple(items[key] for key in solved)
    return [replace(items[key], shots=shots) for key in asked]
