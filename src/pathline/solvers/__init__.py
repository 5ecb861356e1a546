"""Solvers of the flow's ODE and SDE: one loop, `solve`, and methods that are data or a single ``step``."""

from pathline.solvers.adaptive import Dopri5, dopri5
from pathline.solvers.dial import method_for
from pathline.solvers.loop import Solution, grid_for, solve
from pathline.solvers.multistep import Adams, Exponential, ab2, ab3, abm, exponential
from pathline.solvers.runge_kutta import Tableau, euler, heun, midpoint, rk3, rk4
from pathline.solvers.stochastic import Stochastic, euler_maruyama, stochastic_heun
from pathline.solvers.tuned import Tuned
from pathline.solvers.tuning import TuneStep, tune, untuned

NAMED = {
    "euler": euler,
    "midpoint": midpoint,
    "heun": heun,
    "rk3": rk3,
    "rk4": rk4,
    "ab2": ab2,
    "ab3": ab3,
    "abm": abm,
    "dopri5": dopri5,
}
"""The shipped solvers by name; the exponential and stochastic ones need a path."""

__all__ = [
    "NAMED",
    "Adams",
    "Dopri5",
    "Exponential",
    "Solution",
    "Stochastic",
    "Tableau",
    "TuneStep",
    "Tuned",
    "ab2",
    "ab3",
    "abm",
    "dopri5",
    "euler",
    "euler_maruyama",
    "exponential",
    "grid_for",
    "heun",
    "method_for",
    "midpoint",
    "rk3",
    "rk4",
    "solve",
    "stochastic_heun",
    "tune",
    "untuned",
]
