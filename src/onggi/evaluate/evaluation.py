"""An evaluation at work: the models on the line, and what has been found of them so far.

The modules beside this one each add their part (passages, tasks, answers, grades, costs) to the same
`scores` and `items`; the stage says which of them, and writes the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import fanout, ledger
from ..engines import opening
from ..engines.spending import Estimate, Options
from ..errors import OnggiError
from ..languages import Languages
from ..models import references
from ..models.references import Reference
from ..text import Text
from . import pieces
from .pieces import Piece, Row
from .records import Items

Failures = Literal["stop", "leave_out"]


@dataclass(frozen=True)
class Model:
    """One model of the line. folder: its checkpoint (of a GGUF file the dequantised one), None behind a server."""

    name: str
    source: str
    folder: Path | None


class Evaluation:
    """`scores` (DESIGN §3), `items` and the names of the `outputs` in `job.work`, as they grow.

    line: the models, named apart. reference: the name of the one that the others are set against.
    options: how servers are treated. failures: whether requests that failed for good end the run or are left
    out of it. on: where the work is done, None for here.
    """

    def __init__(
        self,
        job: ledger.Job,
        line: Sequence[Reference],
        reference: str,
        margin: float,
        options: Options,
        failures: Failures = "stop",
        on: fanout.On | None = None,
    ):
        self.job, self.reference, self.margin, self.options, self.on = job, reference, margin, options, on
        self.failures = failures
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
        # (what was asked, source) → every row that a model behind a server has given.
        self.served: dict[tuple[str, str], list[Row]] = {}
        # Source → what it may cost, of all parts that were announced so far.
        self.estimates: dict[str, Estimate] = {}
        self.outputs = ["scores.json", "items.parquet"]

    @property
    def local(self) -> list[Model]:
        """The models that are here, and can be scored; a server gives no likelihoods of a given text."""
        return [model for model in self.models if model.folder is not None]

    @property
    def memory(self) -> int:
        """About the bytes that a process needs for any one of the models, in fp32."""
        stored = [
            sum(f.stat().st_size for f in m.folder.glob("*.safetensors")) for m in self.local if m.folder
        ]
        return 2 * max(stored, default=0) + 2**30

    def complete(self, label: str, todo: Sequence[Piece]) -> list[dict[str, Row]]:
        """The rows of each piece; see `pieces.complete`. Raises OnggiError where some failed for good, unless
        these are to be left out.
        """
        found = pieces.complete(self.job, label, todo, self.options, self.estimates, self.on, self.memory)
        for piece, rows in zip(todo, found, strict=True):
            # What a judge settles by itself, or has no answer for, was not asked.
            asked = [r for r in rows.values() if r.get("finish") and r.get("status") != "missing"]
            failed = [row for row in asked if row["finish"] == "error"]
            if failed and self.failures == "stop":
                raise OnggiError(
                    f"{piece.source}: {len(failed)} of {len(asked)} requests ({piece.label}) failed, the last: "
                    f"{failed[-1]['error']}. What was answered is kept: run again to ask for the rest, or with "
                    "--failures leave_out to go on without."
                )
            if references.served(piece.source):
                self.served.setdefault((label, piece.source), []).extend(asked)
        return found

    def add(self, measure: str, entries: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """Put entries, model → language → entry, into the scores under the name `measure`."""
        for model, by_language in entries.items():
            own = self.scores["models"][model]["languages"]
            for language, entry in by_language.items():
                own.setdefault(language, {})[measure] = entry

    def languages(self, text: Text) -> Languages | None:
        """The languages of anything that was measured which `text` has; None where it has none of them."""
        seen = {tag for model in self.scores["models"].values() for tag in model["languages"]}
        own = [tag for tag in text.languages if tag in seen]
        return Languages(own) if own else None

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
        if files and references.is_gguf(model.source):
            about["file"] = files[0].name  # whose size that is: not of what it is unpacked to
    return {
        "source": model.source,
        "bytes": size,
        "about": about,
        "engines": {},
        "languages": {},
        "worst": {},
    }
