"""Gradients at the memory of one call, and no memory at all without them."""

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from pathline.fields import EmpiricalField
from pathline.grids import uniform
from pathline.likelihood import log_prob, sample_with_log_prob
from pathline.likelihood.recompute import Recompute
from pathline.nets import MLP
from pathline.paths import AffinePath
from pathline.schedules import linear
from pathline.solvers import NAMED, heun, rk4
from problems import normal, seeded


def net(d: int = 3, width: int = 8) -> MLP:
    torch.manual_seed(0)
    made = MLP(d, width=width).double()
    torch.nn.init.normal_(made.leave.weight)
    return made


def peak(run) -> int:
    """The most bytes that were allocated at one time, above those at the start."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    now = most = 0
    for event in sorted(found.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("solver", [heun, rk4, NAMED["dopri5"]], ids=lambda s: s.name)
@pytest.mark.parametrize("probes", [None, 1, 3])
@pytest.mark.parametrize("function", [log_prob, sample_with_log_prob])
def test_gradients_are_those_that_keep_the_graph(function, probes: int | None, solver):
    field, x = net(), normal(4, 3, seed=1).requires_grad_(True)
    grid = uniform(1) if solver.calls is None else uniform(3)

    def gradients(checkpoint: bool) -> list[Tensor]:
        found = function(field, x, grid=grid, solver=solver, probes=probes, generator=seeded(0), checkpoint=checkpoint)
        return [found.value.detach(), *torch.autograd.grad(found.value.sum(), [x, *field.parameters()])]

    for kept, made in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(made, kept, rtol=1e-12, atol=1e-12)


def test_gradcheck_with_respect_to_rows_parameters_and_conditions():
    weight, bias, y = (normal(*shape, seed=i).requires_grad_(True) for i, shape in enumerate([(2, 2), (2,), (3, 2)]))
    x1 = normal(3, 2, seed=4).requires_grad_(True)

    def value(x1: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> Tensor:
        field = lambda x, t, *, y: torch.tanh(x @ weight + y) * t[:, None] + bias * x  # noqa: E731
        return log_prob(field, x1, grid=uniform(2), cond={"y": y}, checkpoint=True, with_error=False).value

    assert torch.autograd.gradcheck(value, (x1, weight, bias, y), eps=1e-5, atol=1e-6)


def test_a_graph_can_be_used_twice():
    field, x1 = net(), normal(2, 3, seed=1).requires_grad_(True)
    value = log_prob(field, x1, grid=uniform(2), checkpoint=True).value.sum()
    first, second = (torch.autograd.grad(value, x1, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_memory_of_gradients_hardly_grows_with_steps():
    field, x1 = net(4, 32), normal(64, 4, seed=1)

    def run(steps: int, checkpoint: bool) -> None:
        found = log_prob(field, x1, grid=uniform(steps), solver=heun, checkpoint=checkpoint, with_error=False)
        found.value.sum().backward()

    kept, made = ([peak(lambda n=n, c=c: run(n, c)) for n in (2, 16)] for c in (False, True))
    assert kept[1] > 5 * kept[0]
    per_call = (made[1] - made[0]) / (2 * 14)
    assert per_call < 6 * x1.nbytes  # a few states, while a call's graph is two hundred of them
    assert made[1] < 0.2 * kept[1]


@pytest.mark.parametrize("steps", [2, 8])
def test_what_a_call_saves_is_dropped_when_it_ends(steps: int):
    saved = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        log_prob(net(), normal(4, 3, seed=1), grid=uniform(steps), solver=heun, checkpoint=True, with_error=False)
    assert sum(one.numel() > 4 * 4 for one in saved) == 0  # nothing of a layer's width


@pytest.mark.parametrize("probes", [None, 2])
def test_memory_without_gradients_does_not_depend_on_steps(probes: int | None):
    field, x1 = net(4, 32), normal(64, 4, seed=1)

    @torch.no_grad()
    def run(steps: int) -> None:
        log_prob(field, x1, grid=uniform(steps), probes=probes, generator=seeded(0))

    few, many = peak(lambda: run(3)), peak(lambda: run(24))
    assert many <= 1.02 * few


def test_nothing_is_kept_where_nothing_wants_gradients():
    points = EmpiricalField(AffinePath(linear(0.2)), normal(5, 2, seed=0))
    for field in (points, lambda x, t: points(x, t)):
        assert not log_prob(field, normal(3, 2, seed=1)).value.requires_grad


def test_a_field_that_changes_its_mind_is_found_out():
    calls = []

    def field(x: Tensor) -> Tensor:
        calls.append(1)
        return x.sin().sin() if len(calls) == 1 else x.sin()

    x = normal(3, seed=0).requires_grad_(True)
    y = Recompute()(field, x)
    with pytest.raises(RuntimeError, match="checkpoint needs a field that does the same work every time"):
        y.sum().backward()


def test_dropout_draws_the_same_numbers_again():
    field, x1 = Dropped(net()), normal(4, 3, seed=1)

    def gradients(checkpoint: bool) -> list[Tensor]:
        torch.manual_seed(3)
        value = log_prob(field, x1, grid=uniform(2), solver=heun, checkpoint=checkpoint).value
        torch.manual_seed(4)
        return list(torch.autograd.grad(value.sum(), list(field.parameters())))

    for kept, made in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(made, kept, rtol=1e-12, atol=1e-12)


class Dropped(torch.nn.Module):
    def __init__(self, inner: MLP) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, t: Tensor, /) -> Tensor:
        return torch.nn.functional.dropout(self.inner(x, t), 0.5)
