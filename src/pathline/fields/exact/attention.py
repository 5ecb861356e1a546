r"""The posterior of a finite data set on an affine path in float32: an attention over the data.

With the data centred at c, $y = x - \alpha c$ and $n_i = x_i - c$, component i has the logit

$$\log w_i + \frac{\alpha}{\sigma^2}\, y \cdot n_i - \frac{\alpha^2}{2 \sigma^2} |n_i|^2,$$

one matrix product for all, and the posterior mean is a second one, both in blocks with a running softmax. Three ways
to do it, by what rounding does to the logits:

- up to `DIRECT` dimensions the differences $x / \alpha - x_i$ are taken themselves, which float32 does to the last bit
  (not near alpha = 0, where $x / \alpha$ has none to spare);
- where the products' rounding moves the posterior mean by little, judged by its spread, the two products;
- elsewhere the posterior is sharp: the first product finds the few components that can matter at all, within its
  error bound, and these are worked out in float64.

Rows for which none of them is good enough (far away, or sharp with many components in reach) are left to the caller.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pathline.fields.exact.chunks import slices

DIRECT = 3
LEAST_ALPHA = 0.02
ROWS, COLUMNS = 512, 1024
"""Queries and components of a block: its logits stay in the cache."""

CHAIN = 512
"""Products that are added up in float32, before their sum goes to one in float64."""

GROUP = 4
REST = 1e-6
"""The share of the posterior that a sharp row may leave out."""

TOLERANCE = 1.5e-4
"""The rounding of logits, in nats, at which the products are good enough whatever the posterior."""

SCATTER = 2e-5
"""The same where the scatter is asked for, and the rounding of its squares relative to it and to d sigma^2."""

WIDE = 2**24
"""Groups of components, over all rows of a block, whose best logits are kept at once."""

MOST = 1.5e-3
"""The rounding of logits, in nats, at which the products are tried: they are where it moves the mean by little."""

SUMMED = 16
"""Roundings of one number in the mean, as sums of random roundings do."""

PAIRS = 2**21
"""Numbers per temporary of a sharp row's components, in float64."""

EPS = torch.finfo(torch.float32).eps / 2
LOG2E = 1 / math.log(2)


class Posterior(NamedTuple):
    r"""What x tells about x1, in float64.

    Attributes:
        log_sum: $\log \sum_i w_i e^{-|x - \alpha x_i|^2 / 2 \sigma^2}$, shape ``(b,)``.
        gap: $x - \alpha\,\mathbb E[x_1]$, shape ``(b, D)``, precise relative to itself.
        data: $\mathbb E[x_1]$, shape ``(b, D)``.
        scatter: $\mathbb E\,|x_1 - \mathbb E[x_1]|^2$ where it was asked for, shape ``(b,)``.
        good: whether the row is good to float32; the others hold anything, shape ``(b,)``.
    """

    log_sum: Tensor
    gap: Tensor
    data: Tensor
    scatter: Tensor
    good: Tensor


class Attention:
    """The data as keys and values.

    Attributes:
        points: shape ``(N, D)``, float32.
        log_weights: shape ``(N,)``.
    """

    def __init__(self, points: Tensor, log_weights: Tensor) -> None:
        self.points, self.log_weights = points, log_weights
        n, d = points.shape
        self.uniform = bool((log_weights == log_weights[0]).all())
        self.shared = float(log_weights[0]) if self.uniform else 0.0
        self.columns = points.T.contiguous() if d <= DIRECT else points[:0]
        self.centre = points.mean(0, dtype=torch.float64).float()
        padded = n + -n % GROUP
        self.keys = points.new_zeros(padded, d + (1 if self.uniform else 2))
        torch.sub(points, self.centre, out=self.keys[:n, :d])
        for rows in slices(n, 4096):
            self.keys[rows, d] = -0.5 * self.keys[rows, :d].double().square().sum(1).float()
        self.reach = float((-2 * self.keys[:n, d].min()).sqrt())
        self.keys[n:, d] = -1e30
        if not self.uniform:
            self.keys[:n, d + 1] = log_weights.clamp_min(-1e30).float()

    def posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor, scatter: bool = False) -> Posterior:
        """For ``x`` ``(b, D)``, alpha and sigma ``(b, 1)``, all float64, alpha and sigma positive."""
        safe = self._rounding(x, alpha, sigma) <= MOST
        plain = (alpha[:, 0] > LEAST_ALPHA) & (x.shape[1] <= DIRECT)
        ways = {self._direct: plain, self._products: safe & ~plain, self._sharp: ~safe & ~plain}
        rows = [mask.nonzero()[:, 0] for mask in ways.values()]
        queries = (x, alpha, sigma)
        parts = [self._by_rows(way, scatter, *(v[own] for v in queries)) for way, own in zip(ways, rows, strict=True)]
        back = torch.cat(rows).argsort()
        found = Posterior(*(torch.cat(values)[back] for values in zip(*itertools.chain(*parts), strict=True)))
        poor = (~found.good & ~plain & safe).nonzero()[:, 0]
        if len(poor):
            again = self._by_rows(self._sharp, scatter, *(v[poor] for v in queries))
            for value, better in zip(found, zip(*again, strict=True), strict=True):
                value[poor] = torch.cat(better)
        return found

    def _by_rows(self, way: Callable[..., Posterior], scatter: bool, *queries: Tensor) -> list[Posterior]:
        step = max(16, min(ROWS, GROUP * WIDE // len(self.points)))
        return [way(*(query[rows] for query in queries), scatter) for rows in slices(len(queries[0]), step)]

    def _rounding(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """How far rounding moves the logits of the components in reach, as sums of random roundings do."""
        y = (x - alpha * self.centre).norm(dim=1)
        near = torch.minimum(alpha[:, 0] * self.reach, y + sigma[:, 0] * math.sqrt(x.shape[1]))
        return (1 + math.sqrt(x.shape[1]) / 8) * EPS * near * (y + near / 2) / sigma[:, 0].square()

    def _direct(self, x: Tensor, alpha: Tensor, sigma: Tensor, scatter: bool) -> Posterior:
        b, d = x.shape
        y = x / alpha
        high = y.float()
        low = (high.double() - y).float()
        scale = (-0.5 * LOG2E * (alpha / sigma).square()).float()
        top = high.new_full((b, 1), torch.finfo(torch.float32).min)
        total, sums = x.new_zeros(b, 1), x.new_zeros(b, d + scatter)
        blocks = [high.new_empty(b * COLUMNS) for _ in range(d + scatter + 1)]
        for cols in slices(len(self.points), COLUMNS):
            n = cols.stop - cols.start
            *offset, logits = (block[: b * n].view(b, n) for block in blocks)
            summed, offset = offset, offset[:d]
            for k, step in enumerate(offset):
                torch.sub(self.columns[k, cols], high[:, k : k + 1], out=step).add_(low[:, k : k + 1])
                torch.mul(step, step, out=logits) if k == 0 else logits.addcmul_(step, step)
            if scatter:
                summed[d].copy_(logits)
            logits.mul_(scale)
            if not self.uniform:
                logits.add_((self.log_weights[cols] * LOG2E).float())
            new_top = torch.maximum(top, logits.amax(1, keepdim=True))
            shrink = (top - new_top).exp2()
            weights = logits.sub_(new_top).exp2_()
            total = total * shrink + weights.sum(1, keepdim=True)
            sums = sums * shrink + torch.cat([each.mul_(weights).sum(1, keepdim=True) for each in summed], 1)
            top = new_top
        step, squares = (sums / total).split([d, int(scatter)], 1)
        good = (-top[:, 0] * EPS < (SCATTER if scatter else TOLERANCE)) & step.isfinite().all(1)
        log_sum = top.double() / LOG2E + total.log() + self.shared
        spread = (squares.sum(1) - step.square().sum(1)).clamp_min(0)
        if scatter:
            good &= EPS * squares[:, 0] <= SCATTER * (spread + d * sigma[:, 0].square())
        return Posterior(log_sum[:, 0], -alpha * step, y + step, spread, good)

    def _products(self, x: Tensor, alpha: Tensor, sigma: Tensor, scatter: bool) -> Posterior:
        b, d = x.shape
        y, queries = self._queries(x, alpha, sigma)
        top = queries.new_full((b, 1), torch.finfo(torch.float32).min)
        total, sums = x.new_zeros(b, 1), x.new_zeros(b, d + 1)
        block, parts = queries.new_empty(b * COLUMNS), queries.new_empty(math.ceil(COLUMNS / CHAIN), b, d + 1)
        for cols in slices(len(self.points), COLUMNS):
            keys = self.keys[cols]
            logits = torch.mm(queries, keys.T, out=block[: b * len(keys)].view(b, len(keys)))
            new_top = torch.maximum(top, logits.amax(1, keepdim=True))
            shrink = (top - new_top).exp2()
            weights = logits.sub_(new_top).exp2_()
            total = total.mul_(shrink).add_(weights.sum(1, keepdim=True))
            chains = list(slices(len(keys), CHAIN))
            for part, own in zip(parts, chains, strict=False):
                torch.mm(weights[:, own], keys[own, : d + 1], out=part)
            sums = sums.mul_(shrink).add_(parts[: len(chains)].sum(0))
            top = new_top
        mean, square = (sums / total).split([d, 1], 1)
        data = self.centre + mean
        gap = x - alpha * data
        log_sum = top.double() / LOG2E + total.log() - 0.5 * (y / sigma).square().sum(1, keepdim=True)
        spread = (-2 * square - mean.square().sum(1, keepdim=True)).clamp_min(0)
        rounding = self._rounding(x, alpha, sigma)
        if scatter:
            good = (rounding <= SCATTER) & (-2 * EPS * square <= SCATTER * (spread + d * sigma.square()))[:, 0]
        else:
            size = x.norm(dim=1) + (data - gap / sigma).norm(dim=1)
            shift = rounding * (spread.sqrt() * alpha / sigma)[:, 0]
            good = (rounding <= TOLERANCE) | ((rounding <= MOST) & (shift <= TOLERANCE / 4 * size))
            good &= SUMMED * EPS * (data.norm(dim=1) + spread[:, 0].sqrt()) <= TOLERANCE * size
        return Posterior(log_sum[:, 0] + self.shared, gap, data, spread[:, 0], good)

    def _sharp(self, x: Tensor, alpha: Tensor, sigma: Tensor, scatter: bool) -> Posterior:
        b, d = x.shape
        live, members = self._live(x, alpha, sigma)
        counts = live.sum(1)
        good = (counts * GROUP * 16 <= len(self.points)) & (counts * GROUP * d <= PAIRS)
        row, group = (live & good[:, None]).nonzero(as_tuple=True)
        component, ends = members[group], (counts * good).cumsum(0)
        parts, first, start = [], 0, 0
        while first < b:
            room = torch.as_tensor(start + PAIRS // (GROUP * d), device=x.device)
            last = max(first + 1, int(torch.searchsorted(ends, room, right=True)))
            stop = int(ends[last - 1])
            own = slice(first, last)
            near = row[start:stop] - first, component[start:stop]
            parts.append(self._exactly(x[own], alpha[own], sigma[own], *near))
            first, start = last, stop
        log_sum, gap, data, spread = (torch.cat(part) for part in zip(*parts, strict=True))
        return Posterior(log_sum, gap, data, spread, good)

    def _live(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Which groups of components can matter to a row ``(b, groups)``, and their members ``(groups, GROUP)``."""
        b, d = x.shape
        y, queries = self._queries(x, alpha, sigma)
        best, members = [], []
        block = queries.new_empty(b * COLUMNS)
        for cols in slices(len(self.keys), COLUMNS):
            keys, width = self.keys[cols], (cols.stop - cols.start) // GROUP
            logits = torch.mm(queries, keys.T, out=block[: b * len(keys)].view(b, len(keys)))
            best.append(logits.view(b, GROUP, width).amax(1))
            members.append(torch.arange(cols.start, cols.stop, device=x.device).view(GROUP, width).T)
        most, reach = torch.cat(best, 1), (alpha * self.reach)[:, 0]
        error = 2 * (d + 4) * EPS * reach * (y.norm(dim=1) + reach) / sigma[:, 0].square()
        margin = LOG2E * (math.log(len(self.points) / REST) + 2 * error)
        return most >= (most.amax(1) - margin).float()[:, None], torch.cat(members)

    def _exactly(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, row: Tensor, component: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The posterior over the listed components ``(m, GROUP)`` of each row ``(m,)`` alone."""
        row, component = row.repeat_interleave(GROUP), component.reshape(-1)
        inside = component < len(self.points)
        row, component = row[inside], component[inside]
        offset = x[row] - alpha[row] * self.points[component].double()
        squares = offset.square().sum(1)
        logits = self.log_weights[component] - 0.5 * squares / sigma[row, 0].square()
        top = x.new_full((len(x),), -math.inf).scatter_reduce(0, row, logits, "amax")
        weights = (logits - top[row]).clamp_min(-690).exp()
        total = torch.zeros_like(top).index_add_(0, row, weights)
        gap = torch.zeros_like(x).index_add_(0, row, offset.mul_(weights[:, None])) / total[:, None]
        spread = torch.zeros_like(top).index_add_(0, row, squares.mul_(weights)) / total - gap.square().sum(1)
        return top + total.log(), gap, (x - gap) / alpha, spread.clamp_min(0) / alpha[:, 0].square()

    def _queries(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        y = x - alpha * self.centre
        scale = LOG2E * alpha / sigma.square()
        extra = [] if self.uniform else [torch.full_like(alpha, LOG2E)]
        return y, torch.cat([scale * y, scale * alpha, *extra], 1).float()
