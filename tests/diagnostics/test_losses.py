"""Floors, excess and R2 over time against closed forms, quadrature and full scans."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from pathline import AffinePath, EmpiricalField, GaussianMixtureField, schedules
from pathline.data.toy import TOYS, toy
from pathline.diagnostics import LawField, loss_over_time, reference
from pathline.typing import Batch
from problems import annulus, curved_path, normal, seeded

PATH = AffinePath(schedules.linear())
FLOOR = 0.5**0.5 * math.pi / 2  # of N(m, I / 2): the integral of s^2 / ((1 - t)^2 + t^2 s^2) is s pi / 2


def test_one_gaussian() -> None:
    exact = GaussianMixtureField(PATH, torch.tensor([[2.0, 1.0]]), torch.tensor([0.5]))
    known = reference(exact, PATH, toy("gaussian").sample(500, seeded(0), torch.float64), generator=seeded(1))
    assert known.floor.value == pytest.approx(FLOOR, rel=1e-5)
    assert known.floor.se < 1e-12
    found = known.judge(lambda x, t: exact(x, t) + 0.3)
    assert found.excess.value == pytest.approx(0.09)
    assert found.loss.value == pytest.approx(FLOOR + 0.09, rel=1e-5)
    assert known.judge(exact).r2.value == pytest.approx(1)
    t = (torch.arange(10) + 0.5).double() / 10
    closed = 0.5 / ((1 - t) ** 2 + 0.5 * t**2)
    torch.testing.assert_close(torch.tensor(known.floor.by_time).double(), closed, rtol=0.01, atol=0)


def test_r2_of_the_best_constant_is_zero() -> None:
    exact = GaussianMixtureField(PATH, torch.tensor([[2.0, 1.0]]), torch.tensor([0.5]))
    known = reference(exact, PATH, toy("gaussian").sample(4000, seeded(0), torch.float64), generator=seeded(1))
    found = known.judge(lambda x, t: torch.tensor([2.0, 1.0]).to(x).expand_as(x)).r2
    # u - E u has 18,000 numbers of variance S: the mean square is S within 7%, 6 sigma of sqrt(2 / 18,000)
    assert abs(found.value) < 0.07
    assert found.se < 0.05


def test_a_mixture_in_one_dimension_against_quadrature() -> None:
    means, std = torch.tensor([[-2.0], [1.0]]).double(), 0.3
    exact = GaussianMixtureField(PATH, means, torch.full((2,), std**2))
    x1 = means[torch.arange(20_000) % 2] + std * normal(20_000, 1, seed=0)
    known = reference(exact, PATH, x1, draws=1000, generator=seeded(1))
    expected = _mixture_floor(means[:, 0], std)
    assert known.floor.value == pytest.approx(expected, rel=0.01)
    assert abs(known.floor.value - expected) < 6 * known.floor.se  # p < 1e-8


def _mixture_floor(means: Tensor, std: float) -> float:
    """The integral over t and x of p_t(x) Var(x1 - x0 | x), by 200 x 4,000 nodes."""
    total, (nodes, weights) = 0.0, np.polynomial.legendre.leggauss(200)
    x = torch.linspace(-8, 8, 4000, dtype=torch.float64)[:, None]
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        var = (1 - t) ** 2 + (t * std) ** 2
        density = torch.exp(-0.5 * (x - t * means) ** 2 / var) / math.sqrt(2 * math.pi * var) / 2
        p = density / density.sum(1, keepdim=True)
        own = means + t * std**2 / var * (x - t * means)
        spread = (p * own**2).sum(1) - (p * own).sum(1) ** 2 + ((1 - t) * std) ** 2 / var
        total += weight * float((density.sum(1) * spread).sum() * 16 / 3999) / (1 - t) ** 2
    return total


def test_digits_against_the_full_scan() -> None:
    """The default draws against all rows with 10 noises each; 1% is about 3 standard errors, the seed is fixed."""
    x = torch.from_numpy(load_digits().data)[:300] / 8 - 1
    field = EmpiricalField(PATH, x)
    quick = reference(field, PATH, x, generator=seeded(0)).floor
    full = reference(field, PATH, x, draws=3000, generator=seeded(1)).floor
    assert quick.value == pytest.approx(full.value, rel=0.01)
    assert quick.se < 0.01 * quick.value


def test_the_floor_is_the_mean_square_about_the_field() -> None:
    """On a path whose standard deviation depends on x1 too, where single draws are taken instead of variances."""
    for path in (PATH, curved_path()):
        data = normal(30, 2, seed=0)
        exact = EmpiricalField(path, data)
        floor = reference(exact, path, data, generator=seeded(0)).floor
        drawn = loss_over_time(exact, path, data, draws=4000, generator=seeded(1))
        assert abs(floor.value - drawn.value) < 6 * math.hypot(floor.se, drawn.se)  # p < 1e-8
        assert floor.se < 0.03 * floor.value


def test_big_data_costs_no_more() -> None:
    data = normal(100_000, 2, seed=0)
    known = reference(EmpiricalField(PATH, data), PATH, data, generator=seeded(0))
    assert known.n == 10 * 30


def test_the_floor_of_100_000_rows_is_good_to_one_percent() -> None:
    """Of N(0, diag(0.25, 4)) it is the mean of s pi / 2; the rows' own differs by less than 0.1% until near t = 1."""
    spread = torch.tensor([0.5, 2.0])
    data = spread * normal(100_000, 2, seed=0, dtype=torch.float32)
    known = reference(EmpiricalField(PATH, data), PATH, data, generator=seeded(0))
    assert known.n == 159 * 30
    expected = float(spread.mean()) * math.pi / 2
    assert known.floor.value == pytest.approx(expected, rel=0.01)
    assert known.floor.se < 0.007 * expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_floor_of_rings_and_labels_has_a_small_standard_error(dtype: torch.dtype) -> None:
    """Points of a ring are the hard case, since the variance given x_t differs most from x_t to x_t."""
    data = annulus(20_000).to(dtype)
    labels = (data > 0).long() @ torch.tensor([1, 2])
    known = reference(
        EmpiricalField(PATH, data, labels=labels), PATH, data, cond={"label": labels}, generator=seeded(0)
    )
    assert known.floor.se < (0.003 if dtype == torch.float32 else 0.015) * known.floor.value
    other = reference(
        EmpiricalField(PATH, data, labels=labels), PATH, data, cond={"label": labels}, generator=seeded(1)
    )
    both = math.hypot(known.floor.se, other.floor.se)
    assert abs(known.floor.value - other.floor.value) < 6 * both  # p < 1e-8


def test_each_of_many_labels_has_its_own_floor() -> None:
    two = torch.tensor([[-1.0], [1.0]])
    data, labels = (two + 5 * torch.arange(400)[:, None, None]).reshape(-1, 1), torch.arange(800) // 2
    known = reference(
        EmpiricalField(PATH, data, labels=labels), PATH, data, cond={"label": labels}, generator=seeded(0)
    )
    alone = reference(EmpiricalField(PATH, two), PATH, two, draws=3000, generator=seeded(1))
    assert known.n == 300 * 30
    assert abs(known.floor.value - alone.floor.value) < 6 * math.hypot(known.floor.se, alone.floor.se)  # p < 1e-8
    assert known.floor.se < 0.03 * known.floor.value


@pytest.mark.parametrize("name", ["gaussian", "eight-gaussians"])
def test_a_law_by_its_points_is_as_exact_as_a_mixture(name: str) -> None:
    law = toy(name)
    exact = _exact(name)
    field = LawField(PATH, law.sobol(2**18, 0))
    x1 = law.sample(200, seeded(0), torch.float64)
    for t in (0.02, 0.3, 0.6, 0.9, 0.98):
        time = torch.tensor(t, dtype=torch.float64)
        x = PATH.sample(Batch(x1), time, seeded(1)).x_t
        (u, divergence), (v, other) = field.velocity_and_divergence(x, time), exact.velocity_and_divergence(x, time)
        assert float((u - v).norm(dim=1).median()) < 0.02 * float(v.norm(dim=1).median())
        floor, expected = (float((d + 2 / (1 - t)).mean()) for d in (divergence, other))
        assert floor == pytest.approx(expected, rel=0.05)


def test_the_floor_of_a_law_by_its_points() -> None:
    law = toy("gaussian")
    known = reference(LawField(PATH, law.sobol(2**17, 0)), PATH, law.sample(5000, seeded(0), torch.float64), draws=60)
    assert known.floor.value == pytest.approx(FLOOR, rel=0.01)


def _exact(name: str) -> GaussianMixtureField:
    if name == "gaussian":
        return GaussianMixtureField(PATH, torch.tensor([[2.0, 1.0]]), torch.tensor([0.5]))
    points = TOYS[name].sobol(2**14, 0)
    angle = torch.arange(8) * math.pi / 4
    radius = float(points.norm(dim=1).mean())
    ring = torch.stack([angle.cos(), angle.sin()], 1).double()
    owner = (points @ ring.T).argmax(1)
    means = torch.stack([points[owner == k].mean(0) for k in range(8)])
    variance = float((points - means[owner]).square().mean())
    assert radius > 1
    return GaussianMixtureField(PATH, means, torch.full((8,), variance))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="data must hold a row and draws be at least 2"):
        reference(EmpiricalField(PATH, annulus(5)), PATH, annulus(5), draws=1)
    with pytest.raises(ValueError, match="points must be 512 or more finite rows"):
        LawField(PATH, annulus(5))
    with pytest.raises(ValueError, match="path must be an AffinePath"):
        LawField(curved_path(), annulus(600))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"t must be one number inside \(0, 1\)"):
        LawField(PATH, annulus(600))(annulus(3), torch.tensor([0.1, 0.2, 0.3]))
