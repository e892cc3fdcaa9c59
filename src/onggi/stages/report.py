"""`onggi report`: what evaluations found, for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import ledger
from ..errors import OnggiError
from ..ledger import Artifact
from ..phrases import Phrases
from .base import Plan, Stage, command, options

_REVISION = 3


@dataclass(frozen=True)
class ReportConfig:
    """Write what evaluations found as DIR/report.html and DIR/report.md, and show it as a table.

    The HTML is one file to pass on: nothing in it is fetched, and it prints. The finding in a sentence; all
    models in all languages, and which of them to ship in each; damage, verdicts, tasks, flips, grades, sizes,
    tokens and costs, each with its interval; a page for each language with answers side by side; the
    reference's own grid, how it was made and the commands that make it again.
    """

    inputs: list[str]
    """Folders that `onggi evaluate` or `onggi finetune` made."""
    language: str = "en"
    """Language of every sentence: en or ko. Another one is one file of phrases."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if not self.inputs:
            raise OnggiError("inputs: name at least one folder of `onggi evaluate` or `onggi finetune`.")
        try:
            Phrases(self.language)
        except OnggiError as error:
            raise OnggiError(f"language: {error}") from error


def inputs(config: ReportConfig) -> dict[str, Any]:
    """Fingerprints of the evaluations and tunings."""
    return {"inputs": [_made(folder).fingerprint for folder in config.inputs]}


def _made(folder: str) -> Artifact:
    found = ledger.artifact(Path(folder))
    if found is None or found.record.get("verb") not in ("evaluate", "finetune"):
        raise OnggiError(f"{folder}: is not a finished folder of `onggi evaluate` or `onggi finetune`.")
    return found


def report(config: ReportConfig, out: Path) -> Artifact:
    """Write `out`/report.html and report.md; see `ReportConfig`. Raises OnggiError for a folder that
    is no evaluation or tuning, a language without phrases.

    >>> from pathlib import Path
    >>> from onggi.stages import ReportConfig, report
    >>> made = report(ReportConfig(["scores"]), Path("report"))
    >>> sorted(made.record["outputs"])
    ['report.html', 'report.md']
    """
    from ..report import content, html, markdown, pages, tuning

    found = [_made(folder) for folder in config.inputs]
    job = ledger.begin(out, "report", options(config), inputs(config), _REVISION)
    if job.done:
        return job.done
    again, say = command(STAGE, config, out), Phrases(config.language)
    with job:
        sections, scores = [], []
        for made in found:
            if made.record["verb"] == "finetune":
                tuned = ledger.read_json(made.path / "tuning.json")
                sections.append(tuning.section(tuned, made.record["command"], say))
                title = tuning.title(tuned, say)
            else:
                scores.append(ledger.read_json(made.path / "scores.json"))
                answers = pages.first_answers(made.path / "answers.jsonl")
                sections.append(content.section(scores[-1], made.record, again, say, answers))
        if scores:
            title = content.title(scores)
        written = {
            "report.html": html.page(sections, title, say),
            "report.md": markdown.page(sections, say, "" if scores else title),
        }
        for name, page in written.items():
            (job.work / name).write_text(page, encoding="utf-8")
        return job.finish(list(written), command=again, evaluations=[str(made.path) for made in found])


def show(artifact: Artifact) -> None:
    """Print headline and table of a finished report to the terminal, and where the page is."""
    from rich.console import Console

    from ..report import terminal, tuning

    console, say = Console(highlight=False), Phrases(artifact.record["options"]["language"])
    for folder in artifact.record["evaluations"]:
        file, tuned = Path(folder) / "scores.json", Path(folder) / "tuning.json"
        if file.is_file():
            terminal.show(console, ledger.read_json(file), say)
        elif tuned.is_file():
            console.print(tuning.headline(ledger.read_json(tuned), say), style="bold", markup=False)
    console.print(
        f"\n{say('terminal.report')}: {artifact.path / 'report.html'}", markup=False, soft_wrap=True
    )


def plan(config: ReportConfig) -> Plan:
    """Next to nothing."""
    return Plan(memory=200 << 20, disk=1 << 20)


STAGE = Stage("report", ReportConfig, report, inputs, plan, {"inputs": "+"}, _REVISION, show)
