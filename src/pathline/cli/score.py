"""``pathline score``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro

from pathline.cli.bar import bar
from pathline.cli.folder import check_out, load_run, read_rows
from pathline.cli.options import check_seed, parse
from pathline.data.tables import write_table
from pathline.evaluation import score


@dataclass(frozen=True)
class ScoreOptions:
    """Log-density of every row of a file, in nats and in the units of the data."""

    directory: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """The directory of a run."""
    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """The rows to score, with the columns of the model."""
    out: str
    """Where to write the column log_prob: .csv, .parquet or .npy."""
    seed: int = 0
    """Of the dequantisation of integer columns."""
    force: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the file if it exists."""


def run(argv: Sequence[str]) -> int:
    options = parse(ScoreOptions, "score", argv)
    check_seed(options.seed)
    check_out(Path(options.out), options.force, (".csv", ".parquet", ".npy"))
    model = load_run(options.directory)
    rows = read_rows(options.file, model)
    with bar("scoring", "row") as tell:
        values = score(model, rows.rows, rows.condition, seed=options.seed, callback=tell).double()
    write_table(options.out, pd.DataFrame({"log_prob": values.numpy()}), options.force)
    possible = values[values.isfinite()]
    ruled_out = len(values) - len(possible)
    if ruled_out:
        which = "off a constant column, off the steps of an integer or decimal one, or not above 0 in a positive one"
        print(f"log_prob is -inf in {ruled_out:,} of {len(values):,} rows: {which}", file=sys.stderr)
    mean = f"{float(possible.mean()):.4f}" if len(possible) else "-"
    among = f" over the other {len(possible):,}" if ruled_out else ""
    print(f"{options.out}: {len(values):,} rows, mean log_prob {mean} nats{among}")
    return 0
