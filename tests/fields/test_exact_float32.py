"""Exact fields of float32 data, asked in float32, held against the same rounded inputs in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pathline import schedules
from pathline.fields import EmpiricalField
from pathline.fields.exact import attention, empirical
from pathline.paths import AffinePath
from problems import SCHEDULES, Watch, annulus, close, normal, seeded

LINEAR = AffinePath(schedules.linear())


def points_of(path: AffinePath, data: Tensor, t: Tensor, n: int, seed: int = 1) -> Tensor:
    """Draws of p_t in float32."""
    own = data[torch.randint(len(data), (n,), generator=seeded(seed))]
    curve = path.curve(t.expand(n), own)
    return curve.alpha * own + curve.sigma * normal(*own.shape, seed=seed + 1, dtype=torch.float32)


def off(field: EmpiricalField, fine: EmpiricalField, x: Tensor, t: Tensor, **cond: Tensor) -> float:
    """The largest |du| / (|u| + |x|)."""
    found, true = field(x, t, **cond).double().flatten(1), fine(x.double(), t.double(), **cond).flatten(1)
    return float(((found - true).norm(dim=1) / (true.norm(dim=1) + x.double().flatten(1).norm(dim=1))).max())


def divergence_off(field: EmpiricalField, x: Tensor, t: Tensor, label: Tensor | None = None) -> float:
    """The largest error of the divergence, relative to the sum of its two terms' absolute values."""
    data, log_weights = field.points.double().flatten(1), field.log_weights.expand(len(x), -1)
    if label is not None:
        log_weights = log_weights.masked_fill(label.expand(len(x))[:, None] != field.labels, -math.inf)
    alpha, sigma, alpha_rate, sigma_rate = field.path.schedule(t.double())  # pyright: ignore[reportAttributeAccessIssue]
    steps = x.double().flatten(1)[:, None] - alpha * data
    w = (log_weights - 0.5 * (steps / sigma).square().sum(2)).softmax(1)
    mean = w @ data
    scatter = (w * (data - mean[:, None]).square().sum(2)).sum(1)
    of_noise = data.shape[1] * sigma_rate / sigma
    of_data = (alpha_rate - sigma_rate / sigma * alpha) * alpha / sigma**2 * scatter
    found = field.divergence(x, t, label=label).double()
    return float(((found - of_noise - of_data).abs() / (of_noise.abs() + of_data)).max())


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(empirical, "MANY", 0)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 2000),
    st.floats(0, 1 - 1e-4),
    st.sampled_from([0.0, 1e-3, 0.2]),
    st.sampled_from([1e-3, 1.0, 1e3]),
    st.sampled_from([0.0, 100.0]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_float32_is_as_precise_as_promised(
    d: int, n: int, t: float, sigma_min: float, scale: float, far: float, weighted: bool, seed: int
):
    path = AffinePath(schedules.linear(sigma_min))
    data = (scale * (normal(n, d, seed=seed) + far)).float()
    weights = normal(n, seed=seed).square() + 1e-3 if weighted else None
    field, fine = EmpiricalField(path, data, weights), EmpiricalField(path, data.double(), weights)
    time = torch.tensor(t)
    x = points_of(path, data, time, 8, seed)
    assert off(field, fine, x, time) < 1e-4
    if scale * t < 1e6 * (1 - t):  # beyond, float64 itself has no more to give
        assert divergence_off(field, x, time) < 1e-4


@pytest.mark.parametrize("spread", [0.0, 1e-3])
@pytest.mark.parametrize(("a", "b", "t"), [(1.0, 8.0, 0.2), (-25.0, 25.0, 0.05), (0.0, 50.0, 0.02)])
def test_many_points_that_are_alike(a: float, b: float, t: float, spread: float):
    """Their products have the same roundings, which add up in long sums."""
    ends = torch.tensor([a, b]).repeat_interleave(10_000)[:, None]
    data = ends + spread * normal(20_000, 4, seed=0, dtype=torch.float32)
    x, time = points_of(LINEAR, data, torch.tensor(t), 128), torch.tensor(t)
    assert off(EmpiricalField(LINEAR, data), EmpiricalField(LINEAR, data.double()), x, time) < 1e-5


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(8, 2000),
    st.floats(0, 0.999),
    st.sampled_from([1, 3, 40]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_labels_have_the_same_precision(d: int, n: int, t: float, kinds: int, mixed: bool, seed: int):
    data, labels = normal(n, d, seed=seed).float(), torch.arange(n) % kinds - 1
    field, fine = (EmpiricalField(LINEAR, rows, labels=labels) for rows in (data, data.double()))
    time, asked = torch.tensor(t), labels[torch.randint(n, (8,), generator=seeded(seed))]
    label, x = asked if mixed else asked[0], points_of(LINEAR, data, time, 8, seed)
    assert off(field, fine, x, time, label=label) < 1e-4
    assert divergence_off(field, x, time, label=label) < 1e-4
    own = torch.linspace(0, t, 8)
    assert off(field, fine, x, own, label=label) < 1e-4


def test_labels_and_divergences_are_not_worked_out_in_float64(monkeypatch: pytest.MonkeyPatch):
    data, labels = normal(3000, 5, seed=0, dtype=torch.float32), torch.arange(3000) % 3
    field = EmpiricalField(LINEAR, data, labels=labels)

    def dense(*args: object) -> None:
        raise AssertionError("dense")

    monkeypatch.setattr(EmpiricalField, "chunk", dense)
    for t in (0.2, 0.99):
        x, time = points_of(LINEAR, data, torch.tensor(t), 16), torch.tensor(t)
        field.divergence(x, time)
        for label in (torch.tensor(2), labels[:16]):
            field(x, time, label=label)
            field.divergence(x, time, label=label)


@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize("shape", [(), (2,), (3, 2, 2)], ids=str)
def test_every_quantity_with_a_time_for_each_row(name: str, shape: tuple[int, ...]):
    path = AffinePath(SCHEDULES[name])
    data = normal(500, *shape, seed=0, dtype=torch.float32)
    field, fine = EmpiricalField(path, data), EmpiricalField(path, data.double())
    t = torch.linspace(0, 0.95, 9)
    x = points_of(path, data, t, 9)
    for what in ("__call__", "log_prob", "score", "posterior_mean", "divergence"):
        found, true = getattr(field, what)(x, t), getattr(fine, what)(x.double(), t.double())
        close(found, true.float(), 1e-5)


def ways(data: Tensor, t: float, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    used: set[str] = set()
    for way in ("_direct", "_products", "_sharp"):
        own = getattr(attention.Attention, way)

        def spy(self, x, *rest, way=way, own=own):
            if len(x):
                used.add(way)
            return own(self, x, *rest)

        monkeypatch.setattr(attention.Attention, way, spy)
    field, time = EmpiricalField(LINEAR, data), torch.tensor(t)
    assert off(field, EmpiricalField(LINEAR, data.double()), points_of(LINEAR, data, time, 16), time) < 1e-4
    return used


@pytest.mark.parametrize(
    ("d", "t", "way"), [(2, 0.9, "_direct"), (2, 1e-3, "_products"), (20, 0.3, "_products"), (20, 0.99, "_sharp")]
)
def test_rounding_chooses_the_way(d: int, t: float, way: str, monkeypatch: pytest.MonkeyPatch):
    assert ways(normal(3000, d, seed=0, dtype=torch.float32), t, monkeypatch) == {way}


def test_odd_numbers_of_points_and_many_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "COLUMNS", 64)
    monkeypatch.setattr(attention, "ROWS", 5)
    for n in (1, 3, 63, 65, 1001):
        for d, t in ((2, 0.7), (9, 0.2), (9, 0.999)):
            data, time = normal(n, d, seed=0, dtype=torch.float32), torch.tensor(t)
            x = points_of(LINEAR, data, time, 12)
            assert off(EmpiricalField(LINEAR, data), EmpiricalField(LINEAR, data.double()), x, time) < 1e-4


def test_duplicates_far_queries_and_points_without_weight_have_right_answers():
    data = torch.ones(100_000, 5)
    x = 1e4 * normal(6, 5, seed=0, dtype=torch.float32)
    for t in (0.0, 0.5, 0.9999):
        time = torch.tensor(t)
        for field in (EmpiricalField(LINEAR, data), EmpiricalField(LINEAR, data[:, :2])):
            own = x[:, : field.points.shape[1]]
            close(field(own, time), (1 - own) / (1 - time), 1e-5)
    some = normal(300, 5, seed=0, dtype=torch.float32)
    weights = torch.cat([torch.ones(200), torch.zeros(100)])
    for d, t in ((2, 0.8), (5, 0.2), (5, 0.99)):
        field = EmpiricalField(LINEAR, some[:, :d], weights)
        close(
            field(x[:, :d] / 1e4, torch.tensor(t)),
            EmpiricalField(LINEAR, some[:200, :d])(x[:, :d] / 1e4, torch.tensor(t)),
            1e-4,
        )


def test_gradients_go_through_float64():
    data, x = annulus(400).float(), normal(5, 2, seed=1, dtype=torch.float32).requires_grad_(True)
    field, t = EmpiricalField(LINEAR, data), torch.tensor(0.4)
    (gradient,) = torch.autograd.grad(field.log_prob(x, t).sum(), x)
    close(gradient, field.score(x, t).detach(), 1e-5)


def test_memory_is_a_block_of_the_posterior():
    for d, t in ((2, 0.9), (6, 0.05), (6, 0.99)):
        data = normal(200_000, d, seed=0, dtype=torch.float32)
        field, time = EmpiricalField(LINEAR, data), torch.tensor(t)
        x = points_of(LINEAR, data, time, 64)
        field(x[:8], time)
        with Watch() as watch:
            field(x, time)
        assert watch.largest <= max(data.untyped_storage().nbytes() * 2, math.ceil(64 * 200_000 * 4 / attention.GROUP))
