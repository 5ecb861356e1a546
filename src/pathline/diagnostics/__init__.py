"""Does a field do what is claimed of it, how near is it to the exact one, and does it repeat its training rows?"""

from pathline.diagnostics.budget import Budget, error_budget
from pathline.diagnostics.continuity import LogDensity, Residual, continuity_residual
from pathline.diagnostics.curves import floor, r2, time_loss
from pathline.diagnostics.evidence import Evidence, FieldGap, field_gap
from pathline.diagnostics.law import LawField
from pathline.diagnostics.losses import Estimate, Losses, Reference, loss_over_time, reference
from pathline.diagnostics.memory import Memorisation, memorisation

__all__ = [
    "Budget",
    "Estimate",
    "Evidence",
    "FieldGap",
    "LawField",
    "LogDensity",
    "Losses",
    "Memorisation",
    "Reference",
    "Residual",
    "continuity_residual",
    "error_budget",
    "field_gap",
    "floor",
    "loss_over_time",
    "memorisation",
    "r2",
    "reference",
    "time_loss",
]
