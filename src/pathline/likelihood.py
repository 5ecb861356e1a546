r"""Log-density along the flow.

With $\dot x = u_t(x)$ the density that the flow carries obeys $\frac{d}{dt} \log p_t(x_t) = -\nabla \cdot u_t(x_t)$,
so $\log p_1(x_1) = \log p_0(x_0) - \int_0^1 \nabla \cdot u_t(x_t)\,dt$ with x_0 reached by solving backward.

Reference: Chen et al., "Neural Ordinary Differential Equations", arXiv:1806.07366; Grathwohl et al., "FFJORD:
Free-form Continuous Dynamics for Scalable Reversible Generative Models", arXiv:1810.01367.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pathline.grids import check_grid, uniform
from pathline.solvers import rk4, solve
from pathline.sources import StandardNormal
from pathline.typing import Field, Solver, Source


@dataclass(frozen=True)
class LogProb:
    """What `log_prob` returns; every tensor has shape ``(b,)`` but x0.

    Attributes:
        value: log p_1(x1) in nats.
        error: size of the solver's error, from the same solve on every other node; ``None`` where it was not asked for
            and for adaptive solvers.
        se: standard error over Hutchinson probes; ``None`` for the exact trace or a single probe.
        x0: the source points that the rows came from, shape ``(b, *d)``.
        nfe: calls of the field, those of the error estimate included.
    """

    value: Tensor
    error: Tensor | None
    se: Tensor | None
    x0: Tensor
    nfe: int


def log_prob(
    field: Field,
    x1: Float[Tensor, "b *d"],
    *,
    source: Source | None = None,
    grid: Tensor | None = None,
    solver: Solver = rk4,
    probes: int | None = None,
    begin: float = 1.0,
    with_error: bool = True,
    cond: Mapping[str, Any] = {},
    generator: torch.Generator | None = None,
) -> LogProb:
    """The log-density of rows under the flow of ``field``, by solving backward from ``begin`` to 0.

    An exact field brings its own divergence; otherwise the trace is taken by automatic differentiation, exactly
    (d backward passes a call) or by Hutchinson's estimator with fixed Rademacher probes (one pass a probe). Rows
    must not influence each other inside the field (no batch normalisation in training mode).

    Args:
        field: ``field(x, t, **cond)``.
        x1: the rows, any state shape.
        source: p_0; a standard normal by default.
        grid: increasing nodes from 0 to ``begin``; by default 16 equal steps.
        solver: a method of `pathline.solvers`.
        probes: number of Hutchinson probes; ``None`` is the exact trace.
        begin: the time at which the rows live; below 1 for a field that has no value there.
        with_error: estimate the solver's error, by a second solve at half the cost of the first.
        cond: keyword conditions handed to the field.
        generator: for the probes.

    Raises:
        ValueError: a field that is open at ``begin``; a grid that does not run from 0 to ``begin``; probes below 1.

    >>> float(log_prob(lambda x, t: -x, torch.zeros(1, 1)).value)  # N(0, 1) shrunk by exp(-1)
    0.08106...
    """
    if begin in getattr(field, "open_ends", {}):
        raise ValueError(f"begin must not be {begin:g}, where this field has no value: name a time below it")
    if probes is not None and probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    nodes = check_grid(uniform(16, 0.0, begin) if grid is None else grid)
    if nodes[0] != 0 or nodes[-1] != begin:
        raise ValueError(f"grid must run from 0 to begin = {begin:g}, got {nodes[0]:.6g} to {nodes[-1]:.6g}")
    augmented = _Augmented(field, x1, _divergence(field, x1, probes, generator), probes or 1)
    backward, start = nodes.flip(0), augmented.join(x1, x1.new_zeros(len(x1), probes or 1))
    fine = solve(augmented, start, backward, solver, cond=cond)
    x0, each = augmented.split(fine.x)
    p0 = (source or StandardNormal()).log_prob(x0)
    nfe, error = fine.nfe, None
    if with_error and solver.calls is not None and len(nodes) > 2:
        with torch.no_grad():
            coarse = solve(augmented, start, _every_other(backward), solver, cond=cond)
            y0, other = augmented.split(coarse.x)
            change = p0 + each.mean(1) - (source or StandardNormal()).log_prob(y0) - other.mean(1)
            error = change.abs() / (2 ** getattr(solver, "order", 1) - 1)
        nfe += coarse.nfe
    se = each.std(1) / probes**0.5 if probes is not None and probes > 1 else None
    return LogProb(p0 + each.mean(1), error, se, x0, nfe)


def divergence(field: Field, x: Float[Tensor, "b *d"], t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
    """The velocity ``(b, *d)`` and its exact divergence ``(b,)``, by one backward pass per dimension."""
    return _by_backward(field, x, t, cond, _unit_vectors(x))


class _Augmented:
    """The field with one or more running integrals of its divergence appended to the flattened state."""

    def __init__(self, field: Field, x1: Tensor, both: Callable[..., tuple[Tensor, Tensor]], columns: int) -> None:
        self.both, self.row, self.columns = both, x1.shape[1:], columns
        self.open_ends = getattr(field, "open_ends", {})

    def join(self, x: Tensor, integrals: Tensor) -> Tensor:
        return torch.cat([x.reshape(len(x), -1), integrals], 1)

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z[:, : -self.columns].reshape(len(z), *self.row), z[:, -self.columns :]

    def __call__(self, z: Tensor, t: Tensor, /, **cond: Any) -> Tensor:
        velocity, div = self.both(self.split(z)[0], t, **cond)
        return self.join(velocity, div.reshape(len(z), -1))


def _divergence(
    field: Field, x1: Tensor, probes: int | None, generator: torch.Generator | None
) -> Callable[..., tuple[Tensor, Tensor]]:
    own = getattr(field, "velocity_and_divergence", None)
    if own is not None and probes is None:
        return own
    if probes is None:
        vectors = _unit_vectors(x1)
    else:
        signs = torch.randint(0, 2, (probes, *x1.shape), generator=generator, device=x1.device)
        vectors = (2 * signs - 1).to(x1.dtype)
    exact = probes is None

    def both(x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        return _by_backward(field, x, t, cond, vectors, sum_up=exact)

    return both


def _unit_vectors(x: Tensor) -> Tensor:
    row = x[0].numel()
    return torch.eye(row, dtype=x.dtype, device=x.device).reshape(row, 1, *x.shape[1:])


def _by_backward(
    field: Field, x: Tensor, t: Tensor, cond: Mapping[str, Any], vectors: Tensor, sum_up: bool = True
) -> tuple[Tensor, Tensor]:
    """The velocity, and v . J v for every vector: summed ``(b,)``, or one column a vector ``(b, k)``."""
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        at = x if x.requires_grad else x.detach().requires_grad_(True)
        velocity = field(at, t, **cond)
        if not velocity.requires_grad:
            return velocity, velocity.new_zeros(len(x)) if sum_up else velocity.new_zeros(len(x), len(vectors))
        parts = []
        for i, vector in enumerate(vectors):
            more = keep or i + 1 < len(vectors)
            (pulled,) = torch.autograd.grad(
                velocity, at, vector.expand_as(velocity), retain_graph=more, create_graph=keep, materialize_grads=True
            )
            parts.append((pulled * vector).reshape(len(x), -1).sum(1))
    value = torch.stack(parts).sum(0) if sum_up else torch.stack(parts, 1)
    return (velocity, value) if keep else (velocity.detach(), value)


def _every_other(nodes: Tensor) -> Tensor:
    return nodes[::2] if len(nodes) % 2 else torch.cat([nodes[::2], nodes[-1:]])
