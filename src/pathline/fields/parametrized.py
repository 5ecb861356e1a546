"""A network as a velocity field, whatever it predicts."""

from typing import Any, get_args

import torch
from torch import Tensor, nn

from pathline.paths import AffinePath, Prediction, converted, refuse_ends


class ParametrizedField(nn.Module):
    """The velocity of a network that predicts velocity, data, noise or score on an affine path.

    Attributes:
        net: ``net(x, t, **cond)``, shaped like ``x``.
        path: the path that it was trained on.
        predicts: what it predicts, see `pathline.paths.Prediction`.
        open_ends: ends of [0, 1] where the velocity does not follow from the prediction, each with the time at
            which the network is last called there (sigma / alpha or alpha / sigma = 1e-3).

    Raises:
        ValueError: ``predicts`` is none of the four; a call at an open end.
    """

    def __init__(self, net: nn.Module, path: AffinePath, predicts: Prediction = "velocity") -> None:
        super().__init__()
        if predicts not in get_args(Prediction):
            raise ValueError(f"predicts must be one of {', '.join(get_args(Prediction))}, got {predicts!r}")
        self.net, self.path = net, path
        self.predicts: Prediction = predicts
        self.open_ends = {end: path.inner_time(end) for end in open_ends(path, predicts)}

    def forward(self, x: Tensor, t: Tensor, /, **cond: Any) -> Tensor:
        refuse_ends(tuple(self.open_ends), t, f"the velocity of a network that predicts {self.predicts}")
        return converted(self.net(x, t, **cond), x, self.path.curve(t, x), self.predicts, "velocity")

    def posterior_mean(self, x: Tensor, t: Tensor, /, **cond: Any) -> Tensor:
        """The network's E[x1 given x_t = x], shaped like ``x``."""
        if self.predicts != "data":
            refuse_ends(tuple(self.open_ends), t, f"the data of a network that predicts {self.predicts}")
        return converted(self.net(x, t, **cond), x, self.path.curve(t, x), self.predicts, "data")


def open_ends(path: AffinePath, predicts: Prediction) -> list[float]:
    """Ends of [0, 1] at which the velocity does not follow from the prediction, or the prediction has no limit."""
    sharp = float(path.schedule(torch.ones(())).sigma) == 0
    ends = set(path.open_ends)
    if predicts in ("noise", "score"):
        ends.add(0.0)
    if predicts in ("data", "score") and sharp:
        ends.add(1.0)
    return sorted(ends)
