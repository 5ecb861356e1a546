"""The exact fields of finite data and of Gaussian mixtures."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from numbers import Real
from typing import Any, Literal, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore[reportMissingImports]

from pathline.fields.exact import observations
from pathline.fields.exact.attention import DIRECT, Attention
from pathline.fields.exact.cells import Cells
from pathline.fields.exact.chunks import CHUNK, Chunk, last_call, most_central, weigh
from pathline.fields.exact.pairs import PairChunk, Pairs
from pathline.paths import AffinePath, BridgePath, GaussianPath, as_time, one_time
from pathline.schedules import Curve, Schedule
from pathline.sources import Mixture, StandardNormal, check_rows, check_tensor, log_weights

ExactPath = AffinePath | BridgePath | GaussianPath

Statistic = Literal["velocity", "score", "data", "divergence", "classes"]

MANY = 2**16
"""Rows times components from which the work is worth saving."""

FEW = 20_000
"""Components from which cells of them are."""

FINER = (1, 30, 1000)
"""How many times finer than the median row needs cells are taken, for the rows that coarser ones leave open."""

FAR = 1e6
"""Coordinates beyond it have squares in which differences between components drown."""

SMALLEST = -690.0
"""Exponents below it are taken as it is, short of the numbers on which exp is slow."""


class _MixtureField(ABC):
    """A field that is the posterior mean of its components' fields."""

    path: ExactPath
    shape: torch.Size
    log_weights: Tensor
    pairs: Pairs | None
    reference: slice
    labels: Tensor | None = None
    open_ends: dict[float, float | None]
    """Ends of [0, 1] at which there is no velocity, each with the time of the last call before it."""

    @abstractmethod
    def chunk(self, x: Tensor, t: Tensor, rows: slice) -> Chunk:
        """The components ``rows`` seen from ``x`` ``(b, D)`` at ``t`` ``(1,)`` or ``(b,)``, all float64."""

    @abstractmethod
    def chunk_width(self, times: int) -> int:
        """Numbers that a chunk holds for each row and component, given how many times it is asked for."""

    def __call__(self, x: Float[Tensor, "b *d"], t: Float[Tensor, "*b"], /, *, label: Tensor | None = None) -> Tensor:
        """The velocity u_t(x), shaped like ``x``.

        Raises:
            ValueError: t outside [0, 1], misshapen, or at an end without a value; x of another row shape, not floating
                point or not finite (looked at on the CPU); a label that the data have not; other than tensors, or
                tensors on another device than the data.
        """
        _, (velocity,) = self._expect(x, t, label, "velocity")
        return velocity.reshape(x.shape).to(x.dtype)

    def log_prob(self, x: Tensor, t: Tensor, *, label: Tensor | None = None) -> Tensor:
        """log p_t(x) in nats, shape ``(b,)``."""
        log_prob, _ = self._expect(x, t, label)
        return log_prob.to(x.dtype)

    def score(self, x: Tensor, t: Tensor, *, label: Tensor | None = None) -> Tensor:
        """The gradient of log p_t at ``x``, shaped like ``x``."""
        _, (score,) = self._expect(x, t, label, "score")
        return score.reshape(x.shape).to(x.dtype)

    def posterior_mean(self, x: Tensor, t: Tensor, *, label: Tensor | None = None) -> Tensor:
        """E[x1 given x_t = x], shaped like ``x``."""
        _, (data,) = self._expect(x, t, label, "data")
        return data.reshape(x.shape).to(x.dtype)

    def divergence(self, x: Tensor, t: Tensor, *, label: Tensor | None = None) -> Tensor:
        """The divergence of u_t at ``x``, shape ``(b,)``, without automatic differentiation."""
        return self.velocity_and_divergence(x, t, label=label)[1]

    def velocity_and_divergence(self, x: Tensor, t: Tensor, *, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both in one pass over the components: shapes ``(b, *d)`` and ``(b,)``."""
        _, (parts,) = self._expect(x, t, label, "divergence")
        d = self.shape.numel()
        inner, score, velocity_step, velocity = parts.split([1, d, d, d], 1)
        divergence = inner[:, 0] - (velocity_step * score).sum(1)
        return velocity.reshape(x.shape).to(x.dtype), divergence.to(x.dtype)

    def jvp(self, x: Tensor, t: Tensor, v: Tensor, *, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The velocity at ``x`` and its Jacobian in x applied to ``v``, both shaped like ``x``, in one forward pass.

        Raises:
            ValueError: ``v`` of another shape than ``x``.
        """
        check_tensor("v", v)
        check_tensor("x", x)
        if v.shape != x.shape:
            raise ValueError(f"v must be shaped like x {tuple(x.shape)}, got {tuple(v.shape)}")
        both = torch.func.jvp(lambda at: self(at, t, label=label), (x,), (v.to(x),))
        return both[0], both[1]

    def posterior_sample(
        self, x: Tensor, t: Tensor, generator: torch.Generator | None = None, *, label: Tensor | None = None
    ) -> Tensor:
        """A draw of x1 given x_t = x for every row, shaped like ``x``."""
        time = self._check(x, t)
        self._log_total(label, len(x))
        flat, labels = (
            x.detach().reshape(len(x), self.shape.numel()).double(),
            None if label is None else label.expand(len(x)),
        )
        step = max(1, CHUNK // max(1, min(len(self.log_weights), 4096) * self.chunk_width(len(time))))
        draws = []
        for first in range(0, len(x), step):
            rows = slice(first, first + step)
            own = time if len(time) == 1 else time[rows]
            which = self._component(flat[rows], own, None if labels is None else labels[rows], generator)
            draws.append(self._draw(flat[rows], own, which, generator))
        return torch.cat([flat[:0], *draws]).reshape(x.shape).to(x.dtype)

    def _component(self, x: Tensor, t: Tensor, label: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """A component of the posterior for every row ``(b,)``: the largest log-weight with Gumbel noise."""
        far = _far(x)
        best, which = x.new_full((len(x),), -math.inf), torch.zeros(len(x), dtype=torch.long, device=x.device)
        step = max(1, CHUNK // max(1, len(x) * self.chunk_width(len(t)), self.shape.numel()))
        for first in range(0, len(self.log_weights), step):
            rows = slice(first, first + step)
            chunk = self.chunk(x, t, rows)
            logits = chunk.relative()[0] if far else chunk.log_prob
            if label is not None and self.labels is not None:
                logits = logits.masked_fill(label[:, None] != self.labels[rows], -math.inf)
            noise = torch.empty_like(logits).exponential_(generator=generator).log()
            value, index = (logits - noise).max(1)
            which = torch.where(value > best, first + index, which)
            best = torch.maximum(best, value)
        return which

    @abstractmethod
    def _draw(self, x: Tensor, t: Tensor, which: Tensor, generator: torch.Generator | None) -> Tensor:
        """x1 ``(b, D)`` given x and the component of every row."""

    def _expect(
        self, x: Tensor, t: Tensor, label: Tensor | None, *statistics: Statistic
    ) -> tuple[Tensor, list[Tensor]]:
        time, log_total = self._check(x, t), self._log_total(label, len(x))
        flat = x.reshape(len(x), self.shape.numel()).double()
        step = max(1, CHUNK // max(1, min(len(self.log_weights), 4096) * self.chunk_width(len(time))))
        parts = []
        for first in range(0, max(1, len(x)), step):
            rows = slice(first, first + step)
            own = time if len(time) == 1 else time[rows]
            labels = None if label is None else label.expand(len(x))[rows]
            parts.append(self._expect_rows(flat[rows], own, labels, statistics))
        log_prob, *means = (torch.cat(part) for part in zip(*parts, strict=True))
        return log_prob - log_total, means

    def _expect_rows(self, x: Tensor, t: Tensor, label: Tensor | None, statistics: Sequence[Statistic]) -> list[Tensor]:
        top = x.new_full((len(x), 1), torch.finfo(x.dtype).min)
        total, sums = x.new_zeros(len(x), 1), [0.0] * len(statistics)
        far, shared = _far(x), 0.0
        step = max(1, CHUNK // max(1, len(x) * self.chunk_width(len(t)), self.shape.numel()))
        for first in range(0, len(self.log_weights), step):
            rows = slice(first, first + step)
            chunk = self.chunk(x, t, rows)
            logits, shared = chunk.relative() if far else (chunk.log_prob, 0.0)
            if label is not None and self.labels is not None:
                logits = logits.masked_fill(label[:, None] != self.labels[rows], -math.inf)
            new_top = torch.maximum(top, logits.detach().amax(1, keepdim=True))
            shrink, w = (top - new_top).exp(), (logits - new_top).clamp_min(SMALLEST).exp()
            total = total * shrink + w.sum(1, keepdim=True)
            sums = [s * shrink + getattr(chunk, name)(w) for s, name in zip(sums, statistics, strict=True)]
            top = new_top
        return [(top + total.log() + shared)[:, 0], *(s / total for s in sums)]

    def _check(self, x: Tensor, t: Tensor) -> Tensor:
        device = self.log_weights.device
        check_tensor("x", x, device)
        check_tensor("t", t, device)
        if x.ndim == 0 or x.shape[1:] != self.shape:
            raise ValueError(f"x must have rows of shape {tuple(self.shape)}, got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"x must be floating point, as the results are in its dtype, got {x.dtype}")
        time = as_time(t, x).double()
        time = time.reshape(-1)[:1] if one_time(time) else time
        if time.device.type == "cpu":
            if not bool(((time >= 0) & (time <= 1)).all()):
                raise ValueError(f"t must lie in [0, 1], got values in [{time.min():.6g}, {time.max():.6g}]")
            for end in self.open_ends:
                if bool((time == end).any()):
                    raise ValueError(f"t must not be {end:g}: this exact field has no value there")
        return time

    def _log_total(self, label: Tensor | None, n: int) -> Tensor:
        if label is None:
            return torch.logsumexp(self.log_weights, 0)
        if self.labels is None:
            raise ValueError("label was given, but the field was made without labels")
        check_tensor("label", label, self.labels.device)
        if label.ndim > 1 or (label.ndim == 1 and len(label) != n):
            raise ValueError(f"label must have shape () or ({n},), got {tuple(label.shape)}")
        kinds, totals = self._totals
        place = torch.searchsorted(kinds, label.contiguous()).clamp_max(len(kinds) - 1)
        found = kinds[place] == label
        if not bool(found.all()):
            unknown = label.reshape(-1)[~found.reshape(-1)][0].item()
            raise ValueError(f"label must be one of the data's, with weight, e.g. {kinds[:10].tolist()}, got {unknown}")
        return totals[place].log()

    @cached_property
    def _totals(self) -> tuple[Tensor, Tensor]:
        """The labels whose components have weight, in order, and their weights."""
        assert self.labels is not None
        kinds, inverse = self.labels.unique(return_inverse=True)
        totals = torch.zeros(len(kinds), dtype=torch.float64, device=kinds.device)
        totals = totals.index_add(0, inverse, self.log_weights.exp())
        return kinds[totals > 0], totals[totals > 0]


class EmpiricalField(_MixtureField):
    """The exact marginal field of a finite data set on any Gaussian path.

    Attributes:
        path: an `AffinePath` or `BridgePath` from a `StandardNormal`, a `Mixture` or `Points`, which are drawn
            independently of the data, or a `GaussianPath` from a `StandardNormal`.
        data: the points, shape ``(N, *d)``.
        weights: their probabilities up to a factor, shape ``(N,)``; ``None``: equal.
        labels: a class for each point, shape ``(N,)``; ``field(x, t, label=y)`` is the field of class y alone.
        rtol: the velocity may be off by ``rtol (|u| + |x|)``, proven row by row: in up to 3 dimensions on an affine
            path from a standard normal, from 20,000 points on, at one time for all rows. ``None``, and whatever else
            is asked: exact.

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
        _check_path(path, (AffinePath, BridgePath, GaussianPath))
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
        self.pairs = Pairs(path, Mixture(data, data.new_zeros(len(data)), weights)) if _mixes(path) else None
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
        least, most = _last_stds(self.path, self.points)
        return _open_ends(self.path, least == 0 or 1.0 in self.path.open_ends, wide=most > 0)

    def chunk_width(self, times: int) -> int:
        if self.pairs is not None:
            return self.pairs.width
        return 2 if times == 1 else max(2, self.shape.numel())

    def chunk(self, x: Tensor, t: Tensor, rows: slice) -> Chunk:
        return _FarPoints(self, x, t, rows) if self.pairs is None else _PointPairs(self, x, t, rows)

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
        """Label by label, each from its own points, where there are fewer labels than are worth the trouble."""
        time, _ = self._check(x, t), self._log_total(label, len(x))
        kinds, which = label.expand(len(x)).unique(return_inverse=True)
        if len(x) == 0 or len(x) * len(self.points) < MANY // 16 * len(kinds):
            return super()._expect(x, t, label, *statistics)
        rows = [(which == k).nonzero()[:, 0] for k in range(len(kinds))]
        times = [(time if len(time) == 1 else time[own]).expand(len(own)) for own in rows]
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
        flat = x.reshape(len(x), self.shape.numel()).double()
        curve = Curve(*(value.expand(len(x))[:, None] for value in self.path.schedule(time)))  # pyright: ignore[reportAttributeAccessIssue]
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
        means = [values[name]() for name in statistics]
        poor = (~found.good).nonzero()[:, 0]
        if len(poor):
            own = time if len(time) == 1 else time[poor]
            exact_log_prob, exact = super()._expect(x[poor], own.expand(len(poor)), None, *statistics)
            log_prob[poor] = exact_log_prob
            for value, better in zip(means, exact, strict=True):
                value[poor] = better
        return log_prob, means

    @cached_property
    def cells(self) -> Cells:
        return Cells(self.points.reshape(len(self.points), -1), self.log_weights.exp())

    def _approximate(self, x: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor]]:
        """No density, and velocities good to ``rtol``; rows that finer cells cannot vouch for either are exact."""
        time = self._check(x, t)
        alpha, sigma, alpha_rate, sigma_rate = (float(v) for v in self.path.schedule(time[0]))  # pyright: ignore[reportAttributeAccessIssue]
        flat, rtol = x.reshape(len(x), self.shape.numel()).double(), self.rtol or 0.0
        velocity, rows = torch.empty_like(flat), torch.arange(len(x), device=x.device)
        of_data = alpha_rate - sigma_rate / sigma * alpha
        for finer in FINER:
            if len(rows) == 0:
                break
            own = flat[rows]
            size = own.norm(dim=1)
            tol = rtol * float(size.median()) / finer / max(abs(of_data), 1e-300)
            found = self.cells.posterior_mean(own, alpha, sigma, tol)
            velocity[rows] = of_data * found.mean + sigma_rate / sigma * own
            good = found.error * abs(of_data) * (1 + rtol) <= rtol * (velocity[rows].norm(dim=1) + size)
            rows = rows[~good]
        if len(rows):
            _, (exact,) = self._expect_all(x[rows], time.expand(len(rows)), "velocity")
            velocity[rows] = exact
        return flat[:, 0], [velocity]

    def _near_enough(self, x: Tensor, t: Tensor) -> bool:
        """Whether an error of ``rtol`` is asked for and saves anything."""
        return (
            self.rtol is not None
            and isinstance(self.path, AffinePath)
            and self.shape.numel() <= DIRECT
            and len(self.points) >= FEW
            and len(x) * len(self.points) >= MANY
            and one_time(t)
            and _untracked(x)
        )

    def _coarse(self, x: Tensor) -> bool:
        """Whether float32 in and out, many enough and not to be differentiated."""
        return (
            x.dtype == self.points.dtype == torch.float32
            and isinstance(self.path, AffinePath)
            and len(x) * len(self.points) >= MANY
            and _untracked(x)
            and not _far(x)
        )


class _Labelled(Chunk):
    """Points, each with a label."""

    field: EmpiricalField
    rows: slice

    def classes(self, w: Tensor) -> Tensor:
        """sum_i w_i by label, shape ``(b, classes)``."""
        kinds, inverse = self.field._kinds
        return w.new_zeros(len(w), len(kinds)).index_add(1, inverse[self.rows], w)


class _PointPairs(_Labelled, PairChunk):
    """Points, each with all components of the source."""

    def __init__(self, field: EmpiricalField, x: Tensor, t: Tensor, rows: slice) -> None:
        assert field.pairs is not None
        super().__init__(field.pairs, x, t, rows)
        self.field, self.rows = field, rows


class _Points(_Labelled):
    """Isotropic Gaussians: v_i = rate_i (x - mean_i) + drift_i, and g_i = precision_i (mean_i - x).

    With y the offset of x from the mean of the reference component and n_i the step from there to mean_i,
    dv_i = f_i + drate_i y with f_i = ddrift_i - rate_i n_i, and dg_i = precision_i n_i - dprecision_i y.
    """

    def __init__(self, field: EmpiricalField, x: Tensor, t: Tensor, rows: slice) -> None:
        points = field.points[rows].double()
        self.field, self.rows = field, rows
        self.points = points.reshape(len(points), -1)
        mean, self.precision, self.drift, self.rate = _isotropic(field.path, points, t)
        mean_0, self.precision_0, self.drift_0, self.rate_0 = _isotropic(
            field.path, field.points[field.reference].double(), t
        )
        self.y, self.n = x - mean_0[:, 0], mean - mean_0
        self.along = _inner(self.y, self.n)
        self.squares = self.n.square().sum(2)
        distances = (self.y.square().sum(1, keepdim=True) + self.squares - 2 * self.along).clamp_min(0)
        log_norm = 0.5 * x.shape[1] * (self.precision.log() - math.log(2 * math.pi))
        self.log_prob = field.log_weights[rows] + log_norm - 0.5 * self.precision * distances

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
        inner = inner - more_precision * (_inner(self.y, self.f) + more_rate * self.y.square().sum(1, keepdim=True))
        inner = (w * (inner + self.y.shape[1] * self.rate)).sum(1, keepdim=True)
        step = self._velocity_step(w)
        return torch.cat([inner, self._score_step(w), step, self.velocity(w)], 1)

    def _velocity_step(self, w: Tensor) -> Tensor:
        return weigh(w, self.f) + self.y * (w * (self.rate - self.rate_0)).sum(1, keepdim=True)

    def _score_step(self, w: Tensor) -> Tensor:
        more = (w * (self.precision - self.precision_0)).sum(1, keepdim=True)
        return weigh(w * self.precision, self.n) - self.y * more


class _FarPoints(_Points):
    """Points that can be told apart from any distance."""

    def relative(self) -> tuple[Tensor, Tensor]:
        r"""$\log w_i \mathcal N_i + \tfrac12 p_0 |y|^2$ with the precision p_0 of the reference component."""
        far = self.y.square().sum(1, keepdim=True)
        log_norm = 0.5 * self.y.shape[1] * (self.precision.log() - math.log(2 * math.pi))
        logits = self.field.log_weights[self.rows] + log_norm + self.precision * (self.along - 0.5 * self.squares)
        if not isinstance(self.field.path, AffinePath):
            logits = logits - 0.5 * (self.precision - self.precision_0) * far
        return logits, -0.5 * self.precision_0 * far


class GaussianMixtureField(_MixtureField):
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
        _check_path(path, (AffinePath, BridgePath))
        law = Mixture(means, covs, weights)
        self.path, self.shape = path, means.shape[1:]
        self.means, self.variances, self.axes, self.log_weights = law.centres, law.variances, law.axes, law.log_weights
        self.reference = most_central(self.means)
        self.pairs = Pairs(path, law) if _mixes(path) else None
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
        sharp = _last_stds(self.path, self.means)[0] == 0 and not bool(self.variances.all())
        return _open_ends(self.path, sharp or (1.0 in self.path.open_ends and not limit), wide)

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
        if self.axes is not None:
            return super().relative()
        y, step = self.first.offset, self.alpha * (self.first.means - self.means)
        apart = step * (self.scaled + y / self.variance)
        apart = apart + y.square() * (1 / self.variance - 1 / self.first.variance)
        return self.log_weights - 0.5 * (self.log_det + apart.sum(2)), -0.5 * (y * self.first.scaled).sum(2)

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


def _far(x: Tensor) -> bool:
    """Whether a row is known to be far away."""
    return _seen(x) and bool((x.detach().abs() > FAR).any())


def _seen(x: Tensor) -> bool:
    """Whether the numbers of ``x`` can be looked at without waiting for a device, a compiler or a transform."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not is_functorch_wrapped_tensor(x)


def _untracked(x: Tensor) -> bool:
    """Whether nobody differentiates by ``x``."""
    tracked = torch.is_grad_enabled() and x.requires_grad
    return not tracked and not is_functorch_wrapped_tensor(x)


def _last_stds(path: ExactPath, points: Tensor) -> tuple[float, float]:
    """The least and the greatest standard deviation of p_t(x given x1) at t = 1."""
    one = torch.ones((), dtype=torch.float64, device=points.device)
    if isinstance(path, AffinePath):
        sigma = float(path.schedule(one).sigma)
        return sigma, sigma
    step = max(1, CHUNK // max(1, points[0].numel()))
    stds = [path.moments(part.double(), one).std for part in points.split(step)]
    return min(float(std.min()) for std in stds), max(float(std.max()) for std in stds)


def _open_ends(path: ExactPath, last: bool, wide: bool) -> dict[float, float | None]:
    """The path's start where it is open, and t = 1 where ``last``."""
    ends: dict[float, float | None] = {end: path.inner_time(end) for end in path.open_ends if end != 1.0}
    return {**ends, 1.0: last_call(path, wide)} if last else ends


def _inner(x: Tensor, rows: Tensor) -> Tensor:
    """x . rows_i, shape ``(b, n)``, for rows ``(1 or b, n, D)``."""
    return x @ rows[0].T if len(rows) == 1 else torch.einsum("bd,bnd->bn", x, rows)


def _check_path(path: Any, kinds: tuple[type, ...]) -> None:
    if not isinstance(path, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"path must be {names}, got {type(path).__name__}")
    if isinstance(path, GaussianPath) and not isinstance(path.source, StandardNormal):
        raise ValueError(
            "path must start from a standard normal if it is a GaussianPath, whose p_t(x given x1) is not Gaussian "
            f"otherwise, got {type(path.source).__name__}: take an AffinePath or a BridgePath from that source"
        )


def _mixes(path: ExactPath) -> TypeGuard[AffinePath | BridgePath]:
    """Whether x_t is worked out from pairs, as its source or its noise asks for."""
    return isinstance(path, BridgePath) or (
        isinstance(path, AffinePath) and not isinstance(path.source, StandardNormal)
    )
