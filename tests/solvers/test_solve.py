import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from pathline import schedules
from pathline.fields import EmpiricalField, GaussianMixtureField, ParametrizedField
from pathline.grids import uniform
from pathline.paths import AffinePath, Prediction
from pathline.solvers import (
    NAMED,
    Dopri5,
    Tableau,
    adaptive,
    dopri5,
    euler,
    grid_for,
    heun,
    method_for,
    midpoint,
    rk4,
    solve,
)
from pathline.typing import Field, Solver
from problems import (
    SCHEDULES,
    SEED_GAUSSIAN,
    Answers,
    affine_flow,
    annulus,
    close,
    every_prediction,
    every_state,
    logistic,
    logistic_flow,
    normal,
    number,
)

FIXED = [euler, midpoint, heun, rk4]
every_fixed = pytest.mark.parametrize("solver", FIXED, ids=lambda s: s.name)
every_solver = pytest.mark.parametrize("solver", NAMED.values(), ids=NAMED)

SHARP = EmpiricalField(AffinePath(SCHEDULES["linear"]), annulus(5))
SMOOTH = GaussianMixtureField(AffinePath(SCHEDULES["cosine"]), normal(3, 2, seed=0), torch.tensor([0.5, 0.7, 0.9]))


@dataclass
class Watched:
    """Hands on the calls of a field and remembers their times."""

    inner: Field
    times: list[Tensor] = field(default_factory=list)

    @property
    def open_ends(self) -> dict[float, float | None]:
        return getattr(self.inner, "open_ends", {})

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        self.times.append(t)
        return self.inner(x, t)

    def posterior_mean(self, x: Tensor, t: Tensor) -> Tensor:
        self.times.append(t)
        return self.inner.posterior_mean(x, t)  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def numbers(self) -> list[float]:
        return [float(t[0]) for t in self.times]


def reach(field: Field, x: Tensor, n: int, solver: Solver) -> Tensor:
    return solve(field, x, uniform(n), solver).x


@cache
def finely() -> Tensor:
    return reach(SMOOTH, normal(6, 2, seed=1), 200, rk4)


@every_fixed
@pytest.mark.parametrize("problem", ["logistic", "mixture"])
def test_error_falls_with_the_order(problem: str, solver: Tableau):
    if problem == "logistic":
        flow, x = logistic, torch.linspace(0.05, 0.9, 6, dtype=torch.float64)
        exact = logistic_flow(x, 0.0, 1.0)
    else:
        flow, x, exact = SMOOTH, normal(6, 2, seed=1), finely()
    n = {1: 128, 2: 64, 4: 32}[solver.order]
    errors = [float((reach(flow, x, m, solver) - exact).abs().max()) for m in (n, 2 * n)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.15)


@every_state
@every_solver
def test_reaches_the_exact_solution(solver: Solver, shape: tuple[int, ...], dtype: torch.dtype):
    flow, x = affine_flow(shape), normal(4, *shape, seed=2, dtype=dtype)
    for start, stop in ((0.0, 1.0), (1.0, 0.0), (0.2, 0.7)):
        solution = solve(flow, x, uniform(50, start, stop), solver)
        assert solution.x.dtype == dtype
        close(solution.x, flow.flow(x, start, stop), {"euler": 0.1, "rk4": 1e-5}.get(solver.name, 2e-3))


@pytest.mark.parametrize("rtol", [1e-4, 1e-9])
def test_dopri5_meets_its_tolerance_inside_the_interval(rtol: float):
    solver, x = Dopri5(rtol, rtol), torch.linspace(0.05, 0.9, 6, dtype=torch.float64)
    for start, stop in ((0.0, 1.0), (1.0, 0.0), (0.3, 0.9)):
        for grid in (torch.tensor([start, stop], dtype=torch.float64), uniform(3, start, stop)):
            flow = Watched(logistic)
            close(solve(flow, x, grid, solver).x, logistic_flow(x, start, stop), 20 * rtol)
            assert all(min(start, stop) <= t <= max(start, stop) for t in flow.numbers)


def test_dopri5_says_when_it_cannot(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adaptive, "MOST_STEPS", 50)
    with pytest.raises(RuntimeError, match=r"dopri5 cannot meet rtol=1e-10, .* t = 0 and 1 \(max_num_steps"):
        solve(lambda x, t: 4 * x * x, ONES, uniform(1), Dopri5(1e-10, 1e-10))  # infinite at t = 1/4


@pytest.mark.parametrize("solver", [rk4, Dopri5(1e-9, 1e-9)], ids=["rk4", "dopri5"])
def test_there_and_back_again(solver: Solver):
    for flow, x in ((logistic, torch.linspace(0.05, 0.9, 6).double()), (SMOOTH, normal(6, 2, seed=1))):
        grid = uniform(64 if solver is rk4 else 1)
        close(solve(flow, solve(flow, x, grid, solver).x, grid.flip(0), solver).x, x, 1e-6)


def test_seed_flow_is_straight():
    # every trajectory is a line, so one Euler step is exact
    x = normal(5, 2, seed=0)
    close(reach(SEED_GAUSSIAN, x, 1, euler), SEED_GAUSSIAN.flow(x, 0.0, 1.0), 1e-14)


@every_solver
@pytest.mark.parametrize(
    "grid", [uniform(8), uniform(5, 0.9, 0.1), torch.tensor([0.0, 0.7, 0.75, 1.0])], ids=["up", "down", "uneven"]
)
@pytest.mark.parametrize("inner", [logistic, SMOOTH, SHARP], ids=["logistic", "smooth", "sharp"])
def test_nfe_is_the_number_of_calls(inner: Field, grid: Tensor, solver: Solver):
    flow = Watched(inner)
    solution = solve(flow, 0.5 + 0 * normal(3, 2, seed=0), grid, solver)
    assert solution.nfe == len(flow.times)
    assert solution.times.tolist() == grid.double().tolist()
    assert solution.times.dtype == torch.float64
    assert solution.closed == (inner is SHARP and float(grid[-1]) == 1)
    if solver.calls is not None:
        assert solution.nfe == solver.calls * (len(grid) - 1 - solution.closed) + solution.closed


@every_fixed
@pytest.mark.parametrize("kind", ["plain", "points", "data", "noise", "score"])
@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 5, 8, 9, 12, 33])
def test_grid_for_spends_what_it_is_given_or_names_what_it_could(solver: Tableau, kind: str, nfe: int):
    exact = EmpiricalField(AffinePath(SCHEDULES["linear-0.2" if kind == "noise" else "linear"]), torch.zeros(1, 1))
    inner: Field = lambda x, t: x  # noqa: E731
    if kind != "plain":
        inner = exact if kind == "points" else ParametrizedField(Answers(exact, kind), exact.path, kind)  # pyright: ignore
    closing = kind in ("points", "data", "score")
    possible = [nfe]
    if (nfe - closing) % solver.calls or (nfe == closing and kind != "points"):
        with pytest.raises(ValueError, match=f"can spend, such as .* got {nfe}") as refusal:
            grid_for(nfe, solver, inner)
        possible = [int(word) for word in re.findall(r"\d+", str(refusal.value).partition("such as")[2])[:2]]
        assert possible[1] - possible[0] == solver.calls
        assert possible[0] < nfe < possible[1] or nfe < possible[0]
    for spent in possible:
        flow = Watched(inner)
        assert solve(flow, torch.ones(1, 1), grid_for(spent, solver, inner), solver).nfe == spent == len(flow.times)


@pytest.mark.parametrize("predicts", ["data", "score"])
@pytest.mark.parametrize("nfe", [999, 1003, 2503])
def test_grid_for_allows_for_nodes_beyond_the_last_call(nfe: int, predicts: Prediction):
    path = AffinePath(SCHEDULES["linear"])
    flow = ParametrizedField(nn.Identity(), path, predicts)
    flow.net.forward = lambda x, t: x
    assert solve(flow, torch.ones(1, 1), grid_for(nfe, euler, flow), euler).nfe == nfe


def test_grid_for_refuses_solvers_that_choose_their_own_steps():
    with pytest.raises(ValueError, match="dopri5 chooses its own steps, so its nfe can't be set: set its tolerances"):
        grid_for(10, dopri5, logistic)


@every_solver
def test_a_field_of_points_closes_with_the_posterior_mean(solver: Solver):
    x = normal(6, 2, seed=3)
    before = solve(SHARP, x, uniform(12)[:-1], solver)
    solution = solve(SHARP, x, uniform(12), solver)
    assert solution.closed
    assert not before.closed
    assert solution.nfe == before.nfe + 1
    close(solution.x, SHARP.posterior_mean(before.x, uniform(12)[-2]), 1e-13)


@every_prediction
@every_fixed
@pytest.mark.parametrize("name", ["linear", "cosine", "vp"])
def test_a_network_with_the_exact_answer_goes_where_the_exact_field_goes(
    name: str, solver: Tableau, predicts: Prediction
):
    exact, net = EmpiricalField(AffinePath(SCHEDULES[name]), annulus(5)), network(predicts, name)
    x, inside = normal(6, 2, seed=3), uniform(10, exact.path.inner_time(0.0), exact.path.inner_time(1.0))
    close(solve(net, x, inside, solver).x, solve(exact, x, inside, solver).x, 1e-8)


@pytest.mark.parametrize(("name", "predicts"), [("linear", "data"), ("cosine", "score")])
@every_solver
def test_a_network_with_the_exact_answer_lands_where_the_exact_field_lands(
    name: str, solver: Solver, predicts: Prediction
):
    exact, net = EmpiricalField(AffinePath(SCHEDULES[name]), annulus(5)), network(predicts, name)
    x = normal(6, 2, seed=3)
    solution = solve(net, x, uniform(40), solver)
    assert solution.closed
    assert not set(net.numbers) & {0.0, 1.0} or predicts == "data"
    close(solution.x, solve(exact, x, uniform(40), solver).x, 1e-6)
    assert torch.cdist(solution.x, annulus(5)).amin(1).max() < 1e-6


def network(predicts: Prediction, schedule: str = "linear") -> Watched:
    """With the exact answer at every time but the open ends of what it predicts."""
    exact = EmpiricalField(AffinePath(SCHEDULES[schedule]), annulus(5))
    return Watched(ParametrizedField(Answers(exact, predicts), exact.path, predicts))


LOW, HIGH = 0.001 / 1.001, 1 / 1.001
PLANS = {
    "closes from a node of its own": ("data", [0.0, 0.5, 1.0], [0.0, 0.5, HIGH, 1.0], [0.0, 0.5, HIGH]),
    "drops nodes beyond it": ("data", [0.0, 0.5, 0.9995, 1.0], [0.0, 0.5, HIGH, 1.0], [0.0, 0.5, HIGH]),
    "begins beyond it": ("data", [0.9995, 0.9999, 1.0], [0.9995, 1.0], [0.9995]),
    "stops short of it": ("data", [0.0, 0.9995], [0.0, 0.9995], [0.0]),
    "keeps x at an open start": ("noise", [0.0, 0.5, 1.0], [0.0, LOW, 0.5, 1.0], [LOW, 0.5]),
    "keeps x and stops": ("noise", [0.0, 0.0002, 0.0004], [0.0, 0.0004], []),
    "both": ("score", [0.0, 0.5, 1.0], [0.0, LOW, 0.5, HIGH, 1.0], [LOW, 0.5, HIGH]),
    "backward from an open end": ("data", [1.0, 0.5, 0.0], [1.0, HIGH, 0.5, 0.0], [HIGH, 0.5]),
    "backward to an open start": ("noise", [0.9, 0.5, 0.0], [0.9, 0.5, LOW, 0.0], [0.9, 0.5]),
    "backward, begins beyond it": ("noise", [0.0004, 0.0], [0.0004, 0.0], []),
    "backward, stops beyond it": ("data", [1.0, 0.9995], [1.0, 0.9995], []),
}


@pytest.mark.parametrize(("predicts", "grid", "times", "calls"), PLANS.values(), ids=PLANS)
def test_a_network_is_never_called_at_an_open_end(
    predicts: Prediction, grid: list[float], times: list[float], calls: list[float]
):
    flow, x = network(predicts), normal(4, 2, seed=3)
    solution = solve(flow, x, torch.tensor(grid, dtype=torch.float64), euler, keep_states=True)
    assert solution.times.tolist() == pytest.approx(times, abs=1e-12)
    assert flow.numbers == pytest.approx(calls, abs=1e-12)
    assert solution.nfe == len(calls)
    assert solution.closed == (grid[-1] == 1.0 and 1.0 in flow.open_ends)
    assert solution.states is not None
    kept = [i for i, (t, s) in enumerate(pairwise(times)) if {t, s} & set(flow.open_ends) and s != 1.0]
    assert all(torch.equal(solution.states[i], solution.states[i + 1]) for i in kept)


@every_fixed
def test_an_exact_field_open_at_the_start_keeps_x_there(solver: Solver):
    path = AffinePath(schedules.custom(torch.sqrt, lambda t: 1 - t))
    flow = Watched(EmpiricalField(path, annulus(5)))
    solution = solve(flow, normal(4, 2, seed=3), uniform(8), solver)
    assert solution.times.tolist() == pytest.approx([0.0, 1e-6, *uniform(8)[1:].tolist()], abs=1e-8)
    assert min(flow.numbers) > 0


def test_a_solve_backward_from_the_open_end_of_an_exact_field_is_refused():
    with pytest.raises(ValueError, match="grid must not begin at t = 1, where the field has no value"):
        solve(SHARP, normal(4, 2, seed=0), uniform(8, 1.0, 0.0))


@every_solver
def test_states_and_callback_show_every_node(solver: Solver):
    seen: list[tuple[int, float, Tensor]] = []
    x, flow = normal(4, 2, 3, seed=0), affine_flow((2, 3))
    solution = solve(flow, x, uniform(5, 0.9, 0.2), solver, keep_states=True, callback=lambda *node: seen.append(node))
    assert solution.states is not None
    assert solution.states.shape == (6, 4, 2, 3)
    assert torch.equal(solution.states[0], x)
    assert torch.equal(solution.states[-1], solution.x)
    assert [(i, t) for i, t, _ in seen] == list(enumerate(solution.times.tolist()))[1:]
    assert all(torch.equal(state, solution.states[i]) for i, _, state in seen)
    assert solve(flow, x).states is None


@every_solver
@pytest.mark.parametrize("shape", [(5,), (5, 5), (5, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_field_gets_one_time_for_all_rows(shape: tuple[int, ...], dtype: torch.dtype, solver: Solver):
    if dtype == torch.bfloat16 and solver is dopri5:
        pytest.skip("torchdiffeq has no bfloat16 norm to control its step with")
    flow = Watched(lambda x, t: -x)
    solution = solve(flow, torch.ones(shape, dtype=dtype), uniform(3), solver)
    assert solution.x.shape == shape
    assert solution.x.dtype == dtype
    for t in flow.times:
        assert t.shape == (5,)
        assert t.stride(0) == 0
        assert t.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@every_solver
def test_gradients_flow_through_the_steps(solver: Solver):
    def end(x: Tensor, rate: Tensor) -> Tensor:
        return solve(lambda y, t: rate * y * (1 - y) + t[:, None], x, uniform(3), solver).x

    x, rate = normal(2, 2, seed=0).sigmoid().requires_grad_(True), number(1.3).requires_grad_(True)
    assert torch.autograd.gradcheck(end, (x, rate), eps=1e-5, atol=1e-5)


@every_solver
def test_conditions_reach_the_field_and_unknown_ones_are_errors(solver: Solver):
    def flow(x: Tensor, t: Tensor, /, *, x_: Tensor) -> Tensor:
        return x_[:, None].expand_as(x)

    labels = torch.tensor([1.0, 2.0, 3.0])
    close(solve(flow, torch.zeros(3, 2), uniform(4), solver, cond={"x_": labels}).x, labels[:, None].expand(3, 2), 1e-6)
    with pytest.raises(TypeError, match="unexpected keyword"):
        solve(flow, torch.zeros(3, 2), uniform(4), solver, cond={"lable": labels})


def test_conditions_reach_the_closing_step():
    data, labels = annulus(6).float(), torch.tensor([0, 0, 0, 1, 1, 1])
    both = EmpiricalField(AffinePath(SCHEDULES["linear"]), data, labels=labels)
    for label in (0, 1):
        x = solve(both, normal(8, 2, seed=0).float(), cond={"label": torch.tensor(label)}).x
        assert labels[torch.cdist(x, data).argmin(1)].tolist() == [label] * 8


def test_a_solver_of_ones_own_needs_only_a_step():
    class Jump:
        name, calls = "jump", 1

        def step(self, field: Callable[[Tensor, float], Tensor], x: Tensor, t: float, s: float) -> Tensor:
            return x + (s - t) * field(x, (t + s) / 2)

    x = normal(4, 2, seed=0)
    close(reach(lambda x, t: t[:, None].expand_as(x), x, 7, Jump()), x + 0.5, 1e-14)


class Closing(nn.Module):
    open_ends = {1.0: None}

    def forward(self, x: Tensor, t: Tensor, /) -> Tensor:
        return x

    def posterior_mean(self, x: Tensor, t: Tensor, /) -> Tensor:
        return x[:1]


ONES = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("flow", "x", "grid", "message"),
    [
        (lambda x, t: x[:, :1], ONES, None, r"field must return the shape and dtype of x, \(3, 2\) .* got \(3, 1\)"),
        (lambda x, t: x.double(), ONES, None, r"\(3, 2\) torch.float32, got \(3, 2\) torch.float64"),
        (Closing(), ONES, None, r"field must return the shape and dtype of x, \(3, 2\) .* got \(1, 2\)"),
        (lambda x, t: (x,), ONES, None, r"field must return .* \(3, 2\) torch.float32, got tuple"),
        (logistic, ONES.long(), None, r"x must be a tensor of floating-point numbers, got \(3, 2\) torch.int64"),
        (logistic, [[1.0, 2.0]], None, "x must be a tensor of floating-point numbers, got list"),
        (logistic, ONES, [0.0, 1.0], r"grid must be a tensor of nodes, such as grids.uniform\(16\), got \[0.0, 1.0\]"),
        (logistic, torch.zeros(0, 2), None, r"x must be a batch of finite states, got shape \(0, 2\)"),
        (logistic, torch.tensor(1.0), None, r"x must be a batch of finite states, got shape \(\)"),
        (logistic, ONES * math.nan, None, "x must be a batch of finite states"),
        (None, ONES, None, r"field must be a function field\(x, t\), such as a network, got None"),
        (logistic, ONES, torch.tensor([0.0, 2.0]), r"grid must lie in \[0, 1\]"),
        (logistic, ONES, torch.tensor([0.0, 0.5, 0.4]), "increase or decrease strictly"),
    ],
)
def test_refuses(flow: Field, x: Tensor, grid: Tensor | None, message: str):
    with pytest.raises(ValueError, match=message):
        solve(flow, x, grid)


@every_fixed
def test_states_that_grow_too_large_are_named_with_the_time_of_their_node(solver: Tableau):
    with pytest.raises(RuntimeError, match=r"the solution is not finite from t = 1 on: take smaller steps"):
        solve(lambda x, t: torch.full_like(x, 3e38), 2 * ONES, uniform(1), Twice(solver))


@dataclass
class Twice:
    """Steps that grow too large where the field does not."""

    inner: Tableau
    name, calls = "twice", 1

    def step(self, field: Callable[[Tensor, float], Tensor], x: Tensor, t: float, s: float) -> Tensor:
        return 4 * self.inner.step(field, x, t, s)


@pytest.mark.parametrize(
    ("solver", "low", "high", "when"),
    [
        (euler, 0.0, 0.0, "0"),
        (euler, 0.4, 0.42, "0.4"),
        (heun, 0.4, 0.42, "0.4"),
        (rk4, 0.44, 0.46, "0.45"),
        (rk4, 0.4, 0.42, "0.4"),
        (NAMED["abm"], 0.4, 0.42, "0.4"),
    ],
)
def test_a_field_that_is_not_finite_is_named_with_the_time_of_its_call(
    solver: Solver, low: float, high: float, when: str
):
    def flow(x: Tensor, t: Tensor, /) -> Tensor:
        return torch.where((t >= low) & (t <= high), math.nan, 1.0)[:, None].expand_as(x).to(x)

    with pytest.raises(RuntimeError, match=rf"field is not finite at t = {when}, called at states up to 1\.?\d*: mend"):
        solve(flow, ONES.double(), uniform(10), solver)


@pytest.mark.parametrize("first", [0.0, 0.52])
def test_an_adaptive_solver_names_the_time_of_a_field_that_is_not_finite(first: float):
    def flow(x: Tensor, t: Tensor, /) -> Tensor:
        return torch.where(t >= first, math.nan, 1.0)[:, None].expand_as(x)

    with pytest.raises(RuntimeError, match=r"the field is not finite at t = (0|0\.5\d*): mend the field"):
        solve(flow, ONES, uniform(10), dopri5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dopri5(-1.0, 1e-5), "rtol and atol must be at least 0, and one above it, got -1.0 and 1e-05"),
        (lambda: Dopri5(0.0, 0.0), "rtol and atol must be at least 0"),
        (lambda: Dopri5(last=1.0), r"last must be a time inside \(0, 1\), got 1.0"),
        (lambda: Dopri5(last=math.nan), r"last must be a time inside \(0, 1\), got nan"),
        (lambda: grid_for(2.5, euler, logistic), "nfe must be a whole number of calls, got 2.5"),  # pyright: ignore
        (lambda: grid_for("8", euler, logistic), "nfe must be a whole number of calls, got '8'"),  # pyright: ignore
        (lambda: method_for("8", logistic), "nfe must be a whole number of calls, got '8'"),  # pyright: ignore
        (lambda: solve(logistic, ONES, None, Dopri5), "solver must be a method of pathline.solvers"),  # pyright: ignore
        (lambda: uniform(2.5), "n must be a whole number of steps, got 2.5"),  # pyright: ignore
    ],
)
def test_refuses_numbers_out_of_range(make: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        make()
