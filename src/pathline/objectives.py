"""Objectives: the loss of a field on a batch, and how its times are drawn.

An objective never pairs anything itself: source points come with the batch, or fresh from the path's source.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from pathline.fields.parametrized import open_ends
from pathline.paths import AffinePath, Prediction
from pathline.typing import Batch, Field, Path

TimeSampler = Callable[[int, torch.Generator | None, torch.dtype, torch.device], Tensor]
"""``sampler(n, generator, dtype, device) -> (n,)`` times in [0, 1]."""


def uniform(n: int, generator: torch.Generator | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Independent times, uniform on [0, 1)."""
    return torch.rand(n, generator=generator, dtype=dtype, device=device)


def stratified(n: int, generator: torch.Generator | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One uniform time in each of n equal strata: the same law for each row's time, less variance in the mean."""
    start = torch.randperm(n, generator=generator, device=device).to(dtype)
    return (start + uniform(n, generator, dtype, device)) / n


def logit_normal(mean: float = 0.0, std: float = 1.0) -> TimeSampler:
    r"""Times with $\log(t / (1 - t)) \sim \mathcal N(\text{mean}, \text{std}^2)$; a positive mean skews late.

    Reference: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
    arXiv:2403.03206.

    Raises:
        ValueError: ``std`` not positive.
    """
    if not std > 0:
        raise ValueError(f"std must be positive, got {std}")
    return partial(_logit_normal, mean=mean, std=std)


def _logit_normal(
    n: int, generator: torch.Generator | None, dtype: torch.dtype, device: torch.device, mean: float, std: float
) -> Tensor:
    return torch.sigmoid(mean + std * torch.randn(n, generator=generator, dtype=dtype, device=device))


class Drawn(NamedTuple):
    """All that is random in a loss, drawn before the network is called.

    Attributes:
        x_t, t: where the network is asked, ``(b, *d)`` and ``(b,)``.
        target: what it should have answered, shaped like ``x_t``.
        cond: its conditions; weight, mask: as in `Batch`.
    """

    x_t: Tensor
    t: Tensor
    target: Tensor
    cond: Mapping[str, Any] = {}
    weight: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class FlowMatching:
    r"""The conditional objective: $\mathbb E\,\lVert v_\theta(x_t, t) - u_t(x_t \mid x_1) \rVert^2$, one loss per row.

    It has the gradient of the marginal objective, which regresses the exact field, and differs from it by a constant.
    The square is SUMMED over dimensions.

    Attributes:
        path: draws x_t and its velocity.
        predicts: what the network predicts and is regressed on; other than velocity on affine paths only.
        times: how t is drawn, see `uniform`, `stratified`, `logit_normal`.
        weight: a factor on each row's loss as a function of t, ``(b,) -> (b,)``; ``None``: one.

    Reference: Lipman et al., "Flow Matching for Generative Modeling", arXiv:2210.02747.

    >>> from pathline import schedules
    >>> loss = FlowMatching(AffinePath(schedules.linear()))
    >>> loss(lambda x, t: torch.zeros_like(x), torch.zeros(4, 2)).shape
    torch.Size([4])
    """

    path: Path
    predicts: Prediction = "velocity"
    times: TimeSampler = uniform
    weight: Callable[[Tensor], Tensor] | None = None

    @cached_property
    def time_range(self) -> tuple[float, float]:
        """The times that are drawn: [0, 1], less what lies beyond the last call before an end without a target."""
        ends = self._open_ends()
        inner = getattr(self.path, "inner_time", None)
        low = inner(0.0) if inner and 0.0 in ends else 0.0
        high = inner(1.0) if inner and 1.0 in ends else 1.0
        return low, high

    def __call__(
        self, field: Field, batch: Batch | Float[Tensor, "b *d"], generator: torch.Generator | None = None
    ) -> Float[Tensor, " b"]:
        """The loss of every row of a batch, or of plain data."""
        return self.loss(field, self.draw(batch, generator))

    def draw(self, batch: Batch | Float[Tensor, "b *d"], generator: torch.Generator | None = None) -> Drawn:
        """Draws t, x0 where the batch has none, and with them x_t and the target.

        Raises:
            ValueError: an empty batch, x1 that is not floating point, a prediction that the path does not know.
        """
        batch = batch if isinstance(batch, Batch) else Batch(batch)
        x1 = batch.x1
        if x1.ndim == 0 or len(x1) == 0 or not x1.is_floating_point():
            raise ValueError(f"x1 must be a batch of floating-point rows, got shape {tuple(x1.shape)}, {x1.dtype}")
        if self.predicts not in get_args(Prediction):
            raise ValueError(f"predicts must be one of {', '.join(get_args(Prediction))}, got {self.predicts!r}")
        t = self.times(len(x1), generator, torch.promote_types(x1.dtype, torch.float32), x1.device)
        low, high = self.time_range
        if (low, high) != (0.0, 1.0):
            t = low + (high - low) * t
        sample = self.path.sample(batch, t, generator)
        target = self._target(sample.target, sample.x0, x1, t)
        return Drawn(sample.x_t, t, target, batch.cond, batch.weight, batch.mask)

    def loss(self, field: Field, drawn: Drawn) -> Float[Tensor, " b"]:
        """The loss of every row that was drawn.

        Raises:
            ValueError: the field does not return the shape of ``x_t``.
        """
        prediction = field(drawn.x_t, drawn.t, **drawn.cond)
        if prediction.shape != drawn.target.shape:
            raise ValueError(f"field must return shape {tuple(drawn.target.shape)}, got {tuple(prediction.shape)}")
        squares = (prediction - drawn.target).square()
        if drawn.mask is not None:
            squares = squares * drawn.mask
        loss = squares.flatten(1).sum(1) if squares.ndim > 1 else squares
        if self.weight is not None:
            loss = loss * self.weight(drawn.t)
        return loss if drawn.weight is None else loss * drawn.weight

    def _open_ends(self) -> tuple[float, ...]:
        if isinstance(self.path, AffinePath):
            return tuple(open_ends(self.path, self.predicts))
        return getattr(self.path, "open_ends", ())

    def _target(self, velocity: Tensor, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
        if self.predicts == "velocity":
            return velocity
        if not isinstance(self.path, AffinePath):
            raise ValueError(f"predicts must be velocity on a {type(self.path).__name__}, got {self.predicts!r}")
        if self.predicts == "data":
            return x1
        return x0 if self.predicts == "noise" else -x0 / self.path.curve(t, x1).sigma
