"""`scores.json` as `onggi evaluate` writes it, made small; shared by the tests of the report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

LANGUAGES = ("en", "ko", "el", "km")  # four scripts
Kl = dict[str, float]
ENGLISH: Kl = {"en": 0.37, "ko": 0.88, "el": 1.26, "km": 2.98}
BALANCED: Kl = {"en": 0.40, "ko": 0.37, "el": 0.44, "km": 0.68}


def value(number: float, n: int = 12, **more: Any) -> dict[str, Any]:
    wide = n > 1
    low, high = (0.9 * number, 1.1 * number) if wide else (None, None)
    return {"value": number, "low": low, "high": high, "n": n, "tokens": 100 * n, **more}


def model(
    kl: Kl | None, n: int = 12, reference: bool = False, tags: Iterable[str] = LANGUAGES, **about: Any
) -> dict[str, Any]:
    """A model of `scores.json`; kl None: another vocabulary than the reference's."""
    languages: dict[str, Any] = {}
    for i, tag in enumerate(kl or tags):
        change: dict[str, Any] = {} if reference else {"verdict": "worse", "relative_change": 0.04}
        entry = {"nll_per_passage": value(200 + i, n, **change), "bits_per_byte": value(1.0, n)}
        if tag != "en":
            entry["parity"] = value(1.0 + i / 2, n)
        if kl:
            entry["kl"] = value(kl[tag], n)
        languages[tag] = entry
    worst = {"kl": max(kl, key=lambda tag: kl[tag])} if kl else {}
    return {
        "source": "runs/x",
        "bytes": 300_000_000,
        "about": about,
        "languages": languages,
        "worst": worst,
    }


def scores(variants: dict[str, dict[str, Any]], verdict: str | None = None, **changes: Any) -> dict[str, Any]:
    """`scores.json` of a reference and `variants`; verdict: of the second against the first."""
    names = list(variants)
    tags = list(variants[names[0]]["languages"])
    comparisons = []
    if verdict:
        entry = {"change": -1.0, "low": -2.0, "high": 0.0, "p": 0.01, "verdict": verdict, "n": 12}
        both = {"first": names[0], "second": names[1], "metric": "kl_per_passage"}
        comparisons = [{**both, "languages": dict.fromkeys(tags, entry)}]
    return {
        "reference": "base",
        "text": "probe",
        "parallel": True,
        "languages": tags,
        "passages": dict.fromkeys(tags, 12),
        "margin": 0.01,
        "models": {"base": model(None, reference=True, tags=tags), **variants},
        "comparisons": comparisons,
        **changes,
    }


RECORD = {
    "verb": "evaluate",
    "versions": {"onggi": "0.1.0", "torch": "2.13.0"},
    "wall_seconds": 61.2,
    "peak_memory_bytes": 3 << 30,
    "machine": {"cores": 2},
    "options": {
        "models": ["w4=runs/my w4", "base"],
        "reference": "base",
        "text": "probe",
        "languages": list(LANGUAGES),
        "limit": None,
        "margin": 0.01,
    },
    "before": ["onggi quantize base --text starter --out 'runs/my w4'"],
    "command": "onggi evaluate 'w4=runs/my w4' base --reference base --languages en,ko,el,km --out scores",
}
