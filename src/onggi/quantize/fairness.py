"""What quantising did to each language, and shares in calibration that follow it, so that the worst language leads.

The damage is seen where it is made: text that was held out of calibration goes through the pass at its side,
through the weights as they are quantised, and what reaches the output head is compared with what reaches it
without. So it costs a part of a pass more, and works for a model of any size. The shares of the languages are moved by
multiplicative weights: each by how much worse or better than the others its language came out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from .. import languages as tags
from .. import ledger
from ..engines.transformers import head_of
from ..head import Head, compare, score
from ..models import checkpoint as checkpoints
from ..models.checkpoint import Checkpoint
from ..models.decoder import Decoder
from ..models.names import Names
from ..progress import say
from .balance import Calibration
from .passes import Method, Pass
from .records import Layer

Measure = Literal["kl", "kl_per_passage", "relative"]

# Rounds at most, how far a share follows its damage at first, and the least gain of the worst language that
# counts as one: less is within what another draw of the held-out text would say.
ROUNDS, _POWER, _GAIN = 6, 1.5, 0.01
# No share leaves these bounds: what a language lacks that calibration hardly sees shows on other text, not
# on what is held out of the same one.
_LEAST, _MOST = 0.5, 8.0


@dataclass(frozen=True)
class Round:
    """Shares (mean 1) of the languages in calibration, and what quantising with them did to the held-out
    text of each.
    """

    shares: dict[str, float]
    damage: dict[str, float]

    @property
    def worst(self) -> str:
        """The language that lost most."""
        return max(self.damage, key=self.damage.__getitem__)


def head(source: Checkpoint, decoder: Decoder, device: torch.device) -> Head:
    """The output head on the weights of the checkpoint, in the dtype they have there, on `device`."""
    names = Names(decoder.model, source.entries)
    module: Any = decoder.model.get_output_embeddings()  # type: ignore[operator]
    own = decoder.name_of(module)
    if f"{own}.weight" not in names.one:  # tied
        own = decoder.name_of(decoder.embedding)
    weight = names.tensor(source, f"{own}.weight").to(device)
    biased = getattr(module, "bias", None) is not None
    bias = names.tensor(source, f"{own}.bias").to(device) if biased else None
    return replace(head_of(decoder.model), weight=weight, bias=bias)


def nats(states: Tensor, output: Head, held_out: Calibration) -> dict[str, float]:
    """language → nats a token that the model needs for the held-out text; states as for `damage`."""
    found = {}
    for number, name in enumerate(held_out.names):
        there, targets = _predicted(held_out, number)
        own = states[held_out.owner == number][:, : there.shape[1]][there]
        found[name] = float(score(own, output, targets).nll.double().mean())
    return found


def _predicted(held_out: Calibration, number: int) -> tuple[Tensor, Tensor]:
    """Of one language's sequences, the positions whose states predict a token, and these tokens: the last of a
    sequence predicts nothing of it, padding is none.
    """
    rows = held_out.owner == number
    there = (held_out.weights[rows] > 0)[:, 1:]
    return there, held_out.ids[rows][:, 1:][there]


def damage(
    before: Tensor, after: Tensor, output: Head, held_out: Calibration, by: Measure
) -> dict[str, float]:
    """language → what it lost between the states `before` and `after` (sequences, length, hidden), in nats.

    by: `kl`, the mean over tokens; `kl_per_passage`, the sum, comparable where the held-out text is the same in
    each language; `relative`, the sum over the nats that the model needs for the text itself.
    """
    found = {}
    for number, name in enumerate(held_out.names):
        there, targets = _predicted(held_out, number)
        states = [side[held_out.owner == number][:, : there.shape[1]][there] for side in (before, after)]
        first, second = compare(states, [output, output], targets)
        assert second.kl is not None
        total = float(second.kl.double().sum())
        size = {"kl": len(targets), "kl_per_passage": 1, "relative": float(first.nll.double().sum())}[by]
        found[name] = total / size
    return found


def moved(shares: Mapping[str, float], damage: Mapping[str, float], power: float) -> dict[str, float]:
    """`shares` after one step: each times (its damage / the mean)^power, within bounds, mean 1."""
    mean = sum(damage.values()) / len(damage) or 1.0
    found = {name: share * (damage[name] / mean) ** power for name, share in shares.items()}
    for _ in range(64):  # bounds and mean pull at each other; turns settle it
        middle = sum(found.values()) / len(found)
        found = {name: min(_MOST, max(_LEAST, share / middle)) for name, share in found.items()}
    return found


def search(
    attempt: Callable[[int, Mapping[str, float]], dict[str, float]], names: Sequence[str]
) -> tuple[list[Round], int]:
    """Rounds of `attempt` (number, shares → damage) and the number of the best, by its worst language.

    It starts from equal shares. Where a round does not lower the worst, the next starts from the best
    again, with half the step; after two such rounds the search ends.
    """
    rounds: list[Round] = []
    shares, power, best, failed = dict.fromkeys(names, 1.0), _POWER, 0, 0
    while True:
        found = Round(dict(shares), attempt(len(rounds), shares))
        rounds.append(found)
        say(f"Round {len(rounds)}: {tags.name(found.worst)} pays most, {found.damage[found.worst]:.4f}.")
        if len(rounds) > 1:
            before, after = rounds[best].damage[rounds[best].worst], found.damage[found.worst]
            if after > (1 - _GAIN) * before:
                failed, power = failed + 1, power / 2
            if after < before:
                best = len(rounds) - 1
        if failed == 2 or len(rounds) == ROUNDS:
            return rounds, best
        shares = moved(rounds[best].shares, rounds[best].damage, power)


def unquantized(
    source: Checkpoint, decoder: Decoder, held_out: Calibration, folder: Path, device: torch.device
) -> Tensor:
    """The states of `held_out` (sequences, length, hidden) that reach the head of the model as it is."""
    found: list[Tensor] = []
    alone = replace(held_out, watched=len(held_out.ids))
    nothing: Any = lambda *_: None  # noqa: E731
    Pass(source, decoder, nothing, nothing, folder, alone, nothing, device, Method()).run(0, found.append)
    return found[0]


@dataclass(frozen=True)
class Found:
    """layers: of the best of `rounds`, whose number is `best` and whose shards lie in `folder`."""

    folder: Path
    layers: list[Layer]
    rounds: list[Round]
    best: int


def minimax(
    solve: Callable[[Calibration, Path, Callable[[Tensor], None]], list[Layer]],
    plain: Callable[[Path], Tensor],
    output: Head,
    calibration: Callable[[Mapping[str, float]], Calibration],
    held_out: Calibration,
    by: Measure,
    folder: Path,
) -> Found:
    """Quantise in rounds, under `folder`, with shares that follow the damage to `held_out`; see `search`.

    calibration: shares → the text in which each language has its own. solve: quantises by a calibration into a
    folder, and hands on the watched states. plain: the same states of the model as it is. What a killed run has
    finished is not done again.
    """
    made: dict[int, list[Layer]] = {}
    found: dict[int, dict[str, float]] = {}

    def states(place: Path) -> Path:
        return place / "watched.safetensors"

    def write(file: Path, reached: Tensor) -> None:
        checkpoints.write_shard(file, {"states": checkpoints.pending(reached)})

    def attempt(number: int, shares: Mapping[str, float]) -> dict[str, float]:
        place = folder / f"round-{number}"
        place.mkdir(exist_ok=True)
        made[number] = solve(
            calibration(shares).watching(held_out), place, functools.partial(write, states(place))
        )
        record = place / "damage.json"
        if not record.is_file():
            after = load_file(states(place))["states"]
            ledger.write_json(record, damage(before, after, output, held_out, by))
        found[number] = dict(ledger.read_json(record))
        # Only the weights of the best so far are needed; a run that goes on knows the others by their records.
        best = min(found, key=lambda n: max(found[n].values()))
        for other in found.keys() - {best}:
            for file in (folder / f"round-{other}").glob("*.safetensors"):
                file.unlink()
        return found[number]

    folder.mkdir(exist_ok=True)
    if not states(folder).is_file():
        write(states(folder), plain(folder))
    before = load_file(states(folder))["states"]
    rounds, best = search(attempt, held_out.names)
    return Found(folder / f"round-{best}", made[best], rounds, best)
