import math
from collections.abc import Callable

import mpmath
import numpy
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pathline import likelihood, schedules
from pathline.fields import EmpiricalField, GaussianMixtureField
from pathline.fields.exact import mixture as module
from pathline.grids import uniform
from pathline.likelihood import divergence
from pathline.paths import AffinePath, GaussianPath
from pathline.schedules import Schedule
from pathline.solvers import solve, tune
from pathline.sources import Mixture, Points, StandardNormal
from pathline.typing import Source
from problems import (
    SCHEDULES,
    SEED_GAUSSIAN,
    Watch,
    annulus,
    as_gaussian,
    by_softmax,
    close,
    curved_path,
    every_dtype,
    every_shape,
    normal,
    number,
)

PATHS: dict[str, AffinePath | GaussianPath] = {
    **{name: AffinePath(schedule) for name, schedule in SCHEDULES.items()},
    "gaussian": curved_path(),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
TIMES = torch.tensor([0.0, 0.2, 0.5, 0.9, 0.99], dtype=torch.float64)
ROWS = torch.zeros(2, 2)
QUANTITIES = ("velocity", "log_prob", "score", "posterior_mean", "divergence")


def read(field: EmpiricalField | GaussianMixtureField, name: str) -> Callable[..., Tensor]:
    return field if name == "velocity" else getattr(field, name)


def queries(shape: tuple[int, ...], n: int = 5, seed: int = 1) -> Tensor:
    return 1.5 * normal(n, *shape, seed=seed)


def covariances(kind: str, k: int, d: int) -> Tensor:
    if kind == "isotropic":
        return torch.linspace(0.1, 0.6, k, dtype=torch.float64)
    if kind == "diagonal":
        return normal(k, d, seed=7).square() + 0.05
    root = normal(k, d, d, seed=8)
    return root @ root.mT / d + 0.02 * torch.eye(d, dtype=torch.float64)


def matrices(covs: Tensor, d: int) -> Tensor:
    if covs.ndim == 3:
        return covs
    return torch.diag_embed(covs.reshape(len(covs), -1).expand(len(covs), d))


def mixture(kind: str, schedule: Schedule, d: int = 3, k: int = 4) -> GaussianMixtureField:
    means, weights = 2 * normal(k, d, seed=5), torch.arange(1.0, k + 1)
    return GaussianMixtureField(AffinePath(schedule), means, covariances(kind, k, d), weights)


@every_shape
@every_path
def test_empirical_field_is_the_weighted_sum_over_the_data(path: AffinePath | GaussianPath, shape: tuple[int, ...]):
    data, weights = 1.5 * normal(7, *shape, seed=0), torch.arange(1.0, 8)
    field, x = EmpiricalField(path, data, weights), queries(shape)
    for t in (TIMES, TIMES[0], TIMES[3]):
        expected = by_softmax(path, data, x, t, weights)
        for name, value in expected.items():
            close(read(field, name)(x, t), value, 1e-11)


@every_shape
@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full"])
def test_mixture_field_is_the_closed_form(kind: str, shape: tuple[int, ...]):
    schedule, d, k = SCHEDULES["cosine"], math.prod(shape), 4
    means, weights = 2 * normal(k, *shape, seed=5), torch.arange(1.0, k + 1, dtype=torch.float64)
    covs = covariances(kind, k, d)
    field, x = GaussianMixtureField(AffinePath(schedule), means, covs, weights), queries(shape)
    for t in (number(0.0), number(0.4), number(1.0)):
        alpha, sigma, alpha_rate, sigma_rate = schedule(t)
        m, s, eye = means.reshape(k, d), matrices(covs, d), torch.eye(d, dtype=torch.float64)
        spread = alpha**2 * s + sigma**2 * eye
        parts = MultivariateNormal(alpha * m, spread)
        flat = x.reshape(5, 1, d)
        p = (parts.log_prob(flat) + weights.log()).softmax(1)[..., None]
        solved = torch.linalg.solve(spread, (flat - alpha * m)[..., None])
        velocity = ((alpha * alpha_rate * s + sigma * sigma_rate * eye) @ solved)[..., 0] + alpha_rate * m
        expected = {
            "log_prob": MixtureSameFamily(Categorical(weights), parts).log_prob(flat[:, 0]),
            "velocity": (p * velocity).sum(1).reshape(x.shape),
            "score": -(p * solved[..., 0]).sum(1).reshape(x.shape),
            "posterior_mean": (p * (alpha * s @ solved + m[..., None])[..., 0]).sum(1).reshape(x.shape),
        }
        for name, value in expected.items():
            close(read(field, name)(x, t), value, 1e-11)


FIELDS: dict[str, EmpiricalField | GaussianMixtureField] = {
    **{name: EmpiricalField(path, 1.5 * normal(6, 3, seed=0)) for name, path in PATHS.items()},
    **{kind: mixture(kind, SCHEDULES["cosine"]) for kind in ("isotropic", "diagonal", "full")},
}
every_field = pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)


@every_field
def test_score_and_divergence_are_derivatives(field: EmpiricalField | GaussianMixtureField):
    for t in (TIMES, TIMES[3]):
        x = queries((3,)).requires_grad_(True)
        close(field.score(x, t), torch.autograd.grad(field.log_prob(x, t).sum(), x)[0], 1e-11)
        close(field.divergence(x, t), divergence(field, x, t)[1], 1e-10)
        both = field.velocity_and_divergence(x, t)
        close(both[0], field(x, t), 1e-13)
        close(both[1], field.divergence(x, t), 0.0)


@every_field
@pytest.mark.parametrize("name", QUANTITIES)
def test_each_row_has_its_own_time(field: EmpiricalField | GaussianMixtureField, name: str):
    x, function = queries((3,)), read(field, name)
    whole = function(x, TIMES)
    for i, t in enumerate(TIMES):
        close(whole[i : i + 1], function(x[i : i + 1], t), 1e-11)
        close(function(x, t.expand(5)), function(x, t), 0.0)
        close(function(x, t.repeat(5)), function(x, t), 1e-11)


@every_field
@pytest.mark.parametrize("name", QUANTITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_coarse_states_are_answered_in_their_dtype_and_worked_out_finely(
    field: EmpiricalField | GaussianMixtureField, name: str, dtype: torch.dtype
):
    x, function = queries((3,)).to(dtype), read(field, name)
    for t in (TIMES, TIMES[1].float()):
        close(function(x, t), function(x.double(), t.double()).to(dtype), 0.0)


@every_field
@pytest.mark.parametrize("name", QUANTITIES)
@pytest.mark.parametrize("chunk", [4, 40])
def test_chunks_do_not_show(
    field: EmpiricalField | GaussianMixtureField, name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
):
    x, function = queries((3,)), read(field, name)
    whole = [function(x, t) for t in (TIMES, TIMES[3])]
    monkeypatch.setattr(module, "CHUNK", chunk)
    for value, t in zip(whole, (TIMES, TIMES[3]), strict=True):
        close(function(x, t), value, 1e-12)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("path", [PATHS["cosine"], PATHS["gaussian"]], ids=["affine", "gaussian"])
def test_no_temporary_is_larger_than_a_chunk(
    path: AffinePath | GaussianPath, per_row: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "CHUNK", 2000)
    data = normal(300, 20, seed=0)
    field, x = EmpiricalField(path, data), queries((20,), 8)
    with Watch() as watch:
        field.velocity_and_divergence(x, torch.linspace(0.1, 0.9, 8, dtype=torch.float64) if per_row else number(0.5))
    assert watch.largest <= 8 * max(2 * 2000, data.numel())


def exactly(x: list[float], data: list[list[float]], t: float) -> dict[str, list[mpmath.mpf]]:
    """The marginal field of the linear path in 60 digits."""
    with mpmath.workdps(60):
        mp = mpmath.mpf
        alpha, sigma, d = mp(t), 1 - mp(t), len(x)
        point, rows = [mp(v) for v in x], [[mp(v) for v in row] for row in data]
        logits = [-sum((p - alpha * r) ** 2 for p, r in zip(point, row, strict=True)) / (2 * sigma**2) for row in rows]
        w = [mpmath.exp(logit - max(logits)) for logit in logits]
        total = sum(w)
        mean = [sum(wi * row[k] for wi, row in zip(w, rows, strict=True)) / total for k in range(d)]
        spread = sum(
            wi * sum((r - m) ** 2 for r, m in zip(row, mean, strict=True)) for wi, row in zip(w, rows, strict=True)
        )
        return {
            "log_prob": [
                max(logits) + mpmath.log(total / len(rows)) - d * mpmath.log(sigma * mpmath.sqrt(2 * mpmath.pi))
            ],
            "velocity": [(m - p) / sigma for m, p in zip(mean, point, strict=True)],
            "score": [(alpha * m - p) / sigma**2 for m, p in zip(mean, point, strict=True)],
            "posterior_mean": mean,
            "divergence": [-d / sigma + alpha / sigma**3 * spread / total],
        }


@pytest.mark.parametrize("distance", [1e-3, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("t", [0.0, 0.5, 0.9, 0.99, 1 - 1e-4])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_agrees_with_extended_precision(offset: float, t: float, distance: float):
    data = normal(20, 2, seed=0) + offset
    x = data[3] * t + distance * torch.tensor([0.6, -0.8], dtype=torch.float64)
    fields = {
        "affine": EmpiricalField(PATHS["linear"], data),
        "gaussian": EmpiricalField(as_gaussian(SCHEDULES["linear"]), data),
        "mixture": GaussianMixtureField(AffinePath(SCHEDULES["linear"]), data, torch.zeros(20)),
    }
    expected = exactly(x.tolist(), data.tolist(), t)
    for kind, field in fields.items():
        for name, value in expected.items():
            found = read(field, name)(x[None], number(t)).reshape(-1).tolist()
            size = max(abs(v) for v in value) + (1 if name == "log_prob" else 0)
            error = max(abs(mpmath.mpf(f) - v) for f, v in zip(found, value, strict=True)) / size
            bound = 1e-7 if name == "divergence" else 1e-9  # a variance: (data spread)^2 sigma^-2 roundings
            assert error < bound, (kind, name, float(error))


@every_path
def test_weights_count_like_repeated_points(path: AffinePath | GaussianPath):
    data, x = normal(3, 2, seed=0), queries((2,))
    repeated = EmpiricalField(path, data[[0, 1, 1, 2, 2, 2]])
    weighted = EmpiricalField(path, data, torch.tensor([1, 2, 3]))
    without = EmpiricalField(path, torch.cat([data, 10 + data]), torch.tensor([1.0, 2, 3, 0, 0, 0]))
    for name in QUANTITIES:
        close(read(repeated, name)(x, TIMES), read(weighted, name)(x, TIMES), 1e-11)
        close(read(without, name)(x, TIMES), read(weighted, name)(x, TIMES), 1e-11)


@every_shape
@every_path
def test_a_label_asks_the_field_of_its_class(path: AffinePath | GaussianPath, shape: tuple[int, ...]):
    data, labels = normal(6, *shape, seed=0), torch.tensor([7, 3, 7, 3, 3, -1])
    weights, x = torch.arange(1.0, 7), queries(shape, 3)
    field = EmpiricalField(path, data, weights, labels)
    whole = EmpiricalField(path, data, weights)
    asked = torch.tensor([3, -1, 7])
    for name in ("velocity", "log_prob", "divergence"):
        both = read(field, name)(x, TIMES[3], label=asked)
        for i, label in enumerate(asked):
            own = EmpiricalField(path, data[labels == label], weights[labels == label])
            close(both[i : i + 1], read(own, name)(x[i : i + 1], TIMES[3]), 1e-11)
            close(read(field, name)(x, TIMES[3], label=label), read(own, name)(x, TIMES[3]), 1e-11)
        close(read(field, name)(x, TIMES[3]), read(whole, name)(x, TIMES[3]), 0.0)


@every_shape
@every_path
def test_the_field_of_one_point_is_its_conditional_velocity(path: AffinePath | GaussianPath, shape: tuple[int, ...]):
    point, x = normal(1, *shape, seed=0), queries(shape)
    field, x1 = EmpiricalField(path, point), point.expand(5, *shape)
    close(field(x, TIMES), path.velocity(x, x1, TIMES), 1e-12)
    close(field.score(x, TIMES), path.score(x, x1, TIMES), 1e-12)
    close(field.log_prob(x, TIMES), path.log_prob(x, x1, TIMES), 1e-12)
    close(field.posterior_mean(x, TIMES), x1, 1e-14)
    std, std_rate = path.moments(x1, TIMES)[1::2]
    close(field.divergence(x, TIMES), math.prod(shape) * (std_rate / std).reshape(5), 1e-12)


def test_the_seed_gaussian():
    # mean t m and standard deviation 1 - t + t s: one point of no width on the linear path that ends at sigma = s
    path = AffinePath(schedules.linear(SEED_GAUSSIAN.std))
    x, mean = queries((2,)), SEED_GAUSSIAN.mean[None]
    for field in (GaussianMixtureField(path, mean, torch.zeros(1)), EmpiricalField(path, mean)):
        t = torch.linspace(0, 1, 5, dtype=torch.float64)
        close(field(x, t), SEED_GAUSSIAN(x, t), 1e-13)
        close(field.log_prob(x, t), SEED_GAUSSIAN.log_prob(x, t), 1e-13)
        close(field.divergence(x, t), SEED_GAUSSIAN.divergence(t), 1e-13)


@pytest.mark.parametrize("std", [0.3, 1e-3])
def test_a_mixture_of_one_width_is_the_field_of_its_means_on_a_wider_path(std: float):
    means, x = annulus(6), queries((2,))
    wider = GaussianPath(lambda x1, t: t * x1, lambda x1, t: ((1 - t) ** 2 + (t * std) ** 2).sqrt())
    points = EmpiricalField(wider, means)
    one = torch.ones(6, dtype=torch.float64)
    for covs in (std**2 * one, std**2 * one[:, None].expand(6, 2), std**2 * torch.diag_embed(one.expand(2, 6).mT)):
        gaussians = GaussianMixtureField(AffinePath(SCHEDULES["linear"]), means, covs)
        for name in ("velocity", "log_prob", "score", "divergence"):
            close(read(gaussians, name)(x, TIMES), read(points, name)(x, TIMES), 1e-6 if std == 1e-3 else 1e-11)


@every_field
@every_dtype
def test_far_queries_have_finite_values(field: EmpiricalField | GaussianMixtureField, dtype: torch.dtype):
    x = torch.tensor([[1e6, 0, 0], [0, -1e8, 1e3], [1e12, 1e12, 1e12], [0, 0, 0], [-30, 30, -30]], dtype=dtype)
    for t in (TIMES, number(0.999)):
        assert all(read(field, name)(x, t).isfinite().all() for name in QUANTITIES)


@every_field
def test_an_empty_batch_gives_empty_answers(field: EmpiricalField | GaussianMixtureField):
    x = torch.zeros(0, 3)
    for t in (number(0.5), torch.zeros(0)):
        for name in QUANTITIES:
            assert read(field, name)(x, t).shape == ((0,) if name in ("log_prob", "divergence") else (0, 3))
        assert field.jvp(x, t, x)[1].shape == (0, 3)
        assert field.posterior_sample(x, t).shape == (0, 3)


@pytest.mark.parametrize("path", [AffinePath(SCHEDULES["linear"]), curved_path()], ids=["linear", "gaussian"])
@pytest.mark.parametrize("n", [5, 20_000])
def test_an_empty_batch_of_labelled_queries_too(path: AffinePath | GaussianPath, n: int):
    field = EmpiricalField(path, normal(n, 2, seed=0, dtype=torch.float32), labels=torch.arange(n) % 2, rtol=0.1)
    x, none = torch.zeros(0, 2), torch.zeros(0)
    for label in (torch.tensor(1), none.long()):
        for name in QUANTITIES:
            assert read(field, name)(x, none, label=label).shape[:1] == (0,)
        assert field.posterior_sample(x, none, label=label).shape == (0, 2)
    assert field.label_posterior(x, none).shape == (0, 2)


@every_path
def test_points_without_width_have_no_velocity_at_the_end(path: AffinePath | GaussianPath):
    field, x = EmpiricalField(path, normal(4, 2, seed=0)), queries((2,))
    if path in (PATHS["linear-0.2"], PATHS["gaussian"]):
        assert field.open_ends == {}
        assert all(read(field, name)(x, number(1.0)).isfinite().all() for name in QUANTITIES)
    else:
        assert field.open_ends == {1.0: None}
        for name in QUANTITIES:
            with pytest.raises(ValueError, match="t must not be 1: this exact field has no value there"):
                read(field, name)(x, torch.linspace(0, 1, 5))


def test_open_ends_are_those_of_every_point_and_of_the_schedule():
    some = GaussianPath(lambda x1, t: t * x1, lambda x1, t: torch.where(x1[:, 0] > 0, 1 - 0.5 * t, 1 - t))
    assert EmpiricalField(some, torch.tensor([[1.0], [-1.0]])).open_ends == {1.0: 0.999}
    assert EmpiricalField(some, torch.tensor([[1.0], [2.0]])).open_ends == {}
    steep_start = AffinePath(schedules.custom(torch.sqrt, lambda t: 1 - 0.5 * t))
    steep_end = AffinePath(schedules.custom(lambda t: t, lambda t: 0.5 + 0.5 * (1 - t).sqrt()))
    for make in (lambda path: EmpiricalField(path, torch.zeros(2, 3)), lambda path: mixture("full", path.schedule)):
        assert make(steep_start).open_ends == {0.0: pytest.approx(1e-6, rel=1e-3)}
        assert make(steep_end).open_ends == {1.0: None}


@pytest.mark.parametrize("name", ["cosine", "vp"])
def test_open_ends_of_a_mixture_depend_on_its_narrowest_direction(name: str):
    path, flat = AffinePath(SCHEDULES[name]), torch.diag_embed(torch.tensor([[1.0, 0.0]]))
    near = {1.0: SCHEDULES[name].inner_time(1.0)}
    for covs, ends in (
        (torch.zeros(1), {1.0: None}),
        (torch.tensor([[1.0, 0.0]]), near),
        (flat, near),
        (flat + 1e-3, {}),
        (torch.ones(1), {}),
    ):
        assert GaussianMixtureField(path, torch.zeros(1, 2), covs).open_ends == ends


STEEP = schedules.custom(lambda t: t, lambda t: (1 - t).sqrt())
"""A rate of sigma without a limit at t = 1, of which nothing more is known."""


def gaussian_end(schedule: Schedule, x0: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """Where the flow to N(mean, cov) takes x0: its map is affine, with the root of the covariance."""
    variances, axes = torch.linalg.eigh(cov)
    spread = (variances.clamp_min(0) + schedule(number(1.0)).sigma ** 2).sqrt()
    return mean + x0 @ (axes * spread) @ axes.T


@pytest.mark.parametrize(
    "source", [StandardNormal(), Mixture(torch.zeros(1, 2), torch.ones(1))], ids=["normal", "mixture"]
)
@pytest.mark.parametrize("cov", [[[0.1, 0.0], [0.0, 0.1]], [[0.4, 0.2], [0.2, 0.3]], [[0.1, 0.0], [0.0, 0.0]]], ids=str)
@pytest.mark.parametrize("schedule", [*SCHEDULES.values(), STEEP], ids=[*SCHEDULES, "steep"])
def test_a_gaussian_ends_with_its_width(schedule: Schedule, cov: list[list[float]], source: Source):
    mean, covariance, x0 = torch.tensor([1.0, -0.5]).double(), torch.tensor(cov).double(), normal(50, 2, seed=1)
    field = GaussianMixtureField(AffinePath(schedule, source), mean[None], covariance[None])
    expected = gaussian_end(schedule, x0, mean, covariance)
    off = [float((solve(field, x0, uniform(n)).x - expected).abs().max()) for n in (16, 64)]
    floor = 1e-4 if 1.0 in field.open_ends else 0.0  # sigma / alpha is 1e-3 at the last call
    assert off[0] < 3e-3
    assert off[1] < floor + off[0] / 5  # t**1.5 has a velocity of order t**0.5 at its start


def test_a_source_off_the_centre_closes_from_the_last_node_of_a_steep_schedule():
    path = AffinePath(SCHEDULES["vp"], Mixture(torch.ones(1, 2), torch.ones(1)))
    field, x0 = GaussianMixtureField(path, torch.zeros(1, 2), torch.full((1,), 0.1)), normal(20, 2, seed=1)
    assert field.open_ends == {1.0: None}
    assert float((solve(field, 1 + x0, uniform(64)).x - 0.1**0.5 * x0).abs().max()) < 0.03


def test_densities_reach_the_end_of_the_variance_preserving_path():
    field = GaussianMixtureField(AffinePath(SCHEDULES["vp"]), normal(3, 2, seed=0), 0.1 * torch.ones(3))
    x1 = normal(10, 2, seed=1)
    close(likelihood.log_prob(field, x1, grid=uniform(96)).value, field.log_prob(x1, number(1.0)), 1e-3)


def test_a_solver_is_tuned_against_the_width_of_a_gaussian():
    path, mean = AffinePath(SCHEDULES["vp"]), torch.zeros(1, 2).double()
    field = GaussianMixtureField(path, mean, torch.full((1,), 0.1))
    learned = tune(field, path, 8, normal(64, 2, seed=1))
    x0 = normal(100, 2, seed=2)
    close(solve(field, x0, learned.grid, learned).x, 0.1**0.5 * x0, 2e-3)


def test_covariances_may_be_symmetric_up_to_rounding():
    precision = torch.linalg.inv(normal(3, 4, 4, seed=1).float() @ normal(3, 4, 4, seed=1).float().mT)
    precision[:, 0, 1:] = 1e-9 * torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    precision[:, 1:, 0] = 0
    GaussianMixtureField(AffinePath(SCHEDULES["cosine"]), torch.zeros(3, 4), precision)


LINEAR = AffinePath(schedules.linear())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EmpiricalField(LINEAR, torch.zeros(0, 2)), r"data must hold at least one row, got shape \(0, 2\)"),
        (lambda: EmpiricalField(LINEAR, torch.tensor(1.0)), r"data must hold at least one row, got shape \(\)"),
        (lambda: EmpiricalField(LINEAR, torch.tensor([0.0, math.nan])), "data must be finite, row 1 is not"),
        (
            lambda: EmpiricalField(LINEAR, torch.zeros(3, 2), torch.ones(2)),
            r"weights must have shape \(3,\), got \(2,\)",
        ),
        (lambda: EmpiricalField(LINEAR, torch.zeros(2), torch.tensor([1.0, -1.0])), "weights must be finite, not neg"),
        (lambda: EmpiricalField(LINEAR, torch.zeros(2), torch.zeros(2)), "weights must be .* not all zero"),
        (lambda: EmpiricalField(LINEAR, torch.zeros(2), torch.tensor([1.0, math.nan])), "weights must be finite"),
        (lambda: EmpiricalField(LINEAR, torch.zeros(2), torch.tensor([1.0, math.inf])), "weights must be finite"),
        (
            lambda: EmpiricalField(LINEAR, torch.zeros(3, 2), labels=torch.zeros(3, 1)),
            r"labels must have shape \(3,\), got \(3, 1\)",
        ),
        (
            lambda: EmpiricalField(schedules.linear(), torch.zeros(2)),  # pyright: ignore
            "path must be AffinePath or BridgePath or GaussianPath, got Schedule",
        ),
        (
            lambda: EmpiricalField(AffinePath(schedules.linear(), Points(torch.zeros(1))), torch.zeros(2)),
            "source must have a width where the data have none",
        ),
        (
            lambda: GaussianMixtureField(curved_path(), torch.zeros(2), torch.ones(2)),  # pyright: ignore
            "path must be AffinePath or BridgePath, got GaussianPath",
        ),
        (lambda: GaussianMixtureField(LINEAR, torch.zeros(0, 2), torch.ones(0)), "means must hold at least one row"),
        (
            lambda: GaussianMixtureField(LINEAR, torch.full((1, 2), math.inf), torch.ones(1)),
            "means must be finite, row 0",
        ),
        (
            lambda: GaussianMixtureField(LINEAR, torch.zeros(1, 2), torch.tensor([math.nan])),
            "covs must be finite, row 0",
        ),
        (
            lambda: GaussianMixtureField(LINEAR, torch.zeros(2, 3), torch.ones(3)),
            r"covs must have shape \(2,\), \(2, 3\) or \(2, 3, 3\), got \(3,\)",
        ),
        (
            lambda: GaussianMixtureField(LINEAR, torch.zeros(1, 2), torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])),
            "covs must be symmetric matrices",
        ),
        (
            lambda: GaussianMixtureField(LINEAR, torch.zeros(1, 2), -torch.ones(1)),
            "positive semidefinite, got a variance of -1",
        ),
        (
            lambda: GaussianMixtureField(LINEAR, torch.zeros(1, 2), torch.tensor([[[1.0, 2.0], [2.0, 1.0]]])),
            "positive semidefinite, got a variance of -1",
        ),
        (
            lambda: GaussianMixtureField(LINEAR, torch.zeros(2), torch.ones(2), torch.ones(3)),
            r"weights must have shape \(2,\)",
        ),
        (lambda: EmpiricalField(LINEAR, [[0.0]]), "data must be a tensor, got list"),  # pyright: ignore[reportArgumentType]
        (lambda: EmpiricalField(LINEAR, numpy.zeros((2, 2))), "data must be a tensor, got ndarray"),  # pyright: ignore[reportArgumentType]
        (lambda: EmpiricalField(LINEAR, ROWS.bool()), "data must hold numbers, got torch.bool"),
        (lambda: EmpiricalField(LINEAR, ROWS.to(torch.cfloat)), "data must hold real numbers, got torch.complex64"),
        (
            lambda: EmpiricalField(LINEAR, ROWS, torch.tensor([1.0, -3.0])),
            "weights must be finite, not negative, and not all zero, got -3 in row 1",
        ),
        (
            lambda: EmpiricalField(LINEAR, ROWS, torch.tensor([math.nan, 1])),
            "weights must be finite, .*, got nan in row 0",
        ),
        (lambda: EmpiricalField(LINEAR, ROWS, torch.zeros(2)), "weights must be finite, .*, got a sum of 0"),
        (
            lambda: EmpiricalField(LINEAR, ROWS, torch.ones(2, device="meta")),
            "weights must be on the device of the data, cpu, got meta",
        ),
        (
            lambda: EmpiricalField(LINEAR, ROWS, labels=torch.ones(2, device="meta")),
            "labels must be on the device of the data, cpu, got meta",
        ),
        (lambda: EmpiricalField(LINEAR, ROWS, labels=[0, 1]), "labels must be a tensor, got list"),  # pyright: ignore[reportArgumentType]
        (lambda: EmpiricalField(LINEAR, ROWS, rtol="a"), r"rtol must be None or in \(0, 1\), got 'a'"),  # pyright: ignore[reportArgumentType]
        (
            lambda: EmpiricalField(GaussianPath(curved_path().mean, curved_path().std, Points(ROWS)), ROWS),
            "path must start from a standard normal if it is a GaussianPath, .*, got Points: take an AffinePath or",
        ),
    ],
)
def test_refuses_to_be_made_of(make: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        make()


PLAIN = EmpiricalField(LINEAR, normal(4, 2, seed=0))
WIDE = GaussianMixtureField(LINEAR, torch.zeros(1, 2), torch.ones(1))
LABELLED = EmpiricalField(LINEAR, normal(4, 2, seed=0), torch.tensor([1.0, 1, 1, 0]), torch.tensor([0, 0, 1, 2]))
FLAT = EmpiricalField(LINEAR, normal(4, seed=0))
X, HALF = torch.zeros(3, 2), torch.tensor(0.5)


@pytest.mark.parametrize(
    ("fields", "x", "t", "label", "message"),
    [
        ((PLAIN, WIDE), torch.zeros(3, 3), HALF, None, r"x must have rows of shape \(2,\), got \(3, 3\)"),
        ((PLAIN, WIDE), torch.zeros(3), HALF, None, r"x must have rows of shape \(2,\), got \(3,\)"),
        ((PLAIN, WIDE), X, torch.zeros(2), None, r"t must have shape \(\) or \(3,\), got \(2,\)"),
        ((PLAIN, WIDE), X, torch.zeros(3, 1), None, r"t must have shape \(\) or \(3,\), got \(3, 1\)"),
        ((PLAIN, WIDE), X, number(1.5), None, r"t must lie in \[0, 1\], got values in \[1.5, 1.5\]"),
        ((PLAIN, WIDE), X, torch.tensor([0, -0.1, 0.5]), None, r"t must lie in \[0, 1\], got values in \[-0.1, 0.5\]"),
        ((PLAIN, WIDE), X, number(math.nan), None, r"t must lie in \[0, 1\]"),
        ((PLAIN, WIDE), X, HALF, torch.tensor(0), "label was given, but the field was made without labels"),
        ((LABELLED,), X, HALF, torch.tensor([0, 1]), r"label must have shape \(\) or \(3,\), got \(2,\)"),
        ((LABELLED,), X, HALF, torch.tensor([0, 1, 5]), r"label must be one of the data's, .*\[0, 1\], got 5"),
        ((LABELLED,), X, HALF, torch.tensor(2), r"label must be one of the data's, .*\[0, 1\], got 2"),
        ((PLAIN, WIDE), X.long(), HALF, None, "x must be floating point, .*, got torch.int64"),
        ((PLAIN, WIDE), X.bool(), HALF, None, "x must be floating point, .*, got torch.bool"),
        ((PLAIN, WIDE), X.to(torch.cfloat), HALF, None, "x must hold real numbers, got torch.complex64"),
        ((PLAIN, WIDE), X[0, 0], HALF, None, r"x must have rows of shape \(2,\), got \(\)"),
        ((FLAT,), torch.tensor(0.0), HALF, None, r"x must have rows of shape \(\), got \(\)"),
        ((PLAIN, WIDE), X.tolist(), HALF, None, "x must be a tensor, got list"),
        ((PLAIN, WIDE), X.to("meta"), HALF, None, "x must be on the device of the data, cpu, got meta"),
        ((PLAIN, WIDE), X, HALF.to("meta"), None, "t must be on the device of the data, cpu, got meta"),
        ((PLAIN, WIDE), X, 0.5, None, "t must be a tensor, got 0.5"),
        ((LABELLED,), X, HALF, 1, "label must be a tensor, got 1"),
        (
            (LABELLED,),
            X,
            HALF,
            torch.tensor(1, device="meta"),
            "label must be on the device of the data, cpu, got meta",
        ),
    ],
)
@pytest.mark.parametrize("name", QUANTITIES)
def test_refuses_to_be_asked(name: str, fields, x, t, label, message: str):
    for field in fields:
        with pytest.raises(ValueError, match=message):
            read(field, name)(x, t, label=label)


def test_x_may_be_of_another_float_dtype_than_the_data():
    for dtype in (torch.float32, torch.float64):
        data, x = normal(4, 2, seed=0).to(dtype), queries((2,))
        for asked in (torch.float16, torch.float32, torch.float64):
            found = EmpiricalField(LINEAR, data)(x.to(asked), HALF)
            assert found.dtype == asked
            close(found.double(), EmpiricalField(LINEAR, data.double())(x.to(asked).double(), HALF), 2e-3)


@pytest.mark.parametrize("kind", ["points", "weighted", "isotropic", "diagonal", "pairs"])
@pytest.mark.parametrize("far", [1e7, 1e12, 1e18, 1e60])
def test_one_component_is_left_from_any_distance(kind: str, far: float):
    d, time = normal(50, 10, seed=0), number(0.5)
    weights = torch.arange(1.0, 51) if kind == "weighted" else None
    covs = torch.full((50,), 0.2) if kind == "isotropic" else torch.linspace(0.2, 0.3, 10).expand(50, 10)
    width = covariances("full", 1, 10)
    path = AffinePath(SCHEDULES["linear"], Mixture(torch.zeros(1, 10), width)) if kind == "pairs" else LINEAR
    ours = kind in ("points", "weighted", "pairs")

    def field(rows: Tensor, w: Tensor | None) -> EmpiricalField | GaussianMixtureField:
        return EmpiricalField(path, rows, w) if ours else GaussianMixtureField(path, rows, covs[: len(rows)], w)

    whole, x = field(d, weights), far * torch.nn.functional.normalize(normal(3, 10, seed=1))
    slope = x / (0.25 * covs[0].double() + 0.25) if kind == "diagonal" else x
    slope = torch.linalg.solve(width[0], x.mT).mT if kind == "pairs" else slope
    for row, best in zip(x, (slope @ d.T).argmax(1).tolist(), strict=True):
        alone = field(d[best : best + 1], None)
        for name in ("velocity", "score", "posterior_mean", "divergence"):
            close(read(whole, name)(row[None], time), read(alone, name)(row[None], time), 1e-12)
        more = math.log(1 / 50 if weights is None else weights[best] / weights.sum())
        close(whole.log_prob(row[None], time), alone.log_prob(row[None], time) + more, 1e-12)
        drawn = whole.posterior_sample(row[None].repeat(9, 1), time, torch.Generator().manual_seed(0))
        assert not ours or torch.equal(drawn, d[best].expand(9, 10))


def test_float32_points_are_told_apart_from_any_distance():
    d = normal(9000, 10, seed=0, dtype=torch.float32)
    x = 1e12 * torch.nn.functional.normalize(normal(8, 10, seed=1, dtype=torch.float32))
    assert torch.equal(EmpiricalField(LINEAR, d).posterior_mean(x, HALF), d[(x.double() @ d.double().T).argmax(1)])


def test_unknown_conditions_are_errors():
    with pytest.raises(TypeError, match="unexpected keyword"):
        PLAIN(X, HALF, lable=torch.tensor(0))  # pyright: ignore[reportCallIssue]


@every_field
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_has_nan_in_its_own_row(field: EmpiricalField | GaussianMixtureField, bad: float):
    x = queries((3,))
    wanted = field(x, number(0.7))
    x[3, 1] = bad
    found = field(x, number(0.7))
    assert found[3].isnan().any()
    close(found[[0, 1, 2, 4]], wanted[[0, 1, 2, 4]], 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rtol", [None, 1e-3])
def test_a_query_that_is_not_finite_spoils_no_other(rtol: float | None, dtype: torch.dtype):
    """`solve` then names the time."""
    field = EmpiricalField(PATHS["linear"], normal(20_000, 2, seed=0, dtype=dtype), rtol=rtol)
    x = normal(9, 2, seed=1, dtype=dtype)
    wanted = field(x, torch.tensor(0.7))
    x[3] = torch.tensor([0.0, math.nan])
    found = field(x, torch.tensor(0.7))
    assert found[3].isnan().any()
    rest = torch.arange(9) != 3
    close(found[rest], wanted[rest], 2e-3 if rtol else 1e-5)
