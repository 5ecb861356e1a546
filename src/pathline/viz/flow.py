"""The page of a trained model of two columns: where its particles go, and its density on the way."""

import numpy as np
import torch
from torch import Tensor

from pathline.grids import uniform
from pathline.likelihood import log_prob
from pathline.model import Model
from pathline.solvers import rk4, solve
from pathline.transforms import Identity
from pathline.viz.page import FlowPage

FRAMES = 21
PARTICLES = 1_500
NODES = 56
MOST_CATEGORIES = 6


def flow_page(model: Model, columns: tuple[str, str], title: str, note: str = "", seed: int = 0) -> FlowPage:
    """Particles and density of ``model`` from t = 0 to t = 1 in the user's units; no row of the data is needed.

    A conditional model is shown as a mixture over conditions: its most frequent categories, or five quantiles.

    Args:
        model: a model of two columns that vary.
        columns: names of the axes.
        title, note: text of the page.
        seed: of the particles and their conditions.

    Raises:
        ValueError: the model is not of two columns.
    """
    if model.shape != (2,):
        raise ValueError(f"a flow page needs a model of two columns, this one has rows of shape {model.shape}")
    generator = torch.Generator().manual_seed(seed)
    moved = in_user_units(model, particles(model, PARTICLES, generator))
    return plane(model, moved, columns, title, note, generator)


def plane(
    model: Model, moved: Tensor, columns: tuple[str, str], title: str, note: str, generator: torch.Generator
) -> FlowPage:
    """The page of particles that have been moved already, shape ``(FRAMES, n, 2)`` in the user's units."""
    shown = extent(moved)
    times = uniform(FRAMES - 1)
    xs, ys = (torch.linspace(*ends, NODES, dtype=torch.float64) for ends in (shown[:2], shown[2:]))
    nodes = torch.cartesian_prod(ys, xs).flip(1)
    heights = torch.stack([density(model, t, nodes, generator).reshape(NODES, NODES) for t in times.tolist()])
    return FlowPage(title, columns, times.numpy(), moved.float().numpy(), heights.float().numpy(), shown, note)


def varying(model: Model) -> list[int]:
    """Which of the user's columns vary."""
    if isinstance(model.transform, Identity):
        return list(range(int(np.prod(model.shape))))
    return [i for i, kind in enumerate(model.transform.kinds) if kind != "constant"]


@torch.no_grad()
def particles(model: Model, n: int, generator: torch.Generator) -> Tensor:
    """``n`` samples on their way at ``FRAMES`` even times, in network units, shape ``(FRAMES, n, *shape)``.

    Raises:
        RuntimeError: a sample is not finite.
    """
    weight = next(model.field.parameters())
    x0 = model.path.source.sample((n, *model.shape), generator).to(weight)
    cond = {}
    if model.condition is not None:
        drawn = model.condition.draw(n, generator)
        cond = {"condition": model.condition.encode(drawn).to(weight)}
    states = solve(model.field, x0, uniform(FRAMES - 1), rk4, cond=cond, keep_states=True).states
    assert states is not None
    return states.cpu()


def in_user_units(model: Model, states: Tensor) -> Tensor:
    """Frames of rows in the user's units, of the columns that vary, shape ``(k, n, w)``."""
    rows = model.transform.inverse(states.flatten(0, 1)).flatten(1)[:, varying(model)]
    return rows.reshape(*states.shape[:2], -1)


def extent(moved: Tensor) -> tuple[float, float, float, float]:
    """What of the plane a picture of the particles ``(k, n, 2)`` shows: all but the farthest few, and a margin."""
    (x0, x1), (y0, y1) = (span(moved[..., axis]) for axis in (0, 1))
    return x0, x1, y0, y1


def span(values: Tensor) -> tuple[float, float]:
    """Ends of one axis: all but two in a thousand at either end, and a margin."""
    flat = values.double().flatten()
    low, high = (float(np.quantile(flat.numpy(), q)) for q in (0.002, 0.998))
    margin = 0.08 * (high - low)
    return low - margin, high + margin


def density(model: Model, t: float, points: Tensor, generator: torch.Generator) -> Tensor:
    """Density of the model at time t at ``points`` ``(m, w)`` in the columns that vary, in the user's units."""
    rows = rows_with(model, points)
    z, log_abs_det = model.transform.forward(rows, generator)
    start = z.to(next(model.field.parameters()))
    total = torch.zeros(len(rows), dtype=torch.float64)
    for share, cond in conditions(model, len(rows)):
        total += share * (_log_density(model, start, t, cond) + log_abs_det).exp().nan_to_num(0.0)
    return total


@torch.no_grad()
def _log_density(model: Model, z: Tensor, t: float, cond: dict[str, Tensor]) -> Tensor:
    if t == 0:
        return model.path.source.log_prob(z).double().cpu()
    steps = uniform(max(2, round(12 * t)), 0.0, t)
    solved = log_prob(model.field, z, source=model.path.source, grid=steps, begin=t, with_error=False, cond=cond)
    return solved.value.double().cpu()


def rows_with(model: Model, points: Tensor) -> Tensor:
    """Rows in the user's units with ``points`` in the columns that vary."""
    transform = model.transform
    if isinstance(transform, Identity):
        return points
    rows = torch.tensor(transform.shift, dtype=torch.float64).repeat(len(points), 1)
    rows[:, varying(model)] = points
    return transform.snap(rows)


def conditions(model: Model, n: int) -> list[tuple[float, dict[str, Tensor]]]:
    """Conditions to mix over, with their shares."""
    condition = model.condition
    if condition is None:
        return [(1.0, {})]
    if condition.kind == "number":
        values = [float(value) for value in np.quantile(condition.quantiles, (0.1, 0.3, 0.5, 0.7, 0.9))]
        shares = [0.2] * 5
    else:
        order = np.argsort(condition.frequencies)[::-1][:MOST_CATEGORIES]
        values = [condition.values[i] for i in order]
        shares = [condition.frequencies[i] / sum(condition.frequencies[j] for j in order) for i in order]
    encoded = condition.encode(values).to(next(model.field.parameters()))
    return [(share, {"condition": row.expand(n, -1)}) for share, row in zip(shares, encoded, strict=True)]
