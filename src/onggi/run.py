"""Run a recipe: skip what is done, go on with what is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import ledger, recipe
from .errors import OnggiError
from .progress import say
from .recipe import Recipe, Step
from .stages import Plan
from .stages.base import options


def folders(plan: Recipe, runs: Path) -> dict[str, Path]:
    """The output folder of each stage: RUNS/NAME/STAGE."""
    return {step.name: runs / plan.name / step.name for step in plan.steps}


def run(path: Path, overrides: Sequence[str] = (), runs: Path = Path("runs")) -> dict[str, ledger.Artifact]:
    """Run the recipe at `path` and return each stage's artifact. Raises OnggiError, naming the stage."""
    plan = recipe.load(path, overrides)
    places = folders(plan, runs)
    made: dict[str, ledger.Artifact] = {}
    for number, step in enumerate(plan.steps, 1):
        config = recipe.config(step, places)
        label = f"[{number}/{len(plan.steps)}] {step.name} ({step.stage.verb})"
        if _is_done(step, config, places[step.name]):
            say(f"{label}: done already")
        else:
            say(f"{label} …")
        try:
            artifact = step.stage.run(config, places[step.name])
        except OnggiError as error:
            raise OnggiError(f"{step.where}: {error}") from error
        made[step.name] = artifact
    return made


def _job(step: Step, config: object, out: Path) -> ledger.Job | None:
    """The stage's job, where its inputs are there and known."""
    try:
        found = step.stage.inputs(config)
    except OnggiError:
        return None
    return ledger.begin(out, step.stage.verb, options(config), found, step.stage.revision)


def _is_done(step: Step, config: object, out: Path) -> bool:
    if not (out / ledger.MARKER).is_file():  # the inputs' fingerprints may have to be fetched
        return False
    job = _job(step, config, out)
    return job is not None and job.done is not None


def _is_begun(step: Step, config: object, out: Path) -> bool:
    tag = out / ledger.PARTIAL / "fingerprint"
    job = _job(step, config, out) if tag.is_file() else None
    return job is not None and tag.read_text() == job.fingerprint


def dry_run(path: Path, overrides: Sequence[str] = (), runs: Path = Path("runs")) -> list[dict[str, Any]]:
    """What `run` would do, a row a stage: name, verb, path, state, tokens, memory, disk (bytes; None
    where it cannot be known before an earlier stage has run). Changes nothing, fetches nothing.
    """
    plan = recipe.load(path, overrides)
    places = folders(plan, runs)
    rows: list[dict[str, Any]] = []
    waiting: set[str] = set()
    for step in plan.steps:
        config, out = recipe.config(step, places), places[step.name]
        blocked = [name for name in step.needs if name in waiting]
        if not blocked and _is_done(step, config, out):
            state = "done"
        else:
            waiting.add(step.name)
            state = "goes on" if not blocked and _is_begun(step, config, out) else "to do"
        try:
            expected = step.stage.plan(config)
        except OnggiError:
            if not blocked:
                raise
            expected = Plan()
        rows.append(
            {
                "stage": step.name,
                "verb": step.stage.verb,
                "path": str(out),
                "state": state,
                "tokens": expected.tokens,
                "memory": expected.memory,
                "disk": expected.disk,
            }
        )
    return rows
