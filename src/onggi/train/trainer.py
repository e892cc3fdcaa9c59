"""The one trainer: transformers' `Trainer` with a loss argument, whatever is trained for.

Devices, accumulation, clipping, wrapping for many processes and the services that draw curves are the library's.
Ours are the loss (a function of model and batch, through `head/`, so that there are never tokens × vocabulary of
logits), what is read at each step (a `Source`, by step alone), the schedule, the checkpoints (see
`checkpoints`; the library's hold a pickle, and its choice of the last one trusts a number), the measure of
validation by language, and what happens when a training goes astray: it goes back to the last good
checkpoint, passes over the text that led there, halves its learning rate, and says so.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

from .. import ledger
from ..errors import OnggiError
from ..progress import Progress, say
from . import checkpoints, compiled, optimizers, sharding
from .schedule import Schedule
from .tokens import Batch, Loss, Source

# Seconds of work between checkpoints. One is three times the size of the fp32 weights.
CHECKPOINT_EVERY = 300.0
METRICS = "metrics.jsonl"
# So many times a run goes back before it gives up.
_ROLLBACKS = 3
# The mean loss of so many steps, so many nats over the lowest such mean, is no noise.
_WINDOW, _ASTRAY = 16, 1.5

# Model → language → bits per byte.
Validate = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True)
class Options:
    """weight_decay: of the matrices of layers. clip: the largest norm of all gradients together. at_once: sequences
    in one pass of a device. shard: whether each process holds a part of the weights alone. validate_every: steps between two measures of validation.
    """

    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = 0.0
    clip: float = 1.0
    at_once: int = 16
    checkpointing: bool = False
    shard: bool = False
    validate_every: int = 100
    report_to: Sequence[str] = ()
    name: str = "onggi"
    seed: int = 0


class _Objective(nn.Module):
    """Model and loss as one module, so that what wraps modules for many processes wraps the loss too."""

    def __init__(self, model: nn.Module, loss: Loss):
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, batch: Batch | None, measure: Callable[[nn.Module], Any] | None = None) -> Any:
        """The loss; or what `measure` says of the model, whose weights are together in here."""
        if measure is not None:
            return measure(self.model)
        return self._loss(self.model, batch)  # type: ignore[arg-type]


class Astray(Exception):
    """A training whose loss has ceased to fall or to be a number; says how."""


class _Watch:
    """Whether the loss has left its way down."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=_WINDOW)
        self.lowest = math.inf

    def add(self, loss: float, norm: float) -> None:
        """Take in a step. Raises Astray."""
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise Astray(f"the loss is {loss:.3g} and its gradients have a norm of {norm:.3g}")
        self.recent.append(loss)
        if len(self.recent) == _WINDOW:
            mean = sum(self.recent) / _WINDOW
            self.lowest = min(self.lowest, mean)
            if mean > self.lowest + _ASTRAY:
                raise Astray(f"the mean loss of {_WINDOW} steps is {mean:.3f}, and was {self.lowest:.3f}")

    @property
    def sound(self) -> bool:
        """Whether the loss is where it should be, so that a checkpoint is worth going back to."""
        return len(self.recent) < _WINDOW or sum(self.recent) / _WINDOW < self.lowest + _ASTRAY / 3

    def state(self) -> dict[str, Any]:
        return {
            "recent": list(self.recent),
            "lowest": self.lowest if math.isfinite(self.lowest) else None,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.recent = deque(state["recent"], maxlen=_WINDOW)
        self.lowest = math.inf if state["lowest"] is None else state["lowest"]


class Trainer(transformers.Trainer):
    """Train `model` in place: `Trainer(…).fit()`.

    loss: of the model and a batch of `source`. folder: for checkpoints and `metrics.jsonl`, a line a
    step and a line a validation; a run that was killed goes on from there and writes the same lines.
    validate: called every `options.validate_every` steps and at both ends. tick: after each checkpoint.
    """

    loss_is_scaled_for_ga = True  # the weights of a step add up to 1
    optimizer: Any
    lr_scheduler: Any
    control: Any

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        source: Source,
        schedule: Schedule,
        options: Options,
        folder: Path,
        bar: Progress,
        tick: Callable[[], None] = lambda: None,
        validate: Validate | None = None,
    ):
        device = next(model.parameters()).device
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=schedule.steps,
            learning_rate=schedule.learning_rate,
            max_grad_norm=options.clip,
            seed=options.seed,
            use_cpu=device.type == "cpu",
            # The library takes a backend's name for many processes, however many there are.
            ddp_backend="gloo" if device.type == "cpu" and int(os.environ.get("WORLD_SIZE", 1)) > 1 else None,
            ddp_find_unused_parameters=False,
            report_to=list(options.report_to) or "none",
            run_name=options.name,
            disable_tqdm=True,
            logging_strategy="no",
            logging_nan_inf_filter=False,
            eval_strategy="no",
            save_strategy="no",
            ignore_data_skip=True,
            remove_unused_columns=False,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # many GPUs are many processes
        share = _share(source.size, arguments.process_index, arguments.world_size)
        largest = -(-source.size // arguments.world_size)
        pieces = -(-largest // options.at_once)
        arguments.gradient_accumulation_steps = pieces
        arguments.per_device_train_batch_size = options.at_once
        if options.checkpointing:
            model.activation_checkpointing_enable()  # type: ignore[operator]
        objective = _Objective(model, loss)
        self.sharded = options.shard and arguments.world_size > 1
        if self.sharded:
            sharding.shard(objective, model)
            # The library's word for a model that takes care of its pieces itself.
            objective.is_distributed_loading_by_transformers = True  # type: ignore[assignment]
        super().__init__(model=objective, args=arguments, train_dataset=source, callbacks=[_Rhythm(self)])
        for callback in (transformers.PrinterCallback, transformers.ProgressCallback):
            self.remove_callback(callback)
        self.source, self.schedule, self.options = source, schedule, options
        self.folder, self.bar, self.tick, self.validate = folder, bar, tick, validate
        self.pieces = [
            (share.start + len(share) * i // pieces, share.start + len(share) * (i + 1) // pieces)
            for i in range(pieces)
        ]
        # The library wraps it.
        self._own_optimizer = optimizers.make(
            self.model, options.optimizer, schedule.learning_rate, options.weight_decay
        )
        self.watch = _Watch()
        self.passed_over, self.halved = 0, 0  # steps of text; times that the learning rate was
        self.lines: list[dict[str, Any]] = []
        self.seconds = 0.0  # of training, this process's own
        self.own_steps = 0
        self.bits: Mapping[str, float] = {}
        self._clock = time.monotonic()
        self._saved = time.monotonic()

    def fit(self) -> list[dict[str, Any]]:
        """Train to the end; returns the lines of `metrics.jsonl`.

        Raises OnggiError where it goes astray once more after it went back three times.
        """
        kept = checkpoints.last(self.folder)
        if kept:
            self._load(kept)
            self.passed_over, self.halved = kept.facts["passed_over"], kept.facts["halved"]
            self.bar.skip(kept.step)
        while True:
            try:
                self.train(resume_from_checkpoint=str(kept.path) if kept else None)
                return self.lines
            except Astray as error:
                kept = self._go_back(error)

    def _load(self, kept: checkpoints.Kept) -> None:
        """Metrics and watch as they were when `kept` was written."""
        self.watch.load(kept.facts["watch"])
        path = self.folder / METRICS
        written = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.lines = [json.loads(line) for line in written[: kept.facts["lines"]]]
        self.bits = next(
            (line["bits_per_byte"] for line in reversed(self.lines) if "bits_per_byte" in line), {}
        )
        self._rewrite()

    def _rewrite(self) -> None:
        if self.is_world_process_zero():
            with ledger.writing(self.folder / METRICS) as aside:
                aside.write_text("".join(map(_line, self.lines)), encoding="utf-8")

    def _note(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if self.is_world_process_zero():
            with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(_line(line))

    def _go_back(self, error: Astray) -> checkpoints.Kept:
        step = self.state.global_step
        kept = checkpoints.last(self.folder)
        if kept is None or self.halved == _ROLLBACKS:
            raise OnggiError(
                f"step {step} of {self.schedule.steps}: {error}, after going back {self.halved} times; a lower "
                "--learning_rate or a longer --warmup mends it."
            )
        self.halved += 1
        self.passed_over += step - kept.step
        say(
            f"Step {step}: {error}. Back to step {kept.step}, the text since then is passed over, and the learning "
            f"rate is halved."
        )
        self._load(kept)
        self._note({"step": kept.step, "went_back_from": step, "because": str(error)})
        self.bar.skip(kept.step - step)
        return kept

    def measured(self) -> dict[str, float]:
        """The validation of the model as it stands; every process must ask."""
        with torch.no_grad(), compiled.as_written(self.model.model):
            found = dict(self.model(None, self.validate))
        sharding.apart(self.model)
        return found

    def rounded(self, dtype: torch.dtype) -> None:
        """Round the weights to `dtype`; they stay fp32."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(parameter.to(dtype))

    def weights(self) -> dict[str, Tensor]:
        """The model's weights by name, whole, tied ones by each of their names; every process must ask."""
        found: dict[int, Tensor] = {}
        named = dict(self.model.model.named_parameters(remove_duplicate=False))
        for parameter in named.values():
            if id(parameter) not in found:
                tensor = sharding.whole(parameter.detach())
                found[id(parameter)] = tensor.cpu() if self.sharded else tensor
        return {name: found[id(parameter)] for name, parameter in named.items()}

    # What the library asks its subclasses for.

    def get_train_dataloader(self) -> Any:
        """Pieces of this process's share of each step, for ever."""
        return _Reader(self)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a piece; gradients are averaged over processes, and are to be summed."""
        return model(inputs) * self.args.world_size

    @contextlib.contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Add up the gradients of a step's passes here, and over processes only with the last."""
        self.model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.model.set_requires_gradient_sync(True)

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """Ours, over the model's own parameters."""
        if self.optimizer is None:
            self.optimizer = self._own_optimizer
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule, which the learning rate's halvings go into."""
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _factor(self, step: int) -> float:
        return self.schedule.factor(step) * 0.5**self.halved

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Bits per byte of each language, noted and passed on."""
        assert self.validate is not None
        began = time.monotonic()
        self.bits = self.measured()
        self._note({"step": self.state.global_step, "bits_per_byte": self.bits})
        measures = {f"eval_bits_per_byte/{language}": value for language, value in self.bits.items()}
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, {**measures})
        self.control.should_evaluate = False
        worst = sorted(self.bits.items(), key=lambda item: -item[1])
        say(
            f"Step {self.state.global_step}, bits per byte: "
            + ", ".join(f"{language} {value:.3f}" for language, value in worst)
        )
        self._clock += time.monotonic() - began
        return measures

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """A step's loss: watched, noted, shown, passed on to whoever draws curves. Raises Astray."""
        if "loss" not in logs:  # the summary at the end, which is all here already
            return
        step, loss, norm = self.state.global_step, logs["loss"], float(logs["grad_norm"])
        self._note({"step": step, "loss": loss, "gradients": norm, "learning_rate": logs["learning_rate"]})
        self.watch.add(loss, norm)
        now = time.monotonic()
        self.seconds, self.own_steps, self._clock = self.seconds + now - self._clock, self.own_steps + 1, now
        words = f"step {step} of {self.schedule.steps}, loss {loss:.3f}"
        if self.bits:
            worst = max(self.bits, key=lambda language: self.bits[language])
            mean = sum(self.bits.values()) / len(self.bits)
            words += f", bits per byte {mean:.2f}, {worst} {self.bits[worst]:.2f}"
        self.bar.step(1, words)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        first = self.is_world_process_zero()
        if first or self.sharded:
            checkpoints.save(
                self.folder,
                self.state.global_step,
                self.model,
                self._own_optimizer,
                {
                    "lines": len(self.lines),
                    "watch": self.watch.state(),
                    "passed_over": self.passed_over,
                    "halved": self.halved,
                },
                json.dumps(
                    {
                        "global_step": self.state.global_step,
                        "max_steps": self.schedule.steps,
                        "train_batch_size": self.options.at_once,
                    }
                ),
                first,
            )
        if first:
            self.tick()
        self._saved = self._clock = time.monotonic()

    def _due(self) -> bool:
        """Whether it is time for a checkpoint, by the first process's clock where all must take part."""
        due = time.monotonic() - self._saved >= CHECKPOINT_EVERY
        if self.sharded:
            said = torch.tensor(int(due), device=self.args.device)
            torch.distributed.broadcast(said, 0)
            due = bool(said)
        return due

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoints.restore(self._kept(resume_from_checkpoint), self.model, None)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        kept = self._kept(checkpoint)
        checkpoints.restore(kept, self.model, self._own_optimizer)
        self.lr_scheduler.last_epoch = kept.step
        for group, base in zip(self.optimizer.param_groups, self.lr_scheduler.base_lrs, strict=True):
            group["lr"] = base * self._factor(kept.step)
        self.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """With the optimizer's state."""

    def _load_scaler(self, checkpoint: str | None) -> None:
        """There is none: bf16 needs no scaling."""

    def _kept(self, path: str) -> checkpoints.Kept:
        facts = ledger.read_json(Path(path) / checkpoints.MARKER)
        return checkpoints.Kept(Path(path), facts["step"], facts)


class _Reader:
    """Where a step's batches come from; asked anew each step, so that going back needs nothing else."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer

    def __iter__(self) -> Iterator[Batch]:
        while True:
            step = self._trainer.state.global_step + self._trainer.passed_over
            for start, stop in self._trainer.pieces:
                yield self._trainer.source.rows(step, start, stop)


class _Rhythm(transformers.TrainerCallback):
    """When a step is noted, validation measured, a checkpoint written."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        trainer._clock = time.monotonic()
        if state.global_step == 0 and not trainer.lines:
            trainer.folder.mkdir(parents=True, exist_ok=True)
            trainer._rewrite()
            if trainer.validate:
                trainer.evaluate()
            trainer._save_checkpoint(trainer.model, None)  # to go back to

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        trainer, step = self._trainer, state.global_step
        ends = step >= trainer.schedule.steps
        control.should_log = True
        control.should_evaluate = trainer.validate is not None and (
            ends or step % trainer.options.validate_every == 0
        )
        control.should_save = not ends and trainer.watch.sound and trainer._due()
        return control


def _share(size: int, index: int, count: int) -> range:
    """The rows of a step that process `index` of `count` takes."""
    if size < count:
        raise OnggiError(f"batch_tokens: a step of {size} sequences is too little for {count} processes.")
    return range(size * index // count, size * (index + 1) // count)


def _line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
