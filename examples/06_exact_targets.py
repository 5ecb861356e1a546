"""Regress on the exact field of the batch instead of one random target a row, and see where the loss stands."""

import torch

import pathline as pl
from pathline.data.toy import toy
from pathline.diagnostics import LawField, reference

torch.set_num_threads(1)
path = pl.AffinePath(pl.schedules.linear())
law, generator = toy("moons"), torch.Generator().manual_seed(0)
fresh = law.sample(2000, generator, torch.float64)
known = reference(LawField(path, law.sobol(2**15, 0)), path, fresh, draws=40, generator=generator)
print(f"no field has a loss below {known.floor.value:.3f}")

for target in (None, "batch"):
    torch.manual_seed(0)
    loss = pl.FlowMatching(path, times=pl.objectives.stratified, target=target)
    model = pl.fit(pl.nets.MLP(2), law.sample, loss, recipe=pl.Recipe(steps=100, batch_size=256))

    def field(x: torch.Tensor, t: torch.Tensor, model: pl.Model = model) -> torch.Tensor:
        return model.field(x.float(), t.float()).to(x)

    found = known.judge(field)
    print(f"target {target}: loss {found.loss.value:.3f}, R2 {found.r2.value:.3f}")
