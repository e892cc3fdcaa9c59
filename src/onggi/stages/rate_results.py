"""`onggi rate results`: what people said, once the study is closed."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ledger
from ..errors import OnggiError
from ..ledger import Artifact
from ..progress import say
from .base import Plan, Stage, command, options

if TYPE_CHECKING:
    from ..rate.results import Judged
    from ..rate.study import Study

_REVISION = 1


@dataclass(frozen=True)
class ResultsConfig:
    """Count what people said in a closed study: preferences, ratings, reasons, agreement, attention.

    Writes DIR/results.json and DIR/ratings.jsonl, a row for every rating, now with the models' names. Give DIR to
    `onggi report`, beside folders of `onggi evaluate`, and people's verdicts stand beside the measured ones.
    """

    study: str
    """The study's folder, closed by `onggi rate close`."""
    scores: str | None = None
    """Folder of `onggi evaluate --prompts --judge` in which a judge saw the same answers: how far it agrees with
    people."""
    margin: float = 0.05
    """A preference nearer to one half than this does not matter: 0.05 is 55 to 45, and the verdict is then
    `equivalent within 5 points`."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if not 0 < self.margin < 0.5:
            raise OnggiError(f"margin: {self.margin} is not a share between 0 and 0.5 (0.05 is 5 points).")


def _study(config: ResultsConfig) -> tuple[Study, Any]:
    from ..rate.store import Store
    from ..rate.study import Study

    study = Study(Path(config.study))
    if not study.ratings.is_file():
        raise OnggiError(f"{config.study}: nobody was invited yet, so there is nothing to count.")
    store = Store(study.ratings, study.id)
    if not store.closed:
        raise OnggiError(
            f"{config.study}: is open, and which answer is whose stays hidden until it is closed: onggi rate close "
            f"{config.study}"
        )
    return study, store


def _scores(folder: str) -> Artifact:
    found = ledger.artifact(Path(folder))
    if (
        found is None
        or found.record.get("verb") != "evaluate"
        or "verdicts.jsonl" not in found.record["outputs"]
    ):
        raise OnggiError(f"scores: {folder}: is not a finished folder of `onggi evaluate` with --judge.")
    return found


def inputs(config: ResultsConfig) -> dict[str, Any]:
    """Fingerprints of the study, its ratings, and the judge's verdicts."""
    study, store = _study(config)
    events = [[e.rater, e.assignment, e.choice, e.left, e.right] for e in store.events()]
    found: dict[str, Any] = {"study": [study.artifact.fingerprint, ledger.digest(events)]}
    if config.scores:
        found["scores"] = _scores(config.scores).fingerprint
    return found


def results(config: ResultsConfig, out: Path) -> Artifact:
    """Write `out`; see `ResultsConfig`. Raises OnggiError for a study that is open or that nobody has rated."""
    from ..rate import results as counting

    job = ledger.begin(out, "results", options(config), inputs(config), _REVISION)
    if job.done:
        return job.done
    with job:
        study, store = _study(config)
        rated = counting.rows(study, store.raters(), store.all_said())
        if not rated:
            raise OnggiError(f"{config.study}: was closed before anybody had rated.")
        key = study.key()
        judged = _judged(config, study) if config.scores else None
        found = counting.tally(rated, key, study.languages, config.margin, judged)
        raters = defaultdict(list)
        for rater in store.raters():
            raters[rater.lang].append(rater)
        for lang, own in found["languages"].items():
            own["planned"] = study.about["languages"][lang]
            own["invited"] = sum(rater.kind != "test" for rater in raters[lang])
        found["study"] = study.id
        found["closed"] = store.fact("closed")
        if config.scores:
            found["judge"] = ledger.read_json(Path(config.scores) / "scores.json")["judge"]["model"]
        ledger.write_json(job.work / "results.json", found)
        with (job.work / "ratings.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rated)
        before = [study.artifact.record["command"]]
        return job.finish(
            ["results.json", "ratings.jsonl"], command=command(STAGE, config, job.out), before=before
        )


def _judged(config: ResultsConfig, study: Study) -> Judged:
    """What the judge of an evaluation says of the study's answers; those that it saw otherwise are left out."""
    from ..evaluate import judge
    from ..text import jsonl

    assert config.scores
    folder = Path(config.scores)

    def texts(path: Path) -> dict[tuple[str, str, str, int], str]:
        return {
            (row["model"], row["lang"], row["_id"], row.get("turn") or 1): row["answer"]
            for _, row in jsonl.read(path, str(path))
        }

    seen, shown = texts(folder / "answers.jsonl"), texts(study.path / "answers.jsonl")
    same: dict[tuple[str, str, str], bool] = {}
    for (model, lang, key, turn), answer in shown.items():
        alike = seen.get((model, lang, key, turn)) == answer
        same[model, lang, key] = same.get((model, lang, key), True) and alike
    rows = [row for _, row in jsonl.read(folder / "verdicts.jsonl", str(folder / "verdicts.jsonl"))]
    found = _of_grades(row for row in rows if "model" in row)
    # What it said of the two side by side goes before what grades of each by itself make of them.
    found |= _of_pairs(judge.outcomes(row for row in rows if "model" not in row))
    kept = {
        (lang, key, one, other): score
        for (lang, key, one, other), score in found.items()
        if same.get((one, lang, key)) and same.get((other, lang, key))
    }
    if len(kept) < len(found):
        say(f"{len(found) - len(kept)} of the judge's verdicts are of answers that the study does not have.")
    return kept


def _mean(scores: Mapping[tuple[str, str, str, str], list[float]]) -> dict[tuple[str, str, str, str], float]:
    return {key: sum(own) / len(own) for key, own in scores.items()}


def _of_grades(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, str, str], float]:
    grades: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["score"] is not None:
            grades[row["lang"], row["_id"]][row["model"]].append(row["score"])
    found = {}
    for (lang, key), own in grades.items():
        means = {model: sum(scores) / len(scores) for model, scores in own.items()}
        for one, other in itertools.combinations(means, 2):
            found[lang, key, one, other] = 0.5 + 0.5 * (
                (means[one] > means[other]) - (means[one] < means[other])
            )
    return found


def _of_pairs(outcomes: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, str, str], float]:
    scores: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for each in outcomes:
        if each["winner"] is not None:
            one, other = each["models"]
            scores[each["lang"], each["_id"], one, other].append(
                {one: 1.0, other: 0.0}.get(each["winner"], 0.5)
            )
    found = _mean(scores)
    # Both ways round, so that they stand in the place of grades whichever way those have them.
    return found | {(lang, key, other, one): 1 - score for (lang, key, one, other), score in found.items()}


def show(artifact: Artifact) -> None:
    """Print what people prefer, language by language."""
    from rich.console import Console
    from rich.table import Table

    from .. import languages as tags

    found = ledger.read_json(artifact.path / "results.json")
    console, reference = Console(highlight=False), found["reference"]
    if found["by"] == "test":
        console.print("MADE BY A TEST: no person has rated this study.", style="bold")
    table = Table(title=f"preferred to {reference} [95% interval]")
    for column in ("language", "model", "preference", "verdict", "prompts", "both bad"):
        table.add_column(column)
    for lang, own in found["languages"].items():
        bad = sum(pair["both_bad"] for pair in own["pairs"])
        for name, model in own["models"].items():
            if entry := model.get("preference"):
                share = f"{entry['value']:.0%}"
                if entry["low"] is not None:
                    share += f" [{entry['low']:.0%}, {entry['high']:.0%}]"
                both = f"{bad / own['ratings']:.0%}" if own["ratings"] else "–"
                table.add_row(tags.name(lang), name, share, entry["verdict"], str(entry["n"]), both)
    console.print(table)
    for lang, own in found["languages"].items():
        failed = sum(kind["failed"] for kind in own["attention"].values())
        asked = sum(kind["shown"] for kind in own["attention"].values())
        alpha = own["agreement"]["preference"]["value"]
        agreed = "not known" if alpha is None else f"{alpha:.2f}"
        console.print(
            f"{tags.name(lang)}: {own['ratings']} ratings by {len(own['raters'])} raters, Krippendorff's alpha {agreed}, "
            f"{failed} of {asked} attention pairs failed"
        )
    console.print(f"\nIn the report: onggi report {artifact.path} …", markup=False, soft_wrap=True)


def plan(config: ResultsConfig) -> Plan:
    """Next to nothing."""
    return Plan(memory=200 << 20, disk=1 << 20)


STAGE = Stage("rate results", ResultsConfig, results, inputs, plan, {"study": None}, _REVISION, show)
