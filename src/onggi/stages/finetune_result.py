"""What `onggi finetune` leaves: the merged model, its adapters, and what it gained and lost, as data, page and card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ledger
from ..phrases import Phrases
from .finetune_measures import compared
from .training import write_weights

if TYPE_CHECKING:
    from .finetune_data import Data
    from .finetune_training import Told, Training

CURVES, METRICS, TUNING, FAULTS = "curves.svg", "metrics.jsonl", "tuning.json", "left-out.txt"


def write(source: Any, model: Any, start: Path, work: Path) -> tuple[list[str], dict[str, Any]]:
    """Write the merged `model`, whose weights have the names of `source`, the checkpoint in `start`; returns the names
    of its files, its adapters' among them, and how far the weights moved.
    """
    from ..models import checkpoint as checkpoints
    from ..train import adapters

    tables = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    stored = dict(model.named_parameters(remove_duplicate=False))
    names = {name for name, parameter in stored.items() if id(parameter) in tables}
    moved = write_weights(source, stored, names, work, start)
    config = {key: value for key, value in source.config.items() if key != "torch_dtype"}
    ledger.write_json(work / "config.json", config | {"dtype": "bfloat16"})
    files = [checkpoints.SINGLE, "config.json"]
    for file in checkpoints.companions(start):
        shutil.copyfile(file, work / file.name)
        files.append(file.name)
    adapter = work / adapters.FOLDER
    if adapter.is_dir():
        files += [f"{adapters.FOLDER}/{file.name}" for file in sorted(adapter.iterdir())]
    return files, moved


def finish(
    training: Training,
    told: Told,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    names: Sequence[str],
    moved: Mapping[str, Any],
    line: str,
) -> None:
    """Write what is said of the model, and end the job. names: of the files that are written already. line: the command
    that makes it.
    """
    from ..models import references
    from ..report import card, curves, html, markdown, tuning

    config, job, material = training.config, training.job, training.material
    base, work = references.about(material.start.folder), job.work
    found = compared(material.measures, before, after, material.data.languages)
    facts = _facts(training, told)
    about = {
        **{key: base[key] for key in ("licence", "terms", "base_model") if base.get(key)},
        "base": {
            "name": references.parse(config.model).name,
            "source": config.model,
            "grid": base.get("grid"),
        },
        "made_by": "onggi finetune",
        "grid": None,
        "tuned": {**facts, "moved": moved},
    }
    tuned = {
        "name": job.out.name,
        "base": about["base"]["name"],
        "facts": facts,
        **found,
        "lines": told.lines,
    }
    phrases = Phrases("en")
    blocks, title = tuning.section(tuned, line, phrases, CURVES), tuning.title(tuned, phrases)
    ledger.write_json(work / references.ABOUT, about)
    ledger.write_json(work / TUNING, tuned)
    pages = {
        METRICS: "".join(json.dumps(own, ensure_ascii=False) + "\n" for own in told.lines),
        CURVES: curves.curves(told.lines),
        FAULTS: _faults(material.data),
        "README.md": card.tuned(about, found),
        "report.md": markdown.page([blocks], phrases, title),
        "report.html": html.page([blocks], title, phrases),
    }
    for name, page in pages.items():
        (work / name).write_text(page, encoding="utf-8")
    job.finish(
        [*names, references.ABOUT, TUNING, *pages],
        command=line,
        facts=facts,
        tokens_per_second=told.speed,
        tuning={key: found[key] for key in ("trained", "answers", "probe", "right")},
    )


def _facts(training: Training, told: Told) -> dict[str, Any]:
    """What a tuning was, for its card and report."""
    config, material = training.config, training.material
    own, start = material.data, material.start
    licences = [part for part in (own.licence, material.licence if config.replay else None) if part]
    return {
        "method": config.method,
        "objective": config.objective,
        "learning_rate": training.rate,
        "batch_tokens": config.batch_tokens,
        "length": material.length,
        "precision": str(training.dtype).removeprefix("torch."),
        "seed": config.seed,
        "data": list(config.data),
        "licence": ", ".join(licences) or None,
        "replay": config.replay if config.objective == "sft" else 0.0,
        "replay_text": config.replay_text,
        "dialogues": {tag: sum(dialogue.lang == tag for dialogue in own.train) for tag in own.languages},
        "held_out": len(own.held_out),
        "left_out": len(own.faults),
        "template": start.standard.name if start.standard else "its own",
        "parameters": told.parameters,
        **({"rank": config.rank, "alpha": config.alpha or 2 * config.rank} if config.adapts else {}),
        **told.facts,
    }


def _faults(found: Data) -> str:
    """Every row that was left out, and why."""
    from ..text import dialogues

    if not found.faults:
        return "Nothing was left out.\n"
    rows = len(found.faults) + len(found.train) + len(found.held_out)
    return dialogues.said_of(found.faults, rows, 10**6) + "\n"
