"""Model: what training leaves behind. It samples, scores, and is one safetensors file."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pathline import nets, schedules, solvers, typing
from pathline.fields import ParametrizedField
from pathline.files import read_tensors, write_tensors
from pathline.likelihood import LogProb, log_prob
from pathline.paths import AffinePath
from pathline.solvers import Tuned, TuneStep
from pathline.sources import StandardNormal
from pathline.transforms import ConditionTransform, Identity, TableTransform

FILE = "model.safetensors"
FORMAT = 1
_KEY = "pathline"
_ABOUT = ("net", "predicts", "schedule", "shape", "transform", "condition", "preset", "about")
_NUMBERS = 2**21
_NOISES, _LEAST_NOISES = 5_120, 320
"""Noises that a solver is tuned on; fewer than the first where a row has more than 6 numbers."""
_LEAST_CONVERGED, _FINER = 64, 4
"""Calls that stand for the converged solution: no fewer than the first, and the second times those spent."""


@dataclass(frozen=True)
class Preset:
    """How a model is sampled unless told otherwise: a shipped solver on uniform steps, and its number of calls.

    Attributes:
        solver: a name in `pathline.solvers.NAMED`.
        nfe: model calls per sample; ``None`` for an adaptive solver.
    """

    solver: str = "rk4"
    nfe: int | None = 64

    def check(self) -> None:
        """Raises ValueError for an unknown solver, or model calls that a velocity network can't spend with it."""
        if self.solver not in solvers.NAMED:
            raise ValueError(f"solver must be one of {', '.join(solvers.NAMED)}, got {self.solver!r}")
        solver = solvers.NAMED[self.solver]
        if self.nfe is not None:
            solvers.grid_for(self.nfe, solver, nn.Identity())
        elif solver.calls is not None:
            raise ValueError(f"nfe must be a number of model calls for {self.solver}, got None")


@dataclass(frozen=True)
class Model:
    """A velocity field with its path, its units and its solver.

    Attributes:
        field: the field in network units, ``field(x, t, **cond)``.
        path: the path that it was trained on; its source is where samples start.
        shape: shape of one row in network units.
        transform: from the user's rows to network units and back.
        condition: the condition column's units, or ``None``.
        preset: how it is sampled.
        about: how it came to be, as JSON values.
        tuned: solvers learned for it, by their number of calls.
    """

    field: nn.Module
    path: typing.Path
    shape: tuple[int, ...]
    transform: Identity | TableTransform = dataclasses.field(default_factory=Identity)
    condition: ConditionTransform | None = None
    preset: Preset = dataclasses.field(default_factory=Preset)
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tuned: Mapping[int, Tuned] = dataclasses.field(default_factory=dict)

    @torch.no_grad()
    def sample(
        self,
        n: int | None = None,
        *,
        x0: Tensor | None = None,
        cond: Mapping[str, Tensor] | None = None,
        nfe: int | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Draws rows in the user's units, shape ``(n, ...)``.

        Args:
            n: how many rows; or
            x0: the source points to push through the flow, in order, shape ``(n, *shape)``.
            cond: conditions by keyword, each ``(n, ...)``; by default drawn as in the training data.
            nfe: model calls, instead of the preset's; `method` says which solver and grid spend them.
            generator: for the source and the conditions.
            callback: called as ``callback(done, steps)`` after every step of every part of the rows.

        Raises:
            ValueError: neither or both of n and x0, n or nfe below 1, conditions that are missing or not one for each
                row.
        """
        x0, cond = self._begun(n, x0, cond, generator)
        return torch.cat([self.transform.inverse(z) for z in self._ends(x0, cond, *self.method(nfe), callback)])

    def noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """The source points that `sample` starts from, shape ``(n, *shape)``.

        Raises:
            ValueError: n below 1.
        """
        return self._starts(n, None, generator)

    def method(self, nfe: int | None = None) -> tuple[typing.Solver, Tensor]:
        """The solver and the time grid that `sample` takes for as many calls.

        The one tuned for them; else, at the preset's calls (``None``), the preset's; else `solvers.method_for`'s.

        Raises:
            ValueError: nfe below 1, or calls that cannot be spent on this field.
        """
        calls = self.preset.nfe if nfe is None else nfe
        own = solvers.NAMED[self.preset.solver]
        if calls is None:
            return own, torch.tensor([0.0, 1.0])
        if calls in self.tuned:
            return self.tuned[calls], self.tuned[calls].grid
        if calls != self.preset.nfe:
            return solvers.method_for(calls, self.field)
        return own, solvers.grid_for(calls, own, self.field)

    @torch.no_grad()
    def solver_error(
        self,
        n: int | None = None,
        *,
        x0: Tensor | None = None,
        cond: Mapping[str, Tensor] | None = None,
        nfe: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        r"""How far each row that `sample` draws ends from the converged solution of its source point, shape ``(n,)``.

        $\sqrt{\frac1d \sum_j (z_j - z^*_j)^2}$ in network units (standard deviations of the data), float64: z is the
        end of `method`, z* that of 4 times as many calls and at least 64, whose own error is about a hundredth of it,
        or rounding. It says nothing of the network's error. A few hundred rows tell the mean to about a tenth.

        Args:
            n, x0, cond, nfe, generator: as for `sample`.

        Raises:
            ValueError: as `sample`.
        """
        x0, cond = self._begun(n, x0, cond, generator)
        solver, grid = self.method(nfe)
        many = max(_LEAST_CONVERGED, _FINER * (len(grid) - 1) * (solver.calls or _LEAST_CONVERGED))
        methods = (solver, grid), solvers.method_for(many, nn.Identity())
        end, converged = (torch.cat(list(self._ends(x0, cond, *method))) for method in methods)
        return (end - converged).double().reshape(len(end), -1).square().mean(1).sqrt()

    def tune(
        self,
        nfe: int,
        *,
        generator: torch.Generator | None = None,
        callback: Callable[[TuneStep], None] | None = None,
    ) -> "Model":
        """The model with a solver learned for ``nfe`` calls, which `sample` then takes; see `pathline.solvers.tune`.

        Args:
            nfe: model calls per sample.
            generator: for the noises and conditions that it is learned on.
            callback: called after every step.

        Raises:
            ValueError: nfe below 1; a path that is not affine.
        """
        if not isinstance(self.path, AffinePath):
            raise ValueError(f"path must be affine for a solver to be tuned, got {type(self.path).__name__}")
        count = max(_LEAST_NOISES, min(_NOISES, 2**15 // max(1, int(np.prod(self.shape)))))
        x0 = self._starts(count, None, generator)
        cond = self._conditions(count, generator)
        learned = solvers.tune(self.field, self.path, nfe, x0, cond=cond, callback=callback)
        return replace(self, tuned={**self.tuned, nfe: learned})

    def log_prob(
        self,
        x: Tensor,
        *,
        cond: Mapping[str, Tensor] | None = None,
        draws: int = 1,
        probes: int | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Log-density of rows in nats, in the user's units, shape ``(n,)``.

        Arguments and errors are those of `log_prob_with_error`, whose value it is, at two thirds of the calls.
        """
        return self._log_probs(x, cond or {}, draws, probes, generator, callback, with_error=False).value

    def log_prob_with_error(
        self,
        x: Tensor,
        *,
        cond: Mapping[str, Tensor] | None = None,
        draws: int = 1,
        probes: int | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[[int, int], None] | None = None,
    ) -> LogProb:
        """Log-density of rows in nats, in the user's units, with the solver's error and the standard error.

        Of several draws, se is taken over them (``None`` for one draw with the exact trace or a single probe), error is
        their mean, nfe all calls for a row and x0 the last one's.

        Args:
            x: rows in the user's units.
            cond: conditions by keyword, each ``(n, ...)``.
            draws: dequantisations to average the log-density over, where columns are of integers or decimals.
            probes: Hutchinson probes; ``None`` takes the exact trace.
            generator: for dequantisation and probes.
            callback: called as ``callback(done, rows)`` as rows are done.

        Raises:
            ValueError: a conditional model without conditions, or not one for each row; no rows, or rows of the wrong
                shape; draws below 1.
        """
        return self._log_probs(x, cond or {}, draws, probes, generator, callback, with_error=True)

    def save(self, path: str | Path) -> None:
        """Writes the model to ``path``, one safetensors file; the same model gives the same bytes.

        Raises:
            ValueError: the file cannot be written.
        """
        about = {
            "format": FORMAT,
            "net": self._net_config(),
            "predicts": getattr(self.field, "predicts", None),
            "schedule": self._schedule_config(),
            "shape": list(self.shape),
            "transform": self.transform.to_dict() if isinstance(self.transform, TableTransform) else None,
            "condition": self.condition.to_dict() if self.condition else None,
            "preset": asdict(self.preset),
            "about": dict(self.about),
            "tuned": [self.tuned[nfe].to_dict() for nfe in sorted(self.tuned)],
        }
        write_tensors(path, self.field.state_dict(), _KEY, about)

    def _begun(
        self, n: int | None, x0: Tensor | None, cond: Mapping[str, Tensor] | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Source points and a condition for each, drawn where they are not given."""
        x0 = self._starts(n, x0, generator)
        cond = self._conditions(len(x0), generator) if cond is None else cond
        self._check_cond(cond, len(x0))
        return x0, cond

    def _ends(
        self,
        x0: Tensor,
        cond: Mapping[str, Tensor],
        solver: typing.Solver,
        grid: Tensor,
        callback: Callable[[int, int], None] | None = None,
    ) -> Iterator[Tensor]:
        """Where the flow takes the source points, in network units, one part of the rows after another."""
        rows = max(1, _NUMBERS // max(1, x0[0].numel()) // 16)
        steps = len(grid) - 1
        every = steps * -(-len(x0) // rows)
        for part, first in enumerate(range(0, len(x0), rows)):

            def tell(step: int, t: float, x: Tensor, before: int = steps * part) -> None:
                if callback is not None:
                    callback(before + step, every)

            some = {key: value[first : first + rows] for key, value in cond.items()}
            yield solvers.solve(self.field, x0[first : first + rows], grid, solver, cond=some, callback=tell).x

    def _starts(self, n: int | None, x0: Tensor | None, generator: torch.Generator | None) -> Tensor:
        if (n is None) == (x0 is None):
            raise ValueError("give either n, a number of rows, or x0, the points to start from")
        weight = next(self.field.parameters(), torch.zeros(()))
        if x0 is None:
            if n is None or n < 1:
                raise ValueError(f"n must be at least 1, got {n}")
            device = weight.device if generator is None else generator.device
            return self.path.source.sample((n, *self.shape), generator, weight.dtype, device).to(weight.device)
        if len(x0) == 0 or tuple(x0.shape[1:]) != self.shape:
            raise ValueError(f"x0 must be rows of shape {self.shape}, at least one, got {tuple(x0.shape)}")
        return x0.to(weight)

    def _conditions(self, n: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        if self.condition is None:
            return {}
        encoded = self.condition.encode(self.condition.draw(n, generator))
        return {"condition": encoded.to(next(self.field.parameters()))}

    def _check_cond(self, cond: Mapping[str, Tensor], n: int) -> None:
        if self.condition is not None and "condition" not in cond:
            raise ValueError(f"cond must hold condition: this model is conditional on {self.condition.name}")
        for name, value in cond.items():
            if len(value) != n:
                raise ValueError(f"cond must have one entry for each of {n} rows, got {len(value)} of {name}")

    def _log_probs(
        self,
        x: Tensor,
        cond: Mapping[str, Tensor],
        draws: int,
        probes: int | None,
        generator: torch.Generator | None,
        callback: Callable[[int, int], None] | None,
        with_error: bool,
    ) -> LogProb:
        if x.ndim == 0 or len(x) == 0 or draws < 1:
            raise ValueError(f"x must have at least one row and draws be at least 1, got {tuple(x.shape)} and {draws}")
        self._check_cond(cond, len(x))
        rows = max(1, _NUMBERS // max(1, int(np.prod(self.shape))) // 64)
        parts = []
        for first in range(0, len(x), rows):
            some = {key: value[first : first + rows] for key, value in cond.items()}
            part = x[first : first + rows]
            parts.append(_mean([self._log_prob(part, some, probes, generator, with_error) for _ in range(draws)]))
            if callback is not None:
                callback(min(first + rows, len(x)), len(x))
        value, x0 = torch.cat([part.value for part in parts]), torch.cat([part.x0 for part in parts])
        error, se = _joined([part.error for part in parts]), _joined([part.se for part in parts])
        return LogProb(value, error, se, x0, parts[0].nfe)

    def _log_prob(
        self,
        x: Tensor,
        cond: Mapping[str, Tensor],
        probes: int | None,
        generator: torch.Generator | None,
        with_error: bool,
    ) -> LogProb:
        z, log_abs_det = self.transform.forward(x, generator)
        if tuple(z.shape[1:]) != self.shape:
            raise ValueError(f"x must have rows of shape {self.shape}, got {tuple(x.shape)}")
        weight = next(self.field.parameters(), z)
        with torch.no_grad():
            begin = getattr(self.field, "open_ends", {}).get(1.0, 1.0)
            result = log_prob(
                self.field,
                z.to(weight),
                source=self.path.source,
                begin=begin,
                probes=probes,
                with_error=with_error,
                cond=cond,
                generator=_generator_on(weight.device, generator),
            )
        return replace(result, value=result.value.to(log_abs_det) + log_abs_det)

    def _net_config(self) -> dict[str, Any] | None:
        net = self.field.net if isinstance(self.field, ParametrizedField) else self.field
        if type(net) not in nets.SHIPPED.values():
            return None
        return {"kind": type(net).__name__, **net.config}  # pyright: ignore[reportGeneralTypeIssues]

    def _schedule_config(self) -> dict[str, Any] | None:
        path = self.path
        if not isinstance(path, AffinePath) or not isinstance(path.source, StandardNormal):
            return None
        if path.schedule.name not in schedules.SHIPPED:
            return None
        return {"name": path.schedule.name, **path.schedule.options}


def _mean(draws: list[LogProb]) -> LogProb:
    """Over dequantisations of the same rows."""
    values = torch.stack([one.value for one in draws])
    errors = [one.error for one in draws if one.error is not None]
    error = torch.stack(errors).mean(0) if errors else None
    se = draws[0].se if len(draws) == 1 else (values.std(0) / len(draws) ** 0.5).nan_to_num(0.0)  # all -inf: certain
    return LogProb(values.mean(0), error, se, draws[-1].x0, sum(one.nfe for one in draws))


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None


def load(
    where: str | Path, *, net: nn.Module | None = None, path: typing.Path | None = None, device: str = "cpu"
) -> Model:
    """The model in a run's directory or a ``.safetensors`` file.

    Args:
        where: the directory of a run, or the file itself.
        net: the network, where it is one of your own; its keys and shapes are checked.
        path: the path, where it is not a shipped schedule from standard normal noise.
        device: where to put it.

    Raises:
        ValueError: no model there, a file that is not one of pathline's or is cut short, a network or path that
            must be passed and was not, or one that does not fit.
    """
    file = Path(where) / FILE if Path(where).is_dir() else Path(where)
    about, tensors = _read(file)
    flow = path or _flow_path(file, about)
    own = net or _net(file, about).to(next(iter(tensors.values())).dtype)
    predicts = about["predicts"]
    field: nn.Module = ParametrizedField(own, flow, predicts) if isinstance(flow, AffinePath) and predicts else own
    try:
        field.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{file}: net does not fit the weights: {' '.join(str(error).split())[:300]}") from error
    transform = TableTransform.from_dict(about["transform"]) if about["transform"] else Identity()
    condition = ConditionTransform.from_dict(about["condition"]) if about["condition"] else None
    field = field.to(device).eval().requires_grad_(False)
    preset, shape = Preset(**about["preset"]), tuple(about["shape"])
    tuned = {len(values["times"]): Tuned.from_dict(values) for values in about.get("tuned", [])}
    return Model(field, flow, shape, transform, condition, preset, about["about"], tuned)


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not file.exists():
        raise ValueError(f"{file}: no model there; give the directory of a finished `pathline train` run")
    try:
        about, tensors = read_tensors(file, _KEY)
    except ValueError as error:
        raise ValueError(f"{error}; train the model or copy it again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT or not set(_ABOUT) <= set(about):
        raise ValueError(f"{file}: is not of format {FORMAT}, which this version of pathline reads; train it again")
    return about, tensors


def _flow_path(file: Path, about: Mapping[str, Any]) -> AffinePath:
    if about["schedule"] is None:
        raise ValueError(f"{file}: was trained on a path of its own; pass it as load(..., path=...)")
    return AffinePath(schedules.named(**about["schedule"]))


def _net(file: Path, about: Mapping[str, Any]) -> nn.Module:
    if about["net"] is None:
        raise ValueError(f"{file}: holds a network of its own kind; pass it as load(..., net=...)")
    options = dict(about["net"])
    kind = options.pop("kind")
    if kind not in nets.SHIPPED:
        raise ValueError(f"{file}: holds a {kind}, which this version does not have; pass it as load(..., net=...)")
    return nets.SHIPPED[kind](**options)


def _generator_on(device: torch.device, generator: torch.Generator | None) -> torch.Generator | None:
    """The generator itself, or one seeded by it where it lives on another device."""
    if generator is None or generator.device.type == device.type:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return torch.Generator(device).manual_seed(seed)
