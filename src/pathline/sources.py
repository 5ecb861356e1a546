"""Sources: the law p_0 that a flow starts from."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class StandardNormal:
    r"""$\mathcal N(0, I)$ on states of any shape."""

    def sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draws a tensor of ``shape = (n, *d)``."""
        return torch.randn(shape, generator=generator, dtype=dtype, device=device)

    def sobol(self, shape: tuple[int, ...], seed: int) -> Tensor:
        """Points of a scrambled Sobol sequence through the normal quantiles, float64, ``shape = (n, *d)``.

        They fill the law evenly, so distances between finite sets of them have a low noise floor.
        """
        engine = torch.quasirandom.SobolEngine(math.prod(shape[1:]), scramble=True, seed=seed)
        u = engine.draw(shape[0], dtype=torch.float64).clamp(1e-16, 1 - 1e-16)
        return torch.special.ndtri(u).reshape(shape)

    def log_prob(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """Log-density of each row, in nats."""
        flat = x.flatten(1) if x.ndim > 1 else x[:, None]
        return -0.5 * flat.square().sum(1) - 0.5 * flat.shape[1] * math.log(2 * math.pi)


@dataclass(frozen=True)
class Points:
    """The rows of a data set ``(n, *d)``, drawn uniformly with replacement; it has no density.

    Raises:
        ValueError: data that are no tensor of real numbers, without a row, or not finite.
    """

    data: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        check_rows("data", self.data)

    def sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draws ``shape[0]`` rows.

        Raises:
            ValueError: ``shape[1:]`` is not the shape of a row.
        """
        _check_row("shape", shape, self.data)
        where = generator.device if generator is not None else self.data.device
        rows = torch.randint(len(self.data), (shape[0],), generator=generator, device=where)
        return self.data[rows.to(self.data.device)].to(device=device, dtype=dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        raise ValueError("a source made of points has no density; give a source that has one")


@dataclass(frozen=True, eq=False)
class Mixture:
    r"""A Gaussian mixture $\sum_k w_k\,\mathcal N(m_k, S_k)$ on states of any shape.

    Attributes:
        means: shape ``(K, *d)``.
        covs: variances ``(K,)`` (isotropic) or ``(K, d)`` (diagonal), or covariances ``(K, d, d)``; rows of any
            shape are flattened to d numbers. A component without width in some direction can be drawn from.
        weights: probabilities up to a factor, shape ``(K,)``; ``None``: equal.

    Raises:
        ValueError: wrong shapes, non-finite numbers, other than tensors of real numbers on one device, covariances that
            are not symmetric positive semidefinite.

    >>> two = Mixture(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.01, 0.01]))
    >>> two.log_prob(torch.tensor([[1.0], [-1.0]]))
    tensor([0.6905, 0.6905])
    """

    means: Tensor = field(repr=False)
    covs: Tensor = field(repr=False)
    weights: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_rows("means", self.means)
        check_rows("covs", self.covs, self.means.device)
        _ = self.variances, self.log_weights

    @cached_property
    def centres(self) -> Tensor:
        """The means as float64 rows, shape ``(K, D)``."""
        return self.means.double().reshape(len(self.means), -1)

    @property
    def variances(self) -> Tensor:
        """Variances along the principal axes, shape ``(K, D)``, float64; zero where they are within rounding of it."""
        return self._principal[0]

    @property
    def axes(self) -> Tensor | None:
        """The principal axes as columns, shape ``(K, D, D)``; ``None`` where they are the coordinates."""
        return self._principal[1]

    @cached_property
    def log_weights(self) -> Tensor:
        """Logarithms of the probabilities, shape ``(K,)``, float64."""
        return log_weights(self.weights, self.means)

    def covariances(self, index: Tensor) -> Tensor:
        """Covariance matrices of the components ``index`` ``(*n)``, shape ``(*n, D, D)``, float64."""
        if self.axes is None:
            return torch.diag_embed(self.variances[index])
        return (self.axes * self.variances[:, None])[index] @ self.axes[index].mT

    def sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draws a tensor of ``shape = (n, *d)``, by default in the dtype of the means.

        Raises:
            ValueError: ``shape[1:]`` is not the shape of a mean.
        """
        _check_row("shape", shape, self.means)
        home = self.means.device
        own = {"generator": generator, "dtype": torch.float64, "device": generator.device if generator else home}
        levels = self.log_weights.exp().cumsum(0)
        u = torch.rand(shape[0], **own).to(home)
        which = torch.searchsorted(levels, u * levels[-1], right=True).clamp_max(len(levels) - 1)
        steps = self.variances[which].sqrt() * torch.randn(shape[0], self.centres.shape[1], **own).to(home)
        if self.axes is not None:
            parts = zip(steps.split(_ROWS), which.split(_ROWS), strict=True)
            steps = torch.cat([torch.einsum("be,bde->bd", step, self.axes[k]) for step, k in parts])
        return (
            (self.centres[which] + steps)
            .reshape(shape)
            .to(device=device, dtype=dtype or torch.result_type(self.means, 1.0))
        )

    def log_prob(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """Log-density of each row, in nats.

        Raises:
            ValueError: rows of another shape, or a component without width, which has no density.
        """
        _check_row("x", tuple(x.shape), self.means)
        if float(self.variances.min()) <= 0:
            raise ValueError("covs must be positive definite for the mixture to have a density")
        rows = x.reshape(len(x), self.centres.shape[1]).to(self.centres)
        step = max(1, 2**22 // self.centres.numel())
        return torch.cat([self._log_prob(part) for part in rows.split(step)]).to(x)

    def _log_prob(self, rows: Tensor) -> Tensor:
        offset = rows[:, None] - self.centres
        if self.axes is not None:
            offset = torch.einsum("bkd,kde->bke", offset, self.axes)
        scaled = offset.square() / self.variances + self.variances.log() + math.log(2 * math.pi)
        return torch.logsumexp(self.log_weights - 0.5 * scaled.sum(2), 1)

    @cached_property
    def _principal(self) -> tuple[Tensor, Tensor | None]:
        return _principal(self.covs.double(), *self.centres.shape)


_ROWS = 2**14
"""Rows that are turned by axes of their own at once."""


def log_weights(weights: Tensor | None, rows: Tensor) -> Tensor:
    """Logarithms of the probabilities of ``rows`` ``(n, *d)``, shape ``(n,)``, float64; ``None``: equal.

    Raises:
        ValueError: weights that are no real tensor, on another device or of another shape, negative or non-finite
            ones, or none above zero.
    """
    if weights is None:
        return torch.full((len(rows),), -math.log(len(rows)), dtype=torch.float64, device=rows.device)
    check_tensor("weights", weights, rows.device)
    if weights.shape != rows.shape[:1]:
        raise ValueError(f"weights must have shape ({len(rows)},), got {tuple(weights.shape)}")
    w = weights.double()
    total = float(w.detach().sum())
    if not bool((w >= 0).all()) or not 0 < total < math.inf:
        bad = (~((w >= 0) & w.isfinite())).nonzero()
        found = f"{float(w[bad[0, 0]]):.6g} in row {int(bad[0, 0])}" if len(bad) else f"a sum of {total:.6g}"
        raise ValueError(f"weights must be finite, not negative, and not all zero, got {found}")
    return (w / w.sum()).log()


def check_tensor(name: str, value: Any, device: torch.device | None = None) -> None:
    """Raises ValueError, by name, where ``value`` is no tensor of real numbers, or not on ``device``, that of the data.

    >>> check_tensor("t", 0.5)
    Traceback (most recent call last):
    ValueError: t must be a tensor, got 0.5
    """
    if not isinstance(value, Tensor):
        found = repr(value) if isinstance(value, Real | str | None) else type(value).__name__
        raise ValueError(f"{name} must be a tensor, got {found}")
    if value.is_complex():
        raise ValueError(f"{name} must hold real numbers, got {value.dtype}")
    if device is not None and value.device != device:
        raise ValueError(f"{name} must be on the device of the data, {device}, got {value.device}")


def check_rows(name: str, value: Tensor, device: torch.device | None = None) -> None:
    """Raises ValueError, by name, where ``value`` holds no row, a row that is not finite, or other than numbers."""
    check_tensor(name, value, device)
    if value.dtype == torch.bool:
        raise ValueError(f"{name} must hold numbers, got {value.dtype}")
    if value.ndim == 0 or len(value) == 0:
        raise ValueError(f"{name} must hold at least one row, got shape {tuple(value.shape)}")
    if not bool(value.isfinite().all()):
        row = int((~value.isfinite()).reshape(len(value), -1).any(1).int().argmax())
        raise ValueError(f"{name} must be finite, row {row} is not")


def _check_row(name: str, shape: tuple[int, ...], rows: Tensor) -> None:
    if tuple(shape[1:]) != tuple(rows.shape[1:]):
        raise ValueError(f"{name} must end in the rows' shape {tuple(rows.shape[1:])}, got {tuple(shape)}")


def _principal(covs: Tensor, k: int, d: int) -> tuple[Tensor, Tensor | None]:
    """Variances ``(k, d)`` along principal axes ``(k, d, d)``; axes are None where they are the coordinates."""
    if covs.shape not in ((k,), (k, d), (k, d, d)):
        raise ValueError(f"covs must have shape ({k},), ({k}, {d}) or ({k}, {d}, {d}), got {tuple(covs.shape)}")
    if covs.ndim < 3:
        variances, axes = covs.reshape(k, -1).expand(k, d), None
    else:
        if bool(((covs - covs.mT).abs().amax((1, 2)) > 1e-6 * covs.abs().amax((1, 2))).any()):
            raise ValueError("covs must be symmetric matrices")
        variances, axes = torch.linalg.eigh(covs)
    largest = variances.abs().amax(-1, keepdim=True)
    if float((variances / largest.clamp_min(1e-300)).min()) < -1e-9:
        raise ValueError(f"covs must be positive semidefinite, got a variance of {float(variances.min()):.6g}")
    rounding = 0.0 if axes is None else d * torch.finfo(covs.dtype).eps
    return torch.where(variances > rounding * largest, variances, 0.0), axes
