"""Solvers of the flow's ODE: one loop, `solve`, and methods that are data or a single ``step``."""

from pathline.solvers.adaptive import Dopri5, dopri5
from pathline.solvers.loop import Solution, grid_for, solve
from pathline.solvers.runge_kutta import Tableau, euler, heun, midpoint, rk4

NAMED = {"euler": euler, "midpoint": midpoint, "heun": heun, "rk4": rk4, "dopri5": dopri5}
"""The shipped solvers by name."""

__all__ = [
    "NAMED",
    "Dopri5",
    "Solution",
    "Tableau",
    "dopri5",
    "euler",
    "grid_for",
    "heun",
    "midpoint",
    "rk4",
    "solve",
]
