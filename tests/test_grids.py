import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathline.grids import check_grid, log_snr, uniform


@given(n=st.integers(1, 500))
def test_uniform_nodes_are_k_over_n(n: int):
    grid = uniform(n)
    assert grid.dtype == torch.float64
    assert grid.tolist() == pytest.approx([k / n for k in range(n + 1)], abs=1e-15)
    assert (float(grid[0]), float(grid[-1])) == (0.0, 1.0)


@given(ends=st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True), n=st.integers(1, 20))
def test_uniform_runs_either_way_between_its_ends_exactly(ends: list[float], n: int):
    if abs(ends[0] - ends[1]) > 1e-12:
        grid = uniform(n, *ends)
        assert (float(grid[0]), float(grid[-1])) == tuple(ends)
        assert grid.diff().tolist() == pytest.approx([(ends[1] - ends[0]) / n] * n, abs=1e-15)


@pytest.mark.parametrize(
    "grid", [torch.tensor([0, 1]), torch.tensor([1.0, 0.25, 0.125]), torch.tensor([0.5, 0.75]).half()]
)
def test_a_grid_is_kept_in_float64(grid: torch.Tensor):
    nodes = check_grid(grid)
    assert nodes.dtype == torch.float64
    assert nodes.tolist() == grid.tolist()


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([0.5], r"at least 2 nodes, got shape \(1,\)"),
        ([[0.0, 1.0]], r"1-D tensor of at least 2 nodes, got shape \(1, 2\)"),
        ([0.0, 1.5], r"grid must lie in \[0, 1\], got 1.5 at node 1: leave it out, or scale the nodes"),
        ([-0.1, 1.0], r"grid must lie in \[0, 1\], got -0.1 at node 0"),
        ([0.0, math.nan], r"grid must lie in \[0, 1\], got nan at node 1"),
        ([0.0, 0.5, 0.5, 1.0], "without repeated nodes, got 0.5 and 0.5 at nodes 1 and 2"),
        ([0.0, 0.6, 0.5, 1.0], "increase or decrease strictly, .* got 0.6 and 0.5 at nodes 1 and 2: sort it"),
        ([1.0, 0.4, 0.5, 0.0], "got 0.4 and 0.5 at nodes 1 and 2: sort it"),
    ],
)
def test_refuses_a_bad_grid(grid: list, message: str):
    with pytest.raises(ValueError, match=message):
        check_grid(torch.tensor(grid))


def test_uniform_checks_its_arguments():
    with pytest.raises(ValueError, match="n must be at least 1 step, got 0"):
        uniform(0)
    for n in ("8", 2.5, math.nan, math.inf, None, True):
        with pytest.raises(ValueError, match=f"n must be a whole number of steps, got {n!r}"):
            uniform(n)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"schedule must be a Schedule, such as schedules.linear\(\), got 'linear'"):
        log_snr(8, "linear")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="without repeated nodes"):
        uniform(3, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"grid must lie in \[0, 1\]"):
        uniform(3, 0.0, 2.0)
