import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pathline.fields import EmpiricalField, GaussianMixtureField, ParametrizedField
from pathline.fields.guidance import autoguidance
from pathline.grids import uniform
from pathline.likelihood import log_prob, sample_with_log_prob
from pathline.paths import AffinePath
from pathline.solvers import NAMED, Tuned, TuneStep, exponential, grid_for, rk4, solve, tune, untuned
from pathline.solvers.tuned import written_out
from pathline.solvers.tuning import _bounds, _Noises, _Plan, _unpacked
from problems import SCHEDULES, Answers, annulus, close, normal

PATH = AffinePath(SCHEDULES["linear-0.2"])
POINTS = EmpiricalField(PATH, annulus(20))
SHARP = EmpiricalField(AffinePath(SCHEDULES["linear"]), annulus(5))
NOISE = normal(64, 2, seed=0)


def rmse(field, solver: Tuned, x: Tensor) -> float:
    end = solve(field, x, uniform(100), rk4).x
    return float((solve(field, x, solver.grid, solver).x - end).square().mean(1).sqrt().mean())


@pytest.mark.parametrize("field", [POINTS, SHARP], ids=["open nowhere", "open at 1"])
@pytest.mark.parametrize("name", [*(name for name, s in NAMED.items() if s.calls), "exponential"])
def test_a_written_out_solver_ends_where_the_solver_does(name: str, field: EmpiricalField):
    solver = exponential(field.path, 3, True) if name == "exponential" else NAMED[name]
    calls = 12 + (field is SHARP)
    grid = grid_for(calls, solver, field)
    found = written_out(field, field.path, grid, solver, calls)
    assert found is not None
    written = Tuned(tuple(found[0]), tuple(map(tuple, found[1])), name, False, 0.0, 0.0)
    solution, expected = solve(field, NOISE, written.grid, written), solve(field, NOISE, grid, solver)
    close(solution.x, expected.x, 1e-11)
    assert solution.nfe == expected.nfe == calls
    assert Tuned.from_dict(written.to_dict()) == written
    assert written_out(field, field.path, grid, solver, calls + 1) is None


def test_the_derivative_is_that_of_the_end():
    noises = _Noises(POINTS, {}, NOISE[:3], torch.zeros(3, 2, dtype=torch.float64))
    found = written_out(POINTS, PATH, uniform(3), NAMED["ab2"], 3)
    assert found is not None
    plan = _Plan([0.1, 0.4, 0.8], found[1])
    numbers, (end, turn) = plan.packed(), noises.linearised(plan)
    close(end, noises.reached(plan), 1e-14)
    for i in range(len(numbers)):
        step = 1e-5 * torch.eye(len(numbers), dtype=torch.float64)[i]
        up, down = (noises.reached(_unpacked(numbers + sign * step, 3, (0.0, 1.0))) for sign in (1, -1))
        close(turn[i], (up - down) / 2e-5, 1e-5)


@pytest.fixture(scope="module")
def tuned() -> Tuned:
    return tune(POINTS, PATH, 4, normal(192, 2, seed=1))


def test_tuning_beats_every_listed_solver_on_fresh_noises(tuned: Tuned):
    x = normal(200, 2, seed=2)
    end, errors = solve(POINTS, x, uniform(100), rk4).x, []
    for solver, spacing in untuned(PATH, 4).values():
        for steps in (4 // solver.calls, 4 // solver.calls + 1):
            try:
                solution = solve(POINTS, x, spacing(steps), solver)
            except ValueError:
                continue
            if solution.nfe == 4:
                errors.append(float((solution.x - end).square().mean(1).sqrt().mean()))
    assert len(errors) > 60
    assert tuned.learned
    assert rmse(POINTS, tuned, x) <= 0.5 * min(errors)
    assert tuned.error <= tuned.untuned
    assert 0.4 * min(errors) < tuned.untuned < 2.5 * min(errors)


def test_it_is_solved_on_its_own_grid_and_no_other(tuned: Tuned):
    solution = solve(POINTS, NOISE, tuned.grid, tuned)
    assert (solution.nfe, solution.closed, tuned.nfe) == (4, False, 4)
    assert torch.equal(solution.x, solve(POINTS, NOISE, grid_for(4, tuned, POINTS), tuned).x)
    for grid in (uniform(4), tuned.grid.flip(0)):
        with pytest.raises(ValueError, match=r"grid must be the tuned solver's own, of 4 steps .* pass solver.grid"):
            solve(POINTS, NOISE, grid, tuned)
    with pytest.raises(ValueError, match="nfe must be 4, for which this solver was tuned, got 8"):
        grid_for(8, tuned, POINTS)


def test_dense_states_and_callback(tuned: Tuned):
    seen: list[float] = []
    solution = solve(POINTS, NOISE, tuned.grid, tuned, dense=True, callback=lambda i, t, x: seen.append(t))
    assert seen == tuned.grid.tolist()[1:]
    close(solution.at(1.0), solution.x, 1e-12)


@pytest.mark.parametrize("kind", ["points", "data", "score"])
def test_open_ends_are_never_called(kind: str):
    field = SHARP if kind == "points" else ParametrizedField(Answers(SHARP, kind), SHARP.path, kind)  # pyright: ignore
    first, last = _bounds(field, SHARP.path)
    solver = tune(field, SHARP.path, 3, NOISE[:24])
    assert first <= min(solver.times) <= max(solver.times) <= last
    assert solve(field, NOISE, solver.grid, solver).x.isfinite().all()
    assert solver.error <= solver.untuned


def test_conditions_go_with_their_rows():
    labels = torch.arange(2).repeat_interleave(10)
    field = EmpiricalField(PATH, annulus(20), labels=labels)
    chosen = torch.arange(64) % 2
    apart = [EmpiricalField(PATH, annulus(20)[labels == i]) for i in (0, 1)]
    solver = tune(field, PATH, 3, NOISE, cond={"label": chosen})
    x = solve(field, NOISE, solver.grid, solver, cond={"label": chosen}).x
    for i in (0, 1):
        close(x[chosen == i], solve(apart[i], NOISE[chosen == i], solver.grid, solver).x, 1e-12)
    assert solver.error < 0.5 * solver.untuned


def test_without_gain_the_best_untuned_solver_is_kept():
    # a straight flow, which every method solves exactly
    field = GaussianMixtureField(AffinePath(SCHEDULES["linear"]), torch.zeros(1, 2), torch.ones(1))

    def straight(x: Tensor, t: Tensor, /) -> Tensor:
        return torch.ones_like(x)

    solver = tune(straight, field.path, 3, NOISE)
    assert solver.error <= solver.untuned < 1e-12
    assert solver.learned or (solver.error == solver.untuned and solver.base in untuned(field.path, 3))
    close(solve(straight, NOISE, solver.grid, solver).x, NOISE + 1, 1e-12)


def test_the_callback_is_told_of_every_step_and_the_same_noises_give_the_same_numbers():
    told: list[TuneStep] = []
    solver = tune(POINTS, PATH, 2, NOISE[:32], callback=told.append)
    assert solver == tune(POINTS, PATH, 2, NOISE[:32])
    assert all(a.step < b.step <= b.steps for a, b in pairwise(told))
    assert told[-1].error == pytest.approx(solver.error)
    assert all(step.untuned == solver.untuned for step in told)


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_any_state_shape(shape: tuple[int, ...]):
    field = EmpiricalField(PATH, normal(4, *shape, seed=3))
    solver = tune(field, PATH, 2, normal(32, *shape, seed=4).float())
    assert solver.error <= solver.untuned


@pytest.mark.parametrize("path", [None, PATH])
def test_densities_of_samples_with_a_tuned_solver_and_their_error(tuned: Tuned, path: AffinePath | None):
    found = sample_with_log_prob(POINTS, NOISE, solver=tuned, grid=tuned.grid, path=path)
    true = (found.value - sample_with_log_prob(POINTS, NOISE, grid=uniform(200)).value).abs().median()
    assert found.error is not None
    assert found.nfe == 20 if path is None else found.nfe > 20
    assert 0.3 * true < found.error.median()
    with pytest.raises(ValueError, match="solver must run backward, and a tuned one goes from 0 to 1 only"):
        log_prob(POINTS, NOISE, solver=tuned, grid=tuned.grid)


def test_a_guided_field_is_tuned_for_the_calls_that_it_spends():
    field = autoguidance(POINTS, POINTS, 1.0)
    solver = tune(field, PATH, 4, NOISE[:24])
    assert (solver.nfe, len(solver.times)) == (4, 2)
    assert solve(field, NOISE, grid_for(4, solver, field), solver).nfe == 4
    assert Tuned.from_dict(solver.to_dict()) == solver
    with pytest.raises(ValueError, match="nfe must be one that this field can spend, such as 4 or 6, got 5"):
        tune(field, PATH, 5, NOISE)
    with pytest.raises(ValueError, match="field must cost as many calls at every time to be tuned, got 1 to 2"):
        tune(autoguidance(POINTS, POINTS, 1.0, (0.2, 0.5)), PATH, 4, NOISE)


def test_refuses():
    with pytest.raises(ValueError, match=r"nfe must be a whole number of calls, got 2\.5"):
        tune(POINTS, PATH, 2.5, NOISE)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="nfe must be at least 1 call, got 0"):
        tune(POINTS, PATH, 0, NOISE)
    with pytest.raises(ValueError, match=r"x0 must be at least 16 finite source points, got shape \(3, 2\)"):
        tune(POINTS, PATH, 2, NOISE[:3])
    with pytest.raises(ValueError, match="x0 must be at least 16 finite"):
        tune(POINTS, PATH, 2, NOISE * math.nan)
    good = Tuned((0.0, 0.5), ((1.0,), (1.0, 0.5), (1.0, 0.0, 1.0)), "midpoint", False, 1.0, 1.0)
    with pytest.raises(ValueError, match="rows must have 1 to 3 weights for 2 times"):
        replace(good, rows=good.rows[:2])
    with pytest.raises(ValueError, match=r"times must be in order in \[0, 1\]"):
        replace(good, times=good.times[::-1])
