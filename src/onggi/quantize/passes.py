"""The pass of the calibration text through a decoder, a layer at a time, and what is done to each layer.

The model's own forward runs with no weights in it, once for each layer and batch; layers before the one in
hand hand on the states that were kept. As the text reaches a group of linear modules that share an input,
the second moments of that input are taken, the group is solved, and the pass goes on *through the quantised
weights*. So every matrix is solved for the inputs it will really get. Where the text is one batch, each layer
is passed once; where it is more, a group's moments are gathered over all batches first, each of which stops
there, so that memory does not grow with the text.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import OnggiError
from ..models.checkpoint import Checkpoint, Pending, copied, finite, pending
from ..models.decoder import Decoder, Shared, drop, fill, sharing
from ..models.names import Names
from ..progress import release_memory, say
from . import smoothing, solver
from .balance import Calibration
from .moments import same_size, second_moments
from .records import Layer
from .schemes import Scheme, quantized_activations
from .states import States, batches

log = logging.getLogger(__name__)

# Stores one quantised matrix: (name, scheme, codes, steps) → the tensors of the file.
Store = Callable[[str, Scheme, Tensor, Any], dict[str, Pending]]
# The scheme of a module by its name in the checkpoint; None leaves it as it is.
Choose = Callable[[str], Scheme | None]
Keep = Callable[[int, Mapping[str, Pending], list[Layer]], None]

# Second moments of experts are held for several at a time, up to so many numbers.
_EXPERTS = 1 << 27
# Tokens of each language that a search looks at, and an error is told by, and of all languages together.
_SEEN, _SEEN_ALL = 256, 2048
# Of a language with fewer, as may reach an expert, and over how many rows of a matrix an error is told.
_FEW, _ROWS = 16, 128


@dataclass(frozen=True)
class Method:
    """name: rtn, gptq or awq. damping: as in `solver.factor`."""

    name: str = "gptq"
    damping: float = 0.1


@dataclass
class Matrix:
    """A matrix to quantise: its name in the checkpoint, the weights as they stand there (or with a
    neighbour's scales moved into them), and the slice of a parameter that the pass computes with.
    """

    name: str
    scheme: Scheme
    original: Tensor
    computing: Tensor
    migration: float | None = None


class Counted(NamedTuple):
    """Of each token of an input (tokens,): its weight in the second moments, and the number of its language where it
    is among those that are looked at, else -1.
    """

    weights: Tensor
    language: Tensor

    def at(self, tokens: Tensor) -> Counted:
        """Those of some tokens."""
        return Counted(self.weights[tokens], self.language[tokens])


@dataclass
class Tap:
    """A place in a layer where one input reaches some matrices. expert: of a mixture, else None. seen: inputs of
    the tokens that are looked at, (tokens, columns), and their languages' numbers.
    """

    matrices: list[Matrix]
    expert: int | None = None
    moments: dict[str | None, Tensor] = field(default_factory=dict)  # by what is done to the activations
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    tokens: int = 0
    solved: bool = False


class Stop(Exception):
    """Ends a forward whose rest is not needed."""


class Pass:
    """The calibration text on its way; see the module's docstring."""

    def __init__(
        self,
        source: Checkpoint,
        decoder: Decoder,
        choose: Choose,
        store: Store,
        out: Path,
        calibration: Calibration,
        keep: Keep,
        device: torch.device,
        method: Method,
        room: int | None = None,
    ):
        self.source, self.decoder, self.choose, self.store = source, decoder, choose, store
        self.keep, self.device, self.method = keep, device, method
        self.names = Names(decoder.model, source.entries)
        self.ids = calibration.ids.to(device)
        self.weights = calibration.weights.to(device)
        self.calibration = calibration
        self.dtype = next(decoder.model.parameters()).dtype
        self.states = States(out, device)
        widest = max(
            [max(m.in_features, m.out_features) for m in decoder.linears(0).values()]
            + [int(p.shape[-1]) for p in decoder.layers[0].parameters() if p.dim() == 3],
            default=1,
        )
        sequences, length = calibration.ids.shape
        self.batches = batches(sequences, length, widest, **({"room": room} if room else {}))
        self.picked = self._pick()
        self.language = torch.full(self.ids.shape, -1, device=device)
        for number, mask in enumerate(self.picked if len(calibration.names) > 1 else ()):
            self.language[mask] = number
        self.singular: dict[str, float] = {}  # first matrix of a group → the damping it took
        self.unsmoothed: list[str] = []  # groups whose outliers could not be moved
        self.unscaled: list[str] = []  # experts' matrices, for which awq searches no scales
        self.unreached: list[str] = []
        self.index = 0
        self.action: Callable[..., Any] = lambda *_: None
        self.entering: tuple[Tensor, bool] | None = None

    def run(self, done: int, watch: Callable[[Tensor], None] | None = None) -> None:
        """Quantise the layers from `done` on. watch: is given what the output head gets of the calibration's
        watched sequences, (watched, length, hidden), before the last layer counts as done.
        """
        self.prepare()
        # Collecting after each layer would else go through all that the libraries have made: a quarter of a second each time.
        gc.freeze()
        try:
            self._layers(done, watch)
        finally:
            gc.unfreeze()
        self._report()

    def _layers(self, done: int, watch: Callable[[Tensor], None] | None) -> None:
        for index in range(done, len(self.decoder.layers)):
            self.index = index
            work = _LayerWork(self)
            work.quantize()
            if watch and index == len(self.decoder.layers) - 1:
                watch(self._watched())
            self.keep(index, work.tensors(), work.records)
            self.states.forget(index - 1)
            drop(work.layer)
            release_memory()

    def prepare(self) -> None:
        """What the passes need besides the layers: their hooks, what stands before them, the text's embedding."""
        for index, layer in enumerate(self.decoder.layers):
            layer.forward = self._visit(index, layer.forward)
        # Buffers outside the layers (rotary frequencies) follow the computation.
        for module in self.decoder.model.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                module._buffers[name] = buffer.to(self.device)
        self._fill_others()
        self._embed()

    def watches(self, batch: int) -> int:
        """How many of a batch's sequences are watched: its last."""
        rows = self.batches[batch]
        return min(max(0, rows.stop - (len(self.ids) - self.calibration.watched)), rows.stop - rows.start)

    def _watched(self) -> Tensor:
        """The watched sequences as the output head gets them, from the states that left the last layer."""
        last = len(self.decoder.layers) - 1
        found = []
        for batch, rows in enumerate(self.batches):
            count = self.watches(batch)
            if count:
                states, as_tuple = self.states.load(last, batch)
                found.append(self.finished((states, as_tuple), rows)[-count:].cpu())
        self.states.forget(last)
        return torch.cat(found)

    def onward(self, index: int, entering: tuple[Tensor, bool] | None, rows: slice) -> tuple[Tensor, bool]:
        """The sequences `rows` of the text through one layer as it stands. entering: their states and whether
        layers return them in a tuple; None before the first layer. The same of what leaves it.
        """
        self.index, self.entering = index, entering
        result: list[Any] = []

        def act(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            result.append(forward(*args, **kwargs))
            raise Stop

        self.action = act
        with contextlib.suppress(Stop), torch.no_grad():
            self.decoder.model(input_ids=self.ids[rows], use_cache=False)
        output = result[0]
        return (output[0], True) if isinstance(output, tuple) else (output, False)

    def finished(self, entering: tuple[Tensor, bool], rows: slice) -> Tensor:
        """States (sequences, length, hidden) of `rows` that left the last layer, through what stands between
        it and the head.
        """
        model: Any = self.decoder.model
        body = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        self.index, self.entering = len(self.decoder.layers), entering  # all of them hand on
        with torch.no_grad():
            states: Tensor = body(input_ids=self.ids[rows], use_cache=False).last_hidden_state
        return states

    def drive(self, batch: int, action: Callable[..., Any], *, short: int | None = None) -> Any:
        """Run the model up to the layer in hand and there `action(forward, args, kwargs)`, whose result is
        returned. short: only so many tokens of the batch's first sequence.
        """
        rows = self.batches[batch]
        ids = self.ids[rows] if short is None else self.ids[rows][:1, :short]
        self.entering = None
        if self.index:
            states, as_tuple = self.states.load(self.index - 1, batch, None if short is None else 1)
            self.entering = (states if short is None else states[:, :short]), as_tuple
        result: list[Any] = []

        def act(*arguments: Any) -> None:
            result.append(action(*arguments))
            raise Stop

        self.action = act
        try:
            with torch.no_grad():
                self.decoder.model(input_ids=ids, use_cache=False)
        except Stop:
            pass
        return result[0] if result else None

    def _visit(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def visit(*args: Any, **kwargs: Any) -> Any:
            if index < self.index and self.entering:
                states, as_tuple = self.entering
                return (states,) if as_tuple else states
            return self.action(forward, args, kwargs)

        return visit

    def _fill_others(self) -> None:
        """Read what stands before the layers besides the embedding: positions, a norm."""
        apart = [self.decoder.embedding, self.decoder.model.get_output_embeddings()]  # type: ignore[operator]
        for name, module in self.decoder.model.named_modules():
            own = dict(module.named_parameters(recurse=False))
            if not own or module in apart or name.startswith(f"{self.decoder.prefix}."):
                continue
            tensors = {leaf: self.names.tensor(self.source, f"{name}.{leaf}") for leaf in own}
            fill(module, tensors, self.dtype)
            module.to(self.device)

    def _embed(self) -> None:
        """Put just the calibration text's rows into the embedding; the ids into those rows."""
        embedding = self.decoder.embedding
        unique, self.ids = torch.unique(self.ids, return_inverse=True)
        name = self.names.one[f"{self.decoder.name_of(embedding)}.weight"]
        rows = self.source.rows(name, unique.cpu()).to(self.device, self.dtype)
        embedding.weight = nn.Parameter(rows, requires_grad=False)
        embedding.padding_idx = None  # type: ignore[assignment]

    def _report(self) -> None:
        if self.singular:
            say(
                f"Inputs nearly singular in {len(self.singular)} groups of modules (first: "
                f"{next(iter(self.singular))}); solved with a damping of up to {max(self.singular.values()):g}."
            )
        if self.unreached:
            say(
                f"Calibration never reached {len(self.unreached)} matrices (first: {self.unreached[0]}): they are "
                "rounded. More --tokens reach more experts."
            )
        if self.unsmoothed:
            say(
                f"Nothing before them can take up scales in {len(self.unsmoothed)} groups of modules (first: "
                f"{self.unsmoothed[0]}): quantised as they are."
            )
        if self.unscaled:
            say(
                f"AWQ has no scales for a mixture's experts: {len(self.unscaled)} matrices (first: {self.unscaled[0]}) are "
                "rounded. --method gptq solves them."
            )

    def seen(self, batch: int) -> list[Tensor]:
        """For each language positions (n,) of this batch's flattened tokens that a search looks at: the
        same tokens however the text is cut into batches.
        """
        rows = self.batches[batch]
        return [mask[rows].reshape(-1).nonzero().squeeze(1) for mask in self.picked]

    def _pick(self) -> list[Tensor]:
        """For each language which tokens (sequences, length) a search looks at, evenly spaced in its text."""
        owner = self.calibration.owner.to(self.device)
        most = max(1, min(_SEEN, _SEEN_ALL // len(self.calibration.names)))
        masks = []
        for language in range(len(self.calibration.names)):
            here = (owner.unsqueeze(1) == language) & (self.weights > 0)
            here[:, 0] = False
            positions = here.reshape(-1).nonzero().squeeze(1)
            mask = torch.zeros_like(here).reshape(-1)
            mask[positions[:: max(1, -(-len(positions) // most))]] = True
            masks.append(mask.reshape(here.shape))
        return masks


class _LayerWork:
    """One layer: its weights are read, and each group solved as its input comes by."""

    def __init__(self, owner: Pass):
        self.owner, self.index = owner, owner.index
        self.layer = owner.decoder.layers[self.index]
        self.place = f"{owner.decoder.layer_name(self.index)}."
        self.stored: dict[str, Pending] = {}
        self.changed: dict[str, Tensor] = {}  # parameters within the layer that took up scales
        self.records: list[Layer] = []
        self.linears: dict[str, Matrix] = {}
        self.experts: dict[str, dict[str, list[list[Matrix]]]] = {}  # module → leaf → expert → parts
        self.chosen = chosen(owner.decoder, owner.names, owner.choose, self.index)
        self.on_input: Callable[[Tap, Tensor, Counted], None] = lambda *_: None
        self._last: tuple[Tensor, dict[str | None, Tensor]] | None = None
        # Before its weights are there: the trace needs none.
        self.groups: list[Shared] = owner.drive(0, self._groups, short=8)
        self._read()

    def _read(self) -> None:
        owner = self.owner
        tensors = {
            name: owner.names.tensor(owner.source, self.place + name).to(owner.device)
            for name, _ in self.layer.named_parameters()
            if owner.names.has(self.place + name)
        }
        fill(self.layer, tensors, owner.dtype)
        for name, module in owner.decoder.linears(self.index).items():
            source = owner.names.one[f"{self.place}{name}.weight"]
            # The solver wants the weights as they stand in the file, not as the pass computes with them.
            matrix = self._matrix(source, tensors[f"{name}.weight"], module.weight.data)
            if matrix:
                self.linears[name] = matrix
        for name, mixture in owner.decoder.experts(self.index).items():
            parts_of = {
                leaf: owner.names.fused.get(f"{self.place}{name}.{leaf}", [])
                for leaf in ("gate_up_proj", "down_proj")
            }
            if not all(parts_of.values()):  # the checkpoint has no matrix for each expert
                continue
            self.experts[name] = {leaf: [] for leaf in parts_of}
            for leaf, sources in parts_of.items():
                found = self.experts[name][leaf]
                computing: Tensor = getattr(mixture, leaf).data
                for expert in range(len(computing)):
                    size = computing.shape[1] // len(sources)
                    cuts = [slice(i * size, (i + 1) * size) for i in range(len(sources))]
                    parts = [
                        self._matrix(
                            names[expert], tensors[f"{name}.{leaf}"][expert, cut], computing[expert, cut]
                        )
                        for names, cut in zip(sources, cuts, strict=True)
                    ]
                    found.append([part for part in parts if part])

    def _matrix(self, source: str, original: Tensor, computing: Tensor) -> Matrix | None:
        if source not in self.chosen:
            return None
        scheme = self.chosen[source].for_columns(original.shape[1])
        return Matrix(source.removesuffix(".weight"), scheme, original, computing)

    def tensors(self) -> dict[str, Pending]:
        """The layer's shard: norms and the like as they were (or with scales taken up), then matrices."""
        names, source = self.owner.names, self.owner.source
        changed = {names.one[self.place + name]: value for name, value in self.changed.items()}
        kept = left_as_is(source, names, self.place, self.chosen)
        return {
            name: pending(changed[name]) if name in changed else kept[name] for name in kept
        } | self.stored

    def quantize(self) -> None:
        """Solve every matrix of the layer and pass the text on through what became of it."""
        owner = self.owner
        groups = self.groups
        taps = [
            Tap([self.linears[name] for name in shared.names if name in self.linears]) for shared in groups
        ]
        smoothing.smooth(self, groups)
        if owner.method.name == "awq":
            for leaves in self.experts.values():
                owner.unscaled += [
                    part.name for found in leaves.values() for parts in found for part in parts
                ]
        first = {shared.names[0]: tap for shared, tap in zip(groups, taps, strict=True)}
        mixtures = {
            name: {leaf: [Tap(parts, i) for i, parts in enumerate(found)] for leaf, found in leaves.items()}
            for name, leaves in self.experts.items()
        }
        if len(owner.batches) == 1:
            self.on_input = self._solve_at_once
            self._pass_on(first, mixtures)
        else:
            for turn in self._in_turn(taps, mixtures):
                self._gather(turn, first, mixtures)
                for tap in turn:
                    if tap.tokens:
                        self._solve(tap)
            self.on_input = lambda *_: None
            self._pass_on(first, mixtures)
        for tap in [*taps, *(t for leaves in mixtures.values() for found in leaves.values() for t in found)]:
            if not tap.solved:  # never reached
                self._solve(tap)

    def _groups(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Shared]:
        """The modules that share an input; each alone where the layer cannot be traced."""
        replaced, self.layer.forward = self.layer.forward, forward
        try:
            found = sharing(self.layer, args, kwargs)
        except OnggiError as error:
            log.info("%s: %s", self.place, error)
            found = []
        finally:
            self.layer.forward = replaced
        known = {name for shared in found for name in shared.names}
        alone = [name for name in self.owner.decoder.linears(self.index) if name not in known]
        return found + [Shared([name], None) for name in alone]

    def _in_turn(self, taps: list[Tap], mixtures: Mapping[str, Mapping[str, list[Tap]]]) -> list[list[Tap]]:
        """Taps in the order in which the text comes by them, with as many experts at a time as fit."""
        turns = [[tap] for tap in taps if tap.matrices]
        for leaves in mixtures.values():
            matrices = [m for found in leaves.values() for tap in found for m in tap.matrices]
            width = max((matrix.original.shape[1] for matrix in matrices), default=1)
            at_once = max(1, _EXPERTS // width**2)
            for found in leaves.values():
                turns += [found[i : i + at_once] for i in range(0, len(found), at_once)]
        return turns

    def _gather(
        self, wanted: list[Tap], first: Mapping[str, Tap], mixtures: Mapping[str, Mapping[str, list[Tap]]]
    ) -> None:
        """The second moments of some taps' inputs over all batches, each of which ends there."""
        left: set[int] = set()

        def add(tap: Tap, inputs: Tensor, counted: Counted) -> None:
            if not any(tap is one for one in wanted):
                return
            self._add_moments(tap, inputs, counted)
            left.discard(id(tap))
            if not left:
                raise Stop

        self.on_input = add
        for batch in range(len(self.owner.batches)):
            left |= {id(tap) for tap in wanted}
            self.owner.drive(batch, self.forward(batch, first, mixtures))

    def _pass_on(self, first: Mapping[str, Tap], mixtures: Mapping[str, Mapping[str, list[Tap]]]) -> None:
        owner = self.owner
        last = self.index == len(owner.decoder.layers) - 1
        for batch in range(len(owner.batches)):
            if last and len(owner.batches) > 1 and not owner.watches(batch):
                continue
            output = owner.drive(batch, self.forward(batch, first, mixtures))
            states = output[0] if isinstance(output, tuple) else output
            if not finite(states):
                raise OnggiError(f"layer {self.index}: its outputs on the calibration text are not finite.")
            if not last or owner.watches(batch):
                owner.states.save(self.index, batch, states, isinstance(output, tuple))

    def forward(
        self, batch: int, first: Mapping[str, Tap], mixtures: Mapping[str, Mapping[str, list[Tap]]]
    ) -> Callable[..., Any]:
        """The layer's own forward, its inputs quantised where their scheme says so, `on_input` called with
        each group's.
        """
        rows = self.owner.batches[batch]
        counted = Counted(self.owner.weights[rows].reshape(-1), self.owner.language[rows].reshape(-1))

        def run(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            with _Hooks(self, first, mixtures, counted):
                return forward(*args, **kwargs)

        return run

    def inputs_for(self, scheme: Scheme, inputs: Tensor) -> Tensor:
        """`inputs` as a module of `scheme` computes with them; made once for modules that share them."""
        if scheme.activations is None:
            return inputs
        if self._last is None or self._last[0] is not inputs:
            self._last = inputs, {}
        made = self._last[1]
        if scheme.activations not in made:
            made[scheme.activations] = quantized_activations(inputs, scheme.activations)
        return made[scheme.activations]

    def _add_moments(self, tap: Tap, inputs: Tensor, counted: Counted) -> None:
        weights = counted.weights
        tap.tokens += int((weights > 0).sum())
        if not tap.tokens:
            return
        seen = counted.language >= 0
        if bool(seen.any()):
            tap.seen.append((inputs.reshape(-1, inputs.shape[-1])[seen], counted.language[seen]))
        for kind in {matrix.scheme.activations for matrix in tap.matrices}:
            scheme = next(m.scheme for m in tap.matrices if m.scheme.activations == kind)
            rows = self.inputs_for(scheme, inputs).reshape(-1, inputs.shape[-1])
            found = second_moments(rows, weights)
            tap.moments[kind] = tap.moments[kind] + found if kind in tap.moments else found

    def _solve_at_once(self, tap: Tap, inputs: Tensor, counted: Counted) -> None:
        self._add_moments(tap, inputs, counted)
        if tap.tokens:
            self._solve(tap)

    def _solve(self, tap: Tap) -> None:
        owner, tap.solved = self.owner, True
        parts: dict[Scheme, list[Matrix]] = {}
        for matrix in tap.matrices:
            parts.setdefault(matrix.scheme, []).append(matrix)
        for scheme, matrices in parts.items():
            assert scheme.grid
            stacked = torch.cat([matrix.original for matrix in matrices])
            moments = tap.moments.get(scheme.activations)
            if moments is None:
                moments = torch.zeros(1, 1, device=stacked.device).expand(2 * (stacked.shape[1],))
                owner.unreached += [matrix.name for matrix in matrices]
            try:
                solution = solver.solve(
                    stacked,
                    moments,
                    scheme.grid,
                    damping=owner.method.damping,
                    feedback=owner.method.name == "gptq",
                )
            except OnggiError as error:
                raise OnggiError(f"{matrices[0].name}: {error}.") from error
            if solution.damping > owner.method.damping:
                owner.singular[matrices[0].name] = solution.damping
            errors = self._errors(tap, scheme, stacked, solution)
            said = ", ".join(f"{name} {error:.5f}" for name, error in (errors or {}).items())
            log.info(
                "%s: %.5f (rounding %.5f) %s",
                matrices[0].name,
                solution.error,
                solution.rounding_error,
                said,
            )
            start = 0
            for matrix in matrices:
                stop = start + len(matrix.original)
                codes, steps = solution.codes[start:stop], solution.steps.rows(slice(start, stop))
                self.stored |= owner.store(matrix.name, scheme, codes, steps)
                self.records.append(
                    Layer(
                        matrix.name,
                        scheme.group,
                        solution.error,
                        solution.rounding_error,
                        solution.damping,
                        scheme.name,
                        matrix.migration,
                        tap.tokens if tap.expert is not None or not tap.tokens else None,
                        errors,
                    )
                )
                matrix.computing.copy_(scheme.grid.decode(codes, steps))
                matrix.original = matrix.original[:0]  # its memory is free again
                start = stop
        tap.moments.clear()
        tap.seen.clear()

    def _errors(
        self, tap: Tap, scheme: Scheme, weight: Tensor, solution: solver.Solution
    ) -> dict[str, float] | None:
        """language → relative output error, ‖X(W − Ŵ)ᵀ‖² / ‖XWᵀ‖², on the tokens X of it that are looked at, brought to the
        same size as in the second moments, over evenly spaced rows of W.
        """
        if not tap.seen:
            return None
        assert scheme.grid
        inputs = same_size(
            quantized_activations(torch.cat([rows for rows, _ in tap.seen]), scheme.activations)
        )
        language = torch.cat([numbers for _, numbers in tap.seen])
        part = slice(None, None, -(-len(weight) // _ROWS))
        exact = weight[part].float()
        wrong = exact - scheme.grid.decode(solution.codes[part], solution.steps.rows(part))
        energy, error = ((inputs @ side.T).square().sum(dim=1).double() for side in (exact, wrong))
        found = {}
        for number, name in enumerate(self.owner.calibration.names):
            own = language == number
            if int(own.sum()) >= _FEW:
                share = float(error[own].sum() / energy[own].sum().clamp_min(1e-30))
                found[name] = float(f"{share:.4g}")  # there are languages × matrices of them in onggi.json
        return found or None


class _Hooks:
    """While it is open, inputs of the layer's matrices go by `work`."""

    def __init__(
        self,
        work: _LayerWork,
        first: Mapping[str, Tap],
        mixtures: Mapping[str, Mapping[str, list[Tap]]],
        counted: Counted,
    ):
        self.work, self.first, self.mixtures, self.counted = work, first, mixtures, counted
        self.handles: list[Any] = []
        self.replaced: list[tuple[Any, Callable[..., Any]]] = []

    def __enter__(self) -> None:
        modules = dict(self.work.layer.named_modules())
        for name in {**self.first, **self.work.linears}:
            self.handles.append(modules[name].register_forward_pre_hook(self._enter(name)))
        for name, leaves in self.mixtures.items():
            module: Any = modules[name]
            self.replaced.append((module, module.forward))
            module.forward = self._experts(module, leaves)

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
        for module, forward in self.replaced:
            module.forward = forward

    def _enter(self, name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if name in self.first and self.first[name].matrices:
                self.work.on_input(self.first[name], inputs[0], self.counted)
            matrix = self.work.linears.get(name)
            if matrix is None or matrix.scheme.activations is None:
                return None
            return (self.work.inputs_for(matrix.scheme, inputs[0]), *inputs[1:])

        return hook

    def _experts(self, module: Any, leaves: Mapping[str, list[Tap]]) -> Callable[..., Tensor]:
        """The forward of fused experts, one expert after the other, as transformers' own plain one."""

        def forward(hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
            # hidden: (tokens, hidden); chosen, shares: (tokens, experts per token)
            reached = []
            for expert in range(len(module.gate_up_proj)):
                token, rank = torch.where(chosen == expert)
                reached.append((token, rank, hidden[token], self.counted.at(token)))
            # All gates first: where their moments are gathered, the text stops here.
            for tap, (_, _, rows, counted) in zip(leaves["gate_up_proj"], reached, strict=True):
                self.work.on_input(tap, rows, counted)
            output = torch.zeros_like(hidden)
            inner = []
            for tap, (_, _, rows, counted) in zip(leaves["down_proj"], reached, strict=True):
                expert = tap.expert or 0
                inner.append(module._apply_gate(nn.functional.linear(rows, module.gate_up_proj[expert])))
                self.work.on_input(tap, inner[-1], counted)
            for expert, (token, rank, _, _) in enumerate(reached):
                made = nn.functional.linear(inner[expert], module.down_proj[expert])
                output.index_add_(0, token, made * shares[token, rank, None].to(made.dtype))
            return output

        return forward


def chosen(decoder: Decoder, names: Names, choose: Choose, index: int) -> dict[str, Scheme]:
    """The tensors of one layer that are to be quantised, each with its scheme; not those whose rows it does not fit.

    Raises OnggiError for a scheme that experts cannot be computed in.
    """
    place = f"{decoder.layer_name(index)}."
    found: dict[str, Scheme] = {}
    for name, module in decoder.linears(index).items():
        source = names.one.get(f"{place}{name}.weight", f"{place}{name}.weight")
        scheme = choose(source.removesuffix(".weight"))
        if scheme and scheme.fits(module.in_features):
            found[source] = scheme
    for name, mixture in decoder.experts(index).items():
        # transformers unpacks all experts by one scheme, so their groups are as the narrowest allows.
        widths = sorted({int(parameter.shape[2]) for parameter in mixture.parameters()})
        for leaf in ("gate_up_proj", "down_proj"):
            for source in (t for part in names.fused.get(f"{place}{name}.{leaf}", []) for t in part):
                scheme = choose(source.removesuffix(".weight"))
                if scheme is None:
                    continue
                if scheme.activations or not getattr(scheme.grid, "symmetric", False):
                    raise OnggiError(
                        f"{source}: scheme {scheme.name} does not work for a mixture's experts: transformers "
                        "computes them fused, with activations as they are and without zero points; choose a "
                        "symmetric scheme of weights alone (w4a16-g128, w8a16)."
                    )
                try:
                    for width in widths:
                        scheme = scheme.for_columns(width)
                except OnggiError as error:
                    raise OnggiError(f"{source}: {error}") from error
                found[source] = scheme
    return found


def left_as_is(
    source: Checkpoint, names: Names, prefix: str, quantized: Mapping[str, Scheme]
) -> dict[str, Pending]:
    """The tensors of parameters under `prefix` that are not quantised, as they are and in their order."""
    mine = {tensor for tensor in names.within(prefix) if tensor not in quantized}
    return {name: copied(source, name) for name in source.entries if name in mine}
