"""FlowMatcher: the default flow as a scikit-learn density estimator on tables and arrays."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_consistent_length, check_random_state, check_scalar, column_or_1d
from sklearn.utils.validation import check_is_fitted, validate_data

from pathline import solvers
from pathline.data.tables import Table, restore
from pathline.evaluation import score
from pathline.model import Model, Preset
from pathline.train.config import Config
from pathline.train.dataset import Dataset, Split
from pathline.train.default import chosen_device, default_threads, settled, threads, train
from pathline.train.loop import Step
from pathline.train.recipe import Recipe
from pathline.transforms import ConditionTransform, TableTransform

_LINES = 10


class FlowMatcher(DensityMixin, BaseEstimator):
    """A density estimator that samples and scores: flow matching with the default network and path.

    Columns are standardised, integers dequantised and constant columns kept as they are; rows and densities come
    out in the units of the data. With a ``y`` the model is conditional on that column: it learns p(x given y).

    Args:
        steps: optimiser steps.
        minutes: plan the steps for this much time instead.
        batch_size: rows a step.
        learning_rate: the highest of the schedule.
        width: of the hidden layers. Where it, steps, batch_size or learning_rate is ``None``, the number is chosen
            for the size of the data, see `pathline.train.default.settled`.
        depth: number of hidden layers.
        positive: names of columns to keep above zero; the columns of an array are ``x0, x1, ...``.
        solver: of sampling, one of `pathline.solvers.NAMED`.
        nfe: model calls per sample, ``None``: 64, or as many as an adaptive solver takes.
        device: ``"cpu"`` or ``"cuda"``, ``None``: a GPU if there is one.
        random_state: an integer gives the same model in every `fit` and the same rows in every `sample`; a
            ``RandomState``, or ``None`` for NumPy's global one, goes on from call to call.
        verbose: print the loss now and then during training.

    Attributes:
        model_: the fitted `pathline.Model`, which works on tensors.
        n_features_in_: number of columns.
        feature_names_in_: their names, after a fit on a DataFrame whose column names are text.

    >>> rows = np.random.default_rng(0).normal(size=(200, 2))
    >>> flow = FlowMatcher(steps=20, random_state=0).fit(rows)
    >>> flow.sample(3).shape
    (3, 2)
    >>> flow.score_samples(rows[:5]).shape
    (5,)

    Reference: Lipman et al., "Flow Matching for Generative Modeling", arXiv:2210.02747.
    """

    def __init__(
        self,
        *,
        steps: int | None = None,
        minutes: float | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        width: int | None = None,
        depth: int = 4,
        positive: Sequence[str] = (),
        solver: str = "rk4",
        nfe: int | None = None,
        device: str | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.steps = steps
        self.minutes = minutes
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.width = width
        self.depth = depth
        self.positive = positive
        self.solver = solver
        self.nfe = nfe
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike | pd.DataFrame, y: ArrayLike | None = None) -> Self:
        """Trains on all rows.

        Args:
            X: numeric columns, ``(n, d)`` with n at least 2. A column of whole numbers alone is one of integers.
            y: the column to be conditional on, ``(n,)``. Text, booleans and whole numbers of at most 20 distinct
                values are categories, other numbers are standardised. A Series keeps its name, others are "y".

        Raises:
            ValueError: values that are missing, infinite or not numbers, a parameter out of range, no column that
                varies, an unknown name in ``positive``.
            TypeError: a parameter of the wrong type, a sparse ``X``.
            RuntimeError: the loss is not finite.
        """
        config, device = self._config(), chosen_device(self.device)
        _check_columns(X)
        rows = self._rows(X, ensure_min_samples=2)
        dataset = _dataset(_table(X, rows), y, config.positive)
        dim, name = dataset.transform.dim, dataset.condition.name if dataset.condition else None
        config = settled(replace(config, condition=name), dim, len(rows))
        with threads(default_threads(config)):
            self.model_ = train(dataset, config, device=device, callback=_reporter(dim) if self.verbose else None)
        self._frame_columns = X.columns.tolist() if isinstance(X, pd.DataFrame) else None
        return self

    def sample(self, n_samples: int = 1, y: Any = None) -> pd.DataFrame | np.ndarray:
        """Draws rows, as a DataFrame after a fit on one, else as an array ``(n_samples, d)``.

        Names and dtypes are those of the fit.

        Args:
            n_samples: number of rows.
            y: the condition of a conditional model, one value or ``n_samples`` values; ``None`` draws conditions
                as in training. To know which, draw them first: ``y = flow.model_.condition.draw(n_samples)``.

        Raises:
            ValueError: ``n_samples`` below 1, a condition that the model does not know or has no use for.
        """
        check_is_fitted(self, "model_")
        n = int(check_scalar(n_samples, "n_samples", Integral, min_val=1))
        model: Model = self.model_
        values, cond = _given(model, y, n), None
        if model.condition is not None and values is not None:
            cond = {"condition": model.condition.encode(values).to(next(model.field.parameters()))}
        rows = model.sample(n, cond=cond, generator=torch.Generator().manual_seed(self._seed()))
        frame = restore(rows.cpu().numpy(), model.about["dtypes"])
        if self._frame_columns is None:
            return frame.to_numpy()
        return frame.set_axis(self._frame_columns, axis=1)

    def score_samples(self, X: ArrayLike | pd.DataFrame, y: Any = None) -> np.ndarray:
        """Log-density of rows in nats and in the units of the data, ``(n,)``.

        It is minus infinity where the fit rules a row out: off a constant column, not whole in an integer one, not
        above zero in a positive one. Integer columns are averaged over 4 seeded dequantisations; above 128
        columns the trace is estimated by 8 seeded probes.

        Args:
            X: rows, ``(n, d)``.
            y: their conditions, ``(n,)`` or one value; a conditional model needs them.

        Raises:
            ValueError: bad rows, conditions that are missing or unknown.
        """
        check_is_fitted(self, "model_")
        model: Model = self.model_
        rows = self._rows(X, reset=False, dtype=np.float64, force_writeable=True)
        values = _given(model, y, len(rows))
        if model.condition is not None and values is None:
            raise ValueError(f"y is needed: the density is conditional on {model.condition.name}")
        return score(model, torch.from_numpy(rows), values).double().cpu().numpy()

    def score(self, X: ArrayLike | pd.DataFrame, y: Any = None) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Mean of `score_samples`: nats per row, higher is better; minus infinity where one row is."""
        return float(self.score_samples(X, y).mean())

    def save(self, path: str | Path) -> None:
        """Writes the model to ``path``, one safetensors file that `pathline.load` reads.

        Raises:
            ValueError: the file cannot be written.
        """
        check_is_fitted(self, "model_")
        self.model_.save(path)

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        if "model_" not in state:
            return state
        model: Model = self.model_
        return {**state, "model_": replace(model, field=copy.deepcopy(model.field).cpu())}

    def _rows(self, X: Any, **options: Any) -> np.ndarray:
        return np.asarray(validate_data(self, X, **options))

    def _config(self) -> Config:
        if isinstance(self.positive, str):
            raise ValueError(f"positive must be a list of column names, got {self.positive!r}")
        nfe = _number(self.nfe, "nfe", Integral)
        known = solvers.NAMED.get(self.solver)
        if nfe is None and known is not None and known.calls is not None:
            nfe = Preset().nfe
        config = Config(
            recipe=Recipe(
                steps=_number(self.steps, "steps", Integral),
                minutes=_number(self.minutes, "minutes", Real),
                batch_size=_number(self.batch_size, "batch_size", Integral),
                learning_rate=_number(self.learning_rate, "learning_rate", Real),
                seed=self._seed(),
            ),
            preset=Preset(self.solver, nfe),
            width=_number(self.width, "width", Integral),
            depth=int(check_scalar(self.depth, "depth", Integral)),
            positive=tuple(str(name) for name in self.positive),
        )
        config.check()
        return config

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))


def _number(value: Any, name: str, kind: type) -> Any:
    """A parameter as a Python number, which goes into JSON."""
    if value is None:
        return None
    check_scalar(value, name, kind)
    return int(value) if kind is Integral else float(value)


def _check_columns(X: Any) -> None:
    """Refuses what NumPy would turn into numbers, or a dictionary into one column."""
    names = [str(name) for name in X.columns] if isinstance(X, pd.DataFrame) else ["of X"]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"X has several columns called {', '.join(twice)}; give each column a name of its own")
    dtypes = X.dtypes if isinstance(X, pd.DataFrame) else [getattr(X, "dtype", None)]
    for name, dtype in zip(names, dtypes, strict=True):
        if getattr(dtype, "kind", None) in ("m", "M"):
            raise ValueError(f"column {name} holds {dtype}; turn dates into numbers, or leave the column out")


def _table(X: Any, rows: np.ndarray) -> Table:
    """The columns of ``X`` by name, in the NumPy dtypes that samples come back in."""
    if not isinstance(X, pd.DataFrame):
        return Table(pd.DataFrame(rows, columns=[f"x{i}" for i in range(rows.shape[1])]), None, None, "")
    columns = {str(name): column.to_numpy(_native(column.dtype)) for name, column in X.items()}
    return Table(pd.DataFrame(columns), None, None, "")


def _native(dtype: Any) -> np.dtype:
    native = getattr(dtype, "numpy_dtype", dtype)
    return native if isinstance(native, np.dtype) and native.kind in "biuf" else np.dtype(np.float64)


def _dataset(table: Table, y: Any, positive: Sequence[str]) -> Dataset:
    """All rows to train on, none held out."""
    values = None if y is None else column_or_1d(y, warn=True)
    check_consistent_length(table.frame, values)
    condition = None if values is None else ConditionTransform.fit(_name(y, table.columns), values)
    rows = torch.from_numpy(table.rows)
    transform = TableTransform.fit(rows, table.columns, positive, table.integers)
    held_out = Split(rows[:0], None if values is None else values[:0])
    return Dataset(Split(rows, values), held_out, transform, condition, dtypes=table.dtypes, about={"rows": len(rows)})


def _name(y: Any, columns: Sequence[str]) -> str:
    name = str(y.name) if isinstance(y, pd.Series) and y.name is not None else "y"
    if name in columns:
        raise ValueError(f"y is called {name}, as a column of X is; pass y as a Series with a name of its own")
    return name


def _given(model: Model, y: Any, n: int) -> np.ndarray | None:
    """The condition column of ``n`` rows."""
    if y is None:
        return None
    if model.condition is None:
        raise ValueError("y must be None: the model was fitted without one")
    values = column_or_1d(y if np.ndim(y) else [y] * n)
    if len(values) != n:
        raise ValueError(f"y must be one value or one for each of {n} rows, got {len(values)}")
    return values


def _reporter(dim: int) -> Callable[[Step], None]:
    def report(step: Step) -> None:
        if step.step % max(1, step.steps // _LINES) == 0:
            print(f"step {step.step}/{step.steps}  loss {float(step.loss) / dim:.4f}", flush=True)

    return report
