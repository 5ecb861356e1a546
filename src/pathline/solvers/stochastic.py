r"""Stochastic differential equations with the marginals of the flow.

For any $g(t) \ge 0$ the process

$$dx = \left(u_t(x) + \tfrac12 g(t)^2\, \nabla \log p_t(x)\right) dt + g(t)\,dW$$

has the law p_t at every t that $\dot x = u_t(x)$ has; run backward the sign of the score changes. The score comes
from the velocity, $\nabla \log p_t = -\hat x_0 / \sigma$, at no further call.

Reference: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations",
arXiv:2011.13456; Albergo, Boffi & Vanden-Eijnden, "Stochastic Interpolants: A Unifying Framework for Flows and
Diffusions", arXiv:2303.08797.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.paths import AffinePath, converted
from pathline.sources import StandardNormal


@dataclass(frozen=True)
class Stochastic:
    r"""Euler-Maruyama (one call a step) or with ``heun`` the stochastic Heun method (two calls).

    A step that begins or ends where sigma is 0 has no score to lean on and takes g = 0, so its noise is not left on
    the samples. At t = 0 the score is -x, the standard normal's.

    A step h damps a point's distance from its posterior mean by about $1 - h g^2 / (2 \sigma^2)$: where that is below
    -1, step after step, it grows instead, without an error. So g should fall with sigma towards the data, as 1 - t on
    a linear path does; for one that grows without bound there no step is small enough.

    Attributes:
        path: the affine path of the field, which turns its velocity into a score.
        g: the diffusion coefficient by time.
        generator: of the noise.
        heun: whether a step averages the drift over its two ends (weak order 2 rather than 1).
    """

    path: AffinePath
    g: Callable[[float], float]
    generator: torch.Generator | None = None
    heun: bool = False

    random = True

    @property
    def name(self) -> str:
        return "stochastic_heun" if self.heun else "euler_maruyama"

    @property
    def order(self) -> int:
        return 2 if self.heun else 1

    @property
    def calls(self) -> int:
        return 2 if self.heun else 1

    def step(self, field: Callable[[Tensor, float], Tensor], x: Tensor, t: float, s: float) -> Tensor:
        h = s - t
        g_t, g_s = (0.0, 0.0) if self._sharp(t) or self._sharp(s) else (self._g(t), self._g(s))
        power = (g_t**2 + g_s**2) / 2 if self.heun else g_t**2
        noise = 0.0
        if power > 0:
            draw = torch.randn(x.shape, generator=self.generator, dtype=x.dtype, device=x.device)
            noise = (power * abs(h)) ** 0.5 * draw
        drift = self._drift(field, x, t, g_t, h)
        if not self.heun:
            return x + h * drift + noise
        return x + h / 2 * (drift + self._drift(field, x + h * drift + noise, s, g_s, h)) + noise

    def _drift(self, field: Callable[[Tensor, float], Tensor], x: Tensor, t: float, g: float, h: float) -> Tensor:
        velocity = field(x, t)
        if g == 0:
            return velocity
        of_velocity, of_x = self._score(t)
        half = (0.5 if h > 0 else -0.5) * g**2
        return (1 + half * of_velocity) * velocity + half * of_x * x

    def _score(self, t: float) -> tuple[float, float]:
        """Coefficients of velocity and x in the score."""
        curve = self.path.schedule(torch.tensor([t], dtype=torch.float64))
        if float(curve.alpha) == 0:
            return 0.0, -1.0
        one, zero = torch.ones_like(curve.alpha), torch.zeros_like(curve.alpha)
        pair = [float(converted(u, x, curve, "velocity", "score")) for u, x in ((one, zero), (zero, one))]
        return pair[0], pair[1]

    def _g(self, t: float) -> float:
        try:
            value = float(self.g(t))
        except ZeroDivisionError:
            value = math.inf
        if not 0 <= value < float("inf"):
            raise ValueError(f"g(t) must be finite and not negative, got {value:.6g} at t = {t:.6g}: bound it")
        return value

    def _sharp(self, t: float) -> bool:
        return float(self.path.schedule(torch.tensor(t, dtype=torch.float64)).sigma) == 0


def euler_maruyama(
    path: AffinePath, g: Callable[[float], float], generator: torch.Generator | None = None
) -> Stochastic:
    """Euler-Maruyama for the SDE with the marginals of ``path``'s flow; one call a step, see `Stochastic`.

    Raises:
        ValueError: a path that is not affine from a standard normal; a g that is no function; at ``solve``, a negative
            or infinite g(t).

    >>> from pathline import schedules
    >>> euler_maruyama(AffinePath(schedules.linear()), lambda t: 1 - t).calls
    1
    """
    _check(path, g)
    return Stochastic(path, g, generator)


def stochastic_heun(
    path: AffinePath, g: Callable[[float], float], generator: torch.Generator | None = None
) -> Stochastic:
    """The stochastic Heun method for the SDE with the marginals of ``path``'s flow; two calls a step.

    Raises:
        ValueError: a path that is not affine from a standard normal; a g that is no function; at ``solve``, a negative
            or infinite g(t).
    """
    _check(path, g)
    return Stochastic(path, g, generator, heun=True)


def _check(path: AffinePath, g: Callable[[float], float]) -> None:
    if not isinstance(path, AffinePath):
        raise ValueError(f"path must be affine for its velocity to give a score, got {type(path).__name__}")
    if not isinstance(path.source, StandardNormal):
        raise ValueError(
            f"path must start from a standard normal for its velocity to give a score, got {type(path.source).__name__}"
        )
    if not callable(g):
        raise ValueError(f"g must be a function of time, such as lambda t: 1.0, got {g!r}")
