"""What is known of points whatever the query."""

import torch
from torch import Tensor

from pathline.fields.exact.chunks import slices
from pathline.fields.exact.levels.keys import COLUMNS, SAMPLE, Keys

SHARES = (1, 1 / 2, 1 / 4)
"""Of the coordinates, those that vary most, from which bounds are tried."""

GROUP = 8
"""Components of which only the largest bound is looked at; it divides `COLUMNS`."""


class Index:
    """Points $x_i$ about their mean c.

    Attributes:
        points, log_weights: ``(N, D)``, and the logarithms of their probabilities to base 2, ``(N,)``.
        keys: their coordinates as bytes.
        centre: c, ``(D,)``.
        partial_norms: those of x_i - c in the first coordinates of ``keys.order``, and in the others, ``(2, N)``, by
            how many are first: all, and fewer and fewer.
        norms, squares: those of x_i - c, ``(N,)``; ``reach`` and ``size``: the largest norm and the mean one.
        groups: the components of each, ``(groups, GROUP)``; numbers from N on are nobody's.
        sample: x_i - c for one component in `SAMPLE`.
    """

    def __init__(self, points: Tensor, log_weights: Tensor) -> None:
        n, d = points.shape
        self.points, self.log_weights, self.centre = points, log_weights, points.mean(0, dtype=torch.float64)
        self.partial_norms = {max(1, round(share * d)): torch.empty(2, n, dtype=torch.float32) for share in SHARES}
        self.keys = Keys(points, self.partial_norms.keys())
        for rows in slices(n, COLUMNS):
            offset = (points[rows] - self.centre)[:, self.keys.order]
            for width, (first, others) in self.partial_norms.items():
                first[rows], others[rows] = offset[:, :width].norm(dim=1), offset[:, width:].norm(dim=1)
        self.norms = self.partial_norms[d][0]
        self.squares = self.norms.double().square().float()
        self.reach, self.size = float(self.norms.max()), float(self.norms.mean())
        blocks = torch.arange(n + -n % GROUP).split(COLUMNS)
        self.groups = torch.cat([block.view(GROUP, -1).T for block in blocks])
        self.sample = (points[::SAMPLE] - self.centre).float()
