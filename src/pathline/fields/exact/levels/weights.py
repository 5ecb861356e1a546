"""Weights of components, relative to one of them, and lists of the largest."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pathline.fields.exact.levels.index import Index
from pathline.fields.exact.levels.keys import SAMPLE, Query

LOWEST = -100.0
"""Logits below it, in bits, count as it: float32 is slow on smaller weights."""

UNSURE = 2.0
"""Deviations by which the sum of a sample is taken to be too high."""

PAIRWISE = 128
"""Roundings of one number where torch sums many."""

TRUSTED = 0.1
"""The share of a sample's sum that is trusted in any case."""


class Weights:
    """Of all components by the logits of a query, relative to the largest of a sample.

    Attributes:
        blur: bits by which logits may be off whatever the query's rounding, ``(b,)``.
        sample: of one component in `SAMPLE`, ``(b, N / SAMPLE)``; ``guess``: the sum of all by it, ``(b,)``.
        total, second: the sums so far of weights, and of these times |x_i - c|^2, ``(b,)``.
        sums: of k over the components that were taken, ``(b, D)``; ``taken``: how many.
        longest, parts: the most of one row that was taken at once, and how often.
    """

    def __init__(self, index: Index, query: Query, bias: Tensor, blur: Tensor) -> None:
        self.index, self.query, self.bias, self.blur = index, query, bias, blur
        self.sample = torch.cat(
            [own.clone() for _, own in index.keys.logits(query, bias[::SAMPLE], keys=index.keys.sample)], 1
        )
        self.top = self.sample.amax(1, keepdim=True)
        self._relative(self.sample)
        total, square = self.sample.sum(1).double(), self.sample.square().sum(1).double()
        self.guess = SAMPLE * torch.maximum(total - UNSURE * square.sqrt(), TRUSTED * total)
        self.total, self.second = total.new_zeros(2, len(total))
        self.sums = torch.zeros(len(total), index.points.shape[1], dtype=torch.float32)
        self.taken = self.longest = self.parts = 0

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Components and their weights ``(b, n)``, which the next block overwrites, and others may."""
        for cols, logits in self.index.keys.logits(self.query, self.bias):
            weights = self._relative(logits)
            self.total += weights.sum(1)
            self.second += weights @ self.index.squares[cols]
            yield cols, weights

    def _relative(self, logits: Tensor) -> Tensor:
        """The weights, in place."""
        return logits.sub_(self.top).clamp_min_(LOWEST).exp2_()

    def take(self, cols: slice, weights: Tensor, least: Tensor, less: Tensor | None = None) -> Tensor:
        """Adds components of at least ``least`` ``(b,)`` to the sums, with weights less ``less``; where, flat."""
        flat = _places(weights >= least[:, None])
        row = flat // weights.shape[1]
        component, own = flat - row * weights.shape[1] + cols.start, weights.view(-1)[flat]
        own = own if less is None else own - less[row]
        counts, start = runs(row, len(weights))
        self.index.keys.add_listed(self.sums, own, component, start)
        self.taken += len(flat)
        self.longest, self.parts = max(self.longest, int(counts.max())), self.parts + 1
        return flat

    def threshold(self, left: Tensor) -> Tensor:
        """A weight for each row below which all others, by the sample, sum to less than ``left`` ``(b,)``."""
        sample = self.sample.sort(1).values
        below = SAMPLE * sample.cumsum(1)
        likely = below + UNSURE * (SAMPLE * sample * below).sqrt() + UNSURE**2 * SAMPLE * sample
        place = (likely < left[:, None]).sum(1, keepdim=True)
        return torch.where(place > 0, sample.gather(1, (place - 1).clamp_min(0)), 0)[:, 0]


def trimmed(row: Tensor, values: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """Which entries of a list by rows to keep, ``(m,)``, if the least of each row go as long as they sum to ``most``.

    That is ``(b,)``, at most one. And the sum of what goes, ``(b,)``.
    """
    order = values.argsort()
    order = order[row[order].argsort(stable=True)]
    sums = torch.cat([values.new_zeros(1), values[order].clamp_max(1).cumsum(0)])
    goes = sums[1:] - sums[runs(row, len(most))[1]][row] <= most[row]
    left = torch.zeros_like(most).index_add_(0, row[goes], values[order][goes])
    return torch.ones_like(row, dtype=torch.bool).index_fill_(0, order[goes], False), left


def runs(row: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """In a list by rows, how many each of n rows has, and where they start."""
    counts = torch.bincount(row, minlength=n)
    return counts, counts.cumsum(0) - counts


def _places(mask: Tensor) -> Tensor:
    """Where ``mask`` is true, flat: in few places, so looked for eight at a time."""
    if mask.shape[1] % 8:
        return mask.view(-1).nonzero()[:, 0]
    some = mask.view(torch.int64).view(-1).nonzero()[:, 0]
    place = some[:, None] * 8 + torch.arange(8)
    return place[mask.view(-1, 8).index_select(0, some)]
