"""Training: one function, `fit`, and the recipe that it follows."""

from pathline.train.loop import Step, fit
from pathline.train.recipe import Recipe

__all__ = ["Recipe", "Step", "fit"]
