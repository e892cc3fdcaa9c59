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


# ── models side by side: four of them, one behind a server; four scripts; everything measured ──────

BASE, W8, W4, SERVED = "base", "w8", "w4|작은", "خادم <b>"
COMPARED = ("ko", "en", "km", "ar")
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> **굵게** `code` </details></div>\n"
    "```\n| a | b |\n\x00\x1b[31m빨강\x9b \u202e뒤집힘\u202c \ud800 끝\uffff"
)
LONG = "ភាសាខ្មែរជាភាសាផ្លូវការ " * 60


def entry(number: float, n: int = 100, spread: float = 0.05, **more: Any) -> dict[str, Any]:
    return {"value": number, "low": number - spread, "high": number + spread, "n": n, **more}


def asked(number: float, verdict: str | None, lost: int = 3, won: int = 2, **more: Any) -> dict[str, Any]:
    """A task's entry; verdict None: of the reference."""
    if verdict is None:
        return entry(number, chance=0.25, majority=0.27, **more)
    flips = {"right_to_wrong": lost, "wrong_to_right": won, "p": 0.5, "margin": 0.01, "detectable": 0.081}
    change = (won - lost) / 100
    return entry(number, chance=0.25, majority=0.27, change=change, verdict=verdict, **flips, **more)


SAME = "no significant difference"
# language → model → verdict on the text and its relative change; on capitals; by the judge
FOUND = {
    "ko": {W8: ("equivalent within 1%", 0.002, SAME, SAME), W4: (SAME, 0.006, SAME, SAME)},
    "en": {W8: ("equivalent within 1%", 0.001, SAME, SAME), W4: ("worse", 0.052, SAME, SAME)},
    "km": {W8: ("worse", 0.031, SAME, SAME), W4: ("worse", 0.142, "worse", SAME)},
    "ar": {W8: ("equivalent within 1%", 0.004, SAME, SAME), W4: ("worse", 0.21, "worse", "worse")},
}


def compared() -> dict[str, Any]:
    """`scores.json` in full: Korean calls for the smallest, English for the middle one, Khmer (where every
    model guesses at sums) for the reference, Arabic for the one behind a server.
    """
    models: dict[str, Any] = {}
    for name, size in ((BASE, 536_000_000), (W8, 340_000_000), (W4, 180_000_000), (SERVED, None)):
        models[name] = {
            "source": "http://localhost:8000/v1#big" if size is None else f"runs/{name}",
            "bytes": size,
            "about": {},
            "engines": {"prompts": "server"}
            if size is None
            else {"text": "transformers", "capitals": "transformers"},
            "languages": {tag: _measured(name, tag) for tag in COMPARED},
            "worst": {"kl": "ar", "kl_per_passage": "ar"} if name in (W8, W4) else {},
            "cost": _cost(size),
        }
    models[W4]["engines"] = {"text": "dequantised", "capitals": "llama.cpp"}
    tasks = {
        name: {"metric": "acc", "about": f"country → its {name}", "shots": 5, "form": "written"}
        for name in ("capitals", "sums")
    }
    ratings = {name: entry(0 - i / 10, spread=0.4) for i, name in enumerate(models)}
    paired = {
        "ratings": ratings,
        "pairs": [{"models": [W8, W4], "wins": {W8: 20, W4: 12}, "ties": 8, "open": 2}],
        "orders": {"agreement": 0.71, "kappa": 0.42, "n": 40},
        "first_place": 0.58,
        "longer": None,
    }
    return {
        "reference": BASE,
        "text": "probe",
        "parallel": True,
        "languages": list(COMPARED),
        "passages": dict.fromkeys(COMPARED, 40),
        "margin": 0.01,
        "models": models,
        "comparisons": [],
        "tasks": {
            name: {**about, "languages": list(COMPARED), "text": None} for name, about in tasks.items()
        },
        "prompts": {"source": "p.jsonl", "languages": dict.fromkeys(COMPARED, 40), "sampling": {}},
        "judge": {
            "model": "judge|심사",
            "languages": {**dict.fromkeys(COMPARED, paired), "km": {**paired, "ratings": None}},
        },
    }


def _measured(name: str, tag: str) -> dict[str, Any]:
    served, variant = name == SERVED, name in (W8, W4)
    text, change, capitals, judged = FOUND[tag].get(name, (None, 0.0, None, None))
    if served:
        capitals, judged = ("better", "better") if tag == "ar" else ("worse", SAME)
    verdict = {} if judged is None else {"verdict": judged}
    own: dict[str, Any] = {
        "capitals/acc": asked(0.82 if served and tag == "ar" else 0.6, capitals),
        "sums/acc": asked(0.26 if tag == "km" else 0.5, None if name == BASE else SAME),
        "prompts/failed": {"value": int(served), "n": 40},
        "prompts/line": entry(0.9),
        "prompts/script": entry(0.6 if name == W4 and tag == "ar" else 0.95, spread=0.04),
        "judge/score": entry(
            6.5,
            spread=0.6,
            counts={"judged": 78, "unparsable": 3, "wrong_language": 3},
            if_lowest=6.3,
            if_highest=6.7,
            categories={"math": entry(5.0), "속담": entry(7.0)},
            **verdict,
        ),
    }
    if served:
        return own
    nats = 280.0
    own["nll_per_passage"] = value(nats * (1 + change), 40)
    own["bits_per_byte"] = value(1.2, 40)
    own["tokens_per_passage"] = entry(80, spread=4)
    own["bytes_per_token"] = entry(4.1)
    own["byte_fallback"] = entry(0.13 if tag == "km" else 0.01, spread=0.01)
    if tag != "en":
        own["parity"] = value(1.4, 40)
    if variant:
        ends = {"change_low": nats * (change - 0.01), "change_high": nats * (change + 0.01)}
        own["nll_per_passage"] |= {
            "verdict": text,
            "relative_change": change,
            "change": nats * change,
            **ends,
        }
        collapse = {"share": 0.45 if tag == "km" else 0.2, "worst": 0.1, "threshold": 1.0, "over": 0.075}
        own["kl"] = value(0.02 + 2 * change, 40, median=0.01, p99=0.5, collapse=collapse)
        own["kl_per_passage"] = value(5 + 300 * change, 40)
        own["top1_agreement"] = entry(0.9)
    return own


def _cost(size: int | None) -> dict[str, Any]:
    if size is None:
        latency = {"median": 0.8, "p95": 2.5}
        counts = {"requests": 160, "failed": 4, "prompt_tokens": 4000, "tokens": 9000}
        return {"latency_seconds": latency, **counts, "tokens_per_second": 41.5, "money": 0.0123}
    return {
        "engine": "transformers",
        "device": "cpu",
        "precision": "fp32",
        "threads": 2,
        "disk_bytes": size,
        "peak_memory_bytes": 4 * size,
        "load_seconds": 3.25,
        "prefill_tokens_per_second": entry(310.0, n=3, spread=12),
        "decode_tokens_per_second": entry(18.5, n=3, spread=1),
        "contention": 0.2,
        "prompt_tokens": 256,
        "new_tokens": 32,
    }


def answers() -> list[dict[str, Any]]:
    """Rows of `answers.jsonl` for `compared()`: hostile, long, empty, cut off, in another language."""
    said = {
        "ko": ("한국의 수도는 서울입니다.", "서울."),
        "en": ("The capital of Korea is Seoul.", "Seoul."),
        "km": (LONG, "ភ្នំពេញ"),
        "ar": ("عاصمة كوريا هي سيول، و GPU ليست مدينة.", "The answer is Seoul (서울)."),
    }
    questions = {
        "ko": "한국의 수도는 어디인가요?",
        "en": "What is the capital of Korea?",
        "km": "តើរដ្ឋធានីនៃប្រទេសកូរ៉េគឺជាអ្វី?",
        "ar": "ما هي عاصمة كوريا؟",
    }
    rows = []
    for i, name in enumerate((BASE, W8, W4, SERVED)):
        for tag in COMPARED:
            for number in range(5):
                text, finish = (
                    (*said[tag], HOSTILE, "")[(i + number) % 4],
                    "length" if number == 1 else "stop",
                )
                row = {"_id": f"q|{number}", "lang": tag, "model": name, "answer": text, "finish": finish}
                rows.append(
                    {**row, "messages": [{"role": "user", "content": f"{questions[tag]} ({number})"}]}
                )
            for turn in (1, 2):
                row = {"_id": "sum", "lang": tag, "model": name, "answer": said[tag][1], "finish": "stop"}
                messages = [{"role": "user", "content": f"{questions[tag]} {turn}"}]
                rows.append({**row, "messages": messages, "turn": turn, "score": 7})
    return rows
