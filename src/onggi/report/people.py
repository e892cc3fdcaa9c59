"""What people said of the same models (`onggi rate results`), beside what was measured of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..phrases import Phrases
from . import choice
from .blocks import Block, Code, Heading, Items, Paragraph, Table, code, named, plain
from .wording import Scores, cell, said, titled

Results = Mapping[str, Any]


def belongs(results: Results, scores: Scores) -> bool:
    """Whether a study compares models that an evaluation measured, against the same reference, in its languages."""
    shared = set(results["models"]) & set(scores["models"])
    spoken = set(results["languages"]) & set(choice.languages(scores))
    return results["reference"] == scores["reference"] and len(shared) > 1 and bool(spoken)


def add(results: Results, scores: Scores) -> None:
    """Put people's verdicts among the evidence of an evaluation; a test's are none."""
    if results["by"] != "people":
        return
    for tag, own in results["languages"].items():
        for name, model in own["models"].items():
            if name in scores["models"] and (entry := model.get("preference")):
                scores["models"][name]["languages"].setdefault(tag, {})[choice.PEOPLE] = entry


def section(results: Results, scores: Scores | None, say: Phrases) -> list[Block]:
    """Preferences beside KL, flips and judge; ratings; reasons; how far to trust it. scores: None where the study
    stands alone, and its lead has said whose ratings they are.
    """
    blocks: list[Block] = [Heading(say("people.title"))]
    if results["by"] == "test" and scores is not None:
        blocks.append(Paragraph(f"**{say('people.test')}**"))
    blocks.append(Paragraph(_about(results, say)))
    blocks += [*_preferences(results, scores, say), *_ratings(results, say)]
    return [*blocks, *_reasons(results, say), *_trust(results, say)]


def lead(results: Results, say: Phrases) -> str:
    """The finding in a sentence: who is shown to be worse, and where; plain text."""
    found: dict[str, list[str]] = {}
    for tag, own in results["languages"].items():
        for name, model in own["models"].items():
            if (model.get("preference") or {}).get("verdict") in ("worse", "better"):
                found.setdefault(f"{name}\n{model['preference']['verdict']}", []).append(say.name(tag))
    parts = []
    for key, names in found.items():
        name, verdict = key.split("\n")
        parts.append(say("people.found", name=name, verdict=said(verdict, say), languages=", ".join(names)))
    words = " ".join(parts) or say("people.none", reference=results["reference"])
    return f"{say('people.test')} {words}" if results["by"] == "test" else words


def _about(results: Results, say: Phrases) -> str:
    own = results["languages"].values()
    raters = sum(len(each["raters"]) for each in own)
    words = say(
        "people.about",
        raters=raters,
        ratings=sum(each["ratings"] for each in own),
        reference=named(results["reference"]),
        margin=f"{100 * results['margin']:g}",
    )
    if identical := sum(each["identical"] for each in own):
        words += " " + say("people.identical", count=identical)
    if left := results["tests_left_out"]:
        words += " " + say("people.tests", count=left)
    return words


def _interval(entry: Mapping[str, Any] | None, form: str) -> str:
    if not entry or entry["value"] is None:
        return "–"
    if entry["low"] is None:
        return f"{entry['value']:{form}}"
    return f"{entry['value']:{form}} [{entry['low']:{form}}, {entry['high']:{form}}]"


def _preferences(results: Results, scores: Scores | None, say: Phrases) -> list[Block]:
    rows, of, notes = [], [], []
    for tag, own in results["languages"].items():
        for name, model in own["models"].items():
            if not (entry := model.get("preference")):
                continue
            measured = _measured(scores, name, tag, say)
            share, verdict = _interval(entry, ".0%"), said(_points(entry["verdict"], say), say)
            rows.append([titled(tag, say), plain(name), share, verdict, *measured, str(entry["n"])])
            of.append(tag)
            if out := entry.get("without_inattentive"):
                words = {"name": plain(name), "language": say.name(tag), "share": _interval(out, ".0%")}
                notes.append(say("people.without", count=out["raters"], **words))
    keys = ("preferred", "verdict", "kl", "flips", "judge", "prompts")
    header = [say("damage.language"), say("answers.model"), *(say(f"people.{key}") for key in keys)]
    # What nobody measured has no column.
    used = [i for i in range(len(header)) if not 4 <= i <= 6 or any(row[i] != "–" for row in rows)]
    table = [[row[i] for i in used] for row in rows]
    return [Table([header[i] for i in used], table, note=" ".join(notes), languages=of)] if rows else []


def _points(verdict: str, say: Phrases) -> str:
    """`equivalent within 5 points` with the unit in the reader's language."""
    return verdict.replace("points", say("people.points"))


def _measured(scores: Scores | None, name: str, tag: str, say: Phrases) -> list[str]:
    """KL, flips and the judge's verdict on the same model and language."""
    own = scores["models"].get(name, {}).get("languages", {}).get(tag) if scores else None
    if not scores or not own:
        return ["–", "–", "–"]
    kl = cell(scores, name, tag) if "kl" in own else "–"
    entries = [own[key] for key in choice.tasks(scores).values() if "right_to_wrong" in own.get(key, {})]
    flips = "–"
    if entries:
        lost, won, asked = (sum(e[key] for e in entries) for key in ("right_to_wrong", "wrong_to_right", "n"))
        flips = f"−{lost} +{won} / {asked}"
    grade = own.get(choice.GRADE) or {}
    judge = _interval(grade, ".1f") if grade else "–"
    if "verdict" in grade:
        judge += f"\n{said(grade['verdict'], say)}"
    paired = ((scores.get("judge") or {}).get("languages") or {}).get(tag) or {}
    if rating := (paired.get("ratings") or {}).get(name):
        judge = f"{'' if judge == '–' else judge + chr(10)}{_interval(rating, '+.2f')}"
    return [kl, flips, judge]


def _ratings(results: Results, say: Phrases) -> list[Block]:
    names = list(results["models"])
    found = {
        tag: own
        for tag, own in results["languages"].items()
        if any(own["models"][name]["rating"] for name in names)
    }
    if len(names) < 3 or not found:  # of two, the preference says it
        return []
    rows = [
        [titled(tag, say), *(_interval(own["models"][name]["rating"], "+.2f") for name in names)]
        for tag, own in found.items()
    ]
    header = [say("damage.language"), *map(plain, names)]
    return [Paragraph(say("people.ratings")), Table(header, rows, languages=list(found))]


def _reasons(results: Results, say: Phrases) -> list[Block]:
    rows, of = [], []
    for tag, own in results["languages"].items():
        for name, model in own["models"].items():
            if not model["shown"]:
                continue
            marks = sorted(model["reasons"].items(), key=lambda mark: -mark[1])
            words = [
                f"{say(f'people.reason_{reason}')} {count / model['shown']:.0%}" for reason, count in marks
            ]
            accepted = _interval(model["accepted"], ".0%")
            rows.append(
                [titled(tag, say), plain(name), accepted, ", ".join(words) or "–", str(model["shown"])]
            )
            of.append(tag)
    header = [say("damage.language"), say("answers.model")]
    header += [say(f"people.{key}") for key in ("accepted", "reasons", "shown")]
    return [Paragraph(say("people.reasons_about")), Table(header, rows, languages=of)]


def _trust(results: Results, say: Phrases) -> list[Block]:
    rows = []
    for tag, own in results["languages"].items():
        checks = own["attention"]
        failed = f"{sum(c['failed'] for c in checks.values())} / {sum(c['shown'] for c in checks.values())}"
        worst = max((rater["failed"] for rater in own["raters"].values()), default=0)
        if worst:
            failed += f"\n{say('people.worst', count=worst)}"
        judge = own.get("judge")
        agreed = "–"
        if judge:
            kappa = "–" if judge["kappa"] is None else f"{judge['kappa']:.2f}"
            agreed = f"{judge['agreement']:.0%}, κ {kappa} ({judge['n']})"
        rows.append(
            [
                titled(tag, say),
                f"{len(own['raters'])} / {own['planned']['raters']}",
                str(own["ratings"]),
                _interval(own["agreement"]["preference"], ".2f"),
                _interval(own["agreement"]["choice"], ".2f"),
                "–" if own["left"] is None else f"{own['left']:.0%}",
                failed,
                agreed,
            ]
        )
    keys = ("raters", "ratings_given", "alpha", "alpha_choice", "left", "failed", "with_judge")
    header = [say("damage.language"), *(say(f"people.{key}") for key in keys)]
    used = [i for i in range(len(header)) if i < 7 or any(row[i] != "–" for row in rows)]
    table = [[row[i] for i in used] for row in rows]
    about = Paragraph(say("people.trust"))
    return [about, Table([header[i] for i in used], table, languages=list(results["languages"]))]


def alone(results: Results, record: Mapping[str, Any], again: str, say: Phrases) -> list[Block]:
    """A study that no evaluation on the line belongs to, as a section of its own."""
    sources = [f"{named(name)}: {code(about['source'])}" for name, about in results["models"].items()]
    terms = {about.get("terms") for about in results["models"].values()} - {None}
    return [
        Paragraph(plain(lead(results, say)), lead=True),
        *section(results, None, say),
        Heading(say("made.title")),
        Items([*sources, *(say("made.terms", terms=plain(text)) for text in sorted(terms))]),
        Paragraph(say("made.again")),
        Code("\n".join([*record["before"], record["command"], again])),
    ]
