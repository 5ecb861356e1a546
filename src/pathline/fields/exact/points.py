"""Points seen along a path."""

import math
from functools import cached_property

import torch
from torch import Tensor

from pathline.fields.exact.chunks import Chunk, weigh
from pathline.fields.exact.paths import ExactPath
from pathline.paths import AffinePath


class PointChunk(Chunk):
    """Isotropic Gaussians: v_i = rate_i (x - mean_i) + drift_i, and g_i = precision_i (mean_i - x).

    With y the offset of x from the mean of the reference component and n_i the step from there to mean_i,
    dv_i = f_i + drate_i y with f_i = ddrift_i - rate_i n_i, and dg_i = precision_i n_i - dprecision_i y.
    """

    def __init__(
        self, path: ExactPath, x: Tensor, t: Tensor, points: Tensor, log_weights: Tensor, reference: Tensor
    ) -> None:
        """For ``points`` ``(n, *d)`` and a ``reference`` ``(1, *d)``, the same for all chunks."""
        self.path, self.points = path, points.reshape(len(points), -1)
        mean, self.precision, self.drift, self.rate = _isotropic(path, points, t)
        mean_0, self.precision_0, self.drift_0, self.rate_0 = _isotropic(path, reference, t)
        self.y, self.n = x - mean_0[:, 0], mean - mean_0
        self.along, self.squares = _inner(self.y, self.n), self.n.square().sum(2)
        self.away = self.y.square().sum(1, keepdim=True)
        self.log_peak = log_weights + 0.5 * x.shape[1] * (self.precision.log() - math.log(2 * math.pi))
        distances = (self.away + self.squares - 2 * self.along).clamp_min(0)
        self.log_prob = self.log_peak - 0.5 * self.precision * distances

    def relative(self) -> tuple[Tensor, Tensor]:
        r"""$\log w_i \mathcal N_i + \tfrac12 p_0 |y|^2$ with the precision p_0 of the reference component."""
        logits = self.log_peak + self.precision * (self.along - 0.5 * self.squares)
        if not isinstance(self.path, AffinePath):
            logits = logits - 0.5 * (self.precision - self.precision_0) * self.away
        return logits, -0.5 * self.precision_0 * self.away

    @cached_property
    def f(self) -> Tensor:
        return self.drift - self.drift_0 - self.rate[..., None] * self.n

    def velocity(self, w: Tensor) -> Tensor:
        fast = w * self.rate
        return weigh(w, self.drift) + (self.y * fast.sum(1, keepdim=True) - weigh(fast, self.n))

    def score(self, w: Tensor) -> Tensor:
        return self._score_step(w) - w.sum(1, keepdim=True) * self.precision_0 * self.y

    def data(self, w: Tensor) -> Tensor:
        return w @ self.points

    def divergence(self, w: Tensor) -> Tensor:
        more_rate, more_precision = self.rate - self.rate_0, self.precision - self.precision_0
        inner = self.precision * ((self.n * self.f).sum(2) + more_rate * self.along)
        inner = inner - more_precision * (_inner(self.y, self.f) + more_rate * self.away)
        inner = (w * (inner + self.y.shape[1] * self.rate)).sum(1, keepdim=True)
        step = self._velocity_step(w)
        return torch.cat([inner, self._score_step(w), step, self.velocity(w)], 1)

    def _velocity_step(self, w: Tensor) -> Tensor:
        return weigh(w, self.f) + self.y * (w * (self.rate - self.rate_0)).sum(1, keepdim=True)

    def _score_step(self, w: Tensor) -> Tensor:
        more = (w * (self.precision - self.precision_0)).sum(1, keepdim=True)
        return weigh(w * self.precision, self.n) - self.y * more


def _isotropic(path: ExactPath, points: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    """Mean, precision, drift and rate of n points: shapes ``(1 or b, n, D)`` and ``(1 or b, n)``, in turn."""
    if len(t) == 1:
        at = path.moments(points, t[0])
    else:
        wide = points.expand(len(t), *points.shape).flatten(0, 1)
        at = path.moments(wide, t.repeat_interleave(len(points)))
    rows, numbers = (len(t), len(points), -1), (len(t), -1)
    precision, rate = at.std.reshape(numbers) ** -2, (at.std_rate / at.std).reshape(numbers)
    each = (len(t), len(points))
    return at.mean.reshape(rows), precision.expand(each), at.mean_rate.reshape(rows), rate.expand(each)


def _inner(x: Tensor, rows: Tensor) -> Tensor:
    """x . rows_i, shape ``(b, n)``, for rows ``(1 or b, n, D)``."""
    return x @ rows[0].T if len(rows) == 1 else torch.einsum("bd,bnd->bn", x, rows)
