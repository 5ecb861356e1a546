"""Protocols and plain records that the rooms of the house hand to one another. No logic lives here.

Shapes: a state ``x`` is ``(b, *d)`` with any ``*d`` (also empty), a time ``t`` is ``()`` or ``(b,)`` in [0, 1].
``t = 0`` is the source, ``t = 1`` is data.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

Draw = Callable[[int, torch.Generator | None], Tensor]
"""A stream of data: ``draw(n, generator)`` returns ``n`` fresh rows, shape ``(n, *d)``."""


class Batch(NamedTuple):
    """Rows of data and what belongs to them; every tensor has the same first axis.

    Attributes:
        x1: data, shape ``(b, *d)``.
        x0: source points paired with ``x1``, same shape; ``None``: drawn from the path's source.
        cond: conditions by the network's keyword, each ``(b, ...)``.
        weight: weight of each row's loss, shape ``(b,)``, with mean one over the data; ``None``: ones.
        mask: which entries of ``x1`` are observed, broadcastable to it; ``None``: all.
        index: row numbers in the data, shape ``(b,)``; ``None`` on a stream of fresh points.
    """

    x1: Tensor
    x0: Tensor | None = None
    cond: Mapping[str, Tensor] = {}
    weight: Tensor | None = None
    mask: Tensor | None = None
    index: Tensor | None = None  # pyright: ignore[reportIncompatibleMethodOverride]


class Pairs(NamedTuple):
    """What a coupling returns: source points ``x0`` ``(b, *d)``, the data rows ``index`` ``(b,)``, weights."""

    x0: Tensor
    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]
    weight: Tensor | None = None


class PathSample(NamedTuple):
    """A point on a path and the ends that it was drawn from.

    Attributes:
        x_t: the point, shape ``(b, *d)``.
        t: its time, shape ``(b,)``.
        x0: the source point, x1: the data point; same shape as ``x_t``.
        target: the conditional velocity at ``x_t``, same shape.
    """

    x_t: Tensor
    t: Tensor
    x0: Tensor
    x1: Tensor
    target: Tensor


@runtime_checkable
class Field(Protocol):
    """Any callable ``(x, t, **cond) -> velocity`` shaped like ``x``; ``t`` has shape ``(b,)``."""

    def __call__(self, x: Tensor, t: Tensor, /, **cond: Any) -> Tensor: ...


class Source(Protocol):
    """The law p_0 that a flow starts from."""

    def sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor: ...

    def log_prob(self, x: Tensor) -> Tensor: ...


class Path(Protocol):
    """A conditional density path p_t(x given x1) and the source that it starts from."""

    @property
    def source(self) -> Source: ...

    def sample(self, batch: Batch, t: Tensor, generator: torch.Generator | None = None) -> PathSample: ...


class Coupling(Protocol):
    """A joint law of source and data, drawn by row."""

    def draw(self, rows: Tensor, generator: torch.Generator | None = None) -> Pairs: ...


class Solver(Protocol):
    """One step of an ODE; ``solve`` holds the loop.

    A method with a memory also has ``begin(nodes) -> object with step``, called once a solve with the nodes of its
    steps, as numbers; it may work out all its coefficients there. A solver without ``begin`` steps itself.
    """

    @property
    def name(self) -> str: ...

    @property
    def calls(self) -> int | None:
        """Evaluations of the field per step; ``None`` where they depend on the field."""
        ...

    def step(self, field: Callable[[Tensor, float], Tensor], x: Tensor, t: float, s: float) -> Tensor:
        """Moves the state ``x`` from time ``t`` to time ``s``."""
        ...
