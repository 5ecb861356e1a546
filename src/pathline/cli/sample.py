"""``pathline sample``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from pathline.cli.bar import bar
from pathline.cli.folder import as_frame, check_out, columns_of, load_run, read_columns, row_shape
from pathline.cli.options import check_seed, parse
from pathline.data.tables import write_table
from pathline.model import Model
from pathline.viz.figures import samples_figure, save_figure

SUFFIXES = (".csv", ".parquet", ".npy", ".png")
CHECKED, SHARE, LEAST_CHECKED = 128, 16, 16
"""Rows whose solver error is told: so many, or one in `SHARE`, or none where that would be fewer than the last."""


@dataclass(frozen=True)
class SampleOptions:
    """Draw rows from a trained model, in the units and columns of its data."""

    directory: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """The directory of a run."""
    out: str
    """Where to write: .csv, .parquet, .npy, or .png for a picture."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Number of rows; this or --from must be given."""
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """A file of source points (standard normal rows) to push through the flow, in order, instead of fresh noise."""
    seed: int = 0
    """Of the noise and of conditions that are drawn."""
    nfe: int | None = None
    """Model calls per sample, any number; `pathline tune` makes few of them go further."""
    given: str | None = None
    """COL=VALUE, for a model with a condition."""
    force: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the file if it exists."""


def run(argv: Sequence[str]) -> int:
    options = parse(SampleOptions, "sample", argv)
    check_seed(options.seed)
    out = Path(options.out)
    check_out(out, options.force, SUFFIXES)
    model = load_run(options.directory)
    if (options.n is None) == (options.from_ is None):
        raise ValueError("give either -n N, a number of rows, or --from FILE, the points to start from")
    x0 = _starts(options.from_, model) if options.from_ else None
    n = len(x0) if x0 is not None else options.n
    if n is None or n < 1:
        raise ValueError(f"-n must be at least 1, got {n}")
    generator = torch.Generator().manual_seed(options.seed)
    condition = _condition(model, options.given, n, generator)
    cond = {}
    if model.condition is not None and condition is not None:
        cond = {"condition": model.condition.encode(condition)}
    x0 = model.noise(n, generator) if x0 is None else x0
    with bar("sampling", "step") as tell:
        rows = model.sample(x0=x0, cond=cond, nfe=options.nfe, callback=tell)
    _write(model, rows, condition, out, options.force)
    print(f"{out}: {n:,} rows, {_how(model, options.nfe)}{_remaining(model, x0, cond, options.nfe)}")
    return 0


def _how(model: Model, nfe: int | None) -> str:
    solver, _ = model.method(nfe)
    calls = model.preset.nfe if nfe is None else nfe
    return f"{calls} model calls each ({solver.name})" if calls else solver.name


def _remaining(model: Model, x0: Tensor, cond: Mapping[str, Tensor], nfe: int | None) -> str:
    """The solver's error on a few of the rows, where there are enough for its cost to be small."""
    few = min(CHECKED, len(x0) // SHARE)
    if few < LEAST_CHECKED:
        return ""
    error = model.solver_error(x0=x0[:few], cond={key: value[:few] for key, value in cond.items()}, nfe=nfe)
    return f"; {float(error.mean()):.1e} from the converged solution"


def _starts(file: str, model: Model) -> Tensor:
    table = read_columns(file, None)
    dim = int(np.prod(model.shape))
    if len(table.columns) != dim:
        raise ValueError(f"{file}: has {len(table.columns)} columns; source points of this model have {dim}")
    return torch.from_numpy(table.rows).float().reshape(-1, *model.shape)


def _condition(model: Model, given: str | None, n: int, generator: torch.Generator) -> np.ndarray | None:
    condition = model.condition
    if given is None:
        return None if condition is None else condition.draw(n, generator)
    if condition is None:
        raise ValueError("--given needs a model with a condition; this one was trained without --condition")
    name, equals, text = given.partition("=")
    if not equals or name != condition.name:
        raise ValueError(f"--given must be {condition.name}=VALUE, got {given!r}")
    value = condition.parse(text)
    return np.array([value] * n, dtype=object if isinstance(value, str) else None)


def _write(model: Model, rows: Tensor, condition: np.ndarray | None, out: Path, force: bool) -> None:
    shape, frame = row_shape(model), as_frame(model, rows, condition)
    if out.suffix.lower() == ".png":
        names = list(columns_of(model))
        values = torch.from_numpy(frame[names].to_numpy(np.float64, copy=True))
        save_figure(samples_figure(None, values, names, shape), out)
    elif out.suffix.lower() == ".npy" and shape and condition is None:
        write_table(out, frame.to_numpy().reshape(len(frame), *shape), force)
    else:
        write_table(out, frame, force)
