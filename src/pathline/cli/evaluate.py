"""``pathline evaluate``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro

from pathline.cli.folder import dataset_of, load_run, plain, read_rows
from pathline.cli.options import check_seed, parse
from pathline.cli.table import measures_table
from pathline.evaluation import evaluate
from pathline.metrics import Measure
from pathline.model import Model
from pathline.train.dataset import Split


@dataclass(frozen=True)
class EvaluateOptions:
    """How good a model is, each number beside its noise floor or standard error."""

    directory: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """The directory of a run."""
    data: str | None = None
    """Other rows to hold the model against, instead of those held out in training."""
    seed: int = 0
    """Of samples and of the choice of rows."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON."""


def run(argv: Sequence[str]) -> int:
    options = parse(EvaluateOptions, "evaluate", argv)
    check_seed(options.seed)
    model = load_run(options.directory)
    measures = _measures(model, options.data, options.seed)
    if options.json:
        print(json.dumps(plain(measures), sort_keys=True))
    else:
        print(measures_table(measures))
    return 0


def _measures(model: Model, file: str | None, seed: int) -> dict[str, Measure]:
    law = None
    if file is None:
        dataset = dataset_of(model)
        held_out, fresh = dataset.held_out, dataset.train
        law = dataset.toy
    else:
        rows = read_rows(file, model)
        if len(rows) < 4:
            raise ValueError(f"{file}: has {len(rows)} rows; at least 4 are needed, half of them for the noise floor")
        held_out, fresh = _halves(rows, seed)
    return evaluate(
        model,
        held_out.rows,
        fresh.rows,
        held_out_condition=held_out.condition,
        fresh_condition=fresh.condition,
        law=law,
        seed=seed,
    )


def _halves(rows: Split, seed: int) -> tuple[Split, Split]:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    parts = order[: len(rows) // 2], order[len(rows) // 2 :]
    first, second = (
        Split(rows.rows[part], None if rows.condition is None else rows.condition[part.numpy()]) for part in parts
    )
    return first, second
