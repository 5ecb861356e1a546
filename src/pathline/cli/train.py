"""``pathline train``."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from pathline.cli.folder import Folder, as_frame, read_json
from pathline.cli.options import parse
from pathline.cli.progress import Progress
from pathline.cli.table import measures_table
from pathline.data.tables import split_names
from pathline.evaluation import evaluate
from pathline.metrics import Measure
from pathline.model import FILE, Model
from pathline.train.checkpoint import read_about
from pathline.train.config import Config
from pathline.train.dataset import Dataset, open_dataset
from pathline.train.default import default_threads, settled, train
from pathline.viz.figures import samples_figure, save_figure
from pathline.viz.flow import flow_page


@dataclass(frozen=True)
class TrainOptions:
    """Fit a flow to a file (.csv .parquet .npy .npz) or a built-in toy, and leave a run in a directory."""

    data: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="DATA")] = None
    """A file of numeric columns, or a toy: annulus, moons, eight-gaussians, two-spirals, checkerboard, ..."""
    out: str | None = None
    """The run's directory."""
    steps: int | None = None
    """Optimiser steps."""
    minutes: float | None = None
    """Plan the steps for this much time instead."""
    seed: int | None = None
    """Same seed, steps, machine and threads: the same model, byte for byte."""
    columns: str | None = None
    """Columns to model, separated by commas."""
    drop: str | None = None
    """Columns to leave out, separated by commas."""
    condition: str | None = None
    """The column that the model is conditional on."""
    positive: str | None = None
    """Columns to keep above zero, separated by commas."""
    config: str | None = None
    """A config.json of another run; other options override it."""
    device: str | None = None
    """cpu or cuda; by default a GPU if there is one."""
    threads: int | None = None
    """CPU threads; by default chosen for the size of the network."""
    checkpoint_every: float = 60.0
    """Seconds between two checkpoints."""
    resume: str | None = None
    """Go on with the run in this directory; with --steps train on to that many."""
    force: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the run that --out holds."""


def run(argv: Sequence[str]) -> int:
    options = parse(TrainOptions, "train", argv)
    if options.resume is not None:
        folder, config, data = _resumed(options)
    else:
        folder, config, data = _fresh(options)
    dataset = open_dataset(data, config)
    config = settled(config, dataset.transform.dim, None if dataset.toy else len(dataset.train))
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    _check_device(device)
    if options.resume is None:
        folder.prepare(options.force)
    with folder.locked():
        if options.resume is None:
            folder.clear()
        folder.write_json("config.json", {"config": config.to_dict(), "data": data})
        torch.set_num_threads(_threads(options, config))
        print(f"training on {dataset.story}, {dataset.transform.dim} dimensions", file=sys.stderr)
        model, seconds = _train(folder, dataset, config, device, options.checkpoint_every)
        model.save(folder.path / FILE)
        measures = _finish(folder, model, dataset, config, seconds)
    print(measures_table(measures))
    print(f"{folder.path}: {', '.join(sorted(item.name for item in folder.path.iterdir()))}")
    return 0


def _fresh(options: TrainOptions) -> tuple[Folder, Config, str]:
    if options.data is None:
        raise ValueError("name the DATA to train on: a file, or a toy such as annulus (see pathline train --help)")
    if options.out is None:
        raise ValueError("name the run's directory: --out DIR")
    if options.steps is not None and options.minutes is not None:
        raise ValueError("give --steps or --minutes, not both")
    config = Config()
    if options.config is not None:
        values = read_json(Path(options.config))
        config = Config.from_dict(values["config"] if isinstance(values, dict) and "config" in values else values)
    chosen = {name: getattr(options, name) for name in ("steps", "minutes", "seed")}
    recipe = replace(config.recipe, **{name: value for name, value in chosen.items() if value is not None})
    recipe.check()
    named: dict[str, Any] = {"condition": options.condition}
    for name in ("columns", "drop", "positive"):
        text = getattr(options, name)
        named[name] = None if text is None else split_names(text)
    config = replace(config, recipe=recipe, **{name: value for name, value in named.items() if value is not None})
    return Folder(Path(options.out)), config, options.data


def _resumed(options: TrainOptions) -> tuple[Folder, Config, str]:
    allowed = {"resume", "steps", "device", "threads", "checkpoint_every"}
    for name, value in vars(options).items():
        if name not in allowed and value not in (None, False):
            raise ValueError(f"--{name} can't change on --resume; the run keeps what it was started with")
    folder = Folder(Path(str(options.resume)))
    config, data = folder.read_config()
    done = read_about(folder.state) if folder.state.exists() else {"step": 0, "recipe": vars(config.recipe)}
    step, planned = done["step"], options.steps or done["recipe"]["steps"]
    if options.steps is not None and options.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {options.steps}")
    if step >= planned:
        raise ValueError(f"{folder.path}: finished its {step} steps; train on with --steps {2 * step}")
    minutes = config.recipe.minutes if step == 0 else None
    return folder, replace(config, recipe=replace(config.recipe, steps=planned, minutes=minutes)), data


def _train(folder: Folder, dataset: Dataset, config: Config, device: str, every: float) -> tuple[Model, float]:
    resume = folder.state.exists()
    first = read_about(folder.state)["step"] if resume else 0
    started = time.perf_counter()
    with Progress(folder.path / "log.jsonl", dataset.transform.dim, first) as progress:
        try:
            model = train(
                dataset,
                config,
                device=device,
                callback=progress,
                checkpoint=folder.state,
                checkpoint_every=every,
                resume=resume,
            )
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"stopped; go on with `pathline train --resume {folder.path}`") from stop
    return model, time.perf_counter() - started


def _finish(folder: Folder, model: Model, dataset: Dataset, config: Config, seconds: float) -> dict[str, Measure]:
    """Measures the model, and writes metrics and pictures."""
    print("measuring and drawing", file=sys.stderr)
    seed = config.recipe.seed
    held_out, fresh = dataset.held_out, dataset.train
    measures = evaluate(
        model,
        held_out.rows,
        fresh.rows,
        held_out_condition=held_out.condition,
        fresh_condition=fresh.condition,
        law=dataset.toy,
        seed=seed,
    )
    measures["model_calls"] = Measure(float(model.preset.nfe or 0), None, None, 1)
    measures["training_seconds"] = Measure(round(seconds, 2), None, None, 1)
    folder.write_metrics(measures)
    generator = torch.Generator().manual_seed(seed)
    samples = model.sample(min(3000, max(64, len(held_out))), generator=generator)
    columns = tuple(as_frame(model, samples[:1], None).columns)
    figure = samples_figure(held_out.rows, samples, columns, dataset.shape)
    save_figure(figure, folder.path / "samples.png")
    if model.shape == (2,):
        kinds = dataset.transform.kinds
        axes = [name for name, kind in zip(columns, kinds, strict=True) if kind != "constant"]
        title = dataset.toy.name if dataset.toy else Path(str(dataset.about["file"])).name
        note = f"A flow trained on {dataset.story}. This page holds samples and densities, and no row of the data."
        flow_page(model, (axes[0], axes[1]), title, note, seed).save(folder.path / "flow.html")
    return measures


def _threads(options: TrainOptions, config: Config) -> int:
    if options.threads is None:
        return default_threads(config)
    if options.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {options.threads}")
    return options.threads


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: not to be had here; use --device cpu") from error
