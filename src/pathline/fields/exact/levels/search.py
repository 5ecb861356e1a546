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

SURE = 0.85
"""Of the cost of more coordinates, that of fewer that makes up for what few rows don't show."""


class Levels:
    """``points`` ``(N, D)`` of probabilities ``weights`` ``(N,)``."""

    def __init__(self, points: Tensor, weights: Tensor) -> None:
        some = weights > 0
        self.index = Index(points if bool(some.all()) else points[some], weights[some].double().log2())
        self.rooms: list[Tensor] = []
        """For bounds, in nobody's use: fresh ones cost as much as the work that is done in them."""

    def posterior_mean(self, x: Tensor, alpha: float, sigma: float, allowed: Allowed) -> Bounded:
        """At ``x`` ``(b, D)``, float64, for alpha at least 0 and sigma above it.

        ``allowed`` is the error that is aimed at. A row's own may be above it, and is infinite where bytes are no
        faster than floats.
        """
        room = self._room()
        try:
            return self._by_ways(x, Ways(self.index, alpha, sigma, allowed, room))
        finally:
            self.rooms.append(room)

    @staticmethod
    def _by_ways(x: Tensor, ways: Ways) -> Bounded:
        order = x.norm(dim=1).argsort()
        few = x[order[:: math.ceil(len(x) / PILOT)]]
        way = _cheapest(ways, few) if math.isfinite(ways.largest_bias) else None
        if way is None:
            return unknown(x)
        parts, back = [way(x[own]).answer for own in order.split(len(ways.bounds))], order.argsort()
        return Bounded(*(torch.cat(values)[back] for values in zip(*parts, strict=True)))

    def _room(self) -> Tensor:
        try:
            return self.rooms.pop()
        except IndexError:
            n, places = len(self.index.points), self.index.groups.numel()
            with torch.inference_mode(False):
                room = torch.empty(max(PILOT, min(ROWS, NUMBERS // n)), places, dtype=torch.float32)
            room[:, n:] = -math.inf
            return room


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

    least, chosen = COSTS.sharp * d / SURE, None
    for width in ways.index.partial_norms:
        way = partial(ways.few, width=width)
        own = cost(way)
        if own >= SURE * least:
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
