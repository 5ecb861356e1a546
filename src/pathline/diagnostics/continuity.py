"""Does a field induce a density path?"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from pathline.likelihood import divergence
from pathline.recording import recordable
from pathline.typing import Field


class LogDensity(Protocol):
    """``(x, t, **cond) -> log p_t(x)`` in nats, shape ``(b,)``, differentiable in x and t."""

    def __call__(self, x: Tensor, t: Tensor, /, **cond: Any) -> Tensor: ...


@dataclass(frozen=True)
class Residual:
    """What `continuity_residual` returns, in nats per unit of time.

    Attributes:
        value: left-hand side of the continuity equation, shape ``(b,)``; zero where the field induces the path.
        scale: sum of the absolute values of its three terms, shape ``(b,)``, never below ``|value|``.
    """

    value: Tensor
    scale: Tensor


@recordable
def continuity_residual(
    field: Field, log_prob: LogDensity, x: Float[Tensor, "b *d"], t: Float[Tensor, "*b"], **cond: Any
) -> Residual:
    r"""How far a field is from inducing a density path at the points ``(x, t)``:

    $$\frac{\partial}{\partial t} \log p_t(x) + u_t(x) \cdot \nabla \log p_t(x) + \nabla \cdot u_t(x),$$

    the continuity equation $\partial_t p_t + \nabla \cdot (u_t\,p_t) = 0$ divided by $p_t$. ``value / scale`` near
    the rounding of x's dtype says "this field induces this path" there; near one, that it does not. All
    derivatives are taken by automatic differentiation, d backward passes for the divergence; ask in float64, away
    from the ends of [0, 1]. Rows must not influence each other.

    Args:
        field: ``field(x, t, **cond)``.
        log_prob: ``log_prob(x, t, **cond)``, the density path that the field should induce.
        x: where to look, shape ``(b, *d)``; t: when, shape ``()`` or ``(b,)``.
        cond: keyword conditions handed to both.

    Raises:
        ValueError: ``t`` or the log-density has the wrong shape.

    Reference: Lipman et al., "Flow Matching for Generative Modeling", arXiv:2210.02747.

    >>> from pathline import AffinePath, EmpiricalField, schedules
    >>> field = EmpiricalField(AffinePath(schedules.linear()), torch.tensor([[2.0, 1.0], [0.0, 3.0]]))
    >>> x, t = torch.zeros(1, 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    >>> r = continuity_residual(field, field.log_prob, x, t)
    >>> bool(r.value.abs() < 1e-12 * r.scale)
    True
    """
    if t.ndim and t.shape != x.shape[:1]:
        raise ValueError(f"t must have shape () or ({len(x)},), got {tuple(t.shape)}")
    with torch.enable_grad():
        at = x.detach().requires_grad_(True)
        times = t.detach().expand(len(x)).clone().requires_grad_(True)
        log_p = log_prob(at, times, **cond)
        if log_p.shape != x.shape[:1]:
            raise ValueError(f"log_prob must return shape ({len(x)},), got {tuple(log_p.shape)}")
        score, rate = torch.autograd.grad(log_p.sum(), (at, times), allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        velocity, spread = divergence(field, x, times.detach(), **cond)
        along = (velocity * score).reshape(len(x), -1).sum(1)
        return Residual(rate + along + spread, rate.abs() + along.abs() + spread.abs())
