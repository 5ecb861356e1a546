"""A k-d tree over points, each node with its moments."""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from pathline.fields.exact.cells.series import ORDER

LEAF = 32


class Tables(NamedTuple):
    """Moments ``(powers, n)``; of the points of each leaf, steps from its mean ``(D, leaves, points)`` and weights."""

    moments: Tensor
    steps: Tensor
    weights: Tensor


class Nodes(NamedTuple):
    """All nodes of the tree; the children of node i are 2 i + 1 and 2 i + 2.

    Attributes:
        mean: shape ``(D, n)``.
        log_mass: of the probability within, shape ``(n,)``.
        variance: of the points by coordinate, shape ``(D, n)``.
        radius: the largest |delta|, shape ``(n,)``.
        rest: log of the mean of (|delta| / radius)^(p + 1), shape ``(n,)``.
        moments: means of the powers of delta / radius, shape ``(powers, n)``.
    """

    mean: Tensor
    log_mass: Tensor
    variance: Tensor
    radius: Tensor
    rest: Tensor
    moments: Tensor


class Tree:
    """A k-d tree over ``points`` ``(N, D)`` of probabilities ``weights`` ``(N,)``, D at most 3."""

    def __init__(self, points: Tensor, weights: Tensor) -> None:
        n, d = points.shape
        self.depth = halvings(n, LEAF)
        self.powers = [m for m in itertools.product(range(ORDER + 1), repeat=d) if sum(m) <= ORDER]
        order = by_halves(points, self.depth)
        ordered = points.double()[order]
        shares = (weights / torch.bincount(order, minlength=n))[order]
        levels = [self._level(ordered.reshape(2**k, -1, d), shares.reshape(2**k, -1)) for k in range(self.depth + 1)]
        self.nodes = Nodes(*(torch.cat(values, -1) for values in zip(*levels, strict=True)))
        leaves = self.nodes.mean[:, -(2**self.depth) :].T[:, None]
        steps = ordered.reshape(2**self.depth, -1, d) - leaves
        exact = Tables(self.nodes.moments, steps.permute(2, 0, 1).contiguous(), shares.reshape(2**self.depth, -1))
        self.tables = {torch.float64: exact, torch.float32: Tables(*(value.float() for value in exact))}

    def _level(self, points: Tensor, weights: Tensor) -> Nodes:
        mass = weights.sum(1)
        mean = (weights[..., None] * points).sum(1) / mass.clamp_min(1e-300)[:, None]
        mean = torch.where(mass[:, None] > 0, mean, points.mean(1))
        step = points - mean[:, None]
        size = step.norm(dim=2)
        radius = torch.where(weights > 0, size, 0).amax(1)
        unit, share = radius.clamp_min(1e-300)[:, None], weights / mass.clamp_min(1e-300)[:, None]
        variance = (share[..., None] * step.square()).sum(1)
        rest = (share * (size / unit).clamp_max(1) ** (ORDER + 1)).sum(1).log()
        sides = (step / unit[..., None]).clamp(-1, 1).unbind(2)
        powers = [[share, *(side**i for i in range(1, ORDER + 1))] for side in sides]
        moments = torch.stack([self._moment(powers, m, share) for m in self.powers])
        return Nodes(mean.T, mass.log(), variance.T, radius, rest, moments)

    def _moment(self, powers: list[list[Tensor]], m: tuple[int, ...], share: Tensor) -> Tensor:
        product = share
        for own, power in zip(powers, m, strict=True):
            product = product * own[power] if power else product
        return product.sum(1)


def halvings(n: int, size: int) -> int:
    return max(0, math.ceil(math.log2(max(1, n) / size)))


def by_halves(points: Tensor, depth: int) -> Tensor:
    """Rows halved along the widest side, again and again; the last one is repeated to fill up the halves."""
    n = len(points)
    order = torch.arange(math.ceil(n / 2**depth) * 2**depth, device=points.device).clamp_max(n - 1)
    for level in range(depth):
        order = order.reshape(2**level, -1)
        own = points[order]
        widest = (own.amax(1) - own.amin(1)).argmax(1)
        along = own.gather(2, widest[:, None, None].expand(*order.shape, 1))[..., 0]
        order = order.gather(1, along.argsort(1))
    return order.reshape(-1)
