"""`onggi distill`: a small model learns from a large one, and how much of its lead it took over in each language."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from .. import languages as tags
from .. import ledger
from ..distill import names
from ..errors import OnggiError
from ..languages import Languages
from ..ledger import Artifact
from ..progress import say
from . import distill_recovery, healing, pretrain_plan
from .base import Names, Plan, Stage, command
from .pretrain import PretrainConfig, train
from .pretrain_result import CURVES, Trained, released
from .pretrain_text import NO_PROBE, Material, packed_folder
from .training import Processes, carried_out

_REVISION = 2


@dataclass(frozen=True)
class DistillConfig:
    """Teach a small model what a large one knows: what it holds likely at every token, not the text alone.

    Both models have one tokenizer, or --loss spans compares what both cut alike. Each language has an equal share of the text, or with --fairness minimax more
    of the lesson the further its student is behind. The result is a checkpoint in bf16, with metrics.jsonl and
    curves.svg, and the share of the teacher's lead that was closed in each language. A killed run goes on from
    its last checkpoint. Several processes under torchrun each take their share of every step.

    Into an artifact of `onggi quantize` it is a recovery: the model that it was made from teaches it, scales and norms
    are tuned (--tune), and the result has the artifact's format and size, with the damage in each language before and
    after. It runs in one process; options for training weights are refused.
    """

    teacher: str
    """The teacher: a model by any of its names; or a folder that `onggi capture` made, which holds the text too."""
    into: str
    """The student to begin with: a hub id, a folder (`onggi reshape` makes small ones), package:NAME; or a quantised
    model that is to recover, a folder that `onggi quantize` made."""
    text: str | None = None
    """Text to learn on: a folder that `onggi pack` made; or a source as `onggi text` takes, of which each language
    gets an equal share and one passage in fifty is held out. Not the probe, which is for measuring."""
    languages: Languages | None = None
    """Languages to learn, as en,ko; default: all that the text has."""
    validation: str | None = None
    """Text to measure on, a source as `onggi text` takes. Default: what is held out; of packed text nothing is
    measured, so a recovery on it wants this."""
    loss: str = "kl"
    """How the student is compared with the teacher. kl (covers all that the teacher holds possible), reverse-kl
    (keeps to what it holds likely), jsd:B between them, skew:A (kl against a mixture with a share A of
    the teacher's, which bounds it). spans, for a teacher with another tokenizer: the likelihood of what lies
    between places where both cut the text."""
    cross_entropy: float = 0.0
    """The share of the loss that is the text's own next token, between 0 and 1."""
    temperature: float = 1.0
    """What both models' logits are divided by before they are compared; above 1 what is unlikely counts more."""
    on_policy: float = 0.0
    """The share of sequences whose second half the student writes itself, for its teacher to judge; what it writes in
    another language is left out. For plain text and a teacher that is here; each such token costs a pass."""
    tune: healing.Tune = "scales"
    """Of a quantised model. scales: scales (and zeros) and the weights of norms. rounding: in the second half of the
    steps the codes too, by straight-through rounding; it takes four times the memory."""
    fairness: Literal["balanced", "minimax"] = "balanced"
    """balanced: a token weighs the same in every language. minimax: the language whose student is furthest behind
    its teacher, on the text held out, weighs more, until none is left behind."""
    steps: int | None = None
    """Updates of the weights. Default: packed or captured text is read once; 240 of plain text."""
    tokens: int | None = None
    """Tokens to learn on, in place of --steps."""
    minutes: float | None = None
    """About how long to train, in place of --steps: the first seconds say how many steps that is."""
    batch_tokens: int | None = None
    """Tokens of one step. Default: 8192 of packed text, 1024 of plain."""
    length: int | None = None
    """Tokens of one sequence; default 256. Packed or captured text has a length already."""
    learning_rate: float | None = None
    """At its peak. Default: 3e-4; 1e-3 for a quantised model, whose scales move by shares of themselves."""
    warmup: int | None = None
    """Steps in which the learning rate rises from nothing; default: a tenth of them, 100 at most. A recovery that tunes
    codes too does so at the start of each half."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """cosine: falls all the way, to a tenth. wsd: stays at its peak and falls to nothing in the last fifth."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: for the matrices of the layers, with AdamW for all else. A recovery has adamw."""
    weight_decay: float = 0.0
    """Of the matrices of the layers; not for a recovery."""
    at_once: int | None = None
    """Sequences in one pass of a device. Default: 4096 tokens on a CPU, 32768 on a GPU."""
    checkpointing: bool = False
    """Compute the student's layers twice rather than keep what the backward pass needs; not for a recovery."""
    shard: bool = False
    """With several processes: each holds a part of the student's weights alone (FSDP2). The teacher is whole on each.
    Not for a recovery."""
    validate_every: int | None = None
    """Steps between two measures of the text held out, after which weights of languages follow. Default: a twentieth
    of them; more where measuring would take more than a tenth of the time. Of a recovery: an eighth of them, or of each
    of its two parts where codes are tuned too."""
    validation_passages: int = 24
    """Passages of each language that are measured, of --validation."""
    report_to: Names | None = None
    """Services that draw curves too: tensorboard, wandb, trackio, mlflow; each must be installed."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the matrix products of both models; weights are fp32. auto: bf16 where the processor multiplies in it."""
    seed: int = 0
    """Of the order in which text is drawn: the same as of `onggi pretrain`, so that both see the same tokens."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        names.loss(self.loss)
        if self.text == "probe":
            raise OnggiError(NO_PROBE)
        if self.stored and self.text is not None:
            raise OnggiError(
                f"text: {self.teacher} holds the text that it was captured on; leave --text out."
            )
        if self.loss == names.SPANS and (self.stored or packed_folder(self.text or "")):
            raise OnggiError(
                "loss: spans are cut from plain text by both tokenizers; name a source as --text, and a teacher that is here."
            )
        if not 0 <= self.on_policy <= 1:
            raise OnggiError(f"on_policy: {self.on_policy} is not a share between 0 and 1.")
        if self.on_policy and (self.stored or self.loss == names.SPANS or packed_folder(self.text or "")):
            raise OnggiError(
                "on_policy: what a student writes is judged by a teacher that is here, with its tokenizer, after plain text; "
                "leave --on_policy out."
            )
        if self.stored and self.languages:
            raise OnggiError(f"languages: those of {self.teacher} are all learnt; leave --languages out.")
        if self.teacher == self.into:
            raise OnggiError(f"into: {self.into} is the teacher itself; a student is another model.")
        if not 0 <= self.cross_entropy < 1:
            raise OnggiError(
                f"cross_entropy: {self.cross_entropy} is not a share below 1; `onggi pretrain` learns from text alone."
            )
        if not self.temperature > 0:
            raise OnggiError(f"temperature: {self.temperature} is not above 0; 1 leaves logits as they are.")
        if self.stored and self.temperature != 1:
            raise OnggiError(
                "temperature: a stored teacher has the one it was captured with; leave --temperature out."
            )
        self.training  # noqa: B018 (raises for what no training can have)
        if self.recovers:
            self.check_recovery()

    def check_recovery(self) -> None:
        """Raises OnggiError for options that a quantised model does not go with."""
        for name, wrong in (
            ("teacher", self.stored),
            ("loss", self.loss == names.SPANS),
            ("on_policy", self.on_policy > 0),
        ):
            if wrong:
                raise OnggiError(
                    f"{name}: {self.into} is quantised, and taught by the model that it was made from, at each token of a text; "
                    f"{getattr(self, name)} does not serve."
                )
        if self.validation is None and packed_folder(self.text or ""):
            raise OnggiError(
                "validation: a recovery ends where text held out no longer gains, and of packed text none is; name some."
            )
        for name in ("optimizer", "weight_decay", "checkpointing", "shard"):
            if getattr(self, name) != next(field.default for field in fields(self) if field.name == name):
                raise OnggiError(
                    f"{name}: is for training weights, and {self.into} is quantised; leave it out."
                )

    @property
    def stored(self) -> bool:
        """Whether the teacher is a folder that `onggi capture` made."""
        return (Path(self.teacher) / names.INDEX).is_file()

    @property
    def recovers(self) -> bool:
        """Whether the student is a quantised model. Raises OnggiError for one in a file of its own, which cannot be tuned."""
        from ..models import references

        if references.is_gguf(self.into):
            raise OnggiError(
                f"into: {self.into} is a GGUF, which cannot recover: its blocks are not trained. Recover a model in the "
                "compressed-tensors or gptq layout, or distil into the folder that the GGUF was made from."
            )
        file = Path(self.into) / "config.json"
        return file.is_file() and "quantization_config" in ledger.read_json(file)

    @property
    def training(self) -> PretrainConfig:
        """The training that this is, but for its loss."""
        validation, passages = self.validation, self.validation_passages
        if self.stored and validation is None and (Path(self.teacher) / names.HELD_OUT).is_file():
            # All that the teacher was measured on.
            validation, passages = str(Path(self.teacher) / names.HELD_OUT), sys.maxsize
        return PretrainConfig(
            text=self.text or self.teacher,
            init=self.into,
            validation=validation,
            languages=self.languages,
            steps=self.steps,
            tokens=self.tokens,
            minutes=self.minutes,
            batch_tokens=self.batch_tokens,
            length=self.length,
            learning_rate=self.learning_rate or (healing.RATE if self.recovers else 3e-4),
            warmup=self.warmup,
            schedule=self.schedule,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            at_once=self.at_once,
            checkpointing=self.checkpointing,
            shard=self.shard,
            validate_every=self.validate_every,
            validation_passages=passages,
            report_to=self.report_to,
            precision=self.precision,
            seed=self.seed,
        )


def inputs(config: DistillConfig) -> dict[str, Any]:
    """Fingerprints of teacher, student and text."""
    from .. import text
    from ..models import references

    # Not before: a recipe's capture may have yet to make the folder that the teacher is.
    if not config.stored and config.text is None:
        raise OnggiError(
            "text: is needed to teach on (--text debian:libreoffice-help, or a file), but for a teacher that "
            "`onggi capture` stored."
        )
    found: dict[str, Any] = {"into": references.fingerprint(config.into)}
    if config.stored:
        stored = ledger.artifact(Path(config.teacher))
        if stored is None:
            raise OnggiError(f"teacher: {config.teacher} is not whole; run its `onggi capture` again.")
        found["teacher"] = stored.fingerprint
    else:
        found["teacher"] = references.fingerprint(config.teacher)
    if config.text:
        found["text"] = text.fingerprint(config.text, config.languages)
    if config.validation:
        found["validation"] = text.fingerprint(config.validation, config.languages)
    return found


def distill(config: DistillConfig, out: Path) -> Artifact:
    """Write the student as it has become to `out`; see `DistillConfig`.

    Raises OnggiError for a model or text that is not sound, for two models with different tokenizers, and where the
    loss ceases to fall whatever is done.

    >>> from pathlib import Path
    >>> from onggi.languages import Languages
    >>> from onggi.stages import DistillConfig, ReshapeConfig, distill, reshape
    >>> small = reshape(ReshapeConfig("model", layers=1, choice="naive"), Path("half"))
    >>> made = distill(
    ...     DistillConfig(
    ...         "model", "half", "starter", Languages("ko,el,km"), steps=2, batch_tokens=64, length=32
    ...     ),
    ...     Path("student"),
    ... )
    >>> sorted(made.record["closed"])
    ['el', 'km', 'ko']
    """
    return carried_out(STAGE, config, out, lambda job, own: _distill(config, job, own))


def _distill(config: DistillConfig, job: ledger.Job, own: Processes) -> None:
    if config.recovers:
        distill_recovery.recover(config, job, command(STAGE, config, job.out))
    elif config.tune != "scales":
        raise OnggiError(f"tune: is for a quantised model, and {config.into} is none.")
    else:
        train(config.training, job, own, _Distilling(config, job, own))


class _Distilling:
    """What makes a training a distillation; see `pretrain.Course`."""

    def __init__(self, config: DistillConfig, job: ledger.Job, processes: Any):
        self._config, self._job, self._processes = config, job, processes
        self._teacher_bits: dict[str, float] = {}
        self._weights: tuple[int, dict[str, float]] = (-1, {})
        self._languages: list[str] = []
        self._shared: dict[str, float] = {}
        self._writing: Any = None

    def loss(self, engine: Any, material: Material, validation: Any, dtype: Any) -> tuple[Any, Any]:
        """The lesson, and its batches: with a stored teacher's entries beside the text."""
        from ..distill import lesson, signals, store
        from ..distill.on_policy import Writing
        from ..head import Divergence

        config = self._config
        if config.fairness == "minimax" and not validation:
            raise OnggiError(
                "fairness: minimax follows what is measured on text held out; name it with --validation."
            )
        self._languages = list(material.source.languages)
        source, temperature = material.source, config.temperature
        signal: signals.Signal
        if config.stored:
            captured = store.Captured(Path(config.teacher))
            temperature = captured.index["temperature"]
            if captured.draws and config.loss != "kl":
                raise OnggiError(
                    f"loss: {config.teacher} stores draws of the teacher's tail, which are for kl; capture it with "
                    "--tail bucket for another."
                )
            signal = signals.Stored(captured.draws)
            source = store.StoredBatches(material.source, captured)
            self._teacher_bits = captured.bits_of(validation)
        elif config.loss == names.SPANS:
            return self._aligned(engine, material, validation, dtype)
        else:
            teacher = self._resident()
            self._one_tokenizer(teacher, engine)
            if validation:
                self._teacher_bits = self._measured(teacher, validation)
            signal = signals.Resident(teacher, dtype)
        if config.fairness == "minimax" and not self._teacher_bits:
            raise OnggiError(
                f"fairness: {config.teacher} has not measured its teacher on {config.validation}; capture it with "
                "that --validation, or leave --validation out here."
            )
        if config.on_policy:
            self._writing = Writing(config.on_policy, engine.tokens, self._languages)
        made = lesson.Lesson(
            signal,
            Divergence(*names.loss(config.loss)),  # type: ignore[arg-type]
            self._languages,
            self._weigh,
            text=config.cross_entropy,
            temperature=temperature,
            dtype=dtype,
            writing=self._writing,
        )
        return made, source

    def _resident(self) -> Any:
        """The teacher's engine."""
        from ..engines.transformers import Engine
        from ..models import references

        if self._processes.first:
            references.resolve(self._config.teacher)
        self._processes.wait()
        return Engine(references.resolve(self._config.teacher), self._processes.device)

    def _aligned(self, engine: Any, material: Material, validation: Any, dtype: Any) -> tuple[Any, Any]:
        """The lesson of spans and its batches, for a teacher with a tokenizer of its own."""
        from ..distill import alignment
        from ..train.validation import Validation

        config, teacher = self._config, self._resident()
        if validation:
            window = min(teacher.window or 2048, 2048)
            self._teacher_bits = self._measured(
                teacher, Validation(teacher.tokens, material.held_out, window)
            )
        self._shared = alignment.shared(engine.tokens, teacher.tokens, material.held_out)
        words = ", ".join(f"{tags.name(tag)} {share:.0%}" for tag, share in self._shared.items())
        say(f"Of the student's tokens so many end where the teacher has a boundary too: {words}.")
        made = alignment.Spans(
            teacher,
            self._languages,
            self._weigh,
            text=config.cross_entropy,
            temperature=config.temperature,
            dtype=dtype,
        )
        return made, alignment.Aligned(material.source, engine.tokens, teacher.tokens)

    def _one_tokenizer(self, teacher: Any, student: Any) -> None:
        """Raises OnggiError where teacher and student do not share a tokenizer."""
        from ..text.vocabulary import fingerprint

        config = self._config
        if fingerprint(teacher.tokens.tokenizer) != fingerprint(student.tokens.tokenizer):
            raise OnggiError(
                f"teacher: {config.teacher} and {config.into} have different tokenizers: the same id is another token, "
                "and what one predicts says nothing of the other's next token. --loss spans compares them where both cut the "
                "text; better is a teacher of the student's family, or one vocabulary cut for both (`onggi reshape "
                "--keep_languages`)."
            )
        sizes = [engine.head.vocabulary for engine in (teacher, student)]
        if sizes[0] != sizes[1]:
            say(
                f"The teacher's output has {sizes[0]:,} tokens and the student's {sizes[1]:,}; with one tokenizer that is "
                f"padding, and the {min(sizes):,} that they share are compared."
            )

    def _measured(self, teacher: Any, validation: Any) -> dict[str, float]:
        """The teacher's bits per byte on the text held out. Kept: a run that goes on measures nothing anew."""
        kept = self._job.partial / "teacher.json"
        if not kept.is_file():
            found = validation(teacher.model)  # every process takes part
            if self._processes.first:
                ledger.write_json(kept, found)
                words = ", ".join(f"{language} {value:.3f}" for language, value in found.items())
                say(f"The teacher, bits per byte: {words}")
            self._processes.wait()
        return dict(ledger.read_json(kept))

    def begin(self, trainer: Any) -> None:
        """Watch its measurements: languages are weighed by them."""
        self._trainer = trainer

    def _weigh(self) -> Mapping[str, float]:
        from ..distill import fairness

        trainer = getattr(self, "_trainer", None)
        measured = fairness.measurements(trainer.lines) if trainer else []
        if self._weights[0] != len(measured):
            found = fairness.weights(self._config.fairness, self._languages, measured, self._teacher_bits)
            self._weights = (len(measured), found)
        return self._weights[1]

    def finish(self, job: ledger.Job, trained: Trained) -> None:
        """Write what is said of the student, and end the job."""
        from ..distill import fairness
        from ..models import references
        from ..report import card

        config, facts = self._config, trained.facts
        bits = {"before": trained.before, "after": trained.after} if trained.after else {}
        if self._writing and self._writing.written:
            words = ", ".join(
                f"{tags.name(tag)} {self._writing.strayed[tag]} of {count}"
                for tag, count in self._writing.written.items()
            )
            say(f"Of what the student wrote so much was in another language, and left out: {words}.")
        base = references.about(trained.start)
        closed = (
            fairness.closed(bits["before"], bits["after"], self._teacher_bits)
            if bits and self._teacher_bits
            else {}
        )
        lesson = {
            "teacher": config.teacher,
            "loss": config.loss,
            "cross_entropy": config.cross_entropy,
            "temperature": config.temperature,
            "on_policy": config.on_policy,
            "fairness": config.fairness,
            "weights": dict(self._weigh()),
            "bits_per_byte": {**bits, "teacher": self._teacher_bits},
            "closed": closed,
            **({"shared_boundaries": self._shared} if self._shared else {}),
            **self._licence(),
        }
        about = {
            **{key: base[key] for key in ("licence", "terms", "base_model") if base.get(key)},
            "base": {
                "name": references.parse(config.into).name,
                "source": config.into,
                "grid": base.get("grid"),
            },
            "made_by": "onggi distill",
            "grid": None,  # left behind; `moved` says how far
            "distilled": lesson,
            "continued": {
                **facts,
                "held_out": {when: trained.validation.nats(side) for when, side in bits.items()},
                "bits_per_byte": bits,
                "moved": trained.moved,
            },
        }
        job.finish(
            released(job, trained, about, card.distilled(about)),
            command=command(STAGE, config, job.out),
            parameters=facts["parameters"],
            tokens=facts["tokens"],
            moved=trained.moved,
            **{
                key: lesson[key]
                for key in ("bits_per_byte", "closed", "weights", "shared_boundaries")
                if key in lesson
            },
            **trained.speed,
        )

    def _licence(self) -> dict[str, str]:
        """The teacher's licence and terms, which may bind what is made with it."""
        from ..distill import store
        from ..models import references

        config = self._config
        about = (
            store.Captured(Path(config.teacher)).index["teacher"]
            if config.stored
            else references.about(references.resolve(config.teacher))
        )
        return {f"teacher_{key}": about[key] for key in ("licence", "terms") if about.get(key)}


def show(artifact: Artifact) -> None:
    """Print what it learnt, by language."""
    from rich.console import Console
    from rich.table import Table

    record = artifact.record
    if "damage" in record:
        return _show_recovered(artifact)
    table = Table()
    columns = ("language", "tokens", "bits per byte before", "after", "teacher", "of its lead closed")
    for column in columns:
        table.add_column(column, justify="left" if column == "language" else "right", no_wrap=True)
    bits: dict[str, dict[str, float]] = record["bits_per_byte"]
    tokens: dict[str, int] = record["tokens"]
    for tag in dict.fromkeys([*tokens, *(bits.get("after") or {})]):
        values = [
            f"{bits[side][tag]:.3f}" if tag in bits.get(side, {}) else ""
            for side in ("before", "after", "teacher")
        ]
        share = record["closed"].get(tag)
        closed = f"{share:.0%}" if share is not None else ""
        table.add_row(f"{tags.name(tag)} ({tag})", f"{tokens.get(tag, 0):,}", *values, closed)
    made = Console(highlight=False)
    made.print(table)
    speed = record["tokens_per_second"]
    made.print(
        f"{record['parameters']:,} parameters, {sum(tokens.values()):,} tokens"
        + (f", {speed:,.0f} a second" if speed else "")
        + f"; curves in {artifact.path / CURVES}."
    )


def _show_recovered(artifact: Artifact) -> None:
    """Print what a quantised model lost before and after, by language."""
    from rich.console import Console
    from rich.table import Table

    table, record = Table(), artifact.record
    for column in ("language", "tokens", "KL held out before", "after"):
        table.add_column(column, justify="left" if column == "language" else "right", no_wrap=True)
    for tag, before in record["damage"]["before"].items():
        tokens, after = record["tokens"].get(tag, 0), record["damage"]["after"][tag]
        table.add_row(f"{tags.name(tag)} ({tag})", f"{tokens:,}", f"{before:.4f}", f"{after:.4f}")
    Console(highlight=False).print(table)


def plan(config: DistillConfig) -> Plan:
    """About the tokens, memory and disk: the student's training and the teacher beside it."""
    if config.recovers:
        return distill_recovery.plan(config)
    found = pretrain_plan.plan(config.training)
    if config.stored or found.memory is None or (of := pretrain_plan.shape_of(config.teacher)) is None:
        return found
    return Plan(found.tokens, found.memory + 4 * of.parameters, found.disk)


def outlook(config: DistillConfig) -> dict[str, Any]:
    """What `onggi pretrain` would say of the student's training, and what the teacher adds to it; of a recovery see
    `distill_recovery`.
    """
    if config.recovers:
        return distill_recovery.outlook(config)
    found = pretrain_plan.outlook(config.training)
    share = 1.0 if config.stored else _teacher_share(config)
    return {
        **found,
        "teacher": "stored" if config.stored else "resident",
        "teacher_share": round(share, 4),
        "operations": found["operations"] * share,
        "hours": {name: hours * share for name, hours in found["hours"].items()},
        "memory": plan(config).memory or found["memory"],
    }


def _teacher_share(config: DistillConfig) -> float:
    """How many times the student's own operations a step is with its teacher's forward pass: 1 + 2T / 6S, with T and
    S the multiply-adds of each for a token.
    """
    from ..train.outlook import arithmetic

    sizes = []
    for model in (config.teacher, config.into):
        shape = pretrain_plan.shape_of(model)
        if shape is None:
            raise OnggiError(f"{model}: is not here yet; fetch it first with `onggi inspect {model}`.")
        sizes.append(arithmetic(shape, config.length or 256) / 6)
    return 1 + 2 * sizes[0] / (6 * sizes[1])


def dry_run(config: DistillConfig) -> str:
    """What `outlook` finds, to read."""
    if config.recovers:
        return distill_recovery.dry_run(config)
    return pretrain_plan.said(outlook(config)) + (
        "\nThe teacher is stored: no part of it is computed."
        if config.stored
        else f"\nThe teacher beside it makes a step {_teacher_share(config):.2f} times the student's own arithmetic "
        "(1 + 2T/6S), which the hours above have in them."
    )


STAGE = Stage(
    "distill", DistillConfig, distill, inputs, plan, {"teacher": None}, _REVISION, show, dry_run, outlook
)
