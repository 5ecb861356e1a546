r"""Solvers whose coefficients differ from step to step: any way to spend n calls that is linear in the velocities.

Call i is made at time $\tau_i$ and at the point $y_i = w_{i,0}\,x_0 + \sum_{j<i} w_{i,j+1} u_j$ with the velocities
$u_j$ called for before, and the end is one more such sum. Runge-Kutta, Adams and exponential methods on any grid are
of this form, and `written_out` finds their coefficients; `pathline.solvers.tuning` learns better ones.

Reference: Shaul et al., "Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models",
arXiv:2403.01329; Shaul et al., "Bespoke Solvers for Generative Flow Models", arXiv:2310.19075.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pathline.paths import AffinePath, converted
from pathline.solvers.loop import solve
from pathline.typing import Field, Solver

APART = 1e-6
"""Least distance of two nodes of a tuned grid."""

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Tuned:
    """A solver with its grid, made for one model and one number of calls: plain numbers, as `tune` returns them.

    It is a solver for `pathline.solve` on its own ``grid`` and on no other. It calls the field at ``times`` only, so
    open ends need no closing call. Inner states of a solve are the points at which the field is called.

    Attributes:
        times: of the n calls, in order, in [0, 1].
        rows: n + 1 rows; row i has weights of x0 and the first i velocities, and makes the point of call i, the last
            row the end.
        base: the untuned solver and grid that it began from.
        learned: whether anything was gained by tuning; if not, the numbers are those of ``base``.
        error: its RMSE to the converged solution, mean over the held-out noises, in the field's units.
        untuned: that of the best untuned solver and grid.
        each: network calls that one call of the field costs, 2 for a guided one.
    """

    times: tuple[float, ...]
    rows: Rows
    base: str
    learned: bool
    error: float
    untuned: float
    each: int = 1

    name = "tuned"
    calls = 1
    keeps_off_ends = True

    def __post_init__(self) -> None:
        n = len(self.times)
        lengths = [len(row) for row in self.rows]
        if lengths != list(range(1, n + 2)):
            raise ValueError(f"rows must have 1 to {n + 1} weights for {n} times, got {lengths}")
        if not all(a <= b for a, b in pairwise((0.0, *self.times, 1.0))):
            raise ValueError(f"times must be in order in [0, 1], got {self.times}")

    @property
    def nfe(self) -> int:
        return len(self.times) * self.each

    @property
    def grid(self) -> Tensor:
        """The nodes to solve on: 0, the times of all calls but the first, equal ones a little apart, and 1."""
        nodes = [0.0]
        for i, t in enumerate(self.times[1:], start=1):
            nodes.append(min(max(t, nodes[-1] + APART), 1 - (len(self.times) - i) * APART))
        return torch.tensor([*nodes, 1.0], dtype=torch.float64)

    def begin(self, nodes: Sequence[float]) -> "TunedRun":
        """A fresh memory for one solve.

        Raises:
            ValueError: nodes other than those of ``grid``.
        """
        if list(nodes) != self.grid.tolist():
            n = len(self.times)
            raise ValueError(f"grid must be the tuned solver's own, of {n} steps from 0 to 1: pass solver.grid")
        return TunedRun(self)

    def step(self, field: Callable[[Tensor, float], Tensor], x: Tensor, t: float, s: float) -> Tensor:
        """The first of one step only, as `begin` checks."""
        return self.begin([t, s]).step(field, x, t, s)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Tuned":
        return cls(**{**values, "times": tuple(values["times"]), "rows": tuple(map(tuple, values["rows"]))})


class TunedRun:
    """The memory of one solve: x0 and all velocities."""

    def __init__(self, solver: Tuned) -> None:
        self.solver, self.values = solver, list[Tensor]()

    def step(self, field: Callable[[Tensor, float], Tensor], x: Tensor, t: float, s: float) -> Tensor:
        if not self.values:
            self.values.append(x)
            x = combined(self.solver.rows[0], self.values)
        i = len(self.values)
        self.values.append(field(x, self.solver.times[i - 1]))
        return combined(self.solver.rows[i], self.values)


def combined(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = torch.add(total, value, alpha=weight)
    return total


class _Recorder:
    """A field whose k-th call returns the k-th unit vector and remembers the point where it was made."""

    def __init__(self, field: Field, path: AffinePath, calls: int) -> None:
        self.open_ends = getattr(field, "open_ends", {})
        self.path, self.units = path, torch.eye(calls + 1, dtype=torch.float64)
        self.times, self.points = list[float](), list[Tensor]()

    def __call__(self, x: Tensor, t: Tensor, /, **cond: Any) -> Tensor:
        self.times.append(float(t[0]))
        self.points.append(x[0])
        return self.units[len(self.times)][None] if len(self.times) < len(self.units) else torch.zeros_like(x)

    def posterior_mean(self, x: Tensor, t: Tensor, /, **cond: Any) -> Tensor:
        return converted(self(x, t), x, self.path.curve(t, x), "velocity", "data")


def written_out(
    field: Field, path: AffinePath, grid: Tensor, solver: Solver, calls: int
) -> tuple[list[float], list[list[float]]] | None:
    """The times and rows with which ``solver`` spends ``calls`` on a grid, closing call included, or ``None``.

    ``None``: another number of calls, or times that do not increase.
    """
    recorder = _Recorder(field, path, calls)
    end = solve(recorder, recorder.units[:1], grid, solver).x[0]
    if len(recorder.times) != calls:
        return None
    rows = [point[: i + 1].tolist() for i, point in enumerate([*recorder.points, end])]
    return recorder.times, rows
