"""Time grids: plain float64 tensors of nodes in [0, 1], from where a solve begins to where it ends."""

import math

import torch
from torch import Tensor

from pathline.schedules import Schedule
from pathline.wording import whole


def uniform(n: int, start: float = 0.0, stop: float = 1.0) -> Tensor:
    """``n`` equal steps, so ``n + 1`` nodes, from ``start`` to ``stop`` (either way round).

    Raises:
        ValueError: ``n`` below 1 or not whole, equal ends, or ends outside [0, 1].

    >>> uniform(4)
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    return check_grid(torch.linspace(start, stop, whole("n", n, "step") + 1, dtype=torch.float64))


def cosine(n: int, start: float = 0.0, stop: float = 1.0) -> Tensor:
    r"""``n`` steps that are short at both ends: $t = (1 - \cos \pi s) / 2$ for uniform s, scaled to the ends.

    Raises:
        ValueError: as `uniform`.

    >>> cosine(4)
    tensor([0.0000, 0.1464, 0.5000, 0.8536, 1.0000], dtype=torch.float64)
    """
    return check_grid(_between((1 - torch.cos(math.pi * uniform(n))) / 2, start, stop))


def power(n: int, p: float, start: float = 0.0, stop: float = 1.0) -> Tensor:
    """``n`` steps with t = s^p for uniform s: above 1 they are short at ``start``, below 1 long there.

    Raises:
        ValueError: ``p`` not positive; as `uniform`.

    >>> power(4, 2.0)
    tensor([0.0000, 0.0625, 0.2500, 0.5625, 1.0000], dtype=torch.float64)
    """
    if not 0 < p < math.inf:
        raise ValueError(f"p must be a positive number, got {p}")
    return check_grid(_between(uniform(n) ** p, start, stop))


def eased(
    n: int, start: float = 0.0, stop: float = 1.0, first: float = 0.4, last: float = 0.5, growth: float = 1.8
) -> Tensor:
    r"""Steps that grow smoothly by a factor ``growth``, the first and the last ``first`` and ``last`` times as long.

    A step at share s of the way is $\text{growth}^{\sin^2 (\pi s / 2)}$ long. Made for multistep methods: their
    first step has the low order of a method without a past, and their last is never corrected. The defaults were fitted
    to log-densities of the exact annulus field, solved from 1 to 0 by `pathline.solvers.abm`.

    Raises:
        ValueError: ``first``, ``last`` or ``growth`` not positive; as `uniform`.

    >>> eased(4, first=0.5, last=0.5, growth=1.0)
    tensor([0.0000, 0.1667, 0.5000, 0.8333, 1.0000], dtype=torch.float64)
    """
    for name, value in (("first", first), ("last", last), ("growth", growth)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number, got {value}")
    nodes = uniform(n)
    steps = growth ** torch.sin(math.pi * (nodes[1:] + nodes[:-1]) / 4) ** 2
    steps[0] *= first
    steps[-1] *= last
    summed = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
    return check_grid(_between(summed / summed[-1], start, stop))


def log_snr(n: int, schedule: Schedule, start: float = 0.0, stop: float = 1.0) -> Tensor:
    """``n`` steps between which the log of the schedule's signal-to-noise ratio changes by equal amounts.

    An end at which it is infinite is reached in one step from where alpha / sigma or sigma / alpha is 1e-3.

    Raises:
        ValueError: no schedule; fewer steps than the infinite ends need; ends beyond those times; as `uniform`.

    >>> from pathline import schedules
    >>> log_snr(4, schedules.linear())
    tensor([0.0000e+00, 9.9900e-04, 5.0000e-01, 9.9900e-01, 1.0000e+00], dtype=torch.float64)
    """
    if not isinstance(schedule, Schedule):
        raise ValueError(f"schedule must be a Schedule, such as schedules.linear(), got {schedule!r}")
    ends = uniform(1, start, stop)
    finite = schedule.log_snr(ends).isfinite().tolist()
    inner = [t if ok else schedule.inner_time(t) for t, ok in zip(ends.tolist(), finite, strict=True)]
    between = whole("n", n, "step") - finite.count(False)
    if between < 1:
        raise ValueError(f"n must be at least {1 + finite.count(False)} steps between these ends, got {n}")
    values = schedule.log_snr(torch.tensor(inner, dtype=torch.float64))
    nodes = schedule.time_of_log_snr(_between(uniform(between), float(values[0]), float(values[1])))
    nodes[0], nodes[-1] = inner[0], inner[1]
    outer = [ends[:1] if not finite[0] else nodes[:0], nodes, ends[1:] if not finite[1] else nodes[:0]]
    return check_grid(torch.cat(outer))


def shift(grid: Tensor, factor: float) -> Tensor:
    r"""The resolution shift $t \mapsto t / (t + f (1 - t))$: a factor above 1 moves nodes towards the source.

    Nothing else in the library shifts times, so it can't be applied twice unnoticed.

    Reference: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
    arXiv:2403.03206.

    Raises:
        ValueError: ``factor`` not positive; a bad grid.

    >>> shift(uniform(4), 3.0)
    tensor([0.0000, 0.1000, 0.2500, 0.5000, 1.0000], dtype=torch.float64)
    """
    if not 0 < factor < math.inf:
        raise ValueError(f"factor must be a positive number, got {factor}")
    nodes = check_grid(grid)
    return check_grid(nodes / (nodes + factor * (1 - nodes)))


def _between(nodes: Tensor, start: float, stop: float) -> Tensor:
    """Nodes in [0, 1] scaled to run from ``start`` to ``stop``, both met exactly."""
    scaled = start + (stop - start) * nodes
    scaled[0], scaled[-1] = start, stop
    return scaled


def check_grid(grid: Tensor) -> Tensor:
    """The grid in float64 on the CPU, where the loop reads its numbers.

    Raises:
        ValueError: no tensor, fewer than two nodes, nodes outside [0, 1], or not strictly monotone; the message names
            the first such node.
    """
    if not isinstance(grid, Tensor):
        raise ValueError(f"grid must be a tensor of nodes, such as grids.uniform(16), got {grid!r}")
    nodes = grid.detach().to("cpu", torch.float64)
    if nodes.ndim != 1 or len(nodes) < 2:
        raise ValueError(f"grid must be a 1-D tensor of at least 2 nodes, got shape {tuple(grid.shape)}")
    outside = ~((nodes >= 0) & (nodes <= 1))
    if bool(outside.any()):
        i = int(outside.nonzero()[0])
        raise ValueError(f"grid must lie in [0, 1], got {nodes[i]:.6g} at node {i}: leave it out, or scale the nodes")
    astray = nodes.diff() * (nodes[-1] - nodes[0]).sign() <= 0
    if bool(astray.any()):
        i = int(astray.nonzero()[0])
        raise ValueError(
            "grid must increase or decrease strictly, without repeated nodes, "
            f"got {nodes[i]:.6g} and {nodes[i + 1]:.6g} at nodes {i} and {i + 1}: sort it, and leave repeats out"
        )
    return nodes
