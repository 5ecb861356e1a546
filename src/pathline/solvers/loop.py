"""`solve`: the only loop over time."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pathline.fields.retimed import own_clock
from pathline.grids import check_grid, uniform
from pathline.solvers.runge_kutta import rk4
from pathline.typing import Field, Solver
from pathline.wording import whole

LAST = 0.999
"""Where an adaptive solver stops before an open t = 1 if neither it, nor the field, nor an inner node says so."""


@dataclass(frozen=True)
class Solution:
    """What `solve` returns.

    Attributes:
        x: the state at the last time, shape ``(b, *d)``.
        times: the nodes that were visited, float64 on the CPU, shape ``(k,)``.
        nfe: calls of the field, a closing call included.
        closed: whether the last node was reached by the step to the posterior mean.
        states: the state at every node, shape ``(k, b, *d)``, where it was asked for.
        slopes: dx/dt at both ends of every stretch between nodes, shape ``(k - 1, 2, b, *d)``, of a dense solve.
    """

    x: Tensor
    times: Tensor
    nfe: int
    closed: bool
    states: Tensor | None = None
    slopes: Tensor | None = None

    def at(self, t: float) -> Tensor:
        """The state at any time that was passed, by cubic Hermite interpolation, shape ``(b, *d)``.

        Next to the error of the states at both nodes, it adds one of O(h^4). A multistep method makes its first step
        by Euler's and corrects it at the next call, so inside its first step the error is O(h^2).

        Raises:
            ValueError: a solve without ``dense=True``; a time outside the solve.
        """
        if self.states is None or self.slopes is None:
            raise ValueError("at(t) needs a dense solution: call solve(..., dense=True)")
        times = self.times.tolist()
        if not min(times) <= t <= max(times):
            raise ValueError(f"t must lie in [{min(times):.6g}, {max(times):.6g}], which was solved, got {t:.6g}")
        i = next(i for i, (a, b) in enumerate(pairwise(times)) if min(a, b) <= t <= max(a, b))
        return _hermite(self.states[i], self.states[i + 1], self.slopes[i], times[i + 1] - times[i], t - times[i])


def solve(
    field: Field,
    x: Float[Tensor, "b *d"],
    grid: Tensor | None = None,
    solver: Solver = rk4,
    *,
    cond: Mapping[str, Any] = {},
    keep_states: bool = False,
    dense: bool = False,
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
        dense: keep what `Solution.at` needs. A velocity at a node that the method has not called for costs a call.
        callback: called as ``callback(step, t, x)`` after every node.

    Raises:
        ValueError: a bad grid, an empty or non-finite x, a field that returns another shape or dtype, an exact
            field solved from its open end, an SDE solver for a field of `pathline.fields.own_starts`.
        RuntimeError: the solution is not finite; the message names the time of the first call that was not, or the
            node from which on the states are too large.

    >>> solve(lambda x, t: -x, torch.ones(1), uniform(8)).x
    tensor([0.3679])
    """
    nodes = check_grid(uniform(16) if grid is None else grid).tolist()
    check_states("x", x)
    _check_field(field, solver)
    plan = _plan(nodes, _open_ends(field, nodes, solver))
    call = _Call(field, cond, torch.promote_types(x.dtype, torch.float32), remember=dense)
    last, states = x, [x]
    for i, (s, last) in enumerate(_moves(call, x, plan, solver), start=1):
        if keep_states or dense:
            states.append(last)
        if callback is not None:
            callback(i, s, last)
    slopes = _slopes(call, plan, states) if dense else None
    nfe = call.count
    if not bool(last.isfinite().all()):
        again = _Watched(field, cond, call.time_dtype, remember=False)
        bad = (s for s, y in _moves(again, x, plan, solver) if not bool(y.isfinite().all()))
        first = next(bad, nodes[-1])  # a method that draws may not meet it again
        raise RuntimeError(f"the solution is not finite from t = {first:.6g} on: take smaller steps, or mend the field")
    times = torch.tensor([nodes[0], *(move.stop for move in plan)], dtype=torch.float64)
    kept = torch.stack(states) if keep_states or dense else None
    return Solution(last, times, nfe, plan[-1].kind == "close", kept, slopes)


def grid_for(nfe: int, solver: Solver, field: Field, spacing: Callable[[int], Tensor] = uniform) -> Tensor:
    """The grid from 0 to 1 on which ``solver`` makes exactly ``nfe`` calls of ``field``; a tuned solver's is its own.

    Args:
        nfe: calls of the field, a closing call included.
        solver: the method.
        field: the field; one that declares ``calls(t)`` is counted by it.
        spacing: the grid of n steps from 0 to 1.

    Raises:
        ValueError: an nfe that the method can't spend; the message names the nearest two that it can.
    """
    nfe = whole("nfe", nfe, "call")
    own = getattr(solver, "grid", None)
    if isinstance(own, Tensor):
        tuned = getattr(solver, "nfe", len(own) - 1)
        if tuned != nfe:
            raise ValueError(f"nfe must be {tuned}, for which this solver was tuned, got {nfe}")
        return own
    each = solver.calls
    if each is None:
        raise ValueError(
            f"{solver.name} chooses its own steps, so its nfe can't be set: "
            "set its tolerances, or take a fixed-step solver such as abm"
        )
    if hasattr(field, "calls"):
        return _grid_by_trial(nfe, solver, field, spacing)
    ends = getattr(field, "open_ends", {})
    closing = int(1.0 in ends)
    least = 0 if closing and ends[1.0] is None else 1
    steps, rest = divmod(nfe - closing, each)
    if rest or steps < least:
        below = each * max(least, steps) + closing
        raise ValueError(f"nfe must be one that {solver.name} can spend, such as {below} or {below + each}, got {nfe}")
    n = max(1, steps)
    while missing := steps - _steps(spacing(n), ends):
        n += missing
    return spacing(n)


def _grid_by_trial(nfe: int, solver: Solver, field: Field, spacing: Callable[[int], Tensor]) -> Tensor:
    """For fields whose calls cost other than one: solves of a stand-in with the same costs say what a grid spends."""

    def spent(n: int) -> int:
        return solve(_StandIn(field), torch.zeros(1), spacing(n), solver).nfe

    n = 1 + bisect_left(range(1, 4 * nfe + 2), nfe, key=spent)
    if spent(n) != nfe:
        nearest = sorted({spent(max(1, n - 1)), spent(n)})
        raise ValueError(
            f"nfe must be one that {solver.name} can spend on this field, "
            f"such as {' or '.join(map(str, nearest))}, got {nfe}"
        )
    return spacing(n)


class _StandIn:
    """A field at rest with the ends and the costs of another."""

    def __init__(self, field: Any) -> None:
        self.open_ends, self.calls = getattr(field, "open_ends", {}), field.calls

    def __call__(self, x: Tensor, t: Tensor, /, **cond: Any) -> Tensor:
        return x

    def posterior_mean(self, x: Tensor, t: Tensor, /, **cond: Any) -> Tensor:
        return x


def _steps(grid: Tensor, ends: Mapping[float, float | None]) -> int:
    return sum(move.kind == "step" for move in _plan(grid.tolist(), ends))


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
        inner = min(inner, last) if forward else max(inner, last)
        inside = [inner, *(node for node in inside if (node > inner) == forward and node != inner)]
        before = [_Move(first, inner, "keep")]
    if last in open_ends:
        inner = open_ends[last]
        if inner is None:
            inside = inside[:-1]
        else:
            inner = max(inner, inside[0]) if forward else min(inner, inside[0])
            inside = [*(node for node in inside if (node < inner) == forward and node != inner), inner]
        after = [_Move(inside[-1], last, "close" if last == 1.0 else "keep")]
    steps = [_Move(t, s, "step") for t, s in pairwise(inside)]
    return [*before, *steps, *after]


def _moves(call: "_Call", x: Tensor, plan: list[_Move], solver: Solver) -> Iterator[tuple[float, Tensor]]:
    steps = [move for move in plan if move.kind == "step"]
    begin = getattr(solver, "begin", None)
    run = begin([steps[0].start, *(move.stop for move in steps)]) if begin and steps else solver
    for start, stop, kind in plan:
        if kind == "step":
            call.node = (x, start)
            x = run.step(call, x, start, stop)
        elif kind == "close":
            x = call.posterior_mean(x, start)
        yield stop, x


def _open_ends(field: Field, nodes: list[float], solver: Solver) -> Mapping[float, float | None]:
    """The field's open ends, with the last step's time of an adaptive solver where the field leaves it open."""
    if getattr(solver, "keeps_off_ends", False):
        return {}
    ends = getattr(field, "open_ends", {})
    last = getattr(solver, "last", None)
    if solver.calls is None and last is None and len(nodes) == 2:
        last = LAST
    if last is None or nodes[-1] != 1.0 or 1.0 not in ends or nodes[0] >= last:
        return ends
    return {**ends, 1.0: last if ends[1.0] is None else min(last, ends[1.0])}


def _slopes(call: "_Call", plan: list[_Move], states: list[Tensor]) -> Tensor:
    """Slopes at both ends of every move; along a closing or kept stretch, where no field is called, the chord's."""
    slopes = []
    for i, (start, stop, kind) in enumerate(plan):
        if kind == "step":
            pair = [call.slope(states[i], start), call.slope(states[i + 1], stop)]
        else:
            pair = [(states[i + 1] - states[i]) / (stop - start)] * 2
        slopes.append(torch.stack(pair))
    return torch.stack(slopes)


def _hermite(x: Tensor, y: Tensor, slopes: Tensor, h: float, passed: float) -> Tensor:
    r = passed / h
    line = x + r * (y - x)
    chord = (y - x) / h
    return line + passed * (1 - r) * ((1 - r) * (slopes[0] - chord) - r * (slopes[1] - chord))


def check_states(name: str, x: Tensor) -> None:
    """Raises ValueError where ``x`` is no batch of finite floating-point states."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(f"{name} must be a tensor of floating-point numbers, got {_kind(x)}")
    if x.ndim == 0 or len(x) == 0 or not bool(x.isfinite().all()):
        raise ValueError(f"{name} must be a batch of finite states, got shape {tuple(x.shape)} or numbers that are not")


def check_returned(value: Tensor, x: Tensor) -> None:
    """Raises ValueError where what a field returned at ``x`` is not shaped or typed like it."""
    if not isinstance(value, Tensor) or value.shape != x.shape or value.dtype != x.dtype:
        raise ValueError(f"field must return the shape and dtype of x, {_kind(x)}, got {_kind(value)}")


def _check_field(field: Field, solver: Solver) -> None:
    if not callable(field):
        raise ValueError(f"field must be a function field(x, t), such as a network, got {field!r}")
    if not hasattr(solver, "step") or isinstance(solver, type):
        raise ValueError(f"solver must be a method of pathline.solvers, such as solvers.heun, got {solver!r}")
    if getattr(solver, "random", False) and own_clock(field):
        raise ValueError(
            f"field must tell the path's time for {solver.name} to take a score from it, but own_starts has another "
            "clock: solve the rows of each start by themselves, on a grid from it, or take an ODE solver"
        )


def _kind(value: object) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


class _Call:
    """The field with its conditions bound and its calls counted; it takes one number as the time."""

    def __init__(self, field: Field, cond: Mapping[str, Any], time_dtype: torch.dtype, remember: bool) -> None:
        self.field, self.cond, self.time_dtype, self.count = field, cond, time_dtype, 0
        self.cost: Callable[[Tensor], int] = getattr(field, "calls", lambda t: 1)
        self.node: tuple[Tensor, float] | None = None
        self.remember, self.seen = remember, dict[float, Tensor]()

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        velocity = self._counted(self.field, x, t)
        if self.remember and self.node is not None and x is self.node[0] and t == self.node[1]:
            self.seen[self.node[1]] = velocity
        return velocity

    def slope(self, x: Tensor, t: float) -> Tensor:
        """The velocity at a node, called for only where the method has not."""
        if t not in self.seen:
            self.seen[t] = self._counted(self.field, x, t)
        return self.seen[t]

    def posterior_mean(self, x: Tensor, t: float) -> Tensor:
        return self._counted(self.field.posterior_mean, x, t)  # pyright: ignore[reportAttributeAccessIssue]

    def _counted(self, function: Field, x: Tensor, t: float | Tensor) -> Tensor:
        time = self._time(x, t)
        value = function(x, time, **self.cond)
        self.count += self.cost(time)
        check_returned(value, x)
        return value

    def _time(self, x: Tensor, t: float | Tensor) -> Tensor:
        if isinstance(t, Tensor):
            return t.to(self.time_dtype).expand(len(x))
        return torch.full((), t, dtype=self.time_dtype, device=x.device).expand(len(x))


class _Watched(_Call):
    """Calls that raise RuntimeError at the first value that is not finite where the states are."""

    def _counted(self, function: Field, x: Tensor, t: float | Tensor) -> Tensor:
        value = super()._counted(function, x, t)
        if bool(x.isfinite().all()) and not bool(value.isfinite().all()):
            raise RuntimeError(
                f"the field is not finite at t = {float(t):.6g}, called at states up to {float(x.abs().max()):.3g}: "
                "mend the field, or take smaller steps if the states are too large"
            )
        return value
