"""The truth about a finite data set: its exact field as a model without training, and as the judge of one."""

import torch

import pathline as pl
from pathline.data.toy import toy
from pathline.diagnostics import continuity_residual

torch.set_num_threads(1)
data = toy("annulus").sample(1000, torch.Generator().manual_seed(0), torch.float64)
path = pl.AffinePath(pl.schedules.linear(sigma_min=0.2))
exact = pl.EmpiricalField(path, data)

x0 = torch.randn(500, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
reference = pl.solve(exact, x0, pl.grids.uniform(200)).x
for solver in (pl.solvers.euler, pl.solvers.midpoint, pl.solvers.rk4):
    made = pl.solve(exact, x0, pl.grids.uniform(32 // solver.calls), solver)
    print(f"{solver.name:<9} {made.nfe} calls: {float((made.x - reference).norm(dim=1).mean()):.2e} off")

along = pl.log_prob(exact, reference, source=path.source, grid=pl.grids.uniform(16))
closed = exact.log_prob(reference, torch.tensor(1.0))
print(f"log-density along the flow is off by {float((along.value - closed).abs().mean()):.1e} nats on average")

residual = continuity_residual(exact, exact.log_prob, x0, torch.tensor(0.5, dtype=torch.float64))
print(f"continuity residual: {float((residual.value / residual.scale).abs().max()):.1e} of its terms")
