"""What every benchmark shares: its arguments, the machine's line, targets from docs/benchmarks.md, the JSON line."""

import argparse
import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

TARGETS = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="exit 1 when a target in docs/benchmarks.md is missed")
    parser.add_argument("--quick", action="store_true", help="end within a minute; the figures mean little")
    return parser.parse_args()


def machine() -> str:
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        model = found[1] if found else model
    load = os.getloadavg()[0]
    return (
        f"{model}, {os.cpu_count()} cores (load {load:.1f}), torch {torch.__version__} on "
        f"{torch.get_num_threads()} threads, Python {platform.python_version()}"
    )


def interleaved(runs: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Figures of each run, taken in turn so that a drift of the machine hits all of them alike."""
    figures: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            figures[name].append(run())
    return figures


def ratio(figures: Mapping[str, list[float]], above: str, below: str) -> float:
    """Median of the ratios pair by pair."""
    return statistics.median(a / b for a, b in zip(figures[above], figures[below], strict=True))


def finish(name: str, figures: Mapping[str, float], check: bool) -> None:
    """Prints the figures as one JSON object on the last line; with ``check``, first the targets that are missed."""
    missed = [] if not check else _missed(name, figures)
    for line in missed:
        print(f"missed: {line}")
    print(json.dumps({key: round(value, 6) for key, value in figures.items()}))
    sys.exit(1 if missed else 0)


def _missed(name: str, figures: Mapping[str, float]) -> list[str]:
    missed = []
    for key, sign, number in re.findall(rf"\| `{name}\.(\w+)` \| (<=|>=) ([\d.e-]+)", TARGETS.read_text()):
        if key not in figures:
            missed.append(f"{key} was not measured")
        elif (figures[key] > float(number)) if sign == "<=" else (figures[key] < float(number)):
            missed.append(f"{key} = {figures[key]:.4g}, target {sign} {number}")
    return missed
