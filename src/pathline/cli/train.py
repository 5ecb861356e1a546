"""``pathline train``."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from pathline.cli.folder import KNOWN, Folder, Plan, read_json
from pathline.cli.options import parse
from pathline.cli.progress import Progress
from pathline.cli.table import left_out, measures_table
from pathline.data.tables import split_names
from pathline.diagnosis import diagnose, reference_of
from pathline.diagnostics import Evidence, Reference
from pathline.evaluation import evaluate
from pathline.metrics import Measure
from pathline.model import FILE, Model
from pathline.train.checkpoint import read_about
from pathline.train.config import Config
from pathline.train.dataset import Dataset, Split, open_dataset
from pathline.train.default import PATH, chosen_device, default_threads, settled, threads, train
from pathline.train.recipe import Recipe
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
    _check(options)
    if options.resume is not None:
        folder = Folder(Path(options.resume))
        plan = _resumed(options, folder)
        dataset = _same_dataset(plan)
    else:
        folder, data, config = _fresh(options)
        dataset = open_dataset(data, config)
        plan = _planned(options, data, config, dataset)
        folder.prepare(options.force)
    with folder.locked():
        if options.resume is None:
            folder.clear()
        folder.write_plan(plan)
        seed = plan.config.recipe.seed
        print(f"training on {dataset.story}, {dataset.transform.dim} dimensions", file=sys.stderr)
        with threads(plan.threads):
            known = reference_of(PATH, dataset.transform, dataset.condition, _rows(dataset), dataset.toy, seed)
            model, seconds = _train(folder, dataset, plan, options.checkpoint_every, known)
        model.save(folder.path / FILE)
        measures, evidence = _finish(folder, model, dataset, seed, seconds, known)
    print(measures_table(measures))
    if evidence is not None:
        print(evidence)
    print(f"{folder.path}: {', '.join(sorted(name for name in KNOWN if (folder.path / name).exists()))}")
    return 0


def _check(options: TrainOptions) -> None:
    if options.steps is not None and options.minutes is not None:
        raise ValueError("give --steps or --minutes, not both")
    if options.threads is not None and options.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {options.threads}")
    if not options.checkpoint_every >= 0:
        raise ValueError(f"--checkpoint-every must be 0 seconds or more, got {options.checkpoint_every}")
    Recipe(steps=options.steps, minutes=options.minutes, seed=options.seed or 0).check()


def _fresh(options: TrainOptions) -> tuple[Folder, str, Config]:
    if options.data is None:
        raise ValueError("name the DATA to train on: a file, or a toy such as annulus (see pathline train --help)")
    if options.out is None:
        raise ValueError("name the run's directory: --out DIR")
    config = Config() if options.config is None else _read_config(Path(options.config))
    recipe = config.recipe
    if options.steps is not None or options.minutes is not None:
        recipe = replace(recipe, steps=options.steps, minutes=options.minutes)
    if options.seed is not None:
        recipe = replace(recipe, seed=options.seed)
    named: dict[str, Any] = {"condition": options.condition}
    for name in ("columns", "drop", "positive"):
        text = getattr(options, name)
        named[name] = None if text is None else split_names(text)
    config = replace(config, recipe=recipe, **{name: value for name, value in named.items() if value is not None})
    return Folder(Path(options.out)), options.data, config


def _read_config(file: Path) -> Config:
    """The config in a JSON file, which may be the ``config.json`` of a run."""
    values = read_json(file)
    try:
        return Config.from_dict(values["config"] if isinstance(values, dict) and "config" in values else values)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _planned(options: TrainOptions, data: str, config: Config, dataset: Dataset) -> Plan:
    config = settled(config, dataset.transform.dim, None if dataset.toy else len(dataset.train))
    count = options.threads or default_threads(config)
    return Plan(config, data, dataset.about.get("fingerprint"), chosen_device(options.device), count)


def _resumed(options: TrainOptions, folder: Folder) -> Plan:
    """The run's plan with what the options change of it."""
    allowed = {"resume", "steps", "device", "threads", "checkpoint_every"}
    for name, value in vars(options).items():
        if name not in allowed and value is not None and value is not False:
            what = "DATA" if name == "data" else f"--{name}"
            raise ValueError(f"{what} can't be given with --resume; the run keeps what it was started with")
    plan = folder.read_plan()
    recipe, step = plan.config.recipe, 0
    if folder.state.exists():
        done = read_about(folder.state)
        step, planned = done["step"], recipe.steps if recipe.minutes is None else done["recipe"]["steps"]
        steps = options.steps or planned
        if steps < step or step == steps == folder.measured_steps():
            raise ValueError(f"{folder.path}: has finished {step} steps; train on with --steps {2 * step}")
    if options.steps is not None:
        recipe = replace(recipe, steps=options.steps, minutes=None)
    device, count = chosen_device(options.device or plan.device), options.threads or plan.threads
    return replace(plan, config=replace(plan.config, recipe=recipe), device=device, threads=count)


def _same_dataset(plan: Plan) -> Dataset:
    dataset = open_dataset(plan.data, plan.config)
    if dataset.about.get("fingerprint") != plan.fingerprint:
        raise ValueError(f"{plan.data}: has changed since the run was started; put it back, or start anew with --out")
    return dataset


def _train(folder: Folder, dataset: Dataset, plan: Plan, every: float, known: Reference | None) -> tuple[Model, float]:
    """The model, on the CPU, and the seconds that its training took."""
    importlib.import_module("torch._dynamo")  # the first optimiser imports it, and a second of imports is no training
    resume = folder.state.exists()
    first = read_about(folder.state)["step"] if resume else 0
    floor = None if known is None else known.floor.value
    with Progress(folder.path / "log.jsonl", dataset.transform.dim, first, floor) as progress:
        try:
            model = train(
                dataset,
                plan.config,
                device=plan.device,
                callback=progress,
                checkpoint=folder.state,
                checkpoint_every=every,
                resume=resume,
            )
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"stopped; go on with `pathline train --resume {folder.path}`") from stop
    return replace(model, field=model.field.cpu()), progress.seconds


def _finish(
    folder: Folder, model: Model, dataset: Dataset, seed: int, seconds: float, known: Reference | None
) -> tuple[dict[str, Measure], Evidence | None]:
    """Measures the model, and writes pictures and, last of all, metrics."""
    print("measuring and drawing", file=sys.stderr)
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
    if line := left_out(measures, len(held_out)):
        print(line, file=sys.stderr)
    found = diagnose(model, held_out, fresh, train=_rows(dataset), law=dataset.toy, known=known, seed=seed)
    measures |= found.measures
    measures["model_calls"] = Measure(float(model.preset.nfe or 0), None, None, 1)
    measures["training_steps"] = Measure(float(model.about["steps"]), None, None, 1)
    measures["training_seconds"] = Measure(round(seconds, 2), None, None, 1)
    _draw(folder, model, dataset, seed)
    folder.write_metrics(measures, None if found.evidence is None else str(found.evidence))
    return measures, found.evidence


def _rows(dataset: Dataset) -> Split | None:
    """The rows that are trained on, where it is not a stream."""
    return None if dataset.toy is not None else dataset.train


def _draw(folder: Folder, model: Model, dataset: Dataset, seed: int) -> None:
    """``samples.png``, and ``flow.html`` where two columns vary."""
    held_out, transform = dataset.held_out.rows, dataset.transform
    samples = model.sample(min(3000, max(64, len(held_out))), generator=torch.Generator().manual_seed(seed))
    figure = samples_figure(held_out, samples, transform.columns, dataset.shape)
    save_figure(figure, folder.path / "samples.png")
    if model.shape == (2,):
        pairs = zip(transform.columns, transform.kinds, strict=True)
        x, y = (name for name, kind in pairs if kind != "constant")
        title = dataset.toy.name if dataset.toy else Path(str(dataset.about["file"])).name
        note = f"A flow trained on {dataset.story}. This page holds samples and densities, and no row of the data."
        flow_page(model, (x, y), title, note, seed).save(folder.path / "flow.html")
