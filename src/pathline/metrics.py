"""How far apart two samples are, beside how far apart two samples of one law would be.

No distance between finite samples is zero, so that a number alone says little: :func:`compare` measures
generated rows against held-out ones and puts next to each value its noise floor, the same metric between
two real samples of the same size. Distances are in the units of the rows, and computed in float64. Rows are
``(n, d)``; flatten images.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

_CHUNK = 2**22


@dataclass(frozen=True)
class Measure:
    """A metric's value and what to hold it against.

    Attributes:
        value: the metric between generated and real rows.
        floor: the same between two real samples of the same size; ``None`` where there is no second one.
        se: standard error of ``value``; ``None`` where there are too few rows to tell.
        n: rows on each side. W2 falls with n even between equal laws: compare only measures of one n.
        parts: of a loss over time, the same in equal bins of [0, 1].
    """

    value: float
    floor: float | None
    se: float | None
    n: int
    parts: tuple["Measure", ...] = ()


def w2(x: Tensor, y: Tensor) -> float:
    r"""2-Wasserstein distance of two samples of equal size, not squared.

    ``sqrt(min over permutations s of mean_i |x_i - y_s(i)|^2)``, by exact assignment: about n^3 time (0.3 s
    at n = 2,000, a minute at 10,000) and n^2 memory.

    Args:
        x: rows, shape ``(n, d)``.
        y: rows, shape ``(n, d)``.

    Raises:
        ValueError: widths or sizes differ, there are fewer than 2 rows, or one is not finite.

    >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    >>> w2(x, x.flip(0) + torch.tensor([3.0, 4.0]))
    5.0
    """
    a, b = _equal(*_pair(x, y))
    cost = cdist(a.numpy(), b.numpy(), "sqeuclidean")
    return math.sqrt(cost[linear_sum_assignment(cost)].mean())


def sliced_w2(x: Tensor, y: Tensor, projections: int = 256, generator: torch.Generator | None = None) -> float:
    r"""Sliced 2-Wasserstein distance of two samples of equal size, not squared.

    ``sqrt(E W2^2(<x, u>, <y, u>))`` over uniform directions u on the sphere: the mean over ``projections``
    random ones, each by sorting. At most ``w2 / sqrt(d)`` up to the noise of the directions.
    Reference: Sliced and Radon Wasserstein Barycenters of Measures (Bonneel et al., 2015).

    Args:
        x: rows, shape ``(n, d)``.
        y: rows, shape ``(n, d)``.
        projections: number of directions.
        generator: on the CPU, for the directions.

    Raises:
        ValueError: widths or sizes differ, fewer than 2 rows, one is not finite, ``projections`` below 1.
    """
    a, b = _equal(*_pair(x, y))
    if projections < 1:
        raise ValueError(f"projections must be at least 1, got {projections}")
    directions = torch.randn(projections, a.shape[1], generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=1, keepdim=True)
    total = 0.0
    for part in directions.split(max(1, _CHUNK // len(a))):
        along_a, along_b = (rows @ part.T for rows in (a, b))
        total += (along_a.sort(dim=0).values - along_b.sort(dim=0).values).square().mean(0).sum().item()
    return math.sqrt(total / projections)


def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""Energy distance ``2 E|X - Y| - E|X - X'| - E|Y - Y'|``, in the units of the rows.

    The unbiased estimate, over all pairs of different rows: zero on average where the laws agree, so that
    it may be negative (its square root, which some call by the same name, has no unbiased estimate). Time
    n^2 d, memory n.
    Reference: Energy statistics: A class of statistics based on distances (Szekely & Rizzo, 2013).

    Args:
        x: rows, shape ``(n, d)``.
        y: rows, shape ``(m, d)``.

    Raises:
        ValueError: widths differ, there are fewer than 2 rows on a side, or one is not finite.
    """
    return _energy(*_pair(x, y))[0]


def c2st(x: Tensor, y: Tensor, seed: int = 0) -> float:
    """Accuracy of a classifier that tells x from y: 0.5 where it can't, 1 where the laws are apart.

    The share of right answers over 5 stratified folds, of 30 boosted trees (scikit-learn's). They need no
    scaling, and tell slightly blurred moons from sharp ones about as well as the two-layer network of arXiv
    2101.04653, in a twentieth of its time.
    Reference: Revisiting Classifier Two-Sample Tests (arXiv 1610.06545).

    Args:
        x: rows, shape ``(n, d)``.
        y: rows, shape ``(n, d)``.
        seed: of the folds.

    Raises:
        ValueError: widths or sizes differ (chance is not 0.5), there are fewer than 2 rows, or one is not
            finite.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    a, b = _equal(*_pair(x, y))
    rows, side = torch.cat([a, b]).numpy(), np.repeat([0, 1], len(a))
    trees = HistGradientBoostingClassifier(
        max_iter=30,
        max_leaf_nodes=15,
        early_stopping=False,  # pyright: ignore[reportArgumentType]
        random_state=seed,
    )
    folds = StratifiedKFold(min(5, len(a)), shuffle=True, random_state=seed)
    return float(np.mean(cross_val_predict(trees, rows, side, cv=folds) == side))


def bits_per_dim(
    log_prob: Callable[[Tensor], Tensor],
    x: Tensor,
    spacing: float = 1.0,
    *,
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> Measure:
    r"""Bits per dimension that a continuous density needs for rows on a lattice, by uniform dequantisation.

    With D numbers in a row, spacing h and u uniform on [0, h), in bits,
    ``-(log p(x + u) / D + log h) / log 2``: a bound from above on what the law of the lattice points needs, since
    that gives each point the mass of its cell. Rows of one width only are comparable.
    Reference: A note on the evaluation of generative models (arXiv 1511.01844).

    Args:
        log_prob: log-density in nats of rows like x, shape ``(n,)``, as of a model.
        x: rows on the lattice, shape ``(n, *d)``, in the units of the density; noise fills the cell ABOVE each number.
        spacing: h, in those units: 1 for whole numbers, 2 / 256 for bytes scaled to [-1, 1).
        draws: of the noise for each row, averaged.
        generator: for the noise, drawn on its device.

    Returns:
        The mean over rows with its standard error, no floor.

    Raises:
        ValueError: no rows, a spacing that is not positive, draws below 1, log-densities that are not one a row.

    >>> bits_per_dim(lambda y: torch.full((len(y),), -math.log(256.0)), torch.zeros(2, 1)).value
    8.0000...
    """
    if x.ndim == 0 or x.numel() == 0:
        raise ValueError(f"x must have at least one row and one number, got shape {tuple(x.shape)}")
    if not 0 < spacing < math.inf or draws < 1:
        raise ValueError(f"spacing must be positive and draws be at least 1, got {spacing} and {draws}")
    nats, device = torch.zeros(len(x), dtype=torch.float64), x.device if generator is None else generator.device
    dtype = x.dtype if x.is_floating_point() else torch.float32
    for _ in range(draws):
        u = torch.rand(x.shape, generator=generator, device=device, dtype=dtype).to(x.device)
        found = log_prob(x + spacing * u).detach()
        if found.shape != nats.shape:
            raise ValueError(f"log_prob must return one number a row ({len(x)},), got {tuple(found.shape)}")
        nats += found.to("cpu", torch.float64) / draws
    bits = -(nats / (x.numel() // len(x)) + math.log(spacing)) / math.log(2)
    se = float(bits.std() / math.sqrt(len(x))) if len(x) > 1 else None
    return Measure(float(bits.mean()), None, se, len(x))


def compare(samples: Tensor, reference: Tensor, fresh: Tensor, *, seed: int) -> dict[str, Measure]:
    """Generated rows against held-out ones, by every metric, each beside its noise floor.

    Value: the metric between ``samples`` and ``reference``; floor: between ``fresh`` and ``reference``;
    both on the same n random rows of each, n the smallest of the three sizes and of the metric's limit.

    - ``w2`` where d <= 16, n <= 2,000; ``sliced_w2`` in more dimensions, n <= 5,000
    - ``energy_distance``, n <= 5,000
    - ``c2st``, n <= 5,000

    Standard errors: of W2, from the spread over 8 disjoint eighths of the rows, divided by sqrt(8), and none
    below 16 rows, since eighths of one row have the spread of |x - y|, which is no error of W2; of the
    energy distance, from the first-order projection of the U-statistic; of C2ST, binomial over its 2n
    answers (which share their training rows: the true spread is up to a third larger).

    Args:
        samples: generated rows, shape ``(n, d)``.
        reference: held-out real rows, shape ``(m, d)``.
        fresh: more real rows, none of them in ``reference``, shape ``(k, d)``.
        seed: which rows are taken, the directions of ``sliced_w2``, the folds of ``c2st``.

    Raises:
        ValueError: widths differ, there are fewer than 2 rows of one kind, or one is not finite.
    """
    given = [_rows(name, rows) for name, rows in (("samples", samples), ("reference", reference), ("fresh", fresh))]
    _same_width(*given)
    generator = torch.Generator().manual_seed(seed)
    common = min(5000, *map(len, given))
    made, real, more = (rows[torch.randperm(len(rows), generator=generator)[:common]] for rows in given)
    name, metric, most = transport(real.shape[1], seed)
    return {
        name: _transport_measure(metric, made[:most], real[:most], more[:most]),
        "energy_distance": _energy_measure(made, real, more),
        "c2st": _c2st_measure(made, real, more, seed),
    }


_SUBSETS = 8
LEAST = 2 * _SUBSETS
"""Rows from which the Wasserstein distance has a standard error."""


def transport(width: int, seed: int) -> tuple[str, Callable[[Tensor, Tensor], float], int]:
    """The Wasserstein distance for rows of this width: its name, itself, and the most rows that it is meant for."""
    if width <= 16:
        return "w2", w2, 2000
    return "sliced_w2", lambda x, y: sliced_w2(x, y, generator=torch.Generator().manual_seed(seed)), 5000


def _transport_measure(metric: Callable[[Tensor, Tensor], float], made: Tensor, real: Tensor, more: Tensor) -> Measure:
    error = error_by_eighths(metric, made, real)
    return Measure(metric(made, real), metric(more, real), None if error is None else float(error), len(made))


def error_by_eighths(metric: Callable[..., float | np.ndarray], *sets: Tensor) -> np.ndarray | None:
    """The standard error of ``metric(*sets)``, from disjoint eighths of their rows; ``None`` of fewer than `LEAST`."""
    n = len(sets[0])
    if n < LEAST:
        return None
    parts = zip(*(rows.split(n // _SUBSETS)[:_SUBSETS] for rows in sets), strict=True)
    return np.std(np.array([metric(*part) for part in parts]), axis=0, ddof=1) / math.sqrt(_SUBSETS)


def _energy_measure(made: Tensor, real: Tensor, more: Tensor) -> Measure:
    value, se = _energy(made, real)
    return Measure(value, _energy(more, real)[0], se, len(made))


def _c2st_measure(made: Tensor, real: Tensor, more: Tensor, seed: int) -> Measure:
    value, n = c2st(made, real, seed), len(made)
    return Measure(value, c2st(more, real, seed), math.sqrt(value * (1 - value) / (2 * n)), n)


def _energy(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The energy distance and its standard error, from each row's mean distances to the other rows."""
    centre = a.mean(0)
    a, b = a - centre, b - centre
    across_a, across_b = _mean_distances(a, b)
    within_a, within_b = (_mean_distances(rows, rows)[0] * len(rows) / (len(rows) - 1) for rows in (a, b))
    value = across_a.mean() + across_b.mean() - within_a.mean() - within_b.mean()
    variance = (2 * (across_a - within_a)).var() / len(a) + (2 * (across_b - within_b)).var() / len(b)
    return value.item(), variance.sqrt().item()


def _mean_distances(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Mean distance of each row of a to those of b, and of each row of b to those of a."""
    to_b, to_a = [], torch.zeros(len(b), dtype=b.dtype)
    for part in a.split(max(1, _CHUNK // len(b))):
        distance = torch.cdist(part, b)
        to_b.append(distance.mean(1))
        to_a += distance.sum(0)
    return torch.cat(to_b), to_a / len(a)


def _rows(name: str, x: Tensor) -> Tensor:
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(f"{name} must have shape (n, d), got {tuple(x.shape)}; flatten each row")
    if len(x) < 2:
        raise ValueError(f"{name} must have at least 2 rows, got {len(x)}")
    rows = x.detach().to("cpu", torch.float64)
    bad = (~rows.isfinite().all(1)).nonzero()
    if len(bad):
        raise ValueError(f"{name} must be finite, but {len(bad)} rows are not, the first {int(bad[0])}")
    return rows


def _same_width(*given: Tensor) -> None:
    widths = [rows.shape[1] for rows in given]
    if len(set(widths)) > 1:
        raise ValueError(f"all rows must have the same width, got {' and '.join(map(str, widths))} columns")


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    a, b = _rows("x", x), _rows("y", y)
    _same_width(a, b)
    return a, b


def _equal(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if len(a) != len(b):
        raise ValueError(f"x and y must have equally many rows, got {len(a)} and {len(b)}; cut one")
    return a, b
