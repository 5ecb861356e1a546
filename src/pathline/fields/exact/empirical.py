"""The field of a finite data set."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pathline.fields.exact import observations
from pathline.fields.exact.attention import DIRECT, Attention
from pathline.fields.exact.bounded import Bounded
from pathline.fields.exact.cells import Cells
from pathline.fields.exact.chunks import CHUNK, Chunk, most_central
from pathline.fields.exact.levels import Levels, fast
from pathline.fields.exact.mixture import MixtureField, Statistic, own_times
from pathline.fields.exact.pairs import PairChunk, Pairs
from pathline.fields.exact.paths import ExactPath, check_path, last_stds, mixes, open_ends
from pathline.fields.exact.points import PointChunk
from pathline.fields.exact.queries import is_far, is_untracked
from pathline.paths import AffinePath, BridgePath, GaussianPath, one_time
from pathline.schedules import Curve
from pathline.sources import Mixture, check_rows, check_tensor, log_weights

MANY = 2**16
"""Rows times components from which the work is worth saving."""

FEW = 20_000
"""Components from which cells and levels of them are."""

SOME, WIDE = 128, 200
"""Rows and dimensions from which levels are worth the search for a way."""

FINER = (1, 30, 1000)
"""How many times finer than the median row needs cells are taken, for the rows that coarser ones leave open."""


class EmpiricalField(MixtureField):
    """The exact marginal field of a finite data set on any Gaussian path.

    Attributes:
        path: an `AffinePath` or `BridgePath` from a `StandardNormal`, a `Mixture` or `Points`, which are drawn
            independently of the data, or a `GaussianPath` from a `StandardNormal`.
        data: the points, shape ``(N, *d)``.
        weights: their probabilities up to a factor, shape ``(N,)``; ``None``: equal.
        labels: a class for each point, shape ``(N,)``; ``field(x, t, label=y)`` is the field of class y alone.
        rtol: the velocity may be off by ``rtol (|u| + |x|)``, proven row by row: on an affine path from a standard
            normal, from 20,000 points on, at one time for all rows. In up to 3 dimensions by cells; in 200 or more,
            for 128 rows or more on a CPU that multiplies bytes fast, by bytes, but for a chance of 1e-12 a row in their
            own random roundings: much faster where coordinates have up to 256 levels, as pixels do. ``None``, and
            whatever else is asked: exact.

    Raises:
        ValueError: no points, non-finite points, weights that are negative or sum to zero, wrong lengths, other than
            tensors of real numbers on one device, ``rtol`` outside (0, 1); a source of another shape, one without width
            on an affine path, where x_t has no density, or any but a standard normal on a `GaussianPath`.

    >>> from pathline import schedules
    >>> field = EmpiricalField(AffinePath(schedules.linear()), torch.tensor([[2.0, 1.0]]))
    >>> field(torch.zeros(1, 2), torch.tensor(0.0))
    tensor([[2., 1.]])
    """

    def __init__(
        self,
        path: ExactPath,
        data: Float[Tensor, "n *d"],
        weights: Float[Tensor, " n"] | None = None,
        labels: Tensor | None = None,
        rtol: float | None = None,
    ) -> None:
        check_path(path, (AffinePath, BridgePath, GaussianPath))
        if rtol is not None and (not isinstance(rtol, Real) or not 0 < rtol < 1):
            raise ValueError(f"rtol must be None or in (0, 1), got {rtol!r}")
        check_rows("data", data)
        if labels is not None:
            check_tensor("labels", labels, data.device)
            if labels.shape != data.shape[:1]:
                raise ValueError(f"labels must have shape ({len(data)},), got {tuple(labels.shape)}")
        self.path, self.shape, self.labels, self.rtol = path, data.shape[1:], labels, rtol
        self._by_label: dict[Any, EmpiricalField] = {}
        self.points = data if data.dtype == torch.float32 else data.double()
        self.log_weights = log_weights(weights, data)
        self.reference = most_central(self.points.reshape(len(data), -1))
        self.pairs = Pairs(path, Mixture(data, data.new_zeros(len(data)), weights)) if mixes(path) else None
        self.open_ends = self._ends() if self.pairs is None else self.pairs.open_ends

    def conditioned(self, observe: Callable[[Tensor], Tensor], y: Tensor, noise: float) -> "EmpiricalField":
        r"""The exact field of these points given $y = A x_1 + \eta\,\varepsilon$: they stay, their weights change.

        Arguments and errors as for `GaussianMixtureField.conditioned`.
        """
        a, y = observations.matrix(observe, self.shape, y, noise), y.double()
        flat = self.points.reshape(len(self.points), -1)
        step = max(1, CHUNK // flat.shape[1])
        gaps = torch.cat([part.double() @ a.T - y for part in flat.split(step)])
        weights = observations.weights(self.log_weights, -0.5 * (gaps / noise).square().sum(1))
        return EmpiricalField(self.path, self.points, weights, self.labels, self.rtol)

    def _ends(self) -> dict[float, float | None]:
        least, most = last_stds(self.path, self.points)
        return open_ends(self.path, least == 0 or 1.0 in self.path.open_ends, wide=most > 0)

    def chunk_width(self, times: int) -> int:
        if self.pairs is not None:
            return self.pairs.width
        return 2 if times == 1 else max(2, self.shape.numel())

    def chunk(self, x: Tensor, t: Tensor, rows: slice) -> Chunk:
        if self.pairs is not None:
            return PairChunk(self.pairs, x, t, rows)
        points, reference = self.points[rows].double(), self.points[self.reference].double()
        return PointChunk(self.path, x, t, points, self.log_weights[rows], reference)

    @cached_property
    def classes(self) -> Tensor:
        """The labels that there are, in order."""
        return self._kinds[0]

    @cached_property
    def _kinds(self) -> tuple[Tensor, Tensor]:
        if self.labels is None:
            raise ValueError("the field was made without labels: give them to have a posterior over them")
        return self.labels.unique(return_inverse=True)

    def label_posterior(self, x: Tensor, t: Tensor) -> Tensor:
        """Probabilities of `classes` given x_t = x, shape ``(b, len(classes))``.

        Raises:
            ValueError: a field without labels.
        """
        _, (shares,) = self._expect(x, t, None, "classes")
        return shares.to(x.dtype)

    def _sum(self, statistic: Statistic, chunk: Chunk, rows: slice, w: Tensor) -> Tensor:
        if statistic != "classes":
            return super()._sum(statistic, chunk, rows, w)
        kinds, inverse = self._kinds
        return w.new_zeros(len(w), len(kinds)).index_add(1, inverse[rows], w)

    def _draw(self, x: Tensor, t: Tensor, which: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.points[which].reshape(len(which), -1).double()

    @cached_property
    def attention(self) -> Attention:
        return Attention(self.points.reshape(len(self.points), -1), self.log_weights)

    def _expect(
        self, x: Tensor, t: Tensor, label: Tensor | None, *statistics: Statistic
    ) -> tuple[Tensor, list[Tensor]]:
        check_tensor("x", x)
        check_tensor("t", t)
        if self.pairs is not None:
            return super()._expect(x, t, label, *statistics)
        if label is not None:
            return self._expect_labelled(x, t, label, *statistics)
        if statistics == ("velocity",) and self._near_enough(x, t):
            return self._approximate(x, t)
        return self._expect_all(x, t, *statistics)

    def _expect_labelled(
        self, x: Tensor, t: Tensor, label: Tensor, *statistics: Statistic
    ) -> tuple[Tensor, list[Tensor]]:
        """Label by label, each from its own points, unless there is too little work for each label to be worth it."""
        time, _ = self._check(x, t), self._log_total(label, len(x))
        kinds, which = label.expand(len(x)).unique(return_inverse=True)
        if len(x) == 0 or len(x) * len(self.points) < MANY // 16 * len(kinds):
            return super()._expect(x, t, label, *statistics)
        rows = [(which == k).nonzero()[:, 0] for k in range(len(kinds))]
        times = [own_times(time, own).expand(len(own)) for own in rows]
        parts = [
            self._of_label(kind)._expect(x[own], s, None, *statistics)
            for kind, own, s in zip(kinds, rows, times, strict=True)
        ]
        back = torch.cat(rows).argsort()
        means = zip(*(values for _, values in parts), strict=True)
        return torch.cat([log_prob for log_prob, _ in parts])[back], [torch.cat(values)[back] for values in means]

    def _of_label(self, kind: Tensor) -> "EmpiricalField":
        key = kind.item()
        if key not in self._by_label:
            own = self.labels == kind
            weights = (self.log_weights[own] - self.log_weights[own].max()).exp()
            self._by_label[key] = EmpiricalField(self.path, self.points[own], weights, rtol=self.rtol)
        return self._by_label[key]

    def _expect_all(self, x: Tensor, t: Tensor, *statistics: Statistic) -> tuple[Tensor, list[Tensor]]:
        if "classes" in statistics or not self._coarse(x):
            return super()._expect(x, t, None, *statistics)
        time = self._check(x, t)
        log_prob, means, good = self._attend(x, time, statistics)
        poor = (~good).nonzero()[:, 0]
        if len(poor):
            times = own_times(time, poor).expand(len(poor))
            exact_log_prob, exact = super()._expect(x[poor], times, None, *statistics)
            log_prob[poor] = exact_log_prob
            for value, better in zip(means, exact, strict=True):
                value[poor] = better
        return log_prob, means

    def _attend(self, x: Tensor, t: Tensor, statistics: Sequence[Statistic]) -> tuple[Tensor, list[Tensor], Tensor]:
        """In float32: log-densities, means, and which rows of them are good, ``(b,)``."""
        flat = x.reshape(len(x), self.shape.numel()).double()
        curve = Curve(*(value.expand(len(x))[:, None] for value in self.path.schedule(t)))  # pyright: ignore[reportAttributeAccessIssue]
        found = self.attention.posterior(flat, curve.alpha, curve.sigma, "divergence" in statistics)
        log_prob = found.log_sum - flat.shape[1] * (curve.sigma[:, 0].log() + 0.5 * math.log(2 * math.pi))
        rate, pull = curve.sigma_rate / curve.sigma, curve.alpha_rate - curve.sigma_rate / curve.sigma * curve.alpha
        velocity = curve.alpha_rate * found.data + rate * found.gap
        whole = flat.shape[1] * rate + pull * curve.alpha / curve.sigma**2 * found.scatter[:, None]
        values = {
            "velocity": lambda: velocity,
            "score": lambda: -found.gap / curve.sigma**2,
            "data": lambda: found.data,
            "divergence": lambda: torch.cat([whole, torch.zeros_like(flat), torch.zeros_like(flat), velocity], 1),
        }
        return log_prob, [values[name]() for name in statistics], found.good

    @cached_property
    def cells(self) -> Cells:
        return Cells(self.points.reshape(len(self.points), -1), self.log_weights.exp())

    @cached_property
    def levels(self) -> Levels:
        return Levels(self.points.reshape(len(self.points), -1), self.log_weights.exp())

    def _approximate(self, x: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor]]:
        """No density, and velocities good to ``rtol``; rows that no approximation can vouch for are exact."""
        time = self._check(x, t)
        alpha, sigma, alpha_rate, sigma_rate = (float(v) for v in self.path.schedule(time[0]))  # pyright: ignore[reportAttributeAccessIssue]
        flat, rtol = x.reshape(len(x), self.shape.numel()).double(), self.rtol or 0.0
        rate, of_data = sigma_rate / sigma, alpha_rate - sigma_rate / sigma * alpha
        of_mean = rtol / (1 + rtol) / max(abs(of_data), 1e-300)

        def velocity_of(x: Tensor, mean: Tensor) -> Tensor:
            return alpha_rate * mean + rate * (x - alpha * mean)

        def allowed(x: Tensor, mean: Tensor) -> Tensor:
            return of_mean * (velocity_of(x, mean).norm(dim=1) + x.norm(dim=1))

        def by_cells(x: Tensor, finer: float) -> Bounded:
            return self.cells.posterior_mean(x, alpha, sigma, of_mean * float(x.norm(dim=1).median()) / finer)

        def by_levels(x: Tensor) -> Bounded:
            return self.levels.posterior_mean(x, alpha, sigma, allowed)

        few = flat.shape[1] <= DIRECT
        velocity, rows, own = torch.empty_like(flat), torch.arange(len(x), device=x.device), flat
        for approximation in [partial(by_cells, finer=finer) for finer in FINER] if few else [by_levels]:
            mean, error = approximation(own)
            found = velocity_of(own, mean)
            velocity.index_copy_(0, rows, found)
            rows = rows[~(error <= of_mean * (found.norm(dim=1) + own.norm(dim=1)))]
            if len(rows) == 0:
                break
            own = flat[rows]
        if len(rows):
            _, (exact,) = self._expect_all(x[rows], time.expand(len(rows)), "velocity")
            velocity[rows] = exact
        return flat.new_full((len(flat),), math.nan), [velocity]

    def _near_enough(self, x: Tensor, t: Tensor) -> bool:
        """Whether an error of ``rtol`` is asked for and saves anything."""
        return (
            self.rtol is not None
            and isinstance(self.path, AffinePath)
            and len(self.points) >= FEW
            and len(x) * len(self.points) >= MANY
            and one_time(t)
            and self._untracked(x)
            and (self.shape.numel() <= DIRECT or self._wide_enough(x))
        )

    def _wide_enough(self, x: Tensor) -> bool:
        """Whether bytes are faster than floats."""
        return len(x) >= SOME and self.shape.numel() >= WIDE and x.device.type == "cpu" and fast()

    def _coarse(self, x: Tensor) -> bool:
        """Whether float32 in and out, many enough and not to be differentiated."""
        return (
            x.dtype == self.points.dtype == torch.float32
            and isinstance(self.path, AffinePath)
            and len(x) * len(self.points) >= MANY
            and self._untracked(x)
            and not is_far(x)
        )

    def _untracked(self, x: Tensor) -> bool:
        """Whether nobody differentiates by ``x``, the points or their weights."""
        return all(is_untracked(each) for each in (x, self.points, self.log_weights))
