"""Explicit Runge-Kutta methods as tableaux: a new method is three rows of numbers.

Reference: Hairer, Norsett & Wanner, "Solving Ordinary Differential Equations I", 2nd ed., 1993.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tableau:
    r"""A Butcher tableau: $k_i = u(t + c_i h,\ x + h \sum_j a_{ij} k_j)$, then $x + h \sum_i b_i k_i$.

    Attributes:
        name: what it is called.
        order: global error is O(h^order) on smooth fields.
        c, a, b: stage times, the lower triangle row by row, and the weights.
    """

    name: str
    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    @property
    def calls(self) -> int:
        return len(self.c)

    def step(self, field: Callable[[Tensor, Any], Tensor], x: Tensor, t: float | Tensor, s: float | Tensor) -> Tensor:
        """From ``t`` to ``s``; compiled, one graph serves every step where both are tensors of shape ``()``."""
        h = s - t
        stages: list[Tensor] = []
        for c, row in zip(self.c, self.a, strict=True):
            stages.append(field(_combine(x, h, row, stages), t + c * h))
        return _combine(x, h, self.b, stages)


def _combine(x: Tensor, h: float | Tensor, weights: tuple[float, ...], stages: list[Tensor]) -> Tensor:
    for weight, stage in zip(weights, stages, strict=True):
        if weight:
            x = x + (h * weight).to(x.dtype) * stage if isinstance(h, Tensor) else torch.add(x, stage, alpha=h * weight)
    return x


euler = Tableau("euler", 1, (0.0,), ((),), (1.0,))
midpoint = Tableau("midpoint", 2, (0.0, 0.5), ((), (0.5,)), (0.0, 1.0))
heun = Tableau("heun", 2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5))
rk3 = Tableau("rk3", 3, (0.0, 0.5, 0.75), ((), (0.5,), (0.0, 0.75)), (2 / 9, 1 / 3, 4 / 9))
"""Ralston's method of order 3, whose error constant is the least."""
rk4 = Tableau(
    "rk4",
    4,
    (0.0, 0.5, 0.5, 1.0),
    ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
)
