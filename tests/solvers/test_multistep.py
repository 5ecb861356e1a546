import math
import shutil
from functools import cache

import pytest
import torch
from torch import Tensor

from pathline.fields import EmpiricalField, GaussianMixtureField, ParametrizedField
from pathline.grids import check_grid, cosine, eased, log_snr, power, shift, uniform
from pathline.paths import AffinePath
from pathline.schedules import Schedule
from pathline.solvers import ab2, ab3, abm, euler, exponential, grid_for, heun, rk3, rk4, solve
from pathline.solvers.multistep import Adams, Multistep
from pathline.typing import Solver
from problems import (
    SCHEDULES,
    affine_flow,
    annulus,
    close,
    curved_path,
    every_shape,
    logistic,
    logistic_flow,
    normal,
    number,
)

LINEAR = AffinePath(SCHEDULES["linear-0.2"])
ADAMS = [ab2, ab3, abm]
EXPONENTIAL = [(2, False), (2, True), (3, False), (3, True)]
every_adams = pytest.mark.parametrize("solver", ADAMS, ids=lambda s: s.name)
every_exponential = pytest.mark.parametrize(("order", "corrected"), EXPONENTIAL)


def mixture(schedule: Schedule) -> GaussianMixtureField:
    return GaussianMixtureField(AffinePath(schedule), normal(3, 2, seed=0), torch.tensor([0.5, 0.7, 0.9]))


def smooth(n: int, start: float, stop: float) -> Tensor:
    """A grid whose steps differ by a factor of 3 and whose shape does not depend on n."""
    s = uniform(n)
    nodes = start + (stop - start) * (s + 0.5 * torch.sin(math.pi * s) / math.pi)
    nodes[0], nodes[-1] = start, stop
    return check_grid(nodes)


@cache
def converged(name: str, start: float, stop: float) -> Tensor:
    return solve(mixture(SCHEDULES[name]), normal(6, 2, seed=1), uniform(250, start, stop), rk4).x


def observed_order(solver: Solver, flow, x: Tensor, start: float, stop: float, exact: Tensor, n: int) -> float:
    errors = [float((solve(flow, x, smooth(m, start, stop), solver).x - exact).abs().max()) for m in (n, 2 * n)]
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("solver", [rk3, *ADAMS], ids=lambda s: s.name)
@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (1.0, 0.0), (0.2, 0.9)])
@pytest.mark.parametrize("problem", ["logistic", "mixture"])
def test_order_on_uneven_grids_both_ways(problem: str, start: float, stop: float, solver: Solver):
    if problem == "logistic":
        flow, x = logistic, torch.linspace(0.05, 0.9, 6, dtype=torch.float64)
        exact = logistic_flow(x, start, stop)
    else:
        flow, x = mixture(SCHEDULES["linear-0.2"]), normal(6, 2, seed=1)
        exact = converged("linear-0.2", start, stop)
    order = solver.order  # pyright: ignore[reportAttributeAccessIssue]
    found = observed_order(solver, flow, x, start, stop, exact, 48)
    # the pair's first step, which holds it at 3, is felt on finer grids only
    assert order - 0.35 < found < order + (1.5 if solver is abm else 0.35)


@every_exponential
@pytest.mark.parametrize(("name", "start", "stop"), [
    ("linear-0.2", 0.0, 1.0), ("linear-0.2", 1.0, 0.0), ("linear-0.2", 0.2, 0.9),
    ("cosine", 0.0, 1.0), ("cosine", 0.9, 0.0), ("polynomial-2", 0.0, 1.0), ("linear", 0.0, 1.0), ("linear", 1.0, 0.0),
])  # fmt: skip
def test_order_of_the_exponential_methods(name: str, start: float, stop: float, order: int, corrected: bool):
    flow, x, exact = mixture(SCHEDULES[name]), normal(6, 2, seed=1), converged(name, start, stop)
    solver = exponential(AffinePath(SCHEDULES[name]), order, corrected)
    assert solver.order == order
    assert order - 0.4 < observed_order(solver, flow, x, start, stop, exact, 48) < order + 1.1


@every_exponential
@pytest.mark.parametrize("name", ["polynomial-1.5", "vp", "custom"])
def test_converges_where_rates_vanish_or_grow_without_bound(name: str, order: int, corrected: bool):
    schedule = SCHEDULES[name]
    flow, x = mixture(schedule), normal(6, 2, seed=1)
    stop = 0.999 if 1.0 in schedule.open_ends else 1.0
    curve = schedule(number(stop))
    same = SCHEDULES["linear"].time_of_log_snr(schedule.log_snr(number(stop)))
    exact = converged("linear", 0.0, float(same)) * (curve.alpha + curve.sigma)
    close(solve(flow, x, uniform(96, 0.0, stop), exponential(AffinePath(schedule), order, corrected)).x, exact, 2e-3)


@every_exponential
def test_one_gaussian_point_is_exact_in_one_step(order: int, corrected: bool):
    # one data point: the data prediction is constant, so any grid is exact
    for name in ("linear-0.2", "cosine", "vp"):
        path = AffinePath(SCHEDULES[name])
        flow, x = EmpiricalField(path, torch.tensor([[1.0, -2.0]]).double()), normal(4, 2, seed=0)
        there, back = torch.tensor([0.0, 0.3, 0.9]).double(), torch.tensor([0.9, 0.5, 0.0]).double()
        y = solve(flow, x, there, exponential(path, order, corrected)).x
        curve = path.schedule(number(float(there[-1])))
        close(y, curve.alpha * flow.points + curve.sigma * x, 1e-12)
        close(solve(flow, y, back, exponential(path, order, corrected)).x, x, 1e-11)


@every_exponential
def test_nodes_of_equal_ratio_give_equal_results_on_every_schedule(order: int, corrected: bool):
    x, results = normal(5, 2, seed=1), []
    base = SCHEDULES["linear"]
    for name in ("linear", "cosine", "vp"):
        schedule = SCHEDULES[name]
        nodes = schedule.time_of_log_snr(base.log_snr(uniform(8, 0.0, 0.95)))
        results.append(solve(mixture(schedule), x, nodes, exponential(AffinePath(schedule), order, corrected)).x)
        curve = schedule(nodes[-1])
        results[-1] = results[-1] / (curve.alpha + curve.sigma)
    for other in results[1:]:
        close(other, results[0], 1e-9)


@every_exponential
def test_points_close_and_land_on_the_data(order: int, corrected: bool):
    for name in ("linear", "cosine", "vp", "polynomial-2"):
        field = EmpiricalField(AffinePath(SCHEDULES[name]), annulus(5))
        solution = solve(field, normal(6, 2, seed=3), uniform(30), exponential(field.path, order, corrected))
        assert solution.closed
        assert solution.nfe == 30
        assert torch.cdist(solution.x, annulus(5)).amin(1).max() < 1e-2


def test_rates_that_are_infinite_are_refused_with_the_remedy():
    path = AffinePath(SCHEDULES["vp"])
    with pytest.raises(ValueError, match=r"path must have finite rates .* none at t = 1; begin inside \(0, 1\)"):
        solve(lambda x, t: -x, torch.ones(2, 2), uniform(4, 1.0, 0.0), exponential(path))
    with pytest.raises(ValueError, match="path must be affine for an exponential method, got GaussianPath"):
        exponential(curved_path())  # pyright: ignore
    with pytest.raises(ValueError, match="order must be 2 or 3, got 4"):
        exponential(path, 4)


@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_shape_dtype_and_the_calls_of_one_solve(shape: tuple[int, ...], dtype: torch.dtype):
    x = normal(4, *shape, seed=2, dtype=dtype)
    flow = affine_flow(shape)
    methods: list[Multistep] = [*ADAMS, *(exponential(LINEAR, *each) for each in EXPONENTIAL)]
    for solver in methods:
        for start, stop in ((0.0, 1.0), (1.0, 0.0), (0.2, 0.7)):
            solution = solve(flow, x, uniform(50, start, stop), solver)
            assert solution.x.dtype == dtype
            assert solution.nfe == 50
            close(solution.x, flow.flow(x, start, stop), 2e-3)
        for n in (1, 2, 3, 4):
            assert solve(flow, x, uniform(n), solver).nfe == n
            assert len(grid_for(n, solver, flow)) == n + 1


def test_adams_weights_are_the_textbook_ones_on_equal_steps():
    nodes = uniform(6).tolist()
    weights = [w * 6 for w in ab3.begin(nodes).predict[4][1]]
    assert weights == pytest.approx([5 / 12, -16 / 12, 23 / 12], abs=1e-12)
    moulton = [w * 6 for w in abm.begin(nodes).correct[4][1]]
    assert moulton == pytest.approx([1 / 24, -5 / 24, 19 / 24, 9 / 24], abs=1e-12)
    uneven = Adams("ab2", 2, False).begin([0.0, 0.1, 0.4]).predict[1][1]
    assert uneven == pytest.approx([-(0.3**2) / (2 * 0.1), 0.3 + 0.3**2 / (2 * 0.1)], abs=1e-14)


@every_adams
def test_a_polynomial_of_its_degree_is_integrated_exactly(solver: Adams):
    degree = solver.order - 1

    def flow(x: Tensor, t: Tensor, /) -> Tensor:
        return ((degree + 1) * t**degree).reshape(-1, 1).expand_as(x)

    nodes = torch.tensor([0.0, 0.05, 0.2, 0.3, 0.7, 0.8, 1.0]).double()
    states = solve(flow, torch.zeros(1, 1).double(), nodes, solver, keep_states=True).states
    past = solver.order
    assert states is not None
    # from the step that has its whole past on, the error of the start no longer grows where F depends on t alone
    errors = states[:, 0, 0] - nodes ** (degree + 1)
    if not solver.corrected:
        assert float((errors[past:] - errors[past]).abs().max()) < 1e-12


def test_each_solve_has_its_own_memory():
    x = torch.linspace(0.05, 0.9, 6, dtype=torch.float64)
    for solver in (ab3, abm):
        first = solve(logistic, x, uniform(7), solver).x
        solve(lambda y, t: -5 * y, x, uniform(3), solver)
        assert torch.equal(solve(logistic, x, uniform(7), solver).x, first)


def test_memory_does_not_grow_with_the_steps():
    for solver in (ab3, abm, exponential(LINEAR, 3, True)):
        run = solver.begin(uniform(40).tolist())
        x = torch.ones(2, 2).double()
        for t, s in zip(uniform(40)[:-1].tolist(), uniform(40)[1:].tolist(), strict=True):
            x = run.step(lambda y, t: -y, x, t, s)
            assert len(run.values) <= 4


@every_adams
def test_conditions_and_gradients_pass(solver: Adams):
    def end(x: Tensor, rate: Tensor) -> Tensor:
        return solve(lambda y, t, /, k: k * y * (1 - y) + t[:, None], x, uniform(4), solver, cond={"k": rate}).x

    args = (normal(2, 2, seed=0).requires_grad_(True), number(1.3).requires_grad_(True))
    assert torch.autograd.gradcheck(end, args, eps=1e-5, atol=1e-5)


def test_fewer_calls_for_one_error():
    flow, x = mixture(SCHEDULES["linear-0.2"]), normal(64, 2, seed=1)
    exact = solve(flow, x, uniform(400), rk4).x
    error = {}
    for solver in (euler, heun, rk3, ab3, abm):
        grid = eased(24) if solver is abm else grid_for(24, solver, flow)
        error[solver.name] = float((solve(flow, x, grid, solver).x - exact).abs().mean())
    assert error["abm"] < error["ab3"] < error["heun"] < error["euler"]
    assert error["abm"] < error["rk3"]


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("solver", [rk4, abm, exponential(LINEAR, 3)], ids=lambda s: s.name)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_one_step_compiles_without_a_break(solver: Solver):
    net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.SiLU(), torch.nn.Linear(16, 2))

    def flow(x: Tensor, t: float) -> Tensor:
        return net(torch.cat([x, torch.full((), t).expand(len(x))[:, None]], 1))

    run = solver.begin([0.2, 0.3, 0.4]) if isinstance(solver, Multistep) else solver

    def step(x: Tensor) -> Tensor:
        return run.step(flow, x, 0.2, 0.3)

    x = normal(5, 2, seed=0).float()
    fresh = solver.begin([0.2, 0.3, 0.4]) if isinstance(solver, Multistep) else solver
    with torch.no_grad():
        wanted = fresh.step(flow, x, 0.2, 0.3)
        torch.testing.assert_close(torch.compile(step, fullgraph=True)(x), wanted, rtol=1e-5, atol=1e-6)


DENSE = [("rk4", rk4, 0), ("abm", abm, 0), ("exponential", exponential(LINEAR, 3), 0), ("heun", heun, 0)]


@pytest.mark.parametrize(("name", "solver", "more"), DENSE, ids=[d[0] for d in DENSE])
def test_dense_output_is_right_between_the_nodes(name: str, solver: Solver, more: int):
    x = torch.linspace(0.05, 0.9, 6, dtype=torch.float64)
    for start, stop in ((0.0, 1.0), (0.9, 0.1)):
        plain = solve(logistic, x, uniform(60, start, stop), solver)
        dense = solve(logistic, x, uniform(60, start, stop), solver, dense=True)
        assert torch.equal(plain.x, dense.x)
        assert dense.nfe == plain.nfe + 1 + more
        for t in (start, 0.1234, 0.5, 0.87, stop):
            close(dense.at(t), logistic_flow(x, start, t), 2e-3 if name == "heun" else 5e-5)


def test_dense_output_errors_fall_with_the_fourth_power():
    x, errors = torch.linspace(0.05, 0.9, 6, dtype=torch.float64), []
    for n in (10, 20):
        dense = solve(logistic, x, uniform(n), rk4, dense=True)
        halves = [(i + 0.5) / n for i in range(n)]
        errors.append(max(float((dense.at(t) - logistic_flow(x, 0, t)).abs().max()) for t in halves))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.6)


def test_dense_output_of_a_closing_solve_and_its_refusals():
    field = EmpiricalField(AffinePath(SCHEDULES["linear"]), annulus(5))
    dense = solve(field, normal(4, 2, seed=0), uniform(12), dense=True)
    assert dense.states is not None
    close(dense.at(11.5 / 12), (dense.states[-1] + dense.states[-2]) / 2, 1e-12)
    with pytest.raises(ValueError, match="at\\(t\\) needs a dense solution"):
        solve(field, normal(4, 2, seed=0), uniform(3)).at(0.5)
    with pytest.raises(ValueError, match=r"t must lie in \[0.1, 0.5\], which was solved, got 0.7"):
        solve(logistic, torch.ones(2, 2), uniform(3, 0.1, 0.5), dense=True).at(0.7)


def test_a_network_keeps_away_from_its_open_ends():
    from problems import Answers

    exact = EmpiricalField(AffinePath(SCHEDULES["linear"]), annulus(5))
    for predicts in ("data", "noise", "score"):
        net = ParametrizedField(Answers(exact, predicts), exact.path, predicts)
        for solver in (abm, exponential(exact.path, 3, True)):
            assert solve(net, normal(4, 2, seed=3), uniform(20), solver).x.isfinite().all()


GRIDS = {
    "cosine": cosine,
    "power": lambda n, a=0.0, b=1.0: power(n, 2.0, a, b),
    "eased": eased,
    "log_snr": lambda n, a=0.0, b=1.0: log_snr(n, SCHEDULES["cosine"], a, b),
}


@pytest.mark.parametrize("make", GRIDS.values(), ids=GRIDS)
def test_grids_run_between_any_two_times_both_ways(make):
    for start, stop in ((0.0, 1.0), (1.0, 0.0), (0.3, 0.8), (0.9, 0.1)):
        for n in (3, 10):
            grid = make(n, start, stop)
            assert grid.dtype == torch.float64
            assert len(grid) == n + 1
            assert (float(grid[0]), float(grid[-1])) == (start, stop)
            check_grid(grid)


def test_uneven_grids_are_what_they_say():
    schedule = SCHEDULES["linear-0.2"]
    ratios = schedule.log_snr(log_snr(5, schedule, 0.1, 0.9)).diff()
    assert ratios.tolist() == pytest.approx([float(ratios[0])] * 5, abs=1e-9)
    assert eased(6, first=0.5, last=0.25, growth=1.0).diff().tolist() == pytest.approx(
        [0.5 / 4.75, *[1 / 4.75] * 4, 0.25 / 4.75]
    )
    moved = shift(uniform(4), 3.0)
    assert moved.tolist() == pytest.approx([0, 0.1, 0.25, 0.5, 1.0])
    assert shift(moved, 1 / 3).tolist() == pytest.approx(uniform(4).tolist())
    # the shift in terms of sigma / alpha of the linear path: multiplied by the factor
    assert ((1 - moved[1:]) / moved[1:]).tolist() == pytest.approx((3 * (1 - uniform(4)[1:]) / uniform(4)[1:]).tolist())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: power(4, 0.0), "p must be a positive number, got 0"),
        (lambda: shift(uniform(4), -1.0), "factor must be a positive number, got -1"),
        (lambda: shift(torch.tensor([0.0, 0.5, 0.2]), 2.0), "increase or decrease strictly"),
        (lambda: eased(4, first=0.0), "first must be a positive number, got 0"),
        (lambda: log_snr(2, SCHEDULES["linear"]), "n must be at least 3 steps between these ends, got 2"),
        (lambda: cosine(0), "n must be at least 1 step, got 0"),
        (lambda: cosine(3, 0.5, 2.0), r"grid must lie in \[0, 1\]"),
    ],
)
def test_refuses_bad_grids(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
