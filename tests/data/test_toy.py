import functools
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.data.toy import TOYS, toy
from pathline.metrics import w2
from pathline.typing import Draw

EVERY = pytest.mark.parametrize("name", TOYS)
CURVES = ("two-spirals", "s-curve", "swiss-roll")
LARGEST = 1 - 2**-53


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gauss(start: float, stop: float, panels: int, order: int = 20) -> tuple[Tensor, Tensor]:
    place, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(order))
    h = (stop - start) / panels
    nodes = start + h * (torch.arange(panels, dtype=torch.float64)[:, None] + (place + 1) / 2)
    return nodes.flatten(), (h / 2 * weight).repeat(panels)


def product(a: Tensor, weight_a: Tensor, b: Tensor, weight_b: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cartesian_prod(a, b), torch.cartesian_prod(weight_a, weight_b).prod(1)


def trapezoid(low: float, high: float, step: float) -> tuple[Tensor, Tensor]:
    """Exact to exp(-2 pi^2 (std / step)^2) for a law blurred by a normal of that std, inside [low, high]."""
    nodes = torch.arange(low, high, step, dtype=torch.float64)
    return nodes, torch.full_like(nodes, step)


def quadrature(name: str) -> tuple[Tensor, Tensor]:
    """Points and weights for integrals over the plane of functions times the toy's density."""
    if name == "annulus":
        (r, weight_r), (angle, weight_angle) = gauss(2, 3, 2), gauss(0, 2 * math.pi, 10)
        rows, weight = product(r, weight_r * r, angle, weight_angle)
        return rows[:, :1] * torch.stack([rows[:, 1].cos(), rows[:, 1].sin()], dim=1), weight
    if name == "checkerboard":
        return product(*gauss(-4, 4, 4), *gauss(-4, 4, 4))
    if name == "moons":
        return moons_quadrature()
    if name in CURVES:
        return product(*trapezoid(-4.2, 4.2, 0.1), *trapezoid(-4.2, 4.2, 0.1))
    return product(*trapezoid(-9, 9, 0.25), *trapezoid(-9, 9, 0.25))


def moons_quadrature() -> tuple[Tensor, Tensor]:
    """In the difference and sum of ``(x + 1) / 3``, cut at folds and ends, even in the angle there."""
    fold = math.sqrt(2)
    edges = sorted([-fold, -1, 1, fold, 0.5 - fold, -0.5, 1.5, 0.5 + fold])
    angle, weight_angle = gauss(0, math.pi, 1)
    step = 4.8 / 4000
    total = -1.6 + step * (torch.arange(4000, dtype=torch.float64) + 0.5)
    parts = []
    for low, high in itertools.pairwise(edges):
        difference = (low + high) / 2 - (high - low) / 2 * angle.cos()
        weight = weight_angle * angle.sin() * (high - low) / 2
        q, w = product(difference, weight, total, torch.full_like(total, step))
        y = torch.stack([q.sum(1), q[:, 1] - q[:, 0]], dim=1) / 2
        parts.append((3 * y - 1, w * 9 / 2))
    x, weight = (torch.cat(p) for p in zip(*parts, strict=True))
    return x, weight


@functools.cache
def mass(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Points of the quadrature, the probability that each stands for, and the log-density there."""
    x, weight = quadrature(name)
    log_prob = TOYS[name].log_prob(x)
    return x, weight * log_prob.exp(), log_prob


@EVERY
def test_density_integrates_to_one(name: str):
    total = mass(name)[1].sum().item()
    assert total == pytest.approx(1, abs=1e-3 if name == "moons" else 1e-8)  # moons: jumps inside the cells


def characteristic(x: Tensor, weight: Tensor) -> Tensor:
    frequency = torch.randn(24, 2, generator=seeded(5), dtype=torch.float64) * torch.logspace(-0.5, 0.7, 24)[:, None]
    phase = x @ frequency.T
    return torch.cat([weight @ phase.cos(), weight @ phase.sin()])


@EVERY
def test_samples_and_sobol_points_follow_the_density(name: str):
    t, n = TOYS[name], 100_000
    exact = characteristic(*mass(name)[:2])
    drawn = t.sample(n, seeded(1), torch.float64)
    # Hoeffding: an average of n terms in [-1, 1] is off by more than 0.022 with probability below 7e-11
    bias = 2e-3 if name == "moons" else 1e-7
    assert (characteristic(drawn, torch.full((n,), 1 / n).double()) - exact).abs().max() < 0.022 + bias
    even = t.sobol(2**15, seed=3)
    assert (characteristic(even, torch.full((2**15,), 2.0**-15).double()) - exact).abs().max() < 1e-3 + bias


@EVERY
def test_mean_log_density_of_samples_is_minus_the_entropy(name: str):
    t = TOYS[name]
    _, p, log_prob = mass(name)
    entropy = -(p * log_prob)[p > 0].sum()
    got = t.log_prob(t.sample(5_000, seeded(2), torch.float64))
    # seven standard errors: error probability 3e-12
    assert (got.mean() + entropy).abs() < 7 * got.std() / math.sqrt(5_000) + (3e-3 if name == "moons" else 1e-7)


def spirals_by_angle(x: Tensor) -> Tensor:
    a, weight = gauss(0, 3 * math.pi, 500, 40)
    arm = a[:, None] / 3 * torch.stack([a.cos(), a.sin()], dim=1)
    return blurred(x, torch.cat([arm, -arm]), (weight * a / (9 * math.pi**2)).repeat(2))


def s_by_angle(x: Tensor) -> Tensor:
    a, weight = gauss(0, 1.5 * math.pi, 500, 40)
    half = torch.stack([a.sin(), a.cos() - 1], dim=1)
    return blurred(x, torch.cat([half, -half]), (weight / (3 * math.pi)).repeat(2))


def roll_by_angle(x: Tensor) -> Tensor:
    a, weight = gauss(1.5 * math.pi, 4.5 * math.pi, 1000, 40)
    return blurred(x, a[:, None] / 5 * torch.stack([a.cos(), a.sin()], dim=1), weight / (3 * math.pi))


def blurred(x: Tensor, points: Tensor, weight: Tensor) -> Tensor:
    return torch.stack([(weight.log() - 50 * (row - points).square().sum(1)).logsumexp(0) for row in x]) - math.log(
        2 * math.pi * 0.01
    )


@pytest.mark.parametrize(
    ("name", "exact"),
    [("two-spirals", spirals_by_angle), ("s-curve", s_by_angle), ("swiss-roll", roll_by_angle)],
)
def test_curves_by_finer_quadrature(name: str, exact):
    anywhere = torch.rand(60, 2, generator=seeded(0), dtype=torch.float64) * 8 - 4
    x = torch.cat([anywhere, TOYS[name].sample(20, seeded(1), torch.float64)])
    torch.testing.assert_close(TOYS[name].log_prob(x), exact(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "x", "value"),
    [
        ("annulus", [0.0, 2.5], -math.log(5 * math.pi)),
        ("annulus", [0.0, 1.99], -math.inf),
        ("annulus", [2.2, 2.2], -math.inf),
        ("gaussian", [2.0, 2.0], -math.log(math.pi) - 1),
        ("checkerboard", [-3.0, -3.0], -math.log(32)),
        ("checkerboard", [-3.0, -1.0], -math.inf),
        ("checkerboard", [4.5, 4.5], -math.inf),
        ("moons", [-1.0, 2.3], -math.log(2 * math.pi * 0.2 * 9)),
        ("moons", [-1.0, 1.9], -math.inf),
    ],
)
def test_known_values(name: str, x: list[float], value: float):
    # Moons: (-1, 2.3) has y = (0, 1.1), so y_1 - y_2 = -1.1 and D = sqrt(0.79), seen by the upper moon alone.
    if name == "moons" and value > -math.inf:
        value -= math.log(0.79) / 2
    got = TOYS[name].log_prob(torch.tensor([x], dtype=torch.float64)).item()
    assert got == pytest.approx(value, abs=1e-12)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_own_points_are_possible(name: str, dtype: torch.dtype):
    t = TOYS[name]
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, LARGEST], dtype=torch.float64)] * t.uniforms)
    x = torch.cat([t.sample(100_000 if t.uniforms == 2 else 2000, seeded(4), dtype), t.from_uniform(corners).to(dtype)])
    log_prob = t.log_prob(x)
    assert log_prob.dtype == dtype
    assert log_prob.isfinite().all()


@EVERY
def test_seeds_dtypes_and_devices(name: str):
    t = TOYS[name]
    x = t.sample(50, seeded(7))
    assert (x.shape, x.dtype) == ((50, 2), torch.float32)
    assert torch.equal(x, t.sample(50, seeded(7)))
    assert torch.equal(x, t.sample(50, seeded(7), torch.float64, "cpu").float())
    assert not torch.equal(x, t.sample(50, seeded(8)))
    assert t.sobol(8, 0).dtype == torch.float64
    assert torch.equal(t.sobol(8, 0), t.sobol(8, 0))
    assert not torch.equal(t.sobol(8, 0), t.sobol(8, 1))
    assert t.from_uniform(torch.rand(4, t.uniforms)).dtype == torch.float32
    assert t.sample(1).shape == (1, 2)


@EVERY
def test_pickles(name: str):
    again = pickle.loads(pickle.dumps(TOYS[name]))
    assert again == TOYS[name]
    stream: Draw = again.sample
    assert torch.equal(stream(5, seeded(0)), TOYS[name].sample(5, seeded(0)))


@pytest.mark.parametrize("name", ["annulus", "moons", "checkerboard"])
def test_sobol_points_are_more_even(name: str):
    t = TOYS[name]
    random = [t.sample(512, seeded(s), torch.float64) for s in (0, 1)]
    assert w2(t.sobol(512, 0), t.sobol(512, 1)) < 0.7 * w2(*random)


def test_names():
    assert toy("moons") is TOYS["moons"]
    with pytest.raises(ValueError, match=r"'mons'; did you mean moons\?; there are annulus, gaussian, eight-"):
        toy("mons")
    with pytest.raises(ValueError, match=r"'data\.csv'; there are annulus"):
        toy("data.csv")


def test_bad_input():
    t = toy("annulus")
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        t.sample(0)
    with pytest.raises(ValueError, match="n must be at least 1, got -2"):
        t.sobol(-2, 0)
    with pytest.raises(ValueError, match=r"u must have shape \(n, 2\), got \(5, 3\)"):
        t.from_uniform(torch.rand(5, 3))
    with pytest.raises(ValueError, match=r"shape \(n, 2\), got torch.float32, \(3,\)"):
        t.log_prob(torch.zeros(3))
    with pytest.raises(ValueError, match=r"got torch.int64, \(1, 2\)"):
        t.log_prob(torch.zeros(1, 2, dtype=torch.int64))
