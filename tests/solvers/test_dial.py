"""One dial: any number of calls has a solver and a grid, and they beat the fixed choices."""

import pytest
import torch

from pathline.fields import EmpiricalField, GaussianMixtureField, ParametrizedField
from pathline.fields.guidance import autoguidance
from pathline.grids import uniform
from pathline.paths import AffinePath
from pathline.solvers import exponential, grid_for, heun, method_for, rk4, solve, untuned
from pathline.typing import Field
from problems import SCHEDULES, Answers, annulus, close, normal

SHARP = EmpiricalField(AffinePath(SCHEDULES["linear"]), annulus(5))
LINEAR = AffinePath(SCHEDULES["linear-0.2"])
MIXTURE = GaussianMixtureField(LINEAR, 2 * normal(6, 2, seed=0), torch.full((6,), 0.3, dtype=torch.float64))
POINTS = EmpiricalField(LINEAR, annulus(50))
DATA = ParametrizedField(Answers(SHARP, "data"), SHARP.path, "data")
SCORE = ParametrizedField(Answers(SHARP, "score"), SHARP.path, "score")  # open at both ends
NOISE = normal(64, 2, seed=1)


@pytest.mark.parametrize(
    ("field", "least"), [(MIXTURE, 1), (SHARP, 1), (DATA, 2), (SCORE, 2)], ids=["smooth", "points", "data", "score"]
)
def test_every_number_of_calls_is_spent_exactly(field: Field, least: int):
    for nfe in [*range(least, 14), 64]:
        solver, grid = method_for(nfe, field)
        solution = solve(field, NOISE[:3], grid, solver)
        assert solution.nfe == nfe
        assert solution.times[[0, -1]].tolist() == [0.0, 1.0]
        assert solution.x.isfinite().all()


def test_nodes_past_an_open_end_are_made_up_for():
    solver, grid = method_for(1500, DATA)
    assert len(grid) > 1501
    assert solve(DATA, NOISE[:1], grid, solver).nfe == 1500


@pytest.mark.parametrize("field", [MIXTURE, POINTS], ids=["mixture", "points"])
@pytest.mark.parametrize("nfe", [2, 4, 8, 24])
def test_the_rule_is_near_the_best_listed_pair_and_beats_the_fixed_ones(field: Field, nfe: int):
    end = solve(field, NOISE, uniform(150), rk4).x

    def error(grid: torch.Tensor, solver) -> float:
        solution = solve(field, NOISE, grid, solver)
        assert solution.nfe == nfe
        return float((solution.x - end).square().mean(1).sqrt().mean())

    solver, grid = method_for(nfe, field)
    found, listed = error(grid, solver), []
    for name, (other, spacing) in untuned(LINEAR, nfe).items():
        if nfe % other.calls == 0 and not name.endswith("log_snr"):
            listed.append(error(spacing(nfe // other.calls), other))
    assert found <= 4 * min(listed)
    assert found < 1.05 * error(grid_for(nfe, heun, field), heun)
    if nfe % 4 == 0:
        assert found < 0.6 * error(grid_for(nfe, rk4, field), rk4)


def test_a_guided_field_is_counted_by_its_calls():
    field = autoguidance(MIXTURE, POINTS, 2.0)
    solver, grid = method_for(8, field)
    assert solver.name == "ab3"  # 4 steps
    assert solve(field, NOISE, grid, solver).nfe == 8
    with pytest.raises(ValueError, match="such as 6 or 8, got 7"):
        method_for(7, field)


def test_guidance_within_an_interval_takes_whichever_rung_spends_the_calls():
    field = autoguidance(MIXTURE, POINTS, 2.0, (0.25, 0.75))
    for nfe in range(3, 20):
        solver, grid = method_for(nfe, field)
        assert solve(field, NOISE[:2], grid, solver).nfe == nfe


def test_grids_of_any_spacing_are_found():
    grid = grid_for(9, exponential(SHARP.path), SHARP, lambda n: uniform(n) ** 2)
    close(grid, uniform(9) ** 2, 0.0)


def test_refuses():
    with pytest.raises(ValueError, match="nfe must be at least 1 call, got 0"):
        method_for(0, MIXTURE)
    with pytest.raises(ValueError, match="such as 2 or 3, got 1"):
        method_for(1, DATA)
