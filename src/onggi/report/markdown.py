"""The report as Markdown: reads well as text, renders on any forge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import languages as tags
from ..errors import one_line
from . import card
from .wording import Scores, by_damage, calibrated, cell, headline, kl, mean, megabytes, variants, worst


def page(sections: Sequence[str]) -> str:
    """The whole report of one or several evaluations."""
    return "# What it costs in each language\n\n" + "\n\n---\n\n".join(sections) + "\n"


def section(scores: Scores, record: Mapping[str, Any]) -> str:
    """One evaluation: `scores.json` and the record of the stage that made it."""
    parts = [
        f"**{headline(scores)}**",
        _measured(scores),
        "## Damage by language\n\n" + _damage(scores),
        "## Verdicts\n\n" + _verdicts(scores),
        _between(scores),
        "## Size\n\n" + _sizes(scores),
        "## What a language pays before anything is quantised\n\n" + _tokens(scores),
        "## How it was made\n\n" + _made(scores, record),
    ]
    return "\n\n".join(part for part in parts if part)


def _row(cells: Sequence[str]) -> str:
    """A row of a table; a name may hold what would end a cell."""
    return "| " + " | ".join(one_line(cell).replace("|", r"\|") for cell in cells) + " |"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([_row(header), _row(["---"] * len(header)), *(_row(row) for row in rows)])


def _measured(scores: Scores) -> str:
    counts = sorted(set(scores["passages"].values()))
    passages = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    return (
        f"Measured on {passages} {'passage' if counts == [1] else 'passages'} of `{scores['text']}` in each of {len(scores['languages'])} languages"
        f"{', the same content in each' if scores['parallel'] else ''}. KL is the divergence of a variant's "
        f"next-token distribution from that of the reference, `{scores['reference']}`, in nats a token, over the "
        "full vocabulary, in fp32; brackets hold 95% intervals over passages. Lower is better, 0 is no change."
    )


def _damage(scores: Scores) -> str:
    names = variants(scores)
    if not names:
        return "No variant shares the reference's vocabulary."
    rows = []
    for tag in by_damage(scores):
        cells = []
        for name in names:
            star = "" if not calibrated(scores, name) or tag in calibrated(scores, name) else "*"
            cells.append(cell(kl(scores, name, tag)) + star)
        rows.append([f"{tags.name(tag)} ({tag})", "Latin" if tags.is_latin(tag) else "other", *cells])
    everyone = list(scores["languages"])
    for label, group in (
        ("**worst**", None),
        ("mean, Latin script", [tag for tag in everyone if tags.is_latin(tag)]),
        ("mean, other scripts", [tag for tag in everyone if not tags.is_latin(tag)]),
        ("mean, all", everyone),
    ):
        if group == []:
            continue
        cells = []
        for name in names:
            if group is None:
                tag = worst(scores, name)
                cells.append(f"**{kl(scores, name, tag)['value']:.2f}** ({tag})")
            else:
                cells.append(f"{mean([kl(scores, name, tag)['value'] for tag in group]):.2f}")
        rows.append([label, "", *cells])
    note = (
        "\n\n\\* not among the languages the variant was calibrated on."
        if any(calibrated(scores, name) for name in names)
        else ""
    )
    return _table(["language", "script", *names], rows) + note


def _verdicts(scores: Scores) -> str:
    names = [name for name in scores["models"] if name != scores["reference"]]
    rows = []
    for tag in by_damage(scores):
        cells = []
        for name in names:
            entry = scores["models"][name]["languages"][tag]["nll_per_passage"]
            cells.append(f"{entry['verdict']} ({100 * entry['relative_change']:+.1f}%)")
        rows.append([tags.name(tag), *cells])
    intro = (
        "Change of the nats needed for the same passage, against the reference. *worse* and *better* are "
        "significant at 5% over all languages together (paired sign-flip test, Holm); *equivalent* means shown "
        f"to be smaller than {100 * scores['margin']:g}%; *no significant difference* claims neither.\n\n"
    )
    return intro + _table(["language", *names], rows)


def _between(scores: Scores) -> str:
    if not scores["comparisons"]:
        return ""
    words = []
    for pair in scores["comparisons"]:
        found: dict[str, list[str]] = {}
        for tag, entry in pair["languages"].items():
            found.setdefault(entry["verdict"], []).append(tags.name(tag))
        said = "; ".join(f"{verdict} in {', '.join(names)}" for verdict, names in found.items())
        words.append(f"- {pair['second']} against {pair['first']}: {said}.")
    return "## Variant against variant\n\nPaired change of KL on the same passages.\n\n" + "\n".join(words)


def _sizes(scores: Scores) -> str:
    rows = []
    for name, model in scores["models"].items():
        worst_kl = "reference" if name == scores["reference"] else "–"
        if "kl" in model["worst"]:
            tag = model["worst"]["kl"]
            worst_kl = f"{kl(scores, name, tag)['value']:.2f} ({tags.name(tag)})"
        rows.append([name, megabytes(model["bytes"]), worst_kl])
    return _table(["model", "weights on disk", "worst language, KL"], rows)


def _tokens(scores: Scores) -> str:
    reference = scores["models"][scores["reference"]]["languages"]
    rows = []
    for tag in by_damage(scores):
        entry = reference[tag]
        parity = f"{entry['parity']['value']:.2f}" if "parity" in entry else ("1" if tag == "en" else "–")
        rows.append(
            [
                tags.name(tag),
                parity,
                f"{entry['nll_per_passage']['value']:.0f}",
                f"{entry['bits_per_byte']['value']:.2f}",
            ]
        )
    return (
        "Tokens for the same content against English, and how well the reference itself knows the language.\n\n"
        + _table(["language", "tokens against English", "nats per passage", "bits per byte"], rows)
    )


def _made(scores: Scores, record: Mapping[str, Any]) -> str:
    reference = scores["models"][scores["reference"]]
    lines = [
        f"- reference: `{reference['source']}`; its own grid: {card.grid(reference['about'].get('grid'))}. "
        "A grid of its own flatters schemes that lie close to it."
    ]
    for name, model in scores["models"].items():
        if name != scores["reference"]:
            lines.append(f"- {name}: {_variant(model, scores['text'])}")
    terms = {model["about"].get("terms") for model in scores["models"].values()} - {None}
    lines += [f"- terms: {text}" for text in sorted(terms)]
    versions = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    lines.append(
        f"- took {record['wall_seconds']:.0f} s and {record['peak_memory_bytes'] / 2**30:.1f} GiB on "
        f"{record['machine']['cores']} cores; {versions}"
    )
    commands = "\n".join([*record["before"], record["command"]])
    lines.append(f"\nAgain:\n\n```\n{commands}\n```")
    return "\n".join(lines)


def _variant(model: Mapping[str, Any], measured_on: str) -> str:
    about = model["about"]
    if about.get("made_by") != "onggi quantize":
        return f"`{model['source']}`"
    text = f"{about['scheme']}, {about['method']}"
    calibration = about.get("calibration")
    if calibration:
        counts = ", ".join(f"{tag} {count:,}" for tag, count in calibration["tokens"].items())
        text += (
            f", {about['fairness']}, on {calibration['text']} ({counts} tokens), pass in {about['precision']}"
        )
        if calibration["text"] == measured_on:
            text += " (**the text it is measured on here**, which flatters it)"
    return f"{text}; `{model['source']}`"
