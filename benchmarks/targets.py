"""Exact targets in training: variance of the gradient, and steps and seconds to the quality of the conditional one."""

import time
from collections.abc import Callable

import torch
from common import arguments, finish, machine
from sklearn.datasets import load_digits
from torch import Tensor

import pathline as pl
from pathline.data.toy import toy
from pathline.diagnostics import LawField, Reference, reference
from pathline.objectives import Sampled

PATH = pl.AffinePath(pl.schedules.linear())
TOYS = ("annulus", "moons", "eight-gaussians")
BATCH = 256
LOOKS = 20


def objective(kind: str, data: Tensor) -> pl.FlowMatching:
    targets = {"conditional": None, "batch": "batch", "sampled": Sampled(data, 256), "all": None}
    target = pl.EmpiricalField(PATH, data) if kind == "all" else targets[kind]
    return pl.FlowMatching(PATH, times=pl.objectives.stratified, target=target)


def noise(loss: pl.FlowMatching, net: torch.nn.Module, data: Tensor, batches: int) -> float:
    """The summed variance of a batch's gradient."""
    found = []
    for seed in range(batches):
        generator = torch.Generator().manual_seed(seed)
        x1 = data[torch.randint(len(data), (BATCH,), generator=generator)]
        net.zero_grad()
        loss(net, x1, generator).mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    return float(torch.stack(found).var(0).sum())


def curve(kind: str, data: Tensor, known: Reference, steps: int) -> list[tuple[int, float, float]]:
    """(step, seconds, excess loss) at 20 places of a training."""
    torch.manual_seed(0)
    net, loss = pl.nets.MLP(data.shape[1], 128, 4), objective(kind, data)
    seen, start, aside = [], time.perf_counter(), [0.0]

    def look(step: pl.train.Step) -> None:
        if step.step % (steps // LOOKS):
            return
        now = time.perf_counter()
        with torch.no_grad():
            excess = known.judge(lambda x, t: net(x.float(), t.float()).to(x)).excess.value
        seen.append((step.step, now - start - aside[0], excess))
        aside[0] += time.perf_counter() - now

    recipe = pl.Recipe(steps=steps, batch_size=BATCH, learning_rate=2e-3)
    pl.fit(net, data, loss, recipe=recipe, callback=look)
    return seen


def reached(seen: list[tuple[int, float, float]], goal: float) -> tuple[float, float]:
    """Steps and seconds to an excess loss, infinite where it is not reached."""
    return next(((float(step), seconds) for step, seconds, excess in seen if excess <= goal), (torch.inf, torch.inf))


def problems(quick: bool) -> dict[str, tuple[Tensor, Callable[[], Reference]]]:
    found = {}
    for name in TOYS:
        law, generator = toy(name), torch.Generator().manual_seed(0)
        rows, fresh = law.sample(20_000, generator), law.sample(5_000, generator, torch.float64)
        found[name] = rows, lambda law=law, fresh=fresh: reference(LawField(PATH, law.sobol(2**17, 0)), PATH, fresh)
    x = torch.from_numpy(load_digits().data).float() / 8 - 1
    found["digits"] = x, lambda: reference(pl.EmpiricalField(PATH, x.double()), PATH, x.double())
    return dict(list(found.items())[-2:]) if quick else found


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    steps, batches = (200, 10) if options.quick else (2000, 60)
    print(machine())
    figures: dict[str, float] = {}
    for name, (data, make) in problems(options.quick).items():
        known = make()
        net = pl.nets.MLP(data.shape[1], 128, 4)
        kinds = ["conditional", "batch", "sampled"] + (["all"] if name == "digits" else [])
        curves = {kind: curve(kind, data, known, steps) for kind in kinds}
        noises = {kind: noise(objective(kind, data), net, data, batches) for kind in kinds}
        goal = curves["conditional"][-1][2]
        base = reached(curves["conditional"], goal)
        for kind in kinds:
            some, seconds = reached(curves[kind], goal)
            share = noises[kind] / noises["conditional"]
            print(
                f"{name:<16}{kind:<12} gradient variance x {share:.2f}, excess {curves[kind][-1][2]:.4f} after {steps} "
                f"steps and {curves[kind][-1][1]:.0f} s; the conditional's {goal:.4f} after {some:.0f}, {seconds:.0f} s"
            )
            label = name.replace("-", "_")
            figures[f"variance_{label}_{kind}"] = share
            figures[f"excess_{label}_{kind}"] = curves[kind][-1][2] / goal
            figures[f"seconds_{label}_{kind}"] = curves[kind][-1][1] / curves["conditional"][-1][1]
            if kind != "conditional" and some < torch.inf:
                figures[f"steps_{label}_{kind}"] = some / base[0]
    finish("targets", figures, options.check)


if __name__ == "__main__":
    main()
