"""The exact field of a law that is known by as many of its points as one asks for."""

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import KDTree
from torch import Tensor

from pathline.paths import AffinePath
from pathline.sources import StandardNormal

_NODES = 512
_REACH = 4.5
_TRIAL = 32


class LawField:
    r"""The marginal field of a law, by quadrature over evenly spread points of it.

    Given x_t = x, x_1 has the density of the law times $\mathcal N(x; \alpha x_1, \sigma^2 I)$. Its mean and variance
    are taken over the 512 nearest points to x / alpha of that prefix of the sequence whose 512 nearest points
    reach 4.5 sigma / alpha far: all of a short one where sigma / alpha is wide, few of a long one where it is narrow.
    Meant for rows of one to three numbers, and times at which a sphere of radius sigma / alpha still holds points.

    Attributes:
        path: an `AffinePath` from a standard normal source.
        points: of a low-discrepancy sequence, every prefix of which fills the law evenly, shape ``(n, d)``.

    Raises:
        ValueError: fewer than 512 points, points that are not finite rows, another path.
    """

    def __init__(self, path: AffinePath, points: Float[Tensor, "n d"]) -> None:
        if not isinstance(path, AffinePath) or not isinstance(path.source, StandardNormal):
            raise ValueError(f"path must be an AffinePath from a standard normal, got {type(path).__name__}")
        if points.ndim != 2 or len(points) < _NODES or not bool(points.isfinite().all()):
            raise ValueError(f"points must be {_NODES} or more finite rows (n, d), got shape {tuple(points.shape)}")
        self.path, self.points = path, points.double().cpu()
        self._trees: dict[int, KDTree] = {}

    def __call__(self, x: Float[Tensor, "b d"], t: Float[Tensor, "*b"], /) -> Tensor:
        """The velocity u_t(x), shaped like ``x``; as `velocity_and_divergence`."""
        return self.velocity_and_divergence(x, t)[0]

    def velocity_and_divergence(self, x: Float[Tensor, "b d"], t: Float[Tensor, "*b"]) -> tuple[Tensor, Tensor]:
        """u_t(x) and its divergence, shapes ``(b, d)`` and ``(b,)``.

        Raises:
            ValueError: times that are not one number inside (0, 1).
        """
        time = t.double().reshape(-1)
        if len(time) == 0 or not bool((time == time[0]).all()) or not 0 < float(time[0]) < 1:
            raise ValueError("t must be one number inside (0, 1) for all rows")
        alpha, sigma, alpha_rate, sigma_rate = (float(value) for value in self.path.schedule(time[0]))
        at = x.double().cpu()
        mean, scatter = self._posterior(at / alpha, sigma / alpha)
        velocity = alpha_rate * mean + sigma_rate / sigma * (at - alpha * mean)
        pull = alpha_rate - sigma_rate / sigma * alpha
        divergence = x.shape[1] * sigma_rate / sigma + pull * alpha / sigma**2 * scatter
        return velocity.to(x), divergence.to(x)

    def _posterior(self, centre: Tensor, width: float) -> tuple[Tensor, Tensor]:
        """Mean ``(b, d)`` and summed variances ``(b,)`` of the law times N(x1; centre, width^2 I)."""
        distances, order = self._near(centre.numpy(), width)
        logits = -0.5 * (torch.from_numpy(distances) / width).square()
        weights, nodes = logits.softmax(1), self.points[torch.from_numpy(order)]
        mean = (weights[..., None] * nodes).sum(1)
        return mean, (weights * (nodes - mean[:, None]).square().sum(2)).sum(1)

    def _near(self, centre: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
        """Distances and indices of the nodes of each row, ``(b, 512)``."""
        level, trial = int(math.log2(len(self.points) / _NODES)), centre[:_TRIAL]
        while level > 0 and np.quantile(self._nodes(level, trial)[0][:, -1], 0.05) < _REACH * width:
            level -= 1
        return self._nodes(level, centre)

    def _nodes(self, level: int, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if level not in self._trees:
            self._trees[level] = KDTree(self.points[: _NODES * 2**level].numpy())
        distances, order = self._trees[level].query(centre, k=_NODES)
        return np.asarray(distances), np.asarray(order)
