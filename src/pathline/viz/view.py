"""The page of a trained run: what it draws, how near its field is to the exact one, and what it was made with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from pathline.diagnosis import Learned
from pathline.diagnostics import floor, memorisation, r2, time_loss
from pathline.fields import EmpiricalField
from pathline.grids import uniform
from pathline.metrics import Measure
from pathline.model import Model
from pathline.paths import AffinePath
from pathline.sources import StandardNormal
from pathline.train.dataset import Dataset, Split
from pathline.transforms import Identity
from pathline.viz import document, flow
from pathline.viz.page import SCENE, FlowPage

SCRIPTS = (*SCENE, "flow.js", "charts.js", "compare.js", "view.js")
BINS = 20
DRAWS = 768
MOST_DRAWS = 4_096
EXACT_ROWS = 4_000
SHOWN_ROWS = 1_000
AXES = 24
_MAP, _ARROWS, _PLACES = 40, 13, 90
_COMPARED = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.88, 0.94, 0.975)
_NUMBERS = 190_000
_PIXELS = 32


@dataclass(frozen=True, eq=False)
class Line:
    """Samples of one column, and its density over time.

    Attributes:
        name: of the column, ends: of the part of it that is shown.
        times, moved: shapes ``(k,)`` and ``(k, n)``.
        density: at even times and even places, shape ``(g, g)``, indexed ``[time, place]``.
    """

    name: str
    ends: tuple[float, float]
    times: np.ndarray
    moved: np.ndarray
    density: np.ndarray

    def data(self) -> dict[str, Any]:
        """What the page's script reads, as JSON values."""
        share = _share(self.moved, np.array(self.ends))
        both = np.stack([share, np.broadcast_to(self.times[:, None], share.shape)], axis=-1)
        peak = float(self.density.max())
        return {
            "columns": [self.name, "time t"],
            "rise": 0.5,
            "times": self.times.tolist(),
            "extent": [*self.ends, 0.0, 1.0],
            "grid": len(self.density),
            "peak": peak,
            "density": document.pack(np.sqrt(self.density / peak)),
            "particles": document.pack((both + 0.5) / 2),
        }


@dataclass(frozen=True, eq=False)
class Cloud:
    """Samples in more than two dimensions, along axes of which the reader picks two.

    Attributes:
        axes: names; the first two are the leading principal components of the samples.
        times, moved: shapes ``(k,)`` and ``(k, n, a)``.
        ends: of each axis, shape ``(a, 2)``.
    """

    axes: tuple[str, ...]
    times: np.ndarray
    moved: np.ndarray
    ends: np.ndarray

    def data(self) -> dict[str, Any]:
        """What the page's script reads, as JSON values."""
        return {
            "axes": list(self.axes),
            "times": self.times.tolist(),
            "ends": self.ends.tolist(),
            "particles": document.pack((_share(self.moved, self.ends.T) + 0.5) / 2),
        }


@dataclass(frozen=True, eq=False)
class Pictures:
    """Samples that are pictures.

    Attributes:
        times, frames: shapes ``(k,)`` and ``(k, n, h, w, c)``, values in [0, 1], c of 1 or 3.
        nearest: for each the nearest row of the training, ``(n, h, w, c)``, where rows may be shown.
        smaller: how many times smaller than the rows they are shown.
    """

    times: np.ndarray
    frames: np.ndarray
    nearest: np.ndarray | None
    smaller: int

    def data(self) -> dict[str, Any]:
        """What the page's script reads, as JSON values."""
        return {
            "times": self.times.tolist(),
            "shape": list(self.frames.shape[1:]),
            "frames": document.pack(self.frames),
            "nearest": None if self.nearest is None else document.pack(self.nearest),
            "smaller": self.smaller,
        }


@final
@dataclass(frozen=True, eq=False)
class ViewPage:
    """A trained run as one HTML file.

    Attributes:
        title, note: heading, and what the file holds of the data.
        moving: the samples on their way.
        facts: the rest of what the page's script reads, as JSON values.
    """

    title: str
    note: str
    moving: FlowPage | Line | Cloud | Pictures
    facts: Mapping[str, Any]

    @property
    def html(self) -> str:
        """The page."""
        texts = {"title": self.title, "note": self.note}
        data = {"kind": _KINDS[type(self.moving)], "flow": self.moving.data(), **self.facts}
        return document.compose("view.html", ("page.css", "view.css"), SCRIPTS, texts, data)

    def save(self, path: str | Path) -> None:
        """Writes the page to ``path``, whole or not at all; a folder that is not there is a ValueError."""
        document.save(self.html, path)

    def _repr_html_(self) -> str:
        return document.notebook(self.title, self.html, 800)


def view_page(
    model: Model,
    dataset: Dataset | None,
    log: Sequence[Mapping[str, Any]] = (),
    measures: Mapping[str, Measure] = {},
    *,
    title: str = "A trained flow",
    rows: bool = True,
    seed: int = 0,
) -> ViewPage:
    """The page of a model: its samples, its field beside the exact one of the rows, losses, floors and settings.

    Args:
        model: the model.
        dataset: what it was trained on; without it there is no exact field and no floor.
        log: records of ``step`` and ``loss_per_dim``.
        measures: how good it is, by name.
        title: of the page.
        rows: whether the file may hold rows of the data; else it holds averages over them alone.
        seed: of the samples and of the choice of rows.

    Raises:
        RuntimeError: samples that are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    moving, lift = _moving(model, dataset, rows, generator)
    exact = _exact(model, dataset, generator)
    curves = None if dataset is None or exact is None else _curves(model, dataset, exact, generator)
    facts = {
        "field": None if exact is None else _field(model, exact, moving, lift, rows, generator),
        "log": [[r["step"], r["loss_per_dim"]] for r in log if r.get("loss_per_dim") is not None],
        "curves": curves,
        "memory": _memory(model, dataset, generator),
        "measures": [[name, *map(_finite, (m.value, m.floor, m.se)), m.n] for name, m in measures.items()],
        "settings": _settings(model, dataset),
    }
    return ViewPage(title, _note(dataset, moving, facts, rows), moving, facts)


class _Exact(NamedTuple):
    """The exact field of some rows ``z`` ``(n, *shape)`` in network units, and how both fields are told the class."""

    field: EmpiricalField
    z: Tensor
    cond: Mapping[str, Tensor]
    label: Mapping[str, Tensor]
    of: str


class _Lift(NamedTuple):
    """From the columns that vary, in the user's units, to the axes of the picture: ``x @ matrix - shift``."""

    matrix: Tensor
    shift: Tensor


def _moving(
    model: Model, dataset: Dataset | None, rows: bool, generator: torch.Generator
) -> tuple[FlowPage | Line | Cloud | Pictures, _Lift | None]:
    shape = _row_shape(model)
    if len(shape) in (2, 3):
        return _pictures(model, shape, dataset if rows else None, generator), None
    names, width = _names(model), int(np.prod(model.shape))
    if width == 1:
        moved = flow.in_user_units(model, flow.particles(model, 600, generator))
        return _line(model, moved[..., 0], names[0], generator), None
    if width == 2:
        moved = flow.in_user_units(model, flow.particles(model, flow.PARTICLES, generator))
        return flow.plane(model, moved, (names[0], names[1]), "", "", generator), None
    count = min(900, _NUMBERS // (flow.FRAMES * min(width + 2, AXES)))
    moved = flow.in_user_units(model, flow.particles(model, count, generator))
    return _cloud(moved, names)


def _line(model: Model, moved: Tensor, name: str, generator: torch.Generator) -> Line:
    ends = flow.span(moved)
    places = torch.linspace(*ends, flow.NODES, dtype=torch.float64)[:, None]
    times = uniform(flow.NODES - 1).tolist()
    density = torch.stack([flow.density(model, t, places, generator) for t in times])
    return Line(name, ends, uniform(flow.FRAMES - 1).numpy(), moved.double().numpy(), density.numpy())


def _cloud(moved: Tensor, names: Sequence[str]) -> tuple[Cloud, _Lift]:
    last = moved[-1].double()
    spread = last.std(0)
    spread = torch.where(spread > 0, spread, 1.0)
    _, strength, across = torch.linalg.svd((last - last.mean(0)) / spread, full_matrices=False)
    signs = torch.sign(across.gather(1, across.abs().argmax(1, keepdim=True)))
    main = (across * signs)[:2].T / spread[:, None]
    some = torch.eye(len(names), dtype=torch.float64)[:, : AXES - 2]
    matrix = torch.cat([main, some], 1)
    shift = torch.cat([last.mean(0) @ main, torch.zeros(some.shape[1], dtype=torch.float64)])
    lift = _Lift(matrix, shift)
    placed = moved.double() @ matrix - shift
    parts = (strength.square() / strength.square().sum())[:2].tolist()
    axes = [f"principal component {i + 1} ({part:.0%})" for i, part in enumerate(parts)]
    ends = np.array([_wide(flow.span(placed[..., i])) for i in range(placed.shape[-1])])
    times = uniform(flow.FRAMES - 1).numpy()
    return Cloud((*axes, *names[: AXES - 2]), times, placed.numpy(), ends), lift


def _pictures(model: Model, shape: tuple[int, ...], dataset: Dataset | None, generator: torch.Generator) -> Pictures:
    channels = 3 if len(shape) == 3 and shape[0] == 3 else 1
    smaller = math.ceil(max(shape[-2:]) / _PIXELS)
    pixels = channels * math.ceil(shape[-2] / smaller) * math.ceil(shape[-1] / smaller)
    count = max(2, min(48, _NUMBERS // (flow.FRAMES * pixels)))
    states = flow.particles(model, count, generator)
    last = model.transform.inverse(states[-1]).flatten(1)
    rows = torch.stack([model.transform.inverse(state).flatten(1) for state in states])
    low, high = (float(np.quantile(last.numpy(), q)) for q in (0.02, 0.98))
    scale = max(high - low, 1e-12)

    def drawn(some: Tensor) -> np.ndarray:
        images = some.reshape(-1, *(shape if len(shape) == 3 else (1, *shape))).double()
        images = images if channels == 3 else images.mean(1, keepdim=True)
        images = torch.nn.functional.avg_pool2d(images, smaller, ceil_mode=True)
        return ((images.movedim(1, -1) - low) / scale).clamp(0, 1).numpy()

    frames = drawn(rows.flatten(0, 1))
    nearest = None
    if dataset is not None:
        train = dataset.train.rows[:20_000]
        nearest = drawn(train[torch.cdist(last.double(), train.double()).argmin(1)])
    times = uniform(flow.FRAMES - 1).numpy()
    return Pictures(times, frames.reshape(len(states), count, *frames.shape[1:]), nearest, smaller)


def _exact(model: Model, dataset: Dataset | None, generator: torch.Generator) -> _Exact | None:
    """The exact field of training rows, or of fresh draws of a toy; of the most frequent class where there are some."""
    path = model.path
    if dataset is None or not isinstance(path, AffinePath) or not isinstance(path.source, StandardNormal):
        return None
    if dataset.toy is not None:
        rows = dataset.toy.sample(EXACT_ROWS, generator, torch.float64)
        z = _z(model, rows, generator)
        return _Exact(EmpiricalField(path, z), z, {}, {}, f"{EXACT_ROWS:,} fresh draws of {dataset.toy.name}")
    chosen = torch.randperm(len(dataset.train), generator=generator)[:EXACT_ROWS].sort().values
    z, of = _z(model, dataset.train.rows[chosen], generator), f"{len(chosen):,} rows of the training"
    if model.condition is None:
        return _Exact(EmpiricalField(path, z), z, {}, {}, of)
    values = dataset.train.condition
    if values is None or model.condition.kind == "number":
        return None
    some = values[chosen.numpy()]
    _, codes = np.unique(some.astype(str), return_inverse=True)
    labels = torch.from_numpy(codes.reshape(-1).astype(np.int64))
    cond = {"condition": model.condition.encode(some).to(z.dtype)}
    return _Exact(EmpiricalField(path, z, labels=labels), z, cond, {"label": labels}, of)


def _curves(model: Model, dataset: Dataset, exact: _Exact, generator: torch.Generator) -> dict[str, Any]:
    """Over time: R2, the model's loss on rows of the training and on others, and the floors beneath it."""
    path = exact.field.path
    assert isinstance(path, AffinePath)
    times = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
    seed = int(torch.randint(2**31, (), generator=generator))
    draws = max(128, min(MOST_DRAWS, max(DRAWS, 3_000_000 // len(exact.z)), 200_000 // exact.z[0].numel()))

    def options() -> dict[str, Any]:
        """The same draws each time, so that curves of the same rows differ by the fields alone."""
        return {"draws": draws, "generator": torch.Generator().manual_seed(seed)}

    learned = Learned(model)
    labels = exact.label.get("label")
    found = {
        "r2": r2(learned, exact.field, path, exact.z, times, cond=exact.cond, exact_cond=exact.label, **options()),
        "floor": floor(path, exact.z, times, labels=labels, **options()),
        "train": time_loss(learned, path, exact.z, times, cond=exact.cond, **options()),
    }
    other, told = _split_z(model, dataset.held_out, generator)
    if dataset.toy is not None:
        found["above"] = time_loss(exact.field, path, other, times, **options())
    elif len(dataset.held_out) > 0:
        found["held_out"] = time_loss(learned, path, other, times, cond=told, **options())
    curves = {name: [round(float(v), 5) for v in values] for name, values in found.items()}
    return {**curves, "times": times.tolist(), "of": exact.of, "toy": dataset.toy is not None}


def _field(
    model: Model,
    exact: _Exact,
    moving: FlowPage | Line | Cloud | Pictures,
    lift: _Lift | None,
    rows: bool,
    generator: torch.Generator,
) -> dict[str, Any] | None:
    """Both fields where the page draws them; without rows the learned one alone, on a plane."""
    if model.condition is not None or isinstance(moving, Pictures) or not (rows or isinstance(moving, FlowPage)):
        return None
    if isinstance(moving, Cloud):
        assert lift is not None
        return {"of": exact.of, **_cloud_field(model, exact, moving, lift, generator)}
    if isinstance(moving, Line):
        return {"of": exact.of, **_line_field(model, exact, moving, generator)}
    return {"of": exact.of, **_plane_field(model, exact, moving, rows, generator)}


def _plane_field(model: Model, exact: _Exact, page: FlowPage, rows: bool, generator: torch.Generator) -> dict[str, Any]:
    ends = np.array(page.extent).reshape(2, 2)
    span = ends[:, 1] - ends[:, 0]
    xs, ys = (torch.linspace(a, b, _ARROWS + 2, dtype=torch.float64)[1:-1] for a, b in ends.tolist())
    places = _z(model, flow.rows_with(model, torch.cartesian_prod(ys, xs).flip(1)), generator)
    learned, both = Learned(model), []
    for t in _COMPARED:
        time = torch.tensor(t, dtype=torch.float64).expand(len(places))
        both.append(torch.stack([_push(model, places, f(places, time)) for f in (learned, exact.field)]))
    arrows = torch.stack(both).numpy() / span
    arrows = arrows if rows else arrows[:, :1]
    data = {"times": list(_COMPARED), "arrows": _packed_arrows(arrows, arrows[:, 0]), "side": _ARROWS}
    if not rows:
        return data
    xs, ys = (torch.linspace(a, b, _MAP, dtype=torch.float64) for a, b in ends.tolist())
    nodes = _z(model, flow.rows_with(model, torch.cartesian_prod(ys, xs).flip(1)), generator)
    maps = [_error(learned, exact, nodes, t, generator) for t in _COMPARED]
    chosen = torch.randperm(len(exact.z), generator=generator)[:SHOWN_ROWS]
    shown = flow.in_user_units(model, exact.z[chosen][None])[0].numpy()
    inside = ((_share(shown, ends.T) >= 0) & (_share(shown, ends.T) <= 1)).all(1)
    return {
        **data,
        "grid": _MAP,
        "error": document.pack(np.stack([error for error, _ in maps])),
        "weight": document.pack(np.stack([weight for _, weight in maps])),
        "rows": document.pack(_share(shown[inside], ends.T)),
    }


def _line_field(model: Model, exact: _Exact, line: Line, generator: torch.Generator) -> dict[str, Any]:
    places = torch.linspace(*line.ends, _MAP, dtype=torch.float64)[:, None]
    nodes = _z(model, flow.rows_with(model, places), generator)
    times = [0.01 + 0.97 * k / (_MAP - 1) for k in range(_MAP)]
    maps = [_error(Learned(model), exact, nodes, t, generator) for t in times]
    chosen = torch.randperm(len(exact.z), generator=generator)[:SHOWN_ROWS]
    shown = flow.in_user_units(model, exact.z[chosen][None])[0].numpy()
    return {
        "times": [0.0, 1.0],
        "grid": _MAP,
        "error": document.pack(np.stack([error for error, _ in maps])),
        "weight": document.pack(np.stack([weight for _, weight in maps])),
        "rows": document.pack(_share(shown, np.array(line.ends))),
    }


def _cloud_field(model: Model, exact: _Exact, cloud: Cloud, lift: _Lift, generator: torch.Generator) -> dict[str, Any]:
    """Both fields at draws of the exact path, along the axes of the page."""
    index = torch.randint(len(exact.z), (_PLACES,), generator=generator)
    noise = torch.randn(_PLACES, *exact.z.shape[1:], generator=generator, dtype=torch.float64)
    path, learned = exact.field.path, Learned(model)
    assert isinstance(path, AffinePath)
    span = torch.from_numpy(cloud.ends[:, 1] - cloud.ends[:, 0])
    at, arrows, errors = [], [], []
    for t in _COMPARED:
        time = torch.tensor(t, dtype=torch.float64).expand(_PLACES)
        curve = path.curve(time, noise)
        x = curve.alpha * exact.z[index].double() + curve.sigma * noise
        v, u = learned(x, time), exact.field(x, time)
        both = [_push(model, x, each) @ lift.matrix / span for each in (v, u)]
        at.append(flow.in_user_units(model, x[None])[0].double() @ lift.matrix - lift.shift)
        arrows.append(torch.stack(both))
        errors.append((v - u).square().mean(1).sqrt() / _spread(exact, t, generator))
    stacked = torch.stack(arrows).numpy()
    return {
        "times": list(_COMPARED),
        "places": document.pack((_share(torch.stack(at).numpy(), cloud.ends.T) + 0.5) / 2),
        "arrows": _packed_arrows(stacked, stacked[:, 0]),
        "error": document.pack(torch.stack(errors).numpy()),
    }


def _packed_arrows(arrows: np.ndarray, typical: np.ndarray) -> str:
    """Arrows in units of the longest that are drawn whole, twice the root mean square of typical ones, cut at it."""
    most = 2 * float(np.sqrt(np.square(typical).sum(-1).mean())) or 1.0
    length = np.sqrt(np.square(arrows).sum(-1, keepdims=True))
    return document.pack((arrows / np.maximum(length, most) + 1) / 2)


def _error(
    learned: Learned, exact: _Exact, nodes: Tensor, t: float, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """|v - u| over the spread of u, and how far the exact density is from its peak, both ``(m,)``."""
    time = torch.tensor(t, dtype=torch.float64).expand(len(nodes))
    apart = (learned(nodes, time) - exact.field(nodes, time)).flatten(1).square().mean(1).sqrt()
    height = exact.field.log_prob(nodes, time)
    weight = ((height - height.max()) / math.log(1e3) + 1).clamp(0, 1).sqrt()
    return (apart / _spread(exact, t, generator)).numpy(), weight.numpy()


def _spread(exact: _Exact, t: float, generator: torch.Generator) -> float:
    """Standard deviation of the exact velocity over p_t, per dimension."""
    path = exact.field.path
    assert isinstance(path, AffinePath)
    z = exact.z[torch.randint(len(exact.z), (512,), generator=generator)].double()
    time = torch.tensor(t, dtype=torch.float64).expand(len(z))
    curve = path.curve(time, z)
    u = exact.field(curve.alpha * z + curve.sigma * torch.randn(z.shape, generator=generator, dtype=z.dtype), time)
    return float((u - u.mean(0)).square().mean().sqrt().clamp_min(1e-12))


def _push(model: Model, z: Tensor, v: Tensor) -> Tensor:
    """A velocity in network units as one of the columns that vary, in the user's units."""
    transform, flat = model.transform, v.flatten(1).double()
    if isinstance(transform, Identity):
        return flat
    columns = flow.varying(model)
    shift, scale = (torch.tensor(values, dtype=torch.float64)[columns] for values in (transform.shift, transform.scale))
    positive = torch.tensor(transform.positive)[columns]
    y = z.flatten(1).double() * scale + shift
    return flat * scale * torch.where(positive, y.clamp(-700, 700).exp(), 1.0)


def _memory(model: Model, dataset: Dataset | None, generator: torch.Generator) -> dict[str, Any] | str:
    if dataset is None:
        return "The data are not at hand."
    if dataset.toy is not None:
        return "Nothing to memorise: every step was trained on fresh points."
    train, held_out = dataset.train.rows, dataset.held_out.rows
    if len(train) + len(held_out) < 20 or len(train) < 2 or len(held_out) < 2 or train is held_out:
        return "No rows were held out, so there is nothing to compare with."
    samples = model.sample(500, generator=generator).flatten(1)
    parts = (_some(part, generator) for part in (train, held_out))
    found = memorisation(samples, *parts, generator=generator)
    return {**vars(found), "verdict": found.verdict}


def _some(rows: Tensor, generator: torch.Generator) -> Tensor:
    return rows.flatten(1)[torch.randperm(len(rows), generator=generator)[:10_000]]


def _settings(model: Model, dataset: Dataset | None) -> list[list[str]]:
    about = model.about
    net = getattr(model.field, "net", model.field)
    size = sum(p.numel() for p in model.field.parameters())
    config, shape = about.get("config", {}), _row_shape(model)
    schedule = model.path.schedule.name if isinstance(model.path, AffinePath) else type(model.path).__name__
    found: dict[str, Any] = {
        "data": dataset.story if dataset is not None else about.get("data", {}).get("file", "not at hand"),
        **({"shape": " x ".join(map(str, shape))} if len(shape) > 1 else {"columns": _listed(_names(model))}),
        "dimensions": int(np.prod(model.shape)),
        "condition": model.condition.name if model.condition else None,
        "network": f"{type(net).__name__}, {size:,} weights",
        "width": config.get("width"),
        "depth": config.get("depth"),
        "path": f"{schedule}, from standard normal noise",
        "steps": about.get("steps"),
        **config.get("recipe", {}),
        "solver": model.preset.solver,
        "model calls per sample": model.preset.nfe,
    }
    return [[name.replace("_", " "), str(value)] for name, value in found.items() if value not in (None, "", ())]


def _note(
    dataset: Dataset | None, moving: FlowPage | Line | Cloud | Pictures, facts: Mapping[str, Any], rows: bool
) -> str:
    if dataset is None:
        return "The data are not at hand, so neither are the exact field and the floors; no row is in this page."
    held = "This page holds no row of the data, only averages over them."
    if rows and isinstance(moving, Pictures):
        held = f"This page holds {moving.frames.shape[1]:,} rows of the training data, the nearest to each sample."
    elif rows and dataset.toy is not None:
        held = "The points and the exact field in this page are of other fresh draws."
    elif rows and facts["field"]:
        held = "This page holds rows of the training data: as points, and in the exact field."
    return f"A flow trained on {dataset.story}. {held}"


def _z(model: Model, rows: Tensor, generator: torch.Generator) -> Tensor:
    return model.transform.forward(rows, generator)[0].double()


def _split_z(model: Model, split: Split, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    z = _z(model, split.rows, generator)
    if model.condition is None or split.condition is None:
        return z, {}
    return z, {"condition": model.condition.encode(split.condition).to(z.dtype)}


def _row_shape(model: Model) -> tuple[int, ...]:
    return tuple(model.about.get("shape") or model.shape)


def _names(model: Model) -> list[str]:
    """Names of the columns that vary."""
    known = list(model.about.get("dtypes") or {}) or [f"x{i}" for i in range(int(np.prod(model.shape)))]
    return [known[i] for i in flow.varying(model)] if len(known) > max(flow.varying(model)) else known


def _listed(names: Sequence[str], most: int = 40) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _share(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Where values lie between the two ends, 0 to 1; ``ends`` is ``(2,)``, or ``(2, a)`` for a columns."""
    return (values - ends[0]) / (ends[1] - ends[0])


def _wide(ends: tuple[float, float]) -> tuple[float, float]:
    return ends if ends[1] > ends[0] else (ends[0] - 1.0, ends[1] + 1.0)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


_KINDS: dict[type, str] = {FlowPage: "plane", Line: "line", Cloud: "cloud", Pictures: "pictures"}
