"""`solve`: the only loop over time."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pathline.grids import check_grid, uniform
from pathline.solvers.runge_kutta import rk4
from pathline.typing import Field, Solver


@dataclass(frozen=True)
class Solution:
    """What `solve` returns.

    Attributes:
        x: the state at the last time, shape ``(b, *d)``.
        times: the nodes that were visited, float64 on the CPU, shape ``(k,)``.
        nfe: calls of the field, a closing call included.
        closed: whether the last node was reached by the step to the posterior mean.
        states: the state at every node, shape ``(k, b, *d)``, where it was asked for.
    """

    x: Tensor
    times: Tensor
    nfe: int
    closed: bool
    states: Tensor | None = None


def solve(
    field: Field,
    x: Float[Tensor, "b *d"],
    grid: Tensor | None = None,
    solver: Solver = rk4,
    *,
    cond: Mapping[str, Any] = {},
    keep_states: bool = False,
    callback: Callable[[int, float, Tensor], None] | None = None,
) -> Solution:
    r"""Follows $\dot x = u_t(x)$ from the grid's first node to its last, forward or backward.

    A field that declares ``open_ends`` is never called at one. A solve that ends at an open t = 1 closes with the
    exact affine step to the posterior mean, one call; one that begins or ends at another open end keeps x over the
    last stretch, where sigma / alpha or alpha / sigma is below 1e-3. Gradients flow through the steps: wrap the
    call in ``torch.no_grad()`` where none are wanted.

    Args:
        field: ``field(x, t, **cond)`` with t of shape ``(b,)``, an expanded view of one number.
        x: the state at the first node.
        grid: nodes in [0, 1]; by default 16 equal steps from 0 to 1.
        solver: a method of `pathline.solvers`, or anything with ``calls`` and ``step``.
        cond: keyword conditions handed to the field.
        keep_states: keep the state at every node.
        callback: called as ``callback(step, t, x)`` after every node.

    Raises:
        ValueError: a bad grid, an empty or non-finite x, a field that returns another shape or dtype, an exact
            field solved from its open end.
        RuntimeError: the solution is not finite; the message names the time.

    >>> solve(lambda x, t: -x, torch.ones(1), uniform(8)).x
    tensor([0.3679])
    """
    nodes = check_grid(uniform(16) if grid is None else grid).tolist()
    if x.ndim == 0 or len(x) == 0 or not bool(x.isfinite().all()):
        raise ValueError(f"x must be a batch of finite states, got shape {tuple(x.shape)} or numbers that are not")
    plan = _plan(nodes, getattr(field, "open_ends", {}))
    call = _Call(field, cond, torch.promote_types(x.dtype, torch.float32))
    last, states = x, [x]
    for i, (s, last) in enumerate(_moves(call, x, plan, solver), start=1):
        if keep_states:
            states.append(last)
        if callback is not None:
            callback(i, s, last)
    nfe = call.count
    if not bool(last.isfinite().all()):
        bad = next(s for s, y in _moves(call, x, plan, solver) if not bool(y.isfinite().all()))
        raise RuntimeError(f"the solution is not finite from t = {bad:.6g} on: take smaller steps, or mend the field")
    times = torch.tensor([nodes[0], *(move.stop for move in plan)], dtype=torch.float64)
    return Solution(last, times, nfe, plan[-1].kind == "close", torch.stack(states) if keep_states else None)


def grid_for(nfe: int, solver: Solver, field: Field) -> Tensor:
    """The uniform grid from 0 to 1 on which ``solver`` makes exactly ``nfe`` calls of ``field``.

    Raises:
        ValueError: an nfe that the method can't spend; the message names the nearest two that it can.
    """
    each = solver.calls
    if each is None:
        raise ValueError(f"{solver.name} chooses its own steps, so its nfe can't be set")
    ends = getattr(field, "open_ends", {})
    closing = int(1.0 in ends)
    spent = each if closing and ends[1.0] is None else 0
    steps, rest = divmod(nfe - closing + spent, each)
    if rest or steps < 1:
        below = each * max(1, steps) - spent + closing
        raise ValueError(f"nfe must be one that {solver.name} can spend, such as {below} or {below + each}, got {nfe}")
    return uniform(steps)


class _Move(NamedTuple):
    """One stretch of time: a solver's step, the closing step, or a stretch over which x is kept."""

    start: float
    stop: float
    kind: Literal["step", "close", "keep"]


def _plan(nodes: list[float], open_ends: Mapping[float, float | None]) -> list[_Move]:
    first, last, forward = nodes[0], nodes[-1], nodes[-1] > nodes[0]
    inside, before, after = list(nodes), [], []
    if first in open_ends:
        inner = open_ends[first]
        if inner is None:
            raise ValueError(f"grid must not begin at t = {first:g}, where the field has no value: begin inside (0, 1)")
        inside = [inner, *(node for node in inside if (node > inner) == forward and node != inner)]
        before = [_Move(first, inner, "keep")]
    if last in open_ends:
        inner = open_ends[last]
        if inner is None:
            inside = inside[:-1]
        else:
            inside = [*(node for node in inside if (node < inner) == forward and node != inner), inner]
        after = [_Move(inside[-1], last, "close" if last == 1.0 else "keep")]
    steps = [_Move(t, s, "step") for t, s in pairwise(inside)]
    return [*before, *steps, *after]


def _moves(call: "_Call", x: Tensor, plan: list[_Move], solver: Solver) -> Iterator[tuple[float, Tensor]]:
    for start, stop, kind in plan:
        if kind == "step":
            x = solver.step(call, x, start, stop)
        elif kind == "close":
            x = call.posterior_mean(x, start)
        yield stop, x


class _Call:
    """The field with its conditions bound and its calls counted; it takes one number as the time."""

    def __init__(self, field: Field, cond: Mapping[str, Any], time_dtype: torch.dtype) -> None:
        self.field, self.cond, self.time_dtype, self.count = field, cond, time_dtype, 0

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        velocity = self.field(x, self._time(x, t), **self.cond)
        self.count += 1
        if velocity.shape != x.shape or velocity.dtype != x.dtype:
            raise ValueError(
                f"field must return the shape and dtype of x, {tuple(x.shape)} {x.dtype}, "
                f"got {tuple(velocity.shape)} {velocity.dtype}"
            )
        return velocity

    def posterior_mean(self, x: Tensor, t: float) -> Tensor:
        self.count += 1
        return self.field.posterior_mean(x, self._time(x, t), **self.cond)  # pyright: ignore[reportAttributeAccessIssue]

    def _time(self, x: Tensor, t: float | Tensor) -> Tensor:
        if isinstance(t, Tensor):
            return t.to(self.time_dtype).expand(len(x))
        return torch.full((), t, dtype=self.time_dtype, device=x.device).expand(len(x))
