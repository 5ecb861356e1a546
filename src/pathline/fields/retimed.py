r"""Fields seen on another clock: another schedule, or a start of its own for every row.

Two affine paths with one law of (x0, x1) pass through the same points up to scale: where
$\alpha / \sigma = \alpha' / \sigma'$, $x' = c\,x$ with $c = (\alpha' + \sigma') / (\alpha + \sigma)$, and the posterior
means of data and noise are equal. So a field of one is a field of the other,

$$u'_{t'}(x') = \dot\alpha'\,\hat x_1 + \dot\sigma'\,\hat x_0, \qquad
(\hat x_1, \hat x_0) \text{ from } u_t(x' / c),$$

which is the chain rule, rate of the scale included, without a quotient of rates that vanish.

Reference: Pokle et al., "Training-free Linear Image Inverses via Flows", arXiv:2310.04432, appendix.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pathline.paths import AffinePath, as_time, converted, like, one_time, refuse_ends
from pathline.schedules import Curve, Schedule
from pathline.typing import Field

HALVINGS = 64
"""Of [0, 1], down to the last bit of a time."""


class Rescheduled(nn.Module):
    """A velocity field moved to another schedule; see `reschedule`.

    Attributes:
        field: the field that it calls, once a call.
        path: the affine path that it now belongs to.
        open_ends: ends at which its velocity has no limit or does not follow from the field's, each with the time
            of the last call there.
        most: the last time at which both schedules share the signal-to-noise ratio.
    """

    def __init__(self, field: Field, path: AffinePath, to: AffinePath) -> None:
        super().__init__()
        self.field, self.before, self.path = field, path, to
        self.most = _last_shared(path.schedule, to.schedule)
        self.open_ends = _open_ends(field, path.schedule, to.schedule)

    def forward(self, x: Tensor, t: Tensor, /, **cond: Any) -> Tensor:
        """The velocity on the new schedule, shaped like ``x``."""
        refuse_ends(tuple(self.open_ends), t, "the velocity of the re-scheduled field")
        inner, scale, before, after = self._clock(x, t)
        y = x / scale
        velocity = self.field(y, inner, **cond)
        data = converted(velocity, y, before, "velocity", "data")
        noise = converted(velocity, y, before, "velocity", "noise")
        known = after.alpha_rate * data + after.sigma_rate * noise
        still = (after.alpha_rate == 0) & (after.sigma_rate == 0)
        return torch.where(still, torch.zeros_like(known), known)

    def posterior_mean(self, x: Tensor, t: Tensor, /, **cond: Any) -> Tensor:
        """The field's E[x1 given x_t], shaped like ``x``."""
        inner, scale, before, _ = self._clock(x, t)
        y, own = x / scale, getattr(self.field, "posterior_mean", None)
        if own is not None:
            return own(y, inner, **cond)
        return converted(self.field(y, inner, **cond), y, before, "velocity", "data")

    def calls(self, t: Tensor) -> int:
        """Network calls that one call at ``t`` costs."""
        return _cost(self.field, t)

    def _clock(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Curve, Curve]:
        """The field's time, c, and both schedules there."""
        time = as_time(t, x)
        wanted = (time.reshape(-1)[:1] if one_time(time) else time).double()
        looked_at = wanted.device.type == "cpu" and not torch.compiler.is_compiling()
        if looked_at and not bool(((wanted >= 0) & (wanted <= self.most)).all()):
            raise ValueError(
                f"t must lie in [0, {self.most:.6g}], where the {self.path.schedule.name} schedule shares its "
                f"signal-to-noise ratio with the {self.before.schedule.name} one, got {_outside(wanted, self.most):.6g}"
            )
        inner = _equal_snr(self.before.schedule, self.path.schedule, wanted).to(time.dtype)
        before, after = self.before.schedule(inner.double()), self.path.schedule(wanted)
        scale = (after.alpha + after.sigma) / (before.alpha + before.sigma)
        shaped = [Curve(*(like(value.expand(len(x)), x) for value in curve)) for curve in (before, after)]
        return inner.expand(len(x)), like(scale.expand(len(x)), x), shaped[0], shaped[1]


def reschedule(field: Field, path: AffinePath, to: AffinePath | Schedule) -> Rescheduled:
    """The field of ``path`` as the field of another schedule with the same source and data.

    Exact wherever both schedules share the signal-to-noise ratio; one call a call. At an end where the new velocity
    has no limit, or where the old velocity says nothing about data and noise (the start of ``polynomial(n > 1)``,
    where it is 0), the result declares an open end: `solve` steps around it, and a call by hand is refused.

    Args:
        field: a velocity field of ``path``, called with t of shape ``(b,)``.
        path: the affine path that the field belongs to.
        to: the new schedule, or an affine path with it and the same source.

    Raises:
        ValueError: ``to`` of another kind; paths from different sources; a field of `own_starts`; when called: a time
            at which the schedules share no ratio (the message names those that they do), or an open end.

    >>> from pathline import schedules
    >>> path = AffinePath(schedules.linear())
    >>> field = reschedule(lambda x, t: -x, path, schedules.cosine())  # all data at 0, near t = 0
    >>> field(torch.ones(1), torch.zeros(1))
    tensor([0.])
    """
    new = AffinePath(to, path.source) if isinstance(to, Schedule) else to
    if not isinstance(new, AffinePath):
        raise ValueError(f"to must be a schedule, such as schedules.cosine(), or an affine path, got {to!r}")
    if own_clock(field):
        raise ValueError("field must tell the path's time to be rescheduled: take own_starts(reschedule(...), t0)")
    if new.source != path.source:
        raise ValueError(f"to must start from the source of path, {path.source}, got {new.source}")
    return Rescheduled(field, path, new)


class OwnStarts(nn.Module):
    r"""A field on the clock s of $t = t_0 + s\,(1 - t_0)$, with one $t_0$ a row; see `own_starts`."""

    def __init__(self, field: Field, t0: Tensor) -> None:
        super().__init__()
        self.field, self.t0 = field, t0
        self.open_ends = self._open_ends(getattr(field, "open_ends", {}))

    def forward(self, x: Tensor, s: Tensor, /, **cond: Any) -> Tensor:
        self._check_rows(x)
        return like(1 - self.t0, x) * self.field(x, self.time(s), **cond)

    def posterior_mean(self, x: Tensor, s: Tensor, /, **cond: Any) -> Tensor:
        self._check_rows(x)
        return self.field.posterior_mean(x, self.time(s), **cond)  # pyright: ignore[reportAttributeAccessIssue]

    def calls(self, s: Tensor) -> int:
        """Network calls that one call on the clock ``s`` costs."""
        return _cost(self.field, self.time(s))

    def time(self, s: Tensor) -> Tensor:
        """The field's time of every row, shape ``(b,)``."""
        return self.t0.to(s) + s * (1 - self.t0.to(s))

    def _check_rows(self, x: Tensor) -> None:
        if len(x) != len(self.t0):
            raise ValueError(f"x must have one row for each of the {len(self.t0)} times in t0, got {len(x)}")

    def _open_ends(self, ends: dict[float, float | None]) -> dict[float, float | None]:
        """An open t = 1, with the clock at which no row has passed the field's last time before it."""
        if 1.0 not in ends:
            return {}
        last = ends[1.0]
        return {1.0: None if last is None else float(((last - self.t0.double()) / (1 - self.t0.double())).min())}


def own_starts(field: Field, t0: Tensor) -> OwnStarts:
    """A field that gives every row a start time of its own: solve it from 0 to 1, and row i runs from t0[i] to 1.

    Take ODE solvers: its clock is not the path's time, which an SDE's score and `reschedule` need.

    Args:
        field: the field.
        t0: start times in [0, 1), shape ``(b,)``, on the state's device.

    Raises:
        ValueError: times of another shape or outside [0, 1), or beyond an end at which the field has no value; at a
            call, another number of rows.

    >>> from pathline.fields import own_starts
    >>> own_starts(lambda x, t: torch.ones_like(x), torch.tensor([0.0, 0.5]))(torch.zeros(2), torch.zeros(2))
    tensor([1.0000, 0.5000])
    """
    if t0.ndim != 1 or not bool(((t0 >= 0) & (t0 < 1)).all()):
        raise ValueError(f"t0 must be times in [0, 1) of shape (b,), got shape {tuple(t0.shape)} in {_range(t0)}")
    ends = getattr(field, "open_ends", {})
    least, most = (default if ends.get(end) is None else ends[end] for end, default in ((0.0, 0.0), (1.0, 1.0)))
    if bool(((t0 < least) | (t0 >= most)).any()):
        raise ValueError(f"t0 must lie in [{least:.6g}, {most:.6g}), where this field has a value, got {_range(t0)}")
    return OwnStarts(field, t0)


def own_clock(field: Field) -> bool:
    """Whether ``field``, or a module in it, is of `own_starts`."""
    return isinstance(field, nn.Module) and any(isinstance(part, OwnStarts) for part in field.modules())


def _cost(field: Field, t: Tensor) -> int:
    cost: Callable[[Tensor], int] = getattr(field, "calls", lambda t: 1)
    return cost(t)


def _equal_snr(before: Schedule, after: Schedule, t: Tensor) -> Tensor:
    """The time of ``before`` at which it has the ratio that ``after`` has at ``t``, by bisection, without waiting."""
    if _same(before, after):
        return t
    wanted = after.log_snr(t)
    low, high = torch.zeros_like(t), torch.ones_like(t)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = before.log_snr(middle) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(wanted == -torch.inf, 0.0, high)


def _same(before: Schedule, after: Schedule) -> bool:
    return before is after or (before.name != "custom" and before == after)


def _last_shared(before: Schedule, after: Schedule) -> float:
    """The last time of ``after`` whose ratio ``before`` reaches."""
    end = torch.ones(1, dtype=torch.float64)
    if bool(before.log_snr(end) >= after.log_snr(end)):
        return 1.0
    return float(_equal_snr(after, before, end))


def _open_ends(field: Field, before: Schedule, after: Schedule) -> dict[float, float | None]:
    ends: dict[float, float | None] = {}
    own = getattr(field, "open_ends", {})
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    old, new = before(t), after(t)
    slope = old.alpha_rate * old.sigma - old.alpha * old.sigma_rate
    same = _same(before, after)
    for i, end in enumerate((0.0, 1.0)):
        if end == 1.0 and not bool(old.sigma[1] == 0 and new.sigma[1] == 0):
            continue  # its last time lies inside the other schedule, or beyond it
        silent = not same and not bool(slope[i].isfinite() and slope[i] != 0)
        still = bool(new.alpha_rate[i] == 0) and bool(new.sigma_rate[i] == 0)
        endless = not bool(new.alpha_rate[i].isfinite() and new.sigma_rate[i].isfinite())
        if end in own:
            ends[end] = own[end] if own[end] is None else float(_equal_snr(after, before, t.new_tensor([own[end]])))
        elif (silent and not still) or endless:
            ends[end] = after.inner_time(end)
    return ends


def _outside(t: Tensor, most: float) -> float:
    return float(t[(t < 0) | ~(t <= most)][0])


def _range(t: Tensor) -> str:
    return f"[{float(t.min()):.6g}, {float(t.max()):.6g}]" if t.numel() else "[]"
