"""``pathline explore``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import tyro

from pathline.cli.folder import check_out
from pathline.cli.options import parse
from pathline.data.tables import Table, read_table, split_names
from pathline.data.toy import TOYS, toy
from pathline.viz.explore import MOST_POINTS, ExplorePage


@dataclass(frozen=True)
class ExploreOptions:
    """A page that shows the exact flow to a few points: toys, two columns of a file, or points drawn by hand."""

    out: str
    """Where to write: .html."""
    data: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="DATA")] = None
    """A built-in toy to start with, or a file (.csv .parquet .npy .npz)."""
    columns: str | None = None
    """A,B: the two columns of the file to show; without it the first two that hold numbers."""
    force: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the file if it exists."""


def run(argv: Sequence[str]) -> int:
    options = parse(ExploreOptions, "explore", argv)
    out = Path(options.out)
    check_out(out, options.force, (".html", ".htm"))
    page, said = _page(options.data, options.columns)
    page.save(out)
    print(f"{out}: {said}")
    return 0


def _page(data: str | None, columns: str | None) -> tuple[ExplorePage, str]:
    names = None if columns is None else split_names(columns)
    if names is not None and len(names) != 2:
        raise ValueError(f"--columns must name two columns, A,B, got {columns!r}")
    if data is None or data in TOYS:
        if names is not None:
            raise ValueError("--columns needs a file of columns; the built-in toys have x and y alone")
        return ExplorePage(start=data), f"the built-in toys, starting with {data or 'annulus'}"
    if not Path(data).suffix and not Path(data).exists():
        toy(data)
    table = _read(data, names)
    rows, two = _two(data, table)
    try:
        page = ExplorePage(rows, two, Path(data).name)
    except ValueError as error:
        raise ValueError(f"{data}: {error}") from error
    kept = min(len(rows), MOST_POINTS)
    thinned = f"{kept:,} of {len(rows):,} rows" if kept < len(rows) else f"{len(rows):,} rows"
    return page, f"holds {thinned} of the columns {two[0]} and {two[1]}"


def _read(data: str, names: tuple[str, ...] | None) -> Table:
    if names is not None:
        return read_table(data, names)
    try:
        return read_table(data)
    except ValueError:
        numeric = _numeric(Path(data))
        if len(numeric) < 2:
            raise
        return read_table(data, numeric[:2])


def _numeric(path: Path) -> list[str]:
    """Columns of a table that hold numbers, as far as its first rows tell; none where it can't be read."""
    if path.suffix.lower() != ".csv":
        return []
    try:
        frame = pd.read_csv(path, nrows=1000, index_col=False)
    except (OSError, ValueError, pd.errors.ParserError):
        return []
    return [str(name) for name in frame.select_dtypes("number") if not str(name).startswith("Unnamed: ")]


def _two(data: str, table: Table) -> tuple[np.ndarray, tuple[str, str]]:
    if table.shape is not None:
        raise ValueError(f"{data}: holds arrays of shape {table.shape}; a page shows two columns: pass --columns A,B")
    if len(table.columns) < 2:
        raise ValueError(f"{data}: has one column of numbers, {', '.join(table.columns)}; a page shows two")
    first, second = table.columns[:2]
    return table.rows[:, :2], (first, second)
