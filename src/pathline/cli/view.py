"""``pathline view``."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from pathline.cli.folder import check_out, dataset_of, load_run, read_json
from pathline.cli.options import check_seed, parse
from pathline.metrics import Measure
from pathline.model import Model
from pathline.train.dataset import Dataset
from pathline.viz.figures import save_figure
from pathline.viz.film import save_film, strip
from pathline.viz.view import view_page


@dataclass(frozen=True)
class ViewOptions:
    """Show a trained run: a page (.html), an animation (.gif) or a strip of times (.png)."""

    directory: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """The directory of a run."""
    out: str
    """The file to write; its suffix says what: .html, .gif or .png."""
    seed: int = 0
    """Of the samples and of the choice of rows."""
    no_data: tyro.conf.FlagCreatePairsOff[bool] = False
    """Leave every row of the data out of the file."""
    force: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the file if it exists."""


def run(argv: Sequence[str]) -> int:
    options = parse(ViewOptions, "view", argv)
    check_seed(options.seed)
    out = Path(options.out)
    check_out(out, options.force, (".html", ".gif", ".png"))
    model = load_run(options.directory)
    kind = out.suffix.lower()
    dataset = _dataset(model) if kind == ".html" else None
    directory = Path(options.directory)
    page = view_page(
        model,
        dataset,
        _log(directory / "log.jsonl"),
        _measures(directory / "metrics.json"),
        title=_title(model),
        rows=not options.no_data,
        seed=options.seed,
    )
    if kind == ".html":
        page.save(out)
    elif kind == ".gif":
        save_film(page.moving, out)
    else:
        save_figure(strip(page.moving), out)
    note = page.note if kind == ".html" else "It holds no row of the data."
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB. {note}")
    return 0


def _dataset(model: Model) -> Dataset | None:
    """The data of the run, or ``None``, with a word, where they are gone or have changed."""
    try:
        return dataset_of(model)
    except ValueError as error:
        why = str(error).split(";")[0]
        print(f"pathline: {why}; the page goes without the exact field and the floors", file=sys.stderr)
        return None


def _title(model: Model) -> str:
    data = model.about.get("data", {})
    return str(data.get("toy") or Path(str(data.get("file", "A trained flow"))).name)


def _log(file: Path) -> list[dict[str, Any]]:
    """The records of a run's log; a torn last line is left out."""
    records = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if isinstance(record, dict) and {"step", "loss_per_dim"} <= set(record):
            records.append(record)
    return records


def _measures(file: Path) -> dict[str, Measure]:
    if not file.is_file():
        return {}
    try:
        return {name: Measure(**values) for name, values in read_json(file).items() if not isinstance(values, str)}
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{file}: holds no measures of pathline's; delete it, or train the run again") from error
