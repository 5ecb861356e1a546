"""The posterior mean at given rows from points as bytes, in the cheapest way."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pathline.fields.exact.bounded import Bounded
from pathline.fields.exact.levels.index import Index
from pathline.fields.exact.levels.ways import COSTS, Allowed, Found, Ways

ROWS, ROOM = 512, 2**25
"""Rows of a block, and numbers that there may be for its rows and components."""

PILOT = 8
"""Rows on which the ways are tried."""


class Levels:
    """``points`` ``(N, D)`` of probabilities ``weights`` ``(N,)``, all positive."""

    def __init__(self, points: Tensor, weights: Tensor) -> None:
        self.index = Index(points, weights.double().log2())

    def posterior_mean(self, x: Tensor, alpha: float, sigma: float, allowed: Allowed) -> Bounded:
        """At ``x`` ``(b, D)``, float64, for alpha at least 0 and sigma above it.

        ``allowed(x, mean)`` is the error that may be made at each row. Where more would be, or bytes are no faster,
        the error is infinite.
        """
        rows = max(PILOT, min(ROWS, ROOM // len(self.index.points), len(x)))
        ways = Ways(self.index, alpha, sigma, allowed, rows)
        order = x.norm(dim=1).argsort()
        way = _cheapest(ways, x[order[:: -(-len(x) // PILOT)]])
        if way is None:
            return Bounded(torch.zeros_like(x), x.new_full((len(x),), math.inf))
        parts, back = [way(x[own]) for own in order.split(rows)], order.argsort()
        return Bounded(torch.cat([part.mean for part in parts])[back], torch.cat([part.error for part in parts])[back])


def _cheapest(ways: Ways, x: Tensor) -> Callable[[Tensor], Found] | None:
    """The way for rows like ``x``: by fewer and fewer coordinates first; ``None`` if the field without bytes is."""
    d = x.shape[1]

    def cost(way: Callable[[Tensor], Found]) -> float:
        found = way(x)
        good = (found.error <= ways.allowed(x, found.mean)).double().mean().item()
        return found.cost + COSTS.dense * d * (1 - good)

    least, chosen = COSTS.sharp * d, None
    for width in ways.index.widths:
        way = partial(ways.few, width=width)
        own = cost(way)
        if own >= least:
            break
        least, chosen = own, way
    if chosen is not None and least <= 2 * COSTS.product * d + COSTS.listed:
        return chosen
    for way, limit in ((ways.listed, COSTS.sharp * d), (ways.whole, COSTS.dense * d)):
        own = cost(way)
        if own < (limit if chosen is None else least):
            least, chosen = own, way
    return chosen
