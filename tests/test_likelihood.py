import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pathline.fields import EmpiricalField, GaussianMixtureField, ParametrizedField
from pathline.grids import uniform
from pathline.likelihood import divergence, log_prob, sample_with_log_prob
from pathline.model import Model
from pathline.paths import AffinePath
from pathline.solvers import NAMED, Dopri5, Tableau, euler, euler_maruyama, heun, midpoint, rk4
from pathline.sources import StandardNormal
from pathline.typing import Batch
from problems import (
    SCHEDULES,
    SEED_GAUSSIAN,
    Answers,
    affine_flow,
    annulus,
    close,
    curved_path,
    every_dtype,
    every_shape,
    logistic,
    logistic_flow,
    normal,
    number,
    seeded,
)

EXACT = {
    "points": EmpiricalField(AffinePath(SCHEDULES["linear-0.2"]), annulus(8)),
    "sharp points": EmpiricalField(AffinePath(SCHEDULES["linear"]), annulus(8)),
    "curved": EmpiricalField(curved_path(), annulus(8)),
    "mixture": GaussianMixtureField(
        AffinePath(SCHEDULES["cosine"]), normal(3, 2, seed=0), torch.tensor([0.5, 0.7, 0.9])
    ),
}


class Net(nn.Module):
    """A smooth random field on rows of any shape."""

    def __init__(self, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        d = math.prod(shape)
        self.a = nn.Parameter(0.7 * normal(d, d, seed=seed, dtype=dtype))
        self.b = nn.Parameter(0.7 * normal(d, d, seed=seed + 1, dtype=dtype))
        self.count = 0

    def forward(self, x: Tensor, t: Tensor, /) -> Tensor:
        self.count += 1
        flat = x.reshape(len(x), -1)
        return (torch.tanh(flat @ self.a + t[:, None].to(x.dtype)) @ self.b).reshape(x.shape)


@pytest.mark.parametrize("begin", [1.0, 0.6])
@every_dtype
@every_shape
def test_change_of_variables(shape: tuple[int, ...], dtype: torch.dtype, begin: float):
    flow, x1 = affine_flow(shape), normal(4, *shape, seed=2, dtype=dtype)
    found = log_prob(flow, x1, begin=begin)
    assert found.error is not None
    assert found.se is None
    for value in (found.value, found.error):
        assert value.shape == (4,)
        assert value.dtype == dtype
    close(found.value, flow.log_prob(x1, begin), 1e-5)
    close(found.x0, flow.flow(x1, begin, 0.0), 1e-5)


def test_the_seed_gaussian():
    x1 = normal(5, 2, seed=0)
    close(log_prob(SEED_GAUSSIAN, x1).value, SEED_GAUSSIAN.log_prob(x1, number(1.0).expand(5)), 1e-7)


@pytest.mark.parametrize("begin", [1.0, 0.7])
@pytest.mark.parametrize("name", EXACT)
def test_the_flow_of_an_exact_field_has_its_density(name: str, begin: float):
    field, begin = EXACT[name], min(begin, 0.9) if name == "sharp points" else begin
    x1 = field.path.sample(Batch(annulus(8)), number(begin), seeded(0)).x_t
    found = log_prob(field, x1, grid=uniform(40, 0.0, begin), begin=begin, with_error=False).value
    close(found, field.log_prob(x1, number(begin)), 1e-3)


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_field_brings_its_own_divergence(name: str):
    field, x1 = EXACT[name], annulus(6, seed=1)
    own = log_prob(field, x1, begin=0.8, with_error=False)
    traced = log_prob(lambda x, t: field(x, t), x1, begin=0.8, with_error=False)
    close(own.value, traced.value, 1e-10)
    close(own.x0, traced.x0, 1e-10)
    assert own.nfe == traced.nfe


def test_another_source():
    class Wide:
        def sample(self, shape, generator=None, dtype=None, device=None) -> Tensor:
            return 3 * torch.randn(shape, generator=generator, dtype=dtype, device=device)

        def log_prob(self, x: Tensor) -> Tensor:
            return StandardNormal().log_prob(x / 3) - x[0].numel() * math.log(3)

    flow, x1 = affine_flow((2,)), normal(4, 2, seed=2)
    expected = Wide().log_prob(flow.flow(x1, 1.0, 0.0)) - flow.matrix.trace()
    close(log_prob(flow, x1, source=Wide()).value, expected, 1e-5)


@pytest.mark.parametrize("probes", [1, 3])
@every_shape
def test_hutchinson_is_unbiased(shape: tuple[int, ...], probes: int):
    # each row has its own probes and the trajectory does not depend on them, so the errors are independent with mean
    # zero: |z| > 6 has probability 2e-9; in one dimension a sign squared is one and there is no error at all
    net, x1 = Net(*shape), normal(1000, *shape, seed=2)
    with torch.no_grad():
        exact = log_prob(net, x1, grid=uniform(4), with_error=False)
        found = log_prob(net, x1, grid=uniform(4), with_error=False, probes=probes, generator=seeded(0))
    difference = found.value - exact.value
    close(found.x0, exact.x0, 1e-13)
    if shape == ():
        close(found.value, exact.value, 1e-13)
        return
    assert abs(difference.mean() / (difference.std() / 1000**0.5)) < 6
    assert difference.std() > 0.05
    if probes > 1:
        # se^2 estimates each row's variance without bias; the ratio of the means of 1000 rows is within 30% of one
        assert found.se is not None
        assert float(found.se.square().mean() / difference.square().mean()) == pytest.approx(1.0, abs=0.3)
    else:
        assert found.se is None


@every_dtype
@every_shape
def test_probes_come_from_the_generator_and_keep_the_dtype(shape: tuple[int, ...], dtype: torch.dtype):
    net, x1 = Net(*shape, dtype=dtype), normal(3, *shape, seed=2, dtype=dtype)
    first, again, other = (log_prob(net, x1, probes=2, generator=seeded(seed)).value for seed in (0, 0, 1))
    assert first.dtype == dtype
    assert torch.equal(first, again)
    assert shape == () or not torch.equal(first, other)


@pytest.mark.parametrize("solver", [euler, midpoint, heun, rk4], ids=lambda s: s.name)
def test_error_says_how_large_the_error_is(solver: Tableau):
    x1 = torch.linspace(0.55, 0.97, 8, dtype=torch.float64).requires_grad_(True)
    x0 = logistic_flow(x1, 1.0, 0.0)
    (slope,) = torch.autograd.grad(x0.sum(), x1)
    exact, x1 = (StandardNormal().log_prob(x0) + slope.log()).detach(), x1.detach()
    found = log_prob(logistic, x1, grid=uniform(32), solver=solver)
    assert found.error is not None
    true = float((found.value - exact).abs().mean())
    assert 0.1 * true < float(found.error.mean()) < 10 * true
    again = log_prob(logistic, x1.requires_grad_(True), grid=uniform(32), solver=solver)
    assert again.error is not None
    close(again.error, found.error, 1e-14)
    assert log_prob(logistic, x1, grid=uniform(32), solver=solver, with_error=False).error is None


@pytest.mark.parametrize("solver", [Dopri5(1e-3, 1e-3), euler, heun, rk4], ids=lambda s: s.name)
def test_error_on_one_step_and_of_adaptive_steps(solver: Tableau | Dopri5):
    flow, x1 = affine_flow((2,)), normal(20, 2, seed=2)
    found = log_prob(flow, x1, grid=uniform(1), solver=solver)
    assert found.error is not None
    true = float((found.value - flow.log_prob(x1)).abs().mean())
    assert 0.3 * true < float(found.error.mean()) < 5 * true


def test_error_where_the_start_is_left_out():
    exact = GaussianMixtureField(AffinePath(SCHEDULES["linear-0.2"]), torch.zeros(1, 2), torch.tensor([0.25]))
    count = 0

    class Noise(Answers):
        def forward(self, x: Tensor, t: Tensor, /) -> Tensor:
            nonlocal count
            count += 1
            return super().forward(x, t)

    field, x1 = ParametrizedField(Noise(exact, "noise"), exact.path, "noise"), normal(20, 2, seed=2) / 2
    there = sample_with_log_prob(field, normal(20, 2, seed=3), grid=uniform(64))
    assert there.nfe == count
    count, back = 0, log_prob(field, x1, grid=uniform(64))
    for found, x in ((there, there.x1), (back, x1)):
        true = (found.value - exact.log_prob(x, number(1.0))).abs()
        assert found.error is not None
        assert float(true.max()) > 1e-3
        close(found.error, true, 1e-5)


@pytest.mark.parametrize(("n", "coarse"), [(1, 2), (2, 1), (7, 4), (16, 8)])
@pytest.mark.parametrize("solver", NAMED.values(), ids=NAMED)
def test_nfe_counts_every_call(solver, n: int, coarse: int):
    net = Net(2)
    found = log_prob(net, normal(3, 2, seed=0), grid=uniform(n), solver=solver)
    assert found.nfe == net.count
    if solver.calls is not None:
        assert found.nfe == solver.calls * (n + coarse)
    assert found.error is not None


@pytest.mark.parametrize("probes", [None, 2])
@every_shape
def test_gradients_reach_rows_and_parameters(shape: tuple[int, ...], probes: int | None):
    net = Net(*shape)

    def value(x1: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(("a", "b"), parameters, strict=True))

        def field(x: Tensor, t: Tensor, /) -> Tensor:
            return torch.func.functional_call(net, named, (x, t))

        return log_prob(field, x1, grid=uniform(2), with_error=False, probes=probes, generator=seeded(0)).value

    x1 = normal(2, *shape, seed=2).requires_grad_(True)
    assert torch.autograd.gradcheck(value, (x1, *net.parameters()), eps=1e-5, atol=1e-6, fast_mode=True)


def test_gradients_reach_rows_through_an_exact_field():
    def value(x1: Tensor) -> Tensor:
        return log_prob(EXACT["points"], x1, grid=uniform(3), with_error=False).value

    assert torch.autograd.gradcheck(value, (annulus(3, seed=1).requires_grad_(True),), eps=1e-6, atol=1e-6)


def test_nothing_is_kept_without_gradients():
    with torch.no_grad():
        found = log_prob(Net(2), normal(3, 2, seed=0), probes=2)
    assert not found.value.requires_grad
    assert not found.x0.requires_grad


def test_densities_integrate_to_one():
    side = torch.linspace(-7, 7, 90, dtype=torch.float64)
    x1 = torch.cartesian_prod(side, side)
    with torch.no_grad():
        values = log_prob(Net(2, seed=4), x1, grid=uniform(24), with_error=False).value
    assert float(values.exp().sum() * (side[1] - side[0]) ** 2) == pytest.approx(1.0, abs=1e-4)


def test_adaptive_solvers_serve_too():
    flow, x1 = affine_flow((2,)), normal(4, 2, seed=2)
    found = log_prob(flow, x1, grid=uniform(1), solver=Dopri5(1e-8, 1e-8))
    close(found.value, flow.log_prob(x1), 1e-6)
    assert found.error is not None
    assert found.nfe > log_prob(flow, x1, grid=uniform(1), solver=Dopri5(1e-8, 1e-8), with_error=False).nfe


def test_conditions_reach_the_field():
    labelled = EmpiricalField(EXACT["points"].path, annulus(8), labels=torch.arange(8) % 2)
    x1, label = annulus(8)[:4] + 0.1, torch.tensor([0, 1, 0, 1])
    found = log_prob(labelled, x1, grid=uniform(64), cond={"label": label}).value
    close(found, labelled.log_prob(x1, number(1.0), label=label), 1e-4)
    with pytest.raises(TypeError, match="unexpected keyword"):
        log_prob(labelled, x1, cond={"lable": label})


X1 = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: log_prob(EXACT["sharp points"], X1),
            "begin must not be 1, where this field has no value: name a time",
        ),
        (lambda: log_prob(logistic, X1, probes=0), "probes must be at least 1, got 0"),
        (lambda: log_prob(logistic, X1, begin=0.5, grid=uniform(4)), "grid must run from 0 to begin = 0.5, got 0 to 1"),
        (lambda: log_prob(logistic, X1, grid=uniform(4, 0.1, 1.0)), "grid must run from 0 to begin = 1, got 0.1 to 1"),
        (lambda: log_prob(logistic, X1, grid=uniform(4, 1.0, 0.0)), "grid must run from 0 to begin = 1, got 1 to 0"),
        (lambda: log_prob(logistic, X1 * math.nan), r"x1 must be a batch of finite states, got shape \(3, 2\)"),
        (lambda: log_prob(logistic, X1[:0]), r"must be a batch of finite states, got shape \(0, "),
        (lambda: log_prob(lambda x, t: x[:, :1], X1), r"field must return the shape and dtype of x, \(3, 2\)"),
        (lambda: log_prob(lambda x, t: x.double(), X1), r"of x, \(3, 2\) torch.float32, got \(3, 2\) torch.float64"),
        (lambda: log_prob(lambda x, t: (x,), X1), r"of x, \(3, 2\) torch.float32, got tuple"),
        (lambda: log_prob(logistic, [0.0]), "x1 must be a tensor of floating-point numbers, got list"),  # pyright: ignore
        (lambda: log_prob(logistic, X1, probes=1.5), "probes must be a whole number, got 1.5"),  # pyright: ignore
        (
            lambda: log_prob(logistic, X1, solver=euler_maruyama(AffinePath(SCHEDULES["linear"]), lambda t: 1.0)),
            "solver must follow the flow, which euler_maruyama does not: take an ODE solver",
        ),
    ],
)
def test_refuses(call: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        call()


@every_shape
def test_divergence_is_the_trace_of_the_jacobian(shape: tuple[int, ...]):
    net, x, t = Net(*shape), normal(4, *shape, seed=2), torch.linspace(0, 1, 4, dtype=torch.float64)
    velocity, div = divergence(net, x, t)
    d = math.prod(shape)
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(lambda y: net(y, t[i : i + 1]), x[i : i + 1])  # noqa: B023
        close(div[i], jacobian.reshape(d, d).trace(), 1e-13)  # pyright: ignore[reportAttributeAccessIssue]
    close(velocity, net(x, t), 0.0)


def test_divergence_is_the_same_without_gradients_and_for_rows_that_want_them():
    net, x, t = Net(2), normal(4, 3, seed=2), torch.full((4,), 0.5)
    expected = divergence(net, x[:, :2], t)[1].detach()
    for rows in (x, x.clone().requires_grad_(True)):
        with torch.no_grad():
            close(divergence(net, rows[:, :2], t)[1], expected, 1e-15)


def test_divergence_of_fields_that_do_not_move_with_x():
    x, t = normal(4, 2, 3, seed=0), torch.zeros(4)
    for field in (lambda x, t: torch.ones_like(x), lambda x, t: torch.ones_like(x).requires_grad_(True) * 2):
        assert divergence(field, x, t)[1].tolist() == [0.0] * 4


class Linear(nn.Module):
    """u = A x, whose rows end at exp(A) x0."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, x: Tensor, t: Tensor, /) -> Tensor:
        return x @ self.matrix.T


def test_a_model_tells_the_errors_of_its_log_density():
    matrix, x = torch.tensor([[-1.0, 0.8], [0.3, 0.5]]).double(), normal(2000, 2, seed=1)
    model = Model(Linear(matrix), AffinePath(SCHEDULES["linear"]), (2,))
    x0 = torch.linalg.solve(torch.linalg.matrix_exp(matrix), x.T).T
    truth = StandardNormal().log_prob(x0) - matrix.trace()
    found = model.log_prob_with_error(x)
    assert found.error is not None
    assert found.se is None
    assert found.nfe == 96
    assert float(found.error.min()) > 0
    close(found.x0, x0, 1e-5)
    assert 0.3 < float((found.value - truth).norm() / found.error.norm()) < 3
    assert torch.equal(model.log_prob(x), found.value)
    for draws in (1, 3):
        rough = model.log_prob_with_error(x, probes=8, generator=seeded(1), draws=draws)
        assert rough.se is not None
        assert rough.nfe == 96 * draws
        assert 0.8 < float((rough.value - truth).square().mean() / rough.se.square().mean()) < 1.25
