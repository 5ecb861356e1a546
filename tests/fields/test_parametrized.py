from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from pathline.fields import EmpiricalField, ParametrizedField
from pathline.paths import AffinePath, Prediction
from pathline.schedules import Schedule
from problems import (
    PREDICTIONS,
    SCHEDULES,
    Answers,
    close,
    every_prediction,
    every_schedule,
    every_state,
    normal,
    number,
    rounding,
)

TIMES = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.95], dtype=torch.float64)


@every_state
@every_prediction
@every_schedule
def test_a_network_with_the_exact_answer_is_the_exact_field(
    schedule: Schedule, predicts: Prediction, shape: tuple[int, ...], dtype: torch.dtype
):
    exact = EmpiricalField(AffinePath(schedule), normal(4, *shape, seed=0))
    field = ParametrizedField(Answers(exact, predicts), exact.path, predicts)
    x = normal(5, *shape, seed=1, dtype=dtype)
    for t in (TIMES.to(dtype), number(0.4).to(dtype)):
        close(field(x, t), exact(x, t), 100 * rounding(dtype))
        close(field.posterior_mean(x, t), exact.posterior_mean(x, t), 100 * rounding(dtype))


@every_prediction
@every_schedule
def test_open_ends_are_where_the_velocity_does_not_follow(schedule: Schedule, predicts: Prediction):
    ends = set(schedule.open_ends)
    if predicts in ("noise", "score"):
        ends.add(0.0)
    if predicts in ("data", "score") and schedule(number(1.0)).sigma == 0:
        ends.add(1.0)
    field = ParametrizedField(nn.Identity(), AffinePath(schedule), predicts)
    assert field.open_ends == {end: schedule.inner_time(end) for end in ends}


class Bias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor, /, *, shift: Tensor | float = 0.0) -> Tensor:
        return (self.bias + shift).to(x.dtype).expand_as(x)


@every_prediction
@every_schedule
def test_called_at_an_end_it_is_finite_or_refuses(schedule: Schedule, predicts: Prediction):
    field, x = ParametrizedField(Bias(), AffinePath(schedule), predicts), torch.ones(3, 2)
    for end in (0.0, 1.0):
        for t in (torch.tensor(end), torch.tensor([0.5, end, 0.5])):
            if end in field.open_ends:
                with pytest.raises(ValueError, match=f"t must not be {end:g}: the velocity of a network that predicts"):
                    field(x, t)
            else:
                assert field(x, t).isfinite().all()
    if 1.0 in field.open_ends and predicts != "data":
        with pytest.raises(ValueError, match="t must not be 1: the data of a network that predicts"):
            field.posterior_mean(x, torch.tensor(1.0))
    if predicts == "data":
        assert torch.equal(field.posterior_mean(x, torch.tensor(1.0)), x)


@every_prediction
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_keeps_the_dtype_and_hands_on_conditions(predicts: Prediction, dtype: torch.dtype):
    field = ParametrizedField(Bias(), AffinePath(SCHEDULES["cosine"]), predicts)
    x, t = torch.ones(3, 2, dtype=dtype), torch.tensor([0.2, 0.5, 0.7])
    assert field(x, t).dtype == dtype
    assert not torch.equal(field(x, t, shift=3.0), field(x, t))
    with pytest.raises(TypeError, match="unexpected keyword"):
        field(x, t, shfit=3.0)


def test_owns_the_parameters_of_its_network():
    field = ParametrizedField(Bias(), AffinePath(SCHEDULES["linear"]), "data")
    field(torch.ones(3, 2), torch.tensor(0.5)).sum().backward()
    assert [name for name, _ in field.named_parameters()] == ["net.bias"]
    assert field.get_parameter("net.bias").grad == pytest.approx(12.0)  # (x1 - x) / (1 - t), six numbers


def test_refuses_an_unknown_prediction():
    assert set(PREDICTIONS) == set(get_args(Prediction))
    make: Callable[..., object] = ParametrizedField
    with pytest.raises(ValueError, match="predicts must be one of velocity, data, noise, score, got 'epsilon'"):
        make(nn.Identity(), AffinePath(SCHEDULES["linear"]), "epsilon")
