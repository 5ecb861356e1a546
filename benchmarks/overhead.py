"""What `fit` and `solve` cost beside loops written by hand around the same network."""

import copy
import math
import statistics
import time
from itertools import pairwise

import torch
from common import arguments, finish, interleaved, machine, ratio
from torch import Tensor, nn

import pathline as pl

ROWS = 100_000
PATH = pl.AffinePath(pl.schedules.linear())


def fit_seconds(data: Tensor, batch: int, steps: int, skip: int) -> float:
    """Seconds a step of `fit`, after ``skip`` steps."""
    torch.manual_seed(0)
    times: list[float] = []
    loss = pl.FlowMatching(PATH, times=pl.objectives.stratified)
    recipe = pl.Recipe(steps=steps, batch_size=batch, learning_rate=1e-3)
    pl.fit(pl.nets.MLP(2), data, loss, recipe=recipe, callback=lambda _: times.append(time.perf_counter()))
    return typical(times[skip - 1 :])


def hand_seconds(data: Tensor, batch: int, steps: int, skip: int, stripped: bool = False) -> float:
    """Seconds a step of a loop by hand with the same clipping, average and schedule, or with none of them."""
    torch.manual_seed(0)
    net = pl.nets.MLP(2).train()
    average = [p.detach().clone() for p in net.parameters()]
    live = [p.detach() for p in net.parameters()]
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    order = torch.randperm(len(data))
    times: list[float] = []
    for step in range(steps):
        first = step * batch % (len(data) - batch)
        x1 = data[order[first : first + batch]]
        t = (torch.randperm(batch) + torch.rand(batch)) / batch
        x0 = torch.randn_like(x1)
        at = t[:, None]
        loss = (net((1 - at) * x0 + at * x1, t) - (x1 - x0)).square().sum(1).mean()
        loss.backward()
        if not stripped:
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * math.cos(0.5 * math.pi * step / steps) ** 2
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not stripped:
            torch._foreach_lerp_(average, live, 0.01)
        times.append(time.perf_counter())
    return typical(times[skip - 1 :])


def typical(times: list[float]) -> float:
    """The median of the seconds between ticks: a neighbour's burst of work does not enter it."""
    return statistics.median(b - a for a, b in pairwise(times))


@torch.no_grad()
def solve_seconds(net: nn.Module, x0: Tensor, steps: int) -> float:
    start = time.perf_counter()
    pl.solve(net, x0, pl.grids.uniform(steps), pl.solvers.euler)
    return time.perf_counter() - start


@torch.no_grad()
def bare_seconds(net: nn.Module, x0: Tensor, steps: int) -> float:
    start, x = time.perf_counter(), x0
    for k in range(steps):
        x = x + net(x, torch.full((len(x),), k / steps)) / steps
    return time.perf_counter() - start


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    data = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(0))
    repeats, steps = (3, 60) if options.quick else (15, 220)
    print(machine())
    figures: dict[str, float] = {}
    for batch in (256, 4096):
        runs = {
            "fit": lambda b=batch: fit_seconds(data, b, steps, 20),
            "by hand": lambda b=batch: hand_seconds(data, b, steps, 20),
            "stripped": lambda b=batch: hand_seconds(data, b, steps, 20, stripped=True),
        }
        taken = interleaved(runs, repeats)
        medians = {name: 1e3 * statistics.median(values) for name, values in taken.items()}
        print(f"train, batch {batch}: " + ", ".join(f"{name} {value:.3f} ms a step" for name, value in medians.items()))
        figures[f"fit_to_hand_{batch}"] = ratio(taken, "fit", "by hand")
        figures[f"fit_to_stripped_{batch}"] = ratio(taken, "fit", "stripped")
        extra = [1e3 * (a - b) for a, b in zip(taken["fit"], taken["by hand"], strict=True)]
        figures[f"fit_extra_ms_{batch}"] = statistics.median(extra)
    net = copy.deepcopy(pl.nets.MLP(2)).requires_grad_(False)
    for batch in (256, 10_000):
        x0 = torch.randn(batch, 2)
        runs = {
            "solve": lambda x=x0: solve_seconds(net, x, 50),
            "bare": lambda x=x0: bare_seconds(net, x, 50),
        }
        taken = interleaved(runs, repeats * (4 if batch == 256 else 1))
        medians = {name: 1e3 * statistics.median(values) for name, values in taken.items()}
        print(f"sample, batch {batch}: " + ", ".join(f"{name} {value:.2f} ms" for name, value in medians.items()))
        figures[f"solve_to_bare_{batch}"] = ratio(taken, "solve", "bare")
    finish("overhead", figures, options.check)


if __name__ == "__main__":
    main()
