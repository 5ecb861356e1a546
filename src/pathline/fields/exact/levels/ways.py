"""Three ways to posterior means at one time.

- *few*: bounds on logits, from products of 8 bits and what these can be off by, list the components that can matter;
  their weights are exact.
- *listed*: weights of 15 bits list the components that hold all but a sliver of the posterior.
- *whole*: weights of 15 bits are themselves rounded to bytes for one more product, but for the largest, which are
  listed.

Whatever is left out or rounded counts in the error of each row.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from pathline.fields.exact.bounded import Allowed, Bounded, unknown
from pathline.fields.exact.chunks import slices
from pathline.fields.exact.levels.index import GROUP, Index
from pathline.fields.exact.levels.keys import BOUND, SAMPLE, Query
from pathline.fields.exact.levels.products import PEAK
from pathline.fields.exact.levels.weights import PAIRWISE, Weights, runs, trimmed

FULL, LEAST = 0.9, 0.1
"""Of the error that is allowed, the share that is aimed at, and the least that any part of it is given."""

MANY = 0.15
"""The share of groups beyond which a list of what is near is not worth having."""

ROUNDINGS = 10
"""Of one logit in float32."""

PAIRS = 256
"""Differences at a time."""

EPS = torch.finfo(torch.float32).eps / 2
LOG2E, LN2 = 1 / math.log(2), math.log(2)


class Costs(NamedTuple):
    """Nanoseconds for each row and component, on a processor that multiplies bytes four times as fast as floats.

    Attributes:
        product: of bytes, for each coordinate.
        few, listed, whole: of each way besides, whatever it lists.
        near: where all groups are near enough to be looked into.
        offset, added: of a listed component, for each coordinate: its exact distance, and its part in a sum.
        sharp, dense: of the field without bytes, for each coordinate, where few components matter and all.
    """

    product: float = 0.0049
    few: float = 1.8
    listed: float = 5.0
    whole: float = 5.5
    near: float = 60.0
    offset: float = 1.2
    added: float = 0.08
    sharp: float = 0.024
    dense: float = 0.047

    def products(self, count: int, coordinates: int) -> float:
        return count * self.product * coordinates


COSTS = Costs()


class Found(NamedTuple):
    """An answer, and what it cost."""

    answer: Bounded
    cost: float


class Ways:
    """At alpha and sigma; ``bounds`` is room for those of as many queries as are asked about at a time."""

    def __init__(self, index: Index, alpha: float, sigma: float, allowed: Allowed, bounds: Tensor) -> None:
        self.index, self.keys, self.alpha, self.sigma, self.allowed = index, index.keys, alpha, sigma, allowed
        self.n, self.d = index.points.shape
        self.pull = LOG2E * alpha / sigma**2
        self.bias = (index.log_weights - 0.5 * alpha * self.pull * index.squares).float()
        self.largest_bias = float(self.bias.abs().max())
        self.bounds = bounds

    def few(self, x: Tensor, width: int) -> Found:
        """From ``width`` coordinates: ``share`` of the nearest's weight may be missing from groups, and from lists."""
        index, v = self.index, self._scaled(x)
        query = self.keys.query(v[:, self.keys.order[:width]], 1)
        if not self.keys.fits(query):
            return _nothing(x)
        bounds, best = self._bounds(query, v, width)
        group = index.groups[best.argmax(1)].clamp_max(self.n - 1)
        row = torch.arange(len(x))[:, None].expand_as(group)
        sure, place = self._exactly(x, row.reshape(-1), group.view(-1)).view_as(group).max(1, keepdim=True)
        nearest = index.points[group.gather(1, place)[:, 0]].double()
        share = (FULL / 2 * self.allowed(x, nearest) / (2 * index.reach)).clamp_max(1)
        zero = sure - (self._shift(x, query, width) + self._blur(v, query))[:, None]
        least = ((share / self.n).log2()[:, None] + zero).float()
        near = best > least
        share_near = int(near.count_nonzero()) / near.numel()
        if share_near > MANY:
            return _nothing(x)
        row, component, logs = self._over(bounds, near, least)
        keep, left = trimmed(row, (logs - zero[row, 0]).exp2(), share)
        row, component = row[keep], component[keep]
        cost = COSTS.products(1, width) + COSTS.few + COSTS.near * share_near + self._each(COSTS.offset, len(row), x)
        if cost > COSTS.dense * self.d:
            return _nothing(x)
        mean, log_sum, rounding = self._from(x, row, component)
        left = (left + share) * (sure[:, 0] - log_sum).exp2()
        error = left * (index.reach + self._away(mean)) + rounding
        return Found(Bounded(mean, error), cost)

    def _bounds(self, query: Query, v: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Upper bounds of logits by the first ``width`` coordinates, ``(b, N)``, and the largest of each group."""
        first, others = self.index.partial_norms[width]
        tilt = None
        if width < self.d:
            tilt = v[:, self.keys.order[width:]].norm(dim=1, keepdim=True), others
        bounds, best = self.bounds[: len(v)], torch.empty(len(v), len(self.index.groups), dtype=torch.float32)
        bias = self.bias + float(query.rest.max()) * first
        for cols, _ in self.keys.logits(query, bias, tilt, out=bounds):
            stop = bounds.shape[1] if cols.stop == self.n else cols.stop
            groups = bounds[:, cols.start : stop].unflatten(1, (GROUP, -1))
            torch.amax(groups, 1, out=best[:, cols.start // GROUP : stop // GROUP])
        return bounds, best

    def _shift(self, x: Tensor, query: Query, width: int) -> Tensor:
        """What bounds by the first ``width`` coordinates lack to log-weights in bits, ``(b,)``."""
        offset = self.keys.origin - self.index.centre[self.keys.order[:width]]
        squares = (x - self.alpha * self.index.centre).square().sum(1)
        return query.scale[:, 0].double() * (query.terms[0].double() @ offset) - 0.5 * LOG2E / self.sigma**2 * squares

    def _over(self, bounds: Tensor, near: Tensor, least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row, component and bound, each ``(m,)``, of bounds above ``least`` ``(b, 1)`` in groups that are ``near``."""
        row, group = near.nonzero().unbind(1)
        member = self.index.groups.index_select(0, group)
        flat = (row * bounds.shape[1])[:, None] + member
        each = bounds.view(-1).index_select(0, flat.view(-1)).view_as(flat)
        place, which = (each > least.index_select(0, row)).nonzero().unbind(1)
        return row[place], member[place, which], each[place, which]

    def _from(self, x: Tensor, row: Tensor, component: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mean of listed components, the logarithm of their sum, and how far float32 rounds the mean."""
        logs = self._exactly(x, row, component)
        top = x.new_full((len(x),), -math.inf).scatter_reduce(0, row, logs, "amax")
        weights = (logs - top[row]).exp2()
        total = torch.zeros_like(top).index_add_(0, row, weights)
        points, share = self.index.points, (weights / total[row]).to(self.index.points.dtype)
        counts, start = runs(row, len(x))
        mean = embedding_bag(component, points, start, mode="sum", per_sample_weights=share).double()
        away = torch.zeros_like(top).index_add_(0, row, weights * self.index.norms[component]) / total
        rounding = EPS * (2 + counts) * (self.index.centre.norm() + away)
        return mean, top + total.log2(), rounding * (total != 1)

    def listed(self, x: Tensor) -> Found:
        """All but a sliver of the posterior."""
        weights = self._weights(x)
        if weights is None:
            return _nothing(x)
        least = weights.threshold(self._spare(weights, x) / (2 * self.index.size) * weights.guess)
        left, first = x.new_zeros(2, len(x))
        for cols, each in weights.blocks():
            each.view(-1).index_fill_(0, weights.take(cols, each, least), 0)
            left += each.sum(1)
            first += each @ self.index.norms[cols]
            if self._each(COSTS.added, weights.taken, x) > COSTS.dense * self.d:
                return _nothing(x)
        mean = self.keys.step * weights.sums.double() / (weights.total - left)[:, None] + self.keys.origin
        away, left, first = self._away(mean), left / weights.total, first / weights.total
        spread = self._spread(weights, away, 2 * left * self.index.reach)
        error = first + left * away + self._rounding(weights, spread)
        cost = COSTS.products(2, self.d) + COSTS.listed + self._each(COSTS.added, weights.taken, x)
        return Found(Bounded(mean, error), cost)

    def whole(self, x: Tensor) -> Found:
        """All components."""
        weights = self._weights(x)
        if weights is None:
            return _nothing(x)
        keys, index = self.keys, self.index
        rounding = BOUND / PEAK * math.sqrt(self.n * float(index.squares.mean()))
        least = (self._spare(weights, x) / rounding * weights.guess).float()
        sums, drift, unit = torch.zeros(len(x), self.d, dtype=torch.int64), x.new_zeros(len(x)), least[:, None] / PEAK
        for cols, each in weights.blocks():
            if bool((each.amax(1) > least).any()):
                weights.take(cols, each, least, less=least)
            drift += keys.add_block(sums, cols, torch.minimum(each, least[:, None]).div_(unit))
            if self._each(COSTS.added, weights.taken, x) > COSTS.dense * self.d:
                return _nothing(x)
        unit, total, each = unit.double(), weights.total[:, None], weights.sums.double()
        each[:, keys.order] += unit * sums.double()
        mean = keys.step * each / total + keys.origin + (keys.origin - index.centre) * drift[:, None] * unit / total
        away, rounded = self._away(mean), rounding * least.double() / weights.total
        spread = self._spread(weights, away, rounded)
        error = rounded + self._rounding(weights, spread)
        cost = COSTS.products(3, self.d) + COSTS.whole + self._each(COSTS.added, weights.taken, x)
        return Found(Bounded(mean, error), cost)

    def _weights(self, x: Tensor) -> Weights | None:
        v = self._scaled(x)
        query = self.keys.query(v[:, self.keys.order], 2)
        return Weights(self.index, query, self.bias, self._blur(v, query)) if self.keys.fits(query) else None

    def _spare(self, weights: Weights, x: Tensor) -> Tensor:
        """Of the error that is allowed, by the sample, what the rounding of logits leaves."""
        total = weights.sample.sum(1, keepdim=True)
        mean, square = weights.sample @ self.index.sample / total, weights.sample @ self.index.squares[::SAMPLE]
        allowed = self.allowed(x, mean.double() + self.index.centre)
        spread = square / total[:, 0] - mean.square().sum(1)
        return torch.maximum(FULL * allowed - self._rounding(weights, spread.double()), LEAST * allowed)

    def _spread(self, weights: Weights, away: Tensor, error: Tensor) -> Tensor:
        r"""At most $\mathbb E\,|x_1 - \mathbb E[x_1]|^2$ by the weights, their mean being ``away`` up to ``error``."""
        slack = 2 * away * (error + self.keys.rest) + 2 * EPS * PAIRWISE * self.index.reach**2
        return weights.second / weights.total - away.square() + slack

    def _rounding(self, weights: Weights, spread: Tensor) -> Tensor:
        r"""How far rounding can move the mean, given the posterior's $\mathbb E\,|x_1 - \mathbb E[x_1]|^2$.

        A rest e of the query moves it by Cov e, and no norm of the covariance is above its trace; errors of up to blur
        in every logit, by at most blur times the standard deviation. Both change weights, hence the trace, by at most
        ``factor``. Sums of float32 and what bytes leave of the data add to it.
        """
        query, spread, blur = weights.query, spread.clamp_min(0), LN2 * weights.blur
        rest = LN2 * query.rest.double()
        factor = (2 * (rest * self.index.reach + blur)).exp()
        moved = LN2 * BOUND * query.scale[:, 0].double() + (factor.square() - 1) * rest
        return (
            factor * (moved * spread + blur * spread.sqrt())
            + 2 * EPS * (PAIRWISE + weights.parts + weights.longest) * self.keys.reach
            + self.keys.rest
        )

    def _scaled(self, x: Tensor) -> Tensor:
        """What components are multiplied by for their logits in bits, float32."""
        return (self.pull * (x - self.alpha * self.index.centre)).float()

    def _blur(self, v: Tensor, query: Query) -> Tensor:
        """Bits by which logits may be off whatever the query's rounding: what bytes leave of the data, and float32."""
        size = v.norm(dim=1).double()
        return (size + query.rest) * self.keys.rest + ROUNDINGS * EPS * (size * self.keys.reach + self.largest_bias)

    def _exactly(self, x: Tensor, row: Tensor, component: Tensor) -> Tensor:
        """Log-weights in bits of components of rows, ``(m,)``, but for what all components share."""
        points, squares = self.index.points, [x.new_empty(0)]
        near, (wide, own) = points.new_empty(PAIRS, self.d), x.new_empty(2, PAIRS, self.d)
        for part in slices(len(row), PAIRS):
            n = part.stop - part.start
            torch.index_select(points, 0, component[part], out=near[:n])
            torch.index_select(x, 0, row[part], out=own[:n])
            wide[:n].copy_(near[:n]).mul_(self.alpha)
            squares.append(torch.linalg.vector_norm(own[:n].sub_(wide[:n]), dim=1).square())
        return self.index.log_weights[component] - 0.5 * LOG2E / self.sigma**2 * torch.cat(squares)

    def _each(self, cost: float, count: int, x: Tensor) -> float:
        """``cost`` for each coordinate of ``count`` components, over all rows and components."""
        return cost * self.d * count / len(x) / self.n

    def _away(self, mean: Tensor) -> Tensor:
        return (mean - self.index.centre).norm(dim=1)


def _nothing(x: Tensor) -> Found:
    return Found(unknown(x), math.inf)
