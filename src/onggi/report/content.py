"""What a report says, as blocks, in the reader's language; how it looks is `markdown`'s and `html`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import languages as tags
from ..phrases import Phrases
from . import choice, compare, figures, grades, items, people, prices, safety, scripts
from .blocks import Block, Code, Figure, Heading, Items, Panel, Paragraph, Table, code, isolated, named, plain
from .heatmap import heatmap
from .pages import Row, pages
from .wording import (
    Scores,
    by_damage,
    calibrated,
    called,
    cell,
    kl,
    means,
    said,
    titled,
    uncalibrated,
    value,
    variants,
    worst,
)


def section(
    scores: Scores,
    record: Mapping[str, Any],
    again: str,
    say: Phrases,
    answers: Sequence[Row] = (),
    studies: Sequence[people.Results] = (),
    focus: str | None = None,
    matrices: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Block]:
    """One evaluation: its `scores.json`, the record of the stage that made it, the command that makes the
    page from it, the first rows of its `answers.jsonl`, and what people said in `studies` of its models. focus:
    a language that the page is about, which comes first. matrices: variant → the `sensitivity.json` that its bits were
    chosen by.
    """
    blocks: list[Block] = []
    if focus and focus in choice.languages(scores):
        blocks += safety.section(scores, focus, answers, say)
    blocks.append(Paragraph(plain(items.lead(scores, say)), lead=not blocks))
    if scores["text"]:
        blocks.append(Paragraph(_measured(scores, say)))
    blocks += compare.ship(scores, say)
    for results in studies:
        blocks += people.section(results, scores, say)
    if scores["text"]:
        blocks += [*_damage(scores, say), *_verdicts(scores, say), *_between(scores, say)]
    for part in (
        scripts.changes,
        items.tasks,
        items.answers,
        grades.judge,
        prices.size,
        prices.tokens,
        prices.cost,
    ):
        blocks += part(scores, say)
    blocks += pages(scores, answers, say)
    maps = [_matrix(name, matrix, say) for name, matrix in (matrices or {}).items()]
    return [*blocks, *maps, *_grid(scores, say), *_made(scores, record, again, say)]


def _matrix(name: str, matrix: Mapping[str, Any], say: Phrases) -> Figure:
    """Which layers carry which languages, and the bits that they got."""
    title = say("made.matrix", name=plain(name))
    return Figure([Panel(heatmap(matrix, say), title, title)], say("made.matrix_about"))


def _measured(scores: Scores, say: Phrases) -> str:
    counts = sorted(set(scores["passages"].values()))
    passages = (
        say("measured.passages", count=counts[0])
        if len(counts) == 1
        else say("measured.passages_range", low=counts[0], high=counts[-1])
    )
    return say(
        "measured.about_parallel" if scores["parallel"] else "measured.about",
        passages=passages,
        text=code(scores["text"]),
        count=len(scores["languages"]),
        reference=named(scores["reference"]),
    )


def _damage(scores: Scores, say: Phrases) -> list[Block]:
    names, order = variants(scores), by_damage(scores)
    heading = Heading(say("damage.title"))
    if not names:
        return [heading, Paragraph(say("damage.none"))]
    rows = []
    for tag in order:
        cells = [
            cell(scores, name, tag) + (r"\*" if uncalibrated(scores, name, tag) else "") for name in names
        ]
        kind = say("damage.latin" if tags.is_latin(tag) else "damage.other")
        rows.append([titled(tag, say), kind, *cells])
    bottom = [f"**{value(scores, n, worst(scores, n))}** ({worst(scores, n)})" for n in names]
    summary = [[f"**{say('damage.worst')}**", "", *bottom]]
    averages = [means(scores, name) for name in names]
    summary += [[say(key), "", *(own[key] for own in averages)] for key in averages[0]]
    starred = any(uncalibrated(scores, name, tag) for name in names for tag in order)
    if starred:
        summary[1:1] = _apart(scores, names, order, say)
    panels = figures.damage(scores, say)
    caption = ["caption", *(["hollow"] if starred else []), *(["scale"] if len(panels) > 1 else [])]
    header = [say("damage.language"), say("damage.script"), *map(plain, names)]
    marks = figures.marks(names)
    apart = [name for name in scores["models"] if name not in names and name != scores["reference"]]
    served = [name for name in apart if choice.size(scores, name) is None]
    apart = [name for name in apart if name not in served]
    lacking = [
        Paragraph(say(key, names=", ".join(map(named, group))))
        for key, group in (("damage.apart", apart), ("damage.served", served))
        if group
    ]
    return [
        heading,
        *lacking,
        *_collapse(scores, say),
        Figure(
            panels,
            " ".join(say(f"damage.{part}") for part in caption),
            [(marks[name], plain(name)) for name in names],
        ),
        Table(
            header,
            rows,
            summary,
            say("damage.star") if starred else "",
            order,
            {2 + i: marks[name] for i, name in enumerate(names)},
        ),
    ]


def _apart(scores: Scores, names: Sequence[str], order: Sequence[str], say: Phrases) -> list[list[str]]:
    """The worst of the languages that each variant was calibrated on, and of the others."""

    def row(key: str, *, outside: bool) -> list[str]:
        cells = []
        for name in names:
            own = [
                tag
                for tag in order
                if calibrated(scores, name) and uncalibrated(scores, name, tag) == outside
            ]
            tag = max(own, key=lambda tag: float(kl(scores, name, tag)["value"])) if own else None
            cells.append(f"{value(scores, name, tag)} ({tag})" if tag else "–")
        return [say(key), "", *cells]

    return [row("damage.worst_calibrated", outside=False), row("damage.worst_others", outside=True)]


_TAIL = 0.25  # of the damage, carried by the worst tenth of the passages


def _collapse(scores: Scores, say: Phrases) -> list[Block]:
    """Whether damage is everyone's or a few passages'; where that was measured."""
    found = {
        (name, tag): entry
        for name in variants(scores)
        for tag in scores["languages"]
        if (entry := kl(scores, name, tag).get("collapse")) and entry.get("share") is not None
    }
    if not found:
        return []
    name, tag = max(found, key=lambda key: float(found[key]["share"]))
    entry = found[name, tag]
    values = {"variant": named(name), "language": say.name(tag), "worst": f"{entry['worst']:.0%}"}
    key = "damage.tail" if entry["share"] >= _TAIL else "damage.no_tail"
    words = [say(key, share=f"{entry['share']:.0%}", **values)]
    over = {key: own for key, own in found.items() if own.get("over") and own.get("threshold") is not None}
    if over:
        name, tag = max(over, key=lambda key: float(over[key]["over"]))
        own = over[name, tag]
        values = {"variant": named(name), "language": say.name(tag), "threshold": f"{own['threshold']:.3g}"}
        words.append(say("damage.over", share=f"{own['over']:.0%}", **values))
    return [Paragraph(" ".join(words))]


def _verdicts(scores: Scores, say: Phrases) -> list[Block]:
    order = by_damage(scores)
    found = {
        name: {tag: model["languages"].get(tag, {}).get("nll_per_passage", {}) for tag in order}
        for name, model in scores["models"].items()
    }
    names = [name for name, own in found.items() if any("verdict" in entry for entry in own.values())]
    if not names:
        return []
    rows = []
    for tag in order:
        cells = []
        for name in names:
            entry = found[name][tag]
            change = f" ({100 * entry['relative_change']:+.1f}%)" if "relative_change" in entry else ""
            cells.append(f"{said(entry['verdict'], say)}{change}" if "verdict" in entry else "–")
        rows.append([titled(tag, say), *cells])
    return [
        Heading(say("verdicts.title")),
        Paragraph(say("verdicts.about", margin=f"{100 * scores['margin']:g}%")),
        Table([say("damage.language"), *map(plain, names)], rows, languages=order),
    ]


_LISTED = 10  # pairs; more of them stand in a table


def _between(scores: Scores, say: Phrases) -> list[Block]:
    if not scores["comparisons"]:
        return []
    pairs, cells = [], {}
    for pair in scores["comparisons"]:
        found: dict[str, list[str]] = {}
        for tag, entry in pair["languages"].items():
            found.setdefault(said(entry["verdict"], say), []).append(say.name(tag))
        words = "; ".join(
            say("between.found", verdict=verdict, languages=", ".join(names))
            for verdict, names in found.items()
        )
        first, second = named(pair["first"]), named(pair["second"])
        pairs.append(say("between.item", first=first, second=second, found=words))
        counts = "\n".join(f"{verdict}: {len(names)}" for verdict, names in found.items())
        cells[pair["first"], pair["second"]] = counts
    about = Paragraph(say("between.about"))
    if len(pairs) <= _LISTED:
        return [Heading(say("between.title")), about, Items(pairs)]
    columns = list(dict.fromkeys(first for first, _ in cells))
    rows = [
        [plain(second), *(cells.get((first, second), "") for first in columns)]
        for second in dict.fromkeys(second for _, second in cells)
    ]
    header = [say("between.corner"), *map(plain, columns)]
    return [Heading(say("between.title")), about, Table(header, rows, note=say("between.counts"))]


def _grid(scores: Scores, say: Phrases) -> list[Block]:
    name = scores["reference"]
    model = scores["models"][name]
    facts, continued = model["about"].get("grid"), model["about"].get("continued")
    if continued:
        base = model["about"]["base"]["source"]
        far = continued.get("moved", {}).get("linears", {}).get("off_grid")
        words = (
            say("grid.continued", base=code(base), steps=continued["steps"])
            if far is None
            else say("grid.left", base=code(base), steps=continued["steps"], share=f"{far:.0%}")
        )
    elif facts:
        linears = ", ".join(f"{kind} × {count}" for kind, count in facts.get("linears", {}).items())
        key = "grid.gguf_embedding" if facts.get("embedding") else "grid.gguf"
        words = say(key, linears=linears, embedding=facts.get("embedding"))
    else:
        words = say("grid.none")
    about = say("grid.about", reference=named(name), source=code(model["source"]), grid=words)
    return [Heading(say("grid.title")), Paragraph(about)]


def _made(scores: Scores, record: Mapping[str, Any], again: str, say: Phrases) -> list[Block]:
    lines = []
    for name, model in scores["models"].items():
        if name != scores["reference"]:
            lines.append(_variant(name, model, scores["text"], say))
    terms = {model["about"].get("terms") for model in scores["models"].values()} - {None}
    lines += [say("made.terms", terms=plain(text)) for text in sorted(terms)]
    minutes, seconds = divmod(round(record["wall_seconds"]), 60)
    lines.append(
        say(
            "made.cost",
            time=say("made.minutes" if minutes else "made.seconds", minutes=minutes, seconds=seconds),
            memory=f"{record['peak_memory_bytes'] / 2**30:.1f}",
            count=record["machine"]["cores"],
            versions=", ".join(f"{key} {value}" for key, value in record["versions"].items()),
        )
    )
    return [
        Heading(say("made.title")),
        Items(lines),
        Paragraph(say("made.again")),
        Code("\n".join([*record["before"], record["command"], again])),
    ]


def _variant(name: str, model: Mapping[str, Any], measured_on: str | None, say: Phrases) -> str:
    about, source = model["about"], code(model["source"])
    continued, calibration = about.get("continued"), about.get("calibration")
    learnt = continued or calibration
    flattered = ""
    if learnt and learnt["text"] == measured_on:
        flattered = f" ({say('made.flattered')})"
    if learnt:
        tokens = ", ".join(f"{tag} {count:,}" for tag, count in learnt["tokens"].items())
    if continued:
        what = say("made.continued", steps=continued["steps"], text=code(continued["text"]), tokens=tokens)
    elif about.get("made_by") != "onggi quantize":
        return say("made.model", name=named(name), source=source)
    elif calibration:
        what = say(
            "made.calibrated",
            scheme=about["scheme"],
            method=called("method", about["method"], say),
            fairness=called("fairness", about["fairness"], say),
            text=code(calibration["text"]),
            tokens=tokens,
            precision=about["precision"],
        )
    else:
        method = called("method", about["method"], say)
        what = say("made.quantised", scheme=about["scheme"], method=method)
    what = ", ".join([what + flattered, *_beyond(about, say)])
    return say("made.variant", name=named(name), what=what, source=source)


def _beyond(about: Mapping[str, Any], say: Phrases) -> list[str]:
    """What was done beside the rounding, with what it bought or what the other choice would have cost."""
    found = []
    if about.get("embedding"):
        found.append(say("made.embedding", scheme=about["embedding"]))
    if bits := about.get("bits"):
        price = {name: {key: f"{own:.3f}" for key, own in of.items()} for name, of in bits["price"].items()}
        other = "mean" if bits["objective"] == "worst" else "worst"
        chosen, left = price[bits["objective"]], price[other]
        values = {"bits": f"{bits['bits_per_weight']:.2f}", "worst": chosen["worst"], "mean": chosen["mean"]}
        values |= {"other_worst": left["worst"], "other_mean": left["mean"]}
        values |= {"unit": say(f"measure.{bits.get('damage', 'kl')}")}
        found.append(say(f"made.bits_{bits['objective']}", **values))
    if healed := about.get("healed"):
        before, after = (max(healed["damage"][when].values()) for when in ("before", "after"))
        unit = say(f"measure.{healed['measure']}")
        found.append(say("made.tuned", before=f"{before:.3f}", after=f"{after:.3f}", unit=unit))
    return found


def title(evaluations: Sequence[Scores]) -> str:
    """The page's name in a list of windows: the models it is about."""
    names = dict.fromkeys(name for scores in evaluations for name in scores["models"])
    return ", ".join(map(isolated, names))
