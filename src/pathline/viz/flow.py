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
    times = uniform(FRAMES - 1).tolist()
    varying = _varying(model)
    moved = torch.stack([model.transform.inverse(frame)[:, varying] for frame in _particles(model, generator)])
    extent = _extent(moved)
    density = torch.stack([_density(model, t, extent, generator) for t in times])
    return FlowPage(title, columns, np.array(times), moved.float().numpy(), density.float().numpy(), extent, note)


def _varying(model: Model) -> list[int]:
    kinds = getattr(model.transform, "kinds", ("real", "real"))
    return [i for i, kind in enumerate(kinds) if kind != "constant"]


@torch.no_grad()
def _particles(model: Model, generator: torch.Generator) -> Tensor:
    weight = next(model.field.parameters())
    x0 = model.path.source.sample((PARTICLES, 2), generator).to(weight)
    cond = {}
    if model.condition is not None:
        drawn = model.condition.draw(PARTICLES, generator)
        cond = {"condition": model.condition.encode(drawn).to(weight)}
    states = solve(model.field, x0, uniform(FRAMES - 1), rk4, cond=cond, keep_states=True).states
    assert states is not None
    return states.cpu()


def _extent(moved: Tensor) -> tuple[float, float, float, float]:
    flat = moved.reshape(-1, 2).double()
    low, high = (torch.quantile(flat, q, dim=0) for q in (0.002, 0.998))
    margin = 0.08 * (high - low)
    (x0, y0), (x1, y1) = (low - margin).tolist(), (high + margin).tolist()
    return x0, x1, y0, y1


def _density(model: Model, t: float, extent: tuple[float, float, float, float], generator: torch.Generator) -> Tensor:
    xs, ys = (torch.linspace(*ends, NODES, dtype=torch.float64) for ends in (extent[:2], extent[2:]))
    rows = _rows(model, torch.cartesian_prod(ys, xs).flip(1))
    z, log_abs_det = model.transform.forward(rows, generator)
    start = z.to(next(model.field.parameters()))
    total = torch.zeros(len(rows), dtype=torch.float64)
    for share, cond in _conditions(model, len(rows)):
        total += share * (_log_density(model, start, t, cond) + log_abs_det).exp().nan_to_num(0.0)
    return total.reshape(NODES, NODES)


@torch.no_grad()
def _log_density(model: Model, z: Tensor, t: float, cond: dict[str, Tensor]) -> Tensor:
    if t == 0:
        return model.path.source.log_prob(z).double().cpu()
    steps = uniform(max(2, round(12 * t)), 0.0, t)
    solved = log_prob(model.field, z, source=model.path.source, grid=steps, begin=t, with_error=False, cond=cond)
    return solved.value.double().cpu()


def _rows(model: Model, points: Tensor) -> Tensor:
    """Rows in the user's units with ``points`` in the two columns that vary."""
    transform = model.transform
    if isinstance(transform, Identity):
        return points
    rows = torch.tensor(transform.shift, dtype=torch.float64).repeat(len(points), 1)
    rows[:, _varying(model)] = points
    whole = torch.tensor([kind == "integer" for kind in transform.kinds])
    return torch.where(whole, rows.floor(), rows)


def _conditions(model: Model, n: int) -> list[tuple[float, dict[str, Tensor]]]:
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
