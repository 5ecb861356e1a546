r"""Schedules: how much data and how much source a point on an affine path holds.

A schedule is a pair of functions with $x_t = \alpha(t)\,x_1 + \sigma(t)\,x_0$. Every shipped one starts at
$(\alpha, \sigma) = (0, 1)$, pure source, ends at $\alpha = 1$, and has a strictly increasing signal-to-noise
ratio $\alpha^2 / \sigma^2$. A new schedule is one function that returns a `Curve`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jvp

END_RATIO = 1e-3
"""sigma / alpha (alpha / sigma) at which fields without a value at t = 1 (t = 0) are last called."""


class Curve(NamedTuple):
    """Values and rates at a time; every entry has the shape and dtype of ``t``."""

    alpha: Tensor
    sigma: Tensor
    alpha_rate: Tensor
    sigma_rate: Tensor


@dataclass(frozen=True)
class Schedule:
    r"""$\alpha(t), \sigma(t)$ and their rates.

    Attributes:
        name: the factory that made it, or ``"custom"``.
        options: the arguments of that factory.
        curve: ``t -> Curve``, for ``t`` of any shape in [0, 1].
        open_ends: the ends of [0, 1] at which the rates have no finite limit.
        keeps_variance: whether $\alpha^2 + \sigma^2 = 1$.

    >>> linear()(torch.tensor(0.25)).sigma
    tensor(0.7500)
    """

    name: str
    curve: Callable[[Tensor], Curve] = field(repr=False, compare=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    open_ends: tuple[float, ...] = ()
    keeps_variance: bool = False

    def __call__(self, t: Float[Tensor, "*b"]) -> Curve:
        return self.curve(t)

    def log_snr(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        r"""$\log(\alpha^2 / \sigma^2)$: minus infinity at pure source, infinity where sigma is zero."""
        curve = self.curve(t)
        return 2 * (curve.alpha.log() - curve.sigma.log())

    def half_rate(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        r"""$\sigma \dot\sigma$, half the rate of $\sigma^2$.

        Where variance is kept it is $-\alpha \dot\alpha$, which has a limit where the rate of sigma has none.
        """
        curve = self.curve(t)
        return -curve.alpha * curve.alpha_rate if self.keeps_variance else curve.sigma * curve.sigma_rate

    def time_of_log_snr(self, log_snr: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """The t at which `log_snr` has the given value, by bisection to the last bit of float64.

        Raises:
            ValueError: a value outside the range that the schedule covers.
        """
        wanted = log_snr.double()
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        least, most = self.log_snr(low), self.log_snr(high)
        slack = 8 * torch.finfo(log_snr.dtype).eps  # the value at an end may come rounded
        inside = (wanted >= least - slack * least.abs()) & (wanted <= most + slack * most.abs())
        if not bool(inside.all()):
            raise ValueError(
                f"log_snr must lie in [{least.min():.6g}, {most.max():.6g}] for the {self.name} schedule, "
                f"got values in [{wanted.min():.6g}, {wanted.max():.6g}]"
            )
        for _ in range(64):
            middle = (low + high) / 2
            below = self.log_snr(middle) < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return torch.where(wanted <= least, 0.0, high).to(log_snr.dtype)

    def inner_time(self, end: float) -> float:
        """The time near ``end`` (0 or 1) at which alpha / sigma or sigma / alpha is `END_RATIO`."""
        sign = 1.0 if end == 1.0 else -1.0
        log_snr = torch.tensor(-2 * sign * math.log(END_RATIO), dtype=torch.float64)
        return float(self.time_of_log_snr(log_snr))


def linear(sigma_min: float = 0.0) -> Schedule:
    r"""$\alpha = t,\ \sigma = 1 - (1 - \sigma_{\min})\,t$: straight lines at constant speed.

    Reference: Lipman et al., "Flow Matching for Generative Modeling", arXiv:2210.02747.

    Raises:
        ValueError: ``sigma_min`` outside [0, 1).
    """
    if not 0.0 <= sigma_min < 1.0:
        raise ValueError(f"sigma_min must be in [0, 1), got {sigma_min}")
    return Schedule("linear", partial(_linear, sigma_min=sigma_min), {"sigma_min": sigma_min})


def cosine() -> Schedule:
    r"""$\alpha = \sin(\tfrac{\pi}{2} t),\ \sigma = \cos(\tfrac{\pi}{2} t)$: variance is kept.

    Reference: Albergo & Vanden-Eijnden, "Building Normalizing Flows with Stochastic Interpolants",
    arXiv:2209.15571.
    """
    return Schedule("cosine", _cosine)


def polynomial(n: float) -> Schedule:
    r"""$\alpha = t^n,\ \sigma = 1 - t^n$ with $n \ge 1$; ``n = 1`` is `linear`.

    Raises:
        ValueError: ``n`` below 1, where the rate at t = 0 is infinite.
    """
    if not 1.0 <= n < math.inf:
        raise ValueError(f"n must be a finite number of at least 1, got {n}")
    return Schedule("polynomial", partial(_polynomial, n=n), {"n": n})


def variance_preserving(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    r"""The path of a variance-preserving diffusion, made to start at pure source.

    With $a(t) = \exp(-\tfrac14 (1-t)^2 (\beta_{\max} - \beta_{\min}) - \tfrac12 (1-t) \beta_{\min})$:
    $\alpha = (a - a(0)) / (1 - a(0))$ and $\sigma = \sqrt{1 - \alpha^2}$. The rate of sigma has no limit at
    t = 1, so velocities are refused there, but for those of data with a width, in which it cancels.

    Reference: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations",
    arXiv:2011.13456.

    Raises:
        ValueError: not 0 < beta_min <= beta_max.
    """
    if not 0.0 < beta_min <= beta_max < math.inf:
        raise ValueError(f"beta_min and beta_max must satisfy 0 < beta_min <= beta_max, got {beta_min}, {beta_max}")
    curve = partial(_variance_preserving, beta_min=beta_min, beta_max=beta_max)
    return Schedule("variance_preserving", curve, {"beta_min": beta_min, "beta_max": beta_max}, (1.0,), True)


def custom(alpha: Callable[[Tensor], Tensor], sigma: Callable[[Tensor], Tensor]) -> Schedule:
    """A schedule from two functions of t of your own; their rates are taken by forward-mode differentiation.

    Both act elementwise on a tensor ``t``. Write sigma so that its zero is exact, for example
    ``sin(pi / 2 * (1 - t))`` rather than ``cos(pi / 2 * t)``.

    Raises:
        ValueError: not (0, 1) at t = 0, alpha not 1 at t = 1, negative sigma, or a signal-to-noise ratio that
            does not increase (looked at on 65 times).
    """
    schedule = Schedule("custom", partial(_by_jvp, alpha=alpha, sigma=sigma))
    _check_custom(schedule)
    rates = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))
    finite = rates.alpha_rate.isfinite() & rates.sigma_rate.isfinite()
    ends = tuple(end for end, good in zip((0.0, 1.0), finite.tolist(), strict=True) if not good)
    return Schedule("custom", schedule.curve, open_ends=ends)


SHIPPED: Mapping[str, Callable[..., Schedule]] = {
    "linear": linear,
    "cosine": cosine,
    "polynomial": polynomial,
    "variance_preserving": variance_preserving,
}


def named(name: str, **options: float) -> Schedule:
    """The shipped schedule of that name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in SHIPPED:
        raise ValueError(f"schedule must be one of {', '.join(SHIPPED)}, got {name!r}")
    return SHIPPED[name](**options)


def value_and_rate(function: Callable[[Tensor], Any], t: Tensor) -> tuple[Any, Any]:
    """``function(t)`` and its derivative in t, by forward-mode differentiation."""
    t = t.contiguous()  # forward mode refuses the expanded view of one number
    result: tuple[Any, ...] = jvp(function, (t,), (torch.ones_like(t),))
    return result[0], result[1]


def _linear(t: Tensor, sigma_min: float) -> Curve:
    sigma = torch.add(1 - t, t, alpha=sigma_min)
    return Curve(t, sigma, torch.ones_like(t), torch.full_like(t, sigma_min - 1.0))


def _cosine(t: Tensor) -> Curve:
    quarter = math.pi / 2
    alpha, sigma = torch.sin(quarter * t), torch.sin(quarter * (1 - t))
    return Curve(alpha, sigma, quarter * sigma, -quarter * alpha)


def _polynomial(t: Tensor, n: float) -> Curve:
    power, rate = t**n, n * t ** (n - 1)
    return Curve(power, 1 - power, rate, -rate)


def _variance_preserving(t: Tensor, beta_min: float, beta_max: float) -> Curve:
    left, spread = 1 - t, beta_max - beta_min
    to_end = 0.25 * left**2 * spread + 0.5 * left * beta_min
    from_start = 0.25 * t * (1 + left) * spread + 0.5 * t * beta_min
    whole = -math.expm1(-0.25 * spread - 0.5 * beta_min)
    alpha = torch.exp(-to_end) * -torch.expm1(-from_start) / whole
    sigma = torch.sqrt(-torch.expm1(-to_end) / whole * (1 + alpha))
    rate = torch.exp(-to_end) * (0.5 * left * spread + 0.5 * beta_min) / whole
    return Curve(alpha, sigma, rate, -alpha * rate / sigma)


def _by_jvp(t: Tensor, alpha: Callable[[Tensor], Tensor], sigma: Callable[[Tensor], Tensor]) -> Curve:
    a, a_rate = value_and_rate(alpha, t)
    s, s_rate = value_and_rate(sigma, t)
    return Curve(a, s, a_rate, s_rate)


def _check_custom(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 65, dtype=torch.float64)
    curve = schedule(t)
    first, last = (float(curve.alpha[0]), float(curve.sigma[0])), float(curve.alpha[-1])
    if not (math.isclose(first[0], 0, abs_tol=1e-9) and math.isclose(first[1], 1, abs_tol=1e-9)):
        raise ValueError(f"alpha and sigma must start at (0, 1), got ({first[0]:.6g}, {first[1]:.6g})")
    if not math.isclose(last, 1, abs_tol=1e-9):
        raise ValueError(f"alpha must end at 1, got {last:.6g}")
    if bool((curve.sigma < 0).any()):
        raise ValueError(f"sigma must not be negative, got {float(curve.sigma.min()):.6g}")
    if not bool((schedule.log_snr(t).diff() > 0).all()):
        raise ValueError("alpha / sigma must increase strictly with t")
