r"""Pairs of a data component and a source component, for a source that is a finite mixture itself.

Data come from components $\mathcal N(m_i, C_i)$ and source points, independently, from $\mathcal N(s_k, S_k)$; a
point is a component without width. Every path here is $x_t = \alpha x_1 + \sigma x_0 + \varepsilon$ with
$\varepsilon \sim \mathcal N(0, e I)$: an affine path has $e = 0$, a bridge $\alpha = t$, $\sigma = 1 - t$ and
$e = \sigma_t^2$. Given its pair, $x_t$ is normal with

$$\mu_{ik} = \alpha m_i + \sigma s_k, \quad V_{ik} = \alpha^2 C_i + \sigma^2 S_k + e I,$$

and with $y = x - \mu_{ik}$ the velocity, score and data of the pair are

$$v_{ik} = \dot\mu_{ik} + (\alpha \dot\alpha C_i + \sigma \dot\sigma S_k + \tfrac12 \dot e I)\,V_{ik}^{-1} y, \quad
g_{ik} = -V_{ik}^{-1} y, \quad \mathbb E[x_1] = m_i + \alpha C_i V_{ik}^{-1} y.$$

To a field, a data component with all its pairs is one component.

Reference: Tong et al., "Simulation-Free Schroedinger Bridges via Score and Flow Matching", arXiv:2307.03672;
Albergo & Vanden-Eijnden, "Building Normalizing Flows with Stochastic Interpolants", arXiv:2209.15571.
"""

import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pathline.fields.exact.chunks import Chunk, covariance_gap, most_central, squares_apart, weigh
from pathline.fields.exact.paths import last_call
from pathline.fields.exact.queries import is_far
from pathline.paths import AffinePath, BridgePath
from pathline.sources import Mixture, Points, StandardNormal
from pathline.typing import Source


class Pairs:
    """The law of x_t where data and source are independent mixtures.

    Raises:
        ValueError: a source that is none of `Mixture`, `Points` and `StandardNormal`, or has rows of another shape;
            an affine path on which a pair has no density; covariances on a bridge that share no axes.
    """

    def __init__(self, path: AffinePath | BridgePath, data: Mixture) -> None:
        self.path, self.data, self.source = path, data, _as_mixture(path.source, data.means)
        self.first = _first(self.data), _first(self.source)
        self.isotropic = _isotropic(self.data), _isotropic(self.source)
        turned = self.data.axes is not None or self.source.axes is not None
        self.oblique = turned and not any(self.isotropic)
        self.pointlike = not bool(self.data.variances.any())
        if isinstance(path, BridgePath):
            if self.oblique:
                raise ValueError(
                    "covs of data or source must be isotropic, or both diagonal, for a closed form on a BridgePath; "
                    "on an AffinePath any will do"
                )
        elif self._flat():
            raise ValueError(
                "source must have a width where the data have none, else x_t has no density on an AffinePath: give "
                "it one (sources.Mixture), or take a BridgePath, whose noise is enough for points at both ends"
            )

    @cached_property
    def open_ends(self) -> dict[float, float | None]:
        """The schedule's, and those at which a component has no width; no flow leaves t = 0 where that is so.

        Where the rate of sigma has no limit, neither has the velocity from a source off the centre, and no method's
        steps reach near it: the last node is then the last call, and the posterior mean from there is too narrow.
        """
        own = self.path.open_ends if isinstance(self.path, AffinePath) else ()
        steep = 1.0 in own and bool(self.source.centres.any())
        last = last_call(self.path, wide=not (self.pointlike or steep))
        ends = {end: last if end == 1.0 else self.path.inner_time(end) for end in own}
        for end, law in ((0.0, self.source), (1.0, self.data)):
            at = _blend(self.path, law.centres.new_full((1,), end))
            other = at.alpha if end == 0.0 else at.sigma
            if float(at.noise) == float(other) == float(law.variances.min()) == 0:
                ends[end] = last if end == 1.0 else None
        return ends

    @property
    def width(self) -> int:
        """Numbers that a chunk holds for each row and data component."""
        k, d = self.source.centres.shape
        if self.oblique:
            return k * d * d
        return d * (k if self.data.axes is None else max(k, d))

    def draw(self, x: Tensor, t: Tensor, which: Tensor, generator: torch.Generator | None) -> Tensor:
        """x1 ``(b, D)`` given x ``(b, D)`` and the data component of every row ``(b,)``."""
        shares = PairChunk(self, x, t, which[:, None]).shares[:, 0]
        source = torch.multinomial(shares, 1, generator=generator)
        return PairChunk(self, x, t, which[:, None], source).draw(generator)

    def axes(self, rows: Tensor, sources: Tensor) -> "_Axes":
        """Axes in which both covariances are diagonal, for ``rows`` ``(1 or b, n)`` and ``sources`` ``(1 or b, k)``."""
        data, source = self.data.variances[rows][:, :, None], self.source.variances[sources][:, None]
        if self.oblique:
            return _common(self.data.covariances(rows)[:, :, None], self.source.covariances(sources)[:, None])
        own = self.data.axes if self.isotropic[1] else self.source.axes
        if own is not None:
            own = own[rows][:, :, None] if self.isotropic[1] else own[sources][:, None]
        return _Axes(data, source, own, own)

    def _flat(self) -> bool:
        """Whether some pair has no width in some direction, though both ends are mixed."""
        data, source = self.data, self.source
        if not self.oblique:
            return float((data.variances.amin(0) + source.variances.amin(0)).min()) == 0
        thin = (source.variances == 0).any(1).nonzero()[:, 0]
        if len(thin) == 0:
            return False
        others = source.covariances(thin)
        rows = (data.variances == 0).any(1).nonzero()
        return any(float(_relative(data.covariances(row) + others).min()) == 0 for row in rows)


class PairChunk(Chunk):
    """Data components ``rows``, a slice or ``(1 or b, n)``, each with ``sources`` ``(1 or b, k)``, by default all.

    Numbers are ``(b, n, k, D)``; steps are taken from the means of the first pair, which is the same for all chunks.
    """

    def __init__(self, law: Pairs, x: Tensor, t: Tensor, rows: Tensor | slice, sources: Tensor | None = None) -> None:
        rows = _all(law.data)[:, rows] if isinstance(rows, slice) else rows
        sources = _all(law.source) if sources is None else sources
        self.law, self.x, self.t, self.index, self.sources = law, x, t, rows, sources
        self.at = _Blend(*(value[:, None, None, None] for value in _blend(law.path, t)))
        self.axes = law.axes(rows, sources)
        m, s = law.data.centres[law.first[0]][:, :, None], law.source.centres[law.first[1]][:, None]
        m_step, s_step = law.data.centres[rows][:, :, None] - m, law.source.centres[sources][:, None] - s
        alpha, sigma, alpha_rate, sigma_rate, noise, _ = self.at
        self.drift, self.drift_step = alpha_rate * m + sigma_rate * s, alpha_rate * m_step + sigma_rate * s_step
        y, self.step = x[:, None, None] - (alpha * m + sigma * s), alpha * m_step + sigma * s_step
        self.offset = self.axes.turn(y) - self.axes.turn(self.step)
        self.variance = alpha**2 * self.axes.data + sigma**2 * self.axes.source + noise
        self.scaled = self.offset / self.variance
        log_det = (self.variance.log() + math.log(2 * math.pi)).sum(3) + self.axes.log_volume
        squares, self.shared = self._squares_apart() if is_far(x) else ((self.offset * self.scaled).sum(3), 0.0)
        logits = law.source.log_weights[sources][:, None] - 0.5 * (log_det + squares)
        self.logits = law.data.log_weights[rows] + logits.logsumexp(2)
        self.log_prob = self.logits + self.shared
        self.shares = logits.softmax(2)

    def relative(self) -> tuple[Tensor, Tensor | float]:
        return self.logits, self.shared

    def velocity(self, w: Tensor) -> Tensor:
        return self._weigh(w, self._velocity_steps()) + w.sum(1, keepdim=True) * self.drift[:, 0, 0]

    def score(self, w: Tensor) -> Tensor:
        return self._weigh(w, self._scores())

    def data(self, w: Tensor) -> Tensor:
        means = w @ self.law.data.centres[self.index[0]]
        return means if self.law.pointlike else means + self._weigh(w, self._data_steps())

    def divergence(self, w: Tensor) -> Tensor:
        first = self._first
        velocity, score = self._velocity_steps(), self._scores() - first._scores()
        step = velocity - first._velocity_steps()
        inner = self._rate.sum(3) + (score * step).sum(3)
        return self._weigh(w, torch.cat([inner[..., None], score, step, velocity + self.drift], 3))

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """x1 ``(b, D)`` of the only pair of every row."""
        left = self.axes.data * (self.at.sigma**2 * self.axes.source + self.at.noise) / self.variance
        noise = torch.randn(self.offset.shape, generator=generator, dtype=self.x.dtype, device=self.x.device)
        steps = self._data_steps() + self.axes.back(left.sqrt() * noise)
        return self.law.data.centres[self.index[:, 0]] + steps[:, 0, 0]

    @cached_property
    def _first(self) -> "PairChunk":
        own = self.index is self.law.first[0] and self.sources is self.law.first[1]
        return self if own else PairChunk(self.law, self.x, self.t, *self.law.first)

    def _squares_apart(self) -> tuple[Tensor, Tensor]:
        """Squares less that of the first pair, ``(b, n, k)``, and what it adds to the logarithms, ``(b, 1)``."""
        first, step, data, source = self._first, -self.step, self.law.data, self.law.source
        v, solved = -first._scores(), self.axes.slope(self.axes.turn(step) / self.variance)
        of_data = covariance_gap(data, self.law.first[0][..., None], self.index[..., None], v)
        of_source = covariance_gap(source, self.law.first[1][:, None], self.sources[:, None], v)
        gap = self.at.alpha**2 * of_data + self.at.sigma**2 * of_source
        shared = -0.5 * (first.offset * first.scaled).sum((2, 3))
        return squares_apart(step, solved, -self._scores(), gap), shared

    @cached_property
    def _rate(self) -> Tensor:
        alpha, sigma, alpha_rate, sigma_rate, _, half_rate = self.at
        own = alpha * alpha_rate * self.axes.data + sigma * sigma_rate * self.axes.source + half_rate
        return (own / self.variance).expand_as(self.offset)

    def _velocity_steps(self) -> Tensor:
        return self.axes.back(self._rate * self.offset) + self.drift_step

    def _scores(self) -> Tensor:
        return -self.axes.slope(self.scaled)

    def _data_steps(self) -> Tensor:
        return self.axes.back(self.at.alpha * self.axes.data * self.scaled)

    def _weigh(self, w: Tensor, rows: Tensor) -> Tensor:
        return weigh((w[..., None] * self.shares).flatten(1), rows.flatten(1, 2))


class _Blend(NamedTuple):
    r"""$\alpha, \sigma, \dot\alpha, \dot\sigma, e$ and $\tfrac12 \dot e$ at a time, each shaped like it."""

    alpha: Tensor
    sigma: Tensor
    alpha_rate: Tensor
    sigma_rate: Tensor
    noise: Tensor
    half_rate: Tensor


class _Axes(NamedTuple):
    r"""$W$ with $W^T C W$ and $W^T S W$ diagonal, ``data`` and ``source``; ``None`` where it is the identity.

    ``out`` is $W^{-T}$, and ``log_volume`` the logarithm of its squared determinant.
    """

    data: Tensor
    source: Tensor
    into: Tensor | None
    out: Tensor | None
    log_volume: Tensor | float = 0.0

    def turn(self, rows: Tensor) -> Tensor:
        return rows if self.into is None else torch.einsum("bnkd,bnkde->bnke", rows, self.into)

    def slope(self, rows: Tensor) -> Tensor:
        return rows if self.into is None else torch.einsum("bnke,bnkde->bnkd", rows, self.into)

    def back(self, rows: Tensor) -> Tensor:
        return rows if self.out is None else torch.einsum("bnke,bnkde->bnkd", rows, self.out)


def _common(data: Tensor, source: Tensor) -> _Axes:
    """Axes in which the sum of both covariances ``(..., D, D)`` is the identity, and each is diagonal."""
    total, axes = torch.linalg.eigh(data + source)
    root = total.sqrt()[..., None, :]
    share, turn = torch.linalg.eigh((axes / root).mT @ data @ (axes / root))
    share = share.clamp(0, 1)
    return _Axes(share, 1 - share, axes / root @ turn, axes * root @ turn, total.log().sum(-1))


def _relative(covariances: Tensor) -> Tensor:
    """Variances along principal axes over the largest, zero where that is rounding."""
    variances = torch.linalg.eigvalsh(covariances)
    relative = variances / variances.amax(-1, keepdim=True).clamp_min(1e-300)
    return torch.where(relative > variances.shape[-1] * torch.finfo(variances.dtype).eps, relative, 0.0)


def _blend(path: AffinePath | BridgePath, t: Tensor) -> _Blend:
    if isinstance(path, AffinePath):
        return _Blend(*path.schedule(t), torch.zeros_like(t), torch.zeros_like(t))
    return _Blend(t, 1 - t, torch.ones_like(t), -torch.ones_like(t), *path.noise(t))


def _as_mixture(source: Source, rows: Tensor) -> Mixture:
    """The source as a mixture, on the device of the data ``rows`` ``(n, *d)``."""
    if isinstance(source, StandardNormal):
        found = Mixture(rows.new_zeros(1, *rows.shape[1:]), rows.new_ones(1))
    elif isinstance(source, Points):
        found = Mixture(source.data, source.data.new_zeros(len(source.data)))
    elif isinstance(source, Mixture):
        found = source
    else:
        kind = type(source).__name__
        raise ValueError(f"source must be StandardNormal, Mixture or Points to have a closed form, got {kind}")
    if found.means.shape[1:] != rows.shape[1:]:
        raise ValueError(f"source must have rows of shape {tuple(rows.shape[1:])}, got {tuple(found.means.shape[1:])}")
    if found.means.device == rows.device:
        return found
    weights = None if found.weights is None else found.weights.to(rows.device)
    return Mixture(found.means.to(rows.device), found.covs.to(rows.device), weights)


def _isotropic(law: Mixture) -> bool:
    return bool((law.variances == law.variances[:, :1]).all())


def _all(law: Mixture) -> Tensor:
    return torch.arange(len(law.centres), device=law.centres.device)[None]


def _first(law: Mixture) -> Tensor:
    return _all(law)[:, most_central(law.centres)]
