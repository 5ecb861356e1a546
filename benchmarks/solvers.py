"""What one model call buys: log-densities on the annulus, work against precision, and the loop beside its peers.

The peers are torchdiffeq, which pathline brings, and flow_matching where it can be imported (it is no dependency;
``pip install --no-deps --target DIR flow_matching`` and PYTHONPATH=DIR do).
"""

import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from common import arguments, finish, interleaved, machine, ratio
from sklearn.datasets import load_digits
from torch import Tensor
from torchdiffeq import odeint

import pathline as pl
from pathline import grids, solvers
from pathline.cli import main as command
from pathline.data.toy import toy
from pathline.metrics import w2
from pathline.typing import Field, Solver

SIGMA_MIN = 0.2
FIRST_SEED = 9000
"""Seeds of the data here. The grids were fitted on others: `eased` on 101 to 105 and 300 to 309, `CORRECTED` on 101 to
106."""
CORRECTED = {"first": 0.6, "last": 0.7, "growth": 1.3}


def annulus(n: int, generator: torch.Generator) -> Tensor:
    """Points with radii uniform in [2, 3]."""
    angle, radius = torch.rand(2, n, generator=generator, dtype=torch.float64)
    return (2 + radius)[:, None] * torch.stack([(2 * math.pi * angle).cos(), (2 * math.pi * angle).sin()], 1)


def problem(seed: int, draws: int) -> tuple[pl.EmpiricalField, Tensor, Tensor]:
    """The exact field of 1,000 points, fresh draws of its p_1, and the density there."""
    generator = torch.Generator().manual_seed(seed)
    field = pl.EmpiricalField(pl.AffinePath(pl.schedules.linear(SIGMA_MIN)), annulus(1000, generator))
    rows = torch.randint(0, 1000, (draws,), generator=generator)
    noise = torch.randn(draws, 2, generator=generator, dtype=torch.float64)
    x1 = field.points[rows] + SIGMA_MIN * noise
    return field, x1, field.log_prob(x1, torch.ones((), dtype=torch.float64))


def densities(figures: dict[str, float], seeds: int, draws: int) -> None:
    """Mean absolute error of the log-density, by solver and calls."""
    path = pl.AffinePath(pl.schedules.linear(SIGMA_MIN))

    def eased(n: int) -> Tensor:
        return grids.eased(n, 1.0, 0.0).flip(0)

    def corrected(n: int) -> Tensor:
        return grids.eased(n - 1, 1.0, 0.0, **CORRECTED).flip(0)

    rows: dict[str, tuple[Callable[[int], Tensor], Solver, pl.AffinePath | None]] = {
        "ab2, corrected": (corrected, solvers.ab2, path),
        "abm, eased grid": (eased, solvers.abm, None),
        "ab3, eased grid": (eased, solvers.ab3, None),
        "abm, uniform grid": (grids.uniform, solvers.abm, None),
        "exponential 3c": (eased, solvers.exponential(path, 3, True), None),
        "rk4, uniform grid": (lambda n: grids.uniform(n // 4), solvers.rk4, None),
        "heun, uniform grid": (lambda n: grids.uniform(n // 2), solvers.heun, None),
    }
    keys = {"ab2, corrected": "log_density", "abm, eased grid": "log_density_flow"}
    budgets = (12, 24, 48)
    problems = [problem(FIRST_SEED + i, draws) for i in range(seeds)]
    print(f"\nmean |error of log p_1| at {draws} draws of p_1: mean over {seeds} data sets (worst), by calls")
    print(f"{'':20s}" + "".join(f"{n:>22d}" for n in budgets))
    for name, (spacing, solver, known) in rows.items():
        cells = []
        for n in budgets:
            errors = []
            for field, x1, exact in problems:
                result = pl.log_prob(field, x1, path=known, grid=spacing(n), solver=solver, with_error=False)
                assert result.nfe == n
                errors.append(float((result.value - exact).abs().mean()))
            mean, worst = statistics.mean(errors), max(errors)
            cells.append(f"{mean:12.2e} ({worst:.1e})")
            if name in keys:
                figures |= {f"{keys[name]}_{n}": mean, f"{keys[name]}_{n}_worst": worst}
        print(f"{name:20s}" + "".join(cells))


def precision(figures: dict[str, float], draws: int) -> None:
    """RMSE of samples to the converged solution, by solver and calls."""
    field, _, _ = problem(FIRST_SEED, 1)
    x0 = torch.randn(draws, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = pl.solve(field, x0, grids.uniform(200), solvers.rk4).x
    rows: dict[str, tuple[Solver, Callable[[int], Tensor]]] = {
        name: (solver, grids.uniform) for name, solver in solvers.NAMED.items() if solver.calls is not None
    }
    rows["abm, eased"] = (solvers.abm, grids.eased)
    for order in (2, 3):
        rows[f"exponential{order}"] = (solvers.exponential(field.path, order), grids.uniform)
        rows[f"exponential{order}c"] = (solvers.exponential(field.path, order, True), grids.uniform)
    budgets = (4, 8, 12, 24, 48)
    print(f"\nRMSE to the converged samples of the annulus field, {draws} noises, by calls")
    print(f"{'':20s}" + "".join(f"{n:>12d}" for n in budgets))
    for name, (solver, grid) in rows.items():
        cells = []
        for n in budgets:
            steps, rest = divmod(n, solver.calls or 1)
            if rest:
                cells.append(f"{'-':>12s}")
                continue
            error = float((pl.solve(field, x0, grid(steps), solver).x - exact).square().mean().sqrt())
            cells.append(f"{error:12.2e}")
            if n == 8:
                figures[f"rmse_8_{name.replace(', ', '_')}"] = error
        print(f"{name:20s}" + "".join(cells))


def trained(name: str, steps: str) -> pl.Model:
    """The model of a default run on a toy or the digits, kept in the temporary folder for the next time."""
    folder = Path(tempfile.gettempdir()) / f"pathline-benchmarks-{steps}" / name
    if not (folder / "model.safetensors").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        data = name
        if name == "digits":
            data = str(folder.parent / "digits.npy")
            np.save(data, load_digits().images.astype(np.uint8))
        with torch.enable_grad():
            assert command(["train", data, "--out", str(folder), "--steps", steps, "--force"]) == 0
    return pl.load(folder)


def best_untuned(field: Field, path: pl.AffinePath, nfe: int, x0: Tensor, end: Tensor) -> dict[str, tuple[float, str]]:
    """The least mean and the least median distance over the listed solvers and grids that spend ``nfe``."""
    best = {"mean": (math.inf, ""), "median": (math.inf, "")}
    for name, (solver, spacing) in solvers.untuned(path, nfe).items():
        for steps in (nfe // (solver.calls or 1), nfe // (solver.calls or 1) + 1):
            try:
                solution = pl.solve(field, x0, spacing(steps), solver)
            except ValueError:  # too few steps for this grid
                continue
            if solution.nfe == nfe:
                away = distances(solution.x, end)
                best = {key: min(best[key], (float(getattr(away, key)()), name)) for key in best}
    return best


def distances(x: Tensor, end: Tensor) -> Tensor:
    """RMSE of every row."""
    return (x - end).double().flatten(1).square().mean(1).sqrt()


@torch.no_grad()
def tuning(figures: dict[str, float], quick: bool) -> None:
    """Tuned solvers beside the best untuned ones, on noises that tuning has not seen."""
    path = pl.AffinePath(pl.schedules.linear(SIGMA_MIN))
    generator = torch.Generator().manual_seed(7)
    mixture = pl.GaussianMixtureField(path, 2 * torch.randn(6, 2, generator=generator), torch.full((6,), 0.3))
    exact = {"mixture": mixture, "annulus": pl.EmpiricalField(path, annulus(100 if quick else 1000, generator))}
    names = ["eight-gaussians"] if quick else ["eight-gaussians", "checkerboard", "digits"]
    models = {name: trained(name, "500" if quick else "3000" if name == "digits" else "5000") for name in names}
    print("\nRMSE to the converged solution on fresh noises, mean (median); best of the listed untuned solvers, tuned")
    print(f"{'':18s}{'calls':>6s}{'untuned':>22s}{'tuned':>22s}{'ratios':>16s}{'seconds':>9s}  untuned solver")
    for name in [*exact, *models]:
        field: Field = exact[name] if name in exact else models[name].field
        shape = (2,) if name in exact else models[name].shape
        dtype = torch.float64 if name in exact else torch.float32
        flow = path if name in exact else models[name].path
        assert isinstance(flow, pl.AffinePath)
        x0 = torch.randn(1000, *shape, generator=torch.Generator().manual_seed(99), dtype=dtype)
        end = pl.solve(field, x0, grids.uniform(100), solvers.rk4).x
        for nfe in (4, 8):
            start = time.perf_counter()
            seed = torch.Generator().manual_seed(nfe)
            if name in exact:
                noise = torch.randn(256 if quick else 768, 2, generator=seed, dtype=dtype)
                learned = solvers.tune(field, flow, nfe, noise)
            else:
                models[name] = models[name].tune(nfe, generator=seed)
                learned = models[name].tuned[nfe]
            seconds = time.perf_counter() - start
            away = distances(pl.solve(field, x0, learned.grid, learned).x, end)
            mean, median = float(away.mean()), float(away.median())
            best = best_untuned(field, flow, nfe, x0, end)
            ratios = mean / best["mean"][0], median / best["median"][0]
            key = name.replace("-", "_")
            figures |= {f"tuned_{nfe}_{key}": ratios[0], f"tuned_{nfe}_{key}_median": ratios[1]}
            figures |= {f"tuned_{nfe}_{key}_seconds": seconds}
            print(
                f"{name:18s}{nfe:6d}{best['mean'][0]:12.2e} ({best['median'][0]:.1e}){mean:12.2e} ({median:.1e})"
                f"{ratios[0]:8.2f} ({ratios[1]:.2f}){seconds:9.0f}  {best['mean'][1]}"
            )
    for name in names:
        if name != "digits":
            to_data(figures, name, models[name])


def to_data(figures: dict[str, float], name: str, model: pl.Model) -> None:
    """W2 to the law at 8 tuned and at 200 calls from the same noise, in shares of the floor."""
    law, key = toy(name), name.replace("-", "_")
    noise = pl.sources.StandardNormal().sobol((2048, 2), 0)
    real, other = law.sobol(2048, 1), law.sobol(2048, 2)
    few, many = (w2(model.sample(x0=noise, nfe=nfe), real) for nfe in (8, 200))
    floor = w2(other, real)
    print(f"{name}: W2 {few:.4f} at 8 tuned calls, {many:.4f} at 200, floor {floor:.4f}")
    figures[f"w2_8_over_200_{key}"] = (few - many) / floor


def timed(run: Callable[[], Tensor], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def peers(figures: dict[str, float], repeats: int) -> None:
    """One solve beside the peers' on the same network, grid and method."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2))
    x0, grid = torch.randn(256, 2), grids.uniform(16)
    times = grid.float()

    def field(x: Tensor, t: Tensor, /) -> Tensor:
        return net(torch.cat([x, t[:, None]], 1))

    def plain(t: Tensor, x: Tensor) -> Tensor:
        return field(x, t.expand(len(x)))

    print("\nmilliseconds a solve, 16 steps of a small network, batch 256; medians, in turn")
    for name, solver in {"midpoint": solvers.midpoint, "rk4": solvers.rk4}.items():
        theirs = "rk4_classic" if name == "rk4" else name
        runs = {
            "pathline": lambda solver=solver: timed(lambda: pl.solve(field, x0, grid, solver).x, 5),
            "torchdiffeq": lambda name=name: timed(lambda: odeint(plain, x0, times, method=name)[-1], 5),  # pyright: ignore
        }
        if shutil.which("g++") is not None:
            runs["compiled"] = lambda solver=solver: timed(_compiled(solver, field, x0, times), 5)
        facebook = _facebook(field, x0, times, name)
        if facebook is not None:
            runs["flow_matching"] = lambda facebook=facebook: timed(facebook, 5)
        with torch.no_grad():
            seconds = interleaved(runs, repeats)
        for peer in runs:
            extra = "" if peer == "pathline" else f"   pathline takes {ratio(seconds, 'pathline', peer):.2f} of it"
            print(f"{theirs:12s}{peer:16s}{1e3 * statistics.median(seconds[peer]):8.2f}{extra}")
            if peer != "pathline":
                figures[f"{name}_time_{peer}"] = ratio(seconds, "pathline", peer)


@lru_cache
def _compiled(solver: solvers.Tableau, field: Callable[..., Tensor], x0: Tensor, times: Tensor) -> Callable[[], Tensor]:
    """A loop over one compiled step."""

    def whole(x: Tensor, t: Tensor) -> Tensor:
        return field(x, t.expand(len(x)))

    step = torch.compile(lambda x, t, s: solver.step(whole, x, t, s), fullgraph=True)

    def run() -> Tensor:
        x = x0
        for t, s in pairwise(times):
            x = step(x, t, s)
        return x

    return run


def _facebook(field: Callable[..., Tensor], x0: Tensor, times: Tensor, name: str) -> Callable[[], Tensor] | None:
    try:
        from flow_matching.solver import ODESolver  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return field(x, t.expand(len(x)))

    solver = ODESolver(velocity_model=velocity)
    return lambda: solver.sample(x_init=x0, time_grid=times, method=name, step_size=None)


def main() -> None:
    options = arguments("Solvers: error for calls, and time beside the peers.")
    torch.manual_seed(0)
    print(machine())
    figures: dict[str, float] = {}
    densities(figures, 2 if options.quick else 10, 300 if options.quick else 1000)
    precision(figures, 200 if options.quick else 1000)
    tuning(figures, options.quick)
    peers(figures, 9 if options.quick else 41)
    finish("solvers", figures, options.check)


if __name__ == "__main__":
    main()
