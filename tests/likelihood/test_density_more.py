"""Samples with their density, probes, batched traces, importance weights, bits per dimension."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pathline.fields import EmpiricalField, GaussianMixtureField, ParametrizedField, reschedule
from pathline.fields.guidance import energy_guided
from pathline.grids import uniform
from pathline.likelihood import divergence, importance, log_prob, sample_with_log_prob, trace
from pathline.metrics import bits_per_dim
from pathline.nets import MLP
from pathline.paths import AffinePath
from pathline.schedules import cosine, linear
from pathline.solvers import heun
from problems import affine_flow, annulus, close, every_shape, normal, number, seeded

PATH = AffinePath(linear(0.2))


def net(d: int, seed: int = 0) -> MLP:
    torch.manual_seed(seed)
    made = MLP(d, width=16).double()
    torch.nn.init.normal_(made.leave.weight, std=0.3)
    return made


@every_shape
@pytest.mark.parametrize("end", [1.0, 0.6])
def test_samples_come_with_their_density(shape: tuple[int, ...], end: float):
    flow, x0 = affine_flow(shape), normal(4, *shape, seed=2)
    found = sample_with_log_prob(flow, x0, end=end)
    close(found.x1, flow.flow(x0, 0.0, end), 1e-5)
    close(found.value, flow.log_prob(found.x1, end), 1e-5)
    assert found.nfe == 4 * (16 + 8)
    assert found.error is not None
    assert float(found.error.max()) < 1e-4


def test_samples_of_an_exact_field_have_its_density():
    field = EmpiricalField(PATH, annulus(8))
    found = sample_with_log_prob(field, normal(50, 2, seed=0), grid=uniform(48))
    close(found.value, field.log_prob(found.x1, number(1.0)), 1e-5)


def test_backward_from_the_samples_gives_the_same_density():
    field, x0 = net(3), normal(6, 3, seed=1)
    with torch.no_grad():
        there = sample_with_log_prob(field, x0, grid=uniform(32))
        back = log_prob(field, there.x1, grid=uniform(32))
    close(back.value, there.value, 1e-5)
    close(back.x0, x0, 1e-5)


def test_conditions_and_probes_reach_samples():
    field = EmpiricalField(PATH, annulus(8), labels=torch.arange(8) % 2)
    label, x0 = torch.tensor([0, 1, 1]), normal(3, 2, seed=0)
    found = sample_with_log_prob(field, x0, grid=uniform(48), cond={"label": label})
    close(found.value, field.log_prob(found.x1, number(1.0), label=label), 1e-5)
    with torch.no_grad():
        noisy = sample_with_log_prob(net(3), normal(3, 3, seed=0), probes=4, law="gaussian", generator=seeded(0))
    assert noisy.se is not None
    assert bool((noisy.se > 0).all())


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_probes_are_unbiased_and_their_standard_error_is_theirs(law: trace.Probe):
    # 2000 rows, errors independent between rows with mean zero: |z| > 6 has probability 2e-9
    field, x1 = net(4), normal(2000, 4, seed=1)
    with torch.no_grad():
        exact = log_prob(field, x1, grid=uniform(3), solver=heun, with_error=False).value
        found = log_prob(
            field, x1, grid=uniform(3), solver=heun, with_error=False, probes=4, law=law, generator=seeded(0)
        )
    difference = found.value - exact
    assert found.se is not None
    assert abs(float(difference.mean() / difference.std())) * 2000**0.5 < 6
    assert float(found.se.square().mean() / difference.square().mean()) == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize(("law", "draw"), [("rademacher", "randint"), ("gaussian", "randn")])
def test_probes_are_drawn_where_the_generator_lives(law: trace.Probe, draw: str, monkeypatch: pytest.MonkeyPatch):
    real, asked = getattr(torch, draw), []

    def recorded(*args: Any, device: Any, **options: Any) -> Tensor:
        asked.append(torch.device(device).type)
        return real(*args, device=device, **options)

    monkeypatch.setattr(torch, draw, recorded)
    there = torch.empty(3, 2, device="meta")  # stands for another device
    assert trace.draw_probes(there, 2, law, seeded(0)).device.type == "meta"
    assert asked == ["cpu"]


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("together", [1, 7, 10**6])
@pytest.mark.parametrize("d", [1, 3, 8])
def test_however_backward_passes_are_grouped(d: int, together: int, rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trace, "TOGETHER", together)
    field, x, t = net(d), normal(rows, d, seed=1), number(0.3).expand(rows)
    found = divergence(field, x, t)[1]
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: field(row[None], t[:1])[0]))(x)
    close(found, jacobian.diagonal(dim1=1, dim2=2).sum(1), 1e-12)


def test_operations_that_cannot_be_batched_go_one_by_one():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, *grads: Tensor) -> Tensor:
            assert math.isfinite(grads[0].sum().item())
            return 3 * ctx.saved_tensors[0] ** 2 * grads[0]

    x = normal(2, 3, seed=0)
    close(divergence(lambda x, t: Cube.apply(x), x, number(0.5))[1], 3 * x.square().sum(1), 1e-14)


def test_a_trace_of_very_many_dimensions_says_what_it_costs():
    x1 = torch.zeros(1, 100_000)
    with pytest.raises(ValueError, match="costs 100000 backward passes a call here; probes=1"):
        log_prob(lambda x, t: -x, x1)
    found = log_prob(lambda x, t: -x, x1, probes=1, grid=uniform(2), with_error=False)
    assert bool(found.value.isfinite().all())


def test_refuses():
    predicts_data = ParametrizedField(torch.nn.Identity(), AffinePath(linear()), "data")
    with pytest.raises(ValueError, match="end must not be 1, where this field has no value"):
        sample_with_log_prob(predicts_data, torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"grid must run from 0 to end = 0\.5"):
        sample_with_log_prob(lambda x, t: x, torch.zeros(1, 2), end=0.5, grid=uniform(4))
    with pytest.raises(ValueError, match="law must be rademacher or gaussian, got 'normal'"):
        log_prob(lambda x, t: x, torch.zeros(1, 2), probes=1, law="normal")  # pyright: ignore[reportArgumentType]


def normal_log_prob(x: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return -0.5 * ((x - mean) / std).square() - math.log(std) - 0.5 * math.log(2 * math.pi)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 1.0), (0.0, 0.7), (0.3, 0.8)])
def test_effective_size_of_gaussians(mean: float, std: float):
    # E[w^2] = E_q[(p / q)^2] in closed form; its estimate from 200,000 samples has a spread below 1% (w^2 has a finite
    # variance): 6% is beyond six of them
    x = normal(200_000, seed=0)
    found = importance(normal_log_prob(x, mean, std), normal_log_prob(x))
    precision = 2 / std**2 - 1
    squares = math.exp(mean**2 / std**2 * (2 / (std**2 * precision) - 1)) / (std**2 * precision**0.5)
    assert found.effective_size / len(x) == pytest.approx(1 / squares, rel=0.06)
    assert found.log_normaliser == pytest.approx(0.0, abs=0.02)
    assert float((found.weights * x).sum()) == pytest.approx(mean, abs=0.03)
    assert float(found.weights.sum()) == pytest.approx(1.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-500, 500), min_size=1, max_size=20), st.floats(-500, 500))
def test_weights_do_not_depend_on_a_constant(logs: list[float], constant: float):
    p = torch.tensor(logs, dtype=torch.float64)
    first, second = importance(p, torch.zeros_like(p)), importance(p + constant, torch.zeros_like(p))
    torch.testing.assert_close(first.weights, second.weights, rtol=1e-9, atol=1e-12)
    assert 1 - 1e-9 <= first.effective_size <= len(logs) + 1e-9
    assert second.log_normaliser - first.log_normaliser == pytest.approx(constant, abs=1e-9)


def test_samples_outside_the_target_weigh_nothing():
    found = importance(torch.tensor([0.0, -math.inf, 0.0]), torch.zeros(3))
    assert found.weights.tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        (torch.zeros(2), torch.zeros(3), "one a sample, got shapes"),
        (torch.zeros(2, 1), torch.zeros(2, 1), "one a sample, got shapes"),
        (torch.tensor([math.nan]), torch.zeros(1), "log_target must not be NaN"),
        (torch.zeros(1), torch.tensor([-math.inf]), "log_proposal must be finite, but 1 numbers"),
        (torch.tensor([-math.inf]), torch.zeros(1), "the proposal misses the target"),
    ],
)
def test_importance_refuses(p: Tensor, q: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        importance(p, q)


def cells(std: float, spacing: float) -> tuple[Tensor, Tensor]:
    """Lattice points and the masks of their cells under N(0, std^2)."""
    k = spacing * torch.arange(-400, 400, dtype=torch.float64)
    cdf = torch.special.ndtr(torch.stack([k, k + spacing]) / std)
    return k, cdf[1] - cdf[0]


@pytest.mark.parametrize("spacing", [1.0, 0.25])
def test_bits_of_a_discretised_gaussian_with_its_own_density(spacing: float):
    # the density that is flat on every cell makes the bound tight: bits = -log2 P(cell), whatever the noise
    k, mass = cells(3.0, spacing)
    rows = torch.multinomial(mass, 4000, replacement=True, generator=seeded(0))
    x = k[rows].reshape(-1, 2, 1)

    def flat(y: Tensor) -> Tensor:
        at = (y.reshape(len(y), -1) / spacing).floor().long() + 400
        return (mass[at] / spacing).log().sum(1)

    expected = -mass[rows].log2().mean()
    found = bits_per_dim(flat, x, spacing, generator=seeded(1))
    assert found.value == pytest.approx(float(expected), abs=1e-12)
    assert found.n == 2000
    entropy = -float((mass * mass.clamp_min(1e-300).log2()).sum())
    assert found.se is not None
    assert abs(found.value - entropy) < 6 * found.se  # 2e-9


def test_bits_of_a_discretised_gaussian_with_the_gaussian_density():
    # by uniform dequantisation: the cross entropy of the spread-out law, by quadrature within each cell
    k, mass = cells(1.5, 1.0)
    rows = torch.multinomial(mass, 200_000, replacement=True, generator=seeded(0))
    u = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    inside = normal_log_prob(k[:, None] + u, 0.0, 1.5).mean(1)
    expected = -float((mass * inside).sum()) / math.log(2)
    entropy = -float((mass * mass.clamp_min(1e-300).log2()).sum())
    found = bits_per_dim(lambda y: normal_log_prob(y[:, 0], 0.0, 1.5), k[rows][:, None], generator=seeded(1))
    assert found.se is not None
    assert abs(found.value - expected) < 6 * found.se  # 2e-9
    assert found.value > entropy + 3 * found.se


def test_bits_of_a_flow_and_whole_numbers():
    field = GaussianMixtureField(AffinePath(linear()), torch.zeros(1, 2), torch.tensor([4.0]))
    x = (2 * normal(500, 2, seed=0)).floor()
    found = bits_per_dim(lambda y: log_prob(field, y.double(), grid=uniform(24)).value, x.long(), draws=2)
    direct = bits_per_dim(lambda y: field.log_prob(y.double(), number(1.0)), x, draws=2)
    assert found.value == pytest.approx(direct.value, abs=6 * math.hypot(found.se or 0, direct.se or 0))


def test_bits_refuse():
    def density(y: Tensor) -> Tensor:
        return y.sum(1)

    for call, message in [
        (lambda: bits_per_dim(density, torch.zeros(0, 2)), "at least one row"),
        (lambda: bits_per_dim(density, torch.zeros(2, 2), 0.0), "spacing must be positive"),
        (lambda: bits_per_dim(density, torch.zeros(2, 2), draws=0), "draws be at least 1"),
        (lambda: bits_per_dim(lambda y: y, torch.zeros(2, 2)), "one number a row"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def conditional(x: Tensor, t: Tensor, /, *, y: Tensor) -> Tensor:
    return torch.tanh(x * y[:, None]) * t[:, None]


INFERRED = {
    "field": (lambda x, t: -x * t[:, None], {}),
    "network": (net(2), {}),
    "conditional": (conditional, {}),
    "own divergence": (EmpiricalField(PATH, annulus(8)), {}),
    "rescheduled": (reschedule(net(2), PATH, cosine()), {"begin": 0.7}),
    "energy": (energy_guided(net(2), PATH, lambda x, t: (x * t[:, None]).square().sum(1)), {}),
    "along": (net(2), {"path": PATH}),
    "checkpoint": (net(2), {"checkpoint": True}),
}


@pytest.mark.parametrize("probes", [None, 2])
@pytest.mark.parametrize(("field", "options"), INFERRED.values(), ids=INFERRED)
def test_inference_mode_changes_nothing(field, options: dict, probes: int | None):
    def found() -> list[Tensor]:
        cond = {"y": normal(3, seed=1)} if field is conditional else {}
        forward = {"end" if name == "begin" else name: value for name, value in options.items()}
        x, shared = normal(3, 2, seed=0), {"cond": cond, "probes": probes, "grid": None}
        if options.get("begin"):
            shared["grid"] = uniform(4, 0.0, options["begin"])
        there = sample_with_log_prob(field, x, generator=seeded(0), **shared, **forward)
        back = log_prob(field, x, generator=seeded(0), **shared, **options)
        div = divergence(field, x, torch.full((3,), 0.3).double(), **cond)[1]
        return [there.x1, there.value, there.error, back.value, back.x0, back.error, div]  # pyright: ignore

    with torch.no_grad():
        expected = found()
    with torch.inference_mode():
        inferred = found()
    for one, other in zip(inferred, expected, strict=True):
        close(one, other, 1e-14)


def test_rows_made_in_inference_mode_can_have_gradients_elsewhere():
    with torch.inference_mode():
        x, y = normal(3, 2, seed=0), normal(3, seed=1)
    weight = number(1.3).requires_grad_(True)
    value = log_prob(lambda x, t, *, y: weight * conditional(x, t, y=y), x, cond={"y": y}).value
    assert torch.autograd.grad(value.sum(), weight)[0].isfinite()
