r"""Log-density along the flow.

With $\dot x = u_t(x)$ the density that the flow carries obeys $\frac{d}{dt} \log p_t(x_t) = -\nabla \cdot u_t(x_t)$,
so $\log p_1(x_1) = \log p_0(x_0) - \int_0^1 \nabla \cdot u_t(x_t)\,dt$ with x_0 reached by solving backward. With the
field's ``path`` the same calls also make good the solver's error, see `pathline.likelihood.along`.

Reference: Chen et al., "Neural Ordinary Differential Equations", arXiv:1806.07366; Grathwohl et al., "FFJORD:
Free-form Continuous Dynamics for Scalable Reversible Generative Models", arXiv:1810.01367.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pathline.grids import check_grid, uniform
from pathline.likelihood import along, trace
from pathline.likelihood.recompute import Recompute
from pathline.likelihood.trace import Probe, Traced
from pathline.paths import AffinePath
from pathline.recording import recordable
from pathline.solvers import euler, rk4, solve
from pathline.solvers.loop import check_states
from pathline.sources import StandardNormal
from pathline.typing import Field, Solver, Source


@dataclass(frozen=True)
class LogProb:
    r"""What `log_prob` returns; every tensor has shape ``(b,)`` but x0.

    Attributes:
        value: log p_1(x1) in nats.
        error: size of the solver's error, by a second solve: on every other node (of one step: in two), for dopri5 at
            a tenth of its tolerances, for a tuned solver by RK4 on its grid. A field open at t = 0 adds what an Euler
            step over the stretch that `solve` leaves out there would change. ``None`` where it was not asked for.
        se: standard error over Hutchinson probes, itself uncertain by a share of about $1 / \sqrt{2 (k - 1)}$; ``None``
            for the exact trace or a single probe. A few signs in few dimensions may agree, so that it is 0: take more
            probes, ``"gaussian"`` ones, or the exact trace.
        x0: the source points that the rows came from, shape ``(b, *d)``.
        nfe: calls of the field, those of the error estimate included.
    """

    value: Tensor
    error: Tensor | None
    se: Tensor | None
    x0: Tensor
    nfe: int


@dataclass(frozen=True)
class SampleLogProb:
    """What `sample_with_log_prob` returns; every tensor has shape ``(b,)`` but x1.

    Attributes:
        x1: the samples, shape ``(b, *d)``.
        value: their log-density in nats.
        error, se, nfe: as in `LogProb`.
    """

    x1: Tensor
    value: Tensor
    error: Tensor | None
    se: Tensor | None
    nfe: int


@recordable
def log_prob(
    field: Field,
    x1: Float[Tensor, "b *d"],
    *,
    source: Source | None = None,
    path: AffinePath | None = None,
    grid: Tensor | None = None,
    solver: Solver = rk4,
    probes: int | None = None,
    law: Probe = "rademacher",
    begin: float = 1.0,
    with_error: bool = True,
    checkpoint: bool = False,
    cond: Mapping[str, Any] = {},
    generator: torch.Generator | None = None,
) -> LogProb:
    """The log-density of rows under the flow of ``field``, by solving backward from ``begin`` to 0.

    An exact field brings its own divergence; otherwise the trace is taken by automatic differentiation, exactly
    (d backward passes a call) or by Hutchinson's estimator with one fixed draw of the probes (one pass a probe).
    Rows must not influence each other inside the field (no batch normalisation in training mode).

    Gradients flow to x1, conditions and parameters. They keep the graph of every call, or with ``checkpoint`` only
    its input, for one more call each in the backward pass. Without gradients, under ``torch.no_grad()`` or
    ``torch.inference_mode()``, memory does not depend on the number of steps.

    Args:
        field: ``field(x, t, **cond)``.
        x1: the rows, any state shape.
        source: p_0; a standard normal by default.
        path: the affine path that the field belongs to, with a standard normal source: the solver's errors are then
            made good through the score that the velocity says (`pathline.likelihood.along`), for one more call, at
            t = 0, and the memory of all nodes. Exact fields have the least error with `pathline.solvers.ab2` on
            ``grids.eased(n, 1, 0, first=0.6, last=0.7, growth=1.3).flip(0)``; a network, from some 24 calls on, with
            `pathline.solvers.abm` on ``grids.eased(n, 1, 0).flip(0)``.
        grid: increasing nodes from 0 to ``begin``; by default 16 equal steps.
        solver: a method of `pathline.solvers`.
        probes: number of Hutchinson probes; ``None`` is the exact trace.
        law: of the probes, ``"rademacher"`` or ``"gaussian"``.
        begin: the time at which the rows live; below 1 for a field that has no value there.
        with_error: estimate the solver's error, by a second solve: at half the cost of the first on a grid of two
            steps or more, at twice with dopri5 or in one step, four times with a tuned solver.
        checkpoint: make the graph of a call again in the backward pass instead of keeping it. A field that draws, as
            dropout does, draws the same numbers again from torch's generator; one with a generator of its own gets
            wrong gradients.
        cond: keyword conditions handed to the field.
        generator: for the probes, drawn on its device.

    Raises:
        ValueError: a field that is open at ``begin``; a grid that does not run from 0 to ``begin``; probes below 1;
            the exact trace of more than 10,000 dimensions; an SDE solver, or here a tuned one, which does not run
            backward; with ``path``, another source, a solver that chooses its own steps, a field open at t = 0, or a
            node where sigma is 0.
        RuntimeError: the solution is not finite, or dopri5 can't meet its tolerances, or a tenth of them.

    >>> float(log_prob(lambda x, t: -x, torch.zeros(1, 1)).value)  # N(0, 1) shrunk by exp(-1)
    0.08106...
    """
    check_states("x1", x1)
    nodes = _nodes(field, grid, "begin", begin).flip(0)
    p0 = source or StandardNormal()
    _check_solver(solver, backward=True)
    _check_path(path, p0, field, solver)
    integrate = _Integrate(field, x1, path, probes, law, checkpoint, cond, generator)
    x0, each, nfe = integrate(x1, nodes, solver)
    value, error = p0.log_prob(x0) + each.mean(1), None
    second = _second(solver, nodes) if with_error else None
    if second is not None:
        with torch.no_grad():
            y0, other, more = integrate.again(x1, second)
            change, before = integrate.left_out(x0, p0, begin)
            error = second.share * (value - p0.log_prob(y0) - other.mean(1)).abs() + change.abs()
        nfe += more + before
    return LogProb(value, error, _standard_error(each, probes), x0, nfe)


@recordable
def sample_with_log_prob(
    field: Field,
    x0: Float[Tensor, "b *d"],
    *,
    source: Source | None = None,
    path: AffinePath | None = None,
    grid: Tensor | None = None,
    solver: Solver = rk4,
    probes: int | None = None,
    law: Probe = "rademacher",
    end: float = 1.0,
    with_error: bool = True,
    checkpoint: bool = False,
    cond: Mapping[str, Any] = {},
    generator: torch.Generator | None = None,
) -> SampleLogProb:
    """Pushes source points through the flow and carries their log-density along: both in one solve, from 0 to ``end``.

    Arguments and errors are those of `log_prob`; ``end`` is the time at which the samples live. With ``path`` the
    density is that of the samples where they are, the solver's error included; the one more call is at ``end``.

    >>> float(sample_with_log_prob(lambda x, t: -x, torch.zeros(1, 1)).value)
    0.08106...
    """
    check_states("x0", x0)
    nodes = _nodes(field, grid, "end", end)
    law_0 = source or StandardNormal()
    _check_solver(solver, backward=False)
    _check_path(path, law_0, field, solver)
    integrate = _Integrate(field, x0, path, probes, law, checkpoint, cond, generator)
    x1, each, nfe = integrate(x0, nodes, solver)
    value, error = law_0.log_prob(x0) - each.mean(1), None
    second = _second(solver, nodes) if with_error else None
    if second is not None:
        with torch.no_grad():
            _, other, more = integrate.again(x0, second)
            change, before = integrate.left_out(x0, law_0, end)
            error = second.share * (each - other).mean(1).abs() + change.abs()
        nfe += more + before
    return SampleLogProb(x1, value, error, _standard_error(each, probes), nfe)


class _Augmented:
    """The field with one or more running integrals of its divergence appended to the flattened state."""

    def __init__(self, field: Field, x: Tensor, traced: Traced, columns: int, recompute: Recompute | None) -> None:
        self.field, self.traced, self.row, self.columns = field, traced, x.shape[1:], columns
        self.recompute = recompute
        self.open_ends = getattr(field, "open_ends", {})

    def join(self, x: Tensor, integrals: Tensor) -> Tensor:
        return torch.cat([x.reshape(len(x), x.shape[1:].numel()), integrals], 1)

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z[:, : -self.columns].reshape(len(z), *self.row), z[:, -self.columns :]

    def calls(self, t: Tensor) -> int:
        own = getattr(self.field, "calls", None)
        return 1 if own is None else own(t)

    def __call__(self, z: Tensor, t: Tensor, /, **cond: Any) -> Tensor:
        def call(z: Tensor) -> Tensor:
            velocity, div = self.traced(self.split(z)[0], t, **cond)
            return self.join(velocity, div.reshape(len(z), -1))

        return call(z) if self.recompute is None else self.recompute(call, z)


class _Second(NamedTuple):
    """The solve that tells the error of the first: that is ``share`` of how far the two are apart."""

    nodes: Tensor
    solver: Solver
    share: float


class _Integrate:
    """From rows, nodes and a solver to where rows arrive, each probe's integral of the divergence, and the calls."""

    def __init__(
        self,
        field: Field,
        x: Tensor,
        path: AffinePath | None,
        probes: int | None,
        law: Probe,
        checkpoint: bool,
        cond: Mapping[str, Any],
        generator: torch.Generator | None,
    ) -> None:
        own = getattr(field, "velocity_and_divergence", None)
        if probes is not None:
            traced = trace.stochastic(field, trace.draw_probes(x, probes, law, generator))
        else:
            traced = trace.exact(field, x) if own is None else own
        self.path, self.cond, self.columns = path, cond, probes or 1
        self.augmented = _Augmented(field, x, traced, self.columns, Recompute() if checkpoint else None)

    def __call__(self, x: Tensor, nodes: Tensor, solver: Solver) -> tuple[Tensor, Tensor, int]:
        start = self.augmented.join(x, x.new_zeros(len(x), self.columns))
        solution = solve(self.augmented, start, nodes, solver, cond=self.cond, dense=self.path is not None)
        end, each = self.augmented.split(solution.x)
        if self.path is not None and solution.states is not None and solution.slopes is not None:
            slopes, k = torch.cat([solution.slopes[:, 0], solution.slopes[-1:, 1]]), self.columns
            states, velocities, divs = solution.states[..., :-k], slopes[..., :-k], slopes[..., -k:]
            each = along.integral(self.path, solution.times.tolist(), states, velocities, divs)
        return end, each, solution.nfe

    def again(self, x: Tensor, second: _Second) -> tuple[Tensor, Tensor, int]:
        try:
            return self(x, second.nodes, second.solver)
        except RuntimeError as error:
            raise RuntimeError(f"the solve that tells the error failed ({error}); or pass with_error=False") from error

    def left_out(self, x: Tensor, source: Source, last: float) -> tuple[Tensor, int]:
        """What an Euler step before an open start, where `solve` keeps x, changes in log p_0, and the calls."""
        first = self.augmented.open_ends.get(0.0)
        if first is None:
            return x.new_zeros(len(x)), 0
        stretch = torch.tensor([min(first, last), 0.0], dtype=torch.float64)
        step = lambda z, t, **cond: self.augmented(z, t, **cond)  # noqa: E731 without the open end
        start = self.augmented.join(x, x.new_zeros(len(x), self.columns))
        y, each = self.augmented.split(solve(step, start, stretch, euler, cond=self.cond).x)
        return source.log_prob(y) + each.mean(1) - source.log_prob(x), self.augmented.calls(stretch[:1])


def _check_solver(solver: Solver, backward: bool) -> None:
    if getattr(solver, "random", False):
        raise ValueError(f"solver must follow the flow, which {solver.name} does not: take an ODE solver such as rk4")
    if backward and isinstance(getattr(solver, "grid", None), Tensor):
        raise ValueError("solver must run backward, and a tuned one goes from 0 to 1 only: take another such as abm")


def _check_path(path: AffinePath | None, source: Source, field: Field, solver: Solver) -> None:
    if path is None:
        return
    if not isinstance(path, AffinePath):
        raise ValueError(f"path must be affine for its field to say the score, got {type(path).__name__}")
    for law in (source, path.source):
        if not isinstance(law, StandardNormal):
            raise ValueError(f"source must be a standard normal where path is given, got {type(law).__name__}")
    if solver.calls is None:
        raise ValueError(f"solver must take the grid's own steps where path is given, got {solver.name}")
    if 0.0 in getattr(field, "open_ends", {}):
        raise ValueError("path must not be given for a field that has no value at t = 0")


def _nodes(field: Field, grid: Tensor | None, name: str, last: float) -> Tensor:
    if last in getattr(field, "open_ends", {}):
        raise ValueError(f"{name} must not be {last:g}, where this field has no value: name a time below it")
    nodes = check_grid(uniform(16, 0.0, last) if grid is None else grid)
    if nodes[0] != 0 or nodes[-1] != last:
        raise ValueError(f"grid must run from 0 to {name} = {last:g}, got {nodes[0]:.6g} to {nodes[-1]:.6g}")
    return nodes


def _second(solver: Solver, nodes: Tensor) -> _Second | None:
    if hasattr(solver, "tighter"):
        return _Second(nodes, solver.tighter(), 1.0)  # pyright: ignore[reportAttributeAccessIssue]
    if solver.calls is None:
        return None
    if isinstance(getattr(solver, "grid", None), Tensor):
        return _Second(nodes, rk4, 1.0)
    share = 1 / (2 ** getattr(solver, "order", 1) - 1)
    if len(nodes) == 2:
        return _Second(torch.stack([nodes[0], nodes.mean(), nodes[1]]), solver, 1 + share)
    return _Second(_every_other(nodes), solver, share)


def _standard_error(each: Tensor, probes: int | None) -> Tensor | None:
    return each.std(1) / probes**0.5 if probes is not None and probes > 1 else None


def _every_other(nodes: Tensor) -> Tensor:
    return nodes[::2] if len(nodes) % 2 else torch.cat([nodes[::2], nodes[-1:]])
