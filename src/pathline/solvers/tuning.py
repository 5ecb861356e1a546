r"""`tune`: the times and coefficients that spend n calls of one field best.

The end of a `Tuned` solver is a smooth function of a few dozen numbers, so these are found by the method of Levenberg
and Marquardt on the distance to the converged solution, each noise weighted so that the mean distance (not its
square) falls. The derivative goes forward along the solve: a direction of change at a call is one more row of its
batch, by finite differences, so that any field can be tuned.

Reference: Shaul et al., "Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models",
arXiv:2403.01329; Marquardt, "An Algorithm for Least-Squares Estimation of Nonlinear Parameters", J. SIAM 11, 1963.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathline import grids
from pathline.paths import AffinePath
from pathline.solvers.loop import solve
from pathline.solvers.multistep import ab2, ab3, abm, exponential
from pathline.solvers.runge_kutta import euler, heun, midpoint, rk3, rk4
from pathline.solvers.tuned import Tuned, combined, written_out
from pathline.typing import Field, Solver
from pathline.wording import whole

STARTS = 4
"""Untuned solvers from which tuning begins; the best of them after `FIRST` steps goes on."""
FIRST = 12
LAST = 40
MOST_TRIES = 8
CONVERGED = 100
"""Steps of RK4 that stand for the converged solution."""
LEAST = 16


@dataclass(frozen=True)
class TuneStep:
    """What a callback of `tune` gets after every step.

    Attributes:
        step, steps: steps done, and those that there will be at most.
        error: the held-out RMSE so far, mean over noises.
        untuned: that of the best untuned solver.
    """

    step: int
    steps: int
    error: float
    untuned: float


def untuned(path: AffinePath, nfe: int) -> dict[str, tuple[Solver, Callable[[int], Tensor]]]:
    """The listed solvers and grids that `tune` begins from and has to beat, by name: a solver, and steps -> grid.

    >>> from pathline import schedules
    >>> len(untuned(AffinePath(schedules.linear()), 8))
    108
    """
    methods = [euler, midpoint, heun, rk3, rk4, ab2, ab3, abm]
    methods += [exponential(path, order, corrected) for order in (2, 3) for corrected in (False, True)]
    spacings: dict[str, Callable[[int], Tensor]] = {
        "uniform": grids.uniform,
        "cosine": grids.cosine,
        "eased": grids.eased,
        "eased, mirrored": lambda n: 1 - grids.eased(n).flip(0),
        "power 3/2": lambda n: grids.power(n, 1.5),
        "power 2/3": lambda n: grids.power(n, 2 / 3),
        "power 3/2, mirrored": lambda n: 1 - grids.power(n, 1.5).flip(0),
        "log_snr": lambda n: grids.log_snr(n, path.schedule),
        "shift 1/3": lambda n: grids.shift(grids.uniform(n), 1 / 3),
    }
    return {
        f"{solver.name}, {name}": (solver, spacing)
        for solver in methods
        if solver.calls <= nfe
        for name, spacing in spacings.items()
    }


@torch.no_grad()
def tune(
    field: Field,
    path: AffinePath,
    nfe: int,
    x0: Tensor,
    *,
    cond: Mapping[str, Any] = {},
    callback: Callable[[TuneStep], None] | None = None,
) -> Tuned:
    """Learns times and coefficients with which ``nfe`` calls of ``field`` come nearest to its converged solution at 1.

    Three quarters of the noises are learned from, and the last quarter is held out: it chooses among the steps, and
    where it sees no gain over the best of `untuned`, the result is that one, with ``learned`` false.

    Args:
        field: ``field(x, t, **cond)``.
        path: the affine path that it belongs to.
        nfe: calls a solve, as `solve` counts them; tuning's time grows with the cube of the field's.
        x0: source points, shape ``(n, *d)``, at least 16; some 2,000 do in 2 dimensions, some 500 in 64.
        cond: conditions handed to the field; tensors of n rows go with the rows of x0.
        callback: called after every step.

    Returns:
        A solver with its grid: ``solve(field, x, tuned.grid, tuned)``.

    Raises:
        ValueError: nfe below 1, or calls that the field can't spend, such as an odd number where each costs two; a
            field that costs more at some times than at others; fewer than 16 points in x0, or any that is not finite.
        RuntimeError: no listed solver gets to a finite end.

    >>> from pathline import EmpiricalField, schedules
    >>> path = AffinePath(schedules.linear(0.3))
    >>> field = EmpiricalField(path, torch.tensor([-1.0, 1.0]))
    >>> tuned = tune(field, path, 2, torch.linspace(-2, 2, 32, dtype=torch.float64))
    >>> tuned.error < tuned.untuned / 3
    True
    """
    each = _cost(field)
    calls, rest = divmod(whole("nfe", nfe, "call"), each)
    if rest or calls == 0:
        least = max(1, calls) * each
        raise ValueError(f"nfe must be one that this field can spend, such as {least} or {least + each}, got {nfe}")
    if x0.ndim == 0 or len(x0) < LEAST or not bool(x0.isfinite().all()):
        raise ValueError(f"x0 must be at least {LEAST} finite source points, got shape {tuple(x0.shape)}")
    end = solve(field, x0, grids.uniform(CONVERGED), rk4, cond=cond).x
    bounds = _bounds(field, path)
    order = torch.arange(len(x0), device=x0.device)
    part = 3 * len(x0) // 4
    seen, held = (
        _Noises(field, _rows(cond, some, len(x0)), x0[some], end[some]) for some in (order[:part], order[part:])
    )
    plans = _plans(field, path, calls)
    if not plans:
        raise RuntimeError(f"no listed solver can spend {nfe} calls on this field; take another nfe")
    began = {name: seen.error(plan) for name, plan in plans.items()}
    held_errors = {name: held.error(plan) for name, plan in plans.items()}
    name = min(plans, key=lambda name: 3 * began[name] + held_errors[name])
    floor = held_errors[name]
    if not floor < torch.inf:
        raise RuntimeError(f"no listed solver gets to a finite end with {nfe} calls; take more, or mend the field")
    starts = sorted(began, key=lambda name: began[name])[:STARTS]
    steps, done = len(starts) * FIRST + LAST, 0

    def tell(error: float) -> None:
        nonlocal done
        done += 1
        if callback is not None:
            callback(TuneStep(done, steps, min(error, floor), floor))

    runs = {start: _Descent(seen, held, plans[start], bounds) for start in starts}
    for run in runs.values():
        run.go(FIRST, tell)
    chosen = min(runs, key=lambda start: runs[start].best)
    done = len(starts) * FIRST
    runs[chosen].go(LAST, tell)
    run = runs[chosen]
    best = Tuned(*_numbers(run.kept), chosen, True, run.best, floor, each)
    return best if run.best < floor else Tuned(*_numbers(plans[name]), name, False, floor, floor, each)


@dataclass(frozen=True)
class _Plan:
    """Times and rows of a `Tuned`, on their way."""

    times: list[float]
    rows: list[list[float]]

    def packed(self) -> Tensor:
        """All numbers in the order of the calls: a call's weights, then its time; at last the end's weights."""
        numbers: list[float] = []
        for t, row in zip(self.times, self.rows[:-1], strict=True):
            numbers += [*row, t]
        return torch.tensor([*numbers, *self.rows[-1]], dtype=torch.float64)


def _unpacked(numbers: Tensor, n: int, bounds: tuple[float, float]) -> _Plan:
    """The plan of these numbers, with times put in order between the bounds."""
    left, times, rows = numbers.tolist(), list[float](), list[list[float]]()
    least, most = bounds
    for i in range(n):
        rows.append(left[: i + 1])
        times.append(min(most, max([least, left[i + 1], *times[-1:]])))
        left = left[i + 2 :]
    return _Plan(times, [*rows, left])


def _numbers(plan: _Plan) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    return tuple(plan.times), tuple(tuple(row) for row in plan.rows)


@dataclass(frozen=True)
class _Noises:
    """Source points, where they should end, and how far a plan leaves them from there."""

    field: Field
    cond: Mapping[str, Any]
    x0: Tensor
    end: Tensor

    def distances(self, reached: Tensor) -> Tensor:
        """RMSE of every row, float64, shape ``(b,)``."""
        return (reached - self.end).double().reshape(len(self.end), -1).square().mean(1).sqrt()

    def error(self, plan: _Plan) -> float:
        error = float(self.distances(self.reached(plan)).mean())
        return error if error == error else torch.inf

    def reached(self, plan: _Plan) -> Tensor:
        values = [self.x0]
        for t, row in zip(plan.times, plan.rows[:-1], strict=True):
            values.append(self.call(combined(row, values), t))
        return combined(plan.rows[-1], values)

    def call(self, x: Tensor, t: float) -> Tensor:
        """The field at some copies of the rows, ``(k * b, *d)``, at one time."""
        b = len(self.x0)
        cond = _rows(self.cond, torch.arange(b, device=x.device).repeat(len(x) // b), b)
        time = torch.full((), t, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        return self.field(x, time.expand(len(x)), **cond)

    def linearised(self, plan: _Plan) -> tuple[Tensor, Tensor]:
        """The end, and its derivative by each of the plan's numbers, shape ``(p, b, *d)``."""
        eps = torch.finfo(self.x0.dtype).eps ** 0.5 * 3
        b, shape = len(self.x0), self.x0.shape[1:]
        values, turns = [self.x0], [self.x0.new_zeros(0, b, *shape)]
        for t, row in zip(plan.times, plan.rows[:-1], strict=True):
            x = combined(row, values)
            turn = _turned(row, values, turns)
            size = turn.reshape(*turn.shape[:2], -1).square().mean(2).sqrt()
            h = (eps / size.clamp_min(1e-12)).reshape(*size.shape, *[1] * len(shape))
            velocities = self.call(torch.cat([x[None], x + h * turn]).reshape(-1, *shape), t).reshape(-1, b, *shape)
            velocity, later = velocities[0], eps if t < 0.5 else -eps
            by_time = (self.call(x, t + later) - velocity) / later
            turns.append(torch.cat([(velocities[1:] - velocity) / h, by_time[None]]))
            values.append(velocity)
        return combined(plan.rows[-1], values), _turned(plan.rows[-1], values, turns)


def _turned(row: Sequence[float], values: Sequence[Tensor], turns: Sequence[Tensor]) -> Tensor:
    """The derivative of ``combined(row, values)`` by all numbers before the row and by those of the row."""
    total = torch.zeros_like(turns[-1])
    for weight, turn in zip(row, turns, strict=True):
        total[: len(turn)] += weight * turn
    return torch.cat([total, torch.stack(list(values))])


class _Descent:
    """Levenberg's and Marquardt's method from one plan; ``kept`` has the least held-out error so far, ``best``."""

    def __init__(self, seen: _Noises, held: _Noises, plan: _Plan, bounds: tuple[float, float]) -> None:
        self.seen, self.held, self.bounds = seen, held, bounds
        self.plan = _unpacked(plan.packed(), len(plan.times), bounds)
        self.kept, self.best, self.damping = self.plan, held.error(self.plan), 1e-2

    def go(self, steps: int, tell: Callable[[float], None]) -> None:
        for _ in range(steps):
            if not self._step():
                return
            error = self.held.error(self.plan)
            if error < self.best:
                self.kept, self.best = self.plan, error
            tell(self.best)

    def _step(self) -> bool:
        end, turn = self.seen.linearised(self.plan)
        distances = self.seen.distances(end)
        soft = 0.3 * distances.median().clamp_min(1e-300)
        weight = 1 / (distances.square() + soft**2).sqrt()
        jacobian = turn.double().reshape(len(turn), len(end), -1)
        residual = (end - self.seen.end).double().reshape(len(end), -1)
        scaled = (jacobian * weight.sqrt()[:, None]).flatten(1)
        slope = scaled @ (residual * weight.sqrt()[:, None]).flatten()
        bend = scaled @ scaled.T
        ridge = bend.diagonal() + 1e-12 * bend.diagonal().max()
        before, numbers = float((1 / weight).mean()), self.plan.packed()
        for _ in range(MOST_TRIES):
            step = torch.linalg.solve(bend + self.damping * torch.diag(ridge), slope)
            plan = _unpacked(numbers - step.cpu(), len(self.plan.times), self.bounds)
            after = float((self.seen.distances(self.seen.reached(plan)).square() + soft**2).sqrt().mean())
            if after < before:
                self.plan, self.damping = plan, max(self.damping / 3, 1e-9)
                return True
            self.damping *= 4
        return False


def _plans(field: Field, path: AffinePath, nfe: int) -> dict[str, _Plan]:
    """Every listed solver and grid that can spend the calls, written out."""
    plans = {}
    for name, (solver, spacing) in untuned(path, nfe).items():
        steps = nfe // (solver.calls or 1)
        for n in (steps, steps + 1, steps + 2):
            try:
                found = written_out(field, path, spacing(n), solver, nfe)
            except ValueError:
                continue  # too few steps for the grid, or rates that the schedule does not have
            if found is not None:
                plans[name] = _Plan(*found)
                break
    return plans


def _cost(field: Field) -> int:
    """What one call of the field costs, at whatever time."""
    own = getattr(field, "calls", lambda t: 1)
    costs = {own(t) for t in torch.linspace(0, 1, 65, dtype=torch.float64)[:, None]}
    if len(costs) > 1:
        raise ValueError(
            "field must cost as many calls at every time to be tuned, "
            f"got {min(costs)} to {max(costs)}: guide it at all times, or take method_for"
        )
    return costs.pop()


def _bounds(field: Field, path: AffinePath) -> tuple[float, float]:
    """The first and last time at which the field may be called."""
    ends = getattr(field, "open_ends", {})
    inner = {end: path.inner_time(end) if last is None else last for end, last in ends.items()}
    return inner.get(0.0, 0.0), inner.get(1.0, 1.0)


def _rows(cond: Mapping[str, Any], index: Tensor, n: int) -> dict[str, Any]:
    """Conditions of some rows; what is no tensor of n rows is left as it is."""
    return {
        key: value[index] if isinstance(value, Tensor) and value.ndim and len(value) == n else value
        for key, value in cond.items()
    }
