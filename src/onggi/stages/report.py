"""`onggi report`: what evaluations found, for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import ledger
from ..errors import OnggiError
from ..ledger import Artifact
from ..phrases import Phrases
from . import rate_results
from .base import Plan, Stage, command, options

_REVISION = 4


@dataclass(frozen=True)
class ReportConfig:
    """Write what evaluations found as DIR/report.html and DIR/report.md, and show it as a table.

    The HTML is one file to pass on: nothing in it is fetched, and it prints. The finding in a sentence; all
    models in all languages, and which of them to ship in each; damage, verdicts, tasks, flips, grades, sizes,
    tokens and costs, each with its interval; a page for each language with answers side by side; the
    reference's own grid, how it was made and the commands that make it again.
    """

    inputs: list[str]
    """Folders that `onggi evaluate` made; and those of `onggi rate results`, whose verdicts of people stand with
    the evaluation of the same models."""
    language: str = "en"
    """Language of every sentence: en or ko. Another one is one file of phrases."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if not self.inputs:
            raise OnggiError(
                "inputs: name at least one folder of `onggi evaluate` or of `onggi rate results`."
            )
        try:
            Phrases(self.language)
        except OnggiError as error:
            raise OnggiError(f"language: {error}") from error


def inputs(config: ReportConfig) -> dict[str, Any]:
    """Fingerprints of the evaluations and of people's results."""
    return {"inputs": [_found(folder).fingerprint for folder in config.inputs]}


def _found(folder: str) -> Artifact:
    found = ledger.artifact(Path(folder))
    if found is None or found.record.get("verb") not in ("evaluate", "results"):
        raise OnggiError(
            f"{folder}: is not a finished folder of `onggi evaluate` or of `onggi rate results`."
        )
    return found


def report(config: ReportConfig, out: Path) -> Artifact:
    """Write `out`/report.html and report.md; see `ReportConfig`. Raises OnggiError for a folder that
    is no evaluation, a language without phrases.

    >>> from pathlib import Path
    >>> from onggi.stages import ReportConfig, report
    >>> made = report(ReportConfig(["scores"]), Path("report"))
    >>> sorted(made.record["outputs"])
    ['report.html', 'report.md']
    """
    from ..report import content, html, markdown, pages, people

    given = [_found(folder) for folder in config.inputs]
    evaluations = [folder for folder in given if folder.record["verb"] == "evaluate"]
    studies = [folder for folder in given if folder.record["verb"] == "results"]
    job = ledger.begin(out, "report", options(config), inputs(config), _REVISION)
    if job.done:
        return job.done
    again, say = command(STAGE, config, out), Phrases(config.language)
    with job:
        found = [ledger.read_json(evaluation.path / "scores.json") for evaluation in evaluations]
        said = [ledger.read_json(study.path / "results.json") for study in studies]
        # Each study stands with the first evaluation that it belongs to; with none, by itself.
        home = [next((s for s in found if people.belongs(each, s)), None) for each in said]
        for results, scores in zip(said, home, strict=True):
            if scores is not None:
                people.add(results, scores)
        sections = [
            content.section(
                scores,
                evaluation.record,
                again,
                say,
                pages.first_answers(evaluation.path / "answers.jsonl"),
                [results for results, own in zip(said, home, strict=True) if own is scores],
            )
            for scores, evaluation in zip(found, evaluations, strict=True)
        ]
        sections += [
            people.alone(results, study.record, again, say)
            for results, study, own in zip(said, studies, home, strict=True)
            if own is None
        ]
        written = {
            "report.html": html.page(sections, content.title([*found, *said]), say),
            "report.md": markdown.page(sections, say),
        }
        for name, page in written.items():
            (job.work / name).write_text(page, encoding="utf-8")
        return job.finish(
            list(written),
            command=again,
            evaluations=[str(evaluation.path) for evaluation in evaluations],
            studies=[str(study.path) for study in studies],
        )


def show(artifact: Artifact) -> None:
    """Print headline and table of a finished report to the terminal, and where the page is."""
    from rich.console import Console

    from ..report import terminal

    console, say = Console(highlight=False), Phrases(artifact.record["options"]["language"])
    for folder in artifact.record["evaluations"]:
        file = Path(folder) / "scores.json"
        if file.is_file():
            terminal.show(console, ledger.read_json(file), say)
    for folder in artifact.record.get("studies", ()):
        if found := ledger.artifact(Path(folder)):
            rate_results.show(found)
    console.print(
        f"\n{say('terminal.report')}: {artifact.path / 'report.html'}", markup=False, soft_wrap=True
    )


def plan(config: ReportConfig) -> Plan:
    """Next to nothing."""
    return Plan(memory=200 << 20, disk=1 << 20)


STAGE = Stage("report", ReportConfig, report, inputs, plan, {"inputs": "+"}, _REVISION, show)
