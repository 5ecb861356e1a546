"""The field of a Gaussian mixture."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from pathline.fields.exact import observations
from pathline.fields.exact.chunks import Chunk, covariance_gap, most_central, squares_apart, weigh
from pathline.fields.exact.mixture import MixtureField
from pathline.fields.exact.pairs import PairChunk, Pairs
from pathline.fields.exact.paths import check_path, last_stds, mixes, open_ends
from pathline.paths import AffinePath, BridgePath, GaussianPath
from pathline.schedules import Schedule
from pathline.sources import Mixture


class GaussianMixtureField(MixtureField):
    r"""The exact marginal field of a Gaussian mixture on an affine path or a bridge.

    From a standard normal source component k is $\mathcal N(\alpha m_k,\, \alpha^2 S_k + \sigma^2 I)$ at time t.

    Attributes:
        path: an `AffinePath` or `BridgePath` from a `StandardNormal`, a `Mixture` or `Points`, which are drawn
            independently of the data.
        means: shape ``(K, *d)``.
        covs: variances ``(K,)`` (isotropic) or ``(K, d)`` (diagonal), or covariances ``(K, d, d)``; rows of any
            shape are flattened to d numbers.
        weights: probabilities up to a factor, shape ``(K,)``; ``None``: equal.

    Raises:
        ValueError: wrong shapes, non-finite numbers, covariances that are not symmetric positive semidefinite; a
            source of another shape, or one without width on an affine path where the data have none either.

    >>> from pathline import schedules
    >>> field = GaussianMixtureField(AffinePath(schedules.linear()), torch.zeros(1, 2), torch.ones(1))
    >>> field(torch.ones(1, 2), torch.tensor(0.5))
    tensor([[0., 0.]])
    """

    def __init__(
        self,
        path: AffinePath | BridgePath,
        means: Float[Tensor, "k *d"],
        covs: Float[Tensor, "k ..."],
        weights: Float[Tensor, " k"] | None = None,
    ) -> None:
        check_path(path, (AffinePath, BridgePath))
        law = Mixture(means, covs, weights)
        self.path, self.shape, self.law = path, means.shape[1:], law
        self.means, self.variances, self.axes, self.log_weights = law.centres, law.variances, law.axes, law.log_weights
        self.reference = most_central(self.means)
        self.pairs = Pairs(path, law) if mixes(path) else None
        self.open_ends = self._ends() if self.pairs is None else self.pairs.open_ends

    def conditioned(self, observe: Callable[[Tensor], Tensor], y: Tensor, noise: float) -> "GaussianMixtureField":
        r"""The exact field of these data given $y = A x_1 + \eta\,\varepsilon$, $\varepsilon \sim \mathcal N(0, I)$.

        The posterior is a mixture again, see `pathline.fields.exact.observations`; it holds K covariances of d x d
        numbers.

        Args:
            observe: A, linear: ``observe(x) -> (n, m)`` for any number of rows, in float64.
            y: what was seen, ``(m,)``.
            noise: eta, positive.

        Raises:
            ValueError: an observe that is not linear, a y of another shape, noise that is not positive; a bridge from a
                source that shares no axes with the posterior.

        >>> from pathline import schedules
        >>> field = GaussianMixtureField(AffinePath(schedules.linear()), torch.zeros(1, 2), torch.ones(1))
        >>> field.conditioned(lambda x: x[:, :1], torch.tensor([2.0]), noise=1.0).means
        tensor([[1.0000, 0.0000]], dtype=torch.float64)
        """
        assert not isinstance(self.path, GaussianPath)
        a = observations.matrix(observe, self.shape, y, noise)
        scales = self.variances.sqrt()
        roots = torch.diag_embed(scales) if self.axes is None else self.axes * scales[:, None]
        means, covs, evidence = observations.gaussians(self.means, roots, a, y.double(), noise)
        weights = observations.weights(self.log_weights, evidence)
        return GaussianMixtureField(self.path, means.reshape(-1, *self.shape), covs, weights)

    def _ends(self) -> dict[float, float | None]:
        wide, limit = bool(self.variances.any()), self.schedule.keeps_variance and bool(self.variances.all())
        sharp = last_stds(self.path, self.means)[0] == 0 and not bool(self.variances.all())
        return open_ends(self.path, sharp or (1.0 in self.path.open_ends and not limit), wide)

    @property
    def schedule(self) -> Schedule:
        assert isinstance(self.path, AffinePath)
        return self.path.schedule

    def chunk_width(self, times: int) -> int:
        return self.means.shape[1] if self.pairs is None else self.pairs.width

    def chunk(self, x: Tensor, t: Tensor, rows: slice) -> Chunk:
        return _Gaussians(self, x, t, rows) if self.pairs is None else PairChunk(self.pairs, x, t, rows)

    def _draw(self, x: Tensor, t: Tensor, which: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.pairs is not None:
            return self.pairs.draw(x, t, which, generator)
        alpha, sigma, _, _ = (value[:, None] for value in self.schedule(t))
        mean, own = self.means[which], self.variances[which]
        variance = alpha**2 * own + sigma**2
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        offset = x - alpha * mean
        if self.axes is None:
            return mean + alpha * own / variance * offset + (own / variance).sqrt() * sigma * noise
        axes = self.axes[which]
        offset = torch.einsum("bd,bde->be", offset, axes)
        drawn = alpha * own / variance * offset + (own / variance).sqrt() * sigma * noise
        return mean + torch.einsum("be,bde->bd", drawn, axes)


class _Gaussians(Chunk):
    """Gaussians in their principal axes, where v_i = rate_i * y + drift_i with y the offset from the mean."""

    def __init__(self, field: GaussianMixtureField, x: Tensor, t: Tensor, rows: slice) -> None:
        self.law, self.reference, self.rows = field.law, field.reference, rows
        self.first = self if rows is field.reference else _Gaussians(field, x, t, field.reference)
        alpha, sigma, alpha_rate, _ = (value[:, None, None] for value in field.schedule(t))
        self.means, self.axes = field.means[rows], None if field.axes is None else field.axes[rows]
        own = field.variances[rows]
        self.variance = variance = alpha**2 * own + sigma**2
        self.log_weights, self.alpha = field.log_weights[rows], alpha
        self.offset = self._into(x[:, None] - alpha * self.means)
        self.scaled = self.offset / variance
        half_rate = field.schedule.half_rate(t)[:, None, None]
        self.rate = (alpha * alpha_rate * own + half_rate) / variance
        self.pull, self.drift = alpha * own, alpha_rate * self.means
        self.log_det = (variance.log() + math.log(2 * math.pi)).sum(2)
        self.log_prob = self.log_weights - 0.5 * (self.log_det + (self.offset * self.scaled).sum(2))

    def relative(self) -> tuple[Tensor, Tensor | float]:
        """Less the reference component's square, ``offset`` there being short of the own one by ``step``."""
        step = self.alpha * (self.first.means - self.means)
        solved, first = self._out_of(self._into(step) / self.variance), -self.first._scores()
        gap = self.alpha**2 * covariance_gap(self.law, self.reference, self.rows, first)
        apart = squares_apart(step, solved, -self._scores(), gap)
        shared = -0.5 * (self.first.offset * self.first.scaled).sum(2)
        return self.log_weights - 0.5 * (self.log_det + apart), shared

    def _into(self, rows: Tensor) -> Tensor:
        return rows if self.axes is None else torch.einsum("bkd,kde->bke", rows, self.axes)

    def _out_of(self, rows: Tensor) -> Tensor:
        return rows if self.axes is None else torch.einsum("bke,kde->bkd", rows, self.axes)

    def velocity(self, w: Tensor) -> Tensor:
        return weigh(w, self._velocities())

    def score(self, w: Tensor) -> Tensor:
        return weigh(w, self._scores())

    def data(self, w: Tensor) -> Tensor:
        return weigh(w, self._out_of(self.pull * self.scaled) + self.means)

    def divergence(self, w: Tensor) -> Tensor:
        velocity, score = self._velocities(), self._scores() - self.first._scores()
        step = velocity - self.first._velocities()
        inner = self.rate.expand_as(self.offset).sum(2) + (score * step).sum(2)
        return weigh(w, torch.cat([inner[..., None], score, step, velocity], 2))

    def _velocities(self) -> Tensor:
        return self._out_of(self.rate * self.offset) + self.drift

    def _scores(self) -> Tensor:
        return -self._out_of(self.scaled)
