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
from pathline.evaluation import score_with_error

ERRORS = {"error": "solver error", "se": "standard error"}


@dataclass(frozen=True)
class ScoreOptions:
    """Log-density of every row of a file, in nats and in the units of the data, with its errors."""

    directory: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """The directory of a run."""
    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """The rows to score, with the columns of the model."""
    out: str
    """Where to write the columns log_prob, error (the solver's) and, where anything is drawn, se (the standard error):
    .csv, .parquet or .npy."""
    probes: int | None = None
    """Hutchinson probes for the divergence; by default it is exact up to 32 dimensions, and 8 probes' above."""
    seed: int = 0
    """Of the dequantisation of integer columns and of the probes."""
    force: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the file if it exists."""


def run(argv: Sequence[str]) -> int:
    options = parse(ScoreOptions, "score", argv)
    check_seed(options.seed)
    if options.probes is not None and options.probes < 1:
        raise ValueError(f"--probes must be at least 1, got {options.probes}")
    check_out(Path(options.out), options.force, (".csv", ".parquet", ".npy"))
    model = load_run(options.directory)
    rows = read_rows(options.file, model)
    with bar("scoring", "row") as tell:
        found = score_with_error(
            model, rows.rows, rows.condition, probes=options.probes, seed=options.seed, callback=tell
        )
    columns = {"log_prob": found.value, "error": found.error, "se": found.se}
    numbers = {name: column.double().cpu() for name, column in columns.items() if column is not None}
    write_table(options.out, pd.DataFrame({name: column.numpy() for name, column in numbers.items()}), options.force)
    values = numbers["log_prob"]
    finite = values.isfinite()
    possible = values[finite]
    ruled_out = len(values) - len(possible)
    if ruled_out:
        which = "off a constant column, off the steps of an integer or decimal one, or not above 0 in a positive one"
        print(f"log_prob is -inf in {ruled_out:,} of {len(values):,} rows: {which}", file=sys.stderr)
    mean = f"{float(possible.mean()):.4f}" if len(possible) else "-"
    among = f" over the other {len(possible):,}" if ruled_out else ""
    bars = [f"{kind} {float(numbers[name][finite].mean()):.1e}" for name, kind in ERRORS.items() if name in numbers]
    errors = f"; {', '.join(bars)} (means)" if len(possible) else ""
    print(
        f"{options.out}: {len(values):,} rows, mean log_prob {mean} nats{among}{errors}; {found.nfe} model calls a row"
    )
    return 0
