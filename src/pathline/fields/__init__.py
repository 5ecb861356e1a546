"""Velocity fields: any callable ``(x, t, **cond) -> velocity`` shaped like x.

A field may declare ``open_ends``, a mapping from an end of [0, 1] at which it has no value to the time at which it
is last called there (``None``: the last node of the grid); it then has a ``posterior_mean`` to close with.
"""

from pathline.fields.exact import EmpiricalField, GaussianMixtureField
from pathline.fields.parametrized import ParametrizedField

__all__ = ["EmpiricalField", "GaussianMixtureField", "ParametrizedField"]
