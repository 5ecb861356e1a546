"""Does a field do what is claimed of it, how near is it to the exact one, and does it repeat its training rows?"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from pathline.fields import EmpiricalField
from pathline.likelihood import divergence
from pathline.paths import AffinePath, GaussianPath
from pathline.typing import Batch, Field

_NUMBERS = 2**22


class LogDensity(Protocol):
    """``(x, t, **cond) -> log p_t(x)`` in nats, shape ``(b,)``, differentiable in x and t."""

    def __call__(self, x: Tensor, t: Tensor, /, **cond: Any) -> Tensor: ...


@dataclass(frozen=True)
class Residual:
    """What `continuity_residual` returns, in nats per unit of time.

    Attributes:
        value: left-hand side of the continuity equation, shape ``(b,)``; zero where the field induces the path.
        scale: sum of the absolute values of its three terms, shape ``(b,)``, never below ``|value|``.
    """

    value: Tensor
    scale: Tensor


def continuity_residual(
    field: Field, log_prob: LogDensity, x: Float[Tensor, "b *d"], t: Float[Tensor, "*b"], **cond: Any
) -> Residual:
    r"""How far a field is from inducing a density path at the points ``(x, t)``:

    $$\frac{\partial}{\partial t} \log p_t(x) + u_t(x) \cdot \nabla \log p_t(x) + \nabla \cdot u_t(x),$$

    the continuity equation $\partial_t p_t + \nabla \cdot (u_t\,p_t) = 0$ divided by $p_t$. ``value / scale`` near
    the rounding of x's dtype says "this field induces this path" there; near one, that it does not. All
    derivatives are taken by automatic differentiation, d backward passes for the divergence; ask in float64, away
    from the ends of [0, 1]. Rows must not influence each other.

    Args:
        field: ``field(x, t, **cond)``.
        log_prob: ``log_prob(x, t, **cond)``, the density path that the field should induce.
        x: where to look, shape ``(b, *d)``; t: when, shape ``()`` or ``(b,)``.
        cond: keyword conditions handed to both.

    Raises:
        ValueError: ``t`` or the log-density has the wrong shape.

    Reference: Lipman et al., "Flow Matching for Generative Modeling", arXiv:2210.02747.

    >>> from pathline import AffinePath, EmpiricalField, schedules
    >>> field = EmpiricalField(AffinePath(schedules.linear()), torch.tensor([[2.0, 1.0], [0.0, 3.0]]))
    >>> x, t = torch.zeros(1, 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    >>> r = continuity_residual(field, field.log_prob, x, t)
    >>> bool(r.value.abs() < 1e-12 * r.scale)
    True
    """
    if t.ndim and t.shape != x.shape[:1]:
        raise ValueError(f"t must have shape () or ({len(x)},), got {tuple(t.shape)}")
    with torch.enable_grad():
        at = x.detach().requires_grad_(True)
        times = t.detach().expand(len(x)).clone().requires_grad_(True)
        log_p = log_prob(at, times, **cond)
        if log_p.shape != x.shape[:1]:
            raise ValueError(f"log_prob must return shape ({len(x)},), got {tuple(log_p.shape)}")
        score, rate = torch.autograd.grad(log_p.sum(), (at, times), allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        velocity, spread = divergence(field, x, times.detach(), **cond)
        along = (velocity * score).reshape(len(x), -1).sum(1)
        return Residual(rate + along + spread, rate.abs() + along.abs() + spread.abs())


def time_loss(
    field: Callable[..., Tensor],
    path: AffinePath | GaussianPath,
    data: Float[Tensor, "n *d"],
    times: Float[Tensor, " k"],
    *,
    cond: Mapping[str, Tensor] = {},
    draws: int = 2048,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The flow-matching loss at each time, per dimension, float64 of shape ``(k,)``:

    $$\mathbb E\,\lVert v_t(x_t) - u_t(x_t \mid x_1) \rVert^2 / d,$$

    x_1 a row of ``data``. All times share their rows and their noise, so the curve is smooth in t.

    Args:
        field: ``field(x, t, **cond)``, asked in the dtype of ``data``.
        path: the path; data: rows, shape ``(n, *d)``; times: in [0, 1] where the path's velocity has a limit.
        cond: a condition for each row, by keyword.
        draws: pairs of a row and a noise; every row is drawn equally often, up to one.
        generator: for the pairs.

    Raises:
        ValueError: no rows, times that are not one row of numbers in [0, 1], or draws below 1.
    """
    losses = []
    for batch, t, chosen in _pairs(path, data, times, cond, draws, generator):
        at = path.sample(batch, t)
        losses.append((field(at.x_t, t.expand(draws), **chosen) - at.target).double().square().mean())
    return torch.stack(losses)


def floor(
    path: AffinePath | GaussianPath,
    data: Float[Tensor, "n *d"],
    times: Float[Tensor, " k"],
    *,
    labels: Tensor | None = None,
    draws: int = 2048,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The least flow-matching loss that any field can have on ``data`` at each time, per dimension, shape ``(k,)``:

    $$\mathbb E\,\lVert u_t(x_t \mid x_1) - u_t(x_t) \rVert^2 / d$$

    with the exact field of the rows, the perfect memoriser's. Of a finite sample it lies below that of the law which
    the rows come from, the more so the nearer t is to 1.

    Args:
        path, data, times, draws, generator: as in `time_loss`.
        labels: a class for each row; the floor is then that of fields which are told it.

    Raises:
        ValueError: as `time_loss` and `EmpiricalField`.

    Reference: Bertrand et al., "On the closed-form of flow matching: generalization does not arise from target
    stochasticity", arXiv:2506.03719.

    >>> from pathline import schedules
    >>> bool(floor(AffinePath(schedules.linear()), torch.ones(1, 2), torch.tensor([0.5])) < 1e-12)
    True
    """
    cond = {} if labels is None else {"label": labels}
    exact = EmpiricalField(path, data, labels=labels)
    return time_loss(exact, path, data, times, cond=cond, draws=draws, generator=generator)


def r2(
    field: Callable[..., Tensor],
    exact: Callable[..., Tensor],
    path: AffinePath | GaussianPath,
    data: Float[Tensor, "n *d"],
    times: Float[Tensor, " k"],
    *,
    cond: Mapping[str, Tensor] = {},
    exact_cond: Mapping[str, Tensor] = {},
    draws: int = 2048,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The share of the exact field's variance that ``field`` explains at each time, float64 of shape ``(k,)``:

    $$R^2(t) = 1 - \frac{\mathbb E\,\lVert v_t(x) - u_t(x) \rVert^2}
    {\mathbb E\,\lVert u_t(x) - \mathbb E\,u_t(x) \rVert^2},$$

    x drawn from p_t by way of rows of ``data``. One is best, the best constant has zero, and it may be below zero.

    Args:
        field, exact: the field and what it should be, ``field(x, t, **cond)``.
        path, data, times, draws, generator: as in `time_loss`.
        cond, exact_cond: a condition for each row, by the keywords of the two fields.

    Raises:
        ValueError: as `time_loss`, or the exact field does not vary over the draws.
    """
    both = {**{f"a.{name}": v for name, v in cond.items()}, **{f"b.{name}": v for name, v in exact_cond.items()}}
    shares = []
    for batch, t, chosen in _pairs(path, data, times, both, draws, generator):
        x, time = path.sample(batch, t).x_t, t.expand(draws)
        v, u = (
            each(x, time, **{name[2:]: value for name, value in chosen.items() if name.startswith(side)}).double()
            for each, side in ((field, "a."), (exact, "b."))
        )
        spread = (u - u.mean(0)).square().mean()
        if not float(spread) > 0:
            raise ValueError(f"exact must vary over the draws, it is constant at t = {float(t):g}: pass more rows")
        shares.append(1 - (v - u).square().mean() / spread)
    return torch.stack(shares)


@dataclass(frozen=True)
class Memorisation:
    """What `memorisation` returns.

    Attributes:
        ratio: median over samples of the distance to the nearest training row over that to the nearest held-out row.
        ratio_range: where 99% of random splits of the same rows have theirs.
        share: of samples whose nearest row of all is held out.
        share_range: where 99% of random splits have theirs.
        p: share of the splits, the real one included, with as small a ``share`` as the real one or smaller.
        samples, train, held_out: how many of each were compared.
    """

    ratio: float
    ratio_range: tuple[float, float]
    share: float
    share_range: tuple[float, float]
    p: float
    samples: int
    train: int
    held_out: int

    @property
    def verdict(self) -> bool | None:
        """Whether samples crowd around training rows (p at most 0.01); ``None`` where there are too few rows to tell.

        There are too few where a random split, too, may well leave no sample nearest to a held-out row.
        """
        if self.share_range[0] == 0:
            return None
        return self.p <= 0.01


def memorisation(
    samples: Float[Tensor, "m *d"],
    train: Float[Tensor, "n *d"],
    held_out: Float[Tensor, "h *d"],
    *,
    splits: int = 400,
    generator: torch.Generator | None = None,
) -> Memorisation:
    """Do samples lie nearer to the rows of the training than to equally real ones that it never saw?

    A model that knows the law but not its rows cannot tell which rows were held out: the real split is then like
    any random split of the same rows into parts of the same sizes, which is the test. Distances are Euclidean, every
    column over its standard deviation.

    Args:
        samples: generated rows, train: rows of the training, held_out: rows that it never saw, all ``(., *d)``.
        splits: random splits to compare with.
        generator: for the splits.

    Raises:
        ValueError: fewer than 2 rows of a kind, rows of different shapes or that are not finite, splits below 99.
    """
    parts = {"samples": samples, "train": train, "held_out": held_out}
    for name, rows in parts.items():
        if len(rows) < 2 or rows.shape[1:] != samples.shape[1:] or not bool(rows.isfinite().all()):
            raise ValueError(f"{name} must be 2 or more finite rows like the samples, got shape {tuple(rows.shape)}")
    if splits < 99:
        raise ValueError(f"splits must be at least 99, got {splits}")
    real = torch.cat([train, held_out]).flatten(1).double()
    scale = real.std(0)
    scale = torch.where(scale > 0, scale, 1.0)
    near, order = _nearest(samples.flatten(1).double() / scale, real / scale, len(held_out))
    held = torch.arange(len(real)) >= len(train)
    own = _split_view(near, order, held)
    others = []
    for _ in range(splits):
        others.append(_split_view(near, order, held[torch.randperm(len(real), generator=generator)]))
    ratios, shares = torch.tensor(others, dtype=torch.float64).T
    ends = torch.tensor([0.005, 0.995], dtype=torch.float64)
    low, high = torch.quantile(ratios, ends).tolist()
    least, most = torch.quantile(shares, ends).tolist()
    p = (1 + int((shares <= own[1]).sum())) / (1 + splits)
    return Memorisation(own[0], (low, high), own[1], (least, most), p, len(samples), len(train), len(held_out))


def _pairs(
    path: AffinePath | GaussianPath,
    data: Tensor,
    times: Tensor,
    cond: Mapping[str, Tensor],
    draws: int,
    generator: torch.Generator | None,
) -> list[tuple[Batch, Tensor, dict[str, Tensor]]]:
    """The same rows and noise at every time, with their conditions."""
    if data.ndim == 0 or len(data) == 0 or draws < 1:
        raise ValueError(f"data must hold a row and draws be at least 1, got {tuple(data.shape)} and {draws}")
    if times.ndim != 1 or len(times) == 0 or not bool(((times >= 0) & (times <= 1)).all()):
        raise ValueError(f"times must be one row of numbers in [0, 1], got {times.tolist()}")
    turns = math.ceil(draws / len(data))
    index = torch.cat([torch.randperm(len(data), generator=generator) for _ in range(turns)])[:draws]
    x1 = data[index]
    batch = Batch(x1, x0=path.source.sample(tuple(x1.shape), generator, x1.dtype, x1.device))
    chosen = {name: value[index] for name, value in cond.items()}
    return [(batch, t, chosen) for t in times.to(x1)]


def _nearest(samples: Tensor, rows: Tensor, held_out: int) -> tuple[Tensor, Tensor]:
    """For each sample its nearest rows, nearest first: so many that one of any ``held_out`` rows is among them."""
    k = min(len(rows), math.ceil(16 * len(rows) / held_out))
    step = max(1, _NUMBERS // len(rows))
    parts = [
        torch.cdist(some, rows, compute_mode="donot_use_mm_for_euclid_dist").topk(k, largest=False)
        for some in samples.split(step)
    ]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _split_view(near: Tensor, order: Tensor, held: Tensor) -> tuple[float, float]:
    """Median ratio of the nearest distances to the two parts of a split, and the share nearest to what is held out."""
    out = held[order]
    to_train, to_held = (near.masked_fill(~part, math.inf).amin(1).clamp_max(float(near.max())) for part in (~out, out))
    ratio = torch.where(to_held > 0, to_train / to_held.clamp_min(1e-300), 1.0)
    return float(ratio.median()), float(out[:, 0].double().mean())
