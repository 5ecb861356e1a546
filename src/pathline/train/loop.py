"""`fit`: the training loop."""

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, optim

from pathline import couplings
from pathline.fields import ParametrizedField
from pathline.model import Model
from pathline.objectives import FlowMatching
from pathline.paths import AffinePath
from pathline.train.batches import Augment, MakeCoupling, Purpose, RowBatches, StreamBatches, Streams, stream_seed
from pathline.train.checkpoint import load_state, read_about, save_state
from pathline.train.ema import MovingAverage
from pathline.train.interrupt import HeldBack
from pathline.train.recipe import Recipe
from pathline.train.step import TrainStep
from pathline.typing import Draw

MakeOptimizer = Callable[[Iterable[nn.Parameter]], optim.Optimizer]

_LOOK = 64
_TRIAL = 40


class Step(NamedTuple):
    """What a callback hears after every step.

    Attributes:
        step: steps finished, out of ``steps``.
        loss: mean loss of the batch, a scalar tensor; reading it waits for the device.
    """

    step: int
    steps: int
    loss: Tensor


def fit(
    net: nn.Module,
    data: Tensor | Draw,
    objective: FlowMatching,
    *,
    cond: Mapping[str, Tensor] | None = None,
    weight: Tensor | None = None,
    coupling: MakeCoupling = couplings.independent,
    augment: Augment | None = None,
    recipe: Recipe = Recipe(),
    optimizer: MakeOptimizer | None = None,
    callback: Callable[[Step], None] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 60.0,
    resume: bool = False,
) -> Model:
    """Trains ``net`` in place and returns a `Model` around the moving average of its weights.

    Same seed, steps, machine and threads give the same numbers, bit for bit, also across a resume.

    Args:
        net: ``net(x, t, **cond)``, on the device to train on.
        data: rows ``(n, *d)``, or ``draw(n, generator)`` that streams fresh ones.
        objective: `FlowMatching`, which says what the network predicts.
        cond: conditions by keyword, each ``(n, ...)``, row by row with the data.
        weight: weight of each row's loss, ``(n,)``, with mean one.
        coupling: which source point goes with which row, see `pathline.couplings`.
        augment: a fresh view of rows each time they are seen.
        recipe: steps, batch size, learning rate and the rest.
        optimizer: makes an optimiser of the parameters; the recipe sets its learning rate. AdamW by default.
        callback: called with a `Step` after every step.
        checkpoint: a file to keep the state of the run in.
        checkpoint_every: seconds between two writes of it; it is also written before the first step, after the last
            one and on Ctrl-C, which waits for the end of a step.
        resume: go on from ``checkpoint``.

    Raises:
        ValueError: bad data, a recipe out of range, a state to resume that does not fit or cannot be written.
        RuntimeError: the loss is not finite; the message names the step, and the checkpoint stays a good one.

    >>> from pathline import AffinePath, nets, schedules
    >>> loss = FlowMatching(AffinePath(schedules.linear()))
    >>> fit(nets.MLP(2), torch.randn(100, 2), loss, recipe=Recipe(steps=10)).sample(5).shape
    torch.Size([5, 2])
    """
    recipe.check()
    recipe = recipe.settled()
    cond = dict(cond or {})
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    row = _check_data(data, cond, weight, net, device)
    train_step = TrainStep(net, objective).train()
    make = optimizer or _adamw(recipe)
    streams, size = Streams(recipe.seed, device), recipe.batch_size or 1
    if isinstance(data, Tensor):
        pairs = coupling(data, objective.path.source)
        batches = RowBatches(data, cond, weight, pairs, augment, size, streams)
    else:
        batches = StreamBatches(data, objective.path.source, coupling, size, streams)
    state = Path(checkpoint) if checkpoint is not None else None
    if resume and state is None:
        raise ValueError("resume needs checkpoint, the file to go on from")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if recipe.minutes is not None:
            known = read_about(state)["recipe"]["steps"] if resume and state is not None else None
            recipe = replace(recipe, steps=known or _planned_steps(train_step, batches, make, recipe, streams))
        run = _Run(train_step, batches, make(net.parameters()), recipe, streams, state)
        if resume and state is not None:
            run.step = load_state(state, net, run.optimizer, run.ema)
        run.train(callback, checkpoint_every)
    return _model(net, run.ema, objective, row, recipe)


class _Run:
    """The moving parts of a run and the loop over its steps."""

    def __init__(
        self,
        train_step: TrainStep,
        batches: RowBatches | StreamBatches,
        optimizer: optim.Optimizer,
        recipe: Recipe,
        streams: Streams,
        state: Path | None,
    ) -> None:
        self.train_step, self.batches, self.optimizer = train_step, batches, optimizer
        self.recipe, self.streams, self.state = recipe, streams, state
        self.parameters = [p for p in train_step.parameters() if p.requires_grad]
        self.generators = _own_generators(streams.generator.device)
        self.ema = MovingAverage(train_step.net)
        self.step, self.steps = 0, recipe.steps or 1
        self.highest = recipe.learning_rate or 0.0
        self._recent: list[Tensor] = []
        self._whole = True

    def train(self, callback: Callable[[Step], None] | None, every: float) -> None:
        self.save()
        written = time.monotonic()
        try:
            with HeldBack() as ctrl_c:
                while self.step < self.steps:
                    loss = self.advance()
                    if callback is not None:
                        callback(Step(self.step, self.steps, loss))
                    if ctrl_c.asked:
                        raise KeyboardInterrupt
                    if self.state is not None and time.monotonic() - written > every:
                        self.save()
                        written = time.monotonic()
        except KeyboardInterrupt:
            if self._whole:
                self.save()
            raise
        self.save()

    def advance(self) -> Tensor:
        """One step; returns the mean loss of its batch."""
        self._whole = False
        streams, step = self.streams, self.step
        batch = self.batches.at(step)
        drawn = self.train_step.objective.draw(batch, streams.at(step, Purpose.OBJECTIVE))
        for generator in self.generators:
            generator.manual_seed(stream_seed(streams.seed, step, Purpose.NETWORK))
        loss = self.train_step(drawn).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.highest * self.recipe.rate(step, self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.recipe.decay(step, self.steps))
        self.step += 1
        self._whole = True
        self._recent.append(loss.detach())
        if len(self._recent) >= _LOOK:
            self.check()
        return self._recent[-1] if self._recent else loss.detach()

    def check(self) -> None:
        """Raises RuntimeError where a loss since the last look was not finite."""
        if not self._recent:
            return
        finite = torch.stack(self._recent).isfinite()
        first = self.step - len(self._recent) + 1
        self._recent = []
        if not bool(finite.all()):
            bad = first + int((~finite).int().argmax())
            raise self._diverged("loss is", bad)

    def save(self) -> None:
        """Checks the losses and the weights, then writes the state."""
        self.check()
        if not all(bool(value.isfinite().all()) for value in self.ema.live):
            raise self._diverged("weights are", self.step)
        if self.state is not None:
            about = {"recipe": asdict(self.recipe)}
            save_state(self.state, self.step, about, self.train_step.net, self.optimizer, self.ema)

    def _diverged(self, what: str, step: int) -> RuntimeError:
        kept = f"; {self.state} keeps the last good state" if self.state and self.state.exists() else ""
        remedy = "lower the recipe's learning_rate, or mend the data"
        return RuntimeError(f"the {what} not finite at step {step}: {remedy}{kept}")


def _own_generators(device: torch.device) -> list[torch.Generator]:
    """torch's own generators, which dropout draws from."""
    if device.type != "cuda":
        return [torch.default_generator]
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[index]]


def _adamw(recipe: Recipe) -> MakeOptimizer:
    def make(parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
        return optim.AdamW(parameters, lr=recipe.learning_rate or 0.0, weight_decay=recipe.weight_decay, fused=True)

    return make


def _planned_steps(
    train_step: TrainStep,
    batches: RowBatches | StreamBatches,
    make: MakeOptimizer,
    recipe: Recipe,
    streams: Streams,
) -> int:
    """How many steps fit into the recipe's minutes, by timing a few on a copy."""
    trial = TrainStep(copy.deepcopy(train_step.net), train_step.objective).train()
    run = _Run(trial, batches, make(trial.net.parameters()), recipe, streams, None)
    for _ in range(5):
        run.advance()
    start = time.perf_counter()
    for _ in range(_TRIAL):
        run.advance()
    each = (time.perf_counter() - start) / _TRIAL
    return max(1, round(60 * (recipe.minutes or 0.0) / each))


def _check_data(
    data: Tensor | Draw, cond: Mapping[str, Tensor], weight: Tensor | None, net: nn.Module, device: torch.device
) -> tuple[int, ...]:
    if not isinstance(data, Tensor):
        if not callable(data):
            kind = type(data).__name__
            raise ValueError(f"data must be a tensor of rows or draw(n, generator), got {kind}; see torch.as_tensor")
        if cond or weight is not None:
            raise ValueError("cond and weight belong to fixed rows; a stream has none")
        rows = data(2, torch.Generator(device))
        return tuple(rows.shape[1:])
    if data.ndim == 0 or len(data) < 1 or not data.is_floating_point():
        raise ValueError(f"data must be floating-point rows, got shape {tuple(data.shape)}, {data.dtype}")
    if not bool(data.isfinite().all()):
        raise ValueError("data must be finite; fill in or delete the rows that are not")
    parameters = {p.dtype for p in net.parameters()}
    if data.dtype == torch.float64 and parameters and data.dtype not in parameters:
        raise ValueError("data must not be float64 where the network is not: pass data.float(), or net.double()")
    belonging: dict[str, Any] = {**cond, **({} if weight is None else {"weight": weight})}
    for name, value in belonging.items():
        if len(value) != len(data):
            raise ValueError(f"{name} must have one entry per row of data ({len(data)}), got {len(value)}")
    for name, value in {"data": data, **belonging}.items():
        if value.device.type != device.type:
            raise ValueError(f"{name} must be on the network's device {device}, got {value.device}")
    return tuple(data.shape[1:])


def _model(net: nn.Module, ema: MovingAverage, objective: FlowMatching, row: tuple[int, ...], recipe: Recipe) -> Model:
    averaged = copy.deepcopy(net)
    if recipe.ema:
        ema.copy_to(averaged)
    path = objective.path
    field = ParametrizedField(averaged, path, objective.predicts) if isinstance(path, AffinePath) else averaged
    return Model(field.eval().requires_grad_(False), path, row, about={"recipe": asdict(recipe)})
