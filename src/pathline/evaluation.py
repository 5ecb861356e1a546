"""How good a model is, each number beside its noise floor."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.data.toy import Toy
from pathline.likelihood import LogProb
from pathline.metrics import Measure, compare, w2
from pathline.model import Model
from pathline.sources import StandardNormal
from pathline.transforms import Identity

MOST_SCORED = 2_000
SOBOL = 2_048
EXACT_TRACE = 32
PROBES = 8


def evaluate(
    model: Model,
    held_out: Tensor,
    fresh: Tensor,
    *,
    held_out_condition: np.ndarray | None = None,
    fresh_condition: np.ndarray | None = None,
    law: Toy | None = None,
    seed: int = 0,
) -> dict[str, Measure]:
    """Distances between generated and held-out rows, and the held-out log-likelihood.

    Distances are taken in the model's standardised units (a condition column joined on, in its own), each beside
    the same distance between ``fresh`` and ``held_out``.

    Args:
        model: the model.
        held_out: rows that training never saw, fresh: more real rows, in the user's units.
        held_out_condition, fresh_condition: their condition column, where the model has one.
        law: the law that the rows come from, where it is known: the mean of its log-density is then the floor of the
            log-likelihood, and ``w2_sobol`` compares low-discrepancy points.
        seed: of samples, dequantisation and the choice of rows.

    Returns:
        Measures by name: ``w2`` or ``sliced_w2``, ``energy_distance``, ``c2st``, ``log_likelihood`` (nats per row,
        in the user's units, with its standard error, over those of at most 2,000 rows that the model does not rule
        out), and ``w2_sobol`` (2,048 points in the user's units).
    """
    generator = torch.Generator().manual_seed(seed)
    made_condition = model.condition.draw(len(held_out), generator) if model.condition else None
    made = model.sample(len(held_out), cond=_cond(model, made_condition), generator=generator).cpu()
    found = compare(
        joined(model, made, made_condition, generator),
        joined(model, held_out, held_out_condition, generator),
        joined(model, fresh, fresh_condition, generator),
        seed=seed,
    )
    if law is not None and model.condition is None:
        found = {"w2_sobol": _sobol_w2(model, law, seed), **found}
    chosen = torch.randperm(len(held_out), generator=generator)[:MOST_SCORED]
    rows = held_out[chosen]
    own = held_out_condition[chosen.numpy()] if held_out_condition is not None else None
    scores = score(model, rows, own, draws=1, seed=seed)
    likely = scores[scores.isfinite()]
    if len(likely) == 0:
        return found
    floor = float(law.log_prob(rows).mean()) if law is not None else None
    se = float(likely.std() / len(likely) ** 0.5) if len(likely) > 1 else None
    return {**found, "log_likelihood": Measure(float(likely.mean()), floor, se, len(likely))}


def score(
    model: Model,
    rows: Tensor,
    condition: np.ndarray | None = None,
    *,
    draws: int = 4,
    seed: int = 0,
    callback: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Log-density of rows in nats, in the user's units, shape ``(n,)``; ``callback(done, rows)`` hears how far it is.

    Integer and decimal columns are averaged over ``draws`` seeded dequantisations. Above 32 dimensions the trace is
    estimated by 8 Hutchinson probes.
    """
    return model.log_prob(rows, **_options(model, condition, draws, None, seed, callback))


def score_with_error(
    model: Model,
    rows: Tensor,
    condition: np.ndarray | None = None,
    *,
    draws: int = 4,
    probes: int | None = None,
    seed: int = 0,
    callback: Callable[[int, int], None] | None = None,
) -> LogProb:
    """`score` with the solver's error, and the standard error where rows are dequantised or the trace is estimated."""
    return model.log_prob_with_error(rows, **_options(model, condition, draws, probes, seed, callback))


def _options(
    model: Model,
    condition: np.ndarray | None,
    draws: int,
    probes: int | None,
    seed: int,
    callback: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    whole = not isinstance(model.transform, Identity) and model.transform.dequantises
    if probes is None and model.shape and int(np.prod(model.shape)) > EXACT_TRACE:
        probes = PROBES
    return {
        "cond": _cond(model, condition),
        "draws": draws if whole else 1,
        "probes": probes,
        "generator": torch.Generator().manual_seed(seed),
        "callback": callback,
    }


def _sobol_w2(model: Model, law: Toy, seed: int) -> Measure:
    """W2 of scrambled Sobol noise pushed through the model to scrambled Sobol points of the law."""
    noise = StandardNormal().sobol((SOBOL, *model.shape), seed)
    real, other = law.sobol(SOBOL, seed + 1), law.sobol(SOBOL, seed + 2)
    return Measure(w2(model.sample(x0=noise), real), w2(other, real), None, SOBOL)


def _cond(model: Model, values: np.ndarray | None) -> dict[str, Tensor]:
    if model.condition is None or values is None:
        return {}
    return {"condition": model.condition.encode(values).to(next(model.field.parameters()))}


def joined(model: Model, rows: Tensor, condition: np.ndarray | None, generator: torch.Generator) -> Tensor:
    """Rows in the model's units with their condition beside them in its own, float64, shape ``(n, d)``."""
    z = model.transform.forward(rows, generator)[0].flatten(1).double()
    if model.condition is None or condition is None:
        return z
    return torch.cat([z, model.condition.encode(condition).double()], 1)
