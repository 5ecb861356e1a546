r"""The posterior of many points in few dimensions, to a proven error: far points are taken as cells with moments.

In units of sigma a point $\alpha(c + \delta)$ is seen from x as $z - e$, $z = (x - \alpha c) / \sigma$ from its cell's
mean and $e = \alpha \delta / \sigma$, and Hermite polynomials generate its kernel

$$e^{-|z - e|^2 / 2} = e^{-|z|^2 / 2} \sum_m \mathrm{He}_m(z)\, e^m / m!,$$

so a cell enters with its moments up to `ORDER` p. By Cramér's inequality, $|\mathrm{He}_n(z)| \le 1.09 \sqrt{n!}\,
e^{z^2 / 4}$, the rest of the sum is at most $1.09\,|e|^{p + 1} / \sqrt{(p + 1)!}\ e^{-(|z| - |e|)_+^2 / 4}$, and that
of its gradient at most $1.19 \sqrt{p + 3}$ in place of 1.09. Cells are the nodes of a k-d tree that are small enough
against sigma; what is out of a block's reach is left out and counted in the error.

Reference: Greengard and Strain, "The Fast Gauss Transform", SIAM J. Sci. Stat. Comput. 12 (1991).
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

ORDER = 4
LEAF = 32
BLOCK = 64
SURE = 6
"""Depth of the nodes that bound a row's sum from below."""
ROUNDINGS = 200
"""Of one number, in a posterior mean over cells."""

_CRAMER = 1.09 / math.sqrt(math.factorial(ORDER + 1))
_CRAMER_SLOPE = 1.19 * math.sqrt((ORDER + 3) / math.factorial(ORDER + 1))


class Noise(NamedTuple):
    r"""$\mathbb E[x_0] = (x - \alpha\,\mathbb E[x_1]) / \sigma$, ``(b, D)``, and a bound on its error ``(b,)``."""

    mean: Tensor
    error: Tensor


class _Level(NamedTuple):
    """Nodes of one depth: first row, mean ``(n, D)``, mass, radius, sum of |delta|^(p + 1), moments ``(n, M)``."""

    first: Tensor
    mean: Tensor
    mass: Tensor
    radius: Tensor
    rest: Tensor
    moments: Tensor


class Cells:
    """A k-d tree over ``points`` ``(N, D)`` of probabilities ``weights`` ``(N,)``, D at most 3."""

    def __init__(self, points: Tensor, weights: Tensor) -> None:
        n, d = points.shape
        self.depth = _halvings(n, LEAF)
        self.powers = [m for m in itertools.product(range(ORDER + 1), repeat=d) if sum(m) <= ORDER]
        order = _by_halves(points, self.depth)
        self.points = points.double()[order]
        self.weights = (weights / torch.bincount(order, minlength=n))[order]
        self.levels = [self._level(depth) for depth in range(self.depth + 1)]

    def _level(self, depth: int) -> _Level:
        points = self.points.reshape(2**depth, -1, self.points.shape[1])
        weights = self.weights.reshape(2**depth, -1)
        mass = weights.sum(1)
        mean = (weights[..., None] * points).sum(1) / mass.clamp_min(1e-300)[:, None]
        mean = torch.where(mass[:, None] > 0, mean, points.mean(1))
        step = points - mean[:, None]
        size = step.norm(dim=2)
        powers = [torch.stack([step[..., k] ** i for i in range(ORDER + 1)]) for k in range(step.shape[2])]
        moments = []
        for power in self.powers:
            product = weights
            for k, i in enumerate(power):
                product = product * powers[k][i] if i else product
            moments.append(product.sum(1))
        first = torch.arange(2**depth, device=points.device) * points.shape[1]
        rest = (weights * size ** (ORDER + 1)).sum(1)
        return _Level(first, mean, mass, torch.where(weights > 0, size, 0).amax(1), rest, torch.stack(moments, 1))

    def noise(self, x: Tensor, alpha: float, sigma: float, rtol: float) -> Noise:
        """At ``x`` ``(b, D)``, float64; the cells are chosen to be good to about ``rtol``, the error says how good."""
        cut = _Cut(self, alpha, sigma, rtol)
        order = _by_halves(x, _halvings(len(x), BLOCK))
        surest = cut.surest(x)
        parts = [cut.noise(x[rows], surest[rows].min()) for rows in order.split(BLOCK)]
        mean, error = (torch.cat(values) for values in zip(*parts, strict=True))
        back = order.new_empty(len(x)).scatter_(0, order, torch.arange(len(order), device=x.device))
        return Noise(mean[back], error[back])


class _Cut:
    """The largest nodes that are small against sigma, and the points of leaves that are not, in units of sigma.

    All nodes, points as well, are rows of mean, log-mass, radius and remainder in the order of the tree.
    """

    def __init__(self, cells: Cells, alpha: float, sigma: float, rtol: float) -> None:
        self.dtype = torch.float32 if rtol * min(1.0, alpha / sigma) >= 5e-5 else torch.float64
        self.scale, self.alpha, self.sigma = alpha / sigma, alpha, sigma
        self.range = math.log(1 / rtol) + 6
        self.cells = cells
        most = min(0.7, (20 * rtol) ** (1 / (ORDER + 1))) / self.scale
        picked, pending = [], torch.ones(1, dtype=torch.bool, device=cells.points.device)
        for level in cells.levels:
            small = level.radius <= most
            picked.append(pending & small)
            pending = (pending & ~small).repeat_interleave(2)
        leaves = pending[::2].nonzero()[:, 0]
        parts = [[value[own] for value in level] for level, own in zip(cells.levels, picked, strict=True)]
        first, mean, mass, radius, rest, moments = (torch.cat(values) for values in zip(*parts, strict=True))
        order, leaf = first.argsort(), cells.levels[-1]
        self.count, self.first, self.size = len(order), leaf.first[leaves], len(cells.points) // len(leaf.first)
        self.mean = torch.cat([mean[order], leaf.mean[leaves]])
        self.mass = torch.cat([mass[order], leaf.mass[leaves]])
        self.log_mass = self.mass.log().float()
        self.radius = torch.cat([radius[order], leaf.radius[leaves]]).float() * self.scale
        inner = self.radius[: self.count].double()
        self.rest = rest[order] * self.scale ** (ORDER + 1) * inner.square().exp()
        self.terms = self._terms(mean, moments[order])

    def _terms(self, mean: Tensor, moments: Tensor) -> dict[tuple[int, ...], Tensor]:
        """By powers of z_2, ..., and for each power of z_1: what a cell gives to the sum and to its slopes."""
        d = mean.shape[1]
        scaled = {
            m: moments[:, i] * self.scale ** sum(m) / math.prod(map(math.factorial, m))
            for i, m in enumerate(self.cells.powers)
        }
        nothing = moments.new_zeros(len(moments))

        def lower(m: tuple[int, ...], k: int) -> tuple[int, ...]:
            return (*m[:k], m[k] - 1, *m[k + 1 :])

        terms = {}
        for tail in itertools.product(range(ORDER + 2), repeat=d - 1):
            heads = [(head, *tail) for head in range(ORDER + 2 - sum(tail))]
            if heads:
                columns = [
                    [scaled.get(m, nothing), *(scaled.get(lower(m, k), nothing) for k in range(d))] for m in heads
                ]
                terms[tail] = torch.stack([torch.stack(own) for own in columns], 1).to(self.dtype)
        return terms

    def surest(self, x: Tensor) -> Tensor:
        """For each row, a lower bound on the log of the kernel's sum, from the node whose share is surest."""
        first = min(SURE, self.cells.depth)
        level = self.cells.levels[first]
        share = self._share(x[:, None], torch.arange(len(level.mass), device=x.device), first)
        best, node = share.max(1)
        for depth in range(first + 1, self.cells.depth + 1):
            pair = 2 * node[:, None] + torch.arange(2, device=x.device)
            share, side = self._share(x[:, None], pair, depth).max(1)
            node, best = pair.gather(1, side[:, None])[:, 0], torch.maximum(best, share)
        return best

    def _share(self, x: Tensor, node: Tensor, depth: int) -> Tensor:
        level = self.cells.levels[depth]
        far = (x - self.alpha * level.mean[node]).norm(dim=-1) / self.sigma + self.scale * level.radius[node]
        return level.mass[node].log() - far.square() / 2

    def noise(self, x: Tensor, surest: Tensor) -> tuple[Tensor, Tensor]:
        """Of a block of near rows, each of which has a sum of at least exp(surest)."""
        centre = (x.amax(0) + x.amin(0)) / 2
        rows = (x - centre) / self.sigma
        means = (self.alpha * self.mean - centre) / self.sigma
        away = (means.abs() - rows.abs().amax(0)).clamp_min(0).float().square().sum(1).sqrt()
        least = (away * (1 - 1e-6) - self.radius * (1 + 1e-6)).clamp_min(0)
        logs = self.log_mass - 0.5 * least.square()
        live = logs >= surest - self.range
        lost = torch.where(live, 0, (logs.double() - surest).exp())
        left, left_slope = lost.sum(), (lost * least.clamp_min(1)).sum()
        own, leaves = live[: self.count].nonzero()[:, 0], live[self.count :].nonzero()[:, 0]
        within = torch.arange(self.size, device=x.device)
        points = (self.first[leaves][:, None] + within).reshape(-1)
        offsets = (self.alpha * self.cells.points[points] - centre) / self.sigma
        sums, rest, top = self._sums(rows, means[own], own, offsets, self.cells.weights[points])
        mean = sums[1:] / sums[0]
        size, unit = mean.norm(dim=0), (surest - top).exp()
        missing, missing_slope = _CRAMER * rest + left * unit, _CRAMER_SLOPE * rest + left_slope * unit
        error = (missing_slope + size * missing) / (sums[0] - missing)
        reach = max(float(part.abs().max()) for part in (rows, means[own], offsets) if len(part))
        rounding = ROUNDINGS + 8 * (reach + size)
        error = error + torch.finfo(self.dtype).eps * rounding * (1 + size)
        return mean.T, torch.where((sums[0] > missing) & error.isfinite(), error, math.inf)

    def _sums(
        self, rows: Tensor, means: Tensor, own: Tensor, points: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The kernel's sum and slopes ``(1 + D, b)``, its remainder ``(b,)`` and the log of the unit of both."""
        z, z_points = self._offsets(rows, means), self._offsets(rows, points)
        logits, logits_points = (_logits(part) for part in (z, z_points))
        top = torch.cat([logits, logits_points]).amax(0)
        kernel, near = _exp(logits - top), _exp(logits_points - top)
        w = weights.to(self.dtype)
        sums = torch.stack([w @ near, *(w @ (near * v) for v in z_points)]).double()
        powers, b = [_hermite(v) for v in z], len(rows)
        for tail, term in self.terms.items():
            factor = kernel
            for k, power in enumerate(tail):
                factor = factor * powers[k + 1][power] if power else factor
            n = term.shape[1]
            sums = sums + term[..., own].reshape(len(term), -1) @ (powers[0][:n] * factor).reshape(-1, b)
        nearest = logits.amax(0) if len(own) else top
        rest = (self.rest[own].to(self.dtype) @ _exp(0.4 * (logits - nearest))).double()
        return sums, rest * (0.4 * nearest.double() - top.double()).exp(), top.double()

    def _offsets(self, rows: Tensor, means: Tensor) -> list[Tensor]:
        return [rows[:, k].to(self.dtype) - means[:, k, None].to(self.dtype) for k in range(rows.shape[1])]


def _logits(z: list[Tensor]) -> Tensor:
    total = z[0].square()
    for more in z[1:]:
        total = total.addcmul_(more, more)
    return total.mul_(-0.5)


def _hermite(z: Tensor) -> Tensor:
    """He_0 to He_(ORDER + 1) of z, stacked."""
    values = [torch.ones_like(z), z]
    for n in range(1, ORDER + 1):
        values.append(torch.addcmul(values[n - 1] * -n, z, values[n]))
    return torch.stack(values)


def _exp(x: Tensor) -> Tensor:
    return (x * (1 / math.log(2))).exp2()


def _halvings(n: int, size: int) -> int:
    return max(0, math.ceil(math.log2(max(1, n) / size)))


def _by_halves(points: Tensor, depth: int) -> Tensor:
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
