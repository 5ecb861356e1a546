"""Couplings: which source point goes with which row of data.

A coupling is made by ``NAME(data, source, cond=None, generator=None)`` and drawn by row number, so labels,
weights and masks, gathered with the index that comes back, never leave their row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pathline.sources import Points
from pathline.typing import Pairs, Source


@dataclass(frozen=True)
class Independent:
    """x0 and x1 know nothing of each other: a fresh source point for every row."""

    data: Tensor
    source: Source

    def draw(self, rows: Tensor, generator: torch.Generator | None = None) -> Pairs:
        shape = (len(rows), *self.data.shape[1:])
        return Pairs(self.source.sample(shape, generator, self.data.dtype, self.data.device), rows)


@dataclass(frozen=True)
class Paired:
    """Row i of the source points belongs to row i of the data."""

    data: Tensor
    points: Tensor

    def draw(self, rows: Tensor, generator: torch.Generator | None = None) -> Pairs:
        return Pairs(self.points[rows], rows)


def independent(
    data: Tensor, source: Source, cond: Tensor | None = None, generator: torch.Generator | None = None
) -> Independent:
    """The product of the two laws; every row of data is used once a pass."""
    return Independent(data, source)


def paired(
    data: Tensor, source: Source, cond: Tensor | None = None, generator: torch.Generator | None = None
) -> Paired:
    """Pairs that are known beforehand: a source of `Points` in the order of the data.

    Raises:
        ValueError: the source is not `Points`, or its rows are not shaped like the data.
    """
    if not isinstance(source, Points):
        raise ValueError(f"source must be sources.Points to be paired row by row, got {type(source).__name__}")
    if source.data.shape != data.shape:
        raise ValueError(
            f"source points must have the shape of the data {tuple(data.shape)}, got {tuple(source.data.shape)}"
        )
    return Paired(data, source.data.to(data))
