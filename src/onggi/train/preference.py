"""Preference tuning by trl's trainers, with our checkpoints in place of theirs, which hold pickles.

DPO (Rafailov et al., arXiv 2305.18290) makes the chosen answer likelier against the rejected one than the model as it was
finds it; SimPO (Meng et al., arXiv 2405.14734) goes by the mean log-probability of a token, so that long answers are not
favoured, needs no reference, and wants a margin.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from .. import ledger
from ..errors import OnggiError, one_line
from ..progress import Progress
from . import checkpoints
from .trainer import CHECKPOINT_EVERY, METRICS

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Settings:
    """pairs: of one step. beta: how sharply answers are told apart. gamma: SimPO's margin, times beta as trl has it. length: tokens of
    prompt and answer at most. reference: the folder of the model to compare with, where it is not the trained one without its adapters.
    """

    objective: Literal["dpo", "simpo"]
    steps: int
    pairs: int
    learning_rate: float
    warmup: int
    beta: float
    gamma: float
    length: int
    seed: int
    dtype: torch.dtype
    reference: Path | None = None


def imported() -> Any:
    """trl. Raises OnggiError where it is not installed."""
    # trl asks for the hub's and other services' packages when it is imported; none is needed here.
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    try:
        import trl
    except ImportError as error:
        raise OnggiError("objective: dpo and simpo need trl; pip install 'onggi[finetune]'.") from error
    return trl


def train(
    model: Any,
    tokenizer: Path,
    pairs: Sequence[tuple[Messages, Messages, Messages]],
    settings: Settings,
    folder: Path,
    bar: Progress,
    tick: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Train `model` in place on `pairs` (prompt, chosen, rejected); returns the lines of metrics, one a step: loss, and
    `preferred`, the share of pairs whose chosen answer was the likelier by the objective's measure.

    tokenizer: a folder with tokenizer and chat template. folder: for checkpoints; a run that was killed goes on from the last.
    """
    import datasets
    import transformers

    trl = imported()
    tokens = transformers.AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    if tokens.pad_token is None:
        tokens.pad_token = tokens.eos_token
    rows = datasets.Dataset.from_list(
        [
            {"prompt": _plain(prompt), "chosen": _plain(chosen), "rejected": _plain(rejected)}
            for prompt, chosen, rejected in pairs
        ]
    )
    shared: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": settings.steps,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": settings.pairs,
        "learning_rate": settings.learning_rate,
        "warmup_steps": settings.warmup,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 1.0,
        "max_length": settings.length,
        "beta": settings.beta,
        "seed": settings.seed,
        "use_cpu": next(model.parameters()).device.type == "cpu",
        "bf16": settings.dtype == torch.bfloat16,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    with _silent():
        if settings.objective == "dpo":
            reference = settings.reference and transformers.AutoModelForCausalLM.from_pretrained(
                settings.reference, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
            )
            made = _kept(trl.DPOTrainer)(
                model,
                ref_model=reference,
                args=trl.DPOConfig(**shared),
                train_dataset=rows,
                processing_class=tokens,
            )
        else:
            from trl.experimental.cpo import CPOConfig, CPOTrainer

            arguments = CPOConfig(**shared, loss_type="simpo", cpo_alpha=0.0, simpo_gamma=settings.gamma)
            made = _kept(CPOTrainer)(model, args=arguments, train_dataset=rows, processing_class=tokens)
        made.begin(folder, bar, tick)
        kept = checkpoints.last(folder)
        if kept:
            made.lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()][
                : kept.facts["lines"]
            ]
            bar.skip(kept.step)
        with ledger.writing(folder / METRICS) as aside:
            aside.write_text("".join(json.dumps(line) + "\n" for line in made.lines), encoding="utf-8")
        try:
            made.train(resume_from_checkpoint=str(kept.path) if kept else None)
        except (
            ValueError,
            IndexError,
            KeyError,
        ) as error:  # trl's word for rows that it cannot make sense of
            raise OnggiError(f"objective: trl cannot train on these rows ({one_line(error)}).") from error
    lines: list[dict[str, Any]] = made.lines
    return lines


def _plain(messages: Messages) -> list[dict[str, str]]:
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _kept(kind: type[Any]) -> type[Any]:
    """A trainer of trl's that keeps checkpoints as ours does, and says what it does to our bar."""
    import transformers

    class Rhythm(transformers.TrainerCallback):
        def __init__(self, trainer: Any):
            self._trainer = trainer

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                self._trainer.note(state.global_step, logs)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            due = time.monotonic() - self._trainer.saved >= CHECKPOINT_EVERY
            control.should_save = due and state.global_step < args.max_steps
            return control

    class Kept(kind):
        def begin(self, folder: Path, bar: Progress, tick: Callable[[], None]) -> None:
            self.folder, self.bar, self.tick = folder, bar, tick
            self.lines: list[dict[str, Any]] = []
            self.saved = time.monotonic()
            folder.mkdir(parents=True, exist_ok=True)
            for callback in (transformers.PrinterCallback, transformers.ProgressCallback):
                self.remove_callback(callback)
            self.add_callback(Rhythm(self))

        def note(self, step: int, logs: Mapping[str, float]) -> None:
            line = {"step": step, "loss": logs["loss"], "learning_rate": logs.get("learning_rate")}
            self.lines.append(line | {"preferred": logs.get("rewards/accuracies")})
            with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.lines[-1]) + "\n")
            self.bar.step(1, f"step {step} of {self.args.max_steps}, loss {logs['loss']:.3f}")

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            if self.is_world_process_zero():
                state = json.dumps(
                    {
                        "global_step": self.state.global_step,
                        "max_steps": self.args.max_steps,
                        "train_batch_size": self.args.per_device_train_batch_size,
                        **{name: getattr(self.args, name) for name in ("logging_steps", "save_steps")},
                    }
                )
                facts = {"lines": len(self.lines)}
                checkpoints.save(
                    self.folder, self.state.global_step, self.model, _own(self.optimizer), facts, state
                )
                self.tick()
            self.saved = time.monotonic()

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            checkpoints.restore(_at(resume_from_checkpoint), self.model, None)

        def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
            if checkpoint is None:
                return
            kept = _at(checkpoint)
            checkpoints.restore(kept, self.model, _own(self.optimizer))
            for _ in range(kept.step):
                self.lr_scheduler.step()

        def _load_rng_state(self, checkpoint: str | None) -> None:
            """With the optimizer's state."""

    return Kept


def _at(path: str) -> checkpoints.Kept:
    facts = ledger.read_json(Path(path) / checkpoints.MARKER)
    return checkpoints.Kept(Path(path), facts["step"], facts)


def _own(optimizer: Any) -> Any:
    """The optimizer that accelerate wraps."""
    return getattr(optimizer, "optimizer", optimizer)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """trl and datasets draw bars and give advice whatever they are told."""
    import warnings

    import datasets

    was, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        datasets.logging.set_verbosity(level)
        if not was:
            datasets.enable_progress_bars()
