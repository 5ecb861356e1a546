"""The page of the exact field: density, velocity and particles of finitely many points, worked out in the browser."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from pathline.data.toy import TOYS, toy
from pathline.viz import document
from pathline.viz.page import SCENE

SCRIPTS = (*SCENE, "poster.js", "exact.js", "explore.js")
MOST_POINTS = 2_000
HALF = 4.0
GAUSSIAN, DRAWN, OWN = "one-gaussian", "drawn", "own"
TOY_WORDS = {
    "annulus": "Annulus",
    "gaussian": "Gaussian, as samples",
    "eight-gaussians": "Eight Gaussians",
    "moons": "Moons",
    "two-spirals": "Two spirals",
    "checkerboard": "Checkerboard",
    "s-curve": "S-curve",
    "swiss-roll": "Swiss roll",
}


@final
@dataclass(frozen=True, eq=False)
class ExplorePage:
    """The exact flow from N(0, I) to finitely many points of the plane, as one HTML file that opens from disk.

    The page computes p_t and v_t itself, for the built-in toys, for points drawn by hand, and for ``rows`` if given.
    Rows are standardised, at most 2,000 of them are embedded (drawn with a fixed seed), and the page says so.

    Attributes:
        rows: points of your own, shape ``(n, 2)``, in any units; ``None``: none.
        columns: names of their axes.
        name: what the page calls them.
        start: the toy to show first; ``None``: your rows, else the annulus.
        title: heading of the page.

    Raises:
        ValueError: ``rows`` are not finite numbers of shape ``(n, 2)``, a column holds one value only, or ``start`` is
            no toy.

    >>> ExplorePage(start="moons").html[:15]
    '<!doctype html>'
    """

    rows: np.ndarray | None = None
    columns: tuple[str, str] = ("x", "y")
    name: str = "your data"
    start: str | None = None
    title: str = "Flow matching, exactly"

    def __post_init__(self) -> None:
        if self.start is not None:
            toy(self.start)
        if self.rows is not None:
            _check_rows(self.rows, self.columns)

    @property
    def html(self) -> str:
        """The page."""
        texts = {"title": self.title, "note": self.note}
        return document.compose("explore.html", ("page.css", "explore.css"), SCRIPTS, texts, self.data())

    @property
    def note(self) -> str:
        """What the file holds of the rows."""
        if self.rows is None:
            return "Exact for the points shown: nothing is trained."
        shown = f"{min(len(self.rows), MOST_POINTS):,} of the {len(self.rows):,} rows"
        return f"This page holds {shown} of {self.name}, standardised. Nothing is trained."

    def save(self, path: str | Path) -> None:
        """Writes the page to ``path``, whole or not at all; a folder that is not there is a ValueError."""
        document.save(self.html, path)

    def _repr_html_(self) -> str:
        return document.notebook(self.title, self.html, 820)

    def data(self) -> dict[str, Any]:
        """What the page's script reads, as JSON values."""
        sets = [] if self.rows is None else [_own_set(self.rows, self.columns, self.name)]
        sets += [_gaussian_set(), *(_toy_set(name) for name in TOYS), _drawn_set()]
        first = "annulus" if self.rows is None else OWN
        return {"sets": sets, "start": self.start or first}


def explore_page(
    data: np.ndarray | str | None = None, columns: tuple[str, str] = ("x", "y"), name: str = "your data"
) -> ExplorePage:
    """The page of ``data``: rows ``(n, 2)``, the name of a built-in toy, or ``None`` for the annulus.

    Raises:
        ValueError: as `ExplorePage`.
    """
    if data is None or isinstance(data, str):
        return ExplorePage(start=data)
    return ExplorePage(np.asarray(data), columns, name)


def _set(id: str, label: str, about: str, **more: Any) -> dict[str, Any]:
    plain = {"columns": ["x", "y"], "shift": [0, 0], "scale": [1, 1], "half": HALF}
    return {"id": id, "label": label, "about": about} | plain | more


def _gaussian_set() -> dict[str, Any]:
    about = (
        "A Gaussian into a Gaussian: mean (2, 1), variance 1/2. On the linear path, means and standard deviations "
        "are interpolated."
    )
    return _set(GAUSSIAN, "Gaussian to Gaussian", about, exact=[[2, 1]], sigma=math.sqrt(0.5), count=1)


def _drawn_set() -> dict[str, Any]:
    return _set(DRAWN, "Your drawing", "Points placed by hand, below under Draw.", count=1)


def _toy_set(name: str) -> dict[str, Any]:
    law = toy(name)
    points = law.sample(MOST_POINTS, torch.Generator().manual_seed(0), torch.float64).numpy()
    about = f"Samples x₁ of q: {law.description}."
    return _set(name, TOY_WORDS.get(name, name), about, toy=True, **_packed(points))


def _own_set(rows: np.ndarray, columns: tuple[str, str], name: str) -> dict[str, Any]:
    rows = np.asarray(rows, dtype=np.float64)
    shift, scale = rows.mean(axis=0), rows.std(axis=0)
    order = np.random.default_rng(0).permutation(len(rows))[:MOST_POINTS]
    points = (rows[order] - shift) / scale
    kept = f"{len(points):,} of {len(rows):,} rows" if len(points) < len(rows) else f"{len(rows):,} rows"
    about = f"{kept} of {name}. Each column has mean 0 and standard deviation 1 here; the axes show your units."
    units = {"shift": shift.tolist(), "scale": scale.tolist(), "columns": [str(column) for column in columns]}
    return _set(OWN, name, about, **units, **_packed(points))


def _packed(points: np.ndarray) -> dict[str, Any]:
    """Numbers in [-range, range] as three characters of six bits each, and half the side of the square to show."""
    reach = float(np.ceil(np.abs(points).max()))
    half = float(np.clip(np.ceil(2 * np.quantile(np.abs(points), 0.995) + 0.6) / 2, HALF, 2 * HALF))
    values = np.rint((points.ravel() / reach + 1) / 2 * (2**18 - 1)).astype(np.uint32)
    digits = document.ALPHABET[np.stack([values >> 12, values >> 6 & 63, values & 63], axis=-1)]
    return {"packed": digits.tobytes().decode(), "range": reach, "count": len(points), "half": half}


def _check_rows(rows: np.ndarray, columns: tuple[str, str]) -> None:
    if len(columns) != 2:
        raise ValueError(f"columns must name two axes, got {columns!r}")
    if rows.ndim != 2 or rows.shape[1] != 2 or len(rows) < 1 or rows.dtype.kind not in "biuf":
        raise ValueError(f"rows must be numbers of shape (n, 2), got {rows.dtype} of shape {rows.shape}")
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise ValueError(f"rows must be finite, and {int(bad.sum())} of {len(rows)} are not: leave them out")
    for name, spread in zip(columns, np.ptp(rows.astype(np.float64), axis=0), strict=True):
        if not 0 < spread < math.inf:
            raise ValueError(f"column {name!r} must vary, within the range of float64; choose another column")
