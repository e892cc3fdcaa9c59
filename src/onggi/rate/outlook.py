"""What a study asks of people and what it can show, said before anybody's time is spent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import languages, statistics
from .study import minutes


def outlook(
    prompts: Mapping[str, int],
    pairs: Mapping[str, int],
    raters: int,
    each: Mapping[str, int],
    checks: Mapping[str, int],
) -> dict[str, dict[str, Any]]:
    """Language → `prompts` in which a model meets the reference, `pairs` to rate, `raters`, pairs for `each`,
    `checks` of them, `minutes`, and the shares that are `seen` and `found` (`statistics.detectable_preference`).
    """
    found = {}
    for lang, n in prompts.items():
        power = statistics.detectable_preference(n, tests=len(prompts)) if n else None
        found[lang] = {
            "prompts": n,
            "pairs": pairs[lang],
            "raters": raters,
            "each": each[lang],
            "checks": checks[lang],
            "minutes": minutes(each[lang]),
            "seen": power.seen if power else None,
            "found": power.found if power else None,
        }
    return found


def sentences(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The same in words, one for each language."""
    lines = []
    for lang, own in found.items():
        name = languages.name(lang)
        words = (
            f"{name} ({lang}): {own['pairs']} pairs for {own['raters']} raters, {own['each']} each "
            f"(about {own['minutes']} min), {own['checks']} of them to see whether they are read. "
        )
        if own["seen"] is None:
            words += f"With {own['prompts']} pairs in {name} nothing can be told from chance."
        else:
            words += (
                f"With {own['prompts']} pairs in {name} a preference under {_split(own['seen'])} cannot be told from "
                f"chance; one of {_split(own['found'])} is found four times in five."
            )
        lines.append(words)
    return lines


def _split(share: float) -> str:
    return f"{100 * share:.0f} to {100 - 100 * share:.0f}"
