"""``pathline tune``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from pathline.cli.bar import bar
from pathline.cli.folder import Folder, load_run
from pathline.cli.options import check_seed, parse
from pathline.model import FILE
from pathline.solvers import Tuned


@dataclass(frozen=True)
class TuneOptions:
    """Learn a solver for few model calls and keep it in the model; `pathline sample DIR --nfe N` then uses it."""

    directory: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """The directory of a run."""
    nfe: int
    """Model calls per sample."""
    seed: int = 0
    """Of the noises that it is learned on."""


def run(argv: Sequence[str]) -> int:
    options = parse(TuneOptions, "tune", argv)
    check_seed(options.seed)
    where = Path(options.directory)
    model = load_run(options.directory)
    generator = torch.Generator().manual_seed(options.seed)
    with bar("tuning", "step") as tell:
        model = model.tune(options.nfe, generator=generator, callback=lambda step: tell(step.step, step.steps))
    if where.is_dir():
        with Folder(where).locked():
            model.save(where / FILE)
    else:
        model.save(where)
    print(f"{where}: {_story(model.tuned[options.nfe])}")
    return 0


def _story(tuned: Tuned) -> str:
    calls = f"{tuned.nfe} model calls"
    if not tuned.learned:
        return f"tuning gained nothing at {calls}; {tuned.base} is kept, rms error {tuned.error:.2g}"
    share = f"{tuned.error / tuned.untuned:.2g} of the best untuned solver's"
    return f"{calls} end within {tuned.error:.2g} of the converged samples (rms, standardised units), {share}"
