r"""Conditional paths p_t(x given x1) and the four things that a network can predict on them.

A Gaussian path is $x_t = \mu_t(x_1) + \sigma_t(x_1)\,\varepsilon$ with $\varepsilon \sim \mathcal N(0, I)$. Its
conditional velocity has two forms that agree wherever both exist,

$$u_t = \dot\sigma_t\,\varepsilon + \dot\mu_t
      = \frac{\dot\sigma_t}{\sigma_t}(x_t - \mu_t) + \dot\mu_t,$$

the first always finite where the rates are, the second undefined where $\sigma_t = 0$. Everything below is
written once, on `Moments`; a path only says what its moments are.

Reference: Lipman et al., "Flow Matching for Generative Modeling", arXiv:2210.02747; Tong et al., "Improving and
generalizing flow-based generative models with minibatch optimal transport", arXiv:2302.00482.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from pathline.schedules import END_RATIO, Curve, Schedule, value_and_rate
from pathline.sources import StandardNormal, check_tensor
from pathline.typing import Batch, PathSample, Source

Prediction = Literal["velocity", "data", "noise", "score"]
"""What a network predicts: u_t, E[x1 | x_t], E[x0 | x_t], or the score of p_t."""


class Moments(NamedTuple):
    """Mean and standard deviation of p_t(x given x1) and their rates in t, broadcastable to ``x1``."""

    mean: Tensor
    std: Tensor
    mean_rate: Tensor
    std_rate: Tensor


class _Gaussian(ABC):
    """What every Gaussian path can do once its `moments` are known.

    Attributes:
        source: p_0, the law that a flow along this path starts from.
    """

    source: Source

    @property
    @abstractmethod
    def open_ends(self) -> tuple[float, ...]:
        """The ends of [0, 1] at which the conditional velocity has no limit."""

    def inner_time(self, end: float) -> float:
        """The time near ``end`` (0 or 1) at which a field without a value there is last called."""
        return END_RATIO if end == 0.0 else 1.0 - END_RATIO

    @abstractmethod
    def moments(self, x1: Tensor, t: Tensor, x0: Tensor | None = None) -> Moments:
        """Mean, standard deviation and rates at ``t`` for every row of ``x1``."""

    @abstractmethod
    def ends(self, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Source points of the batch and the standard normal noise that belongs to them."""

    def sample(self, batch: Batch, t: Float[Tensor, "*b"], generator: torch.Generator | None = None) -> PathSample:
        r"""Draws $x_t = \mu_t + \sigma_t \varepsilon$ and its velocity $\dot\mu_t + \dot\sigma_t \varepsilon$.

        Source points are the batch's ``x0``, or fresh ones from `source`.

        Raises:
            ValueError: a time of the wrong shape, or one at which the velocity has no limit.
        """
        refuse_ends(self.open_ends, t, "the velocity of this path")
        x0, noise = self.ends(batch, generator)
        at = self.moments(batch.x1, t, x0)
        times = as_time(t, batch.x1).expand(len(batch.x1))
        x_t = at.mean + at.std * noise
        return PathSample(x_t, times, x0, batch.x1, at.mean_rate + at.std_rate * noise)

    def velocity(self, x_t: Tensor, x1: Tensor, t: Float[Tensor, "*b"], x0: Tensor | None = None) -> Tensor:
        r"""$u_t(x_t \mid x_1) = \frac{\dot\sigma_t}{\sigma_t}(x_t - \mu_t) + \dot\mu_t$, shaped like ``x_t``.

        Raises:
            ValueError: the standard deviation is zero at ``t``; `velocity_from_noise` has a value there.
        """
        at = self._positive(x1, t, x0, "velocity through x_t")
        return at.std_rate / at.std * (x_t - at.mean) + at.mean_rate

    def velocity_from_noise(
        self, noise: Tensor, x1: Tensor, t: Float[Tensor, "*b"], x0: Tensor | None = None
    ) -> Tensor:
        r"""$u_t = \dot\sigma_t\,\varepsilon + \dot\mu_t$; on an affine path the noise is x0 itself.

        Raises:
            ValueError: a time at which the rates have no limit.
        """
        refuse_ends(self.open_ends, t, "the velocity of this path")
        at = self.moments(x1, t, x0)
        return at.std_rate * noise + at.mean_rate

    def score(self, x_t: Tensor, x1: Tensor, t: Float[Tensor, "*b"], x0: Tensor | None = None) -> Tensor:
        r"""$\nabla \log p_t(x_t \mid x_1) = (\mu_t - x_t) / \sigma_t^2$.

        Raises:
            ValueError: the standard deviation is zero at ``t``, or the law is not Gaussian.
        """
        at = self._gaussian(x1, t, x0, "score")
        return (at.mean - x_t) / at.std**2

    def log_prob(
        self, x_t: Float[Tensor, "b *d"], x1: Float[Tensor, "b *d"], t: Tensor, x0: Tensor | None = None
    ) -> Float[Tensor, " b"]:
        r"""$\log \mathcal N(x_t; \mu_t, \sigma_t^2 I)$ in nats, shape ``(b,)``.

        Raises:
            ValueError: the standard deviation is zero at ``t``, or the law is not Gaussian.
        """
        at = self._gaussian(x1, t, x0, "density")
        scaled = ((x_t - at.mean) / at.std).square() + 2 * at.std.log() + math.log(2 * math.pi)
        return -0.5 * (scaled.flatten(1).sum(1) if scaled.ndim > 1 else scaled)

    @property
    def _is_gaussian(self) -> bool:
        """Whether p_t(x given x1) is the Gaussian of its `moments`."""
        return True

    def _gaussian(self, x1: Tensor, t: Tensor, x0: Tensor | None, what: str) -> Moments:
        if not self._is_gaussian:
            kind = type(self.source).__name__
            raise ValueError(f"source must be a standard normal for an affine path to have a {what}, got {kind}")
        return self._positive(x1, t, x0, what)

    def _positive(self, x1: Tensor, t: Tensor, x0: Tensor | None, what: str) -> Moments:
        refuse_ends(self.open_ends, t, what)
        at = self.moments(x1, t, x0)
        if at.std.device.type == "cpu" and bool((at.std <= 0).any()):
            raise ValueError(f"the {what} has no value at t = {_first_zero(at.std, t):.6g}, where std is 0")
        return at


@dataclass(frozen=True)
class AffinePath(_Gaussian):
    r"""$x_t = \alpha(t)\,x_1 + \sigma(t)\,x_0$ with $x_0$ from ``source``, by default $\mathcal N(0, I)$.

    >>> from pathline import schedules
    >>> path = AffinePath(schedules.linear(sigma_min=0.2))
    >>> path.sample(Batch(torch.ones(3, 2), x0=torch.zeros(3, 2)), torch.tensor(0.5)).x_t[0]
    tensor([0.5000, 0.5000])
    """

    schedule: Schedule
    source: Source = field(default_factory=StandardNormal)

    @property
    def open_ends(self) -> tuple[float, ...]:
        return self.schedule.open_ends

    def inner_time(self, end: float) -> float:
        return self.schedule.inner_time(end)

    def curve(self, t: Tensor, x: Tensor) -> Curve:
        """The schedule at ``t``, shaped to broadcast against ``x`` and in its dtype."""
        return Curve(*(like(value, x) for value in self.schedule(as_time(t, x))))

    def moments(self, x1: Tensor, t: Tensor, x0: Tensor | None = None) -> Moments:
        curve = self.curve(t, x1)
        return Moments(curve.alpha * x1, curve.sigma, curve.alpha_rate * x1, curve.sigma_rate)

    def ends(self, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        x0 = _source_points(self.source, batch, generator)
        return x0, x0

    @property
    def _is_gaussian(self) -> bool:
        return isinstance(self.source, StandardNormal)


@dataclass(frozen=True)
class GaussianPath(_Gaussian):
    r"""$p_t(x \mid x_1) = \mathcal N(\mu_t(x_1),\, \sigma_t(x_1)^2 I)$ with any mean and standard deviation.

    Attributes:
        mean: ``mean(x1, t) -> (n, *d)`` for x1 ``(n, *d)`` and SCALAR t, row by row.
        std: ``std(x1, t) -> () or (n,)``, not negative, one number for all coordinates of a row. Use ``torch.where``
            for cases.
        source: p_0; the default is a standard normal, and then mean and std must be (0, 1) at t = 0. Points of
            another source are mapped to noise by ``(x0 - mean) / std`` at t = 0.

    Rates are taken by forward-mode differentiation, and t is mapped over by ``torch.vmap``.

    Raises:
        ValueError: at first use, where p_0 is not the source; at a time where a rate is not finite.

    >>> path = GaussianPath(lambda x1, t: t**2 * x1, lambda x1, t: 1 - 0.9 * t)
    >>> path.velocity(torch.ones(1, 2), torch.ones(1, 2), torch.tensor(1.0))
    tensor([[2., 2.]])
    """

    mean: Callable[[Tensor, Tensor], Tensor]
    std: Callable[[Tensor, Tensor], Tensor]
    source: Source = field(default_factory=StandardNormal)

    @property
    def open_ends(self) -> tuple[float, ...]:
        return ()

    def moments(self, x1: Tensor, t: Tensor, x0: Tensor | None = None) -> Moments:
        self._check_source(x1)
        time = as_time(t, x1)
        rows = self._rows(x1, time.reshape(-1)[0]) if one_time(time) else vmap(self._row)(x1, time)
        _check_finite_rate("mean", rows.mean_rate, time)
        _check_finite_rate("std", rows.std_rate, time)
        return Moments(rows.mean, like(rows.std, x1), rows.mean_rate, like(rows.std_rate, x1))

    def ends(self, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        x0 = _source_points(self.source, batch, generator)
        if isinstance(self.source, StandardNormal):
            return x0, x0
        start = self.moments(batch.x1, torch.zeros((), dtype=batch.x1.dtype, device=batch.x1.device))
        if start.std.device.type == "cpu" and not bool((start.std > 0).all()):
            raise ValueError("std must be positive at t = 0, where it maps source points to noise")
        return x0, (x0 - start.mean) / start.std

    def _rows(self, x1: Tensor, t: Tensor) -> Moments:
        def values(s: Tensor) -> tuple[Tensor, Tensor]:
            mean, std = self.mean(x1, s), self.std(x1, s)
            std = std if isinstance(std, Tensor) else x1.new_tensor(std)
            if mean.shape != x1.shape:
                raise ValueError(f"mean(x1, t) must be shaped like x1 {tuple(x1.shape)}, got {tuple(mean.shape)}")
            if std.shape not in ((), x1.shape[:1]):
                raise ValueError(f"std(x1, t) must have shape () or ({len(x1)},), got {tuple(std.shape)}")
            return mean, std.expand(len(x1))

        (mean, std), (mean_rate, std_rate) = value_and_rate(values, t)
        return Moments(mean, std, mean_rate, std_rate)

    def _row(self, x1: Tensor, t: Tensor) -> Moments:
        return Moments(*(value[0] for value in self._rows(x1[None], t)))

    def _check_source(self, x1: Tensor) -> None:
        if hasattr(self, "_checked") or not isinstance(self.source, StandardNormal):
            return
        start = self._rows(x1, x1.new_zeros(()))
        if float(start.mean.abs().max()) > 1e-6 or float((start.std - 1).abs().max()) > 1e-6:
            raise ValueError(
                "mean and std must be 0 and 1 at t = 0, where p_0 is the standard normal source; "
                "for another p_0 give it as GaussianPath(mean, std, source=...)"
            )
        object.__setattr__(self, "_checked", True)


@dataclass(frozen=True)
class BridgePath(_Gaussian):
    r"""$x_t = (1 - t)\,x_0 + t\,x_1 + \sigma_t\,\varepsilon$: from a source point to a data point, with noise.

    Moments are given BOTH ends, so velocity, score and log_prob take ``x0`` and are those of p_t(x given x0, x1).

    Attributes:
        source: p_0.
        std: a number s > 0 makes a Brownian bridge, sigma_t = s sqrt(t (1 - t)), whose rate is infinite at both ends;
            or a function of t of your own, positive inside (0, 1), refused where its rate is infinite. A std that is
            not 0 at t = 0 smooths the source, and ``source`` is then your word that the difference does not matter.

    Reference: Tong et al., "Simulation-Free Schroedinger Bridges via Score and Flow Matching", arXiv:2307.03672.
    """

    source: Source
    std: float | Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        if not callable(self.std) and not self.std > 0:
            raise ValueError(f"std must be positive, got {self.std}")

    @property
    def open_ends(self) -> tuple[float, ...]:
        return () if callable(self.std) else (0.0, 1.0)

    def moments(self, x1: Tensor, t: Tensor, x0: Tensor | None = None) -> Moments:
        if x0 is None:
            raise ValueError("x0 is needed: a bridge is conditioned on both of its ends")
        time = as_time(t, x1)
        std, std_rate = (like(value, x1) for value in self._std(time))
        s = like(time, x1)
        return Moments((1 - s) * x0 + s * x1, std, x1 - x0, std_rate)

    def ends(self, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        x0 = _source_points(self.source, batch, generator)
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
        return x0, noise

    def noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""$\sigma_t^2$ and half its rate, $\sigma_t \dot\sigma_t$, which a Brownian bridge has at its ends too."""
        if callable(self.std):
            std, std_rate = self._std(t)
            return std**2, std * std_rate
        return self.std**2 * t * (1 - t), self.std**2 * (0.5 - t)

    def _std(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if callable(self.std):
            std, std_rate = value_and_rate(self.std, t)
            _check_finite_rate("std", std_rate, t)
            return std, std_rate
        root = (t * (1 - t)).sqrt()
        return self.std * root, self.std * (0.5 - t) / root


def convert(
    value: Float[Tensor, "b *d"],
    x: Float[Tensor, "b *d"],
    t: Float[Tensor, "*b"],
    path: AffinePath,
    given: Prediction,
    wanted: Prediction,
) -> Float[Tensor, "b *d"]:
    r"""Turns what a network predicts at ``(x, t)`` into another of the four predictions.

    Any two of (x_t, x1, x0, u) give the rest, since $x_t = \alpha x_1 + \sigma x_0$ and
    $u = \dot\alpha x_1 + \dot\sigma x_0$ also hold for expectations given x_t; the score is $-x_0 / \sigma$.

    Raises:
        ValueError: an unknown prediction, or a time at which the conversion divides by zero (data from noise at
            t = 0, noise from data where sigma is 0, ...).
    """
    for name, kind in (("given", given), ("wanted", wanted)):
        if kind not in get_args(Prediction):
            raise ValueError(f"{name} must be one of {', '.join(get_args(Prediction))}, got {kind!r}")
    curve = path.curve(t, x)
    if x.device.type == "cpu":
        _refuse_conversion(curve, t, given, wanted)
    return converted(value, x, curve, given, wanted)


def converted(value: Tensor, x: Tensor, curve: Curve, given: Prediction, wanted: Prediction) -> Tensor:
    """`convert` on a schedule's values, unchecked, for inner loops."""
    if given == wanted:
        return value
    alpha, sigma, alpha_rate, sigma_rate = curve
    if given == "velocity":
        whole = alpha_rate * sigma - alpha * sigma_rate
        data, noise = (sigma * value - sigma_rate * x) / whole, (alpha_rate * x - alpha * value) / whole
    elif given == "data":
        data, noise = value, (x - alpha * value) / sigma
    else:
        noise = value if given == "noise" else -sigma * value
        data = (x - sigma * noise) / alpha
    if wanted == "velocity":
        return alpha_rate * data + sigma_rate * noise
    return data if wanted == "data" else noise if wanted == "noise" else -noise / sigma


def as_time(t: Tensor, x: Tensor) -> Tensor:
    """``t`` in a dtype no coarser than its own or ``x``'s.

    Raises:
        ValueError: ``t`` is no tensor of real numbers, or neither ``()`` nor ``(b,)``.
    """
    check_tensor("t", t)
    if t.ndim > 1 or (t.ndim == 1 and len(t) != len(x)):
        raise ValueError(f"t must have shape () or ({len(x)},), got {tuple(t.shape)}")
    return t.to(torch.promote_types(t.dtype, x.dtype))


def one_time(t: Tensor) -> bool:
    """Whether ``t`` is one number for all rows: a scalar, or the expanded view that `solve` hands out."""
    return t.ndim == 0 or len(t) == 1 or t.stride(0) == 0


def like(value: Tensor, x: Tensor) -> Tensor:
    """``value`` of shape ``()`` or ``(b,)`` made broadcastable against ``x`` ``(b, *d)``, in its dtype."""
    return value.reshape(value.shape + (1,) * (x.ndim - 1) if value.ndim else ()).to(x.dtype)


def refuse_ends(ends: tuple[float, ...], t: Tensor, what: str) -> None:
    """Raises ValueError where ``t`` lies on one of ``ends``; not looked at on a device or by a compiler."""
    if ends and t.device.type == "cpu" and not torch.compiler.is_compiling():
        for end in ends:
            if bool((t == end).any()):
                raise ValueError(f"t must not be {end:g}: {what} has no value there")


def _source_points(source: Source, batch: Batch, generator: torch.Generator | None) -> Tensor:
    x1 = batch.x1
    if batch.x0 is None:
        return source.sample(tuple(x1.shape), generator, x1.dtype, x1.device)
    if batch.x0.shape != x1.shape:
        raise ValueError(f"x0 must have the shape of x1 {tuple(x1.shape)}, got {tuple(batch.x0.shape)}")
    return batch.x0


def _check_finite_rate(name: str, rate: Tensor, t: Tensor) -> None:
    if t.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(rate.isfinite().all()):
        raise ValueError(f"the rate of {name} must be finite, it is not at t in [{t.min():.6g}, {t.max():.6g}]")


def _refuse_conversion(curve: Curve, t: Tensor, given: Prediction, wanted: Prediction) -> None:
    if given == wanted:
        return
    if given == "velocity":
        divisor = curve.alpha_rate * curve.sigma - curve.alpha * curve.sigma_rate
    elif given == "data":
        divisor = curve.sigma
    else:  # noise and score give each other without the data
        divisor = curve.alpha if wanted in ("velocity", "data") else torch.ones_like(curve.alpha)
        divisor = divisor * curve.sigma if given == "score" else divisor
    bad = (divisor == 0) | ~divisor.isfinite()
    if wanted == "score":
        bad = bad | (curve.sigma == 0)
    if wanted == "velocity":
        bad = bad | ~(curve.alpha_rate.isfinite() & curve.sigma_rate.isfinite())
    if bool(bad.any()):
        at = float(t.expand(bad.numel())[bad.reshape(-1)][0])
        raise ValueError(f"{given} does not determine {wanted} at t = {at:.6g}")


def _first_zero(std: Tensor, t: Tensor) -> float:
    bad = (std <= 0).reshape(-1)
    return float(t.expand(len(bad))[bad][0]) if t.ndim else float(t)
