"""Posterior means from bytes: bounds that hold whatever the data, and that are narrow for pixels."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pathline import schedules
from pathline.fields import EmpiricalField
from pathline.fields.exact import empirical
from pathline.fields.exact.chunks import slices
from pathline.fields.exact.levels import Levels, keys, products
from pathline.fields.exact.levels import ways as module
from pathline.fields.exact.levels.index import Index
from pathline.fields.exact.levels.keys import BOUND, Keys
from pathline.fields.exact.levels.ways import Ways
from pathline.fields.exact.levels.weights import runs, trimmed
from pathline.paths import AffinePath
from problems import normal, seeded

LINEAR = AffinePath(schedules.linear())

pytestmark = pytest.mark.skipif(not products.exact(), reason="this processor has no exact products of bytes")


def true_mean(data: Tensor, weights: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    offset = torch.cdist(x, alpha * data, compute_mode="donot_use_mm_for_euclid_dist") / sigma
    return (weights.log() - 0.5 * offset.square()).softmax(1) @ data


def pixels(n: int, d: int, seed: int) -> Tensor:
    """Mixtures of ten pictures on 256 levels in [-1, 1], with constant coordinates and rows that repeat."""
    share = torch.rand(n, 10, generator=seeded(seed)).pow(4)
    pictures = torch.rand(10, d, generator=seeded(seed + 1)).pow(2)
    data = (255 * share / share.sum(1, keepdim=True) @ pictures + 20 * normal(n, d, seed=seed + 2)).round()
    data[:, : d // 10] = 0
    data[: n // 20] = data[0].clone()
    return (data.clamp(0, 255) / 127.5 - 1).float()


def clumped(n: int, d: int, seed: int) -> Tensor:
    """Clumps of sizes from 1e-6 to 1 and a point far out."""
    width = 10.0 ** (6 * torch.rand(n, 1, generator=seeded(seed)) - 6)
    data = normal(8, d, seed=seed)[torch.randint(8, (n,), generator=seeded(seed))] + width * normal(n, d, seed=seed + 1)
    data[-1] = 30
    return data.float()


LAWS: dict[str, Callable[[int, int, int], Tensor]] = {
    "pixels": pixels,
    "normal": lambda n, d, seed: normal(n, d, seed=seed).float(),
    "clumped": clumped,
    "two far points": lambda n, d, seed: 100 * (normal(n, 1, seed=seed) > 0).float().expand(n, d).clone(),
    "one point": lambda n, d, seed: torch.full((n, d), 0.3),
}


def ways(data: Tensor, weights: Tensor, alpha: float, sigma: float, rtol: float, rows: int) -> Ways:
    def allowed(x: Tensor, mean: Tensor) -> Tensor:
        return rtol * ((mean - x).norm(dim=1) + x.norm(dim=1))

    index = Index(data, weights.log2())
    bounds = torch.full((rows, index.groups.numel()), -math.inf, dtype=torch.float32)
    return Ways(index, alpha, sigma, allowed, bounds)


@pytest.fixture(autouse=True)
def at_any_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COSTS", module.COSTS._replace(dense=math.inf))
    monkeypatch.setattr(module, "MANY", 1)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(list(LAWS)),
    st.sampled_from([4, 7, 60, 300]),
    st.integers(1, 3000),
    st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.5, 0.8, 0.95, 0.999]),
    st.sampled_from([1e-1, 1e-2, 1e-3]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_errors_are_within_their_bounds(law: str, d: int, n: int, t: float, rtol: float, even: bool, seed: int):
    data = LAWS[law](n, d, seed)
    weights = torch.ones(n, dtype=torch.float64) if even else normal(n, seed=seed).square() + 1e-9
    weights = weights / weights.sum()
    own, other = (data[torch.randint(n, (40,), generator=seeded(seed + k))].double() for k in range(2))
    x = t * own + (1 - t) * normal(40, d, seed=seed + 2)
    x[:5] = t * (own[:5] + other[:5]) / 2
    x[5:8] *= 10
    search = ways(data, weights, t, 1 - t, rtol, len(x))
    true = true_mean(data.double(), weights, x, t, 1 - t)
    far = x.norm(dim=1) + data.double().norm(dim=1).max()
    slack = 1e-13 * far * (1 + far / (1 - t)) ** 2  # of the truth itself
    for way in (
        *(partial(search.few, width=width) for width in search.index.partial_norms),
        search.listed,
        search.whole,
    ):
        found = way(x).answer
        error = (found.mean - true).norm(dim=1)
        assert bool((error <= found.error + slack)[found.error.isfinite()].all())


@pytest.mark.parametrize(("way", "t"), [("whole", 0.05), ("whole", 0.15), ("listed", 0.3), ("few", 0.6), ("few", 0.95)])
def test_bounds_are_narrow_for_pixels(way: str, t: float):
    data = pixels(3001, 300, seed=1)
    x = t * data[:64].double() + (1 - t) * normal(64, 300, seed=2)
    search = ways(data, torch.full((3001,), 1 / 3001, dtype=torch.float64), t, 1 - t, 1e-3, 64)
    found = (search.few(x, 300) if way == "few" else getattr(search, way)(x)).answer
    assert float((found.error <= search.allowed(x, found.mean)).double().mean()) > 0.9


def test_rows_that_are_not_good_enough_are_exact(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(empirical, "FEW", 0)
    monkeypatch.setattr(empirical, "fast", lambda: True)
    data, rtol = pixels(2000, 250, seed=3), 1e-3
    approximate, exact = EmpiricalField(LINEAR, data, rtol=rtol), EmpiricalField(LINEAR, data)
    for t in (0.0, 0.02, 0.1, 0.2, 0.3, 0.4, 0.6, 0.9, 0.999):
        x = (t * data[:300] + (1 - t) * normal(300, 250, seed=4)).float()
        x[:3] = 1e4 * x[:3]
        u, v = exact(x.double(), torch.tensor(t)), approximate(x, torch.tensor(t)).double()
        assert bool(((v - u).norm(dim=1) <= (rtol + 1e-6) * (u.norm(dim=1) + x.double().norm(dim=1))).all())


def test_a_field_of_weighted_and_labelled_points_of_any_shape(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(empirical, "FEW", 0)
    monkeypatch.setattr(empirical, "fast", lambda: True)
    data, weights = pixels(1500, 256, seed=5), normal(1500, seed=6).square()
    weights[::3] = 0
    labels = torch.arange(1500) % 2
    shaped = data.view(1500, 1, 16, 16)
    fields = [EmpiricalField(LINEAR, shaped, weights, labels, rtol=rtol) for rtol in (1e-3, None)]
    x, t = (0.5 * shaped[:200] + 0.5 * normal(200, 1, 16, 16, seed=7)).float(), torch.tensor(0.5)
    for label in (None, labels[:200]):
        v, u = (field(x, t, label=label).flatten(1) for field in fields)
        assert v.shape == u.shape
        assert float(((v - u).norm(dim=1) / (u.norm(dim=1) + x.flatten(1).norm(dim=1))).max()) < 1e-3


def test_a_query_and_a_point_at_zero(monkeypatch: pytest.MonkeyPatch):
    """No error is allowed there."""
    monkeypatch.setattr(empirical, "FEW", 0)
    monkeypatch.setattr(empirical, "fast", lambda: True)
    data = pixels(1003, 250, seed=20)
    data[5] = 0
    x = (0.9 * data[:200] + 0.1 * normal(200, 250, seed=21)).float()
    x[:2] = 0
    u, v = (EmpiricalField(LINEAR, data, rtol=rtol)(x, torch.tensor(0.9)) for rtol in (None, 1e-3))
    assert float(((v - u).norm(dim=1) / (u.norm(dim=1) + x.norm(dim=1)).clamp_min(1e-30)).max()) < 1e-3


def test_sums_of_many_components_do_not_wrap():
    """140,000 products of 127 and -128 are more than 2^31."""
    own = Keys(torch.cat([torch.zeros(140_000, 2), torch.ones(1, 2)]), [2])
    sums = torch.zeros(1, 2, dtype=torch.int64)
    for cols in slices(140_001, keys.COLUMNS):
        own.add_block(sums, cols, torch.full((1, cols.stop - cols.start), 127.0))
    assert sums.tolist() == [[127 * (-128 * 140_000 + 127)] * 2]


def test_means_that_cancel(monkeypatch: pytest.MonkeyPatch):
    """float32 rounds the parts of a sum, not the sum."""
    monkeypatch.setattr(empirical, "FEW", 0)
    monkeypatch.setattr(empirical, "fast", lambda: True)
    side = torch.nn.functional.normalize(normal(1, 256, seed=22), dim=1)
    far = 10 * torch.nn.functional.normalize(normal(8000, 256, seed=23), dim=1)
    data = torch.cat([torch.zeros(1, 256, dtype=torch.float64), side, -side, far]).float()
    x = torch.logspace(-9, -3, 200, dtype=torch.float64)[:, None] * side
    u = EmpiricalField(LINEAR, data)(x, torch.tensor(0.5))
    for at in (x, x.float()):
        v = EmpiricalField(LINEAR, data, rtol=1e-3)(at, torch.tensor(0.5))
        assert float(((v - u).norm(dim=1) / (u.norm(dim=1) + x.norm(dim=1))).max()) < 1e-3


def test_the_largest_weight_is_not_rounded_beyond_a_byte():
    own, sums = Keys(torch.linspace(-1, 1, 4)[:, None].expand(4, 2), [2]), torch.zeros(1, 2, dtype=torch.int64)
    own.weight_dither = torch.full((4,), 1 - 2**-24)
    own.add_block(sums, slice(0, 4), torch.full((1, 4), 127.0))
    assert sums.tolist() == [[127 * int(own.bytes.sum(0)[0])] * 2]


@pytest.mark.parametrize("width", [60_000, 200_000])
def test_products_of_many_coordinates_are_not_trusted_to_32_bits(width: int):
    own = Keys(torch.cat([torch.zeros(1, width), torch.ones(1, width)]), [width])
    ones = torch.ones(1, width)
    assert own.fits(own.query(ones, 1)) == (width < 132_000)
    assert not own.fits(own.query(ones, 2))


def test_another_default_dtype(monkeypatch: pytest.MonkeyPatch):
    data = pixels(300, 250, seed=24)
    weights = torch.full((300,), 1 / 300, dtype=torch.float64)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        search = ways(data, weights, 0.3, 0.7, 1e-2, 20)
        x = 0.3 * data[:20].double() + 0.7 * normal(20, 250, seed=25)
        assert all(bool(way(x).answer.error.isfinite().all()) for way in (search.listed, search.whole))
    finally:
        torch.set_default_dtype(before)


def test_inference_mode_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(empirical, "FEW", 0)
    monkeypatch.setattr(empirical, "fast", lambda: True)
    field = EmpiricalField(LINEAR, pixels(1000, 250, seed=28), rtol=1e-3)
    x, t = normal(130, 250, seed=29).float(), torch.tensor(0.9)
    with torch.inference_mode():
        found = field(x, t)
    assert torch.equal(field(x, t), found)


def test_tracked_weights_are_left_to_the_exact_field(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(empirical, "FEW", 0)
    monkeypatch.setattr(empirical, "fast", lambda: True)
    weights = torch.ones(1000, requires_grad=True)
    field = EmpiricalField(LINEAR, pixels(1000, 250, seed=26), weights, rtol=1e-3)
    field(normal(130, 250, seed=27), torch.tensor(0.5)).sum().backward()
    assert weights.grad is not None


def test_where_bytes_are_no_faster_nothing_is_promised():
    data = normal(2000, 64, seed=8).float()
    x = normal(16, 64, seed=9)
    found = Levels(data, torch.full((2000,), 1 / 2000)).posterior_mean(
        x, 0.01, 0.99, lambda x, mean: x.new_zeros(len(x))
    )
    assert bool((found.error == math.inf).all())


@pytest.mark.parametrize("width", [1, 2, 7])
def test_products_of_few_coordinates(width: int):
    left, others = (torch.randint(-127, 128, (5, width), generator=seeded(k), dtype=torch.int8) for k in range(2))
    assert torch.equal(products.products(left, others.T).double(), left.double() @ others.double().T)


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("n", [64, 5001])
def test_logits_are_products_up_to_the_rest_of_the_query(terms: int, n: int):
    data, v = pixels(n, 120, seed=10), normal(30, 120, seed=11)
    own = Keys(data, [120])
    query, bias = own.query(v[:, own.order].float(), terms), normal(n, seed=12).float()
    found = torch.cat([logits.clone() for _, logits in own.logits(query, bias)], 1).double()
    level = data.double() - own.origin
    error = (found - v @ level.T - bias).abs()
    assert bool((error <= query.rest[:, None] * level.norm(dim=1) + 1e-4).all())
    assert float(query.rest.max()) < (0.2 if terms == 1 else 2e-3)


def test_random_roundings_are_right_on_average_and_within_their_bound():
    """Twelve deviations of a mean of 80,000: a chance below 1e-30; the bound's own chance is 1e-12 each."""
    data, v, direction = pixels(300, 200, seed=13), normal(1, 200, seed=14).float(), normal(200, 50, seed=15)
    own, errors, generator = Keys(data, [200]), [], seeded(16)
    for _ in range(400):
        own.query_dither = torch.rand(200, generator=generator)
        query = own.query(v, 2)
        value = query.scale.double() * (keys.RATIO * query.terms[0].double() + query.terms[1].double())
        errors.append((value - v.double()) / query.scale.double())
    found = torch.cat(errors)
    assert float(found.abs().max()) <= 1.01
    assert abs(float(found.mean())) < 12 / math.sqrt(4 * 400 * 200)
    assert float((found @ direction).norm(dim=1).max()) <= BOUND * float(direction.norm())


def test_sums_by_bytes():
    data = pixels(5000, 90, seed=16)
    own = Keys(data, [90])
    level = ((data.double() - own.origin) / own.step).round()
    weights = products.PEAK * torch.rand(20, 5000, generator=seeded(17))
    sums, drift = torch.zeros(20, 90, dtype=torch.int64), torch.zeros(20)
    for cols in slices(5000, keys.COLUMNS):
        drift += own.add_block(sums, cols, weights[:, cols].clone())
    rounded = (weights + own.weight_dither).floor().double()
    assert torch.equal(sums.double(), rounded @ level[:, own.order])
    assert torch.allclose(drift.double(), (rounded - weights.double()).sum(1), atol=2)
    row, component = torch.arange(20).repeat_interleave(7), torch.randint(5000, (140,), generator=seeded(18))
    found, listed = torch.zeros(20, 90), torch.rand(140, generator=seeded(19))
    own.add_listed(found, listed, component, runs(row, 20)[1])
    wanted = torch.zeros(20, 90, dtype=torch.float64).index_add_(0, row, listed[:, None] * level[component])
    assert torch.allclose(found.double(), wanted, atol=1e-3)


def test_trimmed_lists_lose_their_least():
    row, values = torch.tensor([0, 0, 0, 2, 2]), torch.tensor([0.2, 5.0, 0.1, 0.4, math.inf])
    keep, left = trimmed(row, values, torch.tensor([0.31, 0.3, 0.3]))
    assert keep.tolist() == [False, True, False, True, True]
    assert torch.allclose(left, torch.tensor([0.3, 0.0, 0.0]))


def test_products_that_saturate_are_not_trusted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(products, "products", lambda left, others, out=None: torch.zeros(64, 64, dtype=torch.int32))
    assert not products.exact.__wrapped__()


def test_products_that_are_not_there(monkeypatch: pytest.MonkeyPatch):
    def absent(*_: object) -> Tensor:
        raise RuntimeError("not implemented")

    monkeypatch.setattr(products, "products", absent)
    assert not products.exact.__wrapped__()
