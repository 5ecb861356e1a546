"""Time grids: plain float64 tensors of nodes in [0, 1], from where a solve begins to where it ends."""

import torch
from torch import Tensor


def uniform(n: int, start: float = 0.0, stop: float = 1.0) -> Tensor:
    """``n`` equal steps, so ``n + 1`` nodes, from ``start`` to ``stop`` (either way round).

    Raises:
        ValueError: ``n`` below 1, equal ends, or ends outside [0, 1].

    >>> uniform(4)
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 step, got {n}")
    return check_grid(torch.linspace(start, stop, n + 1, dtype=torch.float64))


def check_grid(grid: Tensor) -> Tensor:
    """The grid in float64 on the CPU, where the loop reads its numbers.

    Raises:
        ValueError: fewer than two nodes, nodes outside [0, 1], or not strictly monotone.
    """
    nodes = grid.detach().to("cpu", torch.float64)
    if nodes.ndim != 1 or len(nodes) < 2:
        raise ValueError(f"grid must be a 1-D tensor of at least 2 nodes, got shape {tuple(grid.shape)}")
    if not bool(((nodes >= 0) & (nodes <= 1)).all()):
        raise ValueError(f"grid must lie in [0, 1], got nodes in [{nodes.min():.6g}, {nodes.max():.6g}]")
    steps = nodes.diff()
    if not (bool((steps > 0).all()) or bool((steps < 0).all())):
        raise ValueError("grid must increase or decrease strictly, without repeated nodes")
    return nodes
