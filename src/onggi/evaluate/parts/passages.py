"""How well each model knows a text, and how far it is from the reference on it."""

from __future__ import annotations

from collections.abc import Sequence

from ...languages import Languages
from ...text import Text
from .. import passages as measuring
from .. import summary
from ..evaluation import Evaluation
from ..measure import Measured


def add(evaluation: Evaluation, text: Text, languages: Sequence[str] | None, limit: int | None) -> None:
    """The measures of DESIGN §4 on the passages of `text`, for every model that is here.

    languages: default all that the text has; limit: at most so many passages of each.
    """
    languages = languages or Languages(text.languages)
    passages = text.common(languages, limit)
    reference, job = evaluation.reference, evaluation.job
    if evaluation.on:
        sources = {model.name: model.source for model in evaluation.local}
        results = measuring.measure_apart(job, sources, reference, passages, evaluation.on, evaluation.memory)
    else:
        folders = {model.name: model.folder for model in evaluation.local if model.folder}
        results = measuring.measure_all(job, folders, reference, passages)
    measured = {
        language: {name: Measured(**sums) for name, sums in by_model.items()}
        for language, by_model in results.items()
    }
    sizes = {tag: [len(content.encode()) for content in texts.values()] for tag, texts in passages.items()}
    made = summary.summarise(measured, sizes, reference, evaluation.margin, text.parallel)
    for model in evaluation.local:
        found = made["models"][model.name]
        own = evaluation.scores["models"][model.name]
        for language, entries in found["languages"].items():
            own["languages"].setdefault(language, {}).update(entries)
        own["worst"] = found["worst"]
        evaluation.ran(model, "text", "states")
    evaluation.scores |= {
        "text": text.name,
        "parallel": text.parallel,
        "languages": list(languages),
        "passages": {language: len(texts) for language, texts in passages.items()},
        "comparisons": made["comparisons"],
    }
    evaluation.items.add_text(measured, passages, text.name)
