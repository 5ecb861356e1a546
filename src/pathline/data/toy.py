"""Toy laws in the plane, each an exact map from the unit cube, with its exact log-density.

A toy draws k numbers in [0, 1) and maps them to the plane so that uniform numbers give exactly its law.
Pseudo-random numbers (:meth:`Toy.sample`) and low-discrepancy ones (:meth:`Toy.sobol`) go through the same
map; two Sobol samples are several times closer to each other than two random ones, and so measure a good
model more finely.

Log-densities are in nats. Laws with sharp edges give ``-inf`` outside their support; the edge is widened by
the rounding of x's dtype, so that no toy calls a point of its own impossible.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathline.wording import guess


@dataclass(frozen=True)
class Toy:
    """A law in the plane.

    Attributes:
        name: what :func:`toy` finds it by.
        description: one line.
        uniforms: k, the numbers in [0, 1) that make one point.
        from_uniform: the map ``(n, k) -> (n, 2)``; keeps the dtype.
        log_prob: the log-density in nats, ``(n, 2) -> (n,)``, computed in float64 and returned in x's dtype.

    >>> toy("checkerboard").log_prob(torch.tensor([[1.0, 1.0], [1.0, 3.0]]))
    tensor([-3.4657,    -inf])
    """

    name: str
    description: str
    uniforms: int
    from_uniform: Callable[[Tensor], Tensor]
    log_prob: Callable[[Tensor], Tensor]

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draws n independent points, shape ``(n, 2)``; also usable as a stream ``draw(n, generator)``.

        The points are made in float64 where the generator lives (the CPU without one) and then rounded and
        moved, so one seed gives the same points in every dtype and on every device.

        Raises:
            ValueError: ``n`` is below 1.
        """
        u = torch.rand(
            _count(n),
            self.uniforms,
            generator=generator,
            dtype=torch.float64,
            device="cpu" if generator is None else generator.device,
        )
        return self.from_uniform(u).to(device=device, dtype=dtype)

    def sobol(self, n: int, seed: int) -> Tensor:
        """n points of a scrambled Sobol sequence, shape ``(n, 2)``, float64; best where n is a power of 2.

        Each point alone has exactly the toy's law; together they fill it evenly. The scrambling comes from
        ``seed``.

        Raises:
            ValueError: ``n`` is below 1.
        """
        engine = torch.quasirandom.SobolEngine(self.uniforms, scramble=True, seed=seed)
        return self.from_uniform(engine.draw(_count(n), dtype=torch.float64))


def toy(name: str) -> Toy:
    """The toy called ``name``.

    Raises:
        ValueError: there is none; the message lists them all and the closest name.
    """
    if name in TOYS:
        return TOYS[name]
    raise ValueError(f"no built-in toy {name!r}{guess(name, TOYS)}; there are {', '.join(TOYS)}")


def _count(n: int) -> int:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return n


def _columns(u: Tensor, k: int) -> tuple[Tensor, ...]:
    if u.ndim != 2 or u.shape[1] != k:
        raise ValueError(f"u must have shape (n, {k}), got {tuple(u.shape)}")
    return u.unbind(1)


def _log_density(function: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wraps a log-density of (float64 points, rounding of their dtype) as one of points alone."""

    @functools.wraps(function)
    def log_prob(x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != 2 or not x.is_floating_point():
            raise ValueError(f"x must be floating point of shape (n, 2), got {x.dtype}, {tuple(x.shape)}")
        return function(x.double(), torch.finfo(x.dtype).eps).to(x.dtype)

    return log_prob


def _split(u: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """One uniform number as a whole number below ``parts`` and a uniform one, independent of it."""
    whole = (parts * u).floor()
    return whole, parts * u - whole


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def _standard_normal(u: Tensor, v: Tensor) -> Tensor:
    """Two uniform numbers in [0, 1) as a standard normal point (Box and Muller); always finite."""
    return _polar((-2 * torch.log1p(-u)).sqrt(), 2 * math.pi * v)


def _normal_log_prob(squared_distance: Tensor, variance: float) -> Tensor:
    return -squared_distance / (2 * variance) - math.log(2 * math.pi * variance)


_INNER, _OUTER = 2.0, 3.0


def annulus(u: Tensor) -> Tensor:
    """Radius uniform in [2, 3], angle uniform: density 1 / (2 pi r) on the annulus. ``(n, 2) -> (n, 2)``."""
    radius, angle = _columns(u, 2)
    return _polar(_INNER + (_OUTER - _INNER) * radius, 2 * math.pi * angle)


@_log_density
def annulus_log_prob(x: Tensor, eps: float) -> Tensor:
    """``-log(2 pi r)`` for radius r in [2, 3], else ``-inf``. ``(n, 2) -> (n,)``."""
    r = x.norm(dim=1)
    outside = (r < _INNER * (1 - 2 * eps)) | (r > _OUTER * (1 + 2 * eps))
    return -torch.log(2 * math.pi * (_OUTER - _INNER) * r).masked_fill(outside, math.inf)


_MEAN, _VARIANCE = (2.0, 1.0), 0.5


def gaussian(u: Tensor) -> Tensor:
    """Normal with mean (2, 1) and variance 1/2 in each coordinate. ``(n, 2) -> (n, 2)``."""
    return u.new_tensor(_MEAN) + math.sqrt(_VARIANCE) * _standard_normal(*_columns(u, 2))


@_log_density
def gaussian_log_prob(x: Tensor, eps: float) -> Tensor:
    """Log-density of N((2, 1), I/2). ``(n, 2) -> (n,)``."""
    return _normal_log_prob((x - x.new_tensor(_MEAN)).square().sum(1), _VARIANCE)


_CENTRE_RADIUS, _CENTRE_VARIANCE = 5.0, math.sqrt(0.1)


def eight_gaussians(u: Tensor) -> Tensor:
    """Eight equal normals, centres on a circle of radius 5, variance sqrt(0.1) = 0.316. ``(n, 2) -> (n, 2)``.

    The variance is the one behind published numbers (arXiv 2302.00482, 2307.03672): the code of those papers
    is called with ``var=0.1`` and uses its square root as the covariance.
    """
    first, second = _columns(u, 2)
    mode, first = _split(first, 8)
    centre = _polar(torch.full_like(mode, _CENTRE_RADIUS), math.pi / 4 * mode)
    return centre + math.sqrt(_CENTRE_VARIANCE) * _standard_normal(first, second)


@_log_density
def eight_gaussians_log_prob(x: Tensor, eps: float) -> Tensor:
    """Log-density of the equal mixture of eight normals. ``(n, 2) -> (n,)``."""
    angle = math.pi / 4 * torch.arange(8, dtype=x.dtype, device=x.device)
    centre = _polar(torch.full_like(angle, _CENTRE_RADIUS), angle)
    squared_distance = (x[:, None] - centre).square().sum(2)
    return _normal_log_prob(squared_distance, _CENTRE_VARIANCE).logsumexp(1) - math.log(8)


_SHIFT, _SCALE = 0.2, 3.0


def moons(u: Tensor) -> Tensor:
    """Two half circles of radius 3, each smeared by a uniform shift along (1, 1). ``(n, 2) -> (n, 2)``.

    One moon is ``c = (cos a, sin a)``, the other ``(1, 1/2) - c``, with ``a`` uniform in [0, pi]; a point is
    ``3 (moon + w (1, 1)) - 1`` with ``w`` uniform in [0, 0.2]. This is the law behind published numbers
    (arXiv 2302.00482, 2307.03672), whose "noise 0.2" is this shift and not a normal.
    """
    angle, shift = _columns(u, 2)
    lower, angle = _split(angle, 2)
    upper_moon = _polar(torch.ones_like(angle), math.pi * angle)
    lower_moon = u.new_tensor([1.0, 0.5]) - upper_moon
    moon = torch.where(lower[:, None] == 0, upper_moon, lower_moon)
    return _SCALE * (moon + _SHIFT * shift[:, None]) - 1


@_log_density
def moons_log_prob(x: Tensor, eps: float) -> Tensor:
    r"""Closed form, ``-inf`` off the moons. ``(n, 2) -> (n,)``.

    With ``y = (x + 1) / 3`` the point lies on the upper moon shifted by ``w`` where ``|y - w (1, 1)| = 1``:
    two roots ``w = (y_1 + y_2 -+ D) / 2`` with ``D = sqrt(2 - (y_1 - y_2)^2)``, which is also the Jacobian
    of ``(a, w) -> y`` at either root. Every root with w in [0, 0.2] on the upper half adds ``1 / (2 pi 0.2
    D)``, and so does every root of the lower moon; x's density is a ninth of that. It is unbounded, but
    integrable, where the moon runs along (1, 1) and D = 0.
    """
    y = (x + 1) / _SCALE
    slack = 8 * eps
    upper = _moon_density(y, 0.0, _SHIFT, slack)
    lower = _moon_density(y.new_tensor([1.0, 0.5]) - y, -_SHIFT, 0.0, slack)
    return (upper + lower).log() - math.log(2 * math.pi * _SHIFT * _SCALE**2)


def _moon_density(y: Tensor, least: float, most: float, slack: float) -> Tensor:
    total, squared = y.sum(1), 2 - (y[:, 0] - y[:, 1]).square()
    jacobian = squared.clamp(min=slack).sqrt()
    room = slack / jacobian
    density = torch.zeros_like(total)
    for root in ((total - jacobian) / 2, (total + jacobian) / 2):
        on_half = y[:, 1] - root >= -room
        density += on_half & (root >= least - room) & (root <= most + room) & (squared >= -slack)
    return density / jacobian


_SQUARE = 2.0


def checkerboard(u: Tensor) -> Tensor:
    """Uniform on eight squares of side 2, every other one of the 4 x 4 on [-4, 4]^2. ``(n, 2) -> (n, 2)``.

    A square is filled where its column and row, counted from 0 at the lower left corner, have an even sum.
    """
    across, up = _columns(u, 2)
    column = (4 * across).floor()
    pair, within = _split(up, 2)
    row = 2 * pair + column.remainder(2)
    return _SQUARE * torch.stack([4 * across - 2, row + within - 2], dim=1)


@_log_density
def checkerboard_log_prob(x: Tensor, eps: float) -> Tensor:
    """``-log 32`` on the squares and on every line of the board, else ``-inf``. ``(n, 2) -> (n,)``."""
    board = x / _SQUARE + 2
    on_edge = (board == board.round()).any(1)
    filled = board.floor().sum(1).remainder(2) == 0
    on_board = ((board >= 0) & (board <= 4)).all(1)
    inside = on_board & (filled | on_edge)
    return torch.full_like(x[:, 0], -math.log(8 * _SQUARE**2)).masked_fill(~inside, -math.inf)


class _Curve(NamedTuple):
    """A curve that normal noise blurs.

    Attributes:
        point: place on the curve, ``v (n,) -> (n, 2)``, smooth between whole v.
        density: of v on [0, pieces), ``(n,) -> (n,)``.
        pieces: length of v's range.
        std: of the noise, in each coordinate.
        panels: panels of the quadrature on each piece.
    """

    point: Callable[[Tensor], Tensor]
    density: Callable[[Tensor], Tensor]
    pieces: int
    std: float
    panels: int


_ORDER = 16
_CHUNK = 2**21


@functools.cache
def _nodes(curve: _Curve) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points on the curve ``(m, 2)`` and the logs of their weights ``(m,)``."""
    place, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(_ORDER))
    start = torch.arange(curve.pieces * curve.panels, dtype=torch.float64)[:, None]
    v = ((start + (place + 1) / 2) / curve.panels).flatten()
    mass = curve.density(v) * (weight / (2 * curve.panels)).repeat(len(start))
    return curve.point(v), mass.log()


def _curve_log_prob(curve: _Curve, x: Tensor) -> Tensor:
    """Log of the integral of ``density(v) N(x; point(v), std^2 I)`` over v, by rows in chunks.

    To 1e-9 within 4 of the origin; where x is farther than some 50 std from the curve, to a part in 1e4."""
    points, log_mass = (a.to(x.device) for a in _nodes(curve))
    half_precision = 1 / (2 * curve.std**2)
    offset = log_mass - half_precision * points.square().sum(1)

    def rows(x: Tensor) -> Tensor:
        exponent = torch.addmm(offset, x, points.T, alpha=2 * half_precision)
        return exponent.logsumexp(1) + _normal_log_prob(x.square().sum(1), curve.std**2)

    return torch.cat([rows(part) for part in x.split(max(1, _CHUNK // len(points)))])


def _spiral_point(v: Tensor) -> Tensor:
    arm = v.floor()
    angle = 3 * math.pi * (v - arm)
    return _polar((1 - 2 * arm) * angle / 3, angle)


def _spiral_density(v: Tensor) -> Tensor:
    return v - v.floor()


_SPIRALS = _Curve(_spiral_point, _spiral_density, pieces=2, std=0.1, panels=160)


def two_spirals(u: Tensor) -> Tensor:
    """Two arms, each other's mirror image in the origin, with normal noise of std 0.1. ``(n, 3) -> (n, 2)``.

    An arm is ``(a / 3) (cos a, sin a)`` with angle ``a = 3 pi sqrt(s)``, s uniform in [0, 1].
    """
    along, first, second = _columns(u, 3)
    arm, along = _split(along, 2)
    return _spiral_point(arm + along.sqrt()) + _SPIRALS.std * _standard_normal(first, second)


@_log_density
def two_spirals_log_prob(x: Tensor, eps: float) -> Tensor:
    """By Gauss-Legendre quadrature along the arms. ``(n, 2) -> (n,)``."""
    return _curve_log_prob(_SPIRALS, x)


def _s_point(v: Tensor) -> Tensor:
    angle = 1.5 * math.pi * (v - 1)
    return torch.stack([angle.sin(), angle.sign() * (angle.cos() - 1)], dim=1)


def _s_density(v: Tensor) -> Tensor:
    return torch.full_like(v, 0.5)


_S = _Curve(_s_point, _s_density, pieces=2, std=0.1, panels=30)


def s_curve(u: Tensor) -> Tensor:
    """Two arcs of unit radius joined as an S, with normal noise of std 0.1. ``(n, 3) -> (n, 2)``.

    The curve is ``(sin a, sign(a) (cos a - 1))`` with ``a`` uniform in [-3 pi / 2, 3 pi / 2].
    """
    along, first, second = _columns(u, 3)
    return _s_point(2 * along) + _S.std * _standard_normal(first, second)


@_log_density
def s_curve_log_prob(x: Tensor, eps: float) -> Tensor:
    """By Gauss-Legendre quadrature along the curve. ``(n, 2) -> (n,)``."""
    return _curve_log_prob(_S, x)


def _roll_point(v: Tensor) -> Tensor:
    angle = 1.5 * math.pi * (1 + 2 * v)
    return _polar(angle / 5, angle)


_ROLL = _Curve(_roll_point, torch.ones_like, pieces=1, std=0.1, panels=200)


def swiss_roll(u: Tensor) -> Tensor:
    """A spiral of one and a half turns, with normal noise of std 0.1. ``(n, 3) -> (n, 2)``.

    The curve is ``(a / 5) (cos a, sin a)`` with ``a`` uniform in [3 pi / 2, 9 pi / 2].
    """
    along, first, second = _columns(u, 3)
    return _roll_point(along) + _ROLL.std * _standard_normal(first, second)


@_log_density
def swiss_roll_log_prob(x: Tensor, eps: float) -> Tensor:
    """By Gauss-Legendre quadrature along the roll. ``(n, 2) -> (n,)``."""
    return _curve_log_prob(_ROLL, x)


TOYS: Mapping[str, Toy] = MappingProxyType(
    {
        name: Toy(name, description, uniforms, from_uniform, log_prob)
        for name, description, uniforms, from_uniform, log_prob in (
            ("annulus", "radius uniform in [2, 3], angle uniform", 2, annulus, annulus_log_prob),
            ("gaussian", "normal, mean (2, 1), variance 1/2", 2, gaussian, gaussian_log_prob),
            ("eight-gaussians", "eight normals in a ring", 2, eight_gaussians, eight_gaussians_log_prob),
            ("moons", "two half circles, smeared along (1, 1)", 2, moons, moons_log_prob),
            ("two-spirals", "two spiral arms, noise 0.1", 3, two_spirals, two_spirals_log_prob),
            ("checkerboard", "eight squares of a board", 2, checkerboard, checkerboard_log_prob),
            ("s-curve", "two arcs joined as an S, noise 0.1", 3, s_curve, s_curve_log_prob),
            ("swiss-roll", "a spiral of 1.5 turns, noise 0.1", 3, swiss_roll, swiss_roll_log_prob),
        )
    }
)
"""Every built-in toy by name."""
