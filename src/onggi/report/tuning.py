"""What a tuning changed, as blocks: what each language gained and lost, answers before and after side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import languages as tags
from ..phrases import Phrases
from ..statistics import BETTER, WORSE
from . import curves
from .blocks import Answer, Block, Code, Figure, Heading, Items, Panel, Paragraph, Sample, Table, named, plain

Tuning = Mapping[str, Any]
_SHOWN = 1200  # characters of an answer; the rest is folded away
_SAMPLES = 4  # of each language
_SHORT = {WORSE: WORSE, BETTER: BETTER, "no significant difference": "unclear", "": "too few"}


def headline(found: Tuning, say: Phrases) -> str:
    """The finding in a sentence: "You gained … in Korean and lost … in Japanese." """
    gains = {
        tag: _change(own) for tag, own in found["answers"].items() if own.get("verdict", BETTER) == BETTER
    }
    gains = {tag: change for tag, change in gains.items() if change < -0.0005}
    losses = {tag: _change(own) for tag, own in found["probe"].items() if own.get("verdict") == WORSE}
    gained = _listed(
        [say("tuning.gain", share=f"{-share:.1%}", language=say.name(tag)) for tag, share in _most(gains)],
        say,
    )
    lost = _listed(
        [say("tuning.loss", share=f"{share:.1%}", language=say.name(tag)) for tag, share in _most(losses)],
        say,
    )
    if gains and losses:
        return say("tuning.both", gained=gained, lost=lost)
    if gains:
        return say("tuning.gained", gained=gained, count=len(found["probe"]))
    if losses:
        return say("tuning.lost", lost=lost)
    return say("tuning.nothing", count=len(found["probe"]))


def _listed(words: Sequence[str], say: Phrases) -> str:
    """`words` as a list within a sentence."""
    if len(words) < 2:
        return "".join(words)
    *before, last = words
    first = before[0]
    for word in before[1:]:
        first = say("tuning.list", first=first, last=word)
    return say("tuning.last", first=first, last=last)


def _most(changes: Mapping[str, float], most: int = 3) -> list[tuple[str, float]]:
    return sorted(changes.items(), key=lambda item: -abs(item[1]))[:most]


def _change(own: Mapping[str, Any]) -> float:
    return float(own["after"] / own["before"] - 1) if own["before"] else 0.0


def title(found: Tuning, say: Phrases) -> str:
    """Of the page."""
    return say("tuning.title", name=found["name"], base=found["base"])


def cells(found: Tuning, tag: str) -> tuple[str, str, str]:
    """For a terminal: loss of held-out answers before and after, how that of the probe changed, the share of answers in
    the language before and after.
    """
    answers, probe, right = (found[key].get(tag) for key in ("answers", "probe", "right"))
    return (
        f"{answers['before']:.3f} → {answers['after']:.3f}" if answers else "",
        f"{_change(probe):+.1%} {_SHORT.get(probe.get('verdict', ''), 'same')}" if probe else "",
        f"{right['before']['right']:.0%} → {right['after']['right']:.0%}" if right else "",
    )


def section(found: Tuning, again: str, say: Phrases, drawing: str | None = None) -> list[Block]:
    """One tuning, its `tuning.json`; again: the command that makes the page; drawing: the file of its curves, where that
    lies beside the page.
    """
    blocks: list[Block] = [Paragraph(plain(headline(found, say)), lead=True)]
    facts = found["facts"]
    blocks.append(
        Paragraph(
            say(
                "tuning.about",
                base=named(found["base"]),
                dialogues=sum(facts["dialogues"].values()),
                held_out=facts["held_out"],
                passages=max((own["passages"] for own in found["probe"].values()), default=0),
                languages=len(found["probe"]),
            )
        )
    )
    blocks += [
        *_answers(found, say),
        *_right(found, say),
        *_probe(found, say),
        *_curves(found, say, drawing),
        *_samples(found, say),
    ]
    return [*blocks, *_made(found, again, say)]


def _named(tag: str, say: Phrases) -> str:
    return f"{say.name(tag)} ({tag})"


def _word(verdict: str | None, say: Phrases) -> str:
    if verdict is None:
        return say("tuning.too_few")
    if verdict.startswith("equivalent within"):
        return say("verdict.equivalent", margin=verdict.rsplit(" ", 1)[1])
    return say({WORSE: "verdict.worse", BETTER: "verdict.better"}.get(verdict, "verdict.same"))


def _answers(found: Tuning, say: Phrases) -> list[Block]:
    rows: list[list[str]] = []
    tones: dict[tuple[int, int], Any] = {}
    prefers = any("preferred" in own for own in found["answers"].values())
    for i, (tag, own) in enumerate(found["answers"].items()):
        row = [
            _named(tag, say),
            f"{own['before']:.3f}",
            f"{own['after']:.3f} ({_change(own):+.1%})",
            f"{own['dialogues']:,}",
            _word(own.get("verdict"), say),
        ]
        if prefers:
            was, now = own["preferred"]
            row.append(f"{was:.0%} → {now:.0%}")
        tones |= _tone(i, 4, own.get("verdict"))
        rows.append(row)
    header = [say(f"tuning.{key}") for key in ("language", "before", "after", "dialogues", "verdict")]
    if prefers:
        header.append(say("tuning.preferred"))
    return [
        Heading(say("tuning.answers")),
        Table(header, rows, note=say("tuning.answers_note"), languages=list(found["answers"]), tones=tones),
    ]


def _tone(row: int, column: int, verdict: str | None) -> dict[tuple[int, int], Any]:
    return {(row, column): "bad" if verdict == WORSE else "good"} if verdict in (WORSE, BETTER) else {}


def _right(found: Tuning, say: Phrases) -> list[Block]:
    rows = []
    for tag, own in found["right"].items():
        was, now = own["before"], own["after"]
        rows.append(
            [
                _named(tag, say),
                *(f"{was[key]:.0%} → {now[key]:.0%}" for key in ("right", "script", "ended", "loops")),
                f"{now['n']}",
            ]
        )
    header = [say(f"tuning.{key}") for key in ("language", "right", "script", "ended", "loops", "prompts")]
    return [
        Heading(say("tuning.confusion")),
        Table(header, rows, note=say("tuning.confusion_note"), languages=list(found["right"])),
    ]


def _probe(found: Tuning, say: Phrases) -> list[Block]:
    order = sorted(found["probe"], key=lambda tag: -_change(found["probe"][tag]))
    rows: list[list[str]] = []
    tones: dict[tuple[int, int], Any] = {}
    for i, tag in enumerate(order):
        own = found["probe"][tag]
        star = "" if tag in found["trained"] else r"\*"
        rows.append(
            [
                _named(tag, say) + star,
                f"{own['before']:.1f}",
                f"{own['after']:.1f} ({_change(own):+.1%})",
                _word(own.get("verdict"), say),
            ]
        )
        tones |= _tone(i, 3, own.get("verdict"))
    header = [say(f"tuning.{key}") for key in ("language", "before", "after", "verdict")]
    return [
        Heading(say("tuning.probe")),
        Table(header, rows, note=say("tuning.probe_note"), languages=order, tones=tones),
    ]


def _curves(found: Tuning, say: Phrases, drawing: str | None) -> list[Block]:
    lines = found["lines"]
    blocks: list[Block] = [Heading(say("tuning.curves"))]
    if any("loss" in line for line in lines):
        caption = say("tuning.curves_note")
        blocks.append(Figure([Panel(curves.curves(lines), "", caption)], caption, file=drawing))
    events = []
    for line in lines:
        if "because" in line and "replay" in line:
            events.append(say("tuning.raised", step=line["step"], share=f"{line['replay']:.0%}"))
        elif "stopped" in line:
            events.append(say("tuning.stopped", step=line["step"]))
        elif line.get("because") == "guard":
            events.append(say("tuning.back", step=line["step"]))
        elif line.get("because") == "answers":
            events.append(
                say("tuning.likeliest", step=line["step"], last=line.get("went_back_from", line["step"]))
            )
    return [*blocks, Items(events)] if events else blocks


def _samples(found: Tuning, say: Phrases) -> list[Block]:
    blocks: list[Block] = [Heading(say("tuning.samples"))]
    seen: dict[str, int] = {}
    # Everyday prompts and held-out ones in turn: the last come first.
    for sample in _in_turn(found["samples"]):
        tag = sample["lang"]
        seen[tag] = seen.get(tag, 0) + 1
        if seen[tag] > _SAMPLES:
            continue
        direction: Any = "rtl" if tags.is_right_to_left(tag) else "ltr"
        answers = []
        for when, own in sample["answers"].items():
            text = own["text"].strip() or say("tuning.empty")
            note = say("tuning.in_language" if own["right"] else "tuning.not_in_language")
            if own["finish"] == "length":
                note += ", " + say("tuning.cut")
            answers.append(Answer(say(f"tuning.{when}"), text[:_SHOWN], text[_SHOWN:], direction, note))
        if sample.get("reference"):
            own = sample["reference"]
            answers.append(Answer(say("tuning.reference"), own[:_SHOWN], own[_SHOWN:], direction))
        blocks.append(
            Sample(f"{_named(tag, say)}, {plain(sample['_id'])}", sample["prompt"], tag, direction, answers)
        )
    return blocks


def _in_turn(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    shipped = [sample for sample in samples if not sample["_id"].startswith("held-out")]
    held_out = [sample for sample in samples if sample["_id"].startswith("held-out")]
    places: list[tuple[int, int, Mapping[str, Any]]] = []
    for kind, own in enumerate((held_out, shipped)):
        counts: dict[str, int] = {}
        for sample in own:
            counts[sample["lang"]] = counts.get(sample["lang"], 0) + 1
            places.append((counts[sample["lang"]], kind, sample))
    return [sample for _, _, sample in sorted(places, key=lambda place: place[:2])]


def _made(found: Tuning, again: str, say: Phrases) -> list[Block]:
    facts = found["facts"]
    counts = ", ".join(f"{say.name(tag)} {count:,}" for tag, count in facts["dialogues"].items())
    told = [
        say(
            "tuning.method",
            method=facts["method"],
            objective=facts["objective"],
            steps=facts["steps"],
            rate=f"{facts['learning_rate']:g}",
        ),
        say(
            "tuning.weights",
            trained=f"{facts['parameters']['trained']:,}",
            all=f"{facts['parameters']['all']:,}",
        ),
        say("tuning.data", data=plain(", ".join(facts["data"])), counts=counts, left_out=facts["left_out"]),
        say("tuning.template", template=plain(facts["template"])),
    ]
    if facts["replay"]:
        told.append(say("tuning.replay", share=f"{facts['replay']:.0%}", text=plain(facts["replay_text"])))
    return [Heading(say("tuning.made")), Items(told), Code(again)]
