"""The exponential moving average of a network's weights."""

import torch
from torch import nn


class MovingAverage:
    """Averages floating-point parameters and buffers of ``net``; other buffers are copied."""

    def __init__(self, net: nn.Module) -> None:
        live = [value.detach() for value in net.state_dict(keep_vars=True).values()]
        self.live = [value for value in live if value.is_floating_point()]
        self.average = [value.clone() for value in self.live]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        torch._foreach_lerp_(self.average, self.live, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def copy_to(self, net: nn.Module) -> None:
        """Overwrites the floating-point state of ``net``, a copy of the averaged network."""
        state = [value for value in net.state_dict(keep_vars=True).values() if value.is_floating_point()]
        for value, average in zip(state, self.average, strict=True):
            value.detach().copy_(average)
