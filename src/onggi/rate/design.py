"""Who sees which two answers, on which side, in which order: a study before anybody has rated.

What would bias a preference is taken out here, by design rather than by correction:

- **Order.** Every rater has an order of their own, in which no prompt follows itself.
- **Sides.** Of each two models a rater sees the one as often on the left as the other, and two raters of the
  same pair see it the two ways round.
- **Overlap.** Every pair goes to several raters, so that agreement is known, and every rater gets as many
  pairs as the next, of each two models alike.
- **Attention.** Among them stand pairs whose right choice is known: the same answer twice, and an answer
  beside itself with its characters shuffled. In the page they look as all others do.

Answers that are the same, character for character, are a tie that needs nobody's time: they are counted and
not shown. Everything follows from the seed.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import regex

from .. import ledger
from ..errors import OnggiError
from ..text import confusion

Against = Literal["all", "reference"]
_EVERY = 12  # one attention pair for so many others
_CLEAR = 24  # letters that an answer needs for its shuffling to be seen


@dataclass(frozen=True)
class Item:
    """A prompt and what each model answered. before: messages before the first turn. turns: what the user says.
    answers: model → its answer to each turn.
    """

    id: str
    lang: str
    before: tuple[Mapping[str, str], ...]
    turns: tuple[str, ...]
    answers: Mapping[str, tuple[str, ...]]


@dataclass
class Design:
    """pairs: what is shown, without a name (`pair`, `_id`, `lang`, `before`, `turns`, `first`, `second`).
    key: pair → `models` of first and second, and its `kind`. schedule: language → for each rater the list of
    `id`, `pair`, `swapped` (second on the left). identical: prompts on which two models said the same.
    """

    pairs: list[dict[str, Any]] = field(default_factory=list)
    key: dict[str, dict[str, Any]] = field(default_factory=dict)
    schedule: dict[str, list[list[dict[str, Any]]]] = field(default_factory=dict)
    identical: list[dict[str, Any]] = field(default_factory=list)


def build(
    items: Mapping[str, Sequence[Item]],
    models: Sequence[str],
    *,
    against: Against = "all",
    raters: int = 6,
    overlap: int = 2,
    attention: int | None = None,
    seed: int = 0,
    study: str = "",
) -> Design:
    """The study of `items` (language → prompts with the answers of all `models`, the reference first).

    against: every two models, or each with the reference. raters: of each language. overlap: how many of them
    see each pair. attention: pairs of that kind for each rater; default one in twelve, two at least. study: goes
    into the ids. Raises OnggiError for fewer than two models, an overlap of more than the raters, and a
    language in which all answers are the same.
    """
    if len(models) < 2:
        raise OnggiError("models: a study compares two or more; name another model.")
    if not 1 <= overlap <= raters:
        raise OnggiError(
            f"overlap: {overlap} raters cannot see each pair where there are {raters} of a language."
        )
    couples = list(itertools.combinations(models, 2))
    if against == "reference":
        couples = [couple for couple in couples if models[0] in couple]
    design, kept = Design(), dict[str, tuple[dict[str, Any], dict[str, Any]]]()
    for lang, own in items.items():
        random_ = random.Random(f"{seed}/{lang}")
        jobs = _jobs(own, couples, design, kept, random_)
        if not jobs:
            raise OnggiError(f"models: in {lang} all of them answered the same; there is nothing to rate.")
        lists = _shared_out(jobs, raters, overlap, random_)
        pool = _Pool(own, random_)
        for slot, mine in enumerate(lists):
            _in_order(mine, random_)
            _add_checks(mine, pool, slot, checks_of(len(mine), attention), kept, random_)
            for number, entry in enumerate(mine):
                # Place and rater alone are in it: an id says nothing of what it stands for.
                entry["id"] = ledger.digest([study, lang, slot, number])[:12]
        design.schedule[lang] = [
            [{key: entry[key] for key in ("id", "pair", "swapped")} for entry in mine] for mine in lists
        ]
    _number(design, kept, random.Random(f"{seed}/pairs"))
    return design


def _jobs(
    items: Sequence[Item],
    couples: Sequence[tuple[str, str]],
    design: Design,
    kept: dict[str, tuple[dict[str, Any], dict[str, Any]]],
    random_: random.Random,
) -> list[dict[str, Any]]:
    """A pair for each prompt and two models whose answers differ, in random order."""
    jobs = []
    for item, couple in itertools.product(items, couples):
        if item.answers[couple[0]] == item.answers[couple[1]]:
            design.identical.append({"_id": item.id, "lang": item.lang, "models": list(couple)})
            continue
        # Which is "first" is as good as a coin: the file of pairs has no order to read a model from.
        first, second = random_.sample(couple, 2)
        name = f"{item.lang}/{item.id}/{first}/{second}"
        kept[name] = (
            _pair(item, item.answers[first], item.answers[second]),
            {"models": [first, second], "kind": "pair"},
        )
        jobs.append({"pair": name, "prompt": item.id, "couple": couple, "turned": first != couple[0]})
    random_.shuffle(jobs)
    return jobs


def _pair(item: Item, first: Sequence[str], second: Sequence[str]) -> dict[str, Any]:
    return {
        "_id": item.id,
        "lang": item.lang,
        "before": list(item.before),
        "turns": list(item.turns),
        "first": list(first),
        "second": list(second),
    }


def _shared_out(
    jobs: Sequence[Mapping[str, Any]], raters: int, overlap: int, random_: random.Random
) -> list[list[dict[str, Any]]]:
    """The jobs of each rater, with their sides."""
    lists: list[list[dict[str, Any]]] = [[] for _ in range(raters)]
    asked: Counter[tuple[int, str]] = Counter()
    compared: Counter[tuple[int, tuple[str, str]]] = Counter()
    leaning: Counter[tuple[int, tuple[str, str]]] = Counter()  # how much oftener its first model was left
    for job in jobs:
        couple = job["couple"]
        order = sorted(
            range(raters),
            key=lambda r: (len(lists[r]), asked[r, job["prompt"]], compared[r, couple], random_.random()),
        )
        chosen = order[:overlap]
        # One after another the two ways round, beginning with what evens out their sides so far.
        costs = {
            way: sum(
                abs(leaning[r, couple] + (1 if (way + i) % 2 == 0 else -1)) for i, r in enumerate(chosen)
            )
            for way in (0, 1)
        }
        way = random_.choice((0, 1)) if costs[0] == costs[1] else min(costs, key=lambda w: costs[w])
        for i, rater in enumerate(chosen):
            left = (way + i) % 2 == 0  # the couple's first model
            asked[rater, job["prompt"]] += 1
            compared[rater, couple] += 1
            leaning[rater, couple] += 1 if left else -1
            lists[rater].append(
                {"pair": job["pair"], "prompt": job["prompt"], "swapped": left == job["turned"]}
            )
    return lists


def _in_order(mine: list[dict[str, Any]], random_: random.Random) -> None:
    """Shuffle, so that no prompt follows itself where that can be."""
    random_.shuffle(mine)
    for i in range(1, len(mine)):
        if mine[i]["prompt"] == mine[i - 1]["prompt"]:
            after = [j for j in range(i + 1, len(mine)) if mine[j]["prompt"] != mine[i]["prompt"]]
            if after:
                j = random_.choice(after)
                mine[i], mine[j] = mine[j], mine[i]


def checks_of(count: int, attention: int | None) -> int:
    """How many attention pairs go with so many others."""
    return max(2, round(count / _EVERY)) if attention is None else attention


# ── attention ──────────────────────────────────────────────────────────────────────────────────


class _Pool:
    """A language's answers, to draw attention pairs from."""

    def __init__(self, items: Sequence[Item], random_: random.Random):
        self._random = random_
        self._told = [
            (item, model)
            for item in items
            for model, texts in item.answers.items()
            if any(text.strip() for text in texts)
        ]
        self._clear: dict[int, bool] = {}  # looked at once, and only those that are drawn

    def any(self) -> tuple[Item, str] | None:
        """An answer that is not empty."""
        return self._random.choice(self._told) if self._told else None

    def clear(self) -> tuple[Item, str] | None:
        """An answer that is text of its language: of another the shuffling could not be seen."""
        for i in self._random.sample(range(len(self._told)), len(self._told)):
            if i not in self._clear:
                self._clear[i] = _is_clear(*self._told[i])
            if self._clear[i]:
                return self._told[i]
        return None


def _add_checks(
    mine: list[dict[str, Any]],
    pool: _Pool,
    slot: int,
    count: int,
    kept: dict[str, tuple[dict[str, Any], dict[str, Any]]],
    random_: random.Random,
) -> None:
    """Put `count` attention pairs among a rater's, none of them at the very beginning."""
    entries = []
    for number in range(count):
        drawn = pool.clear() if (number + slot) % 2 == 0 else None
        kind = "broken" if drawn else "same"
        drawn = drawn or pool.any()
        if drawn is None:
            return
        item, model = drawn
        whole = item.answers[model]
        other = tuple(broken(text, random_) for text in whole) if kind == "broken" else whole
        name = f"{item.lang}/{item.id}/{model}/{kind}/{slot}/{number}"
        kept[name] = _pair(item, whole, other), {"models": [model, model], "kind": kind}
        entries.append({"pair": name, "prompt": item.id, "swapped": bool(random_.getrandbits(1))})
    for entry in entries:
        mine.insert(random_.randint(min(2, len(mine)), len(mine)), entry)


def _is_clear(item: Item, model: str) -> bool:
    """Whether an answer is text of its language, long enough for its shuffling to be seen at a glance."""
    texts = item.answers[model]
    asked = "\n".join(item.turns)
    return all(sum(map(str.isalpha, text)) >= _CLEAR for text in texts) and all(
        found.line_pass is not False and not found.loop
        for found in (confusion.check(text, item.lang, asked) for text in texts)
    )


def broken(text: str, random_: random.Random) -> str:
    """`text` with its characters, as people see them, in another order; spaces and line ends stay in place."""
    characters = regex.findall(r"\X", text)
    places = [i for i, character in enumerate(characters) if not character.isspace()]
    moved = [characters[i] for i in places]
    random_.shuffle(moved)
    for i, character in zip(places, moved, strict=True):
        characters[i] = character
    return "".join(characters)


def _number(
    design: Design, kept: Mapping[str, tuple[dict[str, Any], dict[str, Any]]], random_: random.Random
) -> None:
    """Give the pairs their numbers, in random order, so that none says what or whose it is."""
    names = list(kept)
    random_.shuffle(names)
    width = len(str(len(names)))
    numbers = {name: f"p{number:0{width}}" for number, name in enumerate(names, 1)}
    for name, number in numbers.items():
        pair, key = kept[name]
        design.pairs.append({"pair": number, **pair})
        design.key[number] = key
    for lists in design.schedule.values():
        for entry in itertools.chain.from_iterable(lists):
            entry["pair"] = numbers[entry["pair"]]
