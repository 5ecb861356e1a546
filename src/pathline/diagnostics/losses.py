"""Where a loss stands: its floor, what it has in excess, and R2, in bins of time and in total."""

import dataclasses
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
from pathline.paths import AffinePath, GaussianPath
from pathline.sources import StandardNormal
from pathline.typing import Batch

BINS = 10
_NODES, _WEIGHTS = (values.tolist() for values in np.polynomial.legendre.leggauss(3))
_PAIRS = {torch.float64: (2**25, 64), torch.float32: (2**29, 16)}
"""Points times components that a few seconds allow, and the number of dimensions that halves them."""
_MOST, _MOST_OF_MANY_LABELS = 1000, 300


class Truth(Protocol):
    """An exact field: `EmpiricalField` of the rows of the training, `GaussianMixtureField`, `LawField`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...

    def velocity_and_divergence(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error, and both for each of k equal bins of time, of which it is the mean."""

    value: float
    se: float
    by_time: tuple[float, ...]
    by_time_se: tuple[float, ...]


@dataclass(frozen=True)
class Losses:
    r"""What `Reference.judge` returns, per dimension and with t uniform.

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


class _Node(NamedTuple):
    """Points at one time: x_t, the exact velocity and the floor there, and which rows they come from."""

    x: Tensor
    t: Tensor
    velocity: Tensor
    floor: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Reference:
    """Points (x, t) with the exact field at them, to hold any number of fields against; made by `reference`."""

    nodes: tuple[_Node, ...] = dataclasses.field(repr=False)

    @property
    def n(self) -> int:
        """How many points there are."""
        return sum(len(node.x) for node in self.nodes)

    @cached_property
    def floor(self) -> Estimate:
        """See `Losses`."""
        return estimate([node.floor for node in self.nodes])

    def judge(self, field: Callable[..., Tensor], cond: Mapping[str, Tensor] = {}) -> Losses:
        """Where a field stands; ``cond`` holds a condition for each of the rows that the points come from."""
        excesses, spreads = [], []
        for x, t, u, _, index in self.nodes:
            v = field(x, t, **{name: value[index] for name, value in cond.items()})
            excesses.append((v - u).double().square().flatten(1).mean(1))
            spreads.append((u - u.mean(0)).double().square().mean() * len(u) / (len(u) - 1))
        both = [node.floor + more for node, more in zip(self.nodes, excesses, strict=True)]
        excess = estimate(excesses)
        return Losses(self.floor, excess, estimate(both), _r2(excess, spreads), self.n)


def reference(
    truth: Truth,
    path: AffinePath | GaussianPath,
    rows: Float[Tensor, "n *d"],
    *,
    cond: Mapping[str, Tensor] = {},
    draws: int | None = None,
    generator: torch.Generator | None = None,
) -> Reference:
    r"""Draws points of a path and asks an exact field at them, for the floor of the loss and for what is above it.

    The floor comes from the conditional variance itself, on an affine path from the divergence of the exact field,

    $$\mathbb E[\lVert u_t(x \mid x_1) - u_t(x) \rVert^2 \mid x_t = x] = \Big(\frac{\dot\alpha \sigma^2}{\alpha}
    - \dot\sigma \sigma\Big) \Big(\nabla \cdot u_t(x) - \frac{\dot\sigma}{\sigma} d\Big),$$

    so that only x_t is drawn, and not the pair. Time is integrated by three Gauss-Legendre nodes in each of 10 bins.

    Args:
        truth: the exact field of the law that the rows come from; of the rows themselves for the floor of a training.
        path: the path; rows: data to draw x_t from, ``(n, *d)``, whose dtype is that of all questions to the field.
        cond: a condition for each row, by the keywords of the exact field.
        draws: points for each of the 30 times; ``None``: 1,000, or 128 of a `LawField`, and less of an `EmpiricalField`
            of more than about 1,000 rows, so that a call takes a few seconds; the field keeps all its rows. In float32
            that holds from 15,000 rows on: of 100,000 rows of 2 numbers 159 points, and 10 in float64.
        generator: for rows and noise.

    Raises:
        ValueError: no rows, draws below 2, or what the exact field refuses.

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
    for x, t, target, index in _points(path, rows, count, generator):
        own = {name: value[index] for name, value in cond.items()}
        nodes.append(_Node(x, t, *_scatter(truth, path, x, t, target, own), index))
    return Reference(tuple(nodes))


def loss_over_time(
    field: Callable[..., Tensor],
    path: AffinePath | GaussianPath,
    rows: Float[Tensor, "n *d"],
    *,
    cond: Mapping[str, Tensor] = {},
    draws: int = 1000,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""The flow-matching loss on rows whose exact field is unknown, $\mathbb E\,\lVert v - u(x_t | x_1) \rVert^2 / d$.

    Args: as for `reference`, with ``draws`` points for each of the same 30 times.

    Raises:
        ValueError: no rows, or draws below 2.
    """
    check_rows(rows, draws, 2)
    found = []
    for x, t, target, index in _points(path, rows, draws, generator):
        v = field(x, t, **{name: value[index] for name, value in cond.items()})
        found.append((v - target).double().square().flatten(1).mean(1))
    return estimate(found)


def _points(
    path: AffinePath | GaussianPath, rows: Tensor, count: int, generator: torch.Generator | None
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """x_t, t, the conditional velocity and the index of the row, for every node of every bin."""
    for b in range(BINS):
        for node in _NODES:
            t = rows.new_tensor((b + 0.5 + 0.5 * node) / BINS)
            turns = math.ceil(count / len(rows))
            index = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(turns)])[:count]
            x1 = rows[index]
            x0 = path.source.sample(tuple(x1.shape), generator, x1.dtype, x1.device)
            at = path.sample(Batch(x1, x0), t)
            yield at.x_t, t.expand(count), at.target, index


def _scatter(
    truth: Truth, path: AffinePath | GaussianPath, x: Tensor, t: Tensor, target: Tensor, cond: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The exact velocity, and E |u(x | x1) - u(x)|^2 / d given x or, where it has no formula, one draw of it."""
    if not isinstance(path, AffinePath) or not isinstance(path.source, StandardNormal):
        u = truth(x, t, **cond)
        return u, (target - u).double().square().flatten(1).mean(1)
    u, divergence = truth.velocity_and_divergence(x, t, **cond)
    alpha, sigma, alpha_rate, sigma_rate = (value.double() for value in path.schedule(t.double()))
    pull = alpha_rate * sigma**2 / alpha - sigma_rate * sigma
    per_dim = divergence.double() / x[0].numel() - sigma_rate / sigma
    return u, (pull * per_dim).clamp_min(0)


def estimate(nodes: list[Tensor]) -> Estimate:
    """The integral over time of what was drawn at every node, with standard errors."""
    means = torch.stack([values.double().mean() for values in nodes]).reshape(BINS, -1)
    errors = torch.stack([values.double().var() / len(values) for values in nodes]).reshape(BINS, -1)
    weights = torch.tensor(_WEIGHTS, dtype=torch.float64) / 2
    by_time, squares = (means * weights).sum(1), (errors * weights**2).sum(1)
    total_se = float(squares.sum().sqrt()) / BINS
    return Estimate(float(by_time.mean()), total_se, tuple(by_time.tolist()), tuple(squares.sqrt().tolist()))


def _r2(excess: Estimate, spreads: list[Tensor]) -> Estimate:
    weights = torch.tensor(_WEIGHTS, dtype=torch.float64) / 2
    by_time = (torch.stack(spreads).double().reshape(BINS, -1) * weights).sum(1).clamp_min(1e-300)
    left, errors = (torch.tensor(values, dtype=torch.float64) for values in (excess.by_time, excess.by_time_se))
    whole = float(by_time.mean())
    return Estimate(
        1 - excess.value / whole,
        excess.se / whole,
        tuple((1 - left / by_time).tolist()),
        tuple((errors / by_time).tolist()),
    )


def _count(truth: Truth, rows: Tensor) -> int:
    """Points at a node that a few seconds allow."""
    if not isinstance(truth, EmpiricalField):
        return 128 if isinstance(truth, LawField) else _MOST
    fast = rows.dtype == truth.points.dtype == torch.float32 and isinstance(truth.path, AffinePath)
    most, half = _PAIRS[torch.float32 if fast else torch.float64]
    pairs = most * half // (half + truth.shape.numel())
    many = truth.labels is not None and len(truth.classes) > _MOST_OF_MANY_LABELS
    return max(4, min(_MOST_OF_MANY_LABELS if many else _MOST, pairs // (len(truth.points) * BINS * len(_NODES))))
