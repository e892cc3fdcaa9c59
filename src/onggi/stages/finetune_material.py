"""What `onggi finetune` goes through, as tokens: dialogues and text to train on, and what is measured before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import OnggiError
from . import finetune_data
from .finetune_data import Data, Replay, Start
from .finetune_measures import Measures, prompts

if TYPE_CHECKING:
    from ..text.chat import Taught
    from ..train.dialogues import DialogueBatches
    from ..train.validation import Validation
    from .finetune import FinetuneConfig
    from .finetune_data import Data, Start


@dataclass(frozen=True)
class Material:
    """length: tokens of a sequence. batches: of dialogues and text, None for preferences; once: how many sequences of
    dialogues it takes to go over all of them. held: language → dialogues held out. validation: of plain text held out.
    licence: of the plain text.
    """

    data: Data
    start: Start
    length: int
    batches: DialogueBatches | None
    once: int
    held: Mapping[str, Sequence[Taught]]
    validation: Validation
    measures: Measures
    licence: str | None

    def steps(self, config: FinetuneConfig) -> int:
        """Steps as far as they are known before anything is measured."""
        if config.steps:
            return config.steps
        epochs = config.epochs or 3
        if self.batches is None:
            return max(round(epochs * len(self.data.train) / self.pairs(config)), 1)
        return max(round(epochs * self.once / (1 - config.replay) / self.batches.size), 1)

    def pairs(self, config: FinetuneConfig) -> int:
        """Preferences of one step: two answers each, taken to be as long as a sequence at most."""
        return max(config.batch_tokens // (2 * self.length), 1)


def material(config: FinetuneConfig, found: Data, replay: Replay, start: Start, engine: Any) -> Material:
    """Tokens of the dialogues `found` and of `replay`, and what is to be measured, for the model of `engine`."""
    from .. import text
    from ..train.validation import Validation

    preferences = config.objective != "sft"
    sides = {"train": found.train, "held out": found.held_out}
    if preferences:
        sides = {
            "train": [],
            "held out": [replace(d, messages=(*d.messages, *d.chosen)) for d in found.held_out],
            "rejected": [replace(d, messages=(*d.messages, *d.rejected)) for d in found.held_out],
        }
    made = {
        side: list(finetune_data.taught(own, start, engine.ends, config.turns)) for side, own in sides.items()
    }
    length = finetune_data.length(config.length, [len(t.ids) for _, t in made["train"]], engine.window)
    if length > config.batch_tokens:
        raise OnggiError(
            f"batch_tokens: {config.batch_tokens} are less than one sequence of {length} (--length)."
        )
    batches, once = (None, 0) if preferences else _batches(config, made["train"], replay.over, start, length)
    held = {tag: [t for d, t in made["held out"] if d.lang == tag] for tag in found.languages}
    rejected = {tag: [t for d, t in made.get("rejected", ()) if d.lang == tag] for tag in found.languages}
    probe = text.load("probe")
    asked = list(dict.fromkeys([*found.languages, *config.limits]))
    measures = Measures(
        held,
        rejected if any(rejected.values()) else {},
        probe.common(config.probe_languages or probe.languages, config.probe_passages),
        prompts(config, asked, found.held_out),
    )
    validation = Validation(start.tokens, replay.kept, min(engine.window or 2048, 2048))
    return Material(found, start, length, batches, once, held, validation, measures, replay.licence)


def _batches(
    config: FinetuneConfig,
    taught: Sequence[tuple[Any, Taught]],
    over: Mapping[str, Sequence[str]],
    start: Start,
    length: int,
) -> tuple[DialogueBatches, int]:
    """The batches of a training on answers, and how many sequences of dialogues go over all of them once."""
    from ..text import packing
    from ..train import dialogues as batches

    marks = packing.marks(start.folder, start.tokens)
    fit = finetune_data.fitting(taught, length)
    if config.balance == "none":
        fit = {"all": [one for own in fit.values() for one in own]}
    texts = {
        tag: batches.packed(
            [
                part
                for ids in packing.encode(start.tokens.tokenizer, own)
                for part in batches.plain(ids.tolist(), marks.start, marks.end, length)
            ],
            length,
        )
        for tag, own in (over.items() if config.replay or config.guard else ())
    }
    rows = {tag: batches.packed(own, length) for tag, own in fit.items()}
    size = config.batch_tokens // length
    once = len(rows) * max(map(len, rows.values()))  # as often as the language with most
    return batches.DialogueBatches(rows, texts, size, config.replay, marks.pad, config.seed), once
