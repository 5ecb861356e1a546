r"""Multistep methods: one call of the field a step, however high the order.

Both families are one recipe. In the right variable the flow is $\dot y = F$, so
$y_s = y_t + \int_t^s F$, and F is replaced by the polynomial through its last values, integrated exactly on
whatever the grid's steps are.

* Adams: y = x, F = u, in t.
* Exponential: on an affine path $d(x / \sigma) = \hat x_1\, d(\alpha / \sigma)$ and
  $d(x / \alpha) = \hat x_0\, d(\sigma / \alpha)$ with the posterior means of data and noise, so the part that is
  linear in x is solved exactly. Forward the data prediction is extrapolated, backward the noise prediction. The
  polynomial's variable is $\alpha / (\alpha + \sigma) = 1 / (1 + e^{-\lambda})$, the logistic of
  $\lambda = \log(\alpha / \sigma)$: lambda itself is infinite at both ends, and polynomials in it lose their order
  on the first steps from t = 0. Two schedules on nodes of equal signal-to-noise ratio give equal results.

A corrected method also redoes its last step with the value that it has just called for, at no further call (the
predictor-corrector of Adams and Moulton in the mode that never re-evaluates). That lessens the error and not its
order: the first value called for after the start belongs to a step of Euler's, and where sigma falls to 0 a step is
all extrapolation. An uncorrected method of order 3 corrects its first step alone, so that its order holds from the
first node on. So n steps are n calls.

Reference: Hairer, Norsett & Wanner, "Solving Ordinary Differential Equations I", 2nd ed., 1993, III.1 and III.5; Lu
et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", arXiv:2211.01095; Zhao et
al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", arXiv:2302.04867.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pathline.paths import AffinePath, converted
from pathline.schedules import Curve

FIXED_MASS = 38.0
"""Exponents below minus this are less than the last bit of float64."""


@dataclass(frozen=True)
class Frame:
    r"""The variable in which a flow is integrated over one grid: at node i, $x = c_i\,y$ and $F = a_i u + b_i x$.

    Attributes:
        calls_at: the time of each step's call, its first node unless F has no value there.
        place: the polynomial's variable at each of those times.
        a, b: coefficients of F at those times; b ``None`` where F is u.
        advance: ``(i, points) -> (carry, weights)``: x at node i + 1 is ``carry * x_i + sum(weights * F)`` for
            values of F at ``points``.
    """

    calls_at: list[float]
    place: list[float]
    a: list[float]
    b: list[float] | None
    advance: Callable[[int, Sequence[float]], tuple[float, list[float]]]


@dataclass(frozen=True)
class Multistep(ABC):
    """A multistep method; `begin` works out its coefficients for one grid.

    Attributes:
        name: what it is called.
        order: global error is O(h^order) on smooth fields, starting steps included; as many values of F are
            extrapolated.
        corrected: whether each step is redone with the value called for at its end.
    """

    name: str
    order: int
    corrected: bool

    @property
    def calls(self) -> int:
        return 1

    @abstractmethod
    def frame(self, nodes: Sequence[float]) -> Frame:
        """The variable that it integrates in, on these nodes."""

    def begin(self, nodes: Sequence[float]) -> "MultistepRun":
        """A fresh memory for one solve along ``nodes``."""
        return MultistepRun(self, nodes)

    def step(self, field: Callable[[Tensor, float], Tensor], x: Tensor, t: float, s: float) -> Tensor:
        """One step without a past, of order 1."""
        return self.begin([t, s]).step(field, x, t, s)


class MultistepRun:
    """The memory of one solve: the last values of F, and all coefficients as plain numbers."""

    def __init__(self, method: Multistep, nodes: Sequence[float]) -> None:
        self.frame = method.frame(nodes)
        place, advance = self.frame.place, self.frame.advance
        self.keep, n = method.order + method.corrected, len(place)

        def last(i: int, count: int) -> list[float]:
            return place[max(0, i - count + 1) : i + 1]

        self.predict = [advance(i, last(i, method.order)) for i in range(n)]
        redone = range(1, n if method.corrected else min(2, n) if method.order > 2 else 1)
        self.correct = {i: advance(i - 1, last(i, self.keep)) for i in redone}
        self.values: list[Tensor] = []
        self.last: Tensor | None = None
        self.i = 0

    def step(self, field: Callable[[Tensor, float], Tensor], x: Tensor, t: float, s: float) -> Tensor:
        i, frame = self.i, self.frame
        velocity = field(x, frame.calls_at[i])
        value = velocity if frame.b is None else torch.add(frame.b[i] * x, velocity, alpha=frame.a[i])
        self.values = [*self.values, value][-self.keep :]
        if i in self.correct and self.last is not None:
            x = self._advance(self.last, *self.correct[i])
        self.i, self.last = i + 1, x
        return self._advance(x, *self.predict[i])

    def _advance(self, x: Tensor, carry: float, weights: list[float]) -> Tensor:
        return _weighted(carry, x, weights, self.values[-len(weights) :])


@dataclass(frozen=True)
class Adams(Multistep):
    """Adams-Bashforth of ``order`` 1 to 3 on any grid, or with ``corrected`` its pair with Adams-Moulton."""

    def frame(self, nodes: Sequence[float]) -> Frame:
        def advance(i: int, points: Sequence[float]) -> tuple[float, list[float]]:
            t, s = nodes[i], nodes[i + 1]
            return 1.0, [(s - t) * w for w in _means(points, t + (s - t) * ABSCISSAE, WEIGHTS)]

        times = list(nodes[:-1])
        return Frame(times, times, [1.0] * len(times), None, advance)


@dataclass(frozen=True)
class Exponential(Multistep):
    """The semi-linear method of an affine path; see `exponential`."""

    path: AffinePath

    def frame(self, nodes: Sequence[float]) -> Frame:
        forward = nodes[-1] > nodes[0]
        wanted = "data" if forward else "noise"
        curve = self._curve(nodes)
        whole = curve.alpha + curve.sigma
        rest = (curve.sigma if forward else curve.alpha) / whole  # falls to 0 along the way
        calls_at = list(nodes[:-1])
        slope = curve.alpha_rate * curve.sigma - curve.alpha * curve.sigma_rate
        if float(slope[0]) == 0:  # the velocity says nothing at this end: the first call is made inside the step
            calls_at[0] = self._between(curve)
        at = self._curve(calls_at)
        one, zero = torch.ones_like(at.alpha), torch.zeros_like(at.alpha)
        a = converted(one, zero, at, "velocity", wanted)
        b = converted(zero, one, at, "velocity", wanted)
        usable = at.alpha_rate.isfinite() & at.sigma_rate.isfinite() & a.isfinite() & b.isfinite()
        if not bool(usable.all()):
            bad = calls_at[int((~usable).nonzero()[0])]
            raise ValueError(
                f"path must have finite rates wherever {self.name} calls the field: its schedule has none at "
                f"t = {bad:.6g}; begin inside (0, 1) or take another solver"
            )
        place = ((at.sigma if forward else at.alpha) / (at.alpha + at.sigma)).tolist()
        rest_at, scale = rest.tolist(), whole.tolist()

        def advance(i: int, points: Sequence[float]) -> tuple[float, list[float]]:
            here, there = rest_at[i], rest_at[i + 1]
            span = FIXED_MASS if there == 0 else min(FIXED_MASS, math.log(here / there))
            passed = span * LONG_ABSCISSAE  # in log(alpha / sigma), counted back from the step's end
            at_, mass = here * np.exp(passed - span), span * LONG_WEIGHTS * np.exp(-passed)
            return scale[i + 1] * there / (scale[i] * here), [scale[i + 1] * w for w in _means(points, at_, mass)]

        return Frame(calls_at, place, a.tolist(), b.tolist(), advance)

    def _curve(self, times: Sequence[float]) -> Curve:
        return self.path.schedule(torch.tensor(list(times), dtype=torch.float64))

    def _between(self, curve: Curve) -> float:
        log_snr = 2 * ((curve.alpha[:2].sum()).log() - curve.sigma[:2].sum().log())
        return float(self.path.schedule.time_of_log_snr(log_snr))


def exponential(path: AffinePath, order: int = 2, corrected: bool = False) -> Exponential:
    """The exponential (semi-linear) multistep method of ``path``: one call a step.

    It is exact where the prediction is constant. Forward it extrapolates the data prediction, backward the noise
    prediction, both taken from the velocity. Right at t = 0 and where sigma is 0. It needs the schedule that the
    field belongs to. To compile a step, take that of ``begin(nodes)``, whose coefficients are plain numbers.

    Args:
        path: the affine path of the field.
        order: 2 or 3.
        corrected: redo each step with the value called for at its end, at no further call (UniPC's corrector).

    Raises:
        ValueError: another order; a path that is not affine; at ``solve``, a schedule whose rates are infinite at a
            node that is called.

    >>> from pathline import schedules
    >>> exponential(AffinePath(schedules.linear()), order=3).name
    'exponential3'
    """
    if order not in (2, 3):
        raise ValueError(f"order must be 2 or 3, got {order}")
    if not isinstance(path, AffinePath):
        raise ValueError(f"path must be affine for an exponential method, got {type(path).__name__}; take abm")
    return Exponential(f"exponential{order}{'c' * corrected}", order, corrected, path)


def _means(points: Sequence[float], at: np.ndarray, mass: np.ndarray) -> list[float]:
    """The integral against ``mass`` of each Lagrange polynomial of ``points``."""
    means = []
    for i, p in enumerate(points):
        basis = np.ones_like(at)
        for j, q in enumerate(points):
            if j != i:
                basis = basis * (at - q) / (p - q)
        means.append(float((basis * mass).sum()))
    return means


def _weighted(carry: float, x: Tensor, weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    total = None if carry == 0 else x if carry == 1 else carry * x
    for weight, value in zip(weights, values, strict=True):
        total = weight * value if total is None else torch.add(total, value, alpha=weight)
    return x if total is None else total


def _gauss(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre abscissae and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(n)
    return (x + 1) / 2, w / 2


ABSCISSAE, WEIGHTS = _gauss(8)
LONG_ABSCISSAE, LONG_WEIGHTS = _gauss(48)

ab2 = Adams("ab2", 2, False)
ab3 = Adams("ab3", 3, False)
abm = Adams("abm", 3, True)
