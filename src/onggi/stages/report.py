"""`onggi report`: what evaluations found, for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import ledger
from ..errors import OnggiError
from ..ledger import Artifact
from .base import Plan, Stage, command, options

_REVISION = 1


@dataclass(frozen=True)
class ReportConfig:
    """Write what evaluations found as DIR/report.md and show it as a table.

    The headline in a sentence, damage by language and variant with intervals and verdicts, sizes,
    how it was made and the command that makes it again.
    """

    inputs: list[str]
    """Folders that `onggi evaluate` made."""


def inputs(config: ReportConfig) -> dict[str, Any]:
    """Fingerprints of the evaluations."""
    return {"inputs": [_evaluation(folder).fingerprint for folder in config.inputs]}


def _evaluation(folder: str) -> Artifact:
    found = ledger.artifact(Path(folder))
    if found is None or found.record.get("verb") != "evaluate":
        raise OnggiError(f"{folder}: is not a finished folder of `onggi evaluate`.")
    return found


def report(config: ReportConfig, out: Path) -> Artifact:
    """Write `out`/report.md; see `ReportConfig`. Raises OnggiError for a folder that is no evaluation.

    >>> from pathlib import Path
    >>> from onggi.stages import ReportConfig, report
    >>> made = report(ReportConfig(["scores"]), Path("report"))
    >>> "Khmer" in (made.path / "report.md").read_text(encoding="utf-8")
    True
    """
    from ..report import markdown

    if not config.inputs:
        raise OnggiError("inputs: name at least one folder of `onggi evaluate`.")
    evaluations = [_evaluation(folder) for folder in config.inputs]
    job = ledger.begin(out, "report", options(config), inputs(config), _REVISION)
    if job.done:
        return job.done
    with job:
        parts = [
            markdown.section(ledger.read_json(found.path / "scores.json"), found.record)
            for found in evaluations
        ]
        (job.work / "report.md").write_text(markdown.page(parts), encoding="utf-8")
        return job.finish(
            ["report.md"],
            command=command(STAGE, config, out),
            evaluations=[str(found.path) for found in evaluations],
        )


def show(artifact: Artifact) -> None:
    """Print headline and table of a finished report to the terminal, and where the page is."""
    from rich.console import Console

    from ..report import terminal

    console = Console(highlight=False)
    for folder in artifact.record["evaluations"]:
        file = Path(folder) / "scores.json"
        if file.is_file():
            terminal.show(console, ledger.read_json(file))
    console.print(f"\nReport: {artifact.path / 'report.md'}", markup=False, soft_wrap=True)


def plan(config: ReportConfig) -> Plan:
    """Next to nothing."""
    return Plan(memory=200 << 20, disk=1 << 20)


STAGE = Stage("report", ReportConfig, report, inputs, plan, {"inputs": "+"}, _REVISION, show)
