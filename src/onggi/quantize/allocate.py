"""Bits where they matter: one choice for each unit, so that the worst language loses least within a budget.

Small divergences of single units add up to about that of all of them, so with D the damage of a choice for a unit
in a language, and S its size,

    minimise t     such that   Σ D_u,c,l · x_u,c ≤ t for every language l,   Σ S_u,c · x_u,c ≤ budget,

with x one choice of each unit: a small mixed-integer programme. `mean` minimises the languages' mean instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import OnggiError
from .sensitivity import Unit

Objective = Literal["worst", "mean"]
# Seconds that are given to proving that there is none better, and how far from that it may stop.
_SECONDS, _GAP = 60.0, 1e-3


@dataclass(frozen=True)
class Allocation:
    """choices: of each unit, in their order. bits: of all units together. damage: language → the sum of what
    the choices cost each by itself, nats a token.
    """

    choices: list[str]
    bits: float
    damage: dict[str, float]

    @property
    def worst(self) -> float:
        """Of the language that loses most."""
        return max(self.damage.values())

    @property
    def mean(self) -> float:
        """Over the languages."""
        return sum(self.damage.values()) / len(self.damage)


def of(
    units: Sequence[Unit], choices: Sequence[str], scales: Mapping[str, float] | None = None
) -> Allocation:
    """The allocation of given choices. scales: language → what its damage counts, 1 where None."""
    names = list(next(iter(units[0].damage.values())))
    return Allocation(
        list(choices),
        sum(unit.bits[choice] for unit, choice in zip(units, choices, strict=True)),
        {
            name: sum(unit.damage[c][name] for unit, c in zip(units, choices, strict=True))
            * (scales or {}).get(name, 1.0)
            for name in names
        },
    )


def allocate(
    units: Sequence[Unit], budget: float, objective: Objective, scales: Mapping[str, float] | None = None
) -> Allocation:
    """The choices of least damage that take at most `budget` bits in all. Raises OnggiError where even the
    smallest take more.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    choices = list(units[0].damage)
    least = sum(min(unit.bits.values()) for unit in units)
    if least > budget:
        weights = sum(unit.weights for unit in units)
        raise OnggiError(
            f"budget: {budget / weights:.3f} bits a weight are too few; the smallest of --choices "
            f"({', '.join(choices)}) take {least / weights:.3f}."
        )
    names = list(units[0].damage[choices[0]])
    count, width = len(units), len(choices)
    # (languages, units × choices), then one column for t.
    damage = np.array(
        [[unit.damage[c][n] * (scales or {}).get(n, 1.0) for unit in units for c in choices] for n in names]
    )
    # The solver's tolerances are absolute; divergences may be as small.
    damage /= damage.max() or 1.0
    bits = np.array([unit.bits[c] for unit in units for c in choices])
    one = np.kron(np.eye(count), np.ones((1, width)))
    t = np.zeros((1, 1))
    constraints = [
        LinearConstraint(np.hstack([one, np.zeros((count, 1))]), 1, 1),
        LinearConstraint(np.hstack([bits[None] / budget, t]), -np.inf, 1),
    ]
    if objective == "worst":
        constraints.append(LinearConstraint(np.hstack([damage, -np.ones((len(names), 1))]), -np.inf, 0))
        cost = np.r_[np.zeros(count * width), 1.0]
    else:
        cost = np.r_[damage.mean(0), 0.0]
    found = milp(
        cost,
        constraints=constraints,
        integrality=np.r_[np.ones(count * width), 0],
        bounds=Bounds(0, np.r_[np.ones(count * width), np.inf]),
        options={"time_limit": _SECONDS, "mip_rel_gap": _GAP},
    )
    if found.x is None:
        raise OnggiError(f"budget: no allocation found ({found.message}).")
    picked = found.x[:-1].reshape(count, width).argmax(1)
    return of(units, [choices[i] for i in picked], scales)
