"""The one trainer while it tunes on dialogues: it also measures held-out answers, and guards languages against forgetting."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
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
    share of plain text is doubled, and where that does not help the training stops. best: what is wanted in the end
    are the weights of the measurement at which the held-out answers were likeliest, each language as much as the
    others; else the last ones. `go_back` puts them back: those of no measurement at which the guard was broken.
    """

    source: DialogueBatches

    def __init__(
        self,
        *arguments: Any,
        answers: AnswerLoss | None,
        guard: Guard | None,
        best: bool = False,
        **options: Any,
    ):
        super().__init__(*arguments, **options)
        self.answers, self.guard, self.best = answers, guard, best
        self._first_share = self.source.share

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Bits per byte of held-out text, nats a token of held-out answers; then the guard."""
        measures = super().evaluate()
        began = time.monotonic()
        if self.answers:
            found = self.model(None, self.answers)
            self._note({"step": self.state.global_step, "answers": found})
            own = {f"eval_answers/{language}": value for language, value in found.items()}
            self.control = self.callback_handler.on_log(self.args, self.state, self.control, {**own})
            words = ", ".join(f"{language} {value:.3f}" for language, value in found.items())
            say(f"Step {self.state.global_step}, nats a token of held-out answers: {words}")
            measures |= own
        step = self.state.global_step
        broken = self._broken(step)
        chooses = self.guard or self.best
        if (
            chooses
            and step != self.schedule.steps
            and step == self._wanted()
            and self.is_world_process_zero()
        ):
            checkpoints.save(self.folder / HELD, step, self.model)
        if broken:
            self._replay_more(broken)
        self._clock += time.monotonic() - began
        return measures

    def _replay_more(self, broken: Mapping[str, float]) -> None:
        step = self.state.global_step
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

    def _measured(self, key: str) -> dict[int, Mapping[str, float]]:
        return {line["step"]: line[key] for line in self.lines if key in line}

    def _broken(self, step: int) -> dict[str, float]:
        bits = self._measured("bits_per_byte")
        return self.guard.broken(bits[0], bits[step]) if self.guard else {}

    def _wanted(self, among: Iterable[int] | None = None) -> int | None:
        """The step of the measurement whose weights are wanted, `among` those steps; None where the guard was broken at each."""
        measured = self._measured("bits_per_byte").keys()
        there = measured if among is None else measured & set(among)
        steps = [step for step in sorted(there) if step and not self._broken(step)]
        answers = self._measured("answers")
        if not self.best or not answers:
            return max(steps, default=None)

        def unlikely(step: int) -> float:
            # The log: a share that one language gains counts as much as the same share of another.
            return sum(math.log(max(nats, 1e-5)) for nats in answers[step].values())

        return min(steps, key=unlikely, default=None)

    def go_back(self) -> int:
        """Put back the weights that are wanted, if they are not the last; returns their step. With several processes the
        first, which writes them, has them alone.

        Raises OnggiError where the guard never held but at the start.
        """
        last = self.state.global_step
        if not self.is_world_process_zero():
            return last
        # Not all that was measured is there: two are kept, and one may be harmed.
        held = {kept.step: kept for kept in checkpoints.whole_ones(self.folder / HELD)}
        wanted = self._wanted([*held, last])
        if wanted is None:
            words = ", ".join(f"{language} by {rise:.1%}" for language, rise in self._broken(last).items())
            raise OnggiError(
                f"guard: broken at each measurement ({words} in the end); a lower --learning-rate, a smaller --rank or more "
                "--replay hold it, or a wider margin."
            )
        why = "answers" if self.best and self.answers else "guard"
        if wanted != last:
            checkpoints.restore(held[wanted], self.model, None)
            reason = {
                "answers": "at which held-out answers were likeliest",
                "guard": "the last at which the guard held",
            }
            say(f"Back to step {wanted}, {reason[why]}.")
            self._note({"step": wanted, "went_back_from": last, "because": why})
        elif why == "answers":
            self._note({"step": last, "because": why})
        return wanted

    def _load(self, kept: checkpoints.Kept) -> None:
        """With the shares of plain text that the lines tell of."""
        super()._load(kept)
        if self.is_world_process_zero():
            checkpoints.drop_after(self.folder / HELD, kept.step)
        self.source.shares[:] = [(0, self._first_share)]
        for line in self.lines:
            if "replay" in line:
                self.source.raise_to(line["replay"], line["from"])
