"""The default network and objective, trained on a `Dataset`: what the command line and `FlowMatcher` share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pathline.model import Model
from pathline.nets import MLP
from pathline.objectives import FlowMatching, stratified
from pathline.paths import AffinePath
from pathline.schedules import linear
from pathline.train.batches import Augment
from pathline.train.config import Config
from pathline.train.dataset import Dataset
from pathline.train.loop import Step, fit
from pathline.transforms import TableTransform
from pathline.typing import Draw

PATH = AffinePath(linear())
STEPS = 5_000
_WIDTHS = ((8, 64), (16, 128), (128, 256))


def train(
    dataset: Dataset,
    config: Config,
    *,
    device: str = "cpu",
    callback: Callable[[Step], None] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 60.0,
    resume: bool = False,
) -> Model:
    """Trains the default network on standardised rows and returns a `Model` in the user's units.

    See `pathline.fit` for the arguments and the errors.
    """
    condition, dim = dataset.condition, dataset.transform.dim
    config = settled(config, dim, None if dataset.toy else len(dataset.train))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.recipe.seed)
        net = MLP(dim, config.width or 0, config.depth, condition.width if condition else 0)
    cond = {}
    if condition is not None and dataset.train.condition is not None:
        cond = {"condition": condition.encode(dataset.train.condition).to(device)}
    data, augment = _data(dataset, config.recipe.seed, device)
    model = fit(
        net.to(device),
        data,
        FlowMatching(PATH, times=stratified),
        cond=cond,
        augment=augment,
        recipe=config.recipe,
        callback=callback,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=resume,
    )
    about = {
        "config": config.to_dict(),
        "data": dict(dataset.about),
        "dtypes": dict(dataset.dtypes),
        "shape": list(dataset.shape) if dataset.shape else None,
        "steps": model.about["recipe"]["steps"],
    }
    return replace(model, transform=dataset.transform, condition=condition, preset=config.preset, about=about)


def settled(config: Config, dim: int, rows: int | None) -> Config:
    """The config with all that it leaves open chosen for ``rows`` rows (``None``: a stream) of ``dim`` numbers.

    Width 64 up to 8 numbers, 128 up to 16, 256 up to 128, then 512; batches of 1024, 512 or 256 rows and a learning
    rate of 1.5e-2 * 64 / width to match; 5,000 steps, or 500 passes over the rows where that is less, at least 500.
    The measurements behind it are in docs/experiments.md.
    """
    width = config.width or next((w for most, w in _WIDTHS if dim <= most), 512)
    batch = {64: 1024, 128: 512}.get(width, 256)
    if rows is not None:
        batch = min(batch, max(32, rows))
    steps = STEPS if rows is None else min(STEPS, max(500, 500 * rows // batch))
    recipe = config.recipe.settled(steps, batch, 1.5e-2 * 64 / width)
    return replace(config, width=width, recipe=recipe)


def _data(dataset: Dataset, seed: int, device: str) -> tuple[Tensor | Draw, Augment | None]:
    transform, law = dataset.transform, dataset.toy
    if law is not None:

        def draw(n: int, generator: torch.Generator | None) -> Tensor:
            return transform.forward(law.sample(n, generator, torch.float64))[0].float().to(device)

        return draw, None
    rows = dataset.train.rows.to(device)
    fixed = transform.forward(rows, torch.Generator(device).manual_seed(seed))[0].float()
    return fixed, _dequantise(transform, rows) if transform.dequantises else None


def _dequantise(transform: TableTransform, rows: Tensor) -> Augment:
    def fresh(x1: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
        return transform.forward(rows[index], generator)[0].to(x1.dtype)

    return fresh


@contextmanager
def threads(count: int) -> Iterator[None]:
    """CPU threads for the length of a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def default_threads(config: Config) -> int:
    """CPU threads for a settled config: at most two for narrow networks, else all that torch would take.

    Two threads take 0.65 to 0.75 of one thread's seconds at every width, see docs/experiments.md.
    """
    return min(2, torch.get_num_threads()) if (config.width or 0) <= 128 else torch.get_num_threads()


def chosen_device(device: str | None) -> str:
    """The device asked for; for ``None`` a GPU if there is one, else the CPU.

    Raises:
        ValueError: the device is not to be had here.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be one that torch has here, such as cpu, got {name!r}") from error
    return name
