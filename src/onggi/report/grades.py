"""What a report says of the judge: grades by language and model, ratings from pairs, and how far to trust them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..phrases import Phrases
from . import choice
from .blocks import Block, Heading, Paragraph, Table, named, plain
from .wording import Scores, said, titled


def judge(scores: Scores, say: Phrases) -> list[Block]:
    """Grades, ratings and pairs; nothing where nobody judged."""
    record = scores.get("judge") or {}
    tags = [tag for tag in choice.languages(scores) if any(grade(scores, m, tag) for m in scores["models"])]
    blocks: list[Block] = []
    if tags:
        names, rows, of = categories(scores, tags), [], []
        for tag in tags:
            for model in scores["models"]:
                if cells := graded(scores, model, tag, names, say):
                    rows.append([titled(tag, say), plain(model), *cells])
                    of.append(tag)
        header = [say("damage.language"), say("answers.model"), *columns(names, say)]
        about = say("judge.about", judge=named(str(record.get("model", "–"))))
        blocks += [Paragraph(about), Table(header, rows, languages=of)]
    paired = record.get("languages") or {}
    blocks += [*_ratings(scores, paired, say), *_pairs(paired, say)]
    return [Heading(say("judge.title")), *blocks] if blocks else []


def grade(scores: Scores, model: str, tag: str) -> Mapping[str, Any]:
    """A model's entry of grades in a language; empty where it has none."""
    found: Mapping[str, Any] = scores["models"][model]["languages"].get(tag, {}).get(choice.GRADE) or {}
    return found


def categories(scores: Scores, tags: Sequence[str]) -> list[str]:
    """The kinds of questions that were graded in any of `tags`."""
    found = [grade(scores, model, tag).get("categories") or {} for tag in tags for model in scores["models"]]
    return list(dict.fromkeys(name for own in found for name in own))


def columns(names: Sequence[str], say: Phrases) -> list[str]:
    """Headers of `graded`'s cells."""
    named_kinds = (say(f"category.{name}") if f"category.{name}" in say else plain(name) for name in names)
    return [say("judge.grade"), say("detail.verdict"), *named_kinds, say("judge.n"), say("judge.unread")]


def graded(scores: Scores, model: str, tag: str, names: Sequence[str], say: Phrases) -> list[str]:
    """Cells of one model's grades in a language; none where it was not graded."""
    entry = grade(scores, model, tag)
    if not entry:
        return []
    counts, kinds = entry.get("counts") or {}, entry.get("categories") or {}
    open_ = counts.get("unparsable", 0)
    fates = [f"{say(f'judge.{key}')}: {counts[key]}" for key in _FATES if counts.get(key)]
    if open_ and entry.get("if_lowest") is not None:
        fates.append(say("judge.range", low=f"{entry['if_lowest']:.1f}", high=f"{entry['if_highest']:.1f}"))
    verdict = said(entry["verdict"], say) if "verdict" in entry else "–"
    means = [_mean(kinds.get(name)) for name in names]
    return [_interval(entry), verdict, *means, str(entry.get("n", "–")), "\n".join(fates) or "–"]


_FATES = ("unparsable", "wrong_language", "empty", "failed", "missing")


def _mean(entry: Mapping[str, Any] | None) -> str:
    return "–" if not entry or entry.get("value") is None else f"{entry['value']:.1f}"


def _interval(entry: Mapping[str, Any], form: str = ".1f") -> str:
    if entry.get("value") is None:
        return "–"
    if entry.get("low") is None:
        return f"{entry['value']:{form}}"
    return f"{entry['value']:{form}} [{entry['low']:{form}}, {entry['high']:{form}}]"


def _ratings(scores: Scores, record: Mapping[str, Any], say: Phrases) -> list[Block]:
    found = {tag: own["ratings"] for tag, own in record.items() if own.get("ratings")}
    if not found:
        return []
    names = [name for name in scores["models"] if any(name in own for own in found.values())]
    rows = [
        [titled(tag, say), *(_interval(own[name], "+.2f") if name in own else "–" for name in names)]
        for tag, own in found.items()
    ]
    header = [say("damage.language"), *map(plain, names)]
    return [Paragraph(say("judge.ratings")), Table(header, rows, languages=list(found))]


def _pairs(record: Mapping[str, Any], say: Phrases) -> list[Block]:
    """Who won against whom, and what is known of the judge: does it go by place or by length?"""
    rows, tags, trust, judged = [], [], [], []
    for tag, own in record.items():
        for pair in own.get("pairs") or ():
            one, other = pair["models"]
            counts = [pair["wins"][one], pair["wins"][other], pair["ties"], pair["open"]]
            rows.append([titled(tag, say), plain(one), plain(other), *map(str, counts)])
            tags.append(tag)
        if orders := own.get("orders"):
            kappa = "–" if orders["kappa"] is None else f"{orders['kappa']:.2f}"
            shares = [_share(share) for share in (orders["agreement"], own["first_place"], own["longer"])]
            trust.append([titled(tag, say), shares[0], kappa, str(orders["n"]), *shares[1:]])
            judged.append(tag)
    blocks: list[Block] = []
    if rows:
        keys = ("first", "second", "wins", "losses", "ties", "unparsable")
        header = [say("damage.language"), *(say(f"judge.{key}") for key in keys)]
        blocks += [Paragraph(say("judge.pairs")), Table(header, rows, languages=tags)]
    if trust:
        about = ("agreement", "kappa", "compared", "first_place", "longer")
        header = [say("damage.language"), *(say(f"judge.{key}") for key in about)]
        blocks += [Paragraph(say("judge.trust")), Table(header, trust, languages=judged)]
    return blocks


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
