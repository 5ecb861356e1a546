"""An approximation, and what it is off by at most."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Allowed = Callable[[Tensor, Tensor], Tensor]
"""``allowed(x, mean)`` is the error that a mean may have at each row, ``(b,)``."""


class Bounded(NamedTuple):
    r"""$\mathbb E[x_1]$ given x, ``(b, D)``, float64, and a bound on the norm of its error, ``(b,)``."""

    mean: Tensor
    error: Tensor


def unknown(x: Tensor) -> Bounded:
    """No answer to ``x`` ``(b, D)``."""
    return Bounded(torch.zeros_like(x), x.new_full((len(x),), math.inf))
