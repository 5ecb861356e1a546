"""Paths on which fields are known exactly, and the ends at which those have no velocity."""

from typing import Any, TypeGuard

import torch
from torch import Tensor

from pathline.fields.exact.chunks import CHUNK
from pathline.paths import AffinePath, BridgePath, GaussianPath
from pathline.sources import StandardNormal

ExactPath = AffinePath | BridgePath | GaussianPath


def check_path(path: Any, kinds: tuple[type, ...]) -> None:
    if not isinstance(path, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"path must be {names}, got {type(path).__name__}")
    if isinstance(path, GaussianPath) and not isinstance(path.source, StandardNormal):
        raise ValueError(
            "path must start from a standard normal if it is a GaussianPath, whose p_t(x given x1) is not Gaussian "
            f"otherwise, got {type(path.source).__name__}: take an AffinePath or a BridgePath from that source"
        )


def mixes(path: ExactPath) -> TypeGuard[AffinePath | BridgePath]:
    """Whether x_t is worked out from pairs, as its source or its noise asks for."""
    return isinstance(path, BridgePath) or (
        isinstance(path, AffinePath) and not isinstance(path.source, StandardNormal)
    )


def last_stds(path: ExactPath, points: Tensor) -> tuple[float, float]:
    """The least and the greatest standard deviation of p_t(x given x1) at t = 1."""
    one = torch.ones((), dtype=torch.float64, device=points.device)
    if isinstance(path, AffinePath):
        sigma = float(path.schedule(one).sigma)
        return sigma, sigma
    step = max(1, CHUNK // max(1, points[0].numel()))
    stds = [path.moments(part.double(), one).std for part in points.split(step)]
    return min(float(std.min()) for std in stds), max(float(std.max()) for std in stds)


def open_ends(path: ExactPath, last: bool, wide: bool) -> dict[float, float | None]:
    """The path's start where it is open, and t = 1 where ``last``."""
    ends: dict[float, float | None] = {end: path.inner_time(end) for end in path.open_ends if end != 1.0}
    return {**ends, 1.0: last_call(path, wide)} if last else ends


def last_call(path: ExactPath, wide: bool) -> float | None:
    """The time of the last call before an open t = 1: near it where data have a width, which a posterior mean loses.

    Data without any, and paths that keep noise at t = 1, are left to the last node of the grid (``None``).
    """
    if isinstance(path, AffinePath) and float(path.schedule(torch.ones((), dtype=torch.float64)).sigma) > 0:
        return None
    return path.inner_time(1.0) if wide else None
