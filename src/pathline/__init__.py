"""pathline: flow matching that can prove how good it is."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pathline import couplings, grids, nets, objectives, schedules, solvers, sources
from pathline.fields import EmpiricalField, GaussianMixtureField, ParametrizedField, guidance, own_starts, reschedule
from pathline.likelihood import importance, log_prob, sample_with_log_prob
from pathline.model import Model, load
from pathline.objectives import FlowMatching
from pathline.paths import AffinePath, BridgePath, GaussianPath
from pathline.solvers import Solution, solve
from pathline.train import Recipe, fit
from pathline.typing import Batch

if TYPE_CHECKING:
    from pathline.estimator import FlowMatcher

__version__ = version("pathline")

__all__ = [
    "AffinePath",
    "Batch",
    "BridgePath",
    "EmpiricalField",
    "FlowMatcher",
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
    "guidance",
    "importance",
    "load",
    "log_prob",
    "nets",
    "objectives",
    "own_starts",
    "reschedule",
    "sample_with_log_prob",
    "schedules",
    "solve",
    "solvers",
    "sources",
]


def __getattr__(name: str) -> Any:
    """`FlowMatcher`, when it is asked for: scikit-learn takes a second to import."""
    if name == "FlowMatcher":
        from pathline.estimator import FlowMatcher

        return FlowMatcher
    raise AttributeError(f"module 'pathline' has no attribute {name!r}")
