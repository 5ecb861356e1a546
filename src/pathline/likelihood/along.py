r"""Log-density along a curve beside the flow, for fields that say their score.

The marginal velocity u of an affine path with a standard normal source also says $s_t = \nabla \log p_t =
-\mathbb E[x_0 \mid x_t] / \sigma_t$. By the continuity equation, along any curve c

$$\frac{d}{dt} \log p_t(c_t) = -\nabla \cdot u_t(c_t) + s_t(c_t) \cdot (\dot c_t - u_t(c_t)).$$

The last term is nothing along the flow itself. Along the curve through a solver's points it makes good what they are
off the flow, whatever the solver's order: the error that remains is the integral's, with c, s and the scalar
$\nabla \cdot u + s \cdot u$ replaced by polynomials through the `POINTS` nodes next to each step. Its order is
`POINTS` where the solver's points lie on a smooth curve, and 4 with the kink that a multistep method's first steps
leave. For a field whose score is not quite that (a trained network, straightened couplings), the solver's error remains
in the share in which the score is wrong, so in the limit of many steps the density is the flow's all the same.

Reference: Skreta et al., "The Superposition of Diffusion Models Using the Ito Density Estimator", arXiv:2412.17762.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pathline.paths import AffinePath, converted

POINTS = 6
"""Nodes that each polynomial goes through, where the grid has as many."""


def integral(path: AffinePath, times: Sequence[float], x: Tensor, velocity: Tensor, div: Tensor) -> Tensor:
    r"""$\int \nabla \cdot u\,dt - \int s \cdot (dc - u\,dt)$ from the first time to the last, shape ``(b, k)``.

    Args:
        path: whose score the field says.
        times: of the n nodes, in order.
        x, velocity: points of the curve and the field there, shape ``(n, b, d)``.
        div: its divergence there, or k estimates of it, shape ``(n, b, k)``.

    Raises:
        ValueError: a time at which the score has no value.
    """
    by_velocity, by_x = (w.to(x)[:, None, None] for w in score_weights(path, times))
    mean, turn = (w.to(x) for w in line_weights(times))
    score = by_velocity * velocity + by_x * x
    moved = torch.tensordot(turn, x, 1)
    scalar = div + (score * velocity).sum(2, keepdim=True)
    return torch.tensordot(mean, scalar, 1) - (score * moved).sum((0, 2))[:, None]


def score_weights(path: AffinePath, times: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Weights of the velocity and of x in the score at every time, float64.

    Raises:
        ValueError: a time at which sigma is 0 or a rate is infinite.
    """
    curve = path.schedule(torch.tensor(list(times), dtype=torch.float64))
    one, zero = torch.ones_like(curve.alpha), torch.zeros_like(curve.alpha)
    by_velocity = converted(one, zero, curve, "velocity", "score")
    by_x = converted(zero, one, curve, "velocity", "score")
    source = curve.alpha == 0  # where x is sigma times the noise, however the velocity may be
    by_velocity = torch.where(source, zero, by_velocity)
    by_x = torch.where(source, -1 / curve.sigma**2, by_x)
    known = by_velocity.isfinite() & by_x.isfinite()
    if not bool(known.all()):
        bad = times[int((~known).nonzero()[0])]
        raise ValueError(f"path must say the score at every node, but it has none at t = {bad:.6g}: keep off that end")
    return by_velocity, by_x


def line_weights(times: Sequence[float]) -> tuple[Tensor, Tensor]:
    r"""Weights w and W with $\int h\,dt \approx \sum_i w_i h_i$ and $\int s \cdot dc \approx \sum_{ij} W_{ij} s_i c_j$.

    Both are exact for polynomials of degree ``POINTS - 1``.

    Returns:
        Float64, shapes ``(n,)`` and ``(n, n)``.
    """
    nodes = np.array(times)
    n, k = len(nodes), min(POINTS, len(nodes))
    mean, turn = np.zeros(n), np.zeros((n, n))
    roots, mass = np.polynomial.legendre.leggauss(k)
    for i in range(n - 1):
        first = max(0, min(i + 1 - k // 2, n - k))
        near = slice(first, first + k)
        half = (nodes[i + 1] - nodes[i]) / 2
        basis, slope = _lagrange(nodes[near], nodes[i] + half * (1 + roots))
        mean[near] += half * mass @ basis
        turn[near, near] += (basis * (half * mass)[:, None]).T @ slope
    return torch.from_numpy(mean), torch.from_numpy(turn)


def _lagrange(points: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Lagrange polynomials of ``points`` and their slopes, shape ``(len(at), len(points))``."""
    basis, slope = np.ones((len(at), len(points))), np.zeros((len(at), len(points)))
    for i, p in enumerate(points):
        for q in np.delete(points, i):
            slope[:, i] = (slope[:, i] * (at - q) + basis[:, i]) / (p - q)
            basis[:, i] *= (at - q) / (p - q)
    return basis, slope
