"""Some components of a mixture at a time: what each family of them tells, and the sums that they share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from pathline.sources import Mixture

CHUNK = 2**22
"""Numbers per temporary (batch x components x dimensions where the components need all three)."""


class Chunk(ABC):
    """Some components seen from ``x`` ``(b, D)``: their log-densities, and sums weighted by ``w`` ``(b, n)``."""

    log_prob: Tensor
    """log(w_i N_i(x)), shape ``(b, n)``."""

    def relative(self) -> tuple[Tensor, Tensor | float]:
        """`log_prob` less a term that all components share, and that term ``(b, 1)``: far away it drowns the rest.

        It is that of a reference component. Two components whose covariances are alike but not the reference's are
        told apart only to within a rounding of what they differ from it, which grows with the square of the distance.
        """
        return self.log_prob, 0.0

    @abstractmethod
    def velocity(self, w: Tensor) -> Tensor:
        """sum_i w_i v_i, shape ``(b, D)``."""

    @abstractmethod
    def score(self, w: Tensor) -> Tensor:
        """sum_i w_i g_i, shape ``(b, D)``."""

    @abstractmethod
    def data(self, w: Tensor) -> Tensor:
        """sum_i w_i E[x1 given x, i], shape ``(b, D)``."""

    @abstractmethod
    def divergence(self, w: Tensor) -> Tensor:
        """sum_i w_i of (div v_i + dg_i . dv_i), dg_i, dv_i and v_i, side by side, shape ``(b, 1 + 3 D)``."""


def most_central(rows: Tensor) -> slice:
    """The row nearest to the mean of all: sums taken from there cancel least."""
    centre, step = rows.mean(0, dtype=torch.float64), max(1, CHUNK // max(1, rows.shape[1]))
    first = int(torch.cat([(part - centre).square().sum(1) for part in rows.split(step)]).argmin())
    return slice(first, first + 1)


def covariance_gap(law: Mixture, first: Tensor | slice, rows: Tensor | slice, v: Tensor) -> Tensor:
    """(C_first - C_rows) v ``(b, *n, D)`` for v ``(b, *1, D)``: nothing, to the last bit, where covariances agree."""
    if law.axes is None:
        return (law.variances[first] - law.variances[rows]) * v
    lower = law.covs.double().tril()
    gaps = lower[first] - lower[rows]
    return torch.einsum("...de,...e->...d", gaps + gaps.tril(-1).mT, v)


def squares_apart(step: Tensor, solved: Tensor, own: Tensor, gap: Tensor) -> Tensor:
    r"""$z^T V^{-1} z - y^T V_0^{-1} y$ ``(b, *n)`` for z = y + ``step``, without the squares, which drown it far away.

    It is $s^T (2 g - h) + (g - h)^T (V_0 - V) V_0^{-1} y$ with the step s, ``solved`` $h = V^{-1} s$, ``own``
    $g = V^{-1} z$, and ``gap`` $(V_0 - V) V_0^{-1} y$, all ``(b, *n, D)``.
    """
    return (step * (2 * own - solved) + (own - solved) * gap).sum(-1)


def weigh(w: Tensor, rows: Tensor) -> Tensor:
    """sum_i w_i rows_i, shape ``(b, k)``, for rows ``(1 or b, n, k)``."""
    return w @ rows[0] if len(rows) == 1 else torch.einsum("bn,bnk->bk", w, rows)


def slices(n: int, step: int) -> Iterator[slice]:
    """The numbers below n, ``step`` at a time."""
    return (slice(first, min(first + step, n)) for first in range(0, n, step))
