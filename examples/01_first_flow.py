"""Train a flow on points of the plane, sample it, and ask how likely a point is."""

import torch

import pathline as pl
from pathline.data.toy import toy

torch.set_num_threads(1)
moons = toy("moons")
scale = moons.sample(10_000, torch.Generator().manual_seed(0)).std()


def draw(n: int, generator: torch.Generator | None) -> torch.Tensor:
    """A stream of fresh points, about one standard deviation wide."""
    return moons.sample(n, generator) / scale


path = pl.AffinePath(pl.schedules.linear())
recipe = pl.Recipe(steps=400, batch_size=512, learning_rate=1e-2)
model = pl.fit(pl.nets.MLP(2), draw, pl.FlowMatching(path, times=pl.objectives.stratified), recipe=recipe)

samples = model.sample(1000, generator=torch.Generator().manual_seed(1)) * scale
print("first samples:", samples[:3].tolist())
found = model.log_prob(samples[:200] / scale).mean() - 2 * scale.log()
print(f"mean log-density of samples: model {found:.3f} nats, truth {moons.log_prob(samples[:200]).mean():.3f} nats")
