"""Healing a quantised model, for the stages that do: `onggi quantize --effort best`, and `onggi distill` into an artifact.

The model is put together from the artifact's codes and steps, taught by the original through the one trainer, and written
out again in the same shards and layout. See `train.healing`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import languages as tags
from .. import ledger
from ..errors import OnggiError
from ..progress import progress, release_memory, say
from .training import each_language_once, step_seconds, steps_in

if TYPE_CHECKING:
    import torch

    from ..grids import Learned
    from ..models.checkpoint import Checkpoint, Pending
    from ..quantize.balance import Calibration
    from ..quantize.schemes import Scheme
    from ..train.healing import Gain

Tune = Literal["scales", "rounding"]
# A scale's share of itself that a step moves it by at most.
RATE = 1e-3
# Measurements of the held-out text in each part of a healing, beside the one before it.
_MEASURED = 8
# The share of the time that they take, about, where the steps follow from the time.
MEASURING = 0.2
# Tokens drawn at each held-out position for the measurements on the way; before and after are exact.
_DRAWN = 64
# Held-out positions in one pass.
_POSITIONS = 4096
# Rows of a table that are compared at a time.
_ROWS = 8192
# How fast shares of languages follow their damage, with minimax.
_POWER = 0.5


@dataclass(frozen=True)
class Course:
    """How it is done. steps: in all, of which with `rounding` the second half trains codes too; None: as many as
    `minutes` hold. at_once: sequences of a pass. fairness: minimax has the languages' weights follow the damage held
    out, which is measured by `damage`.
    """

    steps: int | None
    tune: Tune = "scales"
    minutes: float | None = None
    learning_rate: float = RATE
    warmup: int | None = None
    schedule: Literal["cosine", "wsd"] = "cosine"
    loss: str = "kl"
    cross_entropy: float = 0.0
    temperature: float = 1.0
    at_once: int = 16
    validate_every: int | None = None
    fairness: str = "balanced"
    damage: Literal["kl", "kl_per_passage", "relative"] = "kl"
    report_to: Sequence[str] = ()
    seed: int = 0


@dataclass(frozen=True)
class Healed:
    """files: of the weights, as they are now in the job's work. before, after: language → damage to the text held out, exact, in
    nats. parts: what was tuned → steps done, and the step whose weights were kept. lines: of the metrics.
    """

    files: list[str]
    before: dict[str, float]
    after: dict[str, float]
    parts: dict[str, dict[str, int]]
    lines: list[dict[str, Any]]


def check_memory(folder: Path, tune: Tune, device: Any, mend: str, tokens: int = 1024) -> None:
    """Raises OnggiError where original and quantised model side by side would not fit in memory; see `memory`."""
    from ..engines.transformers import memory_of
    from . import pretrain_plan

    of = pretrain_plan.shape_of(str(folder))
    if of is None:  # an architecture that names its sizes otherwise
        return
    total = memory_of(device)
    wanted = memory(of, tune, tokens)
    if wanted > total:
        raise OnggiError(
            f"{folder.name}: tuning it wants about {wanted / 2**30:.0f} GiB, for the original and the quantised model are both "
            f"in memory, and there are {total / 2**30:.0f}; {mend}."
        )


def memory(of: Any, tune: Tune, tokens: int = 1024) -> int:
    """Bytes at the peak, about; of: the model in numbers (`train.outlook.Shape`); tokens: of one pass."""
    import torch

    from ..train import outlook

    quantised = of.multiplied - of.vocabulary * of.hidden
    passing = outlook.memory(of, tokens, False, torch.float32) - 16 * of.parameters
    # The original; codes, values, and what values become in the products; numbers that codes are rounded from, with
    # their gradient and two moments.
    return int(passing + 4 * of.parameters + 9 * quantised + (20 * quantised if tune == "rounding" else 0))


def heal(
    job: ledger.Job,
    teacher: Any,
    made: Path,
    layers: Sequence[Mapping[str, Any]],
    source: Any,
    held_out: Calibration,
    dtype: Any,
    course: Course,
) -> Healed:
    """Heal the artifact in the folder `made`, whose quantised matrices are `layers` (as in its onggi.json), and write its weights
    to the job's work.

    teacher: engine of the model it was made from. source: of `train.tokens`, with its languages. dtype: of the matrix
    products. A killed run goes on from its last checkpoint. Raises OnggiError for an artifact that cannot be healed.
    """
    from ..train import attention

    student = Student(made, layers, teacher)
    if course.tune == "rounding":
        student.check_rounding(layers)
    attention.prepare(student.model, dtype)
    release_memory()
    place = job.partial / "healing"
    place.mkdir(exist_ok=True)
    damage = _Damage(teacher, held_out, course.damage, student.made_once)
    before = _kept(place / "before.json", lambda: damage.exact(student.model))
    work = _Work(job, teacher, student, source, damage, dtype, course, place)
    split = parts(work.steps(), course.tune)
    done: dict[str, dict[str, int]] = {}
    lines: list[dict[str, Any]] = []
    with progress(f"heal {job.out.name}", sum(map(len, split.values()))) as bar:
        for tune, steps in split.items():
            if tune == "rounding":
                student.free(teacher)
            found = work.train(tune, steps, bar)
            done[tune] = {"steps": found["steps"], "kept": found["kept"]}
            lines += [{"tuned": tune, **line} for line in found["lines"]]
    after = _kept(place / "after.json", lambda: damage.exact(student.model))
    worst = [max(found, key=found.__getitem__) for found in (before, after)]
    say(
        f"Held out, {tags.name(worst[0])} lost most before, {before[worst[0]]:.4f}, and now {tags.name(worst[1])}, "
        f"{after[worst[1]]:.4f}; mean {_mean(before):.4f} → {_mean(after):.4f}."
    )
    return Healed(student.write(job.work), before, after, done, lines)


def parts(steps: int, tune: Tune) -> dict[Tune, range]:
    """What is tuned → its steps of all; one each at least."""
    tunes: list[Tune] = ["scales"] if tune == "scales" else ["scales", "rounding"]
    count = len(tunes)
    total = max(steps, count)
    return {own: range(total * i // count, total * (i + 1) // count) for i, own in enumerate(tunes)}


def noted(
    healed: Healed, course: Course, tokens: Mapping[str, int], text: str, teacher: str
) -> dict[str, Any]:
    """What is kept of it in onggi.json. tokens: language → tokens of all its steps."""
    return {
        "teacher": teacher,
        "tune": course.tune,
        "loss": course.loss,
        "learning_rate": course.learning_rate,
        "fairness": course.fairness,
        "measure": course.damage,
        "text": text,
        "tokens": dict(tokens),
        "parts": healed.parts,
        "damage": {"before": healed.before, "after": healed.after},
    }


def set_apart(tokens: Any, passages: Mapping[str, Sequence[str]]) -> Calibration:
    """Passages of each language, whole up to a sequence's length, as held-out text. tokens: of `text.tokens`."""
    import torch

    from ..quantize.balance import Calibration
    from ..text.draw import LENGTH

    rows = [
        (number, [tokens.prefix, *tokens.encode(passage)[: LENGTH - 1]])
        for number, own in enumerate(passages.values())
        for passage in own
    ]
    width = max(len(row) for _, row in rows)
    ids = torch.full((len(rows), width), tokens.prefix, dtype=torch.int64)
    weights = torch.zeros(len(rows), width)
    for i, (_, row) in enumerate(rows):
        ids[i, : len(row)], weights[i, : len(row)] = torch.tensor(row), 1.0
    names, owner = tuple(passages), torch.tensor([number for number, _ in rows])
    counts = {name: int(weights[owner == number].sum()) for number, name in enumerate(names)}
    return Calibration(ids, weights, counts, names, owner)


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def _kept(file: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What was measured, kept in `file` for a run that goes on."""
    if not file.is_file():
        ledger.write_json(file, measure())
    return dict(ledger.read_json(file))


@dataclass
class _Work:
    """What is trained, by whom and on what; see `heal`."""

    job: ledger.Job
    teacher: Any
    student: Student
    source: Any
    damage: _Damage
    dtype: Any
    course: Course
    place: Path

    def steps(self) -> int:
        """How many in all."""
        if self.course.steps:
            return self.course.steps
        loss = self._loss(lambda: dict.fromkeys(self.source.languages, 1.0))
        return steps_in(
            self.course.minutes or 0,
            self.place / "steps",
            lambda: step_seconds(self.student.model, loss, self.source, self.course.at_once),
            measuring=MEASURING,
            least=each_language_once(self.source),
        )

    def _loss(self, weigh: Callable[[], Mapping[str, float]]) -> Any:
        from ..distill import lesson, names, signals
        from ..head import Divergence

        taught = lesson.Lesson(
            signals.Resident(self.teacher, self.dtype),
            Divergence(*names.loss(self.course.loss)),  # type: ignore[arg-type]
            list(self.source.languages),
            weigh,
            text=self.course.cross_entropy,
            temperature=self.course.temperature,
            dtype=self.dtype,
        )

        def loss(model: Any, batch: Any) -> Any:
            with self.student.made_once():
                return taught(model, batch)

        return loss

    def train(self, tune: Tune, part: range, bar: Any) -> dict[str, Any]:
        """Train one part of it, of the steps of the whole, to where the held-out text lost least. Returns steps done, the step
        kept, and lines.
        """
        from ..quantize import fairness
        from ..train import healing, trainer
        from ..train.schedule import Schedule

        course, own, steps = self.course, self.place / tune, len(part)

        def weigh() -> dict[str, float]:
            """Language → its weight in the loss, from what was measured so far."""
            shares = dict.fromkeys(self.damage.languages, 1.0)
            for _, found in made.damages if course.fairness == "minimax" else ():
                shares = fairness.moved(shares, found, _POWER)
            return {language: shares.get(language, 1.0) for language in self.source.languages}

        warmup = min(max(steps // 10, 1), 100) if course.warmup is None else course.warmup
        made = healing.Healer(
            self.student.model,
            self._loss(weigh),
            _From(self.source, part.start),
            Schedule(steps, course.learning_rate, warmup, course.schedule),
            trainer.Options(
                at_once=course.at_once,
                validate_every=course.validate_every or max(steps // _MEASURED, 1),
                report_to=course.report_to,
                name=self.job.out.name,
                seed=course.seed,
            ),
            own,
            bar,
            self.job.tick,
            self.damage,
        )
        done = own / "done.json"
        if done.is_file():
            bar.skip(steps)
        else:
            made.fit()
            kept = made.go_back_to_best()
            ledger.write_json(done, {"steps": made.state.global_step, "kept": kept, "lines": made.lines})
        found = dict(ledger.read_json(done))
        made.restore(found["kept"])
        self.student.model.eval()
        return found


@dataclass(frozen=True)
class _From:
    """A source (see `train.tokens`) from a step on."""

    source: Any
    first: int

    @property
    def size(self) -> int:
        """Sequences of a step."""
        size: int = self.source.size
        return size

    def rows(self, step: int, start: int, stop: int) -> Any:
        """Rows start to stop of a step."""
        return self.source.rows(self.first + step, start, stop)


class Student:
    """The model that an artifact in `made` holds, as it is trained; what it shares with the original is the original's.

    layers: as in onggi.json. Raises OnggiError for what it is not: an artifact of `onggi quantize`, of that original.
    """

    def __init__(self, made: Path, layers: Sequence[Mapping[str, Any]], teacher: Any):
        import torch

        from ..grids import Learned, Steps
        from ..models.checkpoint import Checkpoint
        from ..models.decoder import skeleton
        from ..models.names import Names
        from ..quantize.schemes import quantized_activations
        from ..train import healing

        self.source = Checkpoint(made)
        self._layout = _layout(made, self.source)
        decoder = skeleton(made, torch.float32)
        self.model: Any = decoder.model
        schemes = {layer["name"]: _scheme(made, layer, self.source) for layer in layers}
        by_tensor = {f"{name}.weight": name for name in schemes}
        others = [
            tensor
            for tensor in self.source.entries
            if tensor.rpartition(".")[0] not in schemes or tensor.endswith(".bias")
        ]
        names = Names(self.model, [*others, *by_tensor])
        # parameter → its matrices, from top to bottom, of a mixture expert after expert.
        self.pieces: dict[str, list[str]] = {}
        for parameter, tensor in names.one.items():
            if tensor in by_tensor:
                self.pieces[parameter] = [by_tensor[tensor]]
        for parameter, kinds in names.fused.items():
            if all(tensor in by_tensor for kind in kinds for tensor in kind):
                self.pieces[parameter] = [by_tensor[t] for each in zip(*kinds, strict=True) for t in each]
        tables = _tables(decoder)
        outside = [name for name in self.pieces if name in tables]
        if outside:
            raise OnggiError(
                f"{made}: its embedding is packed ({outside[0]}), and tuning it with that is not known here; quantise without "
                "--embedding."
            )
        self.schemes = schemes
        self.matrices: dict[str, Learned] = {}
        shapes = {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}
        for parameter, pieces in self.pieces.items():
            found = [self._layout.load(self.source, name, schemes[name]) for name in pieces]
            scheme = schemes[pieces[0]]
            zeros = [steps.zero for _, steps in found if steps.zero is not None]
            steps = Steps(torch.cat([steps.scale for _, steps in found]), torch.cat(zeros) if zeros else None)
            codes = torch.cat([codes for codes, _ in found])
            assert scheme.grid
            self.matrices[parameter] = Learned(scheme.grid, codes, steps, shapes[parameter])
        plain = {
            name: self.source.tensor(tensor)
            for name, tensor in names.one.items()
            if name in shapes and name not in self.pieces and name not in tables
        }
        for name in names.fused.keys() - self.pieces.keys():
            plain[name] = names.tensor(self.source, name)
        originals = dict(teacher.model.named_parameters(remove_duplicate=False))
        for name in tables & names.one.keys():
            stored = self.source.tensor(names.one[name])
            if name not in originals or not _same(stored, originals[name]):
                raise OnggiError(
                    f"{made}: was not made from {teacher.folder}: {name} is another. Name the model that it was made from."
                )
        activations: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            parameter.rpartition(".")[0]: functools.partial(quantized_activations, kind=kind)
            for parameter, pieces in self.pieces.items()
            if (kind := schemes[pieces[0]].activations)
        }
        self._names = names
        self.gains: dict[str, Gain] = healing.fill(
            self.model,
            self.matrices,
            plain,
            {name: originals[name] for name in tables if name in originals},
            activations,
        )
        self.model.to(teacher.device)
        for matrix in [*self.matrices.values(), *self.gains.values()]:
            matrix.requires_grad_(True)

    def made_once(self) -> Any:
        """See `train.healing.made_once`."""
        from ..train import healing

        return healing.made_once(self.matrices)

    def check_rounding(self, layers: Sequence[Mapping[str, Any]]) -> None:
        """Raises OnggiError where codes cannot be rounded anew."""
        for layer in layers:
            if layer.get("migration") is not None:
                raise OnggiError(
                    f"tune: rounding starts from the original's weights, and scales were moved into {layer['name']}'s (awq, "
                    "smoothing); tune scales alone."
                )
            if not hasattr(self.schemes[layer["name"]].grid, "symmetric"):
                raise OnggiError(
                    f"tune: rounding is for integers, and {layer['name']} is of floats; tune scales alone."
                )

    def free(self, teacher: Any) -> None:
        """Have codes trained from here on, too."""
        originals = dict(teacher.model.named_parameters(remove_duplicate=False))
        for parameter, matrix in self.matrices.items():
            matrix.free(originals[parameter].detach().reshape(matrix.codes.shape))

    def write(self, out: Path) -> list[str]:
        """Write the shards as they were, but for what was trained, to `out`; returns their names."""
        from ..models import checkpoint as checkpoints

        changed: dict[str, Pending] = {
            self._names.one[name]: checkpoints.pending(gain.stored()) for name, gain in self.gains.items()
        }
        for parameter, pieces in self.pieces.items():
            codes, steps = self.matrices[parameter].stored()
            size = len(codes) // len(pieces)
            for i, name in enumerate(pieces):
                rows = slice(i * size, (i + 1) * size)
                changed |= self._layout.store(name, self.schemes[name], codes[rows], steps.rows(rows))
        files: dict[str, list[str]] = {}
        for name, entry in self.source.entries.items():
            files.setdefault(entry.file.name, []).append(name)
        for file, names in files.items():
            checkpoints.write_shard(
                out / file,
                {
                    name: changed[name] if name in changed else checkpoints.copied(self.source, name)
                    for name in names
                },
            )
        return list(files)


def _same(stored: torch.Tensor, original: torch.Tensor) -> bool:
    """Whether a table is the same; some rows at a time, for in fp32 all of it would be much."""
    if stored.shape != original.shape:
        return False
    parts = zip(stored.split(_ROWS), original.split(_ROWS), strict=True)
    return all(bool((part.to(own.device).float() == own).all()) for part, own in parts)


def _layout(made: Path, source: Checkpoint) -> Any:
    """What reads and writes the artifact's matrices."""
    from ..quantize.formats import compressed_tensors, gptq

    layouts = {"compressed-tensors": compressed_tensors, "gptq": gptq}
    method = (source.config.get("quantization_config") or {}).get("quant_method")
    if method not in layouts:
        raise OnggiError(
            f"{made}: is quantised by {method}, which cannot be tuned; compressed-tensors and gptq can."
        )
    return layouts[method]


def _scheme(made: Path, layer: Mapping[str, Any], source: Checkpoint) -> Scheme:
    """The scheme of one matrix, with the group and the scales that it really has."""
    from ..grids import IntegerGrid
    from ..quantize.schemes import SCHEMES

    name = layer["name"]
    found = SCHEMES.get(layer["scheme"])
    if found is None or found.grid is None:
        raise OnggiError(f"{made}: {name} is quantised by {layer['scheme']}, which cannot be tuned.")
    if not isinstance(found.grid, IntegerGrid):
        return found
    scales = [
        source.entries[tensor]
        for leaf in ("weight_scale", "scales")
        if (tensor := f"{name}.{leaf}") in source.entries
    ]
    if not scales:
        raise OnggiError(f"{made}: holds no scales for {name}.")
    grid = dataclasses.replace(found.grid, group=layer["group"], dtype=scales[0].dtype)
    return dataclasses.replace(found, grid=grid)


def _tables(decoder: Any) -> set[str]:
    """The parameters that have a row for each token."""
    modules = [decoder.embedding, decoder.model.get_output_embeddings()]
    return {
        f"{name}.weight"
        for name, module in decoder.model.named_modules()
        if any(module is m for m in modules)
    }


class _Damage:
    """What a model lost to the original on the text held out, by language, in nats; asked often, it is estimated on tokens
    drawn once from the original (`head.sampled`).
    """

    def __init__(self, teacher: Any, held_out: Calibration, by: Any, made_once: Callable[[], Any]):
        from ..head import drawn
        from ..quantize import fairness

        self.languages = list(held_out.names)
        self._held_out, self._head, self._by, self._made_once = held_out, teacher.head, by, made_once
        self._there = (held_out.weights > 0)[:, 1:]
        self._owner = held_out.owner.unsqueeze(1).expand_as(self._there)[self._there]
        self._before = self._states(teacher.model)
        self._start = self._before[:, : self._there.shape[1]][self._there].to(teacher.device)
        self._tokens = drawn(self._start, self._head, _DRAWN, seed=0)
        counts = [int((self._owner == number).sum()) for number in range(len(self.languages))]
        self._scale = dict.fromkeys(self.languages, 1.0)
        if by == "kl_per_passage":
            self._scale = dict(zip(self.languages, map(float, counts), strict=True))
        elif by == "relative":
            nats = fairness.nats(self._before, self._head, held_out)
            self._scale = {language: 1 / nats[language] for language in self.languages}

    def _states(self, model: Any) -> torch.Tensor:
        """(sequences, length, hidden) fp32, on the CPU."""
        import torch

        from ..train.tokens import states_of

        ids, device = self._held_out.ids, next(model.parameters()).device
        was, rows = model.training, max(_POSITIONS // ids.shape[1], 1)
        model.eval()
        with torch.no_grad(), self._made_once():
            found = [
                states_of(model, {"ids": part.to(device)}, torch.float32).cpu() for part in ids.split(rows)
            ]
        model.train(was)
        return torch.cat(found)

    def __call__(self, model: Any) -> dict[str, float]:
        """Estimated; as a `Healer` measures."""
        from ..head import drawn_kl

        after = self._states(model)[:, : self._there.shape[1]][self._there].to(self._start.device)
        each = drawn_kl(self._start, after, self._head, self._tokens).cpu().double()
        return {
            language: round(float(each[self._owner == number].mean()) * self._scale[language], 6)
            for number, language in enumerate(self.languages)
        }

    def exact(self, model: Any) -> dict[str, float]:
        """Over the whole vocabulary."""
        from ..quantize import fairness

        found = fairness.damage(self._before, self._states(model), self._head, self._held_out, self._by)
        return {language: round(value, 6) for language, value in found.items()}
