"""One language in plain words: which models are safe to use in it, which are not, and what they answer.

For a reader who will not read tables. A model is *safe* in a language where its text is shown to be as good as the
reference's within the margin and nothing is shown to be worse; *unsafe* where something is; *unshown* where the
evidence says neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..phrases import Phrases
from . import choice
from .blocks import Block, Heading, Items, Paragraph, isolated, named, plain
from .pages import Row, samples
from .wording import Scores, called

Judged = Literal["safe", "unshown", "unsafe", "unmeasured"]
_SHOWN_AS_GOOD = ("equivalent", "better")


def section(scores: Scores, tag: str, answers: Sequence[Row], say: Phrases) -> list[Block]:
    """The models by how safe they are in `tag`, each with what is known of it; then answers side by side."""
    reference, margin = named(scores["reference"]), f"{100 * scores['margin']:g}%"
    blocks: list[Block] = [
        Heading(say("safe.title", language=say.name(tag))),
        Paragraph(plain(lead(scores, tag, say)), lead=True),
        Paragraph(say("safe.rule", reference=reference, margin=margin)),
    ]
    for kind, names in _kinds(scores, tag).items():
        lines = [
            f"**{plain(isolated(name))}**: {plain(' '.join(_facts(scores, name, tag, kind, say)))}"
            for name in names
        ]
        blocks += [Paragraph(f"**{say(f'safe.{kind}')}**"), Items(lines)]
    asked = [row for row in answers if row["lang"] == tag]
    if asked:
        about = say("safe.answers", count=len({row["_id"] for row in asked}))
        shown = samples(asked, list(scores["models"]), say)
        blocks += [Paragraph(f"**{say('samples.title')}**"), Paragraph(about), *shown]
    return blocks


def lead(scores: Scores, tag: str, say: Phrases) -> str:
    """Which are safe and which are not, in a sentence or two; plain text."""
    kinds, language = _kinds(scores, tag), say.name(tag)
    parts = [
        say(f"safe.lead_{kind}", language=language, names=", ".join(map(isolated, names)))
        for kind, names in kinds.items()
        if kind != "unmeasured"
    ]
    if "safe" not in kinds:
        parts.insert(0, say("safe.lead_none", language=language))
    return " ".join(parts)


def judge(scores: Scores, name: str, tag: str) -> Judged:
    """How safe a model is in a language, by the verdicts."""
    told = choice.verdicts(scores, name, tag)
    if not told:
        return "unmeasured"
    if "worse" in told.values():
        return "unsafe"
    # The text has the finest measure; tasks of a few hundred items can hardly show that nothing was lost.
    shown = [told[choice.TEXT]] if choice.TEXT in told else list(told.values())
    return "safe" if all(verdict in _SHOWN_AS_GOOD for verdict in shown) else "unshown"


def _kinds(scores: Scores, tag: str) -> dict[Judged, list[str]]:
    """The variants of each kind, smallest first; kinds without one are left out."""
    found: dict[Judged, list[str]] = {"safe": [], "unshown": [], "unsafe": [], "unmeasured": []}
    for name in scores["models"]:
        if name != scores["reference"]:
            found[judge(scores, name, tag)].append(name)
    return {
        kind: sorted(names, key=lambda name: choice.size(scores, name) or 0)
        for kind, names in found.items()
        if names
    }


def _made(scores: Scores, name: str, say: Phrases) -> list[str]:
    """What was done to a variant that onggi quantised, and in which languages it was calibrated."""
    about = scores["models"][name].get("about") or {}
    if about.get("made_by") != "onggi quantize":
        return []
    made = [say("safe.scheme", scheme=about["scheme"], method=called("method", about["method"], say))]
    if tokens := (about.get("calibration") or {}).get("tokens"):
        made.append(say("safe.calibrated", languages=", ".join(map(say.name, tokens))))
    return made


def _facts(scores: Scores, name: str, tag: str, kind: Judged, say: Phrases) -> list[str]:
    """Sentences on size, text, tokens, and whatever is shown to be worse."""
    if kind == "unmeasured":
        return [say("safe.nothing")]
    own = choice.entries(scores, name, tag)
    base = choice.entries(scores, scores["reference"], tag)
    worse = [key for key, verdict in choice.verdicts(scores, name, tag).items() if verdict == "worse"]
    size, whole = choice.size(scores, name), choice.size(scores, scores["reference"])
    facts = _made(scores, name, say)
    if size and whole:
        facts.append(say("safe.size", share=f"{size / whole:.0%}"))
    if (text := own.get(choice.TEXT)) and "relative_change" in text:
        verdict, change = text["verdict"].partition(" within ")[0], 100 * text["relative_change"]
        if verdict in ("worse", "better"):
            facts.append(say(f"safe.text_{verdict}", share=f"{abs(change):.1f}%"))
        else:
            key = "safe.text_same" if verdict == "equivalent" else "safe.text_unsure"
            facts.append(say(key, share=f"{change:+.1f}%", margin=f"{100 * scores['margin']:g}%"))
    agreement = scores["models"][name]["languages"].get(tag, {}).get("top1_agreement")
    if agreement:
        count = round(100 * (1 - agreement["value"]))
        facts.append(say("safe.tokens", count=count) if count else say("safe.tokens_none"))
    asked = choice.tasks(scores)
    if names := [task for task, key in asked.items() if key in worse]:
        facts.append(say("safe.tasks", names=", ".join(names)))
    for key in worse:
        if key in choice.RATES:
            rate = key.removeprefix("prompts/")
            shares = [
                1 - e[key]["value"] if rate in ("script", "line") else e[key]["value"] for e in (own, base)
            ]
            facts.append(say(f"safe.rate_{rate}", share=f"{shares[0]:.0%}", base=f"{shares[1]:.0%}"))
        elif key == choice.GRADE:
            values = {"value": f"{own[key]['value']:.1f}", "base": f"{base[key]['value']:.1f}"}
            facts.append(say("safe.grade", **values))
        elif key in choice.RIGHT:
            facts.append(say("safe.right"))
        elif key == choice.PEOPLE:
            facts.append(say("safe.people"))
        elif key == choice.RATING:
            facts.append(say("safe.rating"))
    if kind == "safe":
        facts.append(say("safe.no_loss"))
    return facts
