"""The training of `onggi finetune`: adapters or all weights, on answers by our trainer or on preferences by trl's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .. import ledger
from ..progress import Progress, release_memory
from .finetune_plan import AT_ONCE
from .training import Processes, sequences_at_once, step_seconds, steps_in

if TYPE_CHECKING:
    from .finetune import FinetuneConfig
    from .finetune_material import Material

_MEASURES = 10  # times that held-out answers and text are measured, by default
# At the peak, by method and objective: adapters take ten times what all weights do.
_RATES = {"sft": (2e-4, 2e-5), "dpo": (2e-5, 1e-6), "simpo": (2e-5, 1e-6)}


def check(config: FinetuneConfig, processes: Processes) -> None:
    """OnggiError where what it takes is not here."""
    from ..train import adapters, preference

    if config.method == "qlora":
        adapters.check_quantized(processes.device)
    if config.adapts:
        adapters.imported()
    if config.objective != "sft":
        preference.imported()


@dataclass(frozen=True)
class Told:
    """What there is to say of a training. lines: of its metrics. facts: for the card and the record. speed: tokens a
    second, None for preferences. parameters: all of them, and those that are trained.
    """

    lines: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]
    speed: float | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """dtype: of the matrix products."""

    config: FinetuneConfig
    job: ledger.Job
    processes: Processes
    material: Material
    dtype: Any
    bar: Progress

    def __call__(self, engine: Any) -> tuple[Any, Told]:
        """Train the model of `engine`; returns the one whose weights are to be written, adapters merged."""
        from ..train import adapters, attention

        config, start, model = self.config, self.material.start, engine.model
        adapter, ours = None, config.objective == "sft"
        if config.method == "qlora":
            model = adapters.quantized(start.folder, self.processes.device)
        if ours:  # trl's reference is the model as it was, attention and all
            attention.prepare(model, self.dtype)
        if config.adapts:
            shape = adapters.Shape(
                config.rank, config.alpha or 2 * config.rank, config.dropout, config.method == "dora"
            )
            adapter = adapters.attach(model, shape, start.trained, config.seed, patched=ours)
        else:
            model.requires_grad_(True)
        if config.neftune:
            adapters.noise(model, config.neftune)
        parameters = {
            "all": sum(p.numel() for p in model.parameters()),
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        told = replace((self._learn if ours else self._prefer)(model, adapter), parameters=parameters)
        model.requires_grad_(False)
        if adapter is None:
            return model, told
        folder = self.job.work / adapters.FOLDER
        if self.processes.first:
            adapter.save(folder, config.model)
        self.processes.wait()
        if config.method == "qlora":  # into the weights as they were, not as 4 bits have them
            release_memory()
            return adapters.load(engine.model, folder).merged(), told
        return adapter.merged(), told

    @property
    def rate(self) -> float:
        """Learning rate at its peak."""
        return self.config.learning_rate or _RATES[self.config.objective][0 if self.config.adapts else 1]

    def _warmup(self, steps: int) -> int:
        return min(steps // 10, 100) if self.config.warmup is None else self.config.warmup

    def _learn(self, model: Any, adapter: Any) -> Told:
        from ..train import trainer
        from ..train.dialogues import AnswerLoss
        from ..train.schedule import Schedule
        from ..train.tokens import next_token
        from ..train.tuner import Guard, Tuner

        config, job, material, batches = self.config, self.job, self.material, self.material.batches
        assert batches is not None
        loss = next_token(self.dtype, rows=adapter.rows if adapter else None)
        at_once = sequences_at_once(config.at_once, material.length, self.processes.device, AT_ONCE)
        steps = self._steps(model, loss, at_once)
        self.bar.total = steps + 2 * material.measures.parts
        warmup = self._warmup(steps)
        if "tensorboard" in (config.report_to or ()):
            os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(job.out / "tensorboard"))
        made = Tuner(
            model,
            loss,
            batches,
            Schedule(steps, self.rate, warmup, config.schedule),
            trainer.Options(
                weight_decay=config.weight_decay,
                at_once=at_once,
                checkpointing=config.checkpointing,
                validate_every=config.measure_every or max(-(-steps // _MEASURES), 1),
                report_to=config.report_to or (),
                name=job.out.name,
                seed=config.seed,
            ),
            job.partial / "training",
            self.bar,
            job.tick if self.processes.first else lambda: None,
            material.validation,
            answers=AnswerLoss(material.held),
            guard=Guard(config.limits) if config.guard else None,
            best=config.keep == "best",
        )
        lines = made.fit()
        kept, done = made.go_back(), made.state.global_step
        facts: dict[str, Any] = {
            "steps": done,
            "kept_step": kept,
            "warmup": warmup,
            "tokens": batches.tokens(made.passed_over, made.passed_over + done),
        }
        if made.halved:
            facts |= {"went_back": made.halved, "passed_over": made.passed_over}
        spent = sum(own["tokens"] for own in batches.tokens(0, made.own_steps).values())
        return Told(lines, facts, round(spent / made.seconds, 1) if made.seconds else None)

    def _steps(self, model: Any, loss: Any, at_once: int) -> int:
        """How many steps."""
        if self.config.minutes is None:
            return self.material.steps(self.config)
        return steps_in(
            self.config.minutes,
            self.job.partial / "steps",
            lambda: step_seconds(model, loss, self.material.batches, at_once),
            self.processes,
        )

    def _prefer(self, model: Any, adapter: Any) -> Told:
        from ..train import preference

        config, job, material = self.config, self.job, self.material
        dialogues, folder = material.data.train, material.start.folder
        steps, pairs = material.steps(config), material.pairs(config)
        lines = preference.train(
            adapter.peft if adapter else model,
            folder,
            [(d.messages, d.chosen, d.rejected) for d in dialogues],
            preference.Settings(
                "dpo" if config.objective == "dpo" else "simpo",
                steps,
                pairs,
                self.rate,
                self._warmup(steps),
                config.beta or (0.1 if config.objective == "dpo" else 2.0),
                config.gamma,
                material.length,
                config.seed,
                self.dtype,
                reference=None if adapter or config.objective == "simpo" else folder,
            ),
            job.partial / "training",
            self.bar,
            job.tick if self.processes.first else lambda: None,
        )
        counts: dict[str, int] = {}
        for dialogue in dialogues:
            counts[dialogue.lang] = counts.get(dialogue.lang, 0) + 1
        return Told(lines, {"steps": steps, "pairs": counts, "pairs_a_step": pairs})
