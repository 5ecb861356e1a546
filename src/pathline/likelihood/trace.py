"""The divergence of a field by automatic differentiation, in full or by Hutchinson's estimate.

Reverse mode: at d = 2, 8 and 64 the small network takes 4, 10 and 73 calls' time for velocity and trace, forward mode
9, 29 and 134. Backward passes of small batches go together, which at one row and d = 64 is ten times as fast.

Reference: Hutchinson, "A stochastic estimator of the trace of the influence matrix", Commun. Stat. 18, 1989.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pathline.recording import recordable
from pathline.solvers.loop import check_returned
from pathline.typing import Field
from pathline.wording import whole

Probe = Literal["rademacher", "gaussian"]
"""The law of Hutchinson's probes; signs have the smaller variance."""

Traced = Callable[..., tuple[Tensor, Tensor]]
"""``(x, t, **cond)`` to the velocity ``(b, *d)`` and one column of divergence a probe ``(b, k)``."""

MOST_EXACT = 10_000
"""Dimensions above which the exact trace, one backward pass each, is refused."""

TOGETHER = 1_024
"""Rows times vectors up to which backward passes go together."""

FEW = 2
"""Vectors that are faster one by one all the same."""

KEPT = 512
"""Dimensions up to which unit vectors are kept from call to call."""


@recordable
def divergence(field: Field, x: Float[Tensor, "b *d"], t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
    """The velocity ``(b, *d)`` and its exact divergence ``(b,)``, by one backward pass per dimension.

    Raises:
        ValueError: more than `MOST_EXACT` dimensions; a field that returns another shape or dtype.
    """
    velocity, columns = exact(field, x)(x, t, **cond)
    return velocity, columns[:, 0]


def exact(field: Field, x: Tensor) -> Traced:
    """The field with its exact divergence, for rows like those of ``x``."""
    row = x.shape[1:].numel()
    _check_size(row)
    kept = list(_unit_vectors(x)) if row <= KEPT else None
    return lambda x, t, **cond: _by_backward(field, x, t, cond, kept or _unit_vectors(x), row, summed=True)


def stochastic(field: Field, vectors: Tensor) -> Traced:
    """The field with v . J v for every probe v of ``vectors`` ``(k, b, *d)``."""
    groups = vectors.split(max(1, TOGETHER // vectors.shape[1]))
    return lambda x, t, **cond: _by_backward(field, x, t, cond, groups, len(vectors), summed=False)


def draw_probes(x: Tensor, k: int, law: Probe, generator: torch.Generator | None) -> Tensor:
    """Probes ``(k, *x.shape)`` in x's dtype, drawn where the generator lives and moved to x.

    Raises:
        ValueError: k below 1 or not whole, or another law.
    """
    shape, device = (whole("probes", k), *x.shape), x.device if generator is None else generator.device
    if law == "gaussian":
        return torch.randn(shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
    if law != "rademacher":
        raise ValueError(f"law must be rademacher or gaussian, got {law!r}")
    return (2 * torch.randint(0, 2, shape, generator=generator, device=device) - 1).to(x)


def _by_backward(
    field: Field, x: Tensor, t: Tensor, cond: Mapping[str, Any], groups: Iterable[Tensor], k: int, *, summed: bool
) -> tuple[Tensor, Tensor]:
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        # without gradients a view of rows that want them must be cut off, or its own derivative comes out zero
        at = x if keep and x.requires_grad else x.detach().requires_grad_(True)
        velocity = field(at, t, **cond)
        check_returned(velocity, x)
        if not velocity.requires_grad:
            return velocity, velocity.new_zeros(len(x), 1 if summed else k)
        keep = keep and (x.requires_grad or _reaches_beyond(velocity, at))
        parts = []
        for vectors in groups:
            product = _pull(velocity, at, vectors, keep) * vectors
            product = product.reshape(*vectors.shape[:2], -1)
            parts.append(product.sum((0, 2))[:, None] if summed else product.sum(2).T)
    columns = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
    if summed:
        columns = columns.sum(1, keepdim=True)
    return (velocity, columns) if keep else (velocity.detach(), columns)


def _reaches_beyond(velocity: Tensor, at: Tensor) -> bool:
    """Whether gradients of ``velocity`` go to anything but ``at``: parameters, conditions."""
    seen, left = set(), [velocity.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if getattr(node, "variable", at) is not at:
            return True
        seen.add(node)
        left.extend(parent for parent, _ in node.next_functions)
    return False


def _unit_vectors(x: Tensor) -> Iterator[Tensor]:
    """Unit vectors to pull back together, in groups ``(g, b, *d)``."""
    row = x.shape[1:].numel()
    size = max(1, TOGETHER // len(x))
    for first in range(0, row, size):
        unit = x.new_zeros(min(size, row - first), row)
        unit.diagonal(first).fill_(1)
        yield unit.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)


def _pull(velocity: Tensor, at: Tensor, vectors: Tensor, keep: bool) -> Tensor:
    """v . J for each of ``vectors`` ``(g, b, *d)``."""
    options: dict[str, Any] = {"retain_graph": True, "create_graph": keep, "allow_unused": True}
    if len(vectors) > FEW:
        try:
            (pulled,) = torch.autograd.grad(velocity, at, vectors, is_grads_batched=True, **options)
            return torch.zeros_like(vectors) if pulled is None else pulled
        except RuntimeError:  # an operation that can't be batched: one by one
            pass
    each = [torch.autograd.grad(velocity, at, vector, **options)[0] for vector in vectors]
    return torch.stack([torch.zeros_like(at) if pulled is None else pulled for pulled in each])


def _check_size(row: int) -> None:
    if row > MOST_EXACT:
        raise ValueError(
            f"probes must be given above {MOST_EXACT} dimensions: the exact trace costs {row} backward passes a call "
            f"here; probes=1 costs one and comes with a standard error from 2 on"
        )
