"""What log-densities cost: traces in forward evaluations, memory, `log_prob` beside flow_matching's at equal error."""

import math
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from common import arguments, finish, interleaved, machine, ratio
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import pathline as pl
from pathline.likelihood import divergence
from pathline.likelihood.trace import draw_probes, stochastic

BATCH = 256
PER_DIMENSION = 1e-4
"""Nats of solver error a dimension at which contenders are compared."""

WHO = ("pathline", "flow_matching")


def network(d: int) -> nn.Module:
    """The default network with weights of an ordinary size in its last layer."""
    torch.manual_seed(0)
    net = pl.nets.MLP(d)
    nn.init.normal_(net.leave.weight, std=0.1)
    return net


def seconds(run: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times


@torch.no_grad()
def trace_calls(d: int, repeats: int, probes: int | None = None, batch: int = BATCH) -> float:
    """Time of velocity and trace over that of one forward evaluation."""
    net, x, t = network(d), torch.randn(batch, d), torch.tensor(0.3).expand(batch)
    if probes is None:
        traced: Callable[..., object] = partial(divergence, net)
    else:
        traced = stochastic(net, draw_probes(x, probes, "rademacher", torch.Generator().manual_seed(0)))
    runs = {
        "trace": lambda: seconds(lambda: traced(x, t), 3),
        "forward": lambda: seconds(lambda: net(x, t), 20),
    }
    return ratio(interleaved(runs, repeats), "trace", "forward")


@torch.no_grad()
def peak_bytes(steps: int) -> int:
    net, x1 = network(8), torch.randn(BATCH, 8)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        pl.log_prob(net, x1, grid=pl.grids.uniform(steps))
    now = most = 0
    events = found.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
            most = max(most, now)
    return most


def ours(net: nn.Module, x1: Tensor, probes: int | None, solver: pl.typing.Solver, steps: int) -> Tensor:
    grid, generator = pl.grids.uniform(steps), torch.Generator().manual_seed(0)
    with torch.no_grad():
        return pl.log_prob(
            net, x1, grid=grid, solver=solver, probes=probes, with_error=False, generator=generator
        ).value


def theirs(net: nn.Module, x1: Tensor, probes: int | None, method: str, steps: int) -> Tensor:
    from flow_matching.solver import ODESolver  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    solver = ODESolver(velocity_model=lambda x, t: net(x, t.expand(len(x))))
    _, value = solver.compute_likelihood(
        x_1=x1,
        log_p0=pl.sources.StandardNormal().log_prob,
        step_size=1 / steps,
        method=method,
        exact_divergence=probes is None,
    )
    return value


def fewest_steps(run: Callable[[int], Tensor], reference: Tensor, tolerance: float) -> tuple[int, float]:
    """The fewest steps whose mean error is within the tolerance, and that error."""
    steps, error = 0, math.inf
    while error > tolerance and steps < 64:
        steps += 1 if steps < 8 else 2 if steps < 16 else 8
        error = float((run(steps) - reference).abs().mean())
    return steps, error


def beside_the_peer(shape: tuple[int, ...], rows: int, repeats: int) -> float:
    """Our time over theirs, each at the fewest steps of its better method."""
    d = math.prod(shape)
    net, x1 = network(d), torch.randn(rows, *shape)
    probes = None if d <= 64 else 1
    runs: dict[str, Callable[[int], Tensor]] = {
        "pathline midpoint": partial(ours, net, x1, probes, pl.solvers.midpoint),
        "pathline rk4": partial(ours, net, x1, probes, pl.solvers.rk4),
        "flow_matching midpoint": partial(theirs, net, x1, probes, "midpoint"),
        "flow_matching rk4": partial(theirs, net, x1, probes, "rk4"),
    }
    fine = {who: runs[f"{who} rk4"](48) for who in (WHO if probes else WHO[:1])}  # each draws its own probe
    found = {
        name: fewest_steps(run, fine.get(name.split()[0], fine["pathline"]), PER_DIMENSION * d)
        for name, run in runs.items()
    }
    timed = {name: partial(seconds, partial(run, found[name][0]), 1) for name, run in runs.items()}
    taken = interleaved(timed, repeats)
    for name, (steps, error) in found.items():
        print(f"  {name:24} {steps:4} steps  error {error:.1e}  {1e3 * statistics.median(taken[name]):9.2f} ms")
    best = {who: min((n for n in runs if n.startswith(who)), key=lambda n: statistics.median(taken[n])) for who in WHO}
    return ratio(taken, best["pathline"], best["flow_matching"])


def peer_installed() -> bool:
    try:
        import flow_matching.solver  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    repeats = 5 if options.quick else 25
    print(machine())
    figures: dict[str, float] = {}
    print("cost of velocity and trace, in forward evaluations of the default network:")
    for d, batch in ((2, BATCH), (8, BATCH), (64, BATCH), (64, 1)):
        name = f"exact_calls_d{d}" + ("_one_row" if batch == 1 else "")
        figures[name] = trace_calls(d, repeats, batch=batch)
        print(f"  exact, d = {d}, {batch} rows: {figures[name]:.1f} (1 + 2d = {1 + 2 * d})")
    for k in (1, 4):
        figures[f"probes_calls_{k}"] = trace_calls(64, repeats, probes=k)
        print(f"  {k} probes, d = 64: {figures[f'probes_calls_{k}']:.1f} (1 + 3k = {1 + 3 * k})")
    figures["memory_64_to_4_steps"] = peak_bytes(64) / peak_bytes(4)
    print(f"peak memory without gradients, 64 steps over 4: {figures['memory_64_to_4_steps']:.3f}")
    if not peer_installed():
        print("flow_matching: peer not installed")
    else:
        for shape in ((2,), (8,), (64,), (1, 28, 28)):
            d = math.prod(shape)
            print(f"{shape}, {'exact trace' if d <= 64 else '1 probe'}, solver error at most {PER_DIMENSION * d:.1e}:")
            rows = 64 if d <= 8 else 8
            figures[f"to_flow_matching_d{d}"] = beside_the_peer(shape, rows, 3 if options.quick else 9)
            print(f"  time over flow_matching's: {figures[f'to_flow_matching_d{d}']:.2f}")
    finish("likelihood", figures, options.check)


if __name__ == "__main__":
    main()
