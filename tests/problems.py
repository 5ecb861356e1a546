"""Exact solutions, and the lists that tests run over. Everything is float64 unless a dtype is asked for."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from pathline import schedules
from pathline.fields import EmpiricalField
from pathline.paths import AffinePath, GaussianPath, Prediction
from pathline.schedules import Schedule
from pathline.sources import StandardNormal

SCHEDULES: dict[str, Schedule] = {
    "linear": schedules.linear(),
    "linear-0.2": schedules.linear(0.2),
    "cosine": schedules.cosine(),
    "polynomial-1.5": schedules.polynomial(1.5),
    "polynomial-2": schedules.polynomial(2),
    "vp": schedules.variance_preserving(),
    "custom": schedules.custom(lambda t: t**2 * (3 - 2 * t), lambda t: (1 - t) * (1 + t)),
}
SHAPES = [(), (3,), (2, 3, 2)]
DTYPES = [torch.float32, torch.float64]

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
every_prediction = pytest.mark.parametrize("predicts", PREDICTIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])

every_state = pytest.mark.parametrize(
    ("shape", "dtype"),
    [((), torch.float64), ((3,), torch.float32), ((3,), torch.float64), ((2, 3, 2), torch.float32)],
    ids=["()-float64", "(3,)-float32", "(3,)-float64", "(2, 3, 2)-float32"],
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def number(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def columns(value: Tensor, x: Tensor) -> Tensor:
    """One number a row ``(b,)``, to broadcast against ``x``."""
    return value.reshape(-1, *[1] * (x.ndim - 1))


def rounding(dtype: torch.dtype) -> float:
    return 2e-5 if dtype == torch.float32 else 1e-12


def close(actual: Tensor, expected: Tensor, tol: float) -> None:
    """Equal dtypes and shapes, and within ``tol`` of each other in units of the largest expected number, at least 1."""
    scale = max(1.0, float(expected.detach().abs().max()) if expected.numel() else 1.0)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tol * scale)


def annulus(n: int, seed: int = 0) -> Tensor:
    """Points with radii uniform in [2, 3]."""
    angle, radius = torch.rand(2, n, generator=seeded(seed), dtype=torch.float64)
    angle, radius = 2 * math.pi * angle, 2 + radius
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def curved_path() -> GaussianPath:
    """A path whose mean AND standard deviation depend on x1, for rows of any shape; std ends between 0.1 and 0.3."""

    def std(x1: Tensor, t: Tensor) -> Tensor:
        last = 0.2 + 0.1 * x1.reshape(len(x1), -1).mean(1).tanh()
        return (1 - t) + t**2 * last

    return GaussianPath(lambda x1, t: t * x1 + t * (1 - t) * x1.tanh(), std)


def as_gaussian(schedule: Schedule) -> GaussianPath:
    """The affine path of a schedule, written as a user of `GaussianPath` would."""
    return GaussianPath(lambda x1, t: schedule(t).alpha * x1, lambda x1, t: schedule(t).sigma)


@dataclass(frozen=True)
class AffineFlow:
    r"""$\dot x = A x + b$ on flattened rows: $x_s = e^{(s - t) A} x_t + \int_t^s e^{(s - r) A} b\,dr$."""

    matrix: Tensor
    shift: Tensor

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        return (x.reshape(len(x), -1) @ self.matrix.to(x).T + self.shift.to(x)).reshape(x.shape)

    def flow(self, x: Tensor, t: float, s: float) -> Tensor:
        d = len(self.shift)
        whole = torch.zeros(d + 1, d + 1, dtype=torch.float64)
        whole[:d, :d], whole[:d, d] = self.matrix, self.shift
        power = torch.matrix_exp((s - t) * whole)
        return (x.reshape(len(x), -1) @ power[:d, :d].T.to(x) + power[:d, d].to(x)).reshape(x.shape)

    def log_prob(self, x: Tensor, t: float = 1.0) -> Tensor:
        """Of the standard normal at time 0, carried to ``t``."""
        return StandardNormal().log_prob(self.flow(x, t, 0.0)) - t * self.matrix.trace().to(x)


def affine_flow(shape: tuple[int, ...] = (3,), seed: int = 0) -> AffineFlow:
    d = math.prod(shape)
    return AffineFlow(0.7 * normal(d, d, seed=seed) / d**0.5, normal(d, seed=seed + 1))


@dataclass(frozen=True)
class GaussianToGaussian:
    r"""N(0, I) to N(m, s^2 I) with mean and standard deviation linear in t: $x_t = (1 - t + t s)\,x_0 + t m$."""

    mean: Tensor
    std: float

    def _std(self, t: Tensor) -> Tensor:
        return (1 - t + t * self.std).reshape(-1, 1)

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        return (self.std - 1) / self._std(t) * (x - t.reshape(-1, 1) * self.mean) + self.mean

    def log_prob(self, x: Tensor, t: Tensor, /) -> Tensor:
        std = self._std(t)
        return StandardNormal().log_prob((x - t.reshape(-1, 1) * self.mean) / std) - len(self.mean) * std[:, 0].log()

    def divergence(self, t: Tensor) -> Tensor:
        return len(self.mean) * (self.std - 1) / self._std(t)[:, 0]

    def flow(self, x: Tensor, t: float, s: float) -> Tensor:
        x0 = (x - t * self.mean) / (1 - t + t * self.std)
        return (1 - s + s * self.std) * x0 + s * self.mean


SEED_GAUSSIAN = GaussianToGaussian(torch.tensor([2.0, 1.0], dtype=torch.float64), 0.5**0.5)


def logistic(x: Tensor, t: Tensor, /) -> Tensor:
    """A nonlinear field that changes with time, solved by `logistic_flow`."""
    rate = 2 + 3 * torch.cos(4 * t)
    return columns(rate, x).to(x.dtype) * x * (1 - x)


def logistic_flow(x: Tensor, t: float, s: float) -> Tensor:
    def whole(r: float) -> float:
        return 2 * r + 0.75 * math.sin(4 * r)

    return 1 / (1 + (1 / x - 1) * math.exp(whole(t) - whole(s)))


def by_softmax(
    path: AffinePath | GaussianPath, data: Tensor, x: Tensor, t: Tensor, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """The exact marginal field, one data point after another from the path's conditional formulas."""
    w = torch.ones(len(data)) if weights is None else weights
    rows = [(point.expand_as(x), t) for point in data]
    logits = torch.stack([path.log_prob(x, *row) for row in rows], 1) + (w.double() / w.sum()).log()
    p = logits.softmax(1)

    def mean(function: Callable[..., Tensor]) -> Tensor:
        return sum(
            (columns(p[:, i], x) * function(x, *row) for i, row in enumerate(rows)),
            torch.zeros_like(x),
        )

    return {
        "log_prob": logits.logsumexp(1),
        "velocity": mean(path.velocity),
        "score": mean(path.score),
        "posterior_mean": mean(lambda x, x1, t: x1),
    }


class Answers(nn.Module):
    """A network that has learnt one of the four predictions of an exact field on an affine path perfectly."""

    def __init__(self, exact: EmpiricalField, predicts: Prediction) -> None:
        super().__init__()
        self.exact, self.predicts = exact, predicts

    def forward(self, x: Tensor, t: Tensor, /) -> Tensor:
        if self.predicts == "velocity":
            return self.exact(x, t)
        if self.predicts == "score":
            return self.exact.score(x, t)
        data = self.exact.posterior_mean(x.double(), t)
        if self.predicts == "noise":
            curve = self.exact.path.schedule(t.double())
            data = (x.double() - columns(curve.alpha, x) * data) / columns(curve.sigma, x)
        return data.to(x.dtype)


class Watch(torch.utils._python_dispatch.TorchDispatchMode):
    """While it is entered, sees how large tensors get.

    Attributes:
        largest: bytes of the largest storage behind a result.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.numel():
            self.largest = max(self.largest, out.untyped_storage().nbytes())
        return out
