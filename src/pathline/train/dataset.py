"""Dataset: what a run trains on and is held against, in the user's units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.data.tables import Table, read_table
from pathline.data.toy import TOYS, Toy, toy
from pathline.train.config import Config
from pathline.transforms import ConditionTransform, TableTransform

HELD_OUT = 0.1
MOST_HELD_OUT = 10_000


@dataclass(frozen=True)
class Split:
    """Rows ``(n, D)`` in the user's units, float64, and the values of the condition column, ``(n,)``."""

    rows: Tensor
    condition: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Dataset:
    """Data in two parts, with the units fitted on the first.

    Attributes:
        train: the rows to train on; of a toy, a sample to hold things against, for training streams fresh ones.
        held_out: rows that training never sees.
        transform: units of the columns, condition: of the condition column.
        toy: the law that the rows come from, where it is a built-in one.
        dtypes: NumPy dtype by column, shape: of a row of an array with more than two axes.
        about: where the data came from, as JSON values; never a row.
    """

    train: Split
    held_out: Split
    transform: TableTransform
    condition: ConditionTransform | None = None
    toy: Toy | None = None
    dtypes: Mapping[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def story(self) -> str:
        """One line: a stream of fresh points, or N fixed ones."""
        if self.toy is not None:
            return f"a stream of fresh points of {self.toy.name}"
        if self.held_out is self.train:
            return f"{len(self.train):,} fixed rows, too few to hold any out: measured on the same rows"
        return f"{len(self.train):,} fixed rows ({len(self.held_out):,} more are held out)"


def open_dataset(data: str, config: Config) -> Dataset:
    """The built-in toy or the file called ``data``.

    Raises:
        ValueError: there is no such toy or file, or the file can't be used; the message says how to mend it.
    """
    if data in TOYS:
        return from_toy(toy(data), config)
    if not Path(data).suffix and not Path(data).exists():
        toy(data)
    table = read_table(data, config.columns, config.drop, config.condition)
    try:
        return from_table(table, config, {"file": data})
    except ValueError as error:
        raise ValueError(f"{data}: {error}") from error


def from_toy(law: Toy, config: Config) -> Dataset:
    """A toy with 2 x 10,000 points set aside to measure with.

    Raises:
        ValueError: options that choose or treat columns, of which a toy has x and y alone.
    """
    for name in ("columns", "drop", "condition", "positive"):
        if getattr(config, name):
            raise ValueError(f"{name} needs a file of columns; {law.name} is a built-in toy")
    transform = TableTransform.fit(law.sobol(2**14, seed=0), ("x", "y"), integer=(False, False))
    rows = law.sample(2 * MOST_HELD_OUT, torch.Generator().manual_seed(config.recipe.seed + 2**40), torch.float64)
    held_out, train = Split(rows[:MOST_HELD_OUT]), Split(rows[MOST_HELD_OUT:])
    dtypes = {"x": "float64", "y": "float64"}
    return Dataset(train, held_out, transform, toy=law, dtypes=dtypes, about={"toy": law.name})


def from_table(table: Table, config: Config, about: Mapping[str, Any] = {}) -> Dataset:
    """A table split by the config's seed: a tenth, at most 10,000 rows, is held out.

    Tables of fewer than 20 rows are too small to split: all rows are trained on and measured with.

    Raises:
        ValueError: a positive column that is unknown or holds a value that is not, a condition that cannot be used, no
            column that varies.
    """
    rows = torch.from_numpy(table.rows)
    _check_positive(rows, table.columns, config.positive)
    values = None if table.condition is None else table.frame[table.condition].to_numpy()
    held, kept = _split(len(rows), config.recipe.seed)

    def part(index: np.ndarray) -> Split:
        return Split(rows[torch.from_numpy(index)], None if values is None else values[index])

    train = part(kept)
    transform = TableTransform.fit(train.rows, table.columns, config.positive, table.integers)
    condition = None if values is None else ConditionTransform.fit(str(table.condition), values)
    story = {**about, "fingerprint": table.fingerprint, "rows": len(rows), "held_out": len(held)}
    held_out = train if len(held) == len(rows) else part(held)
    return Dataset(train, held_out, transform, condition, None, table.dtypes, table.shape, story)


def _check_positive(rows: Tensor, columns: Sequence[str], positive: Sequence[str]) -> None:
    """Looks at all rows, so that the row that is named is the file's."""
    for name in set(positive) & set(columns):
        values = rows[:, columns.index(name)]
        bad = (values <= 0).nonzero()
        if len(bad):
            row = int(bad[0])
            what = f"{len(bad)} values are not above 0, the first, {float(values[row]):g}, in row {row + 1}"
            raise ValueError(f"--positive {name}: {what}; mend these rows, or leave the column out of --positive")


def _split(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if n < 20:
        return np.arange(n), np.arange(n)
    order = np.random.default_rng([seed, n]).permutation(n)
    count = min(MOST_HELD_OUT, round(HELD_OUT * n))
    return np.sort(order[:count]), np.sort(order[count:])
