"""How much of the distance between samples and data is the network's, the solver's, the finite sample's."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pathline.metrics import Measure, error_by_eighths, transport


@dataclass(frozen=True)
class Budget:
    """What `error_budget` returns; ``sample + network + solver`` is ``total``.

    Attributes:
        name: of the distance, ``w2`` or ``sliced_w2``.
        total: distance of the samples to the data, floor: of more data to the data.
        sample: the floor, what two real samples of this size are apart.
        network: what converged samples of the model have above it.
        solver: what samples at this number of calls have above converged ones of the same noise; may be negative.
    """

    name: str
    total: Measure
    sample: Measure
    network: Measure
    solver: Measure


def error_budget(
    made: Float[Tensor, "n d"],
    converged: Float[Tensor, "n d"],
    real: Float[Tensor, "n d"],
    fresh: Float[Tensor, "n d"],
    *,
    seed: int = 0,
) -> Budget:
    """Splits the Wasserstein distance of samples to data into three parts by exchanging one set of rows at a time.

    W(made, real) = W(fresh, real) + [W(converged, real) - W(fresh, real)] + [W(made, real) - W(converged, real)], all
    on n rows: W2 up to 16 dimensions, sliced W2 above. Standard errors come from the spread of each part over 8
    disjoint eighths of the rows; of fewer than 16 rows there are none.

    Args:
        made: samples as they are drawn; converged: of the same noise in the same order, solved without error.
        real: rows of the data, none of which the model has seen; fresh: more real rows, not among them.
        seed: of the directions of sliced W2.

    Raises:
        ValueError: numbers of rows differ, or rows that the metric refuses.
    """
    sets = (made, converged, real, fresh)
    if len({len(rows) for rows in sets}) > 1:
        raise ValueError(f"all four sets must have equally many rows, got {', '.join(str(len(s)) for s in sets)}")
    name, metric, _ = transport(real.shape[1], seed)

    def parts(made: Tensor, converged: Tensor, real: Tensor, fresh: Tensor) -> np.ndarray:
        total, best, floor = metric(made, real), metric(converged, real), metric(fresh, real)
        return np.array([total, floor, best - floor, total - best])

    n, values, error = len(real), parts(*sets), error_by_eighths(parts, *sets)
    errors = [None] * 4 if error is None else error.tolist()
    total, sample, network, solver = (
        Measure(float(value), None, error, n) for value, error in zip(values, errors, strict=True)
    )
    return Budget(name, Measure(total.value, sample.value, total.se, n), sample, network, solver)
