import math

import pytest
import torch
from torch import Tensor

from pathline.diagnostics import continuity_residual
from pathline.fields import EmpiricalField, GaussianMixtureField
from pathline.paths import AffinePath, GaussianPath
from pathline.sources import StandardNormal
from pathline.typing import Batch
from problems import (
    SCHEDULES,
    SEED_GAUSSIAN,
    affine_flow,
    annulus,
    close,
    curved_path,
    every_dtype,
    every_shape,
    normal,
    number,
    seeded,
)

PATHS = {**{name: AffinePath(schedule) for name, schedule in SCHEDULES.items()}, "gaussian": curved_path()}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
COVARIANCES = {
    "isotropic": torch.tensor([0.02, 0.3, 1.0]),
    "diagonal": torch.tensor([[0.02, 1.0], [0.5, 0.1], [0.3, 0.3]]),
    "full": torch.tensor([[[0.5, 0.3], [0.3, 0.2]], [[1.0, -0.9], [-0.9, 1.0]], [[0.02, 0.0], [0.0, 0.5]]]),
}


def somewhere(path: AffinePath | GaussianPath, data: Tensor) -> tuple[Tensor, Tensor]:
    """Points of the path at times spread over those with a standard deviation of at least 0.01, and some far off."""
    t = torch.linspace(0.01, 1.0, 400, dtype=torch.float64)
    x1 = data[torch.arange(400) % len(data)]
    t = t[path.moments(x1, t.clamp_max(0.9999)).std.reshape(400, -1)[:, 0] >= 0.01].clamp_max(0.9999)[::8]
    x = path.sample(Batch(data[torch.arange(len(t)) % len(data)]), t, seeded(0)).x_t
    return torch.cat([x, 3 * x]), torch.cat([t, t])


def ratio(field, log_prob, x: Tensor, t: Tensor, **cond: Tensor) -> float:
    residual = continuity_residual(field, log_prob, x, t, **cond)
    assert residual.value.shape == residual.scale.shape == x.shape[:1]
    assert (residual.value.abs() <= residual.scale * (1 + 1e-12)).all()
    return float((residual.value.abs() / residual.scale).max())


@every_shape
@every_path
def test_exact_fields_induce_their_paths(path: AffinePath | GaussianPath, shape: tuple[int, ...]):
    data = 1.5 * normal(6, *shape, seed=0)
    field, (x, t) = EmpiricalField(path, data, torch.arange(1.0, 7)), somewhere(path, data)
    assert ratio(field, field.log_prob, x, t) < 1e-10


@pytest.mark.parametrize("kind", COVARIANCES)
@pytest.mark.parametrize("name", ["linear", "cosine", "vp"])
def test_mixture_fields_induce_their_paths(name: str, kind: str):
    path, means = AffinePath(SCHEDULES[name]), 2 * normal(3, 2, seed=5)
    field, (x, t) = GaussianMixtureField(path, means, COVARIANCES[kind], torch.arange(1.0, 4)), somewhere(path, means)
    assert ratio(field, field.log_prob, x, t) < 1e-10


@every_path
def test_conditional_velocities_induce_conditional_paths(path: AffinePath | GaussianPath):
    x, t = somewhere(path, annulus(1))
    x1 = annulus(1).expand_as(x)
    assert ratio(lambda x, t: path.velocity(x, x1, t), lambda x, t: path.log_prob(x, x1, t), x, t) < 1e-10


def test_closed_forms_without_a_path():
    x, t = 2 * normal(9, 2, seed=0), torch.linspace(0, 1, 9, dtype=torch.float64)
    assert ratio(SEED_GAUSSIAN, SEED_GAUSSIAN.log_prob, x, t) < 1e-12
    flow = affine_flow((2,))

    def log_prob(x: Tensor, t: Tensor, /) -> Tensor:
        back = torch.matrix_exp(-t[:, None, None] * flow.matrix)
        fixed = torch.linalg.solve(flow.matrix, flow.shift)
        x0 = (back @ (x + fixed)[..., None])[..., 0] - fixed
        return StandardNormal().log_prob(x0) - t * flow.matrix.trace()

    close(log_prob(x, number(1.0).expand(9)), flow.log_prob(x), 1e-12)
    assert ratio(flow, log_prob, x, t) < 1e-12


def test_conditions_go_to_both():
    path, data = PATHS["cosine"], annulus(6)
    field, (x, t) = EmpiricalField(path, data, labels=torch.arange(6) % 2), somewhere(path, data)
    label = torch.arange(len(x)) % 2
    assert ratio(field, field.log_prob, x, t, label=label) < 1e-10
    assert ratio(field, lambda x, t, label: field.log_prob(x, t), x, t, label=label) > 0.1


def test_wrong_fields_are_found():
    path, data = PATHS["linear"], annulus(6)
    field, (x, t) = EmpiricalField(path, data), somewhere(path, data)
    others = {
        "too fast": lambda x, t: 1.01 * field(x, t),
        "shifted": lambda x, t: field(x, t) + 0.01,
        "of other weights": EmpiricalField(path, data, torch.tensor([1.0, 1, 1, 1, 1, 1.1])),
        "of another path": EmpiricalField(PATHS["cosine"], data),
    }
    for name, other in others.items():
        assert ratio(other, field.log_prob, x, t) > 1e-3, name


def test_a_path_has_more_than_one_field():
    # u + w / p induces the same path for any w without divergence
    path, data = PATHS["linear-0.2"], annulus(3)
    field = EmpiricalField(path, data)
    x = path.sample(Batch(data.repeat(5, 1)), number(0.6), seeded(0)).x_t

    def other(x: Tensor, t: Tensor, /) -> Tensor:
        return field(x, t) + torch.stack([x[:, 1], -x[:, 0]], 1) * (-3 - field.log_prob(x, t)).exp()[:, None]

    assert (other(x, number(0.6)) - field(x, number(0.6))).abs().max() > 0.01
    assert ratio(other, field.log_prob, x, number(0.6)) < 1e-10


@every_dtype
@every_shape
def test_a_law_that_rests(shape: tuple[int, ...], dtype: torch.dtype):
    x, t = normal(5, *shape, seed=0, dtype=dtype), torch.tensor(0.5, dtype=dtype)
    rest = continuity_residual(lambda x, t: torch.zeros_like(x), lambda x, t: StandardNormal().log_prob(x), x, t)
    assert rest.value.tolist() == rest.scale.tolist() == [0.0] * 5
    assert rest.value.dtype == dtype
    blown = continuity_residual(lambda x, t: 0.5 * x, lambda x, t: StandardNormal().log_prob(x), x, t)
    size = math.prod(shape)
    close(blown.value, 0.5 * (size - x.reshape(5, -1).square().sum(1)), 1e-6)
    close(blown.scale, 0.5 * (size + x.reshape(5, -1).square().sum(1)), 1e-6)


def test_one_time_for_all_rows_or_one_each_and_no_graph_left():
    path, x = PATHS["cosine"], normal(4, 2, seed=0).requires_grad_(True)
    field = EmpiricalField(path, annulus(6) + 0.3)
    once = continuity_residual(field, field.log_prob, x, number(0.4))
    with torch.no_grad():
        each = continuity_residual(field, field.log_prob, x, number(0.4).repeat(4))
    close(once.scale, each.scale, 1e-12)
    assert not once.value.requires_grad
    assert x.grad is None


def test_wrong_shapes_are_named():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"t must have shape \(\) or \(3,\), got \(2,\)"):
        continuity_residual(lambda x, t: x, lambda x, t: x.sum(1), x, torch.zeros(2))
    with pytest.raises(ValueError, match=r"log_prob must return shape \(3,\), got \(3, 2\)"):
        continuity_residual(lambda x, t: x, lambda x, t: x, x, torch.tensor(0.5))
