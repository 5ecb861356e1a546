"""The battery over all that is shipped, and that every check can fail."""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from pathline import AffinePath, GaussianMixtureField, nets, schedules
from pathline.fields import ParametrizedField
from pathline.paths import Prediction
from pathline.schedules import Curve
from pathline.solvers import NAMED, Tableau, midpoint, rk3, rk4
from pathline.testing import (
    battery,
    check_exact_field,
    check_network,
    check_path,
    check_prediction,
    check_solver,
    shipped_paths,
)

BATTERY = battery()


@pytest.mark.parametrize("check", BATTERY.values(), ids=BATTERY)
def test_battery(check: Callable[[], None]) -> None:
    check()


def test_all_that_is_shipped_is_covered() -> None:
    names = " ".join(BATTERY)
    for name in schedules.SHIPPED:
        assert all(f"{kind}-{name}-" in names for kind in ("path", "points", "mixture", "data", "noise", "score"))
    for name in (*NAMED, "exponential2", "exponential3c", "euler_maruyama", "stochastic_heun"):
        assert f"solver-{name}-1 to 0-" in names


def test_wrong_paths_fields_and_solvers_are_found() -> None:
    class Wrong(AffinePath):
        def curve(self, t: Tensor, x: Tensor) -> Curve:
            return super().curve(t, x)._replace(alpha_rate=torch.tensor(1.01, dtype=x.dtype))

    with pytest.raises(AssertionError, match=r"the rate of x_t is off by .*, more than 1.00e-06"):
        check_path(Wrong(schedules.linear()))
    path = AffinePath(schedules.linear())

    class Slow(GaussianMixtureField):
        def divergence(self, x: Tensor, t: Tensor, *, label: Tensor | None = None) -> Tensor:
            return 0.99 * super().divergence(x, t, label=label)

    with pytest.raises(AssertionError, match="the divergence is off"):
        check_exact_field(Slow(path, torch.zeros(1, 2), torch.ones(1) / 2), torch.randn(5, 2, dtype=torch.float64))
    with pytest.raises(AssertionError, match="the end of bad is off"):
        check_solver(Tableau("bad", 2, (0.0, 0.5), ((), (0.5,)), (0.5, 0.6)))
    assert shipped_paths().keys() >= schedules.SHIPPED.keys()


@pytest.mark.parametrize(
    "wrong",
    [
        Tableau("ralston", 2, (0.0, 2 / 3), ((), (2 / 3,)), (0.5, 0.5)),
        replace(rk4, b=(0.25,) * 4),
        replace(rk3, order=4),
        replace(midpoint, order=3),
    ],
)
def test_solvers_of_a_lower_order_than_they_say_are_found(wrong: Tableau) -> None:
    with pytest.raises(AssertionError, match=rf"the order of {wrong.name} is \d\.\d\d, not {wrong.order}"):
        check_solver(wrong)


def test_a_prediction_of_another_path_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    path = AffinePath(schedules.linear())
    check_prediction(path, "noise")
    monkeypatch.setattr("pathline.testing._Perfect.forward", lambda self, x, t: 1.01 * self.exact(x, t))
    with pytest.raises(AssertionError, match="the velocity from velocity is off"):
        check_prediction(path, "velocity")


class Batchwise(nn.Module):
    def forward(self, x: Tensor, t: Tensor, /) -> Tensor:
        return x - x.mean(0)


def test_networks() -> None:
    check_network(nets.MLP(2).eval(), (2,))
    check_network(nets.MLP(3, condition=2).eval(), (3,), {"condition": torch.randn(6, 2)})
    with pytest.raises(AssertionError, match="a row alone is off"):
        check_network(Batchwise(), (2,))
    with pytest.raises(AssertionError, match=r"net must return shape \(6, 2\), got \(6, 1\)"):
        check_network(lambda x, t: x[:, :1], (2,))
    with pytest.raises(AssertionError, match="net must be finite"):
        check_network(lambda x, t: x / t[:, None], (2,))


@pytest.mark.parametrize("predicts", get_args(Prediction))
def test_networks_that_declare_open_ends(predicts: Prediction) -> None:
    field = ParametrizedField(nets.MLP(2).eval(), AffinePath(schedules.linear()), predicts)
    check_network(field, (2,))
    with pytest.raises(AssertionError, match="net must be finite"):
        check_network(ParametrizedField(Infinite(), field.path, predicts), (2,))


class Infinite(nn.Module):
    def forward(self, x: Tensor, t: Tensor, /) -> Tensor:
        return x / 0
