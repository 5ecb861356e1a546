"""Draws and labels given x_t, and derivatives along a direction."""

import math

import pytest
import torch
from torch import Tensor

from pathline.fields import EmpiricalField, GaussianMixtureField
from pathline.paths import AffinePath, GaussianPath
from problems import SCHEDULES, close, curved_path, every_shape, normal, number, seeded

COSINE = AffinePath(SCHEDULES["cosine"])
PATHS = {"cosine": COSINE, "gaussian": curved_path()}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
N = 20_000
LIMIT = 6.0
"""Standard errors: each comparison fails by chance with less than 1e-8, and there are fewer than 100."""


@every_path
def test_draws_of_points_have_their_posterior_weights(path: AffinePath | GaussianPath):
    data, labels = normal(6, 2, seed=0), torch.tensor([4, 4, 9, 9, 9, 1])
    weights = torch.tensor([1.0, 2, 0, 1, 1, 1])
    x, t = normal(1, 2, seed=1), number(0.4)
    for label in (None, torch.tensor(9)):
        field = EmpiricalField(path, data, weights, labels)
        drawn = field.posterior_sample(x.expand(N, 2), t, seeded(2), label=label)
        share = (drawn[:, None] == data).all(2).double().mean(0)
        kept = (weights > 0) & (torch.ones(6, dtype=torch.bool) if label is None else labels == label)
        one = [EmpiricalField(path, data[i : i + 1]).log_prob(x, t) + weights[i].log() for i in range(6)]
        p = torch.cat(one).masked_fill(~kept, -math.inf).softmax(0)
        assert bool(((share - p).abs() <= LIMIT * (p * (1 - p) / N).sqrt() + 1e-12).all())


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full"])
def test_draws_of_a_mixture_have_the_moments_of_its_posterior(kind: str):
    d, root = 2, normal(3, 2, 2, seed=8)
    covs = {
        "isotropic": torch.tensor([0.1, 0.5, 0.9]),
        "diagonal": root[:, 0].square() + 0.1,
        "full": root @ root.mT + 0.05 * torch.eye(2),
    }[kind]
    field = GaussianMixtureField(COSINE, normal(3, d, seed=5), covs)
    x, t = normal(1, d, seed=1), number(0.6)
    drawn = field.posterior_sample(x.expand(N, d), t, seeded(3))
    mean = field.posterior_mean(x, t)
    assert bool(((drawn.mean(0) - mean[0]).abs() <= LIMIT * drawn.std(0) / math.sqrt(N)).all())
    # Tweedie: the posterior covariance is (sigma^2 / alpha) times the Jacobian of the posterior mean
    alpha, sigma, _, _ = COSINE.schedule(t)
    slope: Tensor = torch.func.jacrev(lambda at: field.posterior_mean(at[None], t)[0])(x[0])  # pyright: ignore
    found, true = drawn.T.cov(), sigma**2 / alpha * slope
    centred = drawn - drawn.mean(0)
    spread = (centred[:, :, None] * centred[:, None]).std(0)
    assert bool(((found - true).abs() <= LIMIT * spread / math.sqrt(N)).all())


@every_shape
@every_path
def test_shapes_dtypes_and_times_of_draws(path: AffinePath | GaussianPath, shape: tuple[int, ...]):
    field = EmpiricalField(path, normal(5, *shape, seed=0))
    x, t = normal(4, *shape, seed=1, dtype=torch.float32), torch.linspace(0, 0.9, 4)
    drawn = field.posterior_sample(x, t, seeded(0))
    assert drawn.shape == x.shape
    assert drawn.dtype == x.dtype
    assert torch.equal(drawn, field.posterior_sample(x, t, seeded(0)))
    assert field.posterior_sample(x[:0], number(0.5)).shape == (0, *shape)


@every_shape
@every_path
def test_labels_share_the_posterior_by_bayes(path: AffinePath | GaussianPath, shape: tuple[int, ...]):
    data, labels, weights = normal(6, *shape, seed=0), torch.tensor([7, 3, 7, 3, 3, -1]), torch.arange(1.0, 7)
    field, x, t = EmpiricalField(path, data, weights, labels), normal(5, *shape, seed=1), torch.linspace(0, 0.9, 5)
    assert field.classes.tolist() == [-1, 3, 7]
    prior = torch.tensor([6.0, 11, 4], dtype=torch.float64) / 21
    each = torch.stack([field.log_prob(x, t.double(), label=label) for label in field.classes], 1)
    close(field.label_posterior(x, t.double()), (each + prior.log()).softmax(1), 1e-12)
    with pytest.raises(ValueError, match="the field was made without labels"):
        EmpiricalField(path, data).label_posterior(x, t)


@pytest.mark.parametrize("kind", ["points", "curved", "mixture"])
def test_jvp_is_the_jacobian(kind: str):
    field = {
        "points": EmpiricalField(COSINE, normal(8, 3, seed=0)),
        "curved": EmpiricalField(PATHS["gaussian"], normal(8, 3, seed=0)),
        "mixture": GaussianMixtureField(COSINE, normal(3, 3, seed=0), torch.ones(3) / 2),
    }[kind]
    x, v, t = normal(4, 3, seed=1), normal(4, 3, seed=2), torch.linspace(0.1, 0.9, 4, dtype=torch.float64)
    velocity, along = field.jvp(x, t, v)
    close(velocity, field(x, t), 1e-13)
    step = 1e-5
    close(along, (field(x + step * v, t) - field(x - step * v, t)) / (2 * step), 1e-7)
    basis = torch.eye(3, dtype=torch.float64)
    trace = sum(field.jvp(x, t, e.expand(4, 3))[1] @ e for e in basis)
    assert isinstance(trace, Tensor)
    close(trace, field.divergence(x, t), 1e-11)
    with pytest.raises(ValueError, match=r"v must be shaped like x \(4, 3\), got \(3,\)"):
        field.jvp(x, t, v[0])
