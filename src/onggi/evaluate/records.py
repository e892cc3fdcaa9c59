"""The numbers of single items, as a table that other tools read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .. import ledger


class Items:
    """What `items.parquet` holds: of every item the numbers that all measures are made of."""

    def __init__(self) -> None:
        names = ("model", "language", "task", "item", "metric", "value", "tokens")
        self.columns: dict[str, list[Any]] = {name: [] for name in names}
        # What an item is drawn with, beside the columns: the turns of one prompt share their fate.
        self.units: list[str] = []

    def _add(self, *row: Any, unit: str | None = None) -> None:
        for column, cell in zip(self.columns.values(), row, strict=True):
            column.append(cell)
        self.units.append(row[3] if unit is None else unit)

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The cells of each row, and the unit that its item is of."""
        return zip(*self.columns.values(), self.units, strict=True)

    def add_text(
        self,
        measured: Mapping[str, Mapping[str, Any]],
        passages: Mapping[str, Mapping[str, str]],
        text: str,
    ) -> None:
        """Of a passage: nats, nats of divergence, tokens that agree, bytes."""
        for language, by_model in measured.items():
            for name, sums in by_model.items():
                sizes = [len(content.encode()) for content in passages[language].values()]
                metrics = {"nll": sums.nll, "kl": sums.kl, "top1_agreement": sums.agree, "bytes": sizes}
                for metric, values in metrics.items():
                    for item, value, tokens in zip(
                        passages[language], values or (), sums.tokens, strict=False
                    ):
                        self._add(name, language, text, item, metric, float(value), tokens)

    def add_task(self, task: str, metric: str, rows: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
        """Of an item: its value by the task's metric; tokens scored or written."""
        for model, by_language in rows.items():
            for language, own in by_language.items():
                for row in own:
                    self._add(model, language, task, row["item"], metric, row["value"], row.get("tokens"))

    def add_answer(self, model: str, language: str, row: Mapping[str, Any]) -> None:
        """Of an answer to a prompt: its values and tokens."""
        for metric, value in row["values"].items():
            cells = (row["item"], metric, value, row["tokens"])
            self._add(model, language, "prompts", *cells, unit=row["_id"])

    def add_grade(self, row: Mapping[str, Any]) -> None:
        """Of a judge's verdict on an answer: the grade, where there is one; tokens of the verdict."""
        if row["score"] is not None:
            cells = (row["item"], "score", float(row["score"]), row["tokens"])
            self._add(row["model"], row["lang"], "judge", *cells, unit=row["_id"])

    def write(self, path: Path) -> None:
        """One row for each number."""
        types = {"value": pa.float64(), "tokens": pa.int64()}
        table = pa.table(
            {key: pa.array(cells, types.get(key, pa.string())) for key, cells in self.columns.items()}
        )
        with ledger.writing(path) as aside:
            pq.write_table(table, aside, compression="zstd")
