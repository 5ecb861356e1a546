import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import jvp

from pathline import schedules
from pathline.schedules import END_RATIO, Schedule
from problems import SCHEDULES, close, every_dtype, every_schedule, number, rounding

TIMES = [0.0, 1e-4, 0.03, 0.25, 0.5, 0.77, 0.97, 1 - 1e-3, 1.0]


def times(schedule: Schedule, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([t for t in TIMES if t not in schedule.open_ends], dtype=dtype)


@every_dtype
@every_schedule
def test_rates_are_the_derivatives_of_the_values(schedule: Schedule, dtype: torch.dtype):
    t = times(schedule, dtype)
    values, rates = jvp(lambda s: schedule(s)[:2], (t,), (torch.ones_like(t),))
    curve = schedule(t)
    for given_, expected in zip(curve, (*values, *rates), strict=True):
        close(given_, expected, 100 * rounding(dtype))


@every_dtype
@every_schedule
def test_ends_are_exact(schedule: Schedule, dtype: torch.dtype):
    curve = schedule(torch.tensor([0.0, 1.0], dtype=dtype))
    last = torch.tensor(0.2, dtype=dtype).item() if schedule.options.get("sigma_min") else 0.0
    assert curve.alpha.tolist() == [0.0, 1.0]
    assert curve.sigma.tolist() == [1.0, last]


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
@every_dtype
@every_schedule
def test_keeps_shape_and_dtype_of_t(schedule: Schedule, dtype: torch.dtype, shape: tuple[int, ...]):
    t = torch.full(shape, 0.3, dtype=dtype)
    assert all(value.shape == shape and value.dtype == dtype for value in schedule(t))


def vp_alpha(t: float) -> float:
    def whole(s: float) -> float:
        return math.exp(-0.25 * (1 - s) ** 2 * 19.9 - 0.5 * (1 - s) * 0.1)

    return (whole(t) - whole(0)) / (1 - whole(0))


@pytest.mark.parametrize(
    ("name", "alpha", "sigma"),
    [
        ("linear", lambda t: t, lambda t: 1 - t),
        ("linear-0.2", lambda t: t, lambda t: 1 - 0.8 * t),
        ("cosine", lambda t: math.sin(math.pi / 2 * t), lambda t: math.cos(math.pi / 2 * t)),
        ("polynomial-1.5", lambda t: t**1.5, lambda t: 1 - t**1.5),
        ("polynomial-2", lambda t: t**2, lambda t: 1 - t**2),
        ("vp", vp_alpha, lambda t: math.sqrt(1 - vp_alpha(t) ** 2)),
    ],
)
def test_values(name: str, alpha: Callable[[float], float], sigma: Callable[[float], float]):
    curve = SCHEDULES[name](torch.tensor(TIMES, dtype=torch.float64))
    assert curve.alpha.tolist() == pytest.approx([alpha(t) for t in TIMES], abs=1e-13)
    assert curve.sigma.tolist() == pytest.approx([sigma(t) for t in TIMES], abs=1e-13)


@every_schedule
def test_snr_increases(schedule: Schedule):
    log_snr = schedule.log_snr(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert (log_snr.diff() > 0).all()
    assert log_snr[0] == -math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(t=st.floats(0, 1), name=st.sampled_from(list(SCHEDULES)))
@settings(max_examples=25, deadline=None)
def test_time_of_log_snr_inverts_log_snr(dtype: torch.dtype, t: float, name: str):
    time = torch.tensor([t, 0.0, 1.0], dtype=dtype)
    back = SCHEDULES[name].time_of_log_snr(SCHEDULES[name].log_snr(time))
    assert back.dtype == dtype
    torch.testing.assert_close(back, time, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-11)


@every_schedule
def test_inner_time_is_where_the_ratio_is_small(schedule: Schedule):
    first = schedule(number(schedule.inner_time(0.0)))
    assert float(first.alpha / first.sigma) == pytest.approx(END_RATIO, rel=1e-9)
    if schedule(number(1.0)).sigma == 0:
        last = schedule(number(schedule.inner_time(1.0)))
        assert float(last.sigma / last.alpha) == pytest.approx(END_RATIO, rel=1e-9)
    else:
        with pytest.raises(ValueError, match="log_snr must lie in"):
            schedule.inner_time(1.0)


def test_named_makes_what_the_schedule_remembers():
    for schedule in SCHEDULES.values():
        if schedule.name != "custom":
            assert schedules.named(schedule.name, **schedule.options) == schedule
    assert schedules.linear(0.1) != schedules.linear(0.2)


@pytest.mark.parametrize(
    ("name", "alpha", "sigma"),
    [
        ("linear", lambda t: t, lambda t: 1 - t),
        ("cosine", lambda t: torch.sin(math.pi / 2 * t), lambda t: torch.sin(math.pi / 2 * (1 - t))),
    ],
)
def test_custom_is_the_shipped_schedule_of_the_same_functions(
    name: str, alpha: Callable[[Tensor], Tensor], sigma: Callable[[Tensor], Tensor]
):
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    for own, shipped in zip(schedules.custom(alpha, sigma)(t), SCHEDULES[name](t), strict=True):
        close(own, shipped, 1e-14)


def test_custom_finds_the_ends_with_infinite_rates():
    assert schedules.custom(torch.sqrt, lambda t: 1 - t).open_ends == (0.0,)
    assert schedules.custom(lambda t: t, lambda t: (1 - t).sqrt()).open_ends == (1.0,)
    assert schedules.custom(lambda t: t, lambda t: 1 - t).open_ends == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.linear(-0.1), r"sigma_min must be in \[0, 1\), got -0.1"),
        (lambda: schedules.linear(1.0), r"sigma_min must be in \[0, 1\), got 1.0"),
        (lambda: schedules.linear(math.nan), r"sigma_min must be in \[0, 1\), got nan"),
        (lambda: schedules.polynomial(0.5), "n must be a finite number of at least 1, got 0.5"),
        (lambda: schedules.polynomial(math.inf), "n must be a finite number of at least 1, got inf"),
        (lambda: schedules.variance_preserving(0.0, 20.0), "0 < beta_min <= beta_max, got 0.0, 20.0"),
        (lambda: schedules.variance_preserving(5.0, 1.0), "0 < beta_min <= beta_max, got 5.0, 1.0"),
        (lambda: schedules.variance_preserving(1.0, math.inf), "0 < beta_min <= beta_max, got 1.0, inf"),
        (lambda: schedules.named("quadratic"), "schedule must be one of linear, cosine.*got 'quadratic'"),
        (lambda: schedules.custom(lambda t: 0.1 + 0.9 * t, lambda t: 1 - t), r"start at \(0, 1\), got \(0.1, 1\)"),
        (lambda: schedules.custom(lambda t: t, lambda t: 2 - t), r"start at \(0, 1\), got \(0, 2\)"),
        (lambda: schedules.custom(lambda t: 0.9 * t, lambda t: 1 - t), "alpha must end at 1, got 0.9"),
        (lambda: schedules.custom(lambda t: t, lambda t: 1 - 2 * t), "sigma must not be negative, got -1"),
        (lambda: schedules.custom(lambda t: t, lambda t: 1 - t + 2 * t * t), "must increase strictly"),
        (lambda: schedules.custom(lambda t: t * (2 - t) ** 8, lambda t: 1 + 0 * t), "must increase strictly"),
        (lambda: schedules.linear(0.2).time_of_log_snr(number(4.0)), r"log_snr must lie in \[-inf, 3.21888\]"),
        (lambda: schedules.linear().time_of_log_snr(number(math.nan)), "log_snr must lie in"),
    ],
)
def test_refuses(make: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        make()
