"""Log-densities along the curve of a solver's points."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pathline.fields import EmpiricalField, GaussianMixtureField
from pathline.grids import eased, uniform
from pathline.likelihood import log_prob, sample_with_log_prob
from pathline.likelihood.along import POINTS, integral, line_weights, score_weights
from pathline.nets import MLP
from pathline.paths import AffinePath
from pathline.schedules import Schedule, custom, linear
from pathline.solvers import ab2, ab3, abm, dopri5, euler, exponential, heun, midpoint, rk4, solve
from pathline.sources import Points
from pathline.typing import Solver
from problems import (
    SCHEDULES,
    affine_flow,
    annulus,
    close,
    curved_path,
    every_dtype,
    every_schedule,
    every_shape,
    normal,
    number,
    seeded,
)


def mixture(schedule: Schedule) -> GaussianMixtureField:
    return GaussianMixtureField(AffinePath(schedule), normal(3, 2, seed=0), torch.tensor([0.5, 0.7, 0.9]))


PATH = AffinePath(linear(0.2))
MIXTURE = mixture(PATH.schedule)
SOLVERS = [euler, midpoint, heun, rk4, ab2, ab3, abm, exponential(PATH, 2)]
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)


def net(d: int) -> MLP:
    torch.manual_seed(0)
    made = MLP(d, width=16).double()
    torch.nn.init.normal_(made.leave.weight, std=0.3)
    return made


def uneven(n: int, start: float, stop: float) -> list[float]:
    shares = torch.cat([torch.zeros(1).double(), (0.3 + normal(n, seed=n).abs()).cumsum(0)])
    return (start + (stop - start) * shares / shares[-1]).tolist()


@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (1.0, 0.0), (0.9, 0.2)])
@pytest.mark.parametrize("n", [1, 2, 4, 5, 6, 11, 30])
def test_weights_are_exact_for_polynomials(n: int, start: float, stop: float):
    times = torch.tensor(uneven(n, start, stop), dtype=torch.float64)
    mean, turn = line_weights(times.tolist())
    degree = min(POINTS, n + 1) - 1
    for i in range(degree + 1):
        whole = (stop ** (i + 1) - start ** (i + 1)) / (i + 1)
        close(mean @ times**i, number(whole), 1e-12)
        for j in range(1, degree + 1):
            whole = j * (stop ** (i + j) - start ** (i + j)) / (i + j)
            close(times**i @ turn @ times**j, number(whole), 1e-11)


def test_a_curve_that_stands_still_has_no_line_integral():
    _, turn = line_weights(uneven(20, 1.0, 0.0))
    close(turn.sum(1), torch.zeros(21).double(), 1e-12)


@every_schedule
def test_the_velocity_says_the_score(schedule: Schedule):
    field, x = mixture(schedule), normal(5, 2, seed=1)
    times = [0.0, 0.1, 0.5, 0.95]
    for t, by_velocity, by_x in zip(times, *score_weights(field.path, times), strict=True):
        at = number(t).expand(5)
        there = x.clone().requires_grad_(True)
        (score,) = torch.autograd.grad(field.log_prob(there, at).sum(), there)
        close(by_velocity * field(x, at) + by_x * x, score, 1e-9)


def test_any_curve_has_the_density_at_its_end():
    # the curve has nothing to do with the flow
    times = uniform(40, 1.0, 0.0)
    x = normal(6, 2, seed=1) * (0.3 + times[:, None, None] ** 2) + torch.sin(3 * times)[:, None, None]
    calls = [MIXTURE.velocity_and_divergence(y, t.expand(6)) for y, t in zip(x, times, strict=True)]
    velocity, div = (torch.stack(values) for values in zip(*calls, strict=True))
    along = integral(PATH, times.tolist(), x, velocity, div[..., None])[:, 0]
    close(PATH.source.log_prob(x[-1]) + along, MIXTURE.log_prob(x[0], number(1.0)), 1e-5)


def observed_order(found: Callable[[int], Tensor], exact: Tensor, n: int) -> float:
    errors = [float((found(m) - exact).abs().max()) for m in (n, 2 * n)]
    return math.log2(errors[0] / errors[1])


@every_solver
def test_marginal_fields_have_the_order_of_the_integral(solver: Solver):
    x1, exact = normal(6, 2, seed=1), MIXTURE.log_prob(normal(6, 2, seed=1), number(1.0))

    def found(n: int) -> Tensor:
        return log_prob(MIXTURE, x1, path=PATH, grid=eased(n), solver=solver, with_error=False).value

    assert observed_order(found, exact, 16) > POINTS - 0.35


# a multistep method's first steps are of another order than the rest, so its curve has a kink there
@pytest.mark.parametrize(
    ("solver", "order"), [(euler, 6), (heun, 6), (ab2, 4), (abm, 4)], ids=["euler", "heun", "ab2", "abm"]
)
def test_samples_have_the_density_of_where_they_are(solver: Solver, order: int):
    def error(n: int) -> float:
        found = sample_with_log_prob(MIXTURE, normal(6, 2, seed=1), path=PATH, grid=uniform(n), solver=solver)
        return float((found.value - MIXTURE.log_prob(found.x1, number(1.0))).abs().max())

    assert error(32) < 1e-5
    assert math.log2(error(16) / error(32)) > order - 0.35


@pytest.mark.parametrize("solver", [euler, heun, ab2, ab3], ids=lambda s: s.name)
def test_other_fields_keep_the_order_of_the_solver(solver: Solver):
    field, x1 = net(2), normal(6, 2, seed=1)
    with torch.no_grad():
        exact = log_prob(field, x1, grid=uniform(100), with_error=False).value

        def found(n: int) -> Tensor:
            return log_prob(field, x1, path=PATH, grid=uniform(n), solver=solver, with_error=False).value

        order = solver.order  # pyright: ignore[reportAttributeAccessIssue]
        assert observed_order(found, exact, 48) > order - 0.35


def test_draws_in_the_hole_of_an_annulus():
    points = annulus(300)
    field = EmpiricalField(PATH, points)
    x1 = points + 0.2 * normal(300, 2, seed=1)
    exact = field.log_prob(x1, number(1.0))
    for n, mean, worst in ((12, 1e-3, 0.02), (24, 5e-5, 1e-3)):
        grid = eased(n - 1, 1.0, 0.0, first=0.6, last=0.7, growth=1.3).flip(0)
        found = log_prob(field, x1, path=PATH, grid=grid, solver=ab2, with_error=False)
        error = (found.value - exact).abs()
        assert found.nfe == n
        assert float(error.mean()) < mean
        assert float(error.max()) < worst


@every_dtype
@every_shape
def test_every_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype):
    flow, x1 = affine_flow(shape), normal(4, *shape, seed=2, dtype=dtype)
    found = log_prob(flow, x1, path=PATH, grid=uniform(12), solver=rk4)
    assert found.error is not None
    for value in (found.value, found.error):
        assert value.shape == (4,)
        assert value.dtype == dtype
    close(found.value, flow.log_prob(x1), 1e-4)
    close(found.x0, flow.flow(x1, 1.0, 0.0), 1e-4)
    assert found.nfe == (4 * 12 + 1) + (4 * 6 + 1)
    there = sample_with_log_prob(flow, found.x0, path=PATH, grid=uniform(12))
    close(there.value, found.value, 1e-3)


def test_the_density_within_the_path():
    field = mixture(SCHEDULES["vp"])
    x1 = normal(5, 2, seed=1)
    found = log_prob(field, x1, path=field.path, begin=0.8, grid=uniform(24, 0.0, 0.8), solver=ab2, with_error=False)
    close(found.value, field.log_prob(x1, number(0.8)), 1e-4)


def test_probes():
    x1, grid = normal(200, 2, seed=1), uniform(24)
    exact = MIXTURE.log_prob(x1, number(1.0))
    found = log_prob(MIXTURE, x1, path=PATH, grid=grid, solver=abm, probes=8, generator=seeded(0))
    assert found.se is not None
    # 200 rows with independent probes: |z| > 6 has probability 2e-9
    z = (found.value - exact).sum() / found.se.square().sum().sqrt()
    assert abs(float(z)) < 6
    assert float(found.se.mean()) > 0.01


def test_gradients():
    x1 = normal(5, 2, seed=1).requires_grad_(True)
    (score,) = torch.autograd.grad(MIXTURE.log_prob(x1, number(1.0)).sum(), x1)
    for checkpoint in (False, True):
        found = log_prob(MIXTURE, x1, path=PATH, grid=uniform(32), solver=ab3, checkpoint=checkpoint)
        close(torch.autograd.grad(found.value.sum(), x1)[0], score, 1e-4)


def test_error_is_about_the_size_of_the_error():
    x1 = normal(20, 2, seed=1)
    found = log_prob(MIXTURE, x1, path=PATH, grid=uniform(16), solver=ab2)
    assert found.error is not None
    true = (found.value - MIXTURE.log_prob(x1, number(1.0))).abs().mean()
    assert float(found.error.mean()) > float(true)


def test_points_are_those_of_the_solver():
    x1 = normal(5, 2, seed=1)
    found = log_prob(MIXTURE, x1, path=PATH, grid=uniform(8), solver=abm, with_error=False)
    close(found.x0, solve(MIXTURE, x1, uniform(8).flip(0), abm).x, 1e-14)


SHARP = AffinePath(linear())
DELAYED = AffinePath(custom(lambda t: t, lambda t: 1 - 0.5 * t), Points(normal(9, 2, seed=0)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: log_prob(net(2), x, path=SHARP), "path must say the score at every node, but it has none at t = 1"),
        (lambda x: log_prob(net(2), x, path=curved_path()), "path must be affine .*, got GaussianPath"),
        (lambda x: log_prob(net(2), x, path=DELAYED), "source must be a standard normal where path is given"),
        (lambda x: log_prob(net(2), x, path=PATH, source=DELAYED.source), "source must be a standard normal"),
        (lambda x: log_prob(net(2), x, path=PATH, solver=dopri5), "solver must take the grid's own steps .* dopri5"),
        (lambda x: sample_with_log_prob(net(2), x, path=SHARP), "none at t = 1: keep off that end"),
    ],
)
def test_refuses(call: Callable[[Tensor], object], message: str):
    with pytest.raises(ValueError, match=message):
        call(normal(3, 2, seed=0))


def test_refuses_a_field_that_has_no_value_at_the_source():
    field = net(2)
    field.open_ends = {0.0: 1e-3}
    with pytest.raises(ValueError, match="path must not be given for a field that has no value at t = 0"):
        log_prob(field, normal(3, 2, seed=0), path=PATH)
