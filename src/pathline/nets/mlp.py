"""The default network for vectors."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pathline.paths import one_time


class MLP(nn.Module):
    r"""A small time-conditioned network that learns what Gaussian data do not already explain.

    $v(x, t, c) = \frac{2t - 1}{t^2 + (1 - t)^2}\,x + F(x, t, c)$, where the first term is the exact velocity of
    standard normal data on the linear path and F starts at zero: an untrained network is the right flow for
    standardised Gaussian data. Time and condition scale and shift F's first layer.

    Args:
        dim: numbers in a row; states of any shape are flattened.
        width: of the hidden layers, depth: their number.
        condition: width of the condition tensor, 0 for none.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, dim: int, width: int = 64, depth: int = 4, condition: int = 0) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"dim": dim, "width": width, "depth": depth, "condition": condition}
        self.enter = nn.Linear(dim + condition, width)
        self.modulate = nn.Linear(_FEATURES + condition, 2 * width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.leave = nn.Linear(width, dim)
        octaves = math.pi * 2.0 ** torch.arange(_OCTAVES)
        self.register_buffer("frequencies", octaves.repeat(2), persistent=False)
        self.register_buffer("phases", torch.tensor([0.0, -math.pi / 2]).repeat_interleave(_OCTAVES), persistent=False)
        for zero in (self.modulate.bias, self.leave.weight, self.leave.bias):
            nn.init.zeros_(zero)

    def forward(
        self, x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], /, *, condition: Tensor | None = None
    ) -> Float[Tensor, "b *d"]:
        flat, time = x.reshape(len(x), -1), t[:, None].to(x.dtype)
        if condition is None and one_time(t):
            time = time[:1]
        extra = [] if condition is None else [condition]
        scale, shift = self.modulate(torch.cat([*self._time_features(time), *extra], 1)).chunk(2, 1)
        h = self.enter(torch.cat([flat, *extra], 1) if extra else flat)
        h = nn.functional.silu(torch.addcmul(h + shift, h, scale))
        for layer in self.hidden:
            h = nn.functional.silu(layer(h))
        gaussian = (2 * time - 1) / (time**2 + (1 - time) ** 2)
        return torch.addcmul(self.leave(h), gaussian, flat).reshape(x.shape)

    def _time_features(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """t centred, a bounded log-odds, and octaves of cosine and sine; widths 1, 1 and 6."""
        log_odds = torch.log((t + 0.02) / (1.02 - t)) / 3
        return 2 * t - 1, log_odds, torch.addcmul(self.phases, t, self.frequencies).cos_()


_OCTAVES = 3
_FEATURES = 2 + 2 * _OCTAVES
