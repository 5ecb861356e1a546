import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from pathline import objectives, schedules
from pathline.fields import EmpiricalField
from pathline.objectives import Drawn, FlowMatching
from pathline.paths import AffinePath, BridgePath, GaussianPath, Prediction
from pathline.schedules import Schedule
from pathline.sources import StandardNormal
from pathline.typing import Batch
from problems import (
    SCHEDULES,
    annulus,
    close,
    columns,
    curved_path,
    every_dtype,
    every_prediction,
    every_schedule,
    every_shape,
    every_state,
    normal,
    number,
    rounding,
    seeded,
)

DRAWS = 40_000
Z = 6.5  # P(|N(0, 1)| > 6.5) = 8e-11; every test below makes fewer than 1000 comparisons with it


class Net(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 5, dtype=torch.float64), nn.Linear(5, 2, dtype=torch.float64)
        for i, parameter in enumerate(self.parameters()):
            parameter.data = normal(*parameter.shape, seed=10 * seed + i)

    def forward(self, x: Tensor, t: Tensor, /) -> Tensor:
        return self.b(torch.tanh(self.a(torch.cat([x, t[:, None]], 1))))


def z_scores(values: Tensor) -> Tensor:
    """Of the mean of every column being zero."""
    return values.mean(0) / (values.std(0) / len(values) ** 0.5)


def conditional_and_marginal(
    path: AffinePath | GaussianPath, marginal: EmpiricalField
) -> tuple[FlowMatching, Drawn, Drawn]:
    """The same draws of (t, x_t), with the conditional velocity as the target and with the marginal one."""
    loss = FlowMatching(path)
    rows = torch.randint(len(DATA), (DRAWS,), generator=seeded(1))
    drawn = loss.draw(DATA[rows], seeded(2))
    return loss, drawn, drawn._replace(target=marginal(drawn.x_t, drawn.t))


def gradients(net: nn.Module, loss: FlowMatching, drawn: Drawn) -> Tensor:
    """The gradient of every row's loss, shape ``(rows, parameters)``."""

    def row(parameters: dict[str, Tensor], x: Tensor, t: Tensor, target: Tensor) -> Tensor:
        def field(x: Tensor, t: Tensor, /) -> Tensor:
            return functional_call(net, parameters, (x, t))

        return loss.loss(field, Drawn(x[None], t[None], target[None]))[0]

    each = vmap(grad(row), in_dims=(None, 0, 0, 0))(dict(net.named_parameters()), *drawn[:3])
    return torch.cat([value.reshape(len(drawn.t), -1) for value in each.values()], 1)


DATA = annulus(6) / 2
THEOREM = {
    "linear-0.2": AffinePath(SCHEDULES["linear-0.2"]),
    "vp": AffinePath(SCHEDULES["vp"]),
    "gaussian": curved_path(),
}
every_theorem = pytest.mark.parametrize("path", THEOREM.values(), ids=THEOREM)


@every_theorem
def test_conditional_and_marginal_objectives_have_the_same_gradient(path: AffinePath | GaussianPath):
    # paired draws: the difference of the two gradients has mean zero, 32 parameters, error probability 32 * 8e-11
    net = Net(0)
    loss, conditional, marginal = conditional_and_marginal(path, EmpiricalField(path, DATA))
    difference = gradients(net, loss, conditional) - gradients(net, loss, marginal)
    assert z_scores(difference).abs().max() < Z
    # the test has teeth: with the field of other weights (a wrong posterior) it fails
    wrong = EmpiricalField(path, DATA, torch.tensor([1.0, 1, 1, 1, 1, 2]))
    _, _, off = conditional_and_marginal(path, wrong)
    assert z_scores(gradients(net, loss, conditional) - gradients(net, loss, off)).abs().max() > 2 * Z


@every_theorem
def test_conditional_and_marginal_objectives_differ_by_a_constant(path: AffinePath | GaussianPath):
    # E|v - u(x|x1)|^2 - E|v - u(x)|^2 = E|u(x|x1) - u(x)|^2, whatever v; two comparisons, error probability 2e-10
    loss, conditional, marginal = conditional_and_marginal(path, EmpiricalField(path, DATA))
    constant = (conditional.target - marginal.target).square().sum(1)
    for net in (Net(1), Net(2)):
        with torch.no_grad():
            difference = loss.loss(net, conditional) - loss.loss(net, marginal)
        assert z_scores((difference - constant)[:, None]).abs().max() < Z
        assert z_scores((difference - 1.2 * constant)[:, None]).abs().max() > Z


@every_dtype
@every_shape
def test_loss_is_the_sum_of_squares_of_a_row(shape: tuple[int, ...], dtype: torch.dtype):
    path = AffinePath(SCHEDULES["linear"])
    x0, x1 = normal(4, *shape, seed=0, dtype=dtype), normal(4, *shape, seed=1, dtype=dtype)
    loss = FlowMatching(path)(lambda x, t: torch.zeros_like(x), Batch(x1, x0=x0), seeded(0))
    close(loss, (x1 - x0).square().reshape(4, -1).sum(1), rounding(dtype))


@every_state
@every_prediction
@every_schedule
def test_a_perfect_network_has_no_loss(
    schedule: Schedule, predicts: Prediction, shape: tuple[int, ...], dtype: torch.dtype
):
    # one point of data: x_t determines x0, and so all four answers
    path, point = AffinePath(schedule), normal(1, *shape, seed=0, dtype=dtype)

    def answer(x: Tensor, t: Tensor, /) -> Tensor:
        assert t.shape == (5,)
        alpha, sigma, alpha_rate, sigma_rate = (columns(value, x) for value in schedule(t))
        x0 = (x - alpha * point) / sigma
        return {
            "velocity": alpha_rate * point + sigma_rate * x0,
            "data": point.expand_as(x),
            "noise": x0,
            "score": -x0 / sigma,
        }[predicts]

    loss = FlowMatching(path, predicts, times=lambda n, *_: torch.linspace(0.02, 0.98, n, dtype=dtype))
    value = loss(answer, point.expand(5, *shape), seeded(0))
    assert value.shape == (5,)
    assert value.dtype == dtype
    assert value.abs().max() < (1e-4 if dtype == torch.float32 else 1e-18)
    assert (loss(lambda x, t: answer(x, t) + 1, point.expand(5, *shape), seeded(0)) > 0.9).all()


def test_weights_masks_and_conditions():
    x0, x1 = normal(4, 3, seed=0), normal(4, 3, seed=1)
    mask = torch.tensor([[True, False, True], [True, True, True], [False, False, False], [False, False, True]])
    weight, shift = torch.tensor([1.0, 2.0, 0.5, 0.0]).double(), torch.arange(4.0).double()
    t = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    loss = FlowMatching(AffinePath(SCHEDULES["linear"]), times=lambda *_: t, weight=lambda t: 1 + t)

    def field(x: Tensor, t: Tensor, /, *, shift: Tensor) -> Tensor:
        return shift[:, None] + 0 * x

    batch = Batch(x1, x0=x0, cond={"shift": shift}, weight=weight, mask=mask)
    expected = ((shift[:, None] - (x1 - x0)).square() * mask).sum(1) * (1 + t) * weight
    close(loss(field, batch), expected, 1e-14)
    close(
        loss(field, batch._replace(mask=mask[:, :1])),
        (shift[:, None] - (x1 - x0)).square().sum(1) * mask[:, 0] * (1 + t) * weight,
        1e-14,
    )
    with pytest.raises(TypeError, match="unexpected keyword"):
        loss(field, batch._replace(cond={"shfit": shift}))


def test_all_that_is_random_comes_from_the_generator():
    loss, x1 = FlowMatching(AffinePath(SCHEDULES["cosine"]), times=objectives.logit_normal()), normal(6, 2, seed=0)
    first, again, other = (loss.draw(x1, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.x_t, again.x_t)
    assert torch.equal(first.t, again.t)
    assert not torch.equal(first.t, other.t)
    close(loss.loss(lambda x, t: x, first), loss(lambda x, t: x, x1, seeded(0)), 0.0)


@pytest.mark.parametrize(
    ("dtype", "fine"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
    ids=str,
)
def test_times_are_never_coarser_than_float32(dtype: torch.dtype, fine: torch.dtype):
    drawn = FlowMatching(AffinePath(SCHEDULES["linear"])).draw(torch.zeros(8, 2, dtype=dtype), seeded(0))
    assert drawn.t.dtype == fine
    assert drawn.x_t.dtype == drawn.target.dtype == dtype


def largest_gap(sample: Tensor, cdf: Callable[[Tensor], Tensor]) -> float:
    values = cdf(sample.double().sort().values)
    steps = torch.arange(len(sample) + 1, dtype=torch.float64) / len(sample)
    return float(torch.maximum((steps[1:] - values).max(), (values - steps[:-1]).max()))


def normal_cdf(mean: float, std: float) -> Callable[[Tensor], Tensor]:
    return lambda t: 0.5 * torch.erfc(-(t.logit() - mean) / std / math.sqrt(2))


@every_dtype
@pytest.mark.parametrize(
    ("sampler", "cdf"),
    [
        (objectives.uniform, lambda t: t),
        (objectives.logit_normal(), normal_cdf(0.0, 1.0)),
        (objectives.logit_normal(-0.7, 1.6), normal_cdf(-0.7, 1.6)),
        (
            lambda n, g, dtype, device: torch.stack([objectives.stratified(5, g, dtype, device)[0] for _ in range(n)]),
            lambda t: t,
        ),
    ],
    ids=["uniform", "logit-normal", "skewed", "one row of stratified"],
)
def test_times_have_their_law(sampler: objectives.TimeSampler, cdf: Callable[[Tensor], Tensor], dtype: torch.dtype):
    # Dvoretzky-Kiefer-Wolfowitz: P(gap > e) <= 2 exp(-2 n e^2), here 1e-7
    t = sampler(4000, seeded(0), dtype, torch.device("cpu"))
    assert t.dtype == dtype
    assert largest_gap(t, cdf) < math.sqrt(math.log(2e7) / 8000)


@every_dtype
@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_stratified_times_fill_every_stratum_once(n: int, dtype: torch.dtype):
    t = objectives.stratified(n, seeded(n), dtype, torch.device("cpu"))
    assert sorted((t.double() * n).floor().int().tolist()) == list(range(n))
    assert t.dtype == dtype


RANGES = {
    "velocity": (AffinePath(SCHEDULES["linear"]), "velocity", (0.0, 1.0)),
    "data": (AffinePath(SCHEDULES["linear"]), "data", (0.0, 1 / 1.001)),
    "noise": (AffinePath(SCHEDULES["linear"]), "noise", (0.001 / 1.001, 1.0)),
    "score": (AffinePath(SCHEDULES["linear"]), "score", (0.001 / 1.001, 1 / 1.001)),
    "blurred data": (AffinePath(SCHEDULES["linear-0.2"]), "data", (0.0, 1.0)),
    "vp": (AffinePath(SCHEDULES["vp"]), "velocity", (0.0, SCHEDULES["vp"].inner_time(1.0))),
    "steep": (AffinePath(schedules.custom(torch.sqrt, lambda t: 1 - t)), "velocity", (1e-6 * (1 - 2e-6), 1.0)),
    "gaussian": (curved_path(), "velocity", (0.0, 1.0)),
    "bridge": (BridgePath(StandardNormal(), lambda t: 0.1 + t * (1 - t)), "velocity", (0.0, 1.0)),
    "brownian": (BridgePath(StandardNormal(), 0.5), "velocity", (0.001, 0.999)),
}


@pytest.mark.parametrize(("path", "predicts", "expected"), RANGES.values(), ids=RANGES)
def test_times_leave_open_ends_out(path, predicts: Prediction, expected: tuple[float, float]):
    loss = FlowMatching(path, predicts, times=lambda n, *_: torch.linspace(0, 1, n, dtype=torch.float64))
    assert loss.time_range == pytest.approx(expected, rel=1e-9)
    drawn = loss.draw(normal(5, 2, seed=0), seeded(0))
    assert (float(drawn.t[0]), float(drawn.t[-1])) == pytest.approx(expected, rel=1e-9)
    assert drawn.target.isfinite().all()
    assert loss(lambda x, t: x, normal(5, 2, seed=0), seeded(0)).isfinite().all()


LINEAR = FlowMatching(AffinePath(SCHEDULES["linear"]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LINEAR.draw(torch.zeros(0, 2)), r"x1 must be a batch of floating-point rows, got shape \(0, 2\)"),
        (lambda: LINEAR.draw(torch.tensor(1.0)), "x1 must be a batch of floating-point rows"),
        (lambda: LINEAR.draw(torch.zeros(2, 2, dtype=torch.int64)), "x1 must be .* torch.int64"),
        (lambda: LINEAR(lambda x, t: x[:, :1], torch.zeros(3, 2)), r"field must return shape \(3, 2\), got \(3, 1\)"),
        (lambda: LINEAR(lambda x, t: x, Batch(torch.zeros(3, 2), x0=torch.zeros(3))), "x0 must have the shape of x1"),
        (lambda: FlowMatching(curved_path(), "data").draw(torch.zeros(3, 2)), "velocity on a GaussianPath, got 'data'"),
        (
            lambda: FlowMatching(LINEAR.path, "veloctiy").draw(torch.zeros(3, 2)),  # pyright: ignore[reportArgumentType]
            "predicts must be one of velocity, data, noise, score, got 'veloctiy'",
        ),
        (lambda: objectives.logit_normal(0.0, 0.0), "std must be positive, got 0.0"),
        (lambda: objectives.logit_normal(0.0, math.nan), "std must be positive, got nan"),
    ],
)
def test_refuses(call: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_seed_objective():
    # |x1 - x0 - v|^2 at (1 - t) x0 + t x1
    x0, x1, t = normal(4, 2, seed=0), normal(4, 2, seed=1), number(0.3).expand(4)
    drawn = FlowMatching(LINEAR.path, times=lambda *_: t).draw(Batch(x1, x0=x0))
    close(drawn.x_t, 0.7 * x0 + 0.3 * x1, 1e-15)
    close(drawn.target, x1 - x0, 1e-15)
