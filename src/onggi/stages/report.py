"""`onggi report`: what evaluations found, for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import languages as tags
from .. import ledger
from ..errors import OnggiError
from ..ledger import Artifact
from ..phrases import Phrases
from . import quantize_bits, rate_results
from .base import Plan, Stage, command, options

_REVISION = 6
# verb → what of its folder is read
_READ = {"evaluate": "scores.json", "finetune": "tuning.json", "results": "results.json"}
_FOLDERS = "`onggi evaluate`, of `onggi finetune` or of `onggi rate results`"


@dataclass(frozen=True)
class ReportConfig:
    """Write what evaluations found as DIR/report.html and DIR/report.md, and show it as a table.

    The HTML is one file to pass on: nothing in it is fetched, and it prints. The finding in a sentence; all
    models in all languages, and which of them to ship in each; damage, verdicts, tasks, flips, grades, sizes,
    tokens and costs, each with its interval; a page for each language with answers side by side; the
    reference's own grid, how it was made and the commands that make it again.
    """

    inputs: list[str]
    """Folders that `onggi evaluate` or `onggi finetune` made; and those of `onggi rate results`, whose verdicts of
    people stand with the evaluation of the same models."""
    language: str = "en"
    """Language of every sentence: en or ko. Another one is one file of phrases."""
    focus: str | None = None
    """A language that the page is about, as ko: it begins with which models are safe to use in it and which are not,
    in plain words, and with what they answer side by side."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if not self.inputs:
            raise OnggiError(f"inputs: name at least one folder of {_FOLDERS}.")
        try:
            Phrases(self.language)
        except OnggiError as error:
            raise OnggiError(f"language: {error}") from error
        if self.focus:
            try:
                object.__setattr__(self, "focus", tags.canonical(self.focus))
            except OnggiError as error:
                raise OnggiError(f"focus: {error}") from error


def inputs(config: ReportConfig) -> dict[str, Any]:
    """Fingerprints of the evaluations, tunings and people's results."""
    given = [_found(folder) for folder in config.inputs]
    scores = [
        ledger.read_json(made.path / _READ["evaluate"]) for made in given if made.record["verb"] == "evaluate"
    ]
    drawn = [ledger.sha256(file) for one in scores for file in _matrices(one).values()]
    return {"inputs": [made.fingerprint for made in given], "matrices": drawn}


def _found(folder: str) -> Artifact:
    found = ledger.artifact(Path(folder))
    if found is None or found.record.get("verb") not in _READ:
        raise OnggiError(f"{folder}: is not a finished folder of {_FOLDERS}.")
    return found


def _matrices(scores: dict[str, Any]) -> dict[str, Path]:
    """variant → the file of what each layer costs each language, of those with mixed bits whose folder is still here and as
    it was when it was measured.
    """
    from ..models import references

    found = {}
    for name, model in scores["models"].items():
        bits, folder = model["about"].get("bits"), Path(model["source"])
        file = folder / quantize_bits.MATRIX
        if bits and file.is_file() and references.about(folder).get("bits") == bits:
            found[name] = file
    return found


def report(config: ReportConfig, out: Path) -> Artifact:
    """Write `out`/report.html and report.md; see `ReportConfig`. Raises OnggiError for a folder that
    is none of these, a language without phrases.

    >>> from pathlib import Path
    >>> from onggi.stages import ReportConfig, report
    >>> made = report(ReportConfig(["scores"]), Path("report"))
    >>> sorted(made.record["outputs"])
    ['report.html', 'report.md']
    """
    from ..report import choice, content, html, markdown, pages, people, tuning

    given = [_found(folder) for folder in config.inputs]
    job = ledger.begin(out, "report", options(config), inputs(config), _REVISION)
    if job.done:
        return job.done
    again, say = command(STAGE, config, out), Phrases(config.language)
    with job:
        read = [(made, ledger.read_json(made.path / _READ[made.record["verb"]])) for made in given]
        evaluations, tunings, studies = (
            [found for made, found in read if made.record["verb"] == verb] for verb in _READ
        )
        # Each study stands with the first evaluation that it belongs to; with none, by itself.
        home = [
            (study, next((s for s in evaluations if people.belongs(study, s)), None)) for study in studies
        ]
        for study, scores in home:
            if scores is not None:
                people.add(study, scores)
        if config.focus and not any(config.focus in choice.languages(scores) for scores in evaluations):
            raise OnggiError(
                f"focus: nothing was measured in {tags.name(config.focus)} ({config.focus}); evaluate it there "
                "first (onggi evaluate --languages), or leave --focus out."
            )
        sections = []
        for made, found in read:
            if made.record["verb"] == "evaluate":
                answers = pages.first_answers(made.path / "answers.jsonl")
                said = [study for study, scores in home if scores is found]
                matrices = {name: ledger.read_json(file) for name, file in _matrices(found).items()}
                sections.append(
                    content.section(found, made.record, again, say, answers, said, config.focus, matrices)
                )
            elif made.record["verb"] == "finetune":
                sections.append(tuning.section(found, made.record["command"], say))
            elif any(study is found and scores is None for study, scores in home):
                sections.append(people.alone(found, made.record, again, say))
        title = content.title([*evaluations, *studies])
        tuned = ", ".join(tuning.title(found, say) for found in tunings)
        written = {
            "report.html": html.page(sections, title or tuned, say),
            "report.md": markdown.page(sections, say, "" if title else tuned),
        }
        for name, page in written.items():
            (job.work / name).write_text(page, encoding="utf-8")
        folders = {verb: [str(made.path) for made in given if made.record["verb"] == verb] for verb in _READ}
        return job.finish(
            list(written),
            command=again,
            evaluations=folders["evaluate"],
            tunings=folders["finetune"],
            studies=folders["results"],
        )


def show(artifact: Artifact) -> None:
    """Print headline and table of a finished report to the terminal, and where the page is."""
    from rich.console import Console

    from ..report import choice, safety, terminal, tuning

    console, say = Console(highlight=False), Phrases(artifact.record["options"]["language"])
    focus = artifact.record["options"].get("focus")
    for folder in artifact.record["evaluations"]:
        file = Path(folder) / "scores.json"
        if file.is_file():
            scores = ledger.read_json(file)
            terminal.show(console, scores, say)
            if focus and focus in choice.languages(scores):
                console.print(f"\n{safety.lead(scores, focus, say)}", style="bold", markup=False)
    for folder in artifact.record.get("tunings", ()):
        file = Path(folder) / "tuning.json"
        if file.is_file():
            words = tuning.headline(ledger.read_json(file), say)
            console.print(words, style="bold", markup=False)
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
