"""Samples on their way as an animation or a strip of times, for slides and papers."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from pathline.files import replacing
from pathline.viz.figures import tile
from pathline.viz.page import FlowPage
from pathline.viz.view import Cloud, Line, Pictures

Moving = FlowPage | Line | Cloud | Pictures

STRIP = (0.0, 0.25, 0.5, 0.75, 1.0)
FILM = 46
_HOLD = 1_400
_EACH = 80
_POINTS = 900
_TAIL = 0.12


def strip(moving: Moving, times: tuple[float, ...] = STRIP) -> Figure:
    """The samples at some times side by side, as a matplotlib figure of yours to restyle."""
    fig = Figure(figsize=(2.3 * len(times), 2.75), layout="constrained", facecolor="white")
    for ax, t in zip(fig.subplots(1, len(times), squeeze=False)[0], times, strict=True):
        _draw(ax, moving, t)
        ax.set_title(f"t = {t:.2f}", fontsize=10)
        if t != times[0] and not isinstance(moving, Pictures):
            ax.set_ylabel("")
            ax.tick_params(labelleft=False)
    return fig


def save_film(moving: Moving, path: str | Path) -> None:
    """Writes the samples from t = 0 to t = 1 as a GIF that plays for ever; the same samples give the same bytes."""
    fig = Figure(figsize=(4.4, 4.5), layout="constrained", facecolor="white", dpi=100)
    canvas, ax = FigureCanvasAgg(fig), fig.add_subplot()
    frames = []
    for t in np.linspace(0, 1, FILM):
        ax.clear()
        _draw(ax, moving, float(t))
        ax.set_title(f"t = {t:.2f}", fontsize=11)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    palette = frames[-1].quantize(128, dither=Image.Dither.NONE)
    quantised = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    spans = [_EACH] * (FILM - 1) + [_HOLD]
    with replacing(path) as temporary:
        quantised[0].save(
            temporary, format="GIF", save_all=True, append_images=quantised[1:], duration=spans, loop=0, optimize=False
        )


def _draw(ax: Axes, moving: Moving, t: float) -> None:
    if isinstance(moving, Pictures):
        _draw_pictures(ax, moving, t)
    elif isinstance(moving, Line):
        _draw_line(ax, moving, t)
    else:
        _draw_plane(ax, moving, t)
    for text in (ax.xaxis.label, ax.yaxis.label):
        text.set_parse_math(False)
        text.set_fontsize(9)
    ax.tick_params(labelsize=8)


def _draw_plane(ax: Axes, moving: FlowPage | Cloud, t: float) -> None:
    """Density, pathlines and samples; of a cloud the two principal components, without a density."""
    if isinstance(moving, FlowPage):
        moved, ends, names = moving.particles, np.reshape(moving.extent, (2, 2)), moving.columns
        shade = np.sqrt(_at(moving.times, moving.density, t) / moving.density.max())
        ax.imshow(shade, origin="lower", extent=moving.extent, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    else:
        moved, ends, names = moving.moved[..., :2], moving.ends[:2], moving.axes[:2]
    some = moved[:, :_POINTS]
    back = np.stack([_at(moving.times, some, max(t - s, 0)) for s in np.linspace(0, _TAIL, 5)])
    ax.add_collection(LineCollection(list(back.swapaxes(0, 1)), colors="#16224f", linewidths=0.5, alpha=0.35))
    ax.scatter(back[0, :, 0], back[0, :, 1], s=5, color="#16224f", linewidths=0)
    ax.set(xlim=ends[0], ylim=ends[1])
    ax.set_xlabel(_short(names[0]))
    ax.set_ylabel(_short(names[1]))
    ratio = float(np.ptp(ends[1]) / np.ptp(ends[0]))
    ax.set_box_aspect(ratio if 1 / 3 < ratio < 3 else 1)


def _draw_line(ax: Axes, moving: Line, t: float) -> None:
    x = np.linspace(*moving.ends, moving.density.shape[1])
    y = _at(np.linspace(0, 1, len(moving.density)), moving.density, t)
    ax.fill_between(x, y, color="#4a86c5", alpha=0.45, linewidth=0)
    ax.plot(x, y, color="#16224f", linewidth=1.2)
    samples = _at(moving.times, moving.moved, t)
    ax.plot(samples, np.zeros_like(samples), "|", color="#16224f", markersize=7, alpha=0.4)
    ax.set(xlim=moving.ends, ylim=(0, 1.05 * moving.density.max()))
    ax.set_xlabel(_short(moving.name))
    ax.set_ylabel("density")
    ax.set_box_aspect(1)


def _draw_pictures(ax: Axes, moving: Pictures, t: float) -> None:
    frames = _at(moving.times, moving.frames, t)
    across = max(1, int(np.sqrt(len(frames))))
    shown = frames[: across * (len(frames) // across)]
    ax.imshow(tile(shown[..., 0] if shown.shape[-1] == 1 else shown, across), cmap="gray", vmin=0, vmax=1)
    ax.set_axis_off()


def _at(times: np.ndarray, frames: np.ndarray, t: float) -> np.ndarray:
    """Linear between frames."""
    i = int(np.clip(np.searchsorted(times, t) - 1, 0, len(times) - 2))
    share = (t - times[i]) / (times[i + 1] - times[i])
    return (1 - share) * frames[i] + share * frames[i + 1]


def _short(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= 40 else line[:39] + "…"
