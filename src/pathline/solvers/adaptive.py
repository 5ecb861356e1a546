"""Adaptive solvers; torchdiffeq lives here and nowhere else."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

MOST_STEPS = 10_000
"""Steps between two nodes after which an adaptive solver gives up."""


@dataclass(frozen=True)
class Dopri5:
    """Dormand and Prince's method of order 5 with step control; one step size serves the whole batch.

    Attributes:
        rtol, atol: tolerances of one step's error, relative and in the state's units.
        last: the time of the last step before an open t = 1, from where the solve closes; nodes beyond it are left
            out. ``None``: the field's own such time, or for an exact field of points the grid's last inner node, and
            0.999 on a grid without one.

    Raises:
        ValueError: a tolerance that is negative or not finite, or both 0; ``last`` outside (0, 1).
        RuntimeError: the field is not finite at a time that the message names; the step size falls to nothing, or the
            steps between two nodes are more than `MOST_STEPS`, which says that the tolerance cannot be met.

    Reference: Dormand & Prince, "A family of embedded Runge-Kutta formulae", J. Comput. Appl. Math. 6, 1980.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    last: float | None = None
    name: str = "dopri5"

    def __post_init__(self) -> None:
        if not (0 <= self.rtol < math.inf and 0 <= self.atol < math.inf and self.rtol + self.atol > 0):
            raise ValueError(f"rtol and atol must be at least 0, and one above it, got {self.rtol} and {self.atol}")
        if self.last is not None and not 0 < self.last < 1:
            raise ValueError(f"last must be a time inside (0, 1), got {self.last}")

    @property
    def calls(self) -> None:
        return None

    def tighter(self) -> "Dopri5":
        """The same at a tenth of the tolerances."""
        return replace(self, rtol=self.rtol / 10, atol=self.atol / 10)

    def step(self, field: Callable[[Tensor, float], Tensor], x: Tensor, t: float, s: float) -> Tensor:
        from torchdiffeq import odeint

        ends = torch.tensor([t, s], dtype=torch.float64, device=x.device)
        # without step_t the method steps past the end and interpolates; its trial of a first step may pass it still
        options = {"step_t": ends[1:], "max_num_steps": MOST_STEPS}

        latest: tuple[Any, Tensor] = ends[0], x

        def inside(time: Any, y: Tensor) -> Tensor:
            nonlocal latest
            latest = time, field(y, time.clamp(min(t, s), max(t, s)))
            return latest[1]

        try:
            states = odeint(inside, x, ends, rtol=self.rtol, atol=self.atol, method="dopri5", options=options)
        except AssertionError as error:
            sizeless = bool(latest[0].isnan())  # no first step comes from a field that is not finite
            if sizeless or not bool(latest[1].isfinite().all()):
                when = t if sizeless else float(latest[0])
                raise RuntimeError(f"the field is not finite at t = {when:.6g}: mend the field") from error
            raise RuntimeError(
                f"dopri5 cannot meet rtol={self.rtol:g}, atol={self.atol:g} between t = {t:.6g} and {s:.6g} "
                f"({error}); raise the tolerances, use float64, or take a fixed-step solver"
            ) from error
        return states[-1]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript, reportReturnType]


dopri5 = Dopri5()
