"""pathline: flow matching that can prove how good it is."""

from importlib.metadata import version

from pathline import couplings, grids, nets, objectives, schedules, solvers, sources
from pathline.fields import EmpiricalField, GaussianMixtureField, ParametrizedField
from pathline.likelihood import log_prob
from pathline.model import Model, load
from pathline.objectives import FlowMatching
from pathline.paths import AffinePath, BridgePath, GaussianPath
from pathline.solvers import Solution, solve
from pathline.train import Recipe, fit
from pathline.typing import Batch

__version__ = version("pathline")

__all__ = [
    "AffinePath",
    "Batch",
    "BridgePath",
    "EmpiricalField",
    "FlowMatching",
    "GaussianMixtureField",
    "GaussianPath",
    "Model",
    "ParametrizedField",
    "Recipe",
    "Solution",
    "couplings",
    "fit",
    "grids",
    "load",
    "log_prob",
    "nets",
    "objectives",
    "schedules",
    "solve",
    "solvers",
    "sources",
]
