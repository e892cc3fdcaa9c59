"""What went in, what was dropped by what, and what came out, per language: as facts, as Markdown, as a table."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ... import languages as tags
from .measures import NAMES

# Everything that takes rows away, in the order in which rows meet it.
REASONS = ("empty", "boilerplate", *NAMES, "contaminated", "exact", "near", "left out")
_WORDS = {
    "empty": "empty",
    "boilerplate": "boilerplate alone",
    "length": "too short",
    "language": "another language",
    "letters": "too few letters",
    "contaminated": "in an evaluation set",
    "exact": "duplicate",
    "near": "near duplicate",
    "left out": "left out by the mix",
    **{
        name: f"repetition ({name.replace('_', ' ')})"
        for name in NAMES
        if name.startswith(("top_", "repeated_"))
    },
    "lines": "repetition (lines)",
    "paragraphs": "repetition (paragraphs)",
}


def funnel(facts: Mapping[str, Any], languages: Sequence[str]) -> dict[str, Any]:
    """The funnel from what the jobs noted (jobs.Built.facts).

    For each language: rows and bytes in, dropped by reason, kept (bytes before and after cleaning) and out;
    in = dropped + kept, and out = kept - left out + repeated, which is checked.
    """
    found: dict[str, Any] = {
        "sources": _sources(facts),
        "languages": {},
        "evaluation": {"items": facts["items"], "too_short": facts["short"], "found": _items(facts)},
    }
    other: Counter[str] = Counter()
    for noted in facts["read"]:
        other.update(noted["other"])
    found["other_languages"] = dict(other.most_common())
    for language in languages:
        found["languages"][language] = _language(facts, language)
    rows = sum(one["in"]["rows"] for one in found["languages"].values()) + sum(other.values())
    given = sum(source["rows"] for source in found["sources"].values())
    _agree("rows read", given, "rows of the languages", rows)
    return found


def _agree(what: str, one: int, other_what: str, other: int) -> None:
    if one != other:
        raise AssertionError(f"The funnel does not add up: {one} {what}, {other} {other_what}.")


def _sources(facts: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for source, noted in zip(facts["pieces"], facts["read"], strict=True):
        one = found.setdefault(source, {"records": 0, "bad": 0, "rows": 0})
        one["records"] += noted["records"]
        one["bad"] += noted["bad"]
        one["rows"] += sum(rows for rows, _ in noted["in"].values()) + sum(noted["other"].values())
    for source in facts["lost"]:
        found.setdefault(source, {"records": 0, "bad": 0, "rows": 0})
        found[source]["records"] += 1
        found[source]["bad"] += 1
    return found


def _items(facts: Mapping[str, Any]) -> dict[str, int]:
    items: Counter[str] = Counter()
    for noted in facts["sift"]:
        items.update(noted["items"])
    return dict(items.most_common())


def _language(facts: Mapping[str, Any], language: str) -> dict[str, Any]:
    dropped: dict[str, list[int]] = {}
    samples: dict[str, list[list[Any]]] = defaultdict(list)
    masked: Counter[str] = Counter()
    for noted in (*facts["read"], *facts["sift"], *facts["draw"]):
        for reason, (rows, size) in noted["dropped"].get(language, {}).items():
            one = dropped.setdefault(reason, [0, 0])
            one[0] += rows
            one[1] += size
        for reason, some in noted["samples"].get(language, {}).items():
            samples[reason] += some
        masked.update(noted.get("masked", {}).get(language, {}))
    entered, kept, out = (
        _sum(facts[phase], key, language, width)
        for phase, key, width in (("read", "in", 2), ("draw", "kept", 3), ("draw", "out", 2))
    )
    left_out = dropped.pop("left out", [0, 0])
    lost = [sum(one[i] for one in dropped.values()) for i in (0, 1)]
    _agree(f"rows in {language}", entered[0], "dropped or kept", lost[0] + kept[0])
    _agree(f"bytes in {language}", entered[1], "dropped or kept", lost[1] + kept[1])
    trimmed, contaminated = (_sum(facts["sift"], key, language, 2) for key in ("trimmed", "contaminated"))
    return {
        "in": {"rows": entered[0], "bytes": entered[1]},
        "dropped": {
            reason: {"rows": dropped[reason][0], "bytes": dropped[reason][1]}
            for reason in REASONS
            if reason in dropped
        },
        "kept": {"rows": kept[0], "bytes": kept[1], "clean_bytes": kept[2]},
        "left_out": {"rows": left_out[0], "bytes": left_out[1]},
        "repeated": {"rows": out[0] - kept[0] + left_out[0]},
        "out": {"rows": out[0], "bytes": out[1]},
        "masked": dict(masked),
        "boilerplate": {
            "lines": facts["boilerplate"].get(language, []),
            "rows": trimmed[0],
            "bytes": trimmed[1],
        },
        "contaminated": {"rows": contaminated[0], "bytes": contaminated[1]},
        "limits": facts["limits"].get(language, {}),
        "scale": facts["scales"][language],
        "mix": facts["portions"].get(language),
        "samples": {
            reason: [
                {"text": text, "place": place, **({"why": why} if why else {})}
                for _, text, place, why in sorted(some)[:5]
            ]
            for reason, some in sorted(samples.items())
        },
    }


def _sum(noted: Sequence[Mapping[str, Any]], key: str, language: str, width: int) -> list[int]:
    found = [one[key].get(language, [0] * width) for one in noted]
    return [sum(one[i] for one in found) for i in range(width)]


def grouped(language: Mapping[str, Any]) -> dict[str, int]:
    """Rows dropped, in the words and groups of the table."""
    dropped = {reason: one["rows"] for reason, one in language["dropped"].items()}
    groups = {
        "short": ("empty", "boilerplate", "length"),
        "lang": ("language",),
        "marks": ("letters", "symbols", "digits", "broken", "word_length", "bullets", "ellipses"),
        "again": tuple(
            n for n in NAMES if n.startswith(("top_", "repeated_")) or n in ("lines", "paragraphs")
        ),
        "exam": ("contaminated",),
        "same": ("exact",),
        "near": ("near",),
    }
    return {name: sum(dropped.get(reason, 0) for reason in reasons) for name, reasons in groups.items()}


def _mixed(language: Mapping[str, Any]) -> tuple[str, str]:
    mix = language["mix"]
    return (
        (f"{mix['share']:.1%}", f"{mix['epochs']:.2f}" + ("*" if mix["short"] else ""))
        if mix
        else ("0%", "-")
    )


def table(found: Mapping[str, Any]) -> Table:
    """A row a language: rows in, dropped by each kind of filter, out, share of the mix and epochs."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    heads = ["", "in", *grouped(next(iter(found["languages"].values()))), "out", "share", "epochs"]
    for head in heads:
        made.add_column(head, justify="left" if not head else "right", no_wrap=True)
    for tag, one in found["languages"].items():
        counts = [f"{count:,}" if count else "·" for count in grouped(one).values()]
        made.add_row(tag, f"{one['in']['rows']:,}", *counts, f"{one['out']['rows']:,}", *_mixed(one))
    return made


def show(found: Mapping[str, Any]) -> None:
    """Print the table, and what a table does not say."""
    console = Console(highlight=False)
    console.print(table(found))
    for line in notes(found):
        console.print(line, markup=False, soft_wrap=True)


def notes(found: Mapping[str, Any]) -> list[str]:
    """What must be said aloud: bad input, languages that repeat or are missing, evaluation text."""
    said = [
        "Dropped as: too short (short), in another language (lang), too many symbols, digits or bullets or too few "
        "letters (marks), saying the same again and again (again), in an evaluation set (exam), the same as "
        "(same) or nearly (near) an earlier row."
    ]
    bad = sum(source["bad"] for source in found["sources"].values())
    if bad:
        said.append(f"{bad:,} records were bad input and left out; bad.jsonl names each.")
    said += [f"{name}: is empty." for name, source in found["sources"].items() if not source["records"]]
    if other := found["other_languages"]:
        most = ", ".join(f"{tag} {count:,}" for tag, count in list(other.items())[:5])
        said.append(f"{sum(other.values()):,} rows are in languages not asked for, or in none: {most}.")
    for tag, one in found["languages"].items():
        name, mix = tags.name(tag), one["mix"]
        if not one["out"]["rows"]:
            said.append(f"Nothing is left in {name}.")
        elif mix["short"]:
            said.append(
                f"{name} has too little: each of its rows is there {mix['epochs']:.2f} times, the most allowed (epochs)."
            )
        elif mix["epochs"] > 1:
            said.append(f"{name} repeats: each of its rows is there {mix['epochs']:.2f} times.")
        if one["contaminated"]["rows"]:
            said.append(f"{one['contaminated']['rows']:,} rows in {name} hold text of an evaluation set.")
        if masked := sum(one["masked"].values()):
            said.append(f"{name}: {masked:,} pieces of personal data are masked.")
    return said


def markdown(found: Mapping[str, Any]) -> str:
    """The funnel to read: the table, the notes, and of each language its limits and samples."""
    heads = [
        "language",
        "rows in",
        *grouped(next(iter(found["languages"].values()))),
        "rows out",
        "bytes out",
        "share",
        "epochs",
    ]
    lines = ["# Funnel", "", _line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
    for tag, one in found["languages"].items():
        cells = [
            tag,
            one["in"]["rows"],
            *grouped(one).values(),
            one["out"]["rows"],
            one["out"]["bytes"],
            *_mixed(one),
        ]
        lines.append(_line([f"{cell:,}" if isinstance(cell, int) else cell for cell in cells]))
    lines += [
        "",
        "An asterisk: the language has too little for its share; `epochs` says how often rows may repeat.",
        "",
    ]
    lines += [f"- {note}" for note in notes(found)]
    for tag, one in found["languages"].items():
        lines += ["", f"## {tags.name(tag)} ({tag})", ""]
        scale = one["scale"]
        lines.append(
            f"One byte of English is {scale['bytes']:.2f} bytes here, one letter {scale['letters']:.2f} letters "
            f"(known from: {scale['known_from']})."
        )
        if one["limits"]:
            lines += ["", _line(["measure", "limit", "chosen", "rows", "of"]), _line(["---"] * 5)]
            lines += [
                _line([name, f"{limit['value']:.4g}", limit["chosen"], f"{limit['rows']:,}", limit["of"]])
                for name, limit in one["limits"].items()
            ]
        for reason, some in one["samples"].items():
            said = "Kept" if reason == "kept" else f"Dropped: {_WORDS.get(reason, reason)}"
            lines += ["", f"**{said}**", ""]
            for sample in some:
                text = " ".join(sample["text"].split()).replace("`", "ˋ")
                why = f", {sample['why']}" if "why" in sample else ""
                lines.append(f"- `{text}` ({sample['place']}{why})")
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
