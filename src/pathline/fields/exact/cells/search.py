"""The posterior mean at given rows from the cells of a tree."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pathline.fields.exact.bounded import Bounded
from pathline.fields.exact.cells.series import CRAMER, CRAMER_SLOPE, generated, hermite, log_rest
from pathline.fields.exact.cells.tree import Tree, by_halves, halvings

ROWS, GROUP, MOST, BLOCKS = 4096, 2, 64, 2048
"""Rows that are put in blocks together, those of the smallest block and of the largest, and blocks of one walk."""
WIDEST = 3.0
"""Of most blocks, in sigmas across."""
LARGEST = 1.5
"""Radius of a cell, in sigmas."""
SHARE = 0.5
"""Of the error that is allowed, for each cell."""
SURE = 5
"""Depth from which the leaf of the most likely points is looked for."""
SIZE = 2**16
"""Numbers per temporary: a few of them stay in the cache."""
ROUNDINGS = 200
"""Of one number, in a weight of the posterior."""
NOTHING = 80.0
"""Nats under the largest weights from which all others together are nothing."""


class Cells:
    """``points`` ``(N, D)`` of probabilities ``weights`` ``(N,)``, D at most 3."""

    def __init__(self, points: Tensor, weights: Tensor) -> None:
        self.tree = Tree(points, weights)

    def posterior_mean(self, x: Tensor, alpha: float, sigma: float, tol: float) -> Bounded:
        """At ``x`` ``(b, D)``, float64, for alpha at least 0 and sigma above it.

        The cells are chosen for an error of about ``tol``, in the units of the data; the result says what it is.
        """
        return _Search(self.tree, max(alpha / sigma, 1e-30), tol).posterior_mean(x / sigma)


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

    def __init__(self, tree: Tree, scale: float, tol: float) -> None:
        extent = float(tree.nodes.radius[0]) or 1.0
        noise = min(tol, extent) * scale
        self.tree, self.scale, self.unit = tree, scale, min(1 / scale, extent)
        self.dtype = torch.float32 if noise >= 1e-4 * min(extent * scale, 8) else torch.float64
        self.tables = tree.tables[self.dtype]
        self.range = math.log(1 / noise) + 4
        self.most = math.log(SHARE * noise / CRAMER_SLOPE)

    def posterior_mean(self, x: Tensor) -> Bounded:
        depth = halvings(len(x), GROUP)
        order = by_halves(x, depth)
        group = len(order) >> depth
        parts = [self._of_near(x[rows], group) for rows in order.split(group << halvings(ROWS, group))]
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
                origin = self.tree.nodes.mean[:, node[part[::own]]]
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
                offset = (_at(self.tree.nodes.mean, node) - _at(blocks.origin, block)) / self.unit
                away = _length(offset) + _at(self.tree.nodes.radius, node) / self.unit
                reach.scatter_reduce_(0, block, away, "amax")
                found = add(rounded, _Pairs(block, node, offset.to(self.dtype)))
                sums.index_add_(0, block, torch.stack(found).flatten(0, 1).T.double())
        return self._mean(blocks, sums.reshape(count, 1 + d, width).permute(1, 2, 0), walk, reach)

    def _surest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """For each row a lower bound on the log of its sum, and a leaf that it comes from, or the root."""
        top = min(SURE, self.tree.depth)
        node = torch.arange(2**top - 1, 2 ** (top + 1) - 1, device=x.device).expand(len(x), -1)
        for depth in range(top, self.tree.depth + 1):
            node = node.gather(1, self._likely(x, node).argmax(1, keepdim=True))
            if depth < self.tree.depth:
                node = torch.cat([2 * node + 1, 2 * node + 2], 1)
        node = node[:, 0]
        leaf, exact = node - (2**self.tree.depth - 1), self.tree.tables[torch.float64]
        points = exact.steps.index_select(1, leaf) + _at(self.tree.nodes.mean, node)[..., None]
        half_squares = _half_square(list(x.T[..., None] - self.scale * points))
        nearest = (exact.weights.index_select(0, leaf).log() + half_squares).logsumexp(1)
        far = (x - self.scale * self.tree.nodes.mean[:, 0]).norm(dim=1) + self.scale * self.tree.nodes.radius[0]
        whole = -far.square() / 2
        return torch.maximum(nearest, whole), torch.where(whole > nearest, 0, node)

    def _likely(self, x: Tensor, node: Tensor) -> Tensor:
        """About the log of what nodes ``(b, k)`` add to a row: as if their points were Gaussian, but no nearer."""
        nodes, flat = self.tree.nodes, node.flatten()
        total, squares = torch.zeros((), dtype=x.dtype, device=x.device), torch.zeros_like(node, dtype=x.dtype)
        for own, mean, variance in zip(x.T, nodes.mean, nodes.variance, strict=True):
            square = (own[:, None] - self.scale * _at(mean, flat).view(node.shape)).square()
            wide = (1 + self.scale**2 * _at(variance, flat)).view(node.shape)
            total, squares = total + wide.log() + square / wide, squares + square
        least = (squares.sqrt() - self.scale * _at(nodes.radius, flat).view(node.shape)).clamp_min(0)
        return _at(nodes.log_mass, flat).view(node.shape) - torch.maximum(total, least.square()) / 2

    def _walk(self, blocks: _Blocks) -> _Walk:
        nodes, high, low = self.tree.nodes, blocks.rows.amax(1), blocks.rows.amin(1)
        middle, half, sure = (high + low) / 2, (high - low) / 2, blocks.sure.amin(0)
        block = torch.arange(len(sure), device=sure.device)
        node, two = torch.zeros_like(block), torch.arange(1, 3, device=sure.device)
        rest, lost, lost_slope, cells = *(torch.zeros_like(sure) for _ in range(3)), []
        for depth in range(self.tree.depth + 1):
            offset = self.scale * (_at(nodes.mean, node) - _at(blocks.origin, block))
            away = _length(((offset - _at(middle, block)).abs() - _at(half, block)).clamp_min(0)) * (1 - 1e-9)
            ratio, log_mass = self.scale * _at(nodes.radius, node), _at(nodes.log_mass, node) - _at(sure, block)
            least, rests = (away - ratio).clamp_min(0), log_mass + _at(nodes.rest, node) + log_rest(away, ratio)
            logs = log_mass - least.square() / 2
            live = logs + least.clamp_min(1).log() >= -self.range
            small = (rests <= self.most) & (ratio < LARGEST)
            share = torch.where(live, 0, logs.exp())
            lost = lost + block.bincount(share, len(sure))
            lost_slope = lost_slope + block.bincount(share * least.clamp_min(1), len(sure))
            own, split = (live & small).nonzero()[:, 0], (live & ~small).nonzero()[:, 0]
            rest = rest + block[own].bincount(rests[own].exp(), len(sure))
            cells.append(torch.stack([block[own], node[own]]))
            block, node = block[split], node[split]
            if depth < self.tree.depth:
                block, node = block.repeat_interleave(2), (2 * node[:, None] + two).flatten()
        missing, missing_slope = CRAMER * rest + lost, CRAMER_SLOPE * rest + lost_slope
        return _Walk(torch.cat(cells, 1), torch.stack([block, node]), missing, missing_slope)

    def _cells(self, blocks: _Blocks, pairs: _Pairs) -> list[Tensor]:
        """The sum and those of steps from the origin, each ``(B, pairs)``, of nodes by their moments."""
        nodes, size = self.tree.nodes, self.scale * self.unit
        z = [_at(rows, pairs.block) - size * own for rows, own in zip(blocks.rows, pairs.offset, strict=True)]
        log_mass, radius = _at(nodes.log_mass, pairs.node).to(self.dtype), _at(nodes.radius, pairs.node)
        kernel, ratio = (_half_square(z) - _at(blocks.sure, pairs.block) + log_mass).exp_(), self.scale * radius
        moments = dict(zip(self.tree.powers, _at(self.tables.moments, pairs.node), strict=True))
        value, slopes = generated(moments, [hermite(own, ratio.to(self.dtype)) for own in z])
        value, width = value.mul_(kernel), kernel * (radius / self.unit).to(self.dtype)
        steps = [torch.addcmul(value * own, width, slope) for own, slope in zip(pairs.offset, slopes, strict=True)]
        return [value, *steps]

    def _leaves(self, blocks: _Blocks, pairs: _Pairs) -> list[Tensor]:
        """The same of the points of leaves, one by one."""
        leaf, size = pairs.node - (2**self.tree.depth - 1), self.scale * self.unit
        steps = self.tables.steps.index_select(1, leaf)
        z = [
            (_at(rows, pairs.block) - size * own)[..., None] - self.scale * step
            for rows, own, step in zip(blocks.rows, pairs.offset, steps, strict=True)
        ]
        weights = self.tables.weights.index_select(0, leaf)
        kernel = (_half_square(z) - _at(blocks.sure, pairs.block)[..., None]).exp_() * weights
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


def _half_square(z: list[Tensor]) -> Tensor:
    """-|z|^2 / 2."""
    total = z[0].square()
    for more in z[1:]:
        total.addcmul_(more, more)
    return total.mul_(-0.5)
