"""Objectives: the loss of a field on a batch, and how its times are drawn.

An objective never pairs anything itself: source points come with the batch, or fresh from the path's source.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from pathline.fields import EmpiricalField, GaussianMixtureField
from pathline.fields.parametrized import open_ends
from pathline.paths import AffinePath, GaussianPath, Prediction, converted, like
from pathline.sources import check_rows
from pathline.typing import Batch, Field, Path, PathSample
from pathline.wording import whole

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
class Sampled:
    """A reference batch for `FlowMatching` to take its target from: rows drawn afresh from the data for every batch.

    Attributes:
        data: all rows, ``(n, *d)``, in the units and on the device of the training.
        rows: how many of them, with replacement, stand beside the one that x_t was made from.
        weights: of all rows ``(n,)``, by which they are drawn, up to a factor those of the loss (`Batch.weight`);
            ``None``: equal ones. The law of the drawn rows must be that of the weighted batches.

    Raises:
        ValueError: data that are no tensor of finite numbers with a row, rows that are not a count from 1 on, or
            weights that are not n finite ones, none negative, of a positive sum.
    """

    data: Tensor = field(repr=False)
    rows: int
    weights: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_rows("data", self.data)
        object.__setattr__(self, "rows", whole("rows", self.rows))
        weights = self.weights
        if weights is None:
            return
        if weights.shape != (len(self.data),):
            raise ValueError(f"weights must have shape ({len(self.data)},), got {tuple(weights.shape)}")
        if not bool(weights.isfinite().all() & (weights >= 0).all() & (weights.sum() > 0)):
            least, total = float(weights.min()), float(weights.sum())
            raise ValueError(
                f"weights must be finite, not negative and of a positive sum, got {least:g}, sum {total:g}"
            )

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """`rows` of the data, ``(rows, *d)``."""
        n, device = len(self.data), self.data.device
        if self.weights is None:
            return self.data[torch.randint(n, (self.rows,), generator=generator, device=device)]
        ends = self.weights.to(device, torch.float64).cumsum(0)
        level = torch.rand(self.rows, generator=generator, dtype=torch.float64, device=device) * ends[-1]
        last = (self.weights > 0).nonzero().max()
        return self.data[torch.searchsorted(ends, level, right=True).clamp_max(last)]


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
        target: what stands in for the conditional velocity. ``None``: nothing; "batch": the exact field of the rows of
            the batch; `Sampled`: that of rows drawn for it and the row itself; or the exact field of all data,
            ``field(x, t, **cond)``. All have the same expected gradient (the row that made x_t stays among those of
            the reference, which makes that so), and less variance. With batches that have weights "batch" takes those,
            and `Sampled` needs its own: rows weighted w are those of a law q, and the row that made x_t and rows drawn
            by q are then alike but for which of them made it. The first two are for unconditional training; all
            take x0 and x1 to be independent.

    Reference: Lipman et al., "Flow Matching for Generative Modeling", arXiv:2210.02747; Bertrand et al., "On the
    closed-form of flow matching: generalization does not arise from target stochasticity", arXiv:2506.03719;
    Ryzhakov et al., "Explicit Flow Matching: On The Theory of Flow Matching Algorithms with Applications",
    arXiv:2402.03232.

    >>> from pathline import schedules
    >>> loss = FlowMatching(AffinePath(schedules.linear()))
    >>> loss(lambda x, t: torch.zeros_like(x), torch.zeros(4, 2)).shape
    torch.Size([4])
    """

    path: Path
    predicts: Prediction = "velocity"
    times: TimeSampler = uniform
    weight: Callable[[Tensor], Tensor] | None = None
    target: Literal["batch"] | Sampled | Field | None = None

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
            ValueError: an empty batch, x1 that is not floating point, a prediction that the path does not know, a
                target that is none, or of rows of another shape than x1's, or needs an unconditional batch, or a path
                from a standard normal, or is `Sampled` without weights for a batch that has them.
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
        if self.target is None:
            target = self._target(sample.target, sample.x0, x1, t)
        else:
            target = self._exact_target(sample, batch, generator)
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

    @torch.no_grad()
    def _exact_target(self, sample: PathSample, batch: Batch, generator: torch.Generator | None) -> Tensor:
        """What an exact field has instead; at an end where it has no value the conditional velocity stays."""
        x, t = sample.x_t, sample.t
        ends = torch.tensor(sorted(_exact_ends(self.target)), dtype=t.dtype, device=t.device)
        at_end = torch.isin(t, ends)
        velocity = self._exact_velocity(sample._replace(t=torch.where(at_end, 0.5, t)), batch, generator)
        velocity = torch.where(like(at_end, x).bool(), sample.target, velocity)
        if self.predicts == "velocity":
            return velocity
        if not isinstance(self.path, AffinePath):
            raise ValueError(f"predicts must be velocity on a {type(self.path).__name__}, got {self.predicts!r}")
        return converted(velocity, x, self.path.curve(t, x), "velocity", self.predicts)

    def _exact_velocity(self, sample: PathSample, batch: Batch, generator: torch.Generator | None) -> Tensor:
        x, t, target = sample.x_t, sample.t, self.target
        _check_rows_of(target, x)
        if target != "batch" and not isinstance(target, Sampled):
            if not callable(target):
                raise ValueError(f"target must be None, batch, Sampled or a field, got {target!r}")
            return target(x, t, **batch.cond)
        if batch.cond:
            raise ValueError(f"target must be None or a field where there are conditions, got {list(batch.cond)}")
        if not isinstance(self.path, AffinePath | GaussianPath):
            raise ValueError(f"target must be None or a field on a {type(self.path).__name__}")
        if not isinstance(target, Sampled):
            return EmpiricalField(self.path, sample.x1, batch.weight)(x, t)
        if batch.weight is not None and target.weights is None:
            raise ValueError("target must be Sampled(data, rows, weights), its weights those of the loss, got none")
        others = EmpiricalField(self.path, target.draw(generator))
        x, x1, t = x.double(), sample.x1.double(), t.double()
        odds = self.path.log_prob(x, x1, t) - others.log_prob(x, t) - math.log(target.rows)
        velocity = others(x, t)
        mixed = velocity + like(odds.sigmoid(), x) * (self.path.velocity(x, x1, t) - velocity)
        return mixed.to(sample.x_t)


def _check_rows_of(target: object, x: Tensor) -> None:
    """Raises ValueError where the data of a target have rows of another shape than ``x`` ``(b, *d)``."""
    if isinstance(target, Sampled):
        shape = target.data.shape[1:]
    elif isinstance(target, EmpiricalField | GaussianMixtureField):
        shape = target.shape
    else:
        return
    if shape != x.shape[1:]:
        kind = type(target).__name__
        raise ValueError(f"target must have rows of x1's shape {tuple(x.shape[1:])}, got {kind} of {tuple(shape)}")


def _exact_ends(target: object) -> set[float]:
    """Where an exact field has no value; that of points that a path may end in, at t = 1."""
    return set(getattr(target, "open_ends", {})) if callable(target) else {1.0}
