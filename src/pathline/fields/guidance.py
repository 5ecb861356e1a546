r"""Guidance: fields that wrap fields, so that they nest, sample, score and solve like any other.

On an affine path from a standard normal source the velocity is a score in other units,

$$u_t(x) = \frac{\dot\alpha}{\alpha}\,x + c_t\,\nabla \log p_t(x), \qquad
c_t = \frac{\sigma\,(\dot\alpha \sigma - \alpha \dot\sigma)}{\alpha},$$

from $u = \dot\alpha\,\mathbb E[x_1] + \dot\sigma\,\mathbb E[x_0]$ with $\mathbb E[x_0] = -\sigma \nabla \log p_t$ and
$\mathbb E[x_1] = (x + \sigma^2 \nabla \log p_t) / \alpha$. So knowing y, which adds $\nabla \log p(y \mid x_t)$ to the
score, adds $c_t \nabla \log p(y \mid x_t)$ to the velocity and $\frac{\sigma^2}{\alpha} \nabla \log p(y \mid x_t)$
to the posterior mean. Both factors grow without bound as t falls to 0 while the gradient vanishes, and their products
have limits that can't be computed there: until alpha / sigma is the root of the rounding error (3e-4 in float32) such
a field is what it is then.

Each wrapper passes on the ends at which its parts have no value, closes with their posterior means, registers
parts that are modules, and tells `solve` what it costs: ``calls(t)`` network calls.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pathline.paths import AffinePath, Prediction, converted, like, one_time
from pathline.recording import recordable
from pathline.sources import StandardNormal
from pathline.typing import Field


class Guided(nn.Module, ABC):
    """A field made of other fields.

    Attributes:
        parts: the fields that it calls.
        open_ends: the ends at which one of them has no value, each with the time of the last call.
    """

    def __init__(self, *parts: Field, path: AffinePath | None = None) -> None:
        super().__init__()
        self.parts = parts
        for i, part in enumerate(parts):
            if isinstance(part, nn.Module):
                self.add_module(f"part{i}", part)
        self.open_ends = _open_ends(parts, path)

    def forward(self, x: Float[Tensor, "b *d"], t: Float[Tensor, "*b"], /, **cond: Any) -> Tensor:
        """The guided velocity, shaped like ``x``."""
        return self.guide("velocity", x, t, cond)

    def posterior_mean(self, x: Tensor, t: Tensor, /, **cond: Any) -> Tensor:
        """The guided E[x1 given x_t = x], shaped like ``x``."""
        return self.guide("data", x, t, cond)

    def calls(self, t: Tensor) -> int:
        """Network calls that one call at ``t`` costs."""
        return sum(_calls(part, t) for part in self.parts)

    @abstractmethod
    def guide(self, what: Prediction, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> Tensor:
        """The guided velocity, or the guided posterior mean of the data."""


class Range(NamedTuple):
    """Times from ``low`` to ``high``, both included."""

    low: float
    high: float

    def holds(self, t: Tensor) -> bool | Tensor:
        """For all rows at once where they share one time (read on the host), else row by row ``(b,)``."""
        if self.low <= 0 and self.high >= 1:
            return True
        inside = (t >= self.low) & (t <= self.high)
        return bool(inside.reshape(-1)[0]) if one_time(t) else inside


def classifier_free(
    field: Field,
    scale: float,
    null: Mapping[str, Any] | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
    *,
    rescale: bool = False,
    zero_until: float = 0.0,
) -> "ClassifierFree":
    r"""$u = u_\varnothing + s\,(u_y - u_\varnothing)$: conditional and null rows in ONE batched call, counted as two.

    Scale 0 is the unconditional field, 1 the conditional one, and more goes beyond. Outside ``interval`` the field
    is the conditional one, at one call.

    Args:
        field: ``field(x, t, **cond)``.
        scale: s.
        null: the values that stand for no condition, by keyword, as the network was trained: each a number or a
            tensor of one row's shape. Conditions that it does not name keep theirs. ``None``: the null field is called
            without conditions, in a call of its own.
        interval: the times between which there is guidance, both included.
        rescale: CFG-Zero*: $u_\varnothing$ times the number that brings it nearest to $u_y$, row by row,
            $\langle u_y, u_\varnothing \rangle / |u_\varnothing|^2$. The closing step at t = 1 does without.
        zero_until: CFG-Zero*'s zero-init: no velocity (and no call) at times below this, 1/n for the first of n steps.

    Raises:
        ValueError: an interval or zero_until outside [0, 1], a scale that is not finite; at a call, a null name that is
            not among the conditions.

    Reference: Ho & Salimans, "Classifier-Free Diffusion Guidance", arXiv:2207.12598; Fan et al., "CFG-Zero*: Improved
    Classifier-Free Guidance for Flow Matching Models", arXiv:2503.18886; Kynkaanniemi et al., "Applying Guidance in a
    Limited Interval Improves Sample and Distribution Quality in Diffusion Models", arXiv:2404.07724.

    >>> field = classifier_free(lambda x, t, *, y: y * x, 3.0, null={"y": 0.0})
    >>> field(torch.ones(1, 1), torch.tensor([0.5]), y=torch.ones(1, 1))
    tensor([[3.]])
    """
    _check_scale(scale)
    if not 0 <= zero_until <= 1:
        raise ValueError(f"zero_until must be a time in [0, 1], got {zero_until}")
    return ClassifierFree(field, scale, null, _interval(interval), rescale, zero_until)


def autoguidance(field: Field, weak: Field, scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> "Composed":
    r"""$u = u_w + s\,(u - u_w)$: away from a weaker version of the same model, under the same conditions.

    Outside ``interval`` it is ``field`` alone.

    Raises:
        ValueError: an interval outside [0, 1] or a scale that is not finite.

    Reference: Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself", arXiv:2406.02507.
    """
    return composed(field, [(weak, 1.0 - scale)], interval)


def composed(
    field: Field, others: Sequence[tuple[Field, float]], interval: tuple[float, float] = (0.0, 1.0)
) -> "Composed":
    r"""$u = u_0 + \sum_i w_i\,(u_i - u_0)$: several fields under the same conditions, each drawing with its weight.

    For conditions c_i that are independent given x, u_0 unconditional and all weights 1, its scores are those of all
    conditions at once. Bind conditions with `functools.partial` or a closure where the fields' differ. Outside
    ``interval`` it is ``field`` alone.

    Raises:
        ValueError: no others, an interval outside [0, 1] or a weight that is not finite.

    Reference: Liu et al., "Compositional Visual Generation with Composable Diffusion Models", arXiv:2206.01714.
    """
    if not others:
        raise ValueError("others must hold at least one (field, weight)")
    for _, weight in others:
        _check_scale(weight)
    return Composed(field, [part for part, _ in others], [weight for _, weight in others], _interval(interval))


def energy_guided(
    field: Field,
    path: AffinePath,
    energy: Callable[[Tensor, Tensor], Tensor],
    weight: float | Callable[[Tensor], Tensor] = 1.0,
) -> "EnergyGuided":
    r"""Adds $-w(t) \nabla E(x, t)$ to the score, so $-w(t)\,c_t \nabla E$ to the velocity.

    With $E = -\log p(y \mid x_t)$, as from a classifier of noised rows, and weight 1 it is the field conditional on y,
    with a larger weight what `classifier_free` does at that scale. Conditions of the energy are bound by the caller.

    Args:
        field: ``field(x, t, **cond)``.
        path: its path, affine from a standard normal.
        energy: ``energy(x, t) -> (b,)``, differentiable in x.
        weight: a number, or ``weight(t) -> () or (b,)``.

    Raises:
        ValueError: another path; a field open at t = 1 without a posterior mean; at a call, an energy of another shape
            or without a gradient in x.

    Reference: Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", arXiv:2105.05233; Zheng et al.,
    "Guided Flows for Generative Modeling and Decision Making", arXiv:2311.13443.
    """
    return EnergyGuided(field, path, energy, weight)


def observed(
    field: Field, path: AffinePath, observe: Callable[[Tensor], Tensor], y: Tensor, noise: float
) -> "Observed":
    r"""The field of data given an observation $y = A x_1 + \eta\,\varepsilon$ with $\varepsilon \sim \mathcal N(0, I)$.

    It takes $x_1 \mid x_t \sim \mathcal N(\hat x_1, C)$ with the posterior mean of the field and, by Tweedie's second
    formula, $C = \frac{\sigma^2}{\alpha} \partial \hat x_1 / \partial x$, so

    $$\nabla \log p(y \mid x_t) \approx (\partial \hat x_1 / \partial x)^\top A^\top
    (\eta^2 I + A C A^\top)^{-1} (y - A \hat x_1).$$

    Exact where the data are Gaussian. Of a mixture whole modes can come with the wrong share, the more so the sharper
    the observation: in the example a mode of share 0.001 gets a third of the samples. Weights from `importance` put
    that right, with `log_prob` of the field for its density; an effective size far below the number of samples
    tells that it was needed. Exact fields need neither: their ``conditioned`` is the posterior's field itself.
    One network call, and one backward pass for each number in y.

    Args:
        field: the unconditional field (or one with conditions of its own).
        path: its path, affine from a standard normal.
        observe: A, linear: ``observe(x) -> (b, m)`` for x of any number of rows.
        y: what was seen, ``(m,)`` for all rows or ``(b, m)``.
        noise: eta, positive.

    Raises:
        ValueError: another path, noise that is not positive; at a call, an observation of another shape than y.

    Reference: Boys et al., "Tweedie Moment Projected Diffusions for Inverse Problems", arXiv:2310.06721; Song et al.,
    "Pseudoinverse-Guided Diffusion Models for Inverse Problems", ICLR 2023; Pokle et al., "Training-free Linear
    Image Inverses via Flows", arXiv:2310.04432.

    >>> from pathline import GaussianMixtureField, grids, importance, sample_with_log_prob, schedules
    >>> path, y, noise = AffinePath(schedules.linear()), torch.tensor([1.0]), 0.1
    >>> means = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])
    >>> field = GaussianMixtureField(path, means, torch.tensor([0.05, 0.1, 0.2]))
    >>> def observe(x):
    ...     return x[:, :1] + 0.5 * x[:, 1:]
    >>> exact = field.conditioned(observe, y, noise)  # shares of the modes: 0.001, 0.999, 0.000
    >>> x0 = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    >>> with torch.no_grad():
    ...     guided = sample_with_log_prob(observed(field, path, observe, y, noise), x0, grid=grids.uniform(32))
    >>> in_first = torch.cdist(guided.x1.double(), exact.means).argmin(1) == 0
    >>> fit = -0.5 * ((y - observe(guided.x1)) / noise).square().sum(1)
    >>> weights = importance(field.log_prob(guided.x1, torch.tensor(1.0)) + fit, guided.value).weights
    >>> print(f"{in_first.float().mean():.1f} unweighted, {weights[in_first].sum():.2f} weighted")
    0.4 unweighted, 0.00 weighted
    """
    if not 0 < noise < float("inf"):
        raise ValueError(f"noise must be positive, got {noise}; for exact observations take a small one such as 0.01")
    return Observed(field, path, observe, y, noise)


class ClassifierFree(Guided):
    """See `classifier_free`."""

    def __init__(
        self,
        field: Field,
        scale: float,
        null: Mapping[str, Any] | None,
        interval: Range,
        rescale: bool,
        zero_until: float,
    ) -> None:
        super().__init__(field)
        self.scale, self.null, self.interval = scale, null, interval
        self.rescale, self.zero_until = rescale, zero_until

    def calls(self, t: Tensor) -> int:
        if self._still(t) is True:
            return 0
        return (1 if self.interval.holds(t) is False else 2) * _calls(self.parts[0], t)

    def guide(self, what: Prediction, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> Tensor:
        still = what == "velocity" and self._still(t)
        if still is True:
            return torch.zeros_like(x)
        function, inside = _function(self.parts[0], what), self.interval.holds(t)
        if inside is False:
            guided = function(x, t, **cond)
        else:
            own, null = self._both(function, x, t, cond)
            if self.rescale and what == "velocity":
                null = _nearest(null, own) * null
            guided = _where(inside, torch.lerp(null, own, self.scale), own)
        return _where(still, torch.zeros_like(x), guided)

    def _still(self, t: Tensor) -> bool | Tensor:
        if self.zero_until == 0:
            return False
        return bool(t.reshape(-1)[0] < self.zero_until) if one_time(t) else t < self.zero_until

    def _both(self, function: Field, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        if self.null is None:
            return function(x, t, **cond), function(x, t)
        missing = [name for name in self.null if name not in cond]
        if missing:
            raise ValueError(f"null names {', '.join(missing)}, which is not among the conditions: {list(cond)}")
        both = {name: self._twice(name, value, len(x)) for name, value in cond.items()}
        times = t.reshape(-1)[:1].expand(2 * len(x)) if one_time(t) else torch.cat([t, t])
        own, null = function(torch.cat([x, x]), times, **both).chunk(2)
        return own, null

    def _twice(self, name: str, value: Any, n: int) -> Any:
        replaced = name in (self.null or {})
        if not isinstance(value, Tensor):
            if replaced:
                raise ValueError(f"{name} must be a tensor to be batched with its null, got {type(value).__name__}")
            return value
        rows = value.expand(n) if value.ndim == 0 else value
        null = torch.as_tensor(self.null[name]).to(rows).expand_as(rows) if self.null and replaced else rows
        return torch.cat([rows, null])


class Composed(Guided):
    """See `composed`."""

    def __init__(self, field: Field, others: Sequence[Field], weights: Sequence[float], interval: Range) -> None:
        super().__init__(field, *others)
        self.weights, self.interval = tuple(weights), interval

    def calls(self, t: Tensor) -> int:
        return _calls(self.parts[0], t) if self.interval.holds(t) is False else super().calls(t)

    def guide(self, what: Prediction, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> Tensor:
        base = _function(self.parts[0], what)(x, t, **cond)
        inside = self.interval.holds(t)
        if inside is False:
            return base
        whole = base
        for part, weight in zip(self.parts[1:], self.weights, strict=True):
            whole = whole + weight * (_function(part, what)(x, t, **cond) - base)
        return _where(inside, whole, base)


class _ScoreGuided(Guided):
    """A field whose score is shifted."""

    def __init__(self, field: Field, path: AffinePath) -> None:
        if not isinstance(path, AffinePath) or not isinstance(path.source, StandardNormal):
            raise ValueError("path must be an AffinePath from a standard normal, where a velocity follows from a score")
        super().__init__(field, path=path)
        self.path = path
        self.first = {dtype: _first_time(path, dtype) for dtype in (torch.float32, torch.float64)}

    def guide(self, what: Prediction, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> Tensor:
        t = (t.reshape(-1)[:1] if one_time(t) else t).clamp_min(self.first.get(x.dtype, self.first[torch.float32]))
        t = t.expand(len(x))
        value, shift = self.shifted(what, x, t, cond)
        alpha, sigma, alpha_rate, sigma_rate = self.path.curve(t, x)
        factor = sigma if what == "data" else alpha_rate * sigma - alpha * sigma_rate
        return value + sigma * factor / alpha * shift

    @abstractmethod
    def shifted(self, what: Prediction, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """What the field says, and the shift of the score."""


class EnergyGuided(_ScoreGuided):
    """See `energy_guided`."""

    def __init__(
        self,
        field: Field,
        path: AffinePath,
        energy: Callable[[Tensor, Tensor], Tensor],
        weight: float | Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__(field, path)
        self.energy, self.weight = energy, weight

    def shifted(self, what: Prediction, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        weight = self.weight(t) if callable(self.weight) else torch.full_like(t, self.weight)
        return _function(self.parts[0], what)(x, t, **cond), -like(weight, x) * self._slope(x, t)

    @recordable
    def _slope(self, x: Tensor, t: Tensor) -> Tensor:
        keep = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            at = x if keep else x.detach().requires_grad_(True)
            energy = self.energy(at, t)
            if energy.shape != x.shape[:1]:
                raise ValueError(f"energy must return one number a row ({len(x)},), got {tuple(energy.shape)}")
            options: dict[str, Any] = {"create_graph": keep, "allow_unused": True}
            slope = torch.autograd.grad(energy.sum(), at, **options)[0] if energy.requires_grad else None
        if slope is None:
            raise ValueError(
                "energy must depend on x by differentiable steps, got one without a gradient: "
                "leave out detach() and no_grad(), and add 0 * x.flatten(1).sum(1) to one that is constant"
            )
        return slope


class Observed(_ScoreGuided):
    """See `observed`."""

    def __init__(
        self, field: Field, path: AffinePath, observe: Callable[[Tensor], Tensor], y: Tensor, noise: float
    ) -> None:
        super().__init__(field, path)
        self.observe, self.noise = observe, noise
        self.register_buffer("y", y, persistent=False)
        self.y: Tensor

    def shifted(self, what: Prediction, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        keep = torch.is_grad_enabled()
        curve = self.path.curve(t, x)
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_(True)
            value = _function(self.parts[0], what)(at, t, **cond)
            seen = self.observe(converted(value, at, curve, what, "data"))
            if seen.ndim != 2 or self.y.shape not in (seen.shape, seen.shape[1:]):
                raise ValueError(f"y must be shaped like an observation {tuple(seen.shape)}, got {tuple(self.y.shape)}")
            options: dict[str, Any] = {"retain_graph": True, "create_graph": keep}
            rows = [torch.autograd.grad(column.sum(), at, **options)[0] for column in seen.T]
            pulled = torch.stack(rows, 1)
            spread = self.observe(pulled.flatten(0, 1)).reshape(*seen.shape, -1)
            spread = (curve.sigma**2 / curve.alpha).reshape(-1, 1, 1) * (spread + spread.mT) / 2
            spread = spread + self.noise**2 * torch.eye(seen.shape[1]).to(spread)
            pull = torch.linalg.solve(spread, (self.y.to(seen) - seen))
            shift = torch.einsum("bm,bm...->b...", pull, pulled)
        return (value, shift) if keep else (value.detach(), shift.detach())


def _function(field: Field, what: Prediction) -> Field:
    return field if what == "velocity" else field.posterior_mean  # pyright: ignore[reportAttributeAccessIssue]


def _calls(field: Field, t: Tensor) -> int:
    own = getattr(field, "calls", None)
    return 1 if own is None else own(t)


def _where(mask: bool | Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x where the mask holds, for all rows or row by row, else y."""
    if isinstance(mask, bool):
        return x if mask else y
    return torch.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, y)


def _nearest(null: Tensor, own: Tensor) -> Tensor:
    """The number for each row, broadcastable to it, that times ``null`` is nearest to ``own``."""
    a, b = null.reshape(len(null), -1), own.reshape(len(own), -1)
    share = (a * b).sum(1) / a.square().sum(1).clamp_min(torch.finfo(a.dtype).tiny)
    return share.reshape(-1, *[1] * (null.ndim - 1))


def _open_ends(parts: Sequence[Field], path: AffinePath | None) -> dict[float, float | None]:
    """Of all parts and the path: the last call before an end is the earliest of theirs."""
    declared = [getattr(part, "open_ends", {}) for part in parts]
    if path is not None:
        declared.append({end: path.inner_time(end) for end in path.open_ends})
    ends: dict[float, float | None] = {}
    for end in sorted({end for one in declared for end in one}):
        times = [one[end] for one in declared if one.get(end) is not None]
        ends[end] = None if not times else min(times) if end == 1.0 else max(times)
    lacking = [part for part in parts if 1.0 in ends and not hasattr(part, "posterior_mean")]
    if lacking:
        raise ValueError(
            f"field must have a posterior_mean to close with, since t = 1 is open, and {type(lacking[0]).__name__} has "
            "none: wrap the network in ParametrizedField(net, path)"
        )
    return ends


def _first_time(path: AffinePath, dtype: torch.dtype) -> float:
    ratio = torch.tensor(torch.finfo(dtype).eps, dtype=torch.float64)
    return float(path.schedule.time_of_log_snr(ratio.log()))


def _interval(interval: tuple[float, float]) -> Range:
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise ValueError(f"interval must be two increasing times in [0, 1], got {interval}")
    return Range(low, high)


def _check_scale(scale: float) -> None:
    if not isinstance(scale, (Real, Tensor)) or not abs(float(scale)) < float("inf"):
        raise ValueError(f"scale must be a finite number, got {scale!r}")
