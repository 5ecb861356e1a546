"""One set of checks against exact values, for every path, field, prediction and solver; also for those of your own.

Each check is a function that raises AssertionError, with the error and its tolerance, where a promise is broken.
`battery` lists all of them over what pathline ships; a test suite runs it whole:

>>> checks = battery(shapes=((2,),))
>>> checks["path-linear-(2,)-float64"]()
>>> check_path(AffinePath(schedules.custom(lambda t: t**2, lambda t: 1 - t)))
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from pathline import schedules
from pathline.diagnostics import continuity_residual
from pathline.fields import EmpiricalField, GaussianMixtureField, ParametrizedField
from pathline.fields.parametrized import open_ends
from pathline.grids import uniform
from pathline.likelihood import divergence
from pathline.paths import AffinePath, GaussianPath, Prediction, converted, like
from pathline.solvers import NAMED, euler_maruyama, exponential, solve, stochastic_heun
from pathline.typing import Batch, Solver

TIMES = (0.05, 0.3, 0.5, 0.8, 0.95)
SHAPES: tuple[tuple[int, ...], ...] = ((), (3,), (2, 1, 2))
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Tolerance of what is equal but for rounding, relative to the largest expected number, at least 1."""
RESIDUAL = 1e-10
"""Tolerance of the continuity equation, relative to the sum of its absolute terms, float64."""
ORDER_ERROR = {"euler": 0.1, "euler_maruyama": 0.1}
"""Tolerance of a solver on a linear equation in 64 steps; 3e-3 where none is listed."""
ORDER_SHORT = 0.3
"""How far a solver's measured order may fall short of the one it declares."""
_STEP = 1e-5
_ROUNDED = 1e-12


def shipped_paths() -> dict[str, AffinePath | GaussianPath]:
    """Every shipped schedule as a path, and one whose mean and standard deviation depend on x1."""
    options = {"polynomial": {"n": 2}}
    affine = {name: AffinePath(schedules.named(name, **options.get(name, {}))) for name in schedules.SHIPPED}
    return {**affine, "linear-0.2": AffinePath(schedules.linear(0.2)), "gaussian": GaussianPath(_mean, _std)}


def shipped_solvers() -> dict[str, Solver]:
    """Every shipped solver; those that need a path have a linear one, and the stochastic ones no noise."""
    path = AffinePath(schedules.linear(0.2))
    methods = [exponential(path, order, corrected) for order in (2, 3) for corrected in (False, True)]
    methods += [make(path, lambda t: 0.0) for make in (euler_maruyama, stochastic_heun)]
    return {**NAMED, **{method.name: method for method in methods}}


def check_path(
    path: AffinePath | GaussianPath, shape: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float64
) -> None:
    """A path's velocity, score and density belong together.

    - the velocity of the sample, that at x_t and that of the noise are one (rounding);
    - it is the rate of x_t at fixed noise, by central differences (1e-6);
    - it induces the conditional density (continuity equation, 1e-10), and the score is the density's gradient.

    Raises:
        AssertionError: they don't.
    """
    x1, x0 = (_normal(6, shape, seed).to(dtype) for seed in (0, 1))
    for time in TIMES:
        t = torch.tensor(time, dtype=dtype)
        at = path.sample(Batch(x1, x0), t)
        _close("the velocity at x_t", path.velocity(at.x_t, x1, t), at.target, ROUNDING[dtype] / (1 - time))
        _close("the velocity of the noise", path.velocity_from_noise(x0, x1, t), at.target, ROUNDING[dtype])
        if dtype == torch.float64:
            later, sooner = (path.sample(Batch(x1, x0), t + step).x_t for step in (_STEP, -_STEP))
            _close("the rate of x_t", (later - sooner) / (2 * _STEP), at.target, 1e-6)
            _induces(lambda x, t: path.velocity(x, x1, t), lambda x, t: path.log_prob(x, x1, t), at.x_t, t)
            score = torch.func.grad(lambda x, t=t: path.log_prob(x, x1, t).sum())(at.x_t)
            _close("the score", path.score(at.x_t, x1, t), score, ROUNDING[dtype])


def check_exact_field(
    field: EmpiricalField | GaussianMixtureField, x1: Tensor, dtype: torch.dtype = torch.float64
) -> None:
    """An exact field has the same answer along every way to it, at points x_t made from the rows ``x1``.

    - the closed-form divergence is that of automatic differentiation, the score the gradient of the log-density;
    - on an affine path the velocity follows from the posterior mean (rounding over 1 - t);
    - one time for all rows and one for each give the same (rounding);
    - the field induces its density (continuity equation, 1e-10).

    Raises:
        AssertionError: it has not.
    """
    for time in TIMES:
        t = torch.tensor(time, dtype=dtype)
        x = field.path.sample(Batch(x1.to(dtype)), t, torch.Generator().manual_seed(0)).x_t
        velocity, tol = field(x, t), ROUNDING[dtype] / (1 - time)
        assert velocity.dtype == dtype
        assert velocity.shape == x.shape
        _close("one time for each row", field(x, t.repeat(len(x))), velocity, tol)
        if isinstance(field.path, AffinePath):
            curve = field.path.curve(t, x)
            _close("its data", converted(field.posterior_mean(x, t), x, curve, "data", "velocity"), velocity, 10 * tol)
        if dtype == torch.float64:
            by_autodiff = divergence(_plain(field), x, t.expand(len(x)))[1]
            _close("the divergence", field.divergence(x, t), by_autodiff, tol)
            score = torch.func.grad(lambda x, t=t: field.log_prob(x, t).sum())(x)
            _close("the score", field.score(x, t), score, tol)
            _induces(field, field.log_prob, x, t)


def check_prediction(
    path: AffinePath, predicts: Prediction, shape: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float64
) -> None:
    """A network that predicts ``predicts`` perfectly, wrapped as a field, has the exact velocity and data.

    Raises:
        AssertionError: it has not, to rounding over alpha (1 - t).
    """
    data = _normal(5, shape, 0)
    exact = EmpiricalField(path, data)
    wrapped = ParametrizedField(_Perfect(exact, predicts), path, predicts)
    ends = open_ends(path, predicts)
    for time in (t for t in TIMES if t not in ends):
        t = torch.tensor(time, dtype=dtype)
        x = path.sample(Batch(data.to(dtype)), t, torch.Generator().manual_seed(1)).x_t
        alpha = float(path.schedule(t.double()).alpha)
        tol = ROUNDING[dtype] / (alpha * (1 - time))
        _close(f"the velocity from {predicts}", wrapped(x, t.expand(len(x))), exact(x, t), tol)
        _close(
            f"the data from {predicts}", wrapped.posterior_mean(x, t.expand(len(x))), exact.posterior_mean(x, t), tol
        )


def check_solver(
    solver: Solver,
    shape: tuple[int, ...] = (2,),
    dtype: torch.dtype = torch.float64,
    span: tuple[float, float] = (0.0, 1.0),
) -> None:
    r"""A solver follows $\dot x = (t - x) / 2$ from one time to another, forward or backward, in 64 steps.

    The solution is $x_s = s - 2 + (x_t - t + 2)\,e^{(t - s) / 2}$. The tolerance is that of `ORDER_ERROR`, and the
    calls are counted. In float64 a solver that declares an ``order`` p must show it (`ORDER_SHORT`): halving the steps
    from 64 on divides its error on $\dot x = 1 - (1 + t)(x - t)^2$, solved by $x = t + 1 / (c + t + t^2 / 2)$, by
    $2^p$. Where that error is rounding the steps are longer, up to 16.

    Raises:
        AssertionError: it ends elsewhere, in another dtype or shape, counts its calls wrongly, or is of a lower order.
    """
    start, stop = span
    x, count = _normal(6, shape, 0).to(dtype), [0]

    def field(x: Tensor, t: Tensor, /, **_: Any) -> Tensor:
        assert t.shape == x.shape[:1], f"the field must get t of shape ({len(x)},), got {tuple(t.shape)}"
        count[0] += 1
        return (like(t, x) - x) / 2

    found = solve(field, x, uniform(64, start, stop), solver)
    expected = stop - 2 + (x - start + 2) * math.exp((start - stop) / 2)
    _close(f"the end of {solver.name}", found.x, expected, ORDER_ERROR.get(solver.name, 3e-3))
    assert found.nfe == count[0], f"nfe must be the {count[0]} calls that were made, got {found.nfe}"
    order = getattr(solver, "order", None)
    if order is not None and dtype == torch.float64:
        shown = _order(solver, shape, span)
        assert shown > order - ORDER_SHORT, f"the order of {solver.name} is {shown:.2f}, not {order}"


def check_network(net: Callable[..., Tensor], shape: tuple[int, ...], cond: Mapping[str, Tensor] | None = None) -> None:
    """What training and sampling expect of a network or a wrapper ``net(x, t, **cond)``, in float32.

    It returns the shape and dtype of x, is finite on [0, 1], less the ends in ``net.open_ends`` where it has any, gives
    the same twice, and no row depends on another row (1e-4); batches of one row and of none but one time work.

    Args:
        net: the network, in evaluation mode.
        shape: of a row, ``cond``: conditions for 6 rows by keyword.

    Raises:
        AssertionError: a promise is broken.
    """
    x, told = _normal(6, shape, 0).float(), dict(cond or {})
    ends = {0.0, 1.0} & set(getattr(net, "open_ends", ()))
    t = torch.linspace(0, 1, 6 + len(ends))[0.0 in ends :][:6]
    with torch.no_grad():
        whole = net(x, t, **told)
        assert whole.shape == x.shape, f"net must return shape {tuple(x.shape)}, got {tuple(whole.shape)}"
        assert whole.dtype == x.dtype, f"net must return {x.dtype}, got {whole.dtype}"
        assert bool(whole.isfinite().all()), "net must be finite for t in [0, 1]"
        _close("the second call", net(x, t, **told), whole, 0.0)
        for i in range(6):
            one = {name: value[i : i + 1] for name, value in told.items()}
            _close("a row alone", net(x[i : i + 1], t[i : i + 1], **one), whole[i : i + 1], 1e-4)
        same = torch.tensor(0.5)
        _close("an expanded time", net(x, same.expand(6), **told), net(x, same.repeat(6), **told), 1e-4)


def battery(
    *,
    paths: Mapping[str, AffinePath | GaussianPath] | None = None,
    solvers: Mapping[str, Solver] | None = None,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
) -> dict[str, Callable[[], None]]:
    """Every check by name, over paths x fields x predictions x solvers x directions x shapes x dtypes.

    Args:
        paths: by default those of `shipped_paths`; solvers: by default `shipped_solvers`; shapes: of a row.
    """
    found: dict[str, Callable[[], None]] = {}
    for shape in shapes:
        for dtype in ROUNDING:
            tail = f"{shape}-{str(dtype).removeprefix('torch.')}"
            for name, path in (shipped_paths() if paths is None else paths).items():
                found |= _of_path(name, path, shape, dtype, tail)
            for name, solver in (shipped_solvers() if solvers is None else solvers).items():
                for span in ((0.0, 1.0), (1.0, 0.0), (0.2, 0.7)):
                    check = partial(check_solver, solver, shape, dtype, span)
                    found[f"solver-{name}-{span[0]:g} to {span[1]:g}-{tail}"] = check
    return found


def _of_path(
    name: str, path: AffinePath | GaussianPath, shape: tuple[int, ...], dtype: torch.dtype, tail: str
) -> dict[str, Callable[[], None]]:
    data = _normal(5, shape, 0)
    fields: dict[str, Any] = {"points": EmpiricalField(path, data, torch.arange(1.0, 6))}
    found: dict[str, Callable[[], None]] = {f"path-{name}-{tail}": partial(check_path, path, shape, dtype)}
    if isinstance(path, AffinePath):
        fields["mixture"] = GaussianMixtureField(path, data[:3], torch.tensor([0.1, 0.5, 1.0]))
        for predicts in get_args(Prediction):
            found[f"{predicts}-{name}-{tail}"] = partial(check_prediction, path, predicts, shape, dtype)
    for kind, field in fields.items():
        found[f"{kind}-{name}-{tail}"] = partial(check_exact_field, field, data, dtype)
    return found


class _Perfect(nn.Module):
    """A network that has learned one prediction of an exact field."""

    def __init__(self, exact: EmpiricalField, predicts: Prediction) -> None:
        super().__init__()
        self.exact = exact
        self.predicts: Prediction = predicts

    def forward(self, x: Tensor, t: Tensor, /) -> Tensor:
        if self.predicts == "velocity":
            return self.exact(x, t)
        at, times = x.double(), t.double()
        curve = self.exact.path.curve(times, at)  # pyright: ignore[reportAttributeAccessIssue]
        return converted(self.exact.posterior_mean(at, times), at, curve, "data", self.predicts).to(x.dtype)


def _order(solver: Solver, shape: tuple[int, ...], span: tuple[float, float]) -> float:
    """The solver's order by halving its steps on a nonlinear equation; infinite where it leaves only rounding."""
    start, stop = span
    c = torch.linspace(1, 2, 6 * math.prod(shape), dtype=torch.float64).reshape(6, *shape)

    def field(x: Tensor, t: Tensor, /, **_: Any) -> Tensor:
        s = like(t, x)
        return 1 - (1 + s) * (x - s) ** 2

    def error(n: int) -> float:
        first, last = (t + 1 / (c + t + t**2 / 2) for t in (start, stop))
        return float((solve(field, first, uniform(n, start, stop), solver).x - last).abs().max())

    for n in (64, 32, 16):
        fine = error(2 * n)
        if fine > _ROUNDED:
            return math.log2(error(n) / fine)
    return math.inf


def _mean(x1: Tensor, t: Tensor) -> Tensor:
    return t * x1 + t * (1 - t) * x1.tanh()


def _std(x1: Tensor, t: Tensor) -> Tensor:
    return (1 - t) + t**2 * (0.2 + 0.1 * x1.reshape(len(x1), -1).mean(1).tanh())


def _plain(field: Any) -> Any:
    """The same field, without the closed forms that it may offer beside its value."""
    return lambda x, t: field(x, t)


def _induces(field: Any, log_prob: Any, x: Tensor, t: Tensor) -> None:
    residual = continuity_residual(field, log_prob, x, t)
    worst = float((residual.value.abs() / residual.scale).max())
    assert worst < RESIDUAL, f"the continuity equation holds to {worst:.2e} of its terms at t = {t:g}, not {RESIDUAL:g}"


def _close(what: str, found: Tensor, expected: Tensor, tol: float) -> None:
    assert found.shape == expected.shape, f"{what} has shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    assert found.dtype == expected.dtype, f"{what} has {found.dtype}, not {expected.dtype}"
    scale = max(1.0, float(expected.detach().abs().max()))
    error = float((found - expected).detach().abs().max()) / scale
    assert error <= tol, f"{what} is off by {error:.2e}, more than {tol:.2e}"


def _normal(n: int, shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
