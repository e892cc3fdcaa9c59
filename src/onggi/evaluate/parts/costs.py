"""What each model costs: tokens in every language, and memory, speed or money."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ... import ledger
from ...engines import opening
from ...text.tokens import shared
from .. import cost, tokenizers
from ..evaluation import Evaluation


def add_tokenizers(
    evaluation: Evaluation, passages: Mapping[str, Sequence[str]], source: str, parallel: bool
) -> None:
    """What each tokenizer that is here makes of `passages` (language → texts) of `source`."""
    for model in evaluation.local:
        assert model.folder is not None
        for language, entries in tokenizers.price(shared(model.folder), passages, parallel).items():
            for measure, entry in entries.items():
                evaluation.add(measure, {model.name: {language: entry}})
    evaluation.scores["tokenized"] = {"text": source, "parallel": parallel, "languages": list(passages)}


def add_machine(evaluation: Evaluation, texts: Sequence[str]) -> None:
    """What it takes to run each model that is here, one after another on quiet cores; kept by model."""
    opening.close()
    for index, model in enumerate(evaluation.local):
        file = evaluation.job.partial / f"cost-{index}.json"
        if not file.is_file():
            ledger.write_json(file, cost.measure(model.source, texts))
            evaluation.job.tick()
        evaluation.scores["models"][model.name]["cost"] = ledger.read_json(file)


def add_servers(evaluation: Evaluation) -> None:
    """What the answers of models behind servers have come to, of all that they were asked here."""
    scores, options = evaluation.scores, evaluation.options
    for model in evaluation.models:
        rows = [
            row
            for (asked, source), own in evaluation.served.items()
            if source == model.source and asked != "judge"
            for row in own
        ]
        if rows:
            scores["models"][model.name]["cost"] = cost.of_server(rows, options)
    judge = scores.get("judge")
    if judge and (rows := evaluation.served.get(("judge", judge["source"]), [])):
        judge["cost"] = cost.of_server(rows, options)
