"""Where a loss stands: its floor, what it has in excess, and R2, in bins of time and in total."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pathline.diagnostics.curves import check_rows
from pathline.diagnostics.law import LawField
from pathline.fields import EmpiricalField
from pathline.objectives import FlowMatching
from pathline.paths import AffinePath, GaussianPath
from pathline.sources import StandardNormal
from pathline.typing import Batch

BINS = 10
_NODES, _WEIGHTS = (values.tolist() for values in np.polynomial.legendre.leggauss(3))
_PAIRS = {torch.float64: (2**25, 64), torch.float32: (2**29, 16)}
"""Points times components that a few seconds allow, and the number of dimensions that halves them."""
_MOST, _MOST_OF_MANY_LABELS = 1000, 300
_PANELS, _RATIO = 7, 4
"""Into how many pieces the first and the last bin are cut, each this much shorter than the next away from the end."""
_FEWER = 8
"""By what the draws are divided in all but the longest piece of a bin, which has three quarters of its time."""


class Truth(Protocol):
    """An exact field: `EmpiricalField` of the rows of the training, `GaussianMixtureField`, `LawField`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...

    def velocity_and_divergence(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error, and both for each of k equal bins of time, of which it is the mean.

    A standard error is nan where there is one row alone, which says nothing of the others of its law.
    """

    value: float
    se: float
    by_time: tuple[float, ...]
    by_time_se: tuple[float, ...]


@dataclass(frozen=True)
class Losses:
    r"""What `Reference.judge` returns, per dimension and with t uniform over the times that were integrated.

    Attributes:
        floor: $\mathbb E\,\lVert u_t(x_t \mid x_1) - u_t(x_t) \rVert^2 / d$, which no field can go below.
        excess: $\mathbb E\,\lVert v_t(x_t) - u_t(x_t) \rVert^2 / d$ of the field v.
        loss: their sum, the expected flow-matching loss of v.
        r2: 1 - excess / $\mathbb E\,\lVert u_t - \mathbb E\,u_t \rVert^2$; its total is that of the two integrals.
        n: points (x, t) that were looked at.
    """

    floor: Estimate
    excess: Estimate
    loss: Estimate
    r2: Estimate
    n: int


class _Piece(NamedTuple):
    """A time, its bin, the share of that bin that it stands for, and by what the number of draws is divided there."""

    t: float
    bin: int
    share: float
    fewer: int


class _Point(NamedTuple):
    """Points at one time, ``(n, *d)``, which rows they come from, the conditional velocity, and the piece of time."""

    x: Tensor
    t: Tensor
    target: Tensor
    rows: Tensor
    piece: _Piece


class _Node(NamedTuple):
    """A point with the exact velocity and the floor there."""

    point: _Point
    velocity: Tensor
    floor: Tensor


@dataclass(frozen=True)
class Reference:
    """Points (x, t) with the exact field at them, to hold any number of fields against; made by `reference`.

    Attributes:
        whole: the rows are the whole law, so that standard errors count draws and not rows.
    """

    nodes: tuple[_Node, ...] = dataclasses.field(repr=False)
    whole: bool = False

    @property
    def n(self) -> int:
        """How many points there are."""
        return sum(len(node.floor) for node in self.nodes)

    @cached_property
    def floor(self) -> Estimate:
        """See `Losses`."""
        return self._sums([node.floor for node in self.nodes]).estimate()

    def judge(self, field: Callable[..., Tensor], cond: Mapping[str, Tensor] = {}) -> Losses:
        """Where a field stands; ``cond`` holds a condition for each of the rows that the points come from."""
        excesses, spreads = [], []
        for point, u, _ in self.nodes:
            v = field(point.x, point.t, **{name: value[point.rows] for name, value in cond.items()})
            excesses.append((v - u).double().square().flatten(1).mean(1))
            spreads.append((u - u.mean(0)).double().square().flatten(1).mean(1) * len(u) / (len(u) - 1))
        both = [node.floor + more for node, more in zip(self.nodes, excesses, strict=True)]
        excess, spread = self._sums(excesses), self._sums(spreads)
        return Losses(self.floor, excess.estimate(), self._sums(both).estimate(), _r2(excess, spread), self.n)

    def _sums(self, values: list[Tensor]) -> "_Sums":
        return _sums([node.point for node in self.nodes], values, self.whole)


def reference(
    truth: Truth,
    path: AffinePath | GaussianPath,
    rows: Float[Tensor, "n *d"],
    *,
    cond: Mapping[str, Tensor] = {},
    draws: int | None = None,
    generator: torch.Generator | None = None,
    time_range: tuple[float, float] | None = None,
) -> Reference:
    r"""Draws points of a path and asks an exact field at them, for the floor of the loss and for what is above it.

    The floor comes from the conditional variance itself, on an affine path from the divergence of the exact field,

    $$\mathbb E[\lVert u_t(x \mid x_1) - u_t(x) \rVert^2 \mid x_t = x] = \Big(\frac{\dot\alpha \sigma^2}{\alpha}
    - \dot\sigma \sigma\Big) \Big(\nabla \cdot u_t(x) - \frac{\dot\sigma}{\sigma} d\Big),$$

    so that only x_t is drawn, and not the pair. Time is integrated by three Gauss-Legendre nodes in each of 10 bins;
    the first and the last are cut into 7 pieces of three nodes, each a quarter as long as the one before, for laws
    that are narrow or wide: good to 0.5% for one Gaussian of standard deviation 1e-4 to 1e3. A `LawField`, which
    resolves no such times, is asked in whole bins.

    Standard errors have one of two meanings. Where ``truth`` is the `EmpiricalField` of these very rows, as for the
    floor of a training set, the rows are the law, and the error is that of drawing points from them (a bound on it
    where a row is drawn once at a time, since all rows are drawn equally often). Else the rows are a sample of a
    population that the number is about, and the error is that of the choice of rows: of the contributions of each row,
    from all of its draws at all times, as independent as the rows are.

    Args:
        truth: the exact field of the law that the rows come from; of the rows themselves for the floor of a training.
        path: the path; rows: data to draw x_t from, ``(n, *d)``, whose dtype is that of all questions to the field.
        cond: a condition for each row, by the keywords of the exact field.
        draws: points for each of the 30 times of whole bins and longest pieces, in the shorter pieces an eighth of it
            and at least 2; ``None``: 1,000, or 128 of a `LawField`, and less of an `EmpiricalField`
            of more than about 1,000 rows, so that a call takes a few seconds; the field keeps all its rows. In float32
            that holds from 15,000 rows on: of 100,000 rows of 2 numbers 159 points, and 10 in float64.
        generator: for rows and noise.
        time_range: the times, of whose mean the result is; ``None``: ``FlowMatching(path).time_range``, which is [0, 1]
            but for an end where the conditional velocity has no limit: of `schedules.variance_preserving` t = 1, and
            the floor grows without bound as the range nears it. Beyond the range no objective trains. Pass
            ``FlowMatching(path, predicts).time_range`` for a field that wraps a network which predicts something else.

    Raises:
        ValueError: no rows, draws below 2, a time range outside [0, 1], or what the exact field refuses.

    Reference: Bertrand et al., "On the closed-form of flow matching: generalization does not arise from target
    stochasticity", arXiv:2506.03719.

    >>> from pathline import GaussianMixtureField, schedules
    >>> path = AffinePath(schedules.linear())
    >>> one = GaussianMixtureField(path, torch.zeros(1, 2), torch.ones(1))
    >>> round(reference(one, path, torch.randn(50, 2)).floor.value, 4)  # the integral of 1 / (t^2 + (1 - t)^2)
    1.5708
    """
    count = _count(truth, rows) if draws is None else draws
    check_rows(rows, count, 2)
    nodes = []
    pieces = _pieces(path, time_range, 1 if isinstance(truth, LawField) else _PANELS)
    for point in _points(path, rows, count, pieces, generator):
        own = {name: value[point.rows] for name, value in cond.items()}
        nodes.append(_Node(point, *_scatter(truth, path, point, own)))
    return Reference(tuple(nodes), _is_law(truth, rows))


def loss_over_time(
    field: Callable[..., Tensor],
    path: AffinePath | GaussianPath,
    rows: Float[Tensor, "n *d"],
    *,
    cond: Mapping[str, Tensor] = {},
    draws: int = 1000,
    generator: torch.Generator | None = None,
    time_range: tuple[float, float] | None = None,
) -> Estimate:
    r"""The flow-matching loss on rows whose exact field is unknown, $\mathbb E\,\lVert v - u(x_t | x_1) \rVert^2 / d$.

    The standard error is that of an estimate about the population which the rows come from, see `reference`: it falls
    with the number of rows, and no further with that of draws.

    Args: as for `reference`, with ``draws`` points at the same times.

    Raises:
        ValueError: no rows, draws below 2, or a time range outside [0, 1].
    """
    check_rows(rows, draws, 2)
    points, found = [], []
    for point in _points(path, rows, draws, _pieces(path, time_range, _PANELS), generator):
        v = field(point.x, point.t, **{name: value[point.rows] for name, value in cond.items()})
        points.append(point)
        found.append((v - point.target).double().square().flatten(1).mean(1))
    return _sums(points, found, whole=False).estimate()


def _is_law(truth: Truth, rows: Tensor) -> bool:
    """Whether the exact field is that of these very rows."""
    if not isinstance(truth, EmpiricalField) or truth.points.shape != rows.shape:
        return False
    return torch.equal(truth.points.to(rows), rows)


def _pieces(path: AffinePath | GaussianPath, time_range: tuple[float, float] | None, panels: int) -> list[_Piece]:
    """The nodes of all bins, of the first and the last in geometric pieces towards the ends of the range."""
    low, high = FlowMatching(path).time_range if time_range is None else time_range
    if not 0 <= low < high <= 1:
        raise ValueError(f"time_range must be two times in [0, 1], the earlier first, got {(low, high)}")
    graded = [0.0] + [float(_RATIO) ** -k for k in reversed(range(panels))]
    found = []
    for b in range(BINS):
        edges = graded if b == 0 else [1 - edge for edge in reversed(graded)] if b == BINS - 1 else [0.0, 1.0]
        for left, right in itertools.pairwise(edges):
            for node, weight in zip(_NODES, _WEIGHTS, strict=True):
                at = (b + (left + right) / 2 + (right - left) / 2 * node) / BINS
                short = right - left < 0.5
                share = (right - left) * weight / 2
                found.append(_Piece(low + (high - low) * at, b, share, _FEWER if short else 1))
    return found


def _points(
    path: AffinePath | GaussianPath,
    rows: Tensor,
    draws: int,
    pieces: list[_Piece],
    generator: torch.Generator | None,
) -> Iterator[_Point]:
    """What is drawn at each node; every row is drawn equally often there, up to one."""
    for piece in pieces:
        count = max(2, draws // piece.fewer)
        t = rows.new_tensor(piece.t)
        turns = math.ceil(count / len(rows))
        index = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(turns)])[:count]
        x1 = rows[index]
        x0 = path.source.sample(tuple(x1.shape), generator, x1.dtype, x1.device)
        at = path.sample(Batch(x1, x0), t)
        yield _Point(at.x_t, t.expand(count), at.target, index, piece)


def _scatter(
    truth: Truth, path: AffinePath | GaussianPath, point: _Point, cond: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The exact velocity, and E |u(x | x1) - u(x)|^2 / d given x or, where it has no formula, one draw of it."""
    x, t = point.x, point.t
    if not isinstance(path, AffinePath) or not isinstance(path.source, StandardNormal):
        u = truth(x, t, **cond)
        return u, (point.target - u).double().square().flatten(1).mean(1)
    u, divergence = truth.velocity_and_divergence(x, t, **cond)
    alpha, sigma, alpha_rate, sigma_rate = (value.double() for value in path.schedule(t.double()))
    pull = alpha_rate * sigma**2 / alpha - sigma_rate * sigma
    per_dim = divergence.double() / x[0].numel() - sigma_rate / sigma
    return u, (pull * per_dim).clamp_min(0)


class _Sums(NamedTuple):
    """Integrals over each bin ``(BINS,)`` and what every independent unit adds to their errors ``(units, BINS)``."""

    by_time: Tensor
    scores: Tensor

    def estimate(self) -> Estimate:
        """The integral over all time, with standard errors."""
        total, errors = _errors(self.scores)
        return Estimate(float(self.by_time.mean()), total, tuple(self.by_time.tolist()), errors)


def _errors(scores: Tensor) -> tuple[float, tuple[float, ...]]:
    """Of the mean over bins and of every bin, from independent contributions ``(units, BINS)``."""
    total = scores.sum(1).square().sum().sqrt() / BINS
    return float(total), tuple(scores.square().sum(0).sqrt().tolist())


def _sums(points: list[_Point], values: list[Tensor], whole: bool) -> _Sums:
    r"""The integrals of what was drawn, values ``(n,)`` at every point; units are draws if rows are the law, else rows.

    Rows: $\sum_i s_i^2$ with $s_i$ the sum over the draws of row i of share times (value - mean) / n, each time's
    by $\sqrt{m / (m - 1)}$ of its m rows, so that rows drawn equally often have the variance of their means.
    """
    by_time = torch.zeros(BINS, dtype=torch.float64)
    kinds = 1 + max(int(point.rows.max()) for point in points)
    scores = torch.zeros(sum(len(v) for v in values) if whole else kinds, BINS, dtype=torch.float64)
    first = 0
    for point, value in zip(points, values, strict=True):
        value, (_, b, share, _) = value.double().cpu(), point.piece
        by_time[b] += share * value.mean()
        unit = torch.arange(first, first + len(value)) if whole else point.rows
        scores[:, b].index_add_(0, unit, share / len(value) * _residual(value, point.rows, whole))
        first += len(value)
    return _Sums(by_time, scores)


def _residual(value: Tensor, rows: Tensor, whole: bool) -> Tensor:
    """Values ``(n,)`` less their mean, or that of their row where each is drawn again, scaled for what that takes."""
    counts = torch.bincount(rows)
    if whole and int(counts[counts > 0].min()) > 1:
        means = torch.zeros(len(counts), dtype=value.dtype).index_add_(0, rows, value) / counts
        return (value - means[rows]) * (counts / (counts - 1)).sqrt()[rows]
    units = len(value) if whole else int((counts > 0).sum())
    return (value - value.mean()) * math.sqrt(units / (units - 1)) if units > 1 else value * math.nan


def _r2(excess: _Sums, spread: _Sums) -> Estimate:
    """1 - excess / spread; its errors are those of excess - (excess / spread) spread, over spread."""
    by_time = spread.by_time.clamp_min(1e-300)
    whole, ratios = float(by_time.mean()), excess.by_time / by_time
    ratio = float(excess.by_time.mean()) / whole
    total, _ = _errors(excess.scores - ratio * spread.scores)
    _, errors = _errors((excess.scores - ratios * spread.scores) / by_time)
    return Estimate(1 - ratio, total / whole, tuple((1 - ratios).tolist()), errors)


def _count(truth: Truth, rows: Tensor) -> int:
    """Points at a node that a few seconds allow."""
    if not isinstance(truth, EmpiricalField):
        return 128 if isinstance(truth, LawField) else _MOST
    fast = rows.dtype == truth.points.dtype == torch.float32 and isinstance(truth.path, AffinePath)
    most, half = _PAIRS[torch.float32 if fast else torch.float64]
    pairs = most * half // (half + truth.shape.numel())
    many = truth.labels is not None and len(truth.classes) > _MOST_OF_MANY_LABELS
    return max(4, min(_MOST_OF_MANY_LABELS if many else _MOST, pairs // (len(truth.points) * BINS * len(_NODES))))
