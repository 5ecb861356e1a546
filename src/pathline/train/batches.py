"""Which rows a step sees, and everything random about them, derived from (seed, step) alone."""

from collections.abc import Callable, Mapping
from enum import IntEnum

import torch
from torch import Tensor

from pathline.typing import Batch, Coupling, Draw, Source

MakeCoupling = Callable[[Tensor, Source], Coupling]
Augment = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""``augment(x1, index, generator) -> x1``: a fresh view of rows each time that they are seen."""

_MASK = 2**64 - 1
_AHEAD = 8


class Purpose(IntEnum):
    """What a random stream is for; one stream never feeds two purposes."""

    ROWS = 1
    DATA = 2
    COUPLING = 3
    OBJECTIVE = 4
    NETWORK = 5


def stream_seed(seed: int, count: int, purpose: Purpose) -> int:
    """A seed for (run seed, step or pass, purpose), well mixed: splitmix64's finaliser."""
    z = (seed * 0x9E3779B97F4A7C15 + count * 0xD1342543DE82EF95 + purpose * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 1


class Streams:
    """One generator, set to the stream that is asked for."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.generator = seed, torch.Generator(device)

    def at(self, count: int, purpose: Purpose) -> torch.Generator:
        return self.generator.manual_seed(stream_seed(self.seed, count, purpose))


class RowBatches:
    """Batches of fixed rows: each row once a pass, in an order drawn anew for every pass."""

    def __init__(
        self,
        data: Tensor,
        cond: Mapping[str, Tensor],
        weight: Tensor | None,
        coupling: Coupling,
        augment: Augment | None,
        size: int,
        streams: Streams,
    ) -> None:
        self.data, self.cond, self.weight = data, cond, weight
        self.coupling, self.augment, self.size, self.streams = coupling, augment, size, streams
        self._pass, self._order = -1, torch.empty(0, dtype=torch.int64)

    def at(self, step: int) -> Batch:
        rows = self._rows(step * self.size, self.size)
        pairs = self.coupling.draw(rows, self.streams.at(step, Purpose.COUPLING))
        x1 = self.data[pairs.index]
        if self.augment is not None:
            x1 = self.augment(x1, pairs.index, self.streams.at(step, Purpose.DATA))
        cond = {key: value[pairs.index] for key, value in self.cond.items()}
        weight = pairs.weight if self.weight is None else self.weight[pairs.index]
        if self.weight is not None and pairs.weight is not None:
            weight = self.weight[pairs.index] * pairs.weight
        return Batch(x1, pairs.x0, cond, weight, index=pairs.index)

    def _rows(self, first: int, count: int) -> Tensor:
        parts = []
        while count:
            number, start = divmod(first, len(self.data))
            if number != self._pass:
                generator = self.streams.at(number, Purpose.ROWS)
                self._order = torch.randperm(len(self.data), generator=generator, device=self.data.device)
                self._pass = number
            parts.append(self._order[start : start + count])
            first, count = first + len(parts[-1]), count - len(parts[-1])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class StreamBatches:
    """Batches of fresh points, drawn for several steps at once; a coupling sees each batch as its window."""

    def __init__(self, draw: Draw, source: Source, coupling: MakeCoupling, size: int, streams: Streams) -> None:
        self.draw, self.source, self.coupling, self.size, self.streams = draw, source, coupling, size, streams
        self._drawn, self._points = -1, torch.empty(0)

    def at(self, step: int) -> Batch:
        x1 = self._fresh(step)
        coupling = self.coupling(x1, self.source)
        rows = torch.arange(self.size, device=x1.device)
        pairs = coupling.draw(rows, self.streams.at(step, Purpose.COUPLING))
        return Batch(x1[pairs.index], pairs.x0, weight=pairs.weight)

    def _fresh(self, step: int) -> Tensor:
        number, place = divmod(step, _AHEAD)
        if number != self._drawn:
            self._points = self.draw(_AHEAD * self.size, self.streams.at(number, Purpose.DATA))
            self._drawn = number
        return self._points[place * self.size : (place + 1) * self.size]
