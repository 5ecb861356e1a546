import pytest
import torch
from torch import Tensor

from pathline.fields import EmpiricalField, GaussianMixtureField, own_starts
from pathline.fields.guidance import classifier_free
from pathline.grids import uniform
from pathline.paths import AffinePath
from pathline.schedules import Schedule
from pathline.solvers import euler, euler_maruyama, heun, solve, stochastic_heun
from pathline.solvers.stochastic import Stochastic
from pathline.sources import Points
from problems import SCHEDULES, annulus, close, curved_path, every_shape, normal, number, seeded

MEANS, COVS = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]]).double(), torch.tensor([0.3, 0.5, 0.4]).double() ** 2
WEIGHTS = torch.tensor([0.5, 0.3, 0.2]).double()
every_method = pytest.mark.parametrize("method", [euler_maruyama, stochastic_heun])
DIFFUSIONS = {"constant": lambda t: 1.0, "falling": lambda t: 2 * (1 - t), "rising": lambda t: t}


def mixture(schedule: Schedule) -> GaussianMixtureField:
    return GaussianMixtureField(AffinePath(schedule), MEANS, COVS, WEIGHTS)


def moments(schedule: Schedule, t: float) -> tuple[Tensor, Tensor]:
    curve = schedule(number(t))
    mean = WEIGHTS @ MEANS
    second = (
        WEIGHTS[:, None, None] * (MEANS[:, :, None] * MEANS[:, None, :] + COVS[:, None, None] * torch.eye(2))
    ).sum(0)
    cov = second - mean[:, None] * mean[None, :]
    return curve.alpha * mean, curve.alpha**2 * cov + curve.sigma**2 * torch.eye(2)


@pytest.mark.parametrize("g", DIFFUSIONS.values(), ids=DIFFUSIONS)
@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial-2", "linear-0.2"])
@every_method
def test_marginals_are_those_of_the_flow(method, name: str, g):
    schedule, n, steps = SCHEDULES[name], 20_000, 100 if method is euler_maruyama else 40
    field, x0 = mixture(schedule), normal(n, 2, seed=0)
    solution = solve(field, x0, uniform(steps), method(field.path, g, seeded(1)), keep_states=True)
    assert solution.states is not None
    bias = 0.03 if method is euler_maruyama else 0.02
    for i in (steps // 2, steps):
        x, (mean, cov) = solution.states[i], moments(schedule, i / steps)
        # 5.5 standard errors of each of five entries: error probability below 2e-7, plus the bias of the steps
        close_enough = 5.5 * (cov.diagonal().max() / n) ** 0.5
        assert float((x.mean(0) - mean).abs().max()) < close_enough + bias
        assert float((x.T.cov() - cov).abs().max()) < 5.5 * 2 * cov.max() / n**0.5 + 2 * bias


@every_method
def test_backward_from_data_to_source(method):
    schedule, n = SCHEDULES["linear-0.2"], 20_000
    field = mixture(schedule)
    which = torch.multinomial(WEIGHTS, n, replacement=True, generator=seeded(3))
    x1 = MEANS[which] + COVS[which, None].sqrt() * normal(n, 2, seed=4) + 0.2 * normal(n, 2, seed=5)
    solver = method(field.path, lambda t: 1.0, seeded(6))
    x0 = solve(field, x1, uniform(100, 1.0, 0.0), solver).x
    # 5.5 standard errors plus the bias of the steps: error probability below 2e-7
    assert float(x0.mean(0).abs().max()) < 5.5 / n**0.5 + 0.03
    assert float((x0.T.cov() - torch.eye(2)).abs().max()) < 5.5 * 2**0.5 / n**0.5 + 0.05


@pytest.mark.parametrize("start", [True, False])
def test_without_noise_it_is_the_ode(start: bool):
    for name in ("linear", "polynomial-2", "cosine"):
        field, x = mixture(SCHEDULES[name]), normal(5, 2, seed=0)
        grid = uniform(10) if start else uniform(10, 1.0, 0.0)
        for sde, ode in ((euler_maruyama, euler), (stochastic_heun, heun)):
            close(solve(field, x, grid, sde(field.path, lambda t: 0.0)).x, solve(field, x, grid, ode).x, 1e-14)


@every_shape
@every_method
def test_no_nan_at_the_ends_and_calls_are_counted(method, shape: tuple[int, ...]):
    for name in ("linear", "cosine", "polynomial-1.5", "vp"):
        field = EmpiricalField(AffinePath(SCHEDULES[name]), normal(5, *shape, seed=0))
        solver = method(field.path, lambda t: 1.0, seeded(0))
        solution = solve(field, normal(4, *shape, seed=1).float(), uniform(8), solver)
        assert solution.x.isfinite().all()
        assert solution.x.dtype == torch.float32
        assert solution.nfe == 7 * solver.calls + 1


def test_points_are_reached_without_noise_left_on_them():
    field = EmpiricalField(AffinePath(SCHEDULES["linear"]), annulus(5))
    x = solve(field, normal(20, 2, seed=0), uniform(60), euler_maruyama(field.path, lambda t: 1 - t, seeded(0))).x
    assert torch.cdist(x, annulus(5)).amin(1).max() < 1e-6


def test_score_from_the_velocity_is_the_exact_one():
    for name in ("linear", "cosine", "polynomial-2", "vp", "linear-0.2"):
        field, x = mixture(SCHEDULES[name]), normal(5, 2, seed=0)
        solver = euler_maruyama(field.path, lambda t: 1.0)
        for t in (0.0, 0.2, 0.9):
            u, s = solver._score(t)
            close(u * field(x, number(t)) + s * x, field.score(x, number(t)), 1e-9)


def test_the_generator_decides():
    field, x = mixture(SCHEDULES["linear"]), normal(5, 2, seed=0)
    runs = [solve(field, x, uniform(5), euler_maruyama(field.path, lambda t: 1.0, seeded(s))).x for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_refuses_bad_diffusions_and_sources():
    field, x = mixture(SCHEDULES["linear"]), normal(5, 2, seed=0)
    with pytest.raises(ValueError, match=r"g\(t\) must be finite and not negative, got -1 at t = 0"):
        solve(field, x, uniform(5), euler_maruyama(field.path, lambda t: -1.0))
    with pytest.raises(ValueError, match=r"g\(t\) must be finite and not negative, got inf at t = 0"):
        solve(field, x, uniform(5), euler_maruyama(field.path, lambda t: 1 / t))
    with pytest.raises(ValueError, match=r"path must start from a standard normal .* got Points"):
        stochastic_heun(AffinePath(SCHEDULES["linear"], Points(torch.zeros(3, 2))), lambda t: 1.0)
    with pytest.raises(ValueError, match=r"path must be affine .* got GaussianPath"):
        euler_maruyama(curved_path(), lambda t: 1.0)  # pyright: ignore
    with pytest.raises(ValueError, match=r"g must be a function of time, such as lambda t: 1.0, got 1.0"):
        stochastic_heun(field.path, 1.0)  # pyright: ignore


@pytest.mark.parametrize("wrap", [lambda field: field, lambda field: classifier_free(field, 1.0)])
@every_method
def test_a_field_on_another_clock_is_refused(method, wrap):
    field, x = mixture(SCHEDULES["linear"]), normal(5, 2, seed=0)
    moved = wrap(own_starts(field, torch.full((5,), 0.5)))
    with pytest.raises(ValueError, match=r"field must tell the path's time for .* to take a score from it"):
        solve(moved, x, uniform(5), method(field.path, lambda t: 1.0))


def test_a_solution_that_is_not_finite_is_still_named():
    path = AffinePath(SCHEDULES["linear"])
    solver: Stochastic = euler_maruyama(path, lambda t: 1.0, seeded(0))
    with pytest.raises(RuntimeError, match="not finite"):
        solve(
            lambda x, t: torch.where(t > 0.5, torch.nan, 1.0)[:, None].expand_as(x),
            torch.ones(2, 2),
            uniform(5),
            solver,
        )
