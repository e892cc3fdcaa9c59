"""The report beside the same data from a plotting library that embeds its script (plotly).

Both pages are one file that needs no network and hold the same: damage by language and variant with
intervals (Latin and other scripts apart), size against the worst language, and the table of damage.
Chromium opens each from disk in a fresh context, in turns; first paint is the browser's own
`first-contentful-paint`, `drawn` the moment the last figure stands (the later of first paint and load
event; for plotly the end of its last plot), both from the start of the navigation.

    python bench/report.py [--scores runs/quickstart/scores] [--runs 15]

writes docs/benchmarks/report.md and .json. Without --scores the quickstart is run first, where it
has not been.
"""

from __future__ import annotations

import argparse
import datetime
import html
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from parts import process

from onggi.phrases import Phrases
from onggi.report import wording

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "benchmarks"
QUICKSTART = ROOT / "runs" / "quickstart" / "scores"
GOAL = 1 / 5


def plotly_page(scores: dict[str, Any], path: Path) -> None:
    """The same figures and table, by plotly, its script inside."""
    import plotly.graph_objects as go
    import plotly.io

    from onggi import languages

    say, names, order = Phrases("en"), wording.variants(scores), wording.by_damage(scores)
    parts = []
    for latin in (True, False):
        group = [tag for tag in order if languages.is_latin(tag) == latin]
        figure = go.Figure()
        for name in names:
            entries = [wording.kl(scores, name, tag) for tag in group]
            values = [entry["value"] for entry in entries]
            figure.add_scatter(
                x=values,
                y=[say.name(tag) for tag in group],
                name=name,
                mode="markers",
                error_x={
                    "array": [e["high"] - e["value"] for e in entries],
                    "arrayminus": [e["value"] - e["low"] for e in entries],
                },
            )
        parts.append(plotly.io.to_html(figure, full_html=False, include_plotlyjs=latin))
    ends = [wording.worst(scores, name) for name in names]
    size = go.Figure(
        go.Scatter(
            x=[scores["models"][name]["bytes"] / 1e6 for name in names],
            y=[wording.kl(scores, name, tag)["value"] for name, tag in zip(names, ends, strict=True)],
            text=[f"{name} · {say.name(tag)}" for name, tag in zip(names, ends, strict=True)],
            mode="markers+text",
        )
    )
    parts.append(plotly.io.to_html(size, full_html=False, include_plotlyjs=False))
    rows = [[say.name(tag), *(wording.cell(scores, name, tag) for name in names)] for tag in order]
    table = "".join(f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>" for row in rows)
    head = html.escape(wording.headline(scores, say))
    path.write_text(
        f"<!doctype html><meta charset=utf-8><title>plotly</title><h1>{head}</h1>{''.join(parts)}"
        f"<table>{table}</table><script>window.drawn = performance.now()</script>",
        encoding="utf-8",
    )


_TIMES = """() => new Promise(resolve => {
  const finish = () => requestAnimationFrame(() => {
    const paint = performance.getEntriesByName("first-contentful-paint")[0].startTime;
    const loaded = performance.getEntriesByType("navigation")[0].loadEventEnd;
    resolve({paint, drawn: Math.max(paint, window.drawn ?? loaded)});
  });
  setTimeout(finish, 100);
})"""


def openings(pages: dict[str, Path], runs: int) -> dict[str, list[dict[str, float]]]:
    """Milliseconds of each opening, the pages in turns; the first turn warms the caches and does not count."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list[dict[str, float]]] = {name: [] for name in pages}
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for turn in range(runs + 1):
            for name, path in pages.items():
                context = browser.new_context(viewport={"width": 1280, "height": 800})
                page = context.new_page()
                page.goto(path.as_uri(), wait_until="load")
                times = page.evaluate(_TIMES)
                if turn:
                    found[name].append(times)
                context.close()
        found["browser"] = browser.version
    return found


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scores", type=Path, default=QUICKSTART)
    parser.add_argument("--runs", type=int, default=15)
    given = parser.parse_args()
    if not (given.scores / "stage.json").is_file():
        recipe = str(ROOT / "recipes" / "quickstart.yaml")
        subprocess.run([sys.executable, "-m", "onggi", "run", recipe], check=True, cwd=ROOT)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        made = process.measure(
            [sys.executable, "-m", "onggi", "report", str(given.scores), "--out", str(out / "onggi")],
            out / "onggi.log",
        )
        scores = json.loads((given.scores / "scores.json").read_text(encoding="utf-8"))
        plotly_page(scores, out / "plotly.html")
        pages = {"onggi": out / "onggi" / "report.html", "plotly": out / "plotly.html"}
        times = openings(pages, given.runs)
        sizes = {name: path.stat().st_size for name, path in pages.items()}
    import plotly

    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "machine": process.facts(),
        "chromium": times.pop("browser"),
        "plotly": plotly.__version__,
        "bytes": sizes,
        "milliseconds": times,
        "making_seconds": made.wall,
    }
    DOCS.mkdir(parents=True, exist_ok=True)
    (DOCS / "report.json").write_text(json.dumps(result, indent=1) + "\n")
    (DOCS / "report.md").write_text(page(result, given), encoding="utf-8")
    print(f"{DOCS / 'report.md'}")


def page(result: dict[str, Any], given: argparse.Namespace) -> str:
    """The measurements as Markdown."""
    sizes, ratio = result["bytes"], result["bytes"]["onggi"] / result["bytes"]["plotly"]
    rows = []
    for name in sizes:
        cells = [f"{sizes[name] / 1000:,.0f}"]
        for what in ("paint", "drawn"):
            values = [times[what] for times in result["milliseconds"][name]]
            cells.append(f"{statistics.median(values):.0f} ({min(values):.0f}–{max(values):.0f})")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    machine = result["machine"]
    command = (
        f"python bench/report.py --scores {given.scores.resolve().relative_to(ROOT)} --runs {given.runs}"
    )
    return "\n".join(
        [
            "# The report beside a page of plotly's",
            "",
            "The same figures and table of one evaluation, each as one file that needs no network, opened from disk",
            f"in Chromium {result['chromium']} (1280 pixels wide), in turns, {given.runs} times each, in fresh contexts.",
            "Made by `make bench`; this page is written by the bench and not by hand.",
            "",
            f"- command: `{command}`, {result['date']}",
            f"- machine: {machine['processor']}, {machine['cores']} cores; plotly {result['plotly']}",
            "",
            "| page | kB | first contentful paint, ms: median (least–most) | all figures drawn, ms |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            f"Goal: at most 1/5 of the bytes. Measured: 1/{1 / ratio:.0f} ({'met' if ratio <= GOAL else '**missed**'}).",
            f"Making ours, `onggi report` from start to end, took {result['making_seconds']:.1f} s. The page of",
            "plotly's holds less text (no verdicts, no account of how it was made) and zooms; ours does not. Its first paint",
            "is its headline alone, ours everything.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
