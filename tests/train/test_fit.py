"""`fit`: reproducible, resumable, and every row once a pass."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pathline as pl
from pathline.train.batches import RowBatches, Streams

LOSS = pl.FlowMatching(pl.AffinePath(pl.schedules.linear()))
DATA = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))


class Noisy(nn.Module):
    """A network with dropout, so that torch's own generator matters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.3), nn.SiLU(), nn.Linear(16, 2))

    def forward(self, x: Tensor, t: Tensor, /) -> Tensor:
        return self.body(torch.cat([x, t[:, None]], 1))


def net() -> Noisy:
    torch.manual_seed(3)
    return Noisy()


def weights(model: pl.Model) -> list[Tensor]:
    return list(model.field.state_dict().values())


def test_same_seed_same_weights_and_torch_generator_untouched() -> None:
    recipe = pl.Recipe(steps=12, batch_size=16)
    first = pl.fit(net(), DATA, LOSS, recipe=recipe)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    other = net()
    torch.set_rng_state(before)
    second = pl.fit(other, DATA, LOSS, recipe=recipe)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    recipe, state = pl.Recipe(steps=20, batch_size=16), tmp_path / "state.safetensors"
    whole = pl.fit(net(), DATA, LOSS, recipe=recipe)

    def stop(step: object) -> None:
        if getattr(step, "step", 0) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pl.fit(net(), DATA, LOSS, recipe=recipe, checkpoint=state, callback=stop)
    resumed = pl.fit(net(), DATA, LOSS, recipe=recipe, checkpoint=state, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


@pytest.mark.parametrize("size", [7, 10, 64])
def test_every_row_once_a_pass(size: int) -> None:
    data = torch.arange(30.0)[:, None]
    pairs = pl.couplings.independent(data, pl.sources.StandardNormal())
    batches = RowBatches(data, {"label": data[:, 0]}, None, pairs, None, size, Streams(0, torch.device("cpu")))
    seen, step = [], 0
    while len(seen) < 90:
        batch = batches.at(step)
        assert torch.equal(batch.cond["label"], batch.x1[:, 0])
        seen += batch.x1[:, 0].tolist()
        step += 1
    for start in (0, 30, 60):
        assert sorted(seen[start : start + 30]) == data[:, 0].tolist()


def test_non_finite_loss_names_the_step_and_keeps_the_state(tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"

    def draw(n: int, generator: torch.Generator | None) -> Tensor:
        """Three batches of four, then nothing that is a number."""
        return torch.where(torch.arange(n) < 12, 1.0, torch.nan)[:, None].repeat(1, 2)

    with pytest.raises(RuntimeError, match="not finite at step 4"):
        pl.fit(net(), draw, LOSS, recipe=pl.Recipe(steps=8, batch_size=4), checkpoint=state)
    assert state.exists()


def test_model_round_trip_gives_the_same_bytes(tmp_path: Path) -> None:
    model = pl.fit(pl.nets.MLP(2, width=8), DATA, LOSS, recipe=pl.Recipe(steps=5))
    model.save(tmp_path / "a.safetensors")
    pl.load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:200])
    with pytest.raises(ValueError, match="complete safetensors"):
        pl.load(tmp_path / "cut.safetensors")
