import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import pathline as pl
from pathline.sources import Mixture, Points, StandardNormal
from problems import close, every_dtype, every_shape, normal, rounding, seeded

KINDS = ("isotropic", "diagonal", "full")
every_kind = pytest.mark.parametrize("kind", KINDS)
WEIGHTS = torch.tensor([1.0, 2.0, 5.0])


def covariances(kind: str, d: int) -> torch.Tensor:
    root = normal(3, d, d, seed=8)
    return {
        "isotropic": torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64),
        "diagonal": root[:, 0].square() + 0.05,
        "full": root @ root.mT / d + 0.05 * torch.eye(d),
    }[kind]


@every_shape
@every_dtype
@every_kind
def test_log_prob_is_that_of_torch(kind: str, dtype: torch.dtype, shape: tuple[int, ...]):
    d, means = math.prod(shape), normal(3, *shape, seed=1)
    source, x = Mixture(means, covariances(kind, d), WEIGHTS), normal(7, *shape, seed=2, dtype=dtype)
    given = source.covs
    whole = given if kind == "full" else torch.diag_embed(given.reshape(3, -1).expand(3, d))
    close(source.covariances(torch.arange(3)), whole, 1e-13)
    law = MixtureSameFamily(Categorical(WEIGHTS.double()), MultivariateNormal(means.reshape(3, d), whole))
    close(source.log_prob(x), law.log_prob(x.double().reshape(7, d)).to(dtype), rounding(dtype))
    assert source.log_prob(x[:0]).shape == (0,)
    drawn = source.sample((5, *shape), seeded(0), dtype)
    assert drawn.dtype == dtype
    assert drawn.shape == (5, *shape)
    assert torch.equal(drawn, source.sample((5, *shape), seeded(0), dtype))
    assert source.sample((0, *shape)).dtype == torch.float64
    assert Mixture(torch.zeros(2, 1, dtype=torch.long), torch.ones(2)).sample((3, 1)).dtype == torch.float32


@every_kind
def test_draws_have_the_moments_of_the_mixture(kind: str):
    n, means = 40_000, 2 * normal(3, 2, seed=1)
    source = Mixture(means, covariances(kind, 2), WEIGHTS)
    x, w = source.sample((n, 2), seeded(3)), WEIGHTS.double()[:, None] / WEIGHTS.sum()
    mean = (w * means).sum(0)
    second = (w[..., None] * (source.covariances(torch.arange(3)) + means[:, :, None] * means[:, None])).sum(0)
    products = x[:, :, None] * x[:, None]
    # six standard errors on 6 numbers: error probability below 1e-7
    assert bool(((x.mean(0) - mean).abs() <= 6 * x.std(0) / n**0.5).all())
    assert bool(((products.mean(0) - second).abs() <= 6 * products.std(0) / n**0.5).all())


def test_one_standard_component_is_the_standard_normal():
    x = normal(5, 2, 3, seed=0)
    close(Mixture(torch.zeros(1, 2, 3), torch.ones(1)).log_prob(x), StandardNormal().log_prob(x), 1e-13)


def test_components_without_width_are_drawn_from_and_those_without_weight_are_not():
    source = pl.sources.Mixture(
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]), torch.zeros(3), torch.tensor([1, 1, 0])
    )
    assert {tuple(row) for row in source.sample((200, 2), seeded(0)).tolist()} == {(1, 0), (0, 1)}
    with pytest.raises(ValueError, match="covs must be positive definite for the mixture to have a density"):
        source.log_prob(torch.zeros(1, 2))


def test_a_width_within_rounding_is_none():
    edge = normal(1, 4, 2, seed=3)
    source = Mixture(torch.zeros(1, 4), edge @ edge.mT)
    assert (source.variances == 0).sum() == 2


def test_log_prob_has_gradients():
    source, x = Mixture(normal(3, 2, seed=1), covariances("full", 2)), normal(4, 2, seed=2).requires_grad_(True)
    assert torch.autograd.gradcheck(source.log_prob, x)


@pytest.mark.parametrize(
    ("means", "covs", "weights", "message"),
    [
        (torch.zeros(0, 2), torch.ones(0), None, r"means must hold at least one row, got shape \(0, 2\)"),
        (torch.full((1, 2), math.nan), torch.ones(1), None, "means must be finite, row 0 is not"),
        (torch.zeros(1, 2), torch.full((1,), math.inf), None, "covs must be finite, row 0 is not"),
        (torch.zeros(2, 3), torch.ones(3), None, r"covs must have shape \(2,\), \(2, 3\) or \(2, 3, 3\), got \(3,\)"),
        (torch.zeros(1, 2), torch.tensor([[[1.0, 0.5], [0.0, 1.0]]]), None, "covs must be symmetric matrices"),
        (torch.zeros(1, 2), -torch.ones(1), None, "positive semidefinite, got a variance of -1"),
        (torch.zeros(2, 2), torch.ones(2), torch.ones(3), r"weights must have shape \(2,\), got \(3,\)"),
        (torch.zeros(2, 2), torch.ones(2), -torch.ones(2), "weights must be finite, not negative"),
    ],
)
def test_refuses_to_be_made_of(means, covs, weights, message: str):
    with pytest.raises(ValueError, match=message):
        Mixture(means, covs, weights)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(0, 2), r"data must hold at least one row, got shape \(0, 2\)"),
        (torch.tensor([[0.0], [math.nan]]), "data must be finite, row 1 is not"),
        ([[0.0]], "data must be a tensor, got list"),
    ],
)
def test_points_are_finite_rows(data, message: str):
    with pytest.raises(ValueError, match=message):
        Points(data)


def test_refuses_rows_of_another_shape():
    source = Mixture(torch.zeros(2, 3), torch.ones(2))
    with pytest.raises(ValueError, match=r"shape must end in the rows' shape \(3,\), got \(5, 2\)"):
        source.sample((5, 2))
    with pytest.raises(ValueError, match=r"x must end in the rows' shape \(3,\), got \(5, 2\)"):
        source.log_prob(torch.zeros(5, 2))
