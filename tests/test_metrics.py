import dataclasses
import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pathline import metrics
from pathline.cli.table import measures_table
from pathline.data.toy import toy
from pathline.metrics import Measure, c2st, compare, energy_distance, sliced_w2, w2

METRICS = pytest.mark.parametrize("metric", [w2, sliced_w2, energy_distance, c2st])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=seeded(seed), dtype=torch.float64)


def test_w2_of_a_gradient_map_is_its_mean_square_step():
    # x -> A x + m with A symmetric and positive is optimal from any sample to its image (Brenier)
    x, root = normal(300, 3, 0), normal(3, 3, 1)
    y = x @ (root @ root.T) + torch.tensor([1.0, -2.0, 0.5])
    assert w2(x, y[torch.randperm(300, generator=seeded(2))]) == pytest.approx(
        (x - y).square().sum(1).mean().sqrt().item(), rel=1e-12
    )


def test_w2_between_two_gaussians():
    # Bures: |m|^2 + sum of (a_i - b_i)^2 over the standard deviations of both
    x = toy("gaussian").sobol(512, 0)
    y = (toy("gaussian").sobol(512, 1) - torch.tensor([2.0, 1.0])) * torch.tensor([2.0, 0.5])
    exact = math.sqrt(5 + 0.5 * (1 + 0.25))
    assert w2(x, y) == pytest.approx(exact, abs=0.02)


@given(
    n=st.integers(2, 12),
    d=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    scale=st.floats(1e-3, 1e3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
@settings(max_examples=40, deadline=None)
def test_distances_have_their_symmetries(n: int, d: int, seed: int, scale: float, dtype: torch.dtype):
    x, y = normal(n, d, seed).to(dtype), normal(n, d, seed + 1).to(dtype)
    order = torch.randperm(n, generator=seeded(seed))
    for distance in (w2, energy_distance, lambda x, y: sliced_w2(x, y, 16, seeded(seed))):
        value = distance(x, y)
        same = pytest.approx(value, rel=1e-6, abs=1e-7)
        assert distance(y, x) == same
        assert distance(x[order], y) == same
        assert distance(x.double() + 3, y.double() + 3) == same
        assert distance(scale * x.double(), scale * y.double()) / scale == same
    assert w2(x, x[order]) == 0


def test_w2_is_the_least_over_all_permutations():
    x, y = normal(6, 2, 0), normal(6, 2, 1)
    least = min((x - y[list(p)]).square().sum(1).mean().item() for p in permutations(range(6)))
    assert w2(x, y) == pytest.approx(math.sqrt(least), rel=1e-12)


def test_sliced_w2_of_a_shift():
    # <v, u>^2 has mean |v|^2 / d and, in 3 dimensions, variance 4 / 45 |v|^4: 0.02 is 9.5 standard errors
    x, shift = normal(50, 3, 0), torch.tensor([2.0, 0.0, 0.0])
    assert sliced_w2(x, x + shift, 20_000, seeded(1)) ** 2 / 4 == pytest.approx(1 / 3, abs=0.02)
    assert sliced_w2(x, x + shift, 7, seeded(1)) == sliced_w2(x, x + shift, 7, seeded(1))
    assert sliced_w2(x, x + shift, 7, seeded(1)) != sliced_w2(x, x + shift, 7, seeded(2))


def test_sliced_w2_in_one_dimension_is_w2():
    x, y = normal(40, 1, 0), 2 * normal(40, 1, 1) + 1
    assert sliced_w2(x, y, 3) == pytest.approx(w2(x, y), rel=1e-12)


def test_energy_distance_is_the_mean_over_pairs_of_different_rows():
    x, y = normal(7, 2, 0), normal(5, 2, 1) + 1

    def mean(a: Tensor, b: Tensor, skip: bool) -> float:
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (skip and i == j)]
        return sum((a[i] - b[j]).norm().item() for i, j in pairs) / len(pairs)

    exact = 2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True)
    assert energy_distance(x, y) == pytest.approx(exact, rel=1e-10)


def test_energy_distance_between_two_normals():
    shift, spread = 0.7, 1.5
    s = math.sqrt(1 + spread**2)
    apart = s * math.sqrt(2 / math.pi) * math.exp(-(shift**2) / (2 * s**2))
    apart += shift * math.erf(shift / (s * math.sqrt(2)))
    exact = 2 * apart - 2 / math.sqrt(math.pi) - 2 * spread / math.sqrt(math.pi)
    x, y = normal(3000, 1, 0), shift + spread * normal(3000, 1, 1)
    value, se = metrics._energy(x, y)
    assert 0 < se < 0.03
    assert abs(value - exact) < 6 * se  # error probability 2e-9


def test_standard_error_of_the_energy_distance():
    runs = [metrics._energy(normal(100, 2, 2 * s), normal(100, 2, 2 * s + 1) + 0.5) for s in range(600)]
    value, se = np.array(runs).T
    # the standard deviation of 600 values has a relative error of 0.029: 0.16 is more than five of them
    assert value.std(ddof=1) / se.mean() == pytest.approx(1, abs=0.16)


@pytest.mark.parametrize("chunk", [1, 100, 2**22])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch):
    x, y = normal(60, 30, 0), normal(60, 30, 1) + 1
    whole = energy_distance(x, y), sliced_w2(x, y, 20, seeded(0))
    monkeypatch.setattr(metrics, "_CHUNK", chunk)
    assert (energy_distance(x, y), sliced_w2(x, y, 20, seeded(0))) == pytest.approx(whole, rel=1e-10)


def test_c2st_of_one_law_is_chance():
    # the accuracy's spread is at most 1.5 binomial standard errors, 0.0168: 0.1 is six of them
    assert c2st(normal(1000, 3, 0), normal(1000, 3, 1)) == pytest.approx(0.5, abs=0.1)


def test_c2st_tells_laws_apart():
    x, y = normal(1000, 2, 0), normal(1000, 2, 1)
    assert c2st(x, y + 10) > 0.99
    assert c2st(x, 1.5 * y) > 0.56  # the best accuracy is 0.648
    assert c2st(x[:2], y[:2] + 1) == pytest.approx(0.5)


def test_c2st_sees_small_structure_on_a_large_offset_and_ignores_constants():
    x, y = normal(300, 2, 0), normal(300, 2, 1)
    y[:, 0] += 5
    x[:, 1] = y[:, 1] = 3.0
    assert c2st(x + 1e9, y + 1e9) > 0.95


def test_c2st_reproduces():
    x, y = normal(100, 2, 0), normal(100, 2, 1)
    assert c2st(x, y, seed=3) == c2st(x, y, seed=3)
    assert len({c2st(x, y, seed) for seed in range(4)}) > 1


def test_compare_puts_a_floor_beside_every_value():
    t = toy("eight-gaussians")
    reference, fresh = t.sample(600, seeded(1)), t.sample(700, seeded(2))
    good, bad = t.sample(600, seeded(3)), t.sample(600, seeded(4)) + torch.tensor([4.0, 0.0])
    well, badly = (compare(samples, reference, fresh, seed=0) for samples in (good, bad))
    assert list(well) == list(badly) == ["w2", "energy_distance", "c2st"]
    for name, measure in badly.items():
        assert measure.n == 600
        assert measure.floor == well[name].floor
        assert measure.floor is not None
        assert measure.se is not None
        assert measure.value > measure.floor + 5 * measure.se
        assert abs(well[name].value - measure.floor) < (measure.value - measure.floor) / 3
    assert badly["w2"].floor == pytest.approx(w2(fresh[:600], reference), rel=0.8)
    assert well == compare(good, reference, fresh, seed=0)
    assert well["w2"].value == pytest.approx(w2(good, reference), abs=1e-9)
    assert well["energy_distance"].value == pytest.approx(energy_distance(good, reference), abs=1e-9)


def test_compare_takes_at_most_its_limits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "w2", lambda x, y: float(len(x)))
    monkeypatch.setattr(metrics, "c2st", lambda x, y, seed: 0.75)
    x = normal(6000, 1, 0)
    got = compare(x, x, x, seed=0)
    assert {name: measure.n for name, measure in got.items()} == {
        "w2": 2000,
        "energy_distance": 5000,
        "c2st": 5000,
    }
    assert (got["w2"].value, got["w2"].floor, got["w2"].se) == (2000, 2000, 0)
    assert got["c2st"].se == pytest.approx(math.sqrt(0.75 * 0.25 / 10_000))


def test_compare_in_many_dimensions_slices():
    x, y, z = (normal(60, 17, s) for s in range(3))
    got = compare(x, y, z, seed=5)
    assert list(got) == ["sliced_w2", "energy_distance", "c2st"]
    assert got == compare(x, y, z, seed=5)
    assert got != compare(x, y, z, seed=6)


def test_standard_error_of_w2():
    runs = [
        metrics._transport_measure(w2, normal(160, 2, 2 * s), 1 + normal(160, 2, 2 * s + 1), normal(160, 2, 0))
        for s in range(100)
    ]
    spread = np.std([run.value for run in runs], ddof=1)
    # the ratio's own error is about 0.08: outside [0.55, 1.8] with probability below 1e-9
    assert 0.55 < np.mean([run.se for run in runs if run.se is not None]) / spread < 1.8


@pytest.mark.parametrize("n", [2, 15, 16])
def test_compare_on_few_rows(n: int):
    got = compare(normal(n, 2, 0), normal(40, 2, 1), normal(40, 2, 2), seed=0)
    assert all(m.n == n and math.isfinite(m.value) for m in got.values())
    assert (got["w2"].se is None) == (n < 16)
    line = measures_table(got).splitlines()[1]
    assert line.endswith("; no standard error below 16 rows") == (n < 16)


def test_measure_becomes_json():
    assert dataclasses.asdict(Measure(1.0, None, None, 3)) == {
        "value": 1.0,
        "floor": None,
        "se": None,
        "n": 3,
        "parts": (),
    }


@METRICS
def test_bad_rows(metric):
    x = normal(20, 2, 0)
    with pytest.raises(ValueError, match=r"same width, got 2 and 3 columns"):
        metric(x, normal(20, 3, 0))
    with pytest.raises(ValueError, match=r"y must have at least 2 rows, got 1"):
        metric(x, x[:1])
    with pytest.raises(ValueError, match=r"x must have shape \(n, d\), got \(20,\); flatten"):
        metric(x[:, 0], x[:, 0])
    bad = x.clone()
    bad[3, 1], bad[7, 0] = math.nan, math.inf
    with pytest.raises(ValueError, match=r"x must be finite, but 2 rows are not, the first 3"):
        metric(bad, x)


@pytest.mark.parametrize("metric", [w2, sliced_w2, c2st])
def test_sizes_must_agree(metric):
    with pytest.raises(ValueError, match=r"equally many rows, got 20 and 19"):
        metric(normal(20, 2, 0), normal(19, 2, 0))


def test_bad_projections():
    with pytest.raises(ValueError, match=r"projections must be at least 1, got 0"):
        sliced_w2(normal(5, 2, 0), normal(5, 2, 1), 0)


def test_compare_names_the_bad_argument():
    x = normal(20, 2, 0)
    with pytest.raises(ValueError, match=r"fresh must have at least 2 rows, got 0"):
        compare(x, x, x[:0], seed=0)
    with pytest.raises(ValueError, match=r"same width, got 2 and 2 and 1 columns"):
        compare(x, x, x[:, :1], seed=0)
