"""Pictures of generated rows beside data. Text is drawn as it is written, never read as mathematics.

Figures hold no global state: they are made without pyplot and drawn by whatever saves them.
"""

import itertools
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from pathline.files import replacing

DATA = "#0072B2"
SAMPLES = "#D55E00"
_POINTS = 3000
_PAIRS = 4
_GRID = 8
_PANEL = 3.2
_FILLED: dict[str, Any] = {"fill": True, "color": DATA, "alpha": 0.4, "linewidth": 0}
_OUTLINE: dict[str, Any] = {"color": SAMPLES, "linewidth": 1.5}
_LITERAL: dict[str, Any] = {"parse_math": False, "usetex": False}


def samples_figure(
    data: Tensor | None, samples: Tensor, columns: Sequence[str], shape: Sequence[int] | None = None
) -> Figure:
    """Generated rows beside data, or alone: histograms, points, pairs of columns or pictures.

    One column: two histograms. Two: data and samples as points, side by side on the same axes. More: the
    first four columns against each other, both in one panel. With ``shape``: a grid of pictures each, on
    the data's grey or colour scale; channels other than three are averaged. At most 3,000 points of each
    are drawn, at even spacing in the order given. The axes span data and samples. Only where 1 in 100
    samples or fewer would more than double the span are those left out, and counted below.

    Args:
        data: real rows, shape ``(n, d)``, or ``(n, *shape)``; ``None``: the samples alone.
        samples: generated rows, shape ``(m, d)``, or ``(m, *shape)``.
        columns: a name for each of the d columns; not used with ``shape``.
        shape: ``(h, w)`` or ``(c, h, w)`` where a row is a picture.

    Raises:
        ValueError: a shape does not fit, there are no rows, or one is not finite.
    """
    given = [("data", data, DATA)] if data is not None else []
    given = [*given, ("samples", samples, SAMPLES)]
    if shape is not None:
        return _picture_figure([_Rows(name, _pictures(name, rows, shape), colour) for name, rows, colour in given])
    names = [_short(name) for name in columns]
    shown = [_Rows(name, _table(name, rows, len(names)), colour) for name, rows, colour in given]
    if len(names) == 1:
        return _histogram_figure(shown, names[0])
    return _point_figure(shown, names) if len(names) == 2 else _pair_figure(shown, names)


def save_figure(fig: Figure, path: Path | str, dpi: int = 150) -> None:
    """Writes the figure in the format of the path's suffix; an old file is replaced whole or not at all.

    Raises:
        ValueError: the suffix is not one that matplotlib writes.
    """
    path = Path(path)
    suffix = path.suffix.lstrip(".").lower()
    known = fig.canvas.get_supported_filetypes()
    if suffix not in known:
        raise ValueError(f"path must end in one of {', '.join(f'.{s}' for s in sorted(known))}, got {str(path)!r}")
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        fig.savefig(temporary, dpi=dpi, format=suffix)


class _Rows(NamedTuple):
    """Rows to draw, under their name and in their colour; the last of a list are the samples."""

    name: str
    values: np.ndarray
    colour: str


def _histogram_figure(shown: Sequence[_Rows], name: str) -> Figure:
    fig = _figure(5.2, 3.2)
    ax = fig.add_subplot()
    span = _span(shown, 0)
    _histograms(ax, shown, 0, span)
    ax.set_xlabel(name, **_LITERAL)
    ax.set_ylabel("density")
    ax.legend(frameon=False, fontsize=9)
    _say_beyond(fig, shown[-1].values, [span])
    return fig


def _point_figure(shown: Sequence[_Rows], names: Sequence[str]) -> Figure:
    spans = [_span(shown, i) for i in range(2)]
    aspect = _aspect(spans)
    fig = _figure(0.9 + len(shown) * _PANEL * min(1, 1 / aspect), 0.9 + _PANEL * min(1, aspect))
    axes = fig.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (title, rows, colour) in zip(axes, shown, strict=True):
        some = _thin(rows)
        ax.scatter(some[:, 0], some[:, 1], color=colour, **_marks(len(some)))
        ax.set(xlim=spans[0], ylim=spans[1])
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(names[0], **_LITERAL)
        ax.set_box_aspect(aspect)
        _plain(ax)
    axes[0].set_ylabel(names[1], **_LITERAL)
    _say_beyond(fig, shown[-1].values, spans)
    return fig


def _pair_figure(shown: Sequence[_Rows], names: Sequence[str]) -> Figure:
    k = min(_PAIRS, len(names))
    fig = _figure(1.9 * k + 0.5, 1.9 * k + 0.3)
    spans = [_span(shown, i) for i in range(k)]
    axes = fig.subplots(k, k, sharex="col", squeeze=False)
    both, colour = _mixed(shown)
    for i, j in itertools.product(range(k), repeat=2):
        ax: Axes = axes[i, j]
        if i < j:
            ax.set_axis_off()
            continue
        if i == j:
            _histograms(ax, shown, i, spans[i])
            ax.spines["left"].set_visible(False)
            ax.set_yticks([])
        else:
            ax.scatter(both[:, j], both[:, i], c=colour, **_marks(len(both)))
            ax.set(xlim=spans[j], ylim=spans[i])
            _plain(ax, 4)
            ax.tick_params(labelleft=j == 0)
        if j == 0 and i > 0:
            ax.set_ylabel(_short(names[i], 24), fontsize=9, **_LITERAL)
        if i == k - 1:
            ax.set_xlabel(_short(names[j], 24), fontsize=9, **_LITERAL)
    fig.align_labels()
    title = f"first {k} of {len(names)} columns" if k < len(names) else None
    axes[0, 1].legend(handles=_keys(shown), title=title, frameon=False, loc="center")
    _say_beyond(fig, shown[-1].values[:, :k], spans)
    return fig


def _picture_figure(shown: Sequence[_Rows]) -> Figure:
    scale = shown[0].values
    low, high = scale.min(), scale.max()
    count = min(_GRID**2, *(len(rows.values) for rows in shown))
    across = math.ceil(math.sqrt(count))
    ratio = scale.shape[1] / scale.shape[2]
    fig = _figure(3.6 * len(shown), 0.4 + 3.5 * math.ceil(count / across) / across * ratio)
    fig.set_layout_engine("constrained", wspace=0.05)
    for ax, (title, rows, _) in zip(fig.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        tiles = tile(((rows[:count] - low) / max(high - low, 1e-12)).clip(0, 1), across)
        ax.imshow(tiles, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(title, fontsize=10)
        ax.set_axis_off()
    return fig


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _histograms(ax: Axes, shown: Sequence[_Rows], i: int, span: tuple[float, float]) -> None:
    edges = _edges(shown[0].values[:, i], span)
    for rows in shown:
        values, style = rows.values[:, i], _FILLED if rows.name == "data" else _OUTLINE
        count = np.histogram(values, edges)[0]
        ax.stairs(count / (len(values) * np.diff(edges)), edges, label=rows.name, **style)
    ax.set_xlim(span)
    ax.set_ylim(bottom=0)
    _plain(ax, 5)


def _edges(real: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    """Edges of bins over the span; where data are a few whole numbers, one bin around each."""
    if _few_whole(real):
        return np.arange(math.floor(span[0]) - 0.5, math.ceil(span[1]) + 1)
    rule = "fd" if len(real) > 1000 else "sturges"
    count = len(np.histogram_bin_edges(real, rule)) - 1 if np.ptp(np.quantile(real, [0.25, 0.75])) else 20
    return np.linspace(*span, min(60, max(10, count)) + 1)


def _few_whole(real: np.ndarray) -> bool:
    return 0 < np.ptp(real) <= 50 and bool((real == real.round()).all())


def _span(shown: Sequence[_Rows], i: int) -> tuple[float, float]:
    """Axis limits and a margin: all but the samples, at most 1 in 100, that lie more than a span away."""
    real, made = shown[0].values[:, i], shown[-1].values[:, i]
    low, high = np.quantile(made, [0.005, 0.995])
    low, high = min(real.min(), low), max(real.max(), high)
    near = made[np.abs(made - (low + high) / 2) <= 1.5 * (high - low)]
    low, high = min(low, near.min()), max(high, near.max())
    margin = 0.04 * (high - low) or 0.1 * max(1.0, abs(high))
    margin = 0.5 if _few_whole(real) else margin
    return float(low - margin), float(high + margin)


def _say_beyond(fig: Figure, made: np.ndarray, spans: Sequence[tuple[float, float]]) -> None:
    low, high = np.array(spans).T
    beyond = int(((made < low) | (made > high)).any(1).sum())
    if beyond:
        text = f"{beyond:,} of {len(made):,} samples lie beyond the axes"
        fig.supxlabel(text, x=0.99, ha="right", fontsize=7, color="0.3")


def _aspect(spans: Sequence[tuple[float, float]]) -> float:
    """A panel's height over its width: equal units where the ranges are alike, else square."""
    (a, b), (c, d) = spans
    ratio = (d - c) / (b - a)
    return ratio if 1 / 3 < ratio < 3 else 1.0


def _plain(ax: Axes, ticks: int = 6) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.locator_params(nbins=ticks, steps=[1, 2, 5, 10])
    ax.ticklabel_format(scilimits=(-3, 5), useOffset=False)
    ax.tick_params(labelsize=8)
    for axis in (ax.xaxis, ax.yaxis):
        axis.get_offset_text().set_fontsize(8)


def _marks(n: int) -> dict[str, Any]:
    return {"s": min(14.0, max(3.0, 6000 / n)), "alpha": 0.6, "linewidths": 0, "rasterized": True}


def _mixed(shown: Sequence[_Rows]) -> tuple[np.ndarray, np.ndarray]:
    """All rows in one shuffled list with their colours, so that none covers another."""
    thinned = [_thin(rows.values) for rows in shown]
    colour = np.repeat([to_rgb(rows.colour) for rows in shown], [len(rows) for rows in thinned], axis=0)
    order = np.random.default_rng(0).permutation(len(colour))
    return np.concatenate(thinned)[order], colour[order]


def _keys(shown: Sequence[_Rows]) -> list[Line2D]:
    return [Line2D([], [], color=rows.colour, marker="o", linestyle="", label=rows.name) for rows in shown]


def _thin(rows: np.ndarray) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), _POINTS)).round().astype(int)]


def tile(pictures: np.ndarray, across: int) -> np.ndarray:
    """One picture of many, row by row, with white lines between."""
    height, width, *channels = pictures.shape[1:]
    gap = max(1, height // 14)
    down = math.ceil(len(pictures) / across)
    tiles = np.ones((down * (height + gap) - gap, across * (width + gap) - gap, *channels))
    for i, picture in enumerate(pictures):
        top, left = i // across * (height + gap), i % across * (width + gap)
        tiles[top : top + height, left : left + width] = picture
    return tiles


def _table(name: str, rows: Tensor, width: int) -> np.ndarray:
    if rows.ndim != 2 or rows.shape[1] != width or width < 1:
        raise ValueError(f"{name} must have shape (n, {width}) for {width} columns, got {tuple(rows.shape)}")
    return _finite(name, rows)


def _pictures(name: str, rows: Tensor, shape: Sequence[int]) -> np.ndarray:
    """Pictures as ``(n, h, w)``, in colour ``(n, h, w, 3)``."""
    if len(shape) not in (2, 3):
        raise ValueError(f"shape must be (h, w) or (c, h, w), got {tuple(shape)}")
    if rows[:1].numel() != math.prod(shape) and len(rows):
        raise ValueError(f"{name} must have rows of shape {tuple(shape)}, got {tuple(rows.shape[1:])}")
    pictures = _finite(name, rows).reshape(-1, *shape)
    if len(shape) == 2:
        return pictures
    return np.moveaxis(pictures, 1, -1) if shape[0] == 3 else pictures.mean(1)


def _finite(name: str, rows: Tensor) -> np.ndarray:
    if len(rows) < 1:
        raise ValueError(f"{name} must have at least one row, got {tuple(rows.shape)}")
    if not rows.isfinite().all():
        raise ValueError(f"{name} must be finite, got {int((~rows.isfinite()).sum())} entries that are not")
    return rows.detach().to("cpu", torch.float64).numpy()


def _short(name: object, most: int = 40) -> str:
    line = " ".join(str(name).split())
    return line if len(line) <= most else line[: most - 1] + "…"
