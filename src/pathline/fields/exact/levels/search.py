"""The posterior mean at given rows from points as bytes, in the cheapest way."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pathline.fields.exact.bounded import Allowed, Bounded, unknown
from pathline.fields.exact.levels.index import Index
from pathline.fields.exact.levels.ways import COSTS, Found, Ways

ROWS, NUMBERS = 512, 2**25
"""Rows of a block, and numbers that there may be for its rows and components."""

PILOT = 8
"""Rows on which the ways are tried."""


class Levels:
    """``points`` ``(N, D)`` of probabilities ``weights`` ``(N,)``."""

    def __init__(self, points: Tensor, weights: Tensor) -> None:
        some = weights > 0
        self.index = Index(points[some] if not bool(some.all()) else points, weights[some].double().log2())

    def posterior_mean(self, x: Tensor, alpha: float, sigma: float, allowed: Allowed) -> Bounded:
        """At ``x`` ``(b, D)``, float64, for alpha at least 0 and sigma above it.

        ``allowed`` is the error that is aimed at. A row's own may be above it, and is infinite where bytes are no
        faster than floats.
        """
        rows = max(PILOT, min(ROWS, NUMBERS // len(self.index.points), len(x)))
        ways, order = Ways(self.index, alpha, sigma, allowed, rows), x.norm(dim=1).argsort()
        if not math.isfinite(ways.largest_bias):
            return unknown(x)
        way = _cheapest(ways, x[order[:: math.ceil(len(x) / PILOT)]])
        if way is None:
            return unknown(x)
        parts, back = [way(x[own]).answer for own in order.split(rows)], order.argsort()
        return Bounded(*(torch.cat(values)[back] for values in zip(*parts, strict=True)))


def _cheapest(ways: Ways, x: Tensor) -> Callable[[Tensor], Found] | None:
    """The way for rows like ``x``, or ``None`` where the field without bytes is cheaper.

    `Ways.few` is tried first, by fewer and fewer coordinates, against a field that needs few components as well. If it
    lists too many, so does the field, and the others are tried.
    """
    d = x.shape[1]

    def cost(way: Callable[[Tensor], Found]) -> float:
        answer, own = way(x)
        good = (answer.error <= ways.allowed(x, answer.mean)).double().mean().item()
        return own + COSTS.dense * d * (1 - good)

    least, chosen = COSTS.sharp * d, None
    for width in ways.index.partial_norms:
        way = partial(ways.few, width=width)
        own = cost(way)
        if own >= least:
            break
        least, chosen = own, way
    if chosen is not None and least <= COSTS.products(2, d) + COSTS.listed:
        return chosen
    least = least if chosen is not None else COSTS.dense * d
    for way in (ways.listed, ways.whole):
        own = cost(way)
        if own < least:
            least, chosen = own, way
    return chosen
