"""TrainStep: what is called, and wrapped, to get a loss with gradients."""

from typing import Any

from torch import Tensor, nn


class TrainStep(nn.Module):
    """A network and its objective as one module, so that an engine can wrap both."""

    def __init__(self, net: nn.Module, objective: Any) -> None:
        super().__init__()
        self.net, self.objective = net, objective

    def forward(self, drawn: Any) -> Tensor:
        """One loss per row, shape ``(b,)``."""
        return self.objective.loss(self.net, drawn)
