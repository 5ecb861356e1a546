"""`pathline tune`, and samples from the solver that it leaves in a model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pathline as pl
from pathline import model as module
from pathline.cli import bar, main
from pathline.transforms import ConditionTransform


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "run"
    folder.mkdir()
    torch.manual_seed(0)
    net = pl.nets.MLP(2, 16)
    torch.nn.init.normal_(net.leave.weight)
    pl.Model(net, pl.AffinePath(pl.schedules.linear()), (2,)).save(folder / module.FILE)
    return folder


@pytest.fixture(autouse=True)
def few_noises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NOISES", 160)
    monkeypatch.setattr(module, "_LEAST_NOISES", 160)


def test_a_tuned_run_samples_with_as_many_calls(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(run), "-n", "5", "--nfe", "3", "--out", str(run.parent / "a.csv")]) == 2
    assert "rk4 can spend" in capsys.readouterr().err
    before = pl.load(run)
    assert main(["tune", str(run), "--nfe", "3"]) == 0
    said = capsys.readouterr().out
    assert "3 model calls" in said
    assert main(["sample", str(run), "-n", "5", "--nfe", "3", "--out", str(run.parent / "a.csv")]) == 0
    assert "3 model calls each (tuned)" in capsys.readouterr().out
    model = pl.load(run)
    assert list(model.tuned) == [3]
    assert model.tuned[3].error <= model.tuned[3].untuned
    x0 = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.sample(x0=x0), before.sample(x0=x0))
    solver = model.tuned[3]
    z = pl.solve(model.field, x0, solver.grid, solver)
    assert torch.equal(model.sample(x0=x0, nfe=3), model.transform.inverse(z.x))
    assert z.nfe == 3


def test_tuning_twice_writes_the_same_bytes_and_keeps_both(run: Path) -> None:
    files = []
    for name in ("a", "b"):
        file = run.parent / f"{name}.safetensors"
        replace(pl.load(run), tuned={}).save(file)
        for nfe in ("2", "1"):
            assert main(["tune", str(file), "--nfe", nfe, "--seed", "3"]) == 0
        files.append(file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert list(pl.load(files[0]).tuned) == [1, 2]


def test_a_conditional_model_is_tuned_on_conditions_of_its_data(tmp_path: Path) -> None:
    kinds = ConditionTransform.fit("kind", ["a", "b"] * 40)
    net = pl.nets.MLP(2, 16, condition=kinds.width)
    model = pl.Model(net, pl.AffinePath(pl.schedules.linear()), (2,), condition=kinds)
    tuned = model.tune(2, generator=torch.Generator().manual_seed(0))
    cond = {"condition": kinds.encode(np.array(["b"] * 4, dtype=object)).float()}
    assert tuned.sample(4, cond=cond, nfe=2).shape == (4, 2)


def test_sampling_tells_of_its_steps(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NUMBERS", 2 * 16 * 4)
    told: list[tuple[int, int]] = []
    model = pl.load(run)
    model.sample(10, nfe=8, callback=lambda *step: told.append(step))
    assert told == [(i, 6) for i in range(1, 7)]


def test_a_bar_shows_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bar, "DELAY", 0.0)
    for terminal in (True, False):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        with bar.bar("sampling", "step") as tell:
            tell(1, 2)
            tell(2, 2)
        assert ("sampling" in capsys.readouterr().err) == terminal


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--nfe", "0"], "nfe must be at least 1 call, got 0"),
        ([], "--nfe must be given"),
        (["--nfe", "8", "--seed", "-1"], "seed"),
        (["--nfee", "8"], "--nfe"),
    ],
)
def test_bad_input_is_one_line(run: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(run), *words]) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert "\n" not in said


def test_a_model_on_another_path_is_refused() -> None:
    path = pl.GaussianPath(lambda x1, t: t * x1, lambda x1, t: 1 - t)
    model = pl.Model(torch.nn.Identity(), path, (2,))
    with pytest.raises(ValueError, match="path must be affine for a solver to be tuned, got GaussianPath"):
        model.tune(4)
