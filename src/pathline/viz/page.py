"""One page that shows a two-dimensional flow: a file that opens from disk and needs no network."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from pathline.viz import document

SCENE = ("colour.js", "camera.js", "webgl.js", "flat.js", "scene.js")
SCRIPTS = (*SCENE, "flow.js", "single.js")


@final
@dataclass(frozen=True, eq=False)
class FlowPage:
    """A trained flow of two columns as one HTML file: its density as a surface with particles on it.

    The file holds what is given here and nothing else. Each number is stored in 12 bits, so the size is about
    ``2 k (g^2 + 2 n)`` bytes and 50 kB: 0.63 MB for 41 frames of 64 x 64 densities and 1500 particles.
    Between frames the page is linear in t. Heights are ``sqrt(density / peak)``, with the peak over all times.

    Attributes:
        title: heading of the page.
        columns: names of the two axes.
        times: times of the frames, shape ``(k,)``, rising strictly from 0 to 1.
        particles: positions, shape ``(k, n, 2)``; those outside ``extent`` are not drawn.
        density: density per unit area, shape ``(k, g, g)``, indexed ``[time, iy, ix]``, at the nodes
            ``linspace(xmin, xmax, g)`` and ``linspace(ymin, ymax, g)``.
        extent: ``(xmin, xmax, ymin, ymax)``, what the page shows of the plane.
        note: one line of text beneath the picture.

    Raises:
        ValueError: a shape does not fit, ``times`` do not rise from 0 to 1, a particle is not finite, or a
            density is negative, not finite or zero everywhere.
    """

    title: str
    columns: tuple[str, str]
    times: np.ndarray
    particles: np.ndarray
    density: np.ndarray
    extent: tuple[float, float, float, float]
    note: str = ""

    def __post_init__(self) -> None:
        _check_columns(self.columns)
        _check_times(self.times)
        _check_extent(self.extent)
        _check_particles(self.particles, self.times)
        _check_density(self.density, self.times)

    @property
    def html(self) -> str:
        """The page."""
        texts = {"title": self.title, "note": self.note}
        return document.compose("flow.html", ("page.css",), SCRIPTS, texts, self.data())

    def save(self, path: str | Path) -> None:
        """Writes the page to ``path``, whole or not at all; a folder that is not there is a ValueError."""
        document.save(self.html, path)

    def _repr_html_(self) -> str:
        return document.notebook(self.title, self.html)

    def data(self) -> dict[str, Any]:
        """What the page's script reads, as JSON values."""
        xmin, xmax, ymin, ymax = (float(v) for v in self.extent)
        low, span = np.array([xmin, ymin]), np.array([xmax - xmin, ymax - ymin])
        peak = float(np.max(self.density))
        return {
            "columns": [str(name) for name in self.columns],
            "times": [float(t) for t in self.times],
            "extent": [xmin, xmax, ymin, ymax],
            "grid": int(self.density.shape[1]),
            "peak": peak,
            "density": document.pack(np.sqrt(self.density / peak)),
            "particles": document.pack(((self.particles - low) / span + 0.5) / 2),
        }


def _check_columns(columns: tuple[str, str]) -> None:
    if len(columns) != 2:
        raise ValueError(f"columns must name two axes, got {columns!r}")


def _check_times(times: np.ndarray) -> None:
    if np.ndim(times) != 1 or len(times) < 2:
        raise ValueError(f"times must hold two frames or more in one row, got shape {np.shape(times)}")
    if times[0] != 0 or times[-1] != 1 or not np.all(np.diff(times) > 0):
        found = np.array2string(np.asarray(times), threshold=6)
        raise ValueError(f"times must rise strictly from 0 to 1, got {found}")


def _check_extent(extent: tuple[float, float, float, float]) -> None:
    if len(extent) == 4 and np.all(np.isfinite(extent)) and extent[0] < extent[1] and extent[2] < extent[3]:
        return
    raise ValueError(f"extent must be finite (xmin, xmax, ymin, ymax) with min < max, got {tuple(extent)}")


def _check_particles(particles: np.ndarray, times: np.ndarray) -> None:
    shape = np.shape(particles)
    if len(shape) != 3 or shape[0] != len(times) or shape[1] < 1 or shape[2] != 2:
        raise ValueError(f"particles must have shape ({len(times)}, n, 2), one frame for each time, got {shape}")
    bad = np.any(~np.isfinite(particles), axis=2)
    _refuse_frames("particles", "finite", bad, times, "leave these rows out, or find where the flow diverged")


def _check_density(density: np.ndarray, times: np.ndarray) -> None:
    k, shape = len(times), np.shape(density)
    if len(shape) != 3 or shape[0] != k or shape[1] != shape[2] or shape[1] < 2:
        raise ValueError(f"density must have shape ({k}, g, g), g >= 2, one frame for each time, got {shape}")
    bad = ~(np.isfinite(density) & (density >= 0))
    _refuse_frames("density", "finite and not negative", bad, times, "give densities, not their logarithms")
    if not np.any(density > 0):
        raise ValueError("density must be above zero somewhere, got zeros: let extent cover the particles")


def _refuse_frames(name: str, rule: str, bad: Any, times: np.ndarray, remedy: str) -> None:
    if not bad.any():
        return
    frame = int(np.argmax(bad.reshape(len(times), -1).any(axis=1)))
    share = f"{int(bad[frame].sum())} of {bad[frame].size} entries of frame {frame} (t = {times[frame]:g})"
    raise ValueError(f"{name} must be {rule}, and {share} are not: {remedy}")
