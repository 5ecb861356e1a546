"""Exact fields whose source is a mixture or points, against every pair of components one by one."""

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import pathline as pl
from pathline import schedules
from pathline.fields import EmpiricalField, GaussianMixtureField
from pathline.fields.exact import mixture as module
from pathline.objectives import Sampled
from pathline.paths import AffinePath, BridgePath
from pathline.sources import Mixture, Points, StandardNormal
from pathline.testing import check_exact_field
from pathline.typing import Batch, Source
from problems import SCHEDULES, Watch, close, every_dtype, every_shape, normal, number, seeded

TIMES = torch.tensor([0.05, 0.2, 0.5, 0.9, 0.99], dtype=torch.float64)
QUANTITIES = ("velocity", "log_prob", "score", "posterior_mean", "divergence")
WEIGHTS = torch.tensor([1.0, 2.0, 5.0])
SOURCES = ("isotropic", "diagonal", "full", "points", "normal")
LAWS = ("data", "isotropic", "diagonal", "full")
COSINE = SCHEDULES["cosine"]
LINEAR = SCHEDULES["linear"]
LIMIT = 6.0
"""Standard errors: each comparison fails by chance with less than 1e-8, and there are fewer than 50."""

Exact = EmpiricalField | GaussianMixtureField


def covariances(kind: str, d: int, seed: int) -> Tensor:
    root = normal(3, d, d, seed=seed)
    return {
        "isotropic": root[:, 0, 0].square() + 0.1,
        "diagonal": root[:, 0].square() + 0.1,
        "full": root @ root.mT / d + 0.1 * torch.eye(d, dtype=torch.float64),
    }[kind]


def source_of(kind: str, shape: tuple[int, ...]) -> Source:
    if kind == "normal":
        return StandardNormal()
    means = 1.5 * normal(3, *shape, seed=20)
    return Points(means) if kind == "points" else Mixture(means, covariances(kind, math.prod(shape), 21), WEIGHTS)


def path_of(name: str, source: Source) -> AffinePath | BridgePath:
    if name == "affine":
        return AffinePath(COSINE, source)
    return BridgePath(source, 0.7 if name == "brownian" else lambda t: 0.2 + t * (1 - t))


def field_of(kind: str, path: AffinePath | BridgePath, shape: tuple[int, ...]) -> Exact:
    means = 1.5 * normal(3, *shape, seed=22)
    if kind == "data":
        return EmpiricalField(path, means, WEIGHTS.flip(0))
    return GaussianMixtureField(path, means, covariances(kind, math.prod(shape), 23), WEIGHTS.flip(0))


def closed(path: str, law: str, source: str) -> bool:
    """Whether there is a density, and one in closed form."""
    if path == "affine":
        return (law, source) != ("data", "points")
    return "full" not in (law, source) or law in ("data", "isotropic") or source in ("points", "normal", "isotropic")


CASES = [
    pytest.param(path, law, source, id=f"{path}-{law}-{source}")
    for path in ("affine", "brownian", "bridge")
    for law in LAWS
    for source in SOURCES
    if closed(path, law, source)
]
every_case = pytest.mark.parametrize(("path", "law", "source"), CASES)
FEW = [
    case
    for case in CASES
    if case.id
    in (
        "affine-data-full",
        "affine-full-diagonal",
        "affine-diagonal-points",
        "brownian-data-points",
        "bridge-full-isotropic",
        "affine-full-full",
    )
]
every_few = pytest.mark.parametrize(("path", "law", "source"), FEW)


def read(field: Exact, name: str) -> Callable[..., Tensor]:
    return field if name == "velocity" else getattr(field, name)


def parts_of(source: Source, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means, covariances and probabilities of a source."""
    eye = torch.eye(d, dtype=torch.float64)
    if isinstance(source, StandardNormal):
        return torch.zeros(1, d, dtype=torch.float64), eye[None], torch.ones(1, dtype=torch.float64)
    if isinstance(source, Points):
        k = len(source.data)
        return source.data.reshape(k, d), torch.zeros(k, d, d).double(), torch.ones(k, dtype=torch.float64) / k
    assert isinstance(source, Mixture)
    k = len(source.means)
    given = source.covs.double()
    covs = given if given.ndim == 3 else torch.diag_embed(given.reshape(k, -1).expand(k, d))
    return source.means.reshape(k, d), covs, source.log_weights.exp()


def by_pairs(path: AffinePath | BridgePath, law: Source, x: Tensor, t: Tensor) -> dict[str, Tensor]:
    """All quantities at one time, pair after pair, from full covariance matrices and their inverses."""
    flat, d = x.reshape(len(x), -1), x[0].numel()
    eye = torch.eye(d, dtype=torch.float64)
    if isinstance(path, AffinePath):
        (alpha, sigma, alpha_rate, sigma_rate), noise, half_rate = path.schedule(t), 0.0, 0.0
    else:
        alpha, sigma, alpha_rate, sigma_rate = t, 1 - t, 1.0, -1.0
        std, rate = torch.func.jvp(
            path.std if callable(path.std) else lambda t: path.std * (t * (1 - t)).sqrt(), (t,), (torch.ones_like(t),)
        )
        noise, half_rate = std**2, std * rate
    rows = []
    for m, c, p in zip(*parts_of(law, d), strict=True):
        for s, e, q in zip(*parts_of(path.source, d), strict=True):
            whole = alpha**2 * c + sigma**2 * e + noise * eye
            mean = alpha * m + sigma * s
            solved = (flat - mean) @ torch.linalg.inv(whole)
            gain = (alpha * alpha_rate * c + sigma * sigma_rate * e + half_rate * eye) @ torch.linalg.inv(whole)
            rows.append(
                {
                    "log_prob": MultivariateNormal(mean, whole).log_prob(flat) + (p * q).log(),
                    "velocity": (flat - mean) @ gain.T + alpha_rate * m + sigma_rate * s,
                    "score": -solved,
                    "posterior_mean": m + alpha * solved @ c,
                    "trace": gain.trace().expand(len(x)),
                }
            )
    all_of = {name: torch.stack([row[name] for row in rows], 1) for name in rows[0]}
    w = all_of["log_prob"].softmax(1)
    means = {name: (w[..., None] * all_of[name]).sum(1) for name in ("velocity", "score", "posterior_mean")}
    inner = (w * (all_of["trace"] + (all_of["velocity"] * all_of["score"]).sum(2))).sum(1)
    return {
        "log_prob": all_of["log_prob"].logsumexp(1),
        "divergence": inner - (means["velocity"] * means["score"]).sum(1),
        **{name: value.reshape(x.shape) for name, value in means.items()},
    }


def law_of(kind: str, shape: tuple[int, ...]) -> Mixture:
    d, means = math.prod(shape), 1.5 * normal(3, *shape, seed=22)
    return Mixture(means, torch.zeros(3) if kind == "data" else covariances(kind, d, 23), WEIGHTS.flip(0))


@every_shape
@every_case
def test_the_field_is_the_sum_over_all_pairs(path: str, law: str, source: str, shape: tuple[int, ...]):
    route = path_of(path, source_of(source, shape))
    field, x = field_of(law, route, shape), 1.5 * normal(5, *shape, seed=1)
    each = [by_pairs(route, law_of(law, shape), x[i : i + 1], t) for i, t in enumerate(TIMES)]
    for name in QUANTITIES:
        close(read(field, name)(x, TIMES), torch.cat([part[name] for part in each]), 1e-10)
        close(read(field, name)(x, TIMES[2]), by_pairs(route, law_of(law, shape), x, TIMES[2])[name], 1e-11)


@pytest.mark.parametrize("shape", [(), (3,), (2, 1, 2)], ids=str)
@every_dtype
@every_few
def test_every_way_to_an_answer_agrees(path: str, law: str, source: str, dtype: torch.dtype, shape: tuple[int, ...]):
    field = field_of(law, path_of(path, source_of(source, shape)), shape)
    check_exact_field(field, normal(5, *shape, seed=2), dtype)


@every_case
def test_coarse_states_are_answered_in_their_dtype_and_worked_out_finely(path: str, law: str, source: str):
    field, x = field_of(law, path_of(path, source_of(source, (3,))), (3,)), normal(5, 3, seed=1).float()
    for name in QUANTITIES:
        for t in (TIMES, TIMES[1].float()):
            close(read(field, name)(x, t), read(field, name)(x.double(), t.double()).float(), 0.0)


@every_shape
@pytest.mark.parametrize("law", LAWS)
def test_one_standard_component_is_the_standard_normal(law: str, shape: tuple[int, ...]):
    x, d = normal(5, *shape, seed=1), math.prod(shape)
    times = torch.tensor([0.0, 0.2, 0.5, 0.9, 0.99], dtype=torch.float64)
    standard = field_of(law, AffinePath(COSINE), shape)
    for covs in (torch.ones(1), torch.ones(1, d), torch.eye(d)[None]):
        field = field_of(law, AffinePath(COSINE, Mixture(torch.zeros(1, *shape), covs)), shape)
        assert field.open_ends == standard.open_ends
        for name in QUANTITIES:
            close(read(field, name)(x, times), read(standard, name)(x, times), 1e-11)


def test_a_bridge_from_a_standard_normal_is_an_affine_path_with_more_noise():
    data, x = normal(4, 2, seed=0), normal(5, 2, seed=1)
    wider = pl.GaussianPath(lambda x1, t: t * x1, lambda x1, t: (1 - t) * (1 + t**2).sqrt())
    field, same = EmpiricalField(BridgePath(StandardNormal(), lambda t: t * (1 - t)), data), EmpiricalField(wider, data)
    for name in QUANTITIES:
        close(read(field, name)(x, TIMES), read(same, name)(x, TIMES), 1e-11)


def exactly(x: list[float], data: list, source: list, width: float, noise: float, t: float) -> dict[str, list]:
    """Points and a source of equal isotropic components on straight lines, in 60 digits."""
    with mpmath.workdps(60):
        mp, d = mpmath.mpf, len(x)
        alpha, sigma = mp(t), 1 - mp(t)
        variance = sigma**2 * mp(width) + mp(noise) ** 2 * alpha * sigma
        rate = (-sigma * mp(width) + mp(noise) ** 2 * (mp("0.5") - alpha)) / variance
        rows = []
        for m in data:
            for s in source:
                m, s = [mp(v) for v in m], [mp(v) for v in s]
                y = [mp(v) - alpha * a - sigma * b for v, a, b in zip(x, m, s, strict=True)]
                velocity = [rate * v + a - b for v, a, b in zip(y, m, s, strict=True)]
                logit = -sum(v**2 for v in y) / (2 * variance)
                rows.append((logit, velocity, [-v / variance for v in y], m))
        w = [mpmath.exp(row[0]) for row in rows]
        total = sum(w)
        v, g, mean = (
            [sum(wi * row[j][k] for wi, row in zip(w, rows, strict=True)) / total for k in range(d)] for j in (1, 2, 3)
        )
        inner = sum(
            wi * sum((a - c) * (b - e) for a, b, c, e in zip(row[1], row[2], v, g, strict=True))
            for wi, row in zip(w, rows, strict=True)
        )
        norm = mpmath.log(total / len(rows)) - d * mpmath.log(2 * mpmath.pi * variance) / 2
        return {
            "log_prob": [norm],
            "velocity": v,
            "score": g,
            "posterior_mean": mean,
            "divergence": [d * rate + inner / total],
        }


@pytest.mark.parametrize("t", [1e-3, 0.5, 0.9, 0.99, 1 - 1e-4])
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("kind", ["affine", "bridge"])
def test_agrees_with_extended_precision(kind: str, offset: float, t: float):
    data, starts = normal(6, 2, seed=0) + offset, normal(4, 2, seed=1) - offset
    width, noise = (0.25, 0.0) if kind == "affine" else (0.0, 0.5)
    std = math.sqrt((1 - t) ** 2 * width + noise**2 * t * (1 - t))
    x = t * data[3] + (1 - t) * starts[2] + std * torch.tensor([0.6, -0.8], dtype=torch.float64)
    path = AffinePath(LINEAR, Mixture(starts, torch.full((4,), width)))
    field = EmpiricalField(path if kind == "affine" else BridgePath(Points(starts), noise), data)
    full = path if kind == "affine" else BridgePath(Mixture(starts, torch.zeros(4, 2, 2)), noise)
    also = GaussianMixtureField(full, data, torch.zeros(6, 2, 2, dtype=torch.float64))
    expected = exactly(x.tolist(), data.tolist(), starts.tolist(), width, noise, t)
    bit = 2.0**-52 * offset / std  # the last bit of a state near the offset, of the law's width
    for name, value in expected.items():
        for one in (field, also):
            found = read(one, name)(x[None], number(t)).reshape(-1).tolist()
            size = max(abs(v) for v in value) + (1 if name == "log_prob" else 0)
            error = max(abs(mpmath.mpf(f) - v) for f, v in zip(found, value, strict=True)) / size
            assert error < (1e-7 if name == "divergence" else 1e-10 + 4 * bit), (name, float(error))


@every_few
@pytest.mark.parametrize("chunk", [4, 100])
def test_chunks_do_not_show(path: str, law: str, source: str, chunk: int, monkeypatch: pytest.MonkeyPatch):
    field, x = field_of(law, path_of(path, source_of(source, (3,))), (3,)), normal(5, 3, seed=1)
    whole = {name: [read(field, name)(x, t) for t in (TIMES, TIMES[3])] for name in QUANTITIES}
    monkeypatch.setattr(module, "CHUNK", chunk)
    for name, values in whole.items():
        for value, t in zip(values, (TIMES, TIMES[3]), strict=True):
            close(read(field, name)(x, t), value, 1e-11)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("law", ["data", "full"])
def test_pairs_are_never_all_made(law: str, per_row: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHUNK", 5000)
    means, covs = normal(60, 4, seed=0), torch.diag_embed(normal(60, 4, seed=2).square() + 0.1)
    path = AffinePath(COSINE, Mixture(normal(50, 4, seed=1), covs[:50]))
    field, x = (EmpiricalField(path, means) if law == "data" else GaussianMixtureField(path, means, covs)), means[:8]
    with Watch() as watch:
        field(x, torch.linspace(0.1, 0.9, 8, dtype=torch.float64) if per_row else number(0.5))
    assert watch.largest <= 8 * 2 * 5000  # all pairs: 8 x 60 x 50 x 4 = 96,000


@every_few
def test_the_jacobian_is_that_of_the_velocity(path: str, law: str, source: str):
    field, x, v = (
        field_of(law, path_of(path, source_of(source, (3,))), (3,)),
        normal(5, 3, seed=1),
        normal(5, 3, seed=2),
    )
    velocity, along = field.jvp(x, TIMES, v)
    close(velocity, field(x, TIMES), 1e-13)
    step = 1e-5
    close(along, (field(x + step * v, TIMES) - field(x - step * v, TIMES)) / (2 * step), 1e-6)


@pytest.mark.parametrize("kind", ["affine", "bridge"])
def test_labels_weights_and_their_posterior(kind: str):
    path = path_of(kind, source_of("full" if kind == "affine" else "points", (2,)))
    data, labels, weights = normal(6, 2, seed=0), torch.tensor([7, 3, 7, 3, 3, -1]), torch.arange(1.0, 7)
    field, x = EmpiricalField(path, data, weights, labels), normal(5, 2, seed=1)
    asked = torch.tensor([3, -1, 7, 3, 3])
    for name in QUANTITIES:
        both = read(field, name)(x, TIMES, label=asked)
        for i, label in enumerate(asked):
            own = EmpiricalField(path, data[labels == label], weights[labels == label])
            close(both[i : i + 1], read(own, name)(x[i : i + 1], TIMES[i]), 1e-11)
    prior = torch.tensor([6.0, 11, 4], dtype=torch.float64) / 21
    each = torch.stack([field.log_prob(x, TIMES, label=label) for label in field.classes], 1)
    close(field.label_posterior(x, TIMES), (each + prior.log()).softmax(1), 1e-11)
    repeated = EmpiricalField(path, data.repeat_interleave(torch.arange(1, 7), 0))
    for name in QUANTITIES:
        close(read(field, name)(x, TIMES), read(repeated, name)(x, TIMES), 1e-11)


@every_few
def test_draws_have_the_moments_of_the_posterior(path: str, law: str, source: str):
    n, shape = 20_000, (2,)
    field = field_of(law, path_of(path, source_of(source, shape)), shape)
    x, t = normal(1, *shape, seed=1), number(0.5)
    drawn = field.posterior_sample(x.expand(n, 2), t, seeded(3))
    assert bool(((drawn.mean(0) - field.posterior_mean(x, t)[0]).abs() <= LIMIT * drawn.std(0) / n**0.5).all())
    # x1 | x_t is a mixture over pairs, so that its second moment is that of draws of the pair given both ends
    route, m = path_of(path, source_of(source, shape)), law_of(law, shape)
    x1 = m.sample((200_000, 2), seeded(4))
    at = route.sample(Batch(x1), t, seeded(5)).x_t
    near = (at - x).norm(dim=1) < 0.15
    other, products = x1[near], drawn[:, :, None] * drawn[:, None]
    both = other[:, :, None] * other[:, None]
    slack = LIMIT * (products.std(0) / n**0.5 + both.std(0) / len(other) ** 0.5) + 0.1  # 0.1: the radius is not 0
    assert bool(((products.mean(0) - both.mean(0)).abs() <= slack).all())


def test_the_ends_are_open_where_a_component_has_no_width():
    data, wide, flat = normal(3, 2, seed=0), torch.ones(3), torch.tensor([[1.0, 0.0]]).expand(3, 2)
    points, mixed = Points(normal(4, 2, seed=1)), Mixture(normal(3, 2, seed=1), wide)
    smooth = BridgePath(points, lambda t: 0.1 + t * (1 - t))
    steep = AffinePath(schedules.custom(torch.sqrt, lambda t: 1 - 0.5 * t), mixed)
    for field, ends in (
        (EmpiricalField(AffinePath(LINEAR, mixed), data), {1.0: None}),
        (EmpiricalField(AffinePath(schedules.linear(0.2), mixed), data), {}),
        (GaussianMixtureField(AffinePath(LINEAR, points), data, wide), {0.0: None}),
        (GaussianMixtureField(AffinePath(LINEAR, mixed), data, wide), {}),
        (GaussianMixtureField(AffinePath(LINEAR, mixed), data, flat), {1.0: LINEAR.inner_time(1.0)}),
        (
            GaussianMixtureField(AffinePath(LINEAR, Mixture(data, flat)), data, flat.flip(1)),
            {0.0: None, 1.0: LINEAR.inner_time(1.0)},
        ),
        (EmpiricalField(BridgePath(points, 0.5), data), {0.0: None, 1.0: None}),
        (EmpiricalField(smooth, data), {}),
        (GaussianMixtureField(BridgePath(mixed, 0.5), data, wide), {}),
        (EmpiricalField(steep, data), {0.0: pytest.approx(1e-6, rel=1e-3)}),
    ):
        assert field.open_ends == ends
        for end in (0.0, 1.0):
            for name in QUANTITIES:
                if end in ends:
                    with pytest.raises(ValueError, match=f"t must not be {end:g}: this exact field has no value there"):
                        read(field, name)(data, number(end))
                else:
                    assert read(field, name)(data, number(end)).isfinite().all()


def test_values_at_the_ends_are_those_of_source_and_data():
    source, law = source_of("full", (3,)), law_of("diagonal", (3,))
    assert isinstance(source, Mixture)
    field, x = field_of("diagonal", AffinePath(COSINE, source), (3,)), normal(5, 3, seed=1)
    close(field.log_prob(x, number(0.0)), source.log_prob(x), 1e-11)
    close(field.log_prob(x, number(1.0)), law.log_prob(x), 1e-11)
    close(field.posterior_mean(x, number(0.0)), (law.log_weights.exp() @ law.means).expand(5, 3), 1e-11)
    close(field.posterior_mean(x, number(1.0)), x, 1e-11)


def test_far_queries_have_finite_values_and_empty_batches_empty_ones():
    x = torch.tensor([[1e6, 0, 0], [0, -1e8, 1e3], [1e12, 1e12, 1e12], [0, 0, 0], [-30, 30, -30]])
    for case in FEW:
        path, law, source = (str(value) for value in case.values)
        field = field_of(law, path_of(path, source_of(source, (3,))), (3,))
        for name in QUANTITIES:
            assert all(read(field, name)(x.double(), t).isfinite().all() for t in (TIMES, number(0.999)))
            assert all(read(field, name)(x[:0], t).shape[:1] == (0,) for t in (number(0.5), TIMES[:0]))
        assert all(field.posterior_sample(x[:0], t).shape == (0, 3) for t in (number(0.5), TIMES[:0]))


def logits(path: AffinePath | BridgePath, law: Source, x: list[float], t: float) -> list:
    """Logarithms of the weighted density of every data component at x, in 200 digits; on straight lines."""
    mp, d = mpmath.mpf, len(x)
    alpha, sigma = mp(t), 1 - mp(t)
    noise = mp(0.49) * alpha * sigma if isinstance(path, BridgePath) else mp(0)
    found = []
    for m, c, p in zip(*parts_of(law, d), strict=True):
        terms = []
        for s, e, q in zip(*parts_of(path.source, d), strict=True):
            c_, e_ = (mpmath.matrix(value.tolist()) for value in (c, e))
            whole = alpha**2 * c_ + sigma**2 * e_ + noise * mpmath.eye(d)
            y = mpmath.matrix(x) - alpha * mpmath.matrix(m.tolist()) - sigma * mpmath.matrix(s.tolist())
            square = (y.T * mpmath.inverse(whole) * y)[0]
            terms.append(mpmath.log(mp(float(p * q))) - (square + mpmath.log(mpmath.det(whole))) / 2)
        top = max(terms)
        found.append(top + mpmath.log(mpmath.fsum(mpmath.exp(term - top) for term in terms)))
    return found


@pytest.mark.parametrize("far", [1e7, 1e12, 1e18, 1e60])
@pytest.mark.parametrize("same", ["all", "along x", "nothing"])
@pytest.mark.parametrize(
    ("route", "source"),
    [("affine", "normal"), ("affine", "full"), ("affine", "diagonal"), ("affine", "points"), ("bridge", "points")],
)
def test_components_of_any_covariance_are_told_apart_from_any_distance(route: str, source: str, same: str, far: float):
    covs = covariances("full", 3, 23)
    if same == "all":
        covs = covs[:1].expand(3, 3, 3)
    elif same == "along x":
        covs[:, 0] = covs[:, :, 0] = torch.tensor([0.7, 0.0, 0.0])
    start, law = source_of(source, (3,)), Mixture(1.5 * normal(3, 3, seed=22), covs, WEIGHTS.flip(0))
    if isinstance(start, Mixture):
        start = Mixture(start.means, start.covs[:1].expand_as(start.covs), WEIGHTS)
    path = AffinePath(LINEAR, start) if route == "affine" else BridgePath(start, 0.7)
    field = GaussianMixtureField(path, law.means, covs, law.weights)
    direction = [1.0, 0.0, 0.0] if same == "along x" else [0.6, -0.48, 0.64]
    x = far * torch.tensor([direction], dtype=torch.float64)
    found = field.chunk(x, number(0.5)[None], slice(None)).relative()[0][0].tolist()
    with mpmath.workdps(200):
        wanted = logits(path, law, x[0].tolist(), 0.5)
        for one, exact in zip(found[1:], wanted[1:], strict=True):
            apart, step = mpmath.mpf(one) - mpmath.mpf(found[0]), exact - wanted[0]
            assert abs(apart - step) < 1e-12 * (abs(step) + far)


class Other:
    """A source that is none of the library's."""

    def sample(self, shape, generator=None, dtype=None, device=None) -> Tensor:
        return torch.zeros(shape)

    def log_prob(self, x: Tensor) -> Tensor:
        return x[:, 0]


TILTED = torch.tensor([[1.0, 1.0], [1.0, 1.0]]).expand(2, 2, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: EmpiricalField(AffinePath(LINEAR, Points(torch.zeros(2, 2))), torch.zeros(3, 2)),
            r"no density on an AffinePath: give it one \(sources.Mixture\), or take a BridgePath",
        ),
        (
            lambda: EmpiricalField(AffinePath(LINEAR, Mixture(torch.zeros(2, 2), TILTED)), torch.zeros(3, 2)),
            "source must have a width where the data have none",
        ),
        (
            lambda: GaussianMixtureField(
                AffinePath(LINEAR, Mixture(torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [1.0, 1.0]]))),
                torch.zeros(2, 2),
                torch.tensor([[1.0, 1.0], [1.0, 0.0]]),
            ),
            "source must have a width where the data have none",
        ),
        (
            lambda: GaussianMixtureField(
                AffinePath(LINEAR, Mixture(torch.zeros(2, 2), TILTED)), torch.zeros(2, 2), 3 * TILTED
            ),
            "source must have a width where the data have none",
        ),
        (
            lambda: GaussianMixtureField(
                BridgePath(Mixture(torch.zeros(2, 2), TILTED), 0.5), torch.zeros(2, 2), 3 * TILTED
            ),
            "covs of data or source must be isotropic, or both diagonal, for a closed form on a BridgePath",
        ),
        (
            lambda: EmpiricalField(AffinePath(LINEAR, Other()), torch.zeros(3, 2)),
            "source must be StandardNormal, Mixture or Points to have a closed form, got Other",
        ),
        (
            lambda: EmpiricalField(BridgePath(Points(torch.zeros(2, 3)), 0.5), torch.zeros(3, 2)),
            r"source must have rows of shape \(2,\), got \(3,\)",
        ),
    ],
)
def test_refuses_to_be_made_of(make: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_flat_directions_that_do_not_meet_have_a_field():
    away = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64).expand(2, 2, 2)
    means, x = normal(2, 2, seed=0), normal(4, 2, seed=1)
    field = GaussianMixtureField(AffinePath(COSINE, Mixture(means, TILTED)), means, away)
    expected = by_pairs(field.path, Mixture(means, away), x, number(0.4))  # pyright: ignore
    for name in QUANTITIES:
        close(read(field, name)(x, number(0.4)), expected[name], 1e-11)


def shares_of(x: Tensor, data: Tensor) -> Tensor:
    return torch.bincount(torch.cdist(x, data).argmin(1), minlength=len(data)) / len(x)


@pytest.mark.parametrize("kind", ["affine", "bridge"])
def test_the_flow_carries_the_source_to_the_points(kind: str):
    n, data = 4000, 2 * normal(4, 2, seed=30)
    source = source_of("full" if kind == "affine" else "points", (2,))
    path, weights = path_of("affine" if kind == "affine" else "brownian", source), torch.tensor([1.0, 2, 3, 4])
    field = EmpiricalField(path, data, weights)
    begin = 0.0 if kind == "affine" else 1e-3
    which = torch.multinomial(weights, n, replacement=True, generator=seeded(1))
    # points have no flow away from them: where the source is made of points, x begins as a draw just after t = 0
    x = path.sample(Batch(data[which]), number(begin), seeded(2)).x_t
    grid = begin + (1 - begin) * (pl.grids.uniform(96) * math.pi / 2).sin() ** 2
    end = pl.solve(field, x, grid, pl.solvers.rk4).x
    assert float(torch.cdist(end, data).amin(1).quantile(0.99)) < 0.05
    p = weights / weights.sum()
    # each of 4 shares at 5.5 standard errors, error probability below 4 x 4e-8
    assert bool(((shares_of(end, data) - p).abs() <= 5.5 * (p * (1 - p) / n).sqrt()).all())
    if kind == "bridge":
        with pytest.raises(ValueError, match="grid must not begin at t = 0, where the field has no value"):
            pl.solve(field, x)


@pytest.mark.parametrize("source", ["points", "full"])
def test_the_flow_carries_the_source_to_the_mixture(source: str):
    n, begin = 20_000, 0.02 if source == "points" else 0.0
    path, law = AffinePath(LINEAR, source_of(source, (2,))), law_of("full", (2,))
    field = field_of("full", path, (2,))
    x = path.sample(Batch(law.sample((n, 2), seeded(1))), number(begin), seeded(2)).x_t
    end = pl.solve(field, x, pl.grids.uniform(32, begin), pl.solvers.rk4).x
    w = law.log_weights.exp()
    second = (w[:, None, None] * (law.covariances(torch.arange(3)) + law.means[:, :, None] * law.means[:, None])).sum(0)
    products = end[:, :, None] * end[:, None]
    # 5 numbers at 6 standard errors, error probability below 1e-7
    assert bool(((end.mean(0) - w @ law.means).abs() <= LIMIT * end.std(0) / n**0.5).all())
    assert bool(((products.mean(0) - second).abs() <= LIMIT * products.std(0) / n**0.5).all())


def test_the_density_along_the_flow_is_the_field_s_own():
    source = source_of("full", (2,))
    path = AffinePath(COSINE, source)
    field, x1 = field_of("diagonal", path, (2,)), normal(6, 2, seed=1)
    along = pl.log_prob(field, x1, source=path.source, grid=pl.grids.uniform(128))
    close(along.value, field.log_prob(x1, number(1.0)), 1e-6)
    points = EmpiricalField(AffinePath(schedules.linear(0.3), source), 1.5 * normal(4, 2, seed=2))
    along = pl.log_prob(points, x1, source=source, grid=pl.grids.uniform(384))
    close(along.value, points.log_prob(x1, number(1.0)), 1e-6)


@every_few
def test_the_field_is_what_a_perfect_network_learns(path: str, law: str, source: str):
    route = path_of(path, source_of(source, (2,)))
    field, loss = (
        field_of(law, route, (2,)),
        pl.FlowMatching(route, times=lambda n, g, dtype, device: 0.05 + 0.9 * torch.rand(n, generator=g, dtype=dtype)),
    )
    x1 = law_of(law, (2,)).sample((40_000, 2), seeded(1))
    drawn = loss.draw(x1, seeded(2))
    u = field(drawn.x_t, drawn.t)
    for probe in (u, drawn.x_t, torch.ones_like(u)):
        product = (drawn.target - u) * probe  # the residual is orthogonal to every function of x_t and t
        assert bool((product.mean(0).abs() <= LIMIT * product.std(0) / len(x1) ** 0.5).all())


def test_a_batch_is_a_target_from_a_mixture_too():
    path, data = AffinePath(LINEAR, source_of("diagonal", (2,))), normal(8, 2, seed=0)
    drawn = pl.FlowMatching(path, target="batch").draw(data, seeded(0))
    close(drawn.target, EmpiricalField(path, data)(drawn.x_t, drawn.t), 1e-12)
    with pytest.raises(ValueError, match="source must be a standard normal"):
        pl.FlowMatching(path, target=Sampled(data, 4)).draw(data, seeded(0))


def test_a_network_is_fitted_from_a_mixture():
    path, law = AffinePath(LINEAR, source_of("full", (2,))), law_of("isotropic", (2,))
    data = law.sample((500, 2), seeded(0), torch.float32)
    torch.manual_seed(0)
    recipe = pl.Recipe(steps=300, batch_size=128, learning_rate=5e-3)
    model = pl.fit(pl.nets.MLP(2, 32, 2), data, pl.FlowMatching(path), recipe=recipe)
    field, x = field_of("isotropic", path, (2,)), path.sample(Batch(data), number(0.5).float(), seeded(1)).x_t
    with torch.no_grad():
        missed, whole = model.field(x, torch.full((500,), 0.5)) - field(x, number(0.5)), field(x, number(0.5))
    assert float(missed.square().sum()) < 0.2 * float(whole.var(0).sum()) * 500
    assert bool(model.sample(5, generator=seeded(2)).isfinite().all())
    assert bool(model.log_prob(data[:5]).isfinite().all())


def test_the_floor_of_the_loss_is_that_of_the_draws():
    from pathline.diagnostics import reference

    path, data = AffinePath(LINEAR, source_of("isotropic", (2,))), normal(8, 2, seed=0)
    field = EmpiricalField(path, data)
    found = reference(field, path, data, draws=400, generator=seeded(1)).floor
    loss = pl.FlowMatching(path)
    draws = loss.draw(data.repeat(4000, 1), seeded(2))
    other = loss.loss(field, draws) / 2
    slack = LIMIT * math.hypot(found.se, float(other.std()) / len(other) ** 0.5)
    assert abs(found.value - float(other.mean())) <= slack
