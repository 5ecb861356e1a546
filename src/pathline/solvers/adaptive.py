"""Adaptive solvers; torchdiffeq lives here and nowhere else."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dopri5:
    """Dormand and Prince's method of order 5 with step control; one step size serves the whole batch.

    Attributes:
        rtol, atol: tolerances of one step's error, relative and in the state's units.

    Raises:
        RuntimeError: the step size falls to nothing, which says that the tolerance cannot be met.

    Reference: Dormand & Prince, "A family of embedded Runge-Kutta formulae", J. Comput. Appl. Math. 6, 1980.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    name: str = "dopri5"

    @property
    def calls(self) -> None:
        return None

    def step(self, field: Callable[[Tensor, float], Tensor], x: Tensor, t: float, s: float) -> Tensor:
        from torchdiffeq import odeint

        ends = torch.tensor([t, s], dtype=torch.float64, device=x.device)
        last = {"step_t": ends[1:]}  # without it the method steps past the end and interpolates
        try:
            states = odeint(
                lambda time, y: field(y, time), x, ends, rtol=self.rtol, atol=self.atol, method="dopri5", options=last
            )
        except AssertionError as error:
            raise RuntimeError(
                f"dopri5 cannot meet rtol={self.rtol:g}, atol={self.atol:g} between t = {t:.6g} and {s:.6g} "
                f"({error}); raise the tolerances, use float64, or take a fixed-step solver"
            ) from error
        return states[-1]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript, reportReturnType]


dopri5 = Dopri5()
