"""Velocity fields: any callable ``(x, t, **cond) -> velocity`` shaped like x.

A field may declare ``open_ends``, a mapping from an end of [0, 1] at which it has no value to the time at which it
is last called there (``None``: the last node of the grid); it then has a ``posterior_mean`` to close with.
A field whose call costs more or less than one network call declares ``calls(t) -> int``.
"""

from pathline.fields import guidance
from pathline.fields.exact import EmpiricalField, GaussianMixtureField
from pathline.fields.parametrized import ParametrizedField
from pathline.fields.retimed import own_starts, reschedule

__all__ = ["EmpiricalField", "GaussianMixtureField", "ParametrizedField", "guidance", "own_starts", "reschedule"]
