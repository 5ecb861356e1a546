r"""The posterior mean of many points in few dimensions, to a proven error: far points are taken as cells with moments.

In units of sigma a point $\alpha(c + \delta)$ is seen from x as $z - e$, $z = (x - \alpha c) / \sigma$ from its cell's
mean and $e = \alpha \delta / \sigma$, and Hermite polynomials generate its kernel

$$e^{-|z - e|^2 / 2} = e^{-|z|^2 / 2} \sum_m \mathrm{He}_m(z)\, e^m / m! = e^{-|z|^2 / 2}\, q(z),$$

so a cell enters with its moments up to `ORDER` p, and its sum of $e\,e^{-|z - e|^2 / 2}$ is $e^{-|z|^2 / 2} \nabla q$.
By Cramér's inequality, $|\mathrm{He}_n(z)| \le 1.09 \sqrt{n!}\,e^{z^2 / 4}$, the rest of the sum is at most
$1.09\,|e|^{p + 1} / \sqrt{(p + 1)!}\ e^{-(|z| - |e|)_+^2 / 4}$, and that of its gradient at most $1.19 \sqrt{p + 3}$ in
place of 1.09. Far from all points $|\mathrm{He}_n(z)| \le (|z| + \sqrt n)^n$ bounds the gradient's rest better, by
$\sqrt 2\,|e|^{p + 1} (|z| + |e| + \sqrt{p + 2})^{p + 2} / (p + 1)!\ e^{|z||e| - |z|^2 / 2}$.

Cells are the nodes of a k-d tree that are small enough against sigma. Blocks of near queries walk down it level by
level, all at once: a node that is out of a block's reach is left out and counted in the error, one that is small enough
is taken as a cell, and of a leaf that is not, the points are.

Reference: Greengard and Strain, "The Fast Gauss Transform", SIAM J. Sci. Stat. Comput. 12 (1991).
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

ORDER = 6
LEAF = 32
ROWS, GROUP, MOST, BLOCKS = 4096, 2, 64, 1024
"""Rows that are put in blocks together, those of the smallest block and of the largest, and blocks of one walk."""
WIDEST = 2.0
"""Of most blocks, in sigmas across."""
LARGEST = 1.5
"""Radius of a cell, in sigmas."""
SHARE = 0.3
"""Of the error that is allowed, for each cell."""
SURE, BEAM = 6, 2
"""Depth from which the leaf of the most likely points is looked for, and how many nodes are kept on the way."""
SIZE = 2**16
"""Numbers per temporary: a few of them stay in the cache."""
ROUNDINGS = 200
"""Of one number, in a weight of the posterior."""
NOTHING = 80.0
"""Nats under the largest weights from which all others together are nothing."""

_CRAMER = 1.09 / math.sqrt(math.factorial(ORDER + 1))
_CRAMER_SLOPE = 1.19 * math.sqrt((ORDER + 3) / math.factorial(ORDER + 1))

_FAR = math.log(math.sqrt(2) / math.factorial(ORDER + 1) / _CRAMER_SLOPE)


class Bounded(NamedTuple):
    r"""$\mathbb E[x_1]$ given x, ``(b, D)``, float64, and a bound on the norm of its error, ``(b,)``."""

    mean: Tensor
    error: Tensor


class _Tables(NamedTuple):
    """Moments ``(powers, n)``; of the points of each leaf, steps from its mean ``(D, leaves, points)`` and weights."""

    moments: Tensor
    steps: Tensor
    weights: Tensor


class _Nodes(NamedTuple):
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


class Cells:
    """A k-d tree over ``points`` ``(N, D)`` of probabilities ``weights`` ``(N,)``, D at most 3."""

    def __init__(self, points: Tensor, weights: Tensor) -> None:
        n, d = points.shape
        self.depth = _halvings(n, LEAF)
        self.powers = [m for m in itertools.product(range(ORDER + 1), repeat=d) if sum(m) <= ORDER]
        order = _by_halves(points, self.depth)
        ordered = points.double()[order]
        shares = (weights / torch.bincount(order, minlength=n))[order]
        levels = [self._level(ordered.reshape(2**k, -1, d), shares.reshape(2**k, -1)) for k in range(self.depth + 1)]
        self.nodes = _Nodes(*(torch.cat(values, -1) for values in zip(*levels, strict=True)))
        leaves = self.nodes.mean[:, -(2**self.depth) :].T[:, None]
        steps = ordered.reshape(2**self.depth, -1, d) - leaves
        exact = _Tables(self.nodes.moments, steps.permute(2, 0, 1).contiguous(), shares.reshape(2**self.depth, -1))
        self.tables = {torch.float64: exact, torch.float32: _Tables(*(value.float() for value in exact))}

    def _level(self, points: Tensor, weights: Tensor) -> _Nodes:
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
        return _Nodes(mean.T, mass.log(), variance.T, radius, rest, moments)

    def _moment(self, powers: list[list[Tensor]], m: tuple[int, ...], share: Tensor) -> Tensor:
        product = share
        for own, power in zip(powers, m, strict=True):
            product = product * own[power] if power else product
        return product.sum(1)

    def posterior_mean(self, x: Tensor, alpha: float, sigma: float, tol: float) -> Bounded:
        """At ``x`` ``(b, D)``, float64, for alpha at least 0 and sigma above it.

        The cells are chosen for an error of about ``tol``, in the units of the data; the result says what it is.
        """
        return _Search(self, max(alpha / sigma, 1e-30), tol).posterior_mean(x / sigma)


class _Blocks(NamedTuple):
    """Rows in blocks of near ones, over sigma.

    Attributes:
        rows: their offsets from alpha times the block's origin, shape ``(D, B, blocks)``.
        sure: a lower bound of the log of each row's sum over all points, shape ``(B, blocks)``.
        origin: a mean of points near which the data of the block are likely to be, shape ``(D, blocks)``.
    """

    rows: Tensor
    sure: Tensor
    origin: Tensor


class _Pairs(NamedTuple):
    """Blocks, and nodes that matter to them, both ``(pairs,)``; ``offset`` from origin to node, ``(D, pairs)``."""

    block: Tensor
    node: Tensor
    offset: Tensor


class _Walk(NamedTuple):
    """Blocks with the nodes that are cells to them, and with the leaves that are not, each ``(2, pairs)``.

    Attributes:
        missing, missing_slope: at most what is left out of a block's sum and of its gradient, in units of exp(sure).
    """

    cells: Tensor
    leaves: Tensor
    missing: Tensor
    missing_slope: Tensor


class _Search:
    """The sums over all points at one time; ``scale`` is alpha / sigma, rows come over sigma, and data in ``unit``."""

    def __init__(self, cells: Cells, scale: float, tol: float) -> None:
        extent, noise = float(cells.nodes.radius[0]) or 1.0, tol * scale
        self.cells, self.scale, self.unit = cells, scale, min(1 / scale, extent)
        self.dtype = torch.float32 if noise >= 1e-4 * min(extent * scale, 8) else torch.float64
        self.tables = cells.tables[self.dtype]
        self.range = math.log(1 / noise) + 4
        self.most = math.log(SHARE * noise / _CRAMER_SLOPE)

    def posterior_mean(self, x: Tensor) -> Bounded:
        depth = _halvings(len(x), GROUP)
        order = _by_halves(x, depth)
        group = len(order) >> depth
        parts = [self._of_near(x[rows], group) for rows in order.split(group << _halvings(ROWS, group))]
        back = order.new_empty(len(x)).scatter_(0, order, torch.arange(len(order), device=x.device))
        return Bounded(*(torch.cat(values)[back] for values in zip(*parts, strict=True)))

    def _of_near(self, x: Tensor, group: int) -> Bounded:
        """Of rows in the order of halves: in blocks, but one by one where a block is much wider than most are."""
        sure, node = self._surest(x)
        width = self._width(x, group)
        wide = (_across(x, width) > 2 * WIDEST).repeat_interleave(width)
        found = Bounded(torch.empty_like(x), torch.empty_like(sure))
        for rows, own in (((~wide).nonzero()[:, 0], width), (wide.nonzero()[:, 0], 1)):
            for part in rows.split(BLOCKS * own) if len(rows) else ():
                origin = self.cells.nodes.mean[:, node[part[::own]]]
                offset = x[part].unflatten(0, (-1, own)).permute(2, 1, 0) - self.scale * origin[:, None]
                blocks = _Blocks(offset.contiguous(), sure[part].unflatten(0, (-1, own)).T.contiguous(), origin)
                mean, error = self._of(blocks)
                found.mean[part], found.error[part] = mean.permute(2, 1, 0).flatten(0, 1), error.T.flatten()
        return found

    def _width(self, x: Tensor, group: int) -> int:
        """Of the largest blocks most of which are no wider than `WIDEST`; 1 where none are."""
        width, wider = 1, group
        while len(x) % wider == 0 and wider <= max(group, MOST) and float(_across(x, wider).median()) <= WIDEST:
            width, wider = wider, 2 * wider
        return width

    def _of(self, blocks: _Blocks) -> tuple[Tensor, Tensor]:
        """The posterior mean ``(D, B, blocks)`` and the bound of its error ``(B, blocks)``."""
        walk, (d, width, count) = self._walk(blocks), blocks.rows.shape
        sums, reach = blocks.rows.new_zeros(count, (1 + d) * width), blocks.rows.new_zeros(count)
        rounded = _Blocks(blocks.rows.to(self.dtype), blocks.sure.to(self.dtype), blocks.origin)
        points = self.tables.weights.shape[1]
        for pairs, add, size in ((walk.cells, self._cells, 1), (walk.leaves, self._leaves, points)):
            for block, node in pairs.split(max(1, SIZE // (size * width)), 1):
                offset = (_at(self.cells.nodes.mean, node) - _at(blocks.origin, block)) / self.unit
                away = _length(offset) + _at(self.cells.nodes.radius, node) / self.unit
                reach.scatter_reduce_(0, block, away, "amax")
                found = add(rounded, _Pairs(block, node, offset.to(self.dtype)))
                sums.index_add_(0, block, torch.stack(found).flatten(0, 1).T.double())
        return self._mean(blocks, sums.reshape(count, 1 + d, width).permute(1, 2, 0), walk, reach)

    def _surest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """For each row a lower bound on the log of its sum, and a leaf that it comes from, or the root."""
        top = min(SURE, self.cells.depth)
        node = torch.arange(2**top - 1, 2 ** (top + 1) - 1, device=x.device).expand(len(x), -1)
        for depth in range(top, self.cells.depth + 1):
            node = node.gather(1, self._likely(x, node).topk(min(BEAM, node.shape[1]), 1).indices)
            if depth < self.cells.depth:
                node = torch.cat([2 * node + 1, 2 * node + 2], 1)
        leaf, exact = (node - (2**self.cells.depth - 1)).flatten(), self.cells.tables[torch.float64]
        points = exact.steps.index_select(1, leaf) + _at(self.cells.nodes.mean, node.flatten())[..., None]
        squares = -2 * _half_square(list(x.T[:, :, None, None] - self.scale * points.unflatten(1, node.shape)))
        sums = (exact.weights.index_select(0, leaf).log().unflatten(0, node.shape) - squares / 2).logsumexp(2)
        nearest, own = sums.max(1)
        far = (x - self.scale * self.cells.nodes.mean[:, 0]).norm(dim=1) + self.scale * self.cells.nodes.radius[0]
        whole = -far.square() / 2
        node = torch.where(whole > nearest, 0, node.gather(1, own[:, None])[:, 0])
        return torch.maximum(nearest, whole), node

    def _likely(self, x: Tensor, node: Tensor) -> Tensor:
        """About the log of what nodes ``(b, k)`` add to a row: as if their points were Gaussian, but no nearer."""
        nodes, flat = self.cells.nodes, node.flatten()
        total, squares = torch.zeros((), dtype=x.dtype, device=x.device), torch.zeros_like(node, dtype=x.dtype)
        for own, mean, variance in zip(x.T, nodes.mean, nodes.variance, strict=True):
            square = (own[:, None] - self.scale * _at(mean, flat).view(node.shape)).square()
            wide = (1 + self.scale**2 * _at(variance, flat)).view(node.shape)
            total, squares = total + wide.log() + square / wide, squares + square
        least = (squares.sqrt() - self.scale * _at(nodes.radius, flat).view(node.shape)).clamp_min(0)
        return _at(nodes.log_mass, flat).view(node.shape) - torch.maximum(total, least.square()) / 2

    def _walk(self, blocks: _Blocks) -> _Walk:
        nodes, high, low = self.cells.nodes, blocks.rows.amax(1), blocks.rows.amin(1)
        middle, half, sure = (high + low) / 2, (high - low) / 2, blocks.sure.amin(0)
        block = torch.arange(len(sure), device=sure.device)
        node, two = torch.zeros_like(block), torch.arange(1, 3, device=sure.device)
        rest, lost, lost_slope, cells = *(torch.zeros_like(sure) for _ in range(3)), []
        for depth in range(self.cells.depth + 1):
            offset = self.scale * (_at(nodes.mean, node) - _at(blocks.origin, block))
            away = _length(((offset - _at(middle, block)).abs() - _at(half, block)).clamp_min(0)) * (1 - 1e-9)
            ratio, log_mass = self.scale * _at(nodes.radius, node), _at(nodes.log_mass, node) - _at(sure, block)
            least, log_rest = (away - ratio).clamp_min(0), log_mass + _at(nodes.rest, node) + _log_rest(away, ratio)
            logs = log_mass - least.square() / 2
            live = logs + least.clamp_min(1).log() >= -self.range
            small = (log_rest <= self.most) & (ratio < LARGEST)
            share = torch.where(live, 0, logs.exp())
            lost = lost + block.bincount(share, len(sure))
            lost_slope = lost_slope + block.bincount(share * least.clamp_min(1), len(sure))
            own, split = (live & small).nonzero()[:, 0], (live & ~small).nonzero()[:, 0]
            rest = rest + block[own].bincount(log_rest[own].exp(), len(sure))
            cells.append(torch.stack([block[own], node[own]]))
            block, node = block[split], node[split]
            if depth < self.cells.depth:
                block, node = block.repeat_interleave(2), (2 * node[:, None] + two).flatten()
        missing, missing_slope = _CRAMER * rest + lost, _CRAMER_SLOPE * rest + lost_slope
        return _Walk(torch.cat(cells, 1), torch.stack([block, node]), missing, missing_slope)

    def _cells(self, blocks: _Blocks, pairs: _Pairs) -> list[Tensor]:
        """The sum and those of steps from the origin, each ``(B, pairs)``, of nodes by their moments."""
        nodes, size = self.cells.nodes, self.scale * self.unit
        z = [_at(rows, pairs.block) - size * own for rows, own in zip(blocks.rows, pairs.offset, strict=True)]
        log_mass, radius = _at(nodes.log_mass, pairs.node).to(self.dtype), _at(nodes.radius, pairs.node)
        kernel, ratio = (_half_square(z) - _at(blocks.sure, pairs.block) + log_mass).exp_(), self.scale * radius
        moments = dict(zip(self.cells.powers, _at(self.tables.moments, pairs.node), strict=True))
        value, slopes = _generated(moments, [_hermite(own, ratio.to(self.dtype)) for own in z])
        value, width = value.mul_(kernel), kernel * (radius / self.unit).to(self.dtype)
        steps = [torch.addcmul(value * own, width, slope) for own, slope in zip(pairs.offset, slopes, strict=True)]
        return [value, *steps]

    def _leaves(self, blocks: _Blocks, pairs: _Pairs) -> list[Tensor]:
        """The same of the points of leaves, one by one."""
        leaf, size = pairs.node - (2**self.cells.depth - 1), self.scale * self.unit
        steps = self.tables.steps.index_select(1, leaf)
        z = [
            (_at(rows, pairs.block) - size * own)[..., None] - self.scale * step
            for rows, own, step in zip(blocks.rows, pairs.offset, steps, strict=True)
        ]
        kernel = (_half_square(z) - _at(blocks.sure, pairs.block)[..., None]).exp_() * self.tables.weights.index_select(
            0, leaf
        )
        value = kernel.sum(2)
        sums = [
            torch.addcmul((kernel * step).sum(2) / self.unit, value, own)
            for own, step in zip(pairs.offset, steps, strict=True)
        ]
        return [value, *sums]

    def _mean(self, blocks: _Blocks, sums: Tensor, walk: _Walk, reach: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior mean ``(D, B, blocks)`` and the bound of its error ``(B, blocks)``."""
        total, size = sums[0], self.scale * self.unit
        step = sums[1:] / total
        noise = _length(blocks.rows - size * step)
        error = (walk.missing_slope + noise * walk.missing) / (total - walk.missing) / size
        across = _length(blocks.rows).amax(0) + size * reach
        seen = torch.minimum(across, (2 * (NOTHING - blocks.sure)).sqrt())  # what is farther has no weight
        reach = torch.minimum(reach, (seen + noise) / size)
        error = error + torch.finfo(self.dtype).eps * (ROUNDINGS + 2 * across * seen) * reach
        good = (total > walk.missing) & error.isfinite() & step.isfinite().all(0)
        return blocks.origin[:, None] + self.unit * step, torch.where(good, self.unit * error, math.inf)


def _across(x: Tensor, width: int) -> Tensor:
    """The diagonal of each block of ``width`` rows."""
    own = x.unflatten(0, (-1, width))
    return (own.amax(1) - own.amin(1)).norm(dim=1)


def _at(values: Tensor, where: Tensor) -> Tensor:
    """Along the last axis."""
    return values.index_select(-1, where)


def _length(parts: Tensor) -> Tensor:
    """The norm over the first axis, which is short."""
    return (-2 * _half_square(list(parts))).sqrt()


def _log_rest(away: Tensor, ratio: Tensor) -> Tensor:
    r"""Log of what bounds the rest of a cell of mass and powers 1, in the gradient over `_CRAMER_SLOPE`, from |z| on.

    The first bound is at most $|e|^{p + 1} e^{|e|^2 - |z|^2 / 5}$; the second falls with |z| from 4 on.
    """
    near = ratio.square() - away.square() / 5
    far = (ORDER + 2) * (away + ratio + math.sqrt(ORDER + 2)).log() + away * ratio - away.square() / 2 + _FAR
    return (ORDER + 1) * ratio.log() + torch.where(away < 4, near, torch.minimum(near, far))


def _half_square(z: list[Tensor]) -> Tensor:
    """-|z|^2 / 2."""
    total = z[0].square()
    for more in z[1:]:
        total.addcmul_(more, more)
    return total.mul_(-0.5)


def _hermite(z: Tensor, ratio: Tensor) -> list[Tensor]:
    """ratio^n He_n(z) / n! for n up to `ORDER`."""
    step, square = ratio * z, ratio.square()
    values = [torch.ones_like(z), step]
    for n in range(1, ORDER):
        values.append(torch.addcmul(step * values[n], square, values[n - 1], value=-1).div_(n + 1))
    return values


def _generated(
    moments: dict[tuple[int, ...], Tensor], hermite: list[list[Tensor]], tail: tuple[int, ...] = ()
) -> tuple[Tensor, list[Tensor]]:
    """q(z) from the Hermite polynomials of each z_k, and its gradient over the ratio; ``tail`` is the powers chosen."""
    *others, own = hermite
    room = ORDER - sum(tail)
    if not others:
        terms = [moments[(i, *tail)] for i in range(room + 1)]
        return _weighted(terms, own), [_weighted(terms[1:], own)]
    parts = [_generated(moments, others, (i, *tail)) for i in range(room + 1)]
    values = [value for value, _ in parts]
    inner = [_weighted([slopes[k] for _, slopes in parts[:-1]], own) for k in range(len(others))]
    return _weighted(values, own), [*inner, _weighted(values[1:], own)]


def _weighted(terms: list[Tensor], powers: list[Tensor]) -> Tensor:
    total = torch.zeros_like(powers[0]) if not terms else terms[0] * powers[0]
    for term, power in zip(terms[1:], powers[1:], strict=False):
        total.addcmul_(term, power)
    return total


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
