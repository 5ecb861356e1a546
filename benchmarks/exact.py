"""Exact fields of many points: dense beside its two matrix products, within rtol beside dense, memory.

The peers are one line of torch, and the dense velocity of lqiang67/rectified-flow where it can be imported (it is no
dependency; a checkout in PYTHONPATH and torchvision do).
"""

import gzip
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import arguments, finish, interleaved, machine, ratio
from torch import Tensor

import pathline as pl

FASHION = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
"""Of the Debian package dataset-fashion-mnist; without it, noise of the same shape stands in and the page says so."""

TIMES = (0.01, 0.2, 0.5, 0.8, 0.99)
PATH = pl.AffinePath(pl.schedules.linear())

MEMORY = """
import re, sys, torch, pathline as pl
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
n, d, rtol = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) or None
data = torch.empty(n, d).random_(256).div_(127.5).sub_(1)
before = peak()
field = pl.EmpiricalField(pl.AffinePath(pl.schedules.linear()), data, rtol=rtol)
for t in (0.0, 0.5, 0.99):
    field(torch.randn(4096, d) * (1 - t) + t * data[:4096], torch.tensor(t))
print(peak() - before)
"""


def annulus(n: int) -> Tensor:
    angle, radius = torch.rand(2, n, generator=torch.Generator().manual_seed(0))
    angle, radius = 2 * math.pi * angle, 2 + radius
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def fashion() -> Tensor:
    if not FASHION.exists():
        print("Fashion-MNIST is not installed (apt install dataset-fashion-mnist): noise stands in")
        return torch.rand(60_000, 784, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels = bytearray(gzip.decompress(FASHION.read_bytes())[16:])
    return torch.frombuffer(pixels, dtype=torch.uint8).reshape(60_000, 784).float() / 127.5 - 1


def queries(data: Tensor, t: float, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    own = data[torch.randint(len(data), (n,), generator=generator)]
    return t * own + (1 - t) * torch.randn(own.shape, generator=generator)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def timed(field: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> tuple[Tensor, float]:
    start = time.perf_counter()
    found = field(x, t)
    return found, time.perf_counter() - start


def whole(x: Tensor, data: Tensor) -> Tensor:
    return (x @ data.T) @ data


def chunked(x: Tensor, data: Tensor) -> None:
    logits, sums = torch.empty(512 * 1024), torch.zeros(len(x), data.shape[1])
    for first in range(0, len(x), 512):
        rows = x[first : first + 512]
        for keys in data.split(1024):
            block = logits[: len(rows) * len(keys)].view(len(rows), len(keys))
            sums[first : first + 512].addmm_(torch.mm(rows, keys.T, out=block), keys)


def naive(x: Tensor, data: Tensor, t: float) -> Tensor:
    logits = -(torch.cdist(x, t * data) ** 2) / (2 * (1 - t) ** 2)
    return (logits.softmax(1) @ data - x) / (1 - t)


def rectified_flow(data: Tensor) -> Callable[[Tensor, float], Tensor] | None:
    try:
        from rectified_flow.flow_components.interpolation_solver import AffineInterp  # pyright: ignore
        from rectified_flow.models.gauss_analytic import AnalyticGaussianVelocity  # pyright: ignore
    except ImportError:
        return None
    field = AnalyticGaussianVelocity(data, AffineInterp("straight"))
    return lambda x, t: field(x, torch.full((len(x),), t))


def dense(name: str, data: Tensor, n: int, repeats: int) -> dict[str, float]:
    """The worst time of the field over that of its two products, whole or in blocks, and over its peers'."""
    field, other, found = pl.EmpiricalField(PATH, data), rectified_flow(data), []
    for t in TIMES:
        x, at = queries(data, t, n), torch.tensor(t)
        runs = {
            "field": lambda x=x, at=at: seconds(lambda: field(x, at)),
            "whole": lambda x=x: seconds(lambda: whole(x, data)),
            "chunked": lambda x=x: seconds(lambda: chunked(x, data)),
            "naive": lambda x=x, t=t: seconds(lambda: naive(x, data, t)),
        }
        if other is not None:
            runs["rectified_flow"] = lambda x=x, t=t: seconds(lambda: other(x, t))
        figures = interleaved(runs, repeats)
        products = min(("whole", "chunked"), key=lambda who: statistics.median(figures[who]))
        ratios = {"": ratio(figures, "field", products)}
        ratios |= {f"_{who}": ratio(figures, "field", who) for who in runs if who in ("naive", "rectified_flow")}
        print(
            f"{name:12} t = {t:<5} {1e6 * min(figures['field']) / n:8.1f} us a query, {ratios['']:5.2f} of the products"
            + "".join(f", {value:.2f} of {who[1:]}" for who, value in ratios.items() if who)
        )
        found.append(ratios)
    return {f"dense_{name}{who}": max(ratios[who] for ratios in found) for who in found[0]}


def many_dimensions(data: Tensor, n: int, steps: range) -> dict[str, float]:
    """How many times as fast as dense the velocity is at rtol 1e-3, over all times, the index apart."""
    fields = {"dense": pl.EmpiricalField(PATH, data), "rtol": pl.EmpiricalField(PATH, data, rtol=1e-3)}
    print(f"levels of {len(data)} x {data.shape[1]}: {seconds(lambda: fields['rtol'].levels):.1f} s")
    for field in fields.values():
        seconds(lambda field=field: field.attention)
    total, worst, each = dict.fromkeys(fields, 0.0), 0.0, []
    for k in steps:
        t = (k + 0.5) / 50
        x = queries(data, t, n)
        found, own = zip(*(timed(field, x, torch.tensor(t)) for field in fields.values()), strict=True)
        for name, value in zip(fields, own, strict=True):
            total[name] += value
        size = found[0].norm(dim=1) + x.norm(dim=1)
        worst = max(worst, float(((found[1] - found[0]).norm(dim=1) / size).max()))
        each.append(own[0] / own[1])
    print("times as fast by time:", *(f"{value:.1f}" for value in each), f"largest error {worst:.1e}")
    return {"rtol_60k_784": total["dense"] / total["rtol"]}


def cells(count: int, n: int, steps: range) -> dict[str, float]:
    """Microseconds a query at rtol 1e-3 on average over times, the index apart."""
    data = annulus(count)
    field = pl.EmpiricalField(PATH, data, rtol=1e-3)
    print(f"cells of {count} points: {seconds(lambda: field.cells):.1f} s")
    each = []
    for k in steps:
        t = (k + 0.5) / 50
        x, at = queries(data, t, n), torch.tensor(t)
        each.append(1e6 * min(seconds(lambda x=x, at=at: field(x, at)) for _ in range(2)) / n)
    print("us a query by time:", *(f"{value:.0f}" for value in each))
    return {"cells_us": sum(each) / len(each)}


def memory(n: int, d: int, rtol: float) -> float:
    """GB above the data and 4,096 queries at the peak, in a process of its own; ``rtol`` 0 is exact."""
    command = [sys.executable, "-c", MEMORY, str(n), str(d), str(rtol)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(found.stdout) * 1024 / 1e9


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    print(machine())
    n, repeats = (256, 1) if options.quick else (4096, 3)
    figures: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)
    laws = {
        "100k_2": annulus(100_000),
        "60k_64": torch.randn(60_000, 64, generator=generator),
        "60k_784": fashion(),
    }
    for name, data in laws.items():
        figures |= dense(name, data, n // 4 if data.shape[1] < 784 else n // 16, repeats)
    steps = range(0, 50, 7 if options.quick else 1)
    figures |= many_dimensions(laws["60k_784"], n, steps)
    figures |= cells(100_000 if options.quick else 1_000_000, 4096, steps)
    if not options.quick:
        for name, n, d in (("1m_2", 1_000_000, 2), ("60k_784", 60_000, 784)):
            figures |= {f"memory_{name}": memory(n, d, 0), f"memory_{name}_rtol": memory(n, d, 1e-3)}
    finish("exact", figures, options.check)


if __name__ == "__main__":
    main()
