"""An approximation, and what it is off by at most."""

from typing import NamedTuple

from torch import Tensor


class Bounded(NamedTuple):
    r"""$\mathbb E[x_1]$ given x, ``(b, D)``, float64, and a bound on the norm of its error, ``(b,)``."""

    mean: Tensor
    error: Tensor
