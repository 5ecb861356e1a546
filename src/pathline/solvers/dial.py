"""`method_for`: one dial, the number of calls, and the solver and time grid that spend them."""

from collections.abc import Callable

from torch import Tensor

from pathline.grids import eased, power, uniform
from pathline.solvers.loop import grid_for
from pathline.solvers.multistep import ab2, ab3, abm
from pathline.typing import Field, Solver
from pathline.wording import whole


def _power(n: int) -> Tensor:
    return 1 - power(n, 1.5).flip(0)


def _eased(n: int) -> Tensor:
    return 1 - eased(n).flip(0)


RULE: tuple[tuple[int, Solver, Callable[[int], Tensor]], ...] = ((6, abm, _eased), (3, ab3, _power), (1, ab2, uniform))
"""The least number of steps, the solver, and the spacing of its steps: each rung serves up to the one before.

Of all pairs in `untuned`, these stay nearest to the best one over 13 fields and 1 to 48 calls: the annulus of 200 or
300 points, raw and standardised, and a mixture of 6 Gaussians, exact, on linear (sigma_min 0, 0.02, 0.05, 0.2), cosine
and variance-preserving schedules; networks trained on eight-gaussians, checkerboard, moons, annulus and 8 x 8 digits.
Up to 24 calls the mean RMSE to the converged solution is at most 3.4 times that of the field's own best pair, and about
1.5 times on average. Multistep methods win throughout: they make one call a step. Steps get shorter towards the data.
"""


def method_for(nfe: int, field: Field) -> tuple[Solver, Tensor]:
    """The solver, and its grid from 0 to 1, for exactly ``nfe`` calls of ``field``; see `RULE`.

    A field that closes at an open t = 1 spends one of the calls on it.

    Args:
        nfe: calls per sample.
        field: the field that will be solved, for its open ends and costs.

    Raises:
        ValueError: nfe below 1 or not whole; calls that can't be spent: an odd number where each call costs two, or 1
            where a network needs a call before the closing one. The message names the nearest two that can.

    >>> solver, grid = method_for(4, lambda x, t: -x)
    >>> solver.name, grid
    ('ab3', tensor([0.0000, 0.3505, 0.6464, 0.8750, 1.0000], dtype=torch.float64))
    """
    nfe = whole("nfe", nfe, "call")
    refused: ValueError | None = None
    for least, solver, spacing in RULE:
        try:
            grid = grid_for(nfe, solver, field, spacing)
        except ValueError as error:
            refused = error  # another spacing may spend them
            continue
        if len(grid) > least:
            return solver, grid
    raise ValueError(str(refused)) from refused
