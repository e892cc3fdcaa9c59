"""An evaluation at work: the models on the line, and what has been found of them so far.

The modules beside this one each add their part (passages, tasks, answers, grades, costs) to the same
`scores` and `items`; the stage says which of them, and writes the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import ledger
from ..engines import opening
from ..engines.spending import Options
from ..models import references
from ..models.references import Reference
from . import pieces
from .pieces import Piece, Row
from .records import Items


@dataclass(frozen=True)
class Model:
    """One model of the line. folder: its checkpoint (of a GGUF file the dequantised one), None behind a server."""

    name: str
    source: str
    folder: Path | None


class Evaluation:
    """`scores` (DESIGN §3), `items` and the names of the `outputs` in `job.work`, as they grow.

    line: the models, named apart. reference: the name of the one that the others are set against.
    options: how servers are treated.
    """

    def __init__(
        self, job: ledger.Job, line: Sequence[Reference], reference: str, margin: float, options: Options
    ):
        self.job, self.reference, self.margin, self.options = job, reference, margin, options
        self.models = [
            Model(r.name, r.source, None if references.served(r.source) else references.resolve(r.source))
            for r in line
        ]
        self.scores: dict[str, Any] = {
            "reference": reference,
            "text": None,
            "parallel": False,
            "languages": [],
            "passages": {},
            "margin": margin,
            "models": {model.name: _about(model) for model in self.models},
            "comparisons": [],
        }
        self.items = Items()
        self.outputs = ["scores.json", "items.parquet"]

    @property
    def local(self) -> list[Model]:
        """The models that are here, and can be scored; a server gives no likelihoods of a given text."""
        return [model for model in self.models if model.folder is not None]

    def complete(self, label: str, todo: Sequence[Piece]) -> list[dict[str, Row]]:
        """The rows of each piece; see `pieces.complete`."""
        return pieces.complete(self.job, label, todo, self.options)

    def add(self, measure: str, entries: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """Put entries, model → language → entry, into the scores under the name `measure`."""
        for model, by_language in entries.items():
            own = self.scores["models"][model]["languages"]
            for language, entry in by_language.items():
                own.setdefault(language, {})[measure] = entry

    def ran(self, model: Model, part: str, need: opening.Need) -> None:
        """Note what ran a model for a part of the evaluation."""
        self.scores["models"][model.name]["engines"][part] = opening.how(model.source, need)

    def write(self) -> list[str]:
        """Write scores.json and items.parquet; the names of all outputs."""
        ledger.write_json(self.job.work / "scores.json", self.scores)
        self.items.write(self.job.work / "items.parquet")
        return self.outputs


def _about(model: Model) -> dict[str, Any]:
    """The entry of a model before anything is measured."""
    size, about = None, {}
    if model.folder is not None:
        files = list(model.folder.glob("*.safetensors"))
        if references.is_gguf(model.source):
            file = references.gguf(model.source)
            files = [file] if file else []
        size = sum(file.stat().st_size for file in files)
        about = {key: value for key, value in references.about(model.folder).items() if key != "layers"}
    return {
        "source": model.source,
        "bytes": size,
        "about": about,
        "engines": {},
        "languages": {},
        "worst": {},
    }
