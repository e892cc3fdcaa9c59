"""From per-passage sums to scores: every measure with its interval, every change with its verdict.

The measures are those of DESIGN §4. Intervals come from drawing passages, never tokens. Verdicts
are paired: the same passages under both models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .. import statistics
from .entries import mean, number, parity, ratio
from .measure import Measured

# language → model → sums
Results = Mapping[str, Mapping[str, Measured]]


def summarise(
    results: Results,
    bytes_of_text: Mapping[str, Sequence[int]],
    reference: str,
    margin: float,
    parallel: bool,
) -> dict[str, Any]:
    """The `models` and `comparisons` of `scores.json` (DESIGN §3).

    bytes_of_text: language → UTF-8 bytes of each passage. margin: of the reference's
    nll_per_passage, the relative change that does not matter. parallel: the passages are the same
    content in each language, so that tokens can be set against English's.
    """
    names = list(next(iter(results.values())))
    models: dict[str, Any] = {}
    for name in names:
        languages: dict[str, Any] = {}
        for language, by_model in results.items():
            entry = _metrics(by_model[name], bytes_of_text[language])
            english = results.get("en", {}).get(name)
            if parallel and english and language != "en":
                entry["parity"] = parity(by_model[name].tokens, english.tokens)
            languages[language] = entry
        models[name] = {"languages": languages, "worst": _worst(languages)}
    for name in names:
        if name != reference:
            _add_verdicts(models[name]["languages"], results, name, reference, margin)
    return {"models": models, "comparisons": _comparisons(results, names, reference, margin)}


def _metrics(measured: Measured, bytes_of_text: Sequence[int]) -> dict[str, Any]:
    tokens = sum(measured.tokens)
    bits = [nats / math.log(2) for nats in measured.nll]
    entry = {
        "nll_per_passage": mean(measured.nll, tokens),
        "bits_per_byte": ratio(bits, bytes_of_text, tokens),
    }
    if measured.kl is not None and measured.agree is not None:
        entry["kl"] = {
            **ratio(measured.kl, measured.tokens, tokens),
            "median": measured.kl_median,
            "p99": measured.kl_p99,
            "collapse": _collapse(measured),
        }
        entry["kl_per_passage"] = mean(measured.kl, tokens)
        entry["top1_agreement"] = ratio(measured.agree, measured.tokens, tokens, bounds=(0.0, 1.0))
    return entry


def _collapse(measured: Measured) -> dict[str, Any]:
    """The share of all divergence that the worst tenth of the passages carries, by KL a token."""
    values = [nats / tokens for nats, tokens in zip(measured.kl or (), measured.tokens, strict=True)]
    found = statistics.collapse(values)
    return {"share": number(found.carried), "worst": found.worst}


def _worst(languages: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The language with the most damage, by each measure of damage."""
    worst = {}
    for metric in ("kl", "kl_per_passage"):
        values = {tag: entry[metric]["value"] for tag, entry in languages.items() if metric in entry}
        if values:
            worst[metric] = max(values, key=lambda tag: values[tag])
    return worst


def _percent(margin: float) -> str:
    return f"{100 * margin:g}%"


def _add_verdicts(
    entries: dict[str, Any], results: Results, name: str, reference: str, margin: float
) -> None:
    """The verdict on the paired change of nll_per_passage, beside it and beside its other unit."""
    differences = {
        language: [a - b for a, b in zip(by_model[name].nll, by_model[reference].nll, strict=True)]
        for language, by_model in results.items()
    }
    margins = {
        language: margin * sum(by_model[reference].nll) / len(by_model[reference].nll)
        for language, by_model in results.items()
    }
    verdicts = statistics.paired_verdicts(differences, margins, within=_percent(margin))
    for language, found in verdicts.items():
        base = margins[language] / margin
        stated = {
            "verdict": found.verdict,
            "margin": margin,
            "p": found.p,
            "p_equivalent": number(found.p_equivalent),
        }
        entries[language]["nll_per_passage"] |= stated | {
            "change": found.difference,
            "change_low": number(found.low),
            "change_high": number(found.high),
            "relative_change": found.difference / base,
        }
        entries[language]["bits_per_byte"] |= stated


def _comparisons(
    results: Results, names: Sequence[str], reference: str, margin: float
) -> list[dict[str, Any]]:
    """Each pair of variants: the paired change of KL from the first to the second, per language."""
    variants = [name for name in names if name != reference]
    pairs = [(a, b) for i, a in enumerate(variants) for b in variants[i + 1 :]]
    found = []
    for first, second in pairs:
        differences, margins = {}, {}
        for language, by_model in results.items():
            a, b = by_model[first].kl, by_model[second].kl
            if a is None or b is None:
                continue
            differences[language] = [after - before for before, after in zip(a, b, strict=True)]
            nll = by_model[reference].nll
            margins[language] = margin * sum(nll) / len(nll)
        if not differences:
            continue
        verdicts = statistics.paired_verdicts(differences, margins, within=_percent(margin))
        found.append(
            {
                "first": first,
                "second": second,
                "metric": "kl_per_passage",
                "languages": {
                    language: {
                        "change": v.difference,
                        "low": number(v.low),
                        "high": number(v.high),
                        "p": v.p,
                        "verdict": v.verdict,
                        "n": v.n,
                    }
                    for language, v in verdicts.items()
                },
            }
        )
    return found
