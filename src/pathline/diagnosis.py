"""What can be told of a model and its data: where its loss stands, what errs in its samples, what it memorised."""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pathline.data.toy import Toy
from pathline.diagnostics import (
    Estimate,
    Evidence,
    FieldGap,
    LawField,
    Losses,
    Reference,
    error_budget,
    field_gap,
    loss_over_time,
    memorisation,
    reference,
)
from pathline.evaluation import SOBOL, joined, score
from pathline.fields import EmpiricalField
from pathline.metrics import LEAST, Measure
from pathline.model import Model, Preset
from pathline.objectives import FlowMatching
from pathline.paths import AffinePath, Prediction
from pathline.sources import StandardNormal
from pathline.transforms import ConditionTransform, Identity, TableTransform
from pathline.typing import Path

LAW_POINTS = 2**18
_LAW_ROWS = 10_000
_NEAREST = 10_000
_SAMPLES = 500
_SCORED = 500
_CONVERGED = 256
_WIDE = 1_000


class Rows(Protocol):
    """Rows ``(n, D)`` in the user's units and the values of the condition column, ``(n,)``."""

    @property
    def rows(self) -> Tensor: ...

    @property
    def condition(self) -> np.ndarray | None: ...


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` returns: measures by name, and the evidence on memorisation where rows were trained on."""

    measures: dict[str, Measure]
    evidence: Evidence | None


def diagnose(
    model: Model,
    held_out: Rows,
    fresh: Rows,
    *,
    train: Rows | None = None,
    law: Toy | None = None,
    known: Reference | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Floors of the loss, the error budget of sampling, and memorisation.

    Losses are flow-matching losses per dimension in the model's units, of all t and, as ``parts``, of ten equal bins.

    Args:
        model: the model.
        held_out: rows that training never saw, fresh: more real rows.
        train: the rows that it was trained on; ``None`` where those are unknown, or were a stream.
        law: the law that the rows come from, where it is known.
        known: what `reference_of` made of the same rows or law, to spare the work.
        seed: of all draws.

    Returns:
        ``floor_training``, ``loss_training``, ``excess_training`` and ``r2_training`` against the exact field of the
        rows of the training or, with ``_law``, of the law where there are none; ``loss_held_out``;
        ``distance_total``, ``_sample``, ``_network`` and ``_solver``, see `pathline.diagnostics.error_budget`. What
        cannot be had is left out: a floor where the path has no exact field or where most rows have a condition of
        their own, as a measured number is, since the exact field that is told it knows the row, and the floor is 0; the
        distances where there are fewer than 16 rows of either kind, too few for their standard errors.
    """
    measures: dict[str, Measure] = {}
    if known is None:
        known = reference_of(model.path, model.transform, model.condition, train, law, seed, predicts=_predicts(model))
    if known is not None:
        cond = {} if train is None else units(model, train, torch.Generator())[1]
        measures |= _measures("law" if train is None else "training", known.judge(Learned(model), cond))
    generator = torch.Generator().manual_seed(seed)
    z, cond = units(model, held_out, generator)
    if law is None and len(z) > 1 and (path := _affine(model.path)):
        times = FlowMatching(path, _predicts(model)).time_range
        loss = loss_over_time(Learned(model), path, z, cond=cond, generator=generator, time_range=times)
        measures["loss_held_out"] = _measure(loss, None, len(z))
    measures |= _budget(model, held_out, fresh, law, seed)
    return Diagnosis(measures, _evidence(model, held_out, train, seed) if train is not None else None)


def reference_of(
    path: Path,
    transform: Identity | TableTransform,
    condition: ConditionTransform | None,
    train: Rows | None,
    law: Toy | None,
    seed: int = 0,
    *,
    predicts: Prediction = "velocity",
) -> Reference | None:
    """The exact field of the rows of a training or, where it streams, of the law; ``None`` where there is none.

    The path and the units suffice, so that the floor is known before the training begins. Rows are taken in float32,
    which is how they are trained on, and times from the range of the objective, which depends on what the network
    predicts. With a condition the field is told its value, where that has two rows on average.
    """
    affine = _affine(path)
    if affine is None or (train is None and law is None):
        return None
    generator = torch.Generator().manual_seed(seed)
    times = FlowMatching(affine, predicts).time_range
    if train is None:
        assert law is not None
        points = transform.forward(law.sobol(LAW_POINTS, seed))[0].double()
        rows = transform.forward(law.sample(_LAW_ROWS, generator, torch.float64))[0].double()
        return reference(LawField(affine, points), affine, rows, generator=generator, time_range=times)
    z = transform.forward(train.rows, generator)[0].float()
    label = _label(condition, train)
    if label is not None and 2 * (int(label.max()) + 1) > len(z):
        return None
    cond = {} if label is None else {"label": label}
    exact = EmpiricalField(affine, z, labels=label)
    return reference(exact, affine, z, cond=cond, generator=generator, time_range=times)


def _predicts(model: Model) -> Prediction:
    return getattr(model.field, "predicts", "velocity")


class Learned:
    """A model's field, asked in float64, which is how an exact one is asked."""

    def __init__(self, model: Model) -> None:
        self.field, self.weight = model.field, next(model.field.parameters(), torch.zeros(()))

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor, /, **cond: Tensor) -> Tensor:
        told = {name: value.to(self.weight) for name, value in cond.items()}
        return self.field(x.to(self.weight), t.to(self.weight), **told).to(x)


def units(model: Model, rows: Rows, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Rows and their condition as the network sees them, float64."""
    z = model.transform.forward(rows.rows, generator)[0].double()
    if model.condition is None or rows.condition is None:
        return z, {}
    return z, {"condition": model.condition.encode(rows.condition).double()}


def _label(condition: ConditionTransform | None, rows: Rows) -> Tensor | None:
    """The value of each row's condition by its number among those that there are, ``(n,)``."""
    if condition is None or rows.condition is None:
        return None
    return condition.encode(rows.condition).unique(dim=0, return_inverse=True)[1]


def _measures(name: str, found: Losses) -> dict[str, Measure]:
    return {
        f"floor_{name}": _measure(found.floor, None, found.n),
        f"loss_{name}": _measure(found.loss, found.floor, found.n),
        f"excess_{name}": _measure(found.excess, None, found.n),
        f"r2_{name}": _measure(found.r2, None, found.n),
    }


def _measure(value: Estimate, floor: Estimate | None, n: int) -> Measure:
    bins = len(value.by_time)
    floors = floor.by_time if floor is not None else (None,) * bins
    parts = zip(value.by_time, floors, value.by_time_se, strict=True)
    whole = floor.value if floor is not None else None
    return Measure(value.value, whole, value.se, n, tuple(Measure(*part, n // bins) for part in parts))


def _budget(model: Model, held_out: Rows, fresh: Rows, law: Toy | None, seed: int) -> dict[str, Measure]:
    """In the user's units by low-discrepancy points where the law is known, else in the model's."""
    generator = torch.Generator().manual_seed(seed)
    most = SOBOL if int(np.prod(model.shape)) <= 16 else _WIDE
    n, cond = min(most, len(held_out.rows), len(fresh.rows)), {}
    if n < LEAST:
        return {}
    values = None if model.condition is None else model.condition.draw(n, generator)
    if model.condition is not None and values is not None:
        cond = {"condition": model.condition.encode(values)}
    exact = law is not None and model.condition is None and isinstance(model.path.source, StandardNormal)
    x0 = StandardNormal().sobol((n, *model.shape), seed) if exact else None
    x0 = model.path.source.sample((n, *model.shape), generator) if x0 is None else x0
    calls = _CONVERGED + (1.0 in getattr(model.field, "open_ends", {}))
    made, best = (some.sample(x0=x0, cond=cond) for some in (model, replace(model, preset=Preset("rk4", calls))))
    if exact and law is not None:
        real, more = law.sobol(n, seed + 1), law.sobol(n, seed + 2)
        found = error_budget(made, best, real, more, seed=seed)
    else:
        sets = [joined(model, rows, values, torch.Generator().manual_seed(seed)) for rows in (made, best)]
        for split in (held_out, fresh):
            chosen = torch.randperm(len(split.rows), generator=generator)[:n]
            own = None if split.condition is None else split.condition[chosen.numpy()]
            sets.append(joined(model, split.rows[chosen], own, torch.Generator().manual_seed(seed)))
        found = error_budget(*sets, seed=seed)
    return {f"distance_{name}": getattr(found, name) for name in ("total", "sample", "network", "solver")}


def _evidence(model: Model, held_out: Rows, train: Rows, seed: int) -> Evidence | None:
    few = min(len(train.rows), len(held_out.rows)) < 2 or len(train.rows) + len(held_out.rows) < 20
    if few or torch.equal(train.rows, held_out.rows):
        return None
    generator = torch.Generator().manual_seed(seed)
    near = [split.rows[torch.randperm(len(split.rows), generator=generator)[:_NEAREST]] for split in (train, held_out)]
    made = model.sample(_SAMPLES, generator=generator)
    crowd = memorisation(made.flatten(1), near[0].flatten(1), near[1].flatten(1), generator=generator)
    return Evidence(crowd, _field_gap(model, held_out, train, generator), *_log_probs(model, held_out, train, seed))


def _field_gap(model: Model, held_out: Rows, train: Rows, generator: torch.Generator) -> FieldGap | None:
    path = _affine(model.path)
    if path is None:
        return None
    (z, cond), (other, told) = units(model, train, generator), units(model, held_out, generator)
    return field_gap(
        Learned(model),
        path,
        z,
        other,
        train_cond=cond,
        held_out_cond=told,
        train_labels=_label(model.condition, train),
        held_out_labels=_label(model.condition, held_out),
        generator=generator,
    )


def _log_probs(model: Model, held_out: Rows, train: Rows, seed: int) -> tuple[float | None, float | None, float | None]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for split in (train, held_out):
        chosen = torch.randperm(len(split.rows), generator=generator)[:_SCORED]
        own = None if split.condition is None else split.condition[chosen.numpy()]
        scores = score(model, split.rows[chosen], own, draws=1, seed=seed)
        found.append(scores[scores.isfinite()].double())
    if min(len(scores) for scores in found) < 2:
        return None, None, None
    error = sum(float(scores.var()) / len(scores) for scores in found) ** 0.5
    return float(found[0].mean()), float(found[1].mean()), error


def _affine(path: Path) -> AffinePath | None:
    """The path itself where its fields have a closed form."""
    return path if isinstance(path, AffinePath) and isinstance(path.source, StandardNormal) else None
