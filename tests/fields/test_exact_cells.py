"""Fields within a proven error of the exact ones."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pathline import schedules
from pathline.fields import EmpiricalField
from pathline.fields.exact import empirical
from pathline.fields.exact.cells import Cells
from pathline.paths import AffinePath
from problems import SCHEDULES, annulus, close, normal, number, seeded

LINEAR = AffinePath(schedules.linear())


def true_mean(data: Tensor, weights: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    offset = (x[:, None] - alpha * data) / sigma
    return (weights.log() - 0.5 * offset.square().sum(2)).softmax(1) @ data


def clumped(n: int, d: int, seed: int) -> Tensor:
    """Clumps of sizes from 1e-6 to 1, some points far out, and rows that repeat."""
    width = 10.0 ** (6 * torch.rand(n, 1, generator=seeded(seed), dtype=torch.float64) - 6)
    data = normal(8, d, seed=seed)[torch.randint(8, (n,), generator=seeded(seed))] + width * normal(n, d, seed=seed + 1)
    data[: n // 10] = data[0].clone()
    data[-1] = 1e3
    return data


LAWS: dict[str, Callable[[int, int, int], Tensor]] = {
    "normal": lambda n, d, seed: normal(n, d, seed=seed),
    "clumped": clumped,
    "line": lambda n, d, seed: torch.linspace(-1, 1, n, dtype=torch.float64)[:, None].expand(n, d).clone(),
    "one point": lambda n, d, seed: torch.ones(n, d, dtype=torch.float64),
}


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(list(LAWS)),
    st.integers(1, 3),
    st.integers(1, 3000),
    st.floats(0, 0.9999),
    st.sampled_from([1e-1, 1e-2, 1e-3, 1e-6]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_the_error_is_within_its_bound(law: str, d: int, n: int, t: float, rtol: float, even: bool, seed: int):
    data = LAWS[law](n, d, seed)
    weights = torch.ones(n, dtype=torch.float64) if even else normal(n, seed=seed).square() + 1e-9
    weights = weights / weights.sum()
    own = data[torch.randint(n, (70,), generator=seeded(seed))]
    x = t * own + (1 - t) * normal(70, d, seed=seed + 2)
    x[:3] = own[:3] + 3 * normal(3, d, seed=seed + 3)
    found = Cells(data, weights).posterior_mean(x, t, 1 - t, rtol)
    true = true_mean(data, weights, x, t, 1 - t)
    far = x.norm(dim=1) + data.norm(dim=1).max()
    slack = 1e-13 * far * (1 + far / (1 - t)) ** 2  # of the truth itself
    assert bool(((found.mean - true).norm(dim=1) <= found.error + slack)[found.error.isfinite()].all())


def test_most_rows_are_good_enough_at_once():
    data, t = annulus(20_000), 0.8
    x = t * data[:200] + (1 - t) * normal(200, 2, seed=1)
    found = Cells(data, torch.full((20_000,), 1 / 20_000, dtype=torch.float64)).posterior_mean(x, t, 1 - t, 1e-3)
    assert float((found.error < 2e-3).double().mean()) > 0.9


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("rtol", [1e-2, 1e-3, 1e-5])
def test_velocities_are_within_rtol(d: int, rtol: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(empirical, "FEW", 0)
    monkeypatch.setattr(empirical, "MANY", 0)
    data = clumped(4000, d, seed=3)
    field, fine = EmpiricalField(LINEAR, data, rtol=rtol), EmpiricalField(LINEAR, data)
    for t in (0.0, 0.02, 0.5, 0.9, 0.999):
        x = torch.cat([t * data[::80] + (1 - t) * normal(50, d, seed=4), 30 * normal(5, d, seed=5)])
        true = fine(x, number(t))
        error = (field(x, number(t)) - true).norm(dim=1) / (true.norm(dim=1) + x.norm(dim=1))
        assert float(error.max()) <= rtol
        close(field.score(x, number(t)), fine.score(x, number(t)), 0.0)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_velocities_are_within_rtol_on_every_schedule(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(empirical, "FEW", 0)
    monkeypatch.setattr(empirical, "MANY", 0)
    path, data = AffinePath(SCHEDULES[name]), normal(3000, 2, seed=0)
    field, fine = EmpiricalField(path, data, rtol=1e-3), EmpiricalField(path, data)
    for t in (0.0, 1e-3, 0.5, 0.99):
        curve = path.schedule(number(t))
        x = curve.alpha * data[:100] + curve.sigma * normal(100, 2, seed=1)
        true = fine(x, number(t))
        error = (field(x, number(t)) - true).norm(dim=1) / (true.norm(dim=1) + x.norm(dim=1))
        assert float(error.max()) <= 1e-3


def test_cells_are_used_and_only_where_they_can_be(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(empirical, "FEW", 0)
    monkeypatch.setattr(empirical, "MANY", 0)
    asked = []
    own = Cells.posterior_mean
    monkeypatch.setattr(Cells, "posterior_mean", lambda self, *args: asked.append(1) or own(self, *args))
    field, x = EmpiricalField(LINEAR, annulus(500), rtol=1e-2), normal(4, 2, seed=0)
    field(x, number(0.5))
    assert asked
    asked.clear()
    field(x, torch.linspace(0.1, 0.5, 4))
    field.posterior_mean(x, number(0.5))
    field(x.requires_grad_(True), number(0.5)).sum().backward()
    assert not asked


@pytest.mark.parametrize("rtol", [0.0, 1.0, -1e-3, math.nan])
def test_rtol_is_between_zero_and_one(rtol: float):
    with pytest.raises(ValueError, match=r"rtol must be None or in \(0, 1\), got"):
        EmpiricalField(LINEAR, torch.zeros(3, 2), rtol=rtol)
