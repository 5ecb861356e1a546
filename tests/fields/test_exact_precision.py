"""Exact fields in float64 against 60 digits, alpha and sigma as they are given."""

import math

import mpmath
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pathline.fields import EmpiricalField
from pathline.paths import AffinePath
from pathline.schedules import SHIPPED, Schedule, named
from problems import normal, number, seeded

EPS = torch.finfo(torch.float64).eps
ROUNDINGS = 32


def schedule(name: str, sigma_min: float) -> Schedule:
    if name == "linear":
        return named(name, sigma_min=sigma_min)
    return named(name, n=2) if name == "polynomial" else named(name)


def errors(path: AffinePath, data: Tensor, x: Tensor, t: float) -> tuple[float, float, float]:
    """|du| / (|u| + |x|), the conditioning of the weights, and that of the mean that they make."""
    found = EmpiricalField(path, data)(x[None], number(t)).flatten().tolist()
    with mpmath.workdps(60):
        alpha, sigma, alpha_rate, sigma_rate = (mpmath.mpf(float(v)) for v in path.schedule(number(t)))
        point = mpmath.matrix(x.reshape(-1).tolist())
        rows = [mpmath.matrix(row) for row in data.reshape(len(data), -1).tolist()]
        away = [mpmath.norm(point - alpha * row) for row in rows]
        nearest = min(away)
        weights = [mpmath.exp((nearest**2 - far**2) / (2 * sigma**2)) for far in away]
        total = mpmath.fsum(weights)
        mean = sum((w / total * row for w, row in zip(weights, rows, strict=True)), 0 * point)
        velocity = alpha_rate * mean + sigma_rate / sigma * (point - alpha * mean)
        size = mpmath.norm(velocity) + mpmath.norm(point)
        kappa = 1 + max(
            (mpmath.norm(point) + alpha * mpmath.norm(row)) * far / sigma**2
            for row, far in zip(rows, away, strict=True)
        )
        parts = mpmath.fsum(w / total * mpmath.norm(row) for w, row in zip(weights, rows, strict=True))
        error = mpmath.norm(mpmath.matrix(found) - velocity) / size
        return float(error), float(kappa), max(1.0, float(abs(alpha_rate) * parts / size))


TIMES = st.one_of(st.sampled_from([0.0, 1e-6, 0.5, 0.99, 1 - 1e-4]), st.floats(0, 1 - 1e-4))
SHAPES = st.sampled_from([(), (1,), (2,), (7,), (2, 1, 3)])


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(SHIPPED)),
    SHAPES,
    st.integers(1, 20),
    TIMES,
    st.sampled_from([0.0, 1e-3, 0.2]),
    st.floats(-3, 3),
    st.sampled_from([0.0, 1.0, 1e4]),
    st.integers(0, 10**6),
)
def test_the_error_is_a_few_roundings_of_the_conditioning(
    name: str, shape: tuple[int, ...], n: int, t: float, sigma_min: float, scale: float, far: float, seed: int
):
    """At draws of p_t, on every schedule, near the origin and far from it."""
    path = AffinePath(schedule(name, sigma_min))
    data = 10**scale * (normal(n, *shape, seed=seed) + far)
    curve = path.schedule(number(t))
    own = data[int(torch.randint(n, (), generator=seeded(seed)))]
    error, kappa, _ = errors(path, data, curve.alpha * own + curve.sigma * normal(1, *shape, seed=seed + 1)[0], t)
    assert error <= ROUNDINGS * EPS * kappa


@settings(max_examples=100, deadline=None)
@given(SHAPES, st.integers(1, 10), TIMES, st.floats(-3, 3), st.floats(-4, 4), st.booleans(), st.integers(0, 10**6))
def test_nor_more_anywhere_but_for_what_cancels_in_the_mean(
    shape: tuple[int, ...], n: int, t: float, scale: float, distance: float, mirrored: bool, seed: int
):
    """Where the data lie around x, so that |u| + |x| is far less than they are, the mean cannot be known as well."""
    data = 10**scale * normal(n, *shape, seed=seed)
    data = torch.cat([data, -data]) if mirrored else data
    x = 10**distance * normal(1, *shape, seed=seed + 1)[0]
    error, kappa, of_mean = errors(AffinePath(schedule("linear", 0.0)), data, x, t)
    assert error <= ROUNDINGS * EPS * kappa * of_mean


def test_what_cancels_is_counted():
    """The bound above has to allow for it: 1 ulp in a weight moves the mean of -1000 and 1000 by 1e-13."""
    data, t = torch.tensor([[-1000.0], [1000.0]], dtype=torch.float64), 1e-6
    error, kappa, of_mean = errors(AffinePath(schedule("linear", 0.0)), data, number(1e-3)[None], t)
    assert kappa < 2
    assert of_mean > 1e5
    assert error <= ROUNDINGS * EPS * kappa * of_mean
    assert math.isfinite(error)
