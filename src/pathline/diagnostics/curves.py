"""The loss of a field over time, beside the least that any field can have."""

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from pathline.fields import EmpiricalField
from pathline.paths import AffinePath, GaussianPath
from pathline.typing import Batch


def time_loss(
    field: Callable[..., Tensor],
    path: AffinePath | GaussianPath,
    data: Float[Tensor, "n *d"],
    times: Float[Tensor, " k"],
    *,
    cond: Mapping[str, Tensor] = {},
    draws: int = 2048,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The flow-matching loss at each time, per dimension, float64 of shape ``(k,)``:

    $$\mathbb E\,\lVert v_t(x_t) - u_t(x_t \mid x_1) \rVert^2 / d,$$

    x_1 a row of ``data``. All times share their rows and their noise, so the curve is smooth in t.

    Args:
        field: ``field(x, t, **cond)``, asked in the dtype of ``data``.
        path: the path; data: rows, shape ``(n, *d)``; times: in [0, 1] where the path's velocity has a limit.
        cond: a condition for each row, by keyword.
        draws: pairs of a row and a noise; every row is drawn equally often, up to one.
        generator: for the pairs.

    Raises:
        ValueError: no rows, times that are not one row of numbers in [0, 1], or draws below 1.
    """
    losses = []
    for batch, t, chosen in _pairs(path, data, times, cond, draws, generator):
        at = path.sample(batch, t)
        losses.append((field(at.x_t, t.expand(draws), **chosen) - at.target).double().square().mean())
    return torch.stack(losses)


def floor(
    path: AffinePath | GaussianPath,
    data: Float[Tensor, "n *d"],
    times: Float[Tensor, " k"],
    *,
    labels: Tensor | None = None,
    draws: int = 2048,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The least flow-matching loss that any field can have on ``data`` at each time, per dimension, shape ``(k,)``:

    $$\mathbb E\,\lVert u_t(x_t \mid x_1) - u_t(x_t) \rVert^2 / d$$

    with the exact field of the rows, the perfect memoriser's. Of a finite sample it lies below that of the law which
    the rows come from, the more so the nearer t is to 1.

    Args:
        path, data, times, draws, generator: as in `time_loss`.
        labels: a class for each row; the floor is then that of fields which are told it.

    Raises:
        ValueError: as `time_loss` and `EmpiricalField`.

    Reference: Bertrand et al., "On the closed-form of flow matching: generalization does not arise from target
    stochasticity", arXiv:2506.03719.

    >>> from pathline import schedules
    >>> bool(floor(AffinePath(schedules.linear()), torch.ones(1, 2), torch.tensor([0.5])) < 1e-12)
    True
    """
    cond = {} if labels is None else {"label": labels}
    exact = EmpiricalField(path, data, labels=labels)
    return time_loss(exact, path, data, times, cond=cond, draws=draws, generator=generator)


def r2(
    field: Callable[..., Tensor],
    exact: Callable[..., Tensor],
    path: AffinePath | GaussianPath,
    data: Float[Tensor, "n *d"],
    times: Float[Tensor, " k"],
    *,
    cond: Mapping[str, Tensor] = {},
    exact_cond: Mapping[str, Tensor] = {},
    draws: int = 2048,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The share of the exact field's variance that ``field`` explains at each time, float64 of shape ``(k,)``:

    $$R^2(t) = 1 - \frac{\mathbb E\,\lVert v_t(x) - u_t(x) \rVert^2}
    {\mathbb E\,\lVert u_t(x) - \mathbb E\,u_t(x) \rVert^2},$$

    x drawn from p_t by way of rows of ``data``. One is best, the best constant has zero, and it may be below zero.

    Args:
        field, exact: the field and what it should be, ``field(x, t, **cond)``.
        path, data, times, draws, generator: as in `time_loss`.
        cond, exact_cond: a condition for each row, by the keywords of the two fields.

    Raises:
        ValueError: as `time_loss`, or the exact field does not vary over the draws.
    """
    both = {**{f"a.{name}": v for name, v in cond.items()}, **{f"b.{name}": v for name, v in exact_cond.items()}}
    shares = []
    for batch, t, chosen in _pairs(path, data, times, both, draws, generator):
        x, time = path.sample(batch, t).x_t, t.expand(draws)
        v, u = (
            each(x, time, **{name[2:]: value for name, value in chosen.items() if name.startswith(side)}).double()
            for each, side in ((field, "a."), (exact, "b."))
        )
        spread = (u - u.mean(0)).square().mean()
        if not float(spread) > 0:
            raise ValueError(f"exact must vary over the draws, it is constant at t = {float(t):g}: pass more rows")
        shares.append(1 - (v - u).square().mean() / spread)
    return torch.stack(shares)


def _pairs(
    path: AffinePath | GaussianPath,
    data: Tensor,
    times: Tensor,
    cond: Mapping[str, Tensor],
    draws: int,
    generator: torch.Generator | None,
) -> list[tuple[Batch, Tensor, dict[str, Tensor]]]:
    """The same rows and noise at every time, with their conditions."""
    check_rows(data, draws, 1)
    if times.ndim != 1 or len(times) == 0 or not bool(((times >= 0) & (times <= 1)).all()):
        raise ValueError(f"times must be one row of numbers in [0, 1], got {times.tolist()}")
    turns = math.ceil(draws / len(data))
    index = torch.cat([torch.randperm(len(data), generator=generator) for _ in range(turns)])[:draws]
    x1 = data[index]
    batch = Batch(x1, x0=path.source.sample(tuple(x1.shape), generator, x1.dtype, x1.device))
    chosen = {name: value[index] for name, value in cond.items()}
    return [(batch, t, chosen) for t in times.to(x1)]


def check_rows(data: Tensor, draws: int, least: int) -> None:
    """Raises ValueError where there is no row, or are too few draws."""
    if data.ndim == 0 or len(data) == 0 or draws < least:
        raise ValueError(f"data must hold a row and draws be at least {least}, got {tuple(data.shape)} and {draws}")
