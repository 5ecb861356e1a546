r"""Data laws given a linear observation $y = A x_1 + \eta\,\varepsilon$, $\varepsilon \sim \mathcal N(0, I)$.

A component $\mathcal N(m, C)$ stays Gaussian, and its weight is multiplied by the density that it gave y: with
$S = A C A^\top + \eta^2 I$ and $K = C A^\top S^{-1}$

$$m' = m + K (y - A m), \quad C' = C - K A C, \quad w' \propto w\,\mathcal N(y;\, A m,\, S).$$

Reference: Kalman, "A New Approach to Linear Filtering and Prediction Problems", J. Basic Engineering 82, 1960.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pathline.sources import check_tensor


def matrix(observe: Callable[[Tensor], Tensor], shape: torch.Size, y: Tensor, noise: float) -> Tensor:
    """A ``(m, D)`` of ``observe``, in float64.

    Raises:
        ValueError: noise that is not positive, an observe that is not linear, a y that is no tensor ``(m,)``.
    """
    check_tensor("y", y)
    if not 0 < noise < math.inf:
        raise ValueError(f"noise must be positive, got {noise}; for exact observations take a small one such as 0.01")
    d = shape.numel()
    probes = torch.cat([torch.eye(d), torch.zeros(1, d), torch.ones(1, d)]).to(y.device, torch.float64)
    seen = observe(probes.reshape(-1, *shape))
    if seen.ndim != 2 or y.shape != seen.shape[1:]:
        raise ValueError(f"y must be shaped like one observation {tuple(seen.shape[1:])}, got {tuple(y.shape)}")
    axes, nothing, whole = seen.double().split([d, 1, 1])
    if bool(nothing.any()) or not torch.allclose(axes.sum(0), whole[0], rtol=1e-6, atol=1e-6 * float(axes.abs().sum())):
        raise ValueError("observe must be linear: it is not additive, or not 0 at 0")
    return axes.T


def gaussians(means: Tensor, roots: Tensor, a: Tensor, y: Tensor, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Means ``(K, D)``, covariances ``(K, D, D)`` and log N(y; A m, S) ``(K,)``, from C = R R^T with ``roots`` R.

    C' is R (I + R^T A^T A R / noise^2)^-1 R^T, which rounding leaves symmetric and without negative variances.
    """
    seen, gap = a @ roots, y - means @ a.T
    spread = torch.linalg.cholesky(seen @ seen.mT + noise**2 * torch.eye(len(y)).to(seen))
    scaled = torch.linalg.solve_triangular(spread, gap[..., None], upper=False)
    pull = torch.linalg.solve_triangular(spread.mT, scaled, upper=True)
    inner = torch.linalg.cholesky(torch.eye(a.shape[1]).to(seen) + seen.mT @ seen / noise**2)
    left = torch.linalg.solve_triangular(inner, roots.mT, upper=False)
    log_det = 2 * spread.diagonal(dim1=1, dim2=2).log().sum(1) + len(y) * math.log(2 * math.pi)
    evidence = -0.5 * (scaled.square().sum((1, 2)) + log_det)
    return means + (roots @ seen.mT @ pull)[..., 0], left.mT @ left, evidence


def weights(log_weights: Tensor, evidence: Tensor) -> Tensor:
    """The weights, the largest 1, of components that y found as likely as ``evidence`` says."""
    total = log_weights + evidence
    return (total - total.max()).exp()
