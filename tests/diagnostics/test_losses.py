"""Floors, excess and R2 over time against closed forms, quadrature and full scans."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from pathline import AffinePath, EmpiricalField, GaussianMixtureField, schedules
from pathline.data.toy import TOYS, toy
from pathline.diagnostics import LawField, loss_over_time, reference
from pathline.objectives import FlowMatching
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


def _gaussian_floor(path: AffinePath, std: float) -> float:
    r"""The mean over time of $(\dot\alpha\sigma - \dot\sigma\alpha)^2 s^2 / (\sigma^2 + \alpha^2 s^2)$."""
    step = torch.linspace(math.log(1e-9), math.log(0.5), 100_000, dtype=torch.float64).exp()
    low, high = FlowMatching(path).time_range

    def at(share: Tensor) -> Tensor:
        alpha, sigma, alpha_rate, sigma_rate = path.schedule(low + (high - low) * share)
        return ((alpha_rate * sigma - sigma_rate * alpha) * std).square() / (sigma**2 + (alpha * std) ** 2)

    return float(torch.trapezoid((at(step) + at(1 - step)) * step, step.log()))


@pytest.mark.parametrize("std", [1e-3, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "variance_preserving"])
def test_one_gaussian_of_any_width(name: str, std: float) -> None:
    path = AffinePath(schedules.named(name, **({"n": 3} if name == "polynomial" else {})))
    exact = GaussianMixtureField(path, torch.zeros(1, 2), torch.tensor([std**2]).double())
    known = reference(exact, path, std * normal(50, 2, seed=0), draws=16, generator=seeded(1))
    assert known.floor.value == pytest.approx(_gaussian_floor(path, std), rel=0.005)


def test_the_variance_preserving_floor_is_over_the_times_that_are_trained_on() -> None:
    path = AffinePath(schedules.variance_preserving())
    exact = GaussianMixtureField(path, torch.zeros(1, 2), torch.ones(1))
    rows = normal(50, 2, seed=0)
    assert reference(exact, path, rows, draws=16).floor.value == pytest.approx(3.803, rel=0.002)
    inner = reference(exact, path, rows, draws=16, time_range=(0.0, 0.99)).floor.value
    assert inner < 3.803 - 0.1  # beyond it the integrand is about 0.025 / (1 - t)
    with pytest.raises(ValueError, match=r"time_range must be two times in \[0, 1\], the earlier first, got \(1, 0\)"):
        reference(exact, path, rows, time_range=(1, 0))


@pytest.mark.parametrize("name", ["linear", "polynomial"])
def test_two_narrow_clusters_against_a_fine_scan(name: str) -> None:
    """In the last bin, where the clusters are resolved; the earlier ones are a smooth function of time."""
    path = AffinePath(schedules.named(name, **({"n": 3} if name == "polynomial" else {})))
    rows = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).double().repeat(100, 1) + 0.01 * normal(200, 2, seed=0)
    exact = EmpiricalField(path, rows)
    found = reference(exact, path, rows, draws=4000, generator=seeded(1)).floor
    expected, error = _last_bin(exact, path, rows.repeat(5, 1))
    both = math.hypot(found.by_time_se[-1], error)
    assert both < 0.03 * expected
    assert abs(found.by_time[-1] - expected) < 4 * both


def _last_bin(exact: EmpiricalField, path: AffinePath, rows: Tensor) -> tuple[float, float]:
    """The mean floor of t in (0.9, 1) by 400 times evenly spread in the log of 1 - t, and its standard error."""
    left = torch.linspace(math.log(0.1), math.log(1e-6), 401, dtype=torch.float64).exp()
    total = error = 0.0
    for k, (far, near) in enumerate(itertools.pairwise(left)):
        t = 1 - (far + near) / 2
        at = path.sample(Batch(rows), t, seeded(k))
        alpha, sigma, alpha_rate, sigma_rate = path.schedule(t)
        spread = exact.divergence(at.x_t, at.t) / 2 - sigma_rate / sigma
        floor = 10 * (far - near) * (alpha_rate * sigma**2 / alpha - sigma_rate * sigma) * spread
        total += float(floor.mean())
        error += float(floor.var() / len(rows))
    return total, error**0.5


@pytest.mark.parametrize("n", [6, 150, 1000])
def test_standard_errors_count_rows(n: int) -> None:
    """Over 200 sets: the error of a variance of 200 is 10%, of a standard deviation 5%; more for 6 rows, 3.5 of them.

    The mean of the squares is compared, which is unbiased; that of 6 rows, each a square of a normal's, varies most.
    """
    values, errors = [], []
    for seed in range(200):
        rows = normal(n, 2, seed=seed)
        found = loss_over_time(lambda x, t: -0.3 * x, PATH, rows, draws=n, generator=seeded(seed))
        values.append((found.value, *found.by_time))
        errors.append((found.se, *found.by_time_se))
    actual = np.std(values, axis=0, ddof=1)
    reported = np.sqrt(np.mean(np.square(errors), axis=0))
    np.testing.assert_allclose(reported, actual, rtol=0.3 if n == 6 else 0.2)


def test_standard_errors_against_a_population_count_rows() -> None:
    means = torch.tensor([[-2.0, 0.0], [1.0, 1.0]]).double()
    exact, found = GaussianMixtureField(PATH, means, torch.full((2,), 0.09)), []
    for seed in range(100):
        own = torch.randint(2, (50,), generator=seeded(seed))
        rows = means[own] + 0.3 * normal(50, 2, seed=seed + 1000)
        known = reference(exact, PATH, rows, draws=100, generator=seeded(seed))
        assert not known.whole
        judged = known.judge(lambda x, t: -0.3 * x)
        found.append([(each.value, each.se) for each in (judged.floor, judged.excess, judged.loss, judged.r2)])
    values, errors = np.moveaxis(np.array(found), 2, 0)
    np.testing.assert_allclose(np.sqrt(np.mean(errors**2, 0)), values.std(0, ddof=1), rtol=0.25)


def test_standard_errors_of_a_training_floor_are_those_of_its_draws() -> None:
    rows = normal(50, 2, seed=0)
    exact = EmpiricalField(PATH, rows)
    known = [reference(exact, PATH, rows, draws=400, generator=seeded(seed)) for seed in range(60)]
    assert all(each.whole for each in known)
    actual = float(np.std([each.floor.value for each in known], ddof=1))
    reported = math.sqrt(np.mean([each.floor.se**2 for each in known]))
    assert reported == pytest.approx(actual, rel=0.35)


def test_one_row_says_nothing_of_its_population() -> None:
    found = loss_over_time(lambda x, t: x, PATH, normal(1, 2, seed=0), draws=50)
    assert math.isnan(found.se)
    assert math.isfinite(found.value)


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
    assert known.n == 10 * 30 + 2 * 36


def test_the_floor_of_100_000_rows_is_good_to_one_percent() -> None:
    """Of N(0, diag(0.25, 4)) it is the mean of s pi / 2; the rows' own differs by less than 0.1% until near t = 1."""
    spread = torch.tensor([0.5, 2.0])
    data = spread * normal(100_000, 2, seed=0, dtype=torch.float32)
    known = reference(EmpiricalField(PATH, data), PATH, data, generator=seeded(0))
    assert known.n == 159 * 30 + 19 * 36
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
    assert known.n == 300 * 30 + 37 * 36
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
