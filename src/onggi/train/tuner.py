"""The one trainer while it tunes on dialogues: it also measures held-out answers, and guards languages against forgetting."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import OnggiError
from ..progress import say
from . import checkpoints
from .dialogues import AnswerLoss, DialogueBatches
from .trainer import Trainer

# No more than so much of the rows is made plain text by a guard.
MOST = 0.5
HELD = "held"


@dataclass(frozen=True)
class Guard:
    """limits: language → how much its nats for a passage of held-out text may rise, as a share (0.02: by 2%)."""

    limits: Mapping[str, float]

    def broken(self, first: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
        """Language → rise, of those that rose by more than they may. Bits per byte do as well as nats for a
        passage: of the same passages one is the other times a number.
        """
        rises = {language: now[language] / first[language] - 1 for language in self.limits}
        return {language: rise for language, rise in rises.items() if rise > self.limits[language]}


class Tuner(Trainer):
    """As `Trainer`; source must be `DialogueBatches`. answers: of held-out dialogues. guard: where it is broken the
    share of plain text is doubled, and where that does not help the training stops; `go_back_to_held` then.
    """

    source: DialogueBatches

    def __init__(self, *arguments: Any, answers: AnswerLoss | None, guard: Guard | None, **options: Any):
        super().__init__(*arguments, **options)
        self.answers, self.guard = answers, guard
        self._first_share = self.source.share

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Bits per byte of held-out text, nats a token of held-out answers; then the guard."""
        measures = super().evaluate()
        if self.answers:
            found = self.model(None, self.answers)
            self._note({"step": self.state.global_step, "answers": found})
            own = {f"eval_answers/{language}": value for language, value in found.items()}
            self.control = self.callback_handler.on_log(self.args, self.state, self.control, {**own})
            words = ", ".join(f"{language} {value:.3f}" for language, value in found.items())
            say(f"Step {self.state.global_step}, nats a token of held-out answers: {words}")
            measures |= own
        if self.guard:
            self._watch_languages(self.guard)
        return measures

    def _watch_languages(self, guard: Guard) -> None:
        step = self.state.global_step
        first = next(line["bits_per_byte"] for line in self.lines if "bits_per_byte" in line)
        broken = guard.broken(first, self.bits)
        if not broken:
            if self.is_world_process_zero():
                state = json.dumps({"global_step": step})
                checkpoints.save(self.folder / HELD, step, self.model, self._own_optimizer, {}, state)
            return
        words = ", ".join(f"{language} by {rise:.1%}" for language, rise in broken.items())
        share = min(max(2 * self.source.share, 0.1), MOST)
        if self.source.share < MOST and self.source.replay:
            say(
                f"Step {step}: text got harder, {words}: {share:.0%} of the rows are plain text from here on."
            )
            begins = step + self.passed_over
            self._note({"step": step, "replay": share, "from": begins, "because": broken})
            self.source.raise_to(share, begins)
        else:
            say(f"Step {step}: text got harder, {words}, though half of the rows are plain text. Stopped.")
            self._note({"step": step, "stopped": broken})
            self.control.should_training_stop = True

    def go_back_to_held(self) -> int | None:
        """Where the guard is broken at the end: the weights of the last measurement at which it held, and its step.

        Raises OnggiError where it never held but at the start.
        """
        if not self.guard:
            return None
        first = next(line["bits_per_byte"] for line in self.lines if "bits_per_byte" in line)
        last = next(line["bits_per_byte"] for line in reversed(self.lines) if "bits_per_byte" in line)
        broken = self.guard.broken(first, last)
        if not broken:
            return None
        kept = checkpoints.last(self.folder / HELD)
        if kept is None or kept.step == 0:
            words = ", ".join(f"{language} by {rise:.1%}" for language, rise in broken.items())
            raise OnggiError(
                f"guard: broken at each measurement ({words} in the end); a lower --learning-rate, a smaller --rank or more "
                "--replay hold it, or a wider margin."
            )
        checkpoints.restore(kept, self.model, None)
        say(f"Back to step {kept.step}, the last at which the guard held.")
        self._note({"step": kept.step, "went_back_from": self.state.global_step, "because": "guard"})
        return kept.step

    def _load(self, kept: checkpoints.Kept) -> None:
        """With the shares of plain text that the lines tell of."""
        super()._load(kept)
        self.source.shares[:] = [(0, self._first_share)]
        for line in self.lines:
            if "replay" in line:
                self.source.raise_to(line["replay"], line["from"])
