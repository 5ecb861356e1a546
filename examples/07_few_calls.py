"""A solver learned for one model and four calls of it, beside the best of a list that knows nothing of the model."""

import torch

import pathline as pl
from pathline import grids, solvers

path = pl.AffinePath(pl.schedules.linear(0.2))
generator = torch.Generator().manual_seed(0)
angle = 2 * torch.pi * torch.rand(100, generator=generator, dtype=torch.float64)
field = pl.EmpiricalField(path, 2 * torch.stack([angle.cos(), angle.sin()], 1))

learned = solvers.tune(field, path, 4, torch.randn(256, 2, generator=generator, dtype=torch.float64))
x0 = torch.randn(500, 2, generator=generator, dtype=torch.float64)
converged = pl.solve(field, x0, grids.uniform(100), solvers.rk4).x
runs = {"rk4": (grids.uniform(1), solvers.rk4), "abm": (grids.eased(4), solvers.abm), "tuned": (learned.grid, learned)}
for name, (grid, solver) in runs.items():
    solution = pl.solve(field, x0, grid, solver)
    print(f"{name:6s}{solution.nfe} calls, rms error {float((solution.x - converged).square().mean().sqrt()):.4f}")
