"""A plain training loop, the same made better by hand, and `pathline train annulus`, in turn.

(a) 3x64 ELU network, Adam 1e-2, a torch DataLoader, batch 256, 10,000 steps, 50 Euler steps: the loop of a tutorial,
    on the threads that torch takes by default. It is also run on one thread, which is faster for so small a network.
(b) the same without its data loader, with SiLU, EMA and cosine decay, given the seconds of (c).
(c) `pathline train annulus` with its defaults, and with a fifth of (a)'s seconds.

Seconds are of training alone. Quality: the share of samples with radius in [2, 3], and W2 of 4,096 scrambled Sobol
noise points pushed through the model to 4,096 scrambled Sobol points of the annulus, beside that of two such sets.
"""

import copy
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from common import arguments, finish, machine
from torch import Tensor, nn

import pathline as pl
from pathline.data.toy import toy
from pathline.metrics import w2

POINTS = 4096
ANNULUS = toy("annulus")


class Plain(nn.Module):
    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        widths = [3, 64, 64, 64]
        layers = [m for i, o in pairwise(widths) for m in (nn.Linear(i, o), activation())]
        self.net = nn.Sequential(*layers, nn.Linear(64, 2))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(torch.cat([t, x], -1))


class Rows(torch.utils.data.Dataset):
    def __init__(self, n: int, seed: int) -> None:
        self.rows = ANNULUS.sample(n, torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        return self.rows[i]


def plain_loop(seed: int, steps: int, threads: int) -> tuple[float, Callable[[Tensor], Tensor]]:
    torch.manual_seed(seed)
    net = Plain(nn.ELU)
    loader = torch.utils.data.DataLoader(Rows(256 * steps, seed), batch_size=256, shuffle=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    torch.set_num_threads(threads)
    start = time.perf_counter()
    for x1 in loader:
        descend(net, optimizer, x1)
    seconds = time.perf_counter() - start
    torch.set_num_threads(1)
    return seconds, lambda x0: euler(net, x0)


def better_loop(seed: int, seconds: float) -> tuple[float, Callable[[Tensor], Tensor]]:
    torch.manual_seed(seed)
    net = Plain(nn.SiLU)
    average = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    start = time.perf_counter()
    while (spent := (time.perf_counter() - start) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = 1e-2 * max(1e-4, math.cos(0.5 * math.pi * spent) ** 2)
        descend(net, optimizer, ANNULUS.sample(256))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 0.005)
    return time.perf_counter() - start, lambda x0: euler(average, x0)


def descend(net: nn.Module, optimizer: torch.optim.Optimizer, x1: Tensor) -> None:
    t, x0 = torch.rand(len(x1), 1), torch.randn_like(x1)
    loss = (net(t, (1 - t) * x0 + t * x1) - (x1 - x0)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def euler(net: nn.Module, x: Tensor, steps: int = 50) -> Tensor:
    for k in range(steps):
        x = x + net(torch.full((len(x), 1), k / steps), x) / steps
    return x


def pathline(seed: int, *options: str) -> tuple[float, Callable[[Tensor], Tensor], float]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "pathline", "train", "annulus", "--out", str(out), "--seed", str(seed)]
        subprocess.run([*command, *options], check=True, capture_output=True)
        seconds = json.loads((out / "metrics.json").read_text())["training_seconds"]["value"]
        model = pl.load(out)
    held_out = ANNULUS.sample(4000, torch.Generator().manual_seed(10_000 + seed), torch.float64)
    gap = float((ANNULUS.log_prob(held_out) - model.log_prob(held_out)).mean())
    return seconds, lambda x0: model.sample(x0=x0).float(), gap


def quality(push: Callable[[Tensor], Tensor], seed: int) -> tuple[float, float, float]:
    """Share of samples in the annulus, W2 to it, and its floor: all from Sobol points."""
    made = push(pl.sources.StandardNormal().sobol((POINTS, 2), seed).float())
    real, other = (ANNULUS.sobol(POINTS, s) for s in (seed + 500, seed + 900))
    radius = made.norm(dim=1)
    return float(((radius >= 2) & (radius <= 3)).float().mean()), w2(made, real), w2(other, real)


def main() -> None:
    options = arguments(__doc__ or "")
    seeds, steps = ((0,), 1000) if options.quick else ((0, 1, 2), 10_000)
    threads = torch.get_num_threads()
    print(machine())
    torch.set_num_threads(1)
    print(f"{'':<26}{'seed':>5}{'seconds':>9}{'share':>8}{'W2':>8}{'floor':>8}{'nats off':>10}")
    table: dict[str, list[tuple[float, float, float, float, float]]] = {}

    def note(name: str, seed: int, seconds: float, push: Callable[[Tensor], Tensor], gap: float = math.nan) -> None:
        share, distance, floor = quality(push, 100 + seed)
        table.setdefault(name, []).append((seconds, share, distance, floor, gap))
        print(f"{name:<26}{seed:>5}{seconds:>9.1f}{share:>8.3f}{distance:>8.4f}{floor:>8.4f}{gap:>10.3f}", flush=True)

    for seed in seeds:
        plain_seconds, push = plain_loop(seed, steps, threads)
        note("(a) plain loop", seed, plain_seconds, push)
        seconds, push = plain_loop(seed, steps, 1)
        note("(a) on one thread", seed, seconds, push)
        few = ("--steps", "300") if options.quick else ()
        seconds, push, gap = pathline(seed, *few)
        note("(c) pathline", seed, seconds, push, gap)
        _, push = better_loop(seed, seconds)
        note("(b) by hand", seed, seconds, push)
        seconds, push, gap = pathline(seed, "--minutes", str(0.8 * plain_seconds / 5 / 60))
        note("(c) pathline, a fifth", seed, seconds, push, gap)

    def median(name: str, column: int) -> float:
        return statistics.median(row[column] for row in table[name])

    floor = median("(c) pathline", 3)
    figures = {
        "floor": floor,
        "plain_seconds": median("(a) plain loop", 0),
        "one_thread_seconds": median("(a) on one thread", 0),
        "plain_share": median("(a) plain loop", 1),
        "plain_w2": median("(a) plain loop", 2),
        "by_hand_share": median("(b) by hand", 1),
        "by_hand_w2": median("(b) by hand", 2),
        "seconds_to_plain": median("(c) pathline", 0) / median("(a) plain loop", 0),
        "share": median("(c) pathline", 1),
        "w2": median("(c) pathline", 2),
        "w2_to_floor": median("(c) pathline", 2) / floor,
        "w2_to_by_hand": median("(c) pathline", 2) / median("(b) by hand", 2),
        "share_to_by_hand": median("(c) pathline", 1) / median("(b) by hand", 1),
        "nats_off": max(abs(row[4]) for row in table["(c) pathline"]),
        "short_seconds_to_plain": median("(c) pathline, a fifth", 0) / median("(a) plain loop", 0),
        "short_share_to_plain": median("(c) pathline, a fifth", 1) / median("(a) plain loop", 1),
        "short_w2_to_plain": median("(c) pathline, a fifth", 2) / median("(a) plain loop", 2),
    }
    finish("annulus", figures, options.check)


if __name__ == "__main__":
    main()
