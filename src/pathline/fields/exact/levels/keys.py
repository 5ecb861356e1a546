r"""Points as bytes: products with queries of 8 or 15 bits, and sums.

Coordinates are rounded to 256 levels, $x_i = o + \delta k_i + r_i$, which for pixels leaves no rest r. Queries are
rounded to one or two terms of bytes, and the weights of sums to one. Products of bytes are exact, so these roundings
are all there is to reckon with. That of a query's second term and that of weights are random,
$z \to \lfloor z + u \rfloor$ with u uniform in [0, 1) and drawn beforehand: right on average for data and
queries chosen without knowing u. McDiarmid's inequality says that such independent roundings $\zeta_j$ and any
vectors $a_j$ have

$$\Big|\sum_j \zeta_j\, a_j\Big| \le \Big(\tfrac12 + \sqrt{\tfrac12 \log \tfrac1p}\Big)
\Big(\sum_j |a_j|^2\Big)^{1/2}$$

but for a chance of p. Reference: McDiarmid, "On the method of bounded differences", Surveys in Combinatorics 1989.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pathline.fields.exact.chunks import slices
from pathline.fields.exact.levels.products import PEAK, products

COLUMNS = 4096
"""Points of a block: its products stay in the cache."""

SAMPLE = 97
"""Components of which one is in the sample."""

HALF = 128
"""Levels below the origin."""

SMALLEST = 1e-30
"""Below it a query counts as zero."""

RATIO = 254
"""Of the scales of a query's two terms."""

CHANCE = 1e-12
"""That a sum of random roundings exceeds its bound."""

BOUND = 0.5 + math.sqrt(-math.log(CHANCE) / 2)
"""Of a sum of random roundings, over the root of the sum of squares."""


class Query(NamedTuple):
    """``v`` ``(b, D)`` as ``scale`` ``(b, 1)`` times ``terms[0]``, or times ``RATIO * terms[0] + terms[1]``.

    Attributes:
        rest: the norm of what is left over, ``(b,)``.
    """

    terms: list[Tensor]
    scale: Tensor
    rest: Tensor


class Keys:
    r"""``points`` ``(N, D)`` rounded to bytes.

    Attributes:
        step, origin: $\delta$ and o.
        order: the coordinates, those that vary most first.
        bytes: k, its coordinates in that order.
        blocks: its first coordinates, by how many they are, of `COLUMNS` components each, ``(width, n)``.
        table: k + 128, each row with the scale and the offset of its numbers, two floats.
        query_dither, weight_dither: the u of roundings, ``(D,)`` and ``(N,)``.
        sample: blocks of one component in `SAMPLE`.
        rest: the largest norm of r.
        reach: the largest norm of $\delta k$.
    """

    def __init__(self, points: Tensor, widths: Iterable[int]) -> None:
        n, d = points.shape
        low, high = (float(end) for end in points.aminmax())
        self.step = (high - low) / (PEAK + HALF) or 1.0
        self.origin = low + HALF * self.step
        self.order = points.var(0, correction=0).argsort(descending=True)
        self.bytes = torch.empty(n, d, dtype=torch.int8)
        self.table = torch.empty(n, d + 2 * torch.float32.itemsize, dtype=torch.uint8)
        self.table[:, d:] = torch.tensor([1.0, -HALF], dtype=torch.float32).view(torch.uint8)
        generator = torch.Generator().manual_seed(0)
        self.query_dither, self.weight_dither = (
            torch.rand(size, generator=generator, dtype=torch.float32) for size in (d, n)
        )
        self.rest = self.reach = 0.0
        for rows in slices(n, COLUMNS):
            offset = points[rows].double() - self.origin
            level = (offset / self.step).round_()
            self.rest = max(self.rest, float((offset - self.step * level).norm(dim=1).max()))
            self.reach = max(self.reach, self.step * float(level.norm(dim=1).max()))
            self.table[rows, :d] = (level + HALF).to(torch.uint8)
            self.bytes[rows] = level[:, self.order]
        self.blocks = {width: self._blocks(self.bytes[:, :width]) for width in widths}
        self.sample = self._blocks(self.bytes[::SAMPLE])

    @staticmethod
    def _blocks(keys: Tensor) -> list[Tensor]:
        return [block.T.contiguous() for block in keys.split(COLUMNS)]

    def query(self, v: Tensor, terms: int) -> Query:
        """``v`` ``(b, width)``, float32, of the coordinates ``order[:width]``, in ``terms`` terms of bytes."""
        scale = v.abs().amax(1, keepdim=True).clamp_min(SMALLEST) / PEAK
        parts = [(v / scale).round_()]
        rest = v - scale * parts[0]
        if terms == 2:
            scale = scale / RATIO
            parts.append((rest / scale).add_(self.query_dither).floor_().clamp_(-PEAK, PEAK))
            rest = rest - scale * parts[1]
        return Query([part.to(torch.int8) for part in parts], scale, rest.norm(dim=1))

    def fits(self, query: Query) -> bool:
        """Whether its products are numbers of 32 bits."""
        size = max(float(term.double().norm(dim=1).max()) for term in query.terms)
        return (RATIO + 1 if len(query.terms) == 2 else 1) * size * self.reach / self.step < 2**31

    def logits(
        self,
        query: Query,
        bias: Tensor,
        tilt: tuple[Tensor, Tensor] | None = None,
        out: Tensor | None = None,
        keys: list[Tensor] | None = None,
    ) -> Iterator[tuple[slice, Tensor]]:
        r"""Block by block of components, or of ``keys``: products of v and $\delta k$, plus ``bias`` ``(N,)``.

        And plus the product of ``tilt``, ``(b, 1)`` and ``(N,)``. A block ``(b, n)`` is overwritten by the next, or is
        that of ``out`` ``(b, N)``.
        """
        b, width = query.terms[0].shape
        scale = query.scale * self.step
        blocks = [torch.empty(b * COLUMNS, dtype=torch.int32) for _ in query.terms]
        floats = torch.empty(b * COLUMNS, dtype=torch.float32)
        for cols, own in zip(slices(len(bias), COLUMNS), keys or self.blocks[width], strict=True):
            n = cols.stop - cols.start
            terms = zip(query.terms, blocks, strict=True)
            sums = [products(term, own, block[: b * n].view(b, n)) for term, block in terms]
            whole = sums[0] if len(sums) == 1 else sums[1].add_(sums[0], alpha=RATIO)
            place = floats[: b * n].view(b, n) if out is None else out[:, cols]
            logits = torch.addcmul(bias[cols], whole, scale, out=place)
            yield cols, logits if tilt is None else logits.addcmul_(tilt[0], tilt[1][cols])

    def add_listed(self, sums: Tensor, weights: Tensor, component: Tensor, starts: Tensor) -> None:
        r"""To ``sums`` ``(b, D)``: those of k over lists of components, each from its start on."""
        bag = torch.ops.quantized.embedding_bag_byte_rowwise_offsets
        sums += bag(self.table, component.int(), starts.int(), False, 0, False, weights, None, False)

    def add_block(self, sums: Tensor, cols: slice, weights: Tensor) -> Tensor:
        """To ``sums`` ``(b, D)``, coordinates in `order`: those of k over components ``cols``.

        The weights ``(b, n)``, from 0 to `PEAK`, are rounded in place; returns what that adds to their sum, ``(b,)``.
        """
        before = weights.sum(1)
        weights.add_(self.weight_dither[cols]).floor_().clamp_max_(PEAK)
        sums += products(weights.to(torch.int8), self.bytes[cols])
        return weights.sum(1) - before
