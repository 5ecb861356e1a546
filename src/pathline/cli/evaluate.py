"""``pathline evaluate``."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro

from pathline.cli.folder import dataset_of, load_run, plain, read_rows
from pathline.cli.options import check_seed, parse
from pathline.cli.table import left_out, measures_table
from pathline.data.toy import Toy
from pathline.diagnosis import diagnose
from pathline.evaluation import evaluate
from pathline.model import Model
from pathline.train.dataset import Split


@dataclass(frozen=True)
class EvaluateOptions:
    """How good a model is, each number beside its noise floor or standard error."""

    directory: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """The directory of a run."""
    data: str | None = None
    """Other rows to hold the model against, instead of those held out in training."""
    seed: int | None = None
    """Of samples and of the choice of rows; by default the run's own."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON."""


def run(argv: Sequence[str]) -> int:
    options = parse(EvaluateOptions, "evaluate", argv)
    model = load_run(options.directory)
    seed = model.about["config"]["recipe"]["seed"] if options.seed is None else options.seed
    check_seed(seed)
    held_out, fresh, train, law = _rows(model, options.data, seed)
    measures = evaluate(
        model,
        held_out.rows,
        fresh.rows,
        held_out_condition=held_out.condition,
        fresh_condition=fresh.condition,
        law=law,
        seed=seed,
    )
    found = diagnose(model, held_out, fresh, train=train, law=law, seed=seed)
    measures |= found.measures
    if options.json:
        said = {} if found.evidence is None else {"memorisation": str(found.evidence)}
        print(json.dumps({**plain(measures), **said}, sort_keys=True))
    else:
        print(measures_table(measures))
        if found.evidence is not None:
            print(found.evidence)
    if line := left_out(measures, len(held_out)):
        print(line, file=sys.stderr)
    return 0


def _rows(model: Model, file: str | None, seed: int) -> tuple[Split, Split, Split | None, Toy | None]:
    """Rows to hold the model against, more for the noise floor, those of the training, and the law where known."""
    if file is None:
        dataset = dataset_of(model)
        return dataset.held_out, dataset.train, None if dataset.toy else dataset.train, dataset.toy
    rows = read_rows(file, model)
    if len(rows) < 4:
        raise ValueError(f"{file}: has {len(rows)} rows; at least 4 are needed, half of them for the noise floor")
    return *_halves(rows, seed), None, None


def _halves(rows: Split, seed: int) -> tuple[Split, Split]:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    parts = order[: len(rows) // 2], order[len(rows) // 2 :]
    first, second = (
        Split(rows.rows[part], None if rows.condition is None else rows.condition[part.numpy()]) for part in parts
    )
    return first, second
