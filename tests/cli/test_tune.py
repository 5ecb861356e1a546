"""`pathline tune`, and samples from the solver that it leaves in a model."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

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
    before = pl.load(run)
    assert main(["tune", str(run), "--nfe", "3"]) == 0
    said = capsys.readouterr().out
    assert "3 model calls" in said
    assert main(["sample", str(run), "-n", "5", "--nfe", "3", "--out", str(run.parent / "tuned.csv")]) == 0
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


@pytest.mark.parametrize("nfe", [1, 3, 8, 9])
def test_any_number_of_calls_samples_without_tuning(run: Path, nfe: int, capsys: pytest.CaptureFixture[str]) -> None:
    model = replace(pl.load(run), tuned={})
    file = run.parent / "untuned.safetensors"
    model.save(file)
    out = run.parent / f"{nfe}.npy"
    assert main(["sample", str(file), "-n", "2500", "--nfe", str(nfe), "--out", str(out), "--seed", "4"]) == 0
    solver, grid = pl.solvers.method_for(nfe, model.field)
    generator = torch.Generator().manual_seed(4)
    x0 = model.noise(2500, generator)
    expected = pl.solve(model.field, x0, grid, solver)
    assert expected.nfe == nfe
    assert np.array_equal(np.load(out), expected.x.numpy())
    error = float(model.solver_error(x0=x0[:128], nfe=nfe).mean())
    assert capsys.readouterr().out == (
        f"{out}: 2,500 rows, {nfe} model calls each ({solver.name}); {error:.1e} from the converged solution\n"
    )


def test_the_preset_keeps_its_own_pair(run: Path) -> None:
    model = replace(pl.load(run), tuned={}, preset=module.Preset("heun", 6))
    for nfe in (None, 6):
        solver, grid = model.method(nfe)
        assert (solver.name, grid.tolist()) == ("heun", pl.grids.uniform(3).tolist())
    adaptive = replace(model, preset=module.Preset("dopri5", None))
    assert [adaptive.method(nfe)[0].name for nfe in (None, 8)] == ["dopri5", "abm"]


def test_few_rows_are_not_solved_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n, told in (("255", False), ("256", True)):
        assert main(["sample", str(run), "-n", n, "--out", str(run.parent / "n.csv"), "--force"]) == 0
        assert ("from the converged solution" in capsys.readouterr().out) == told


class Logistic(torch.nn.Module):
    r"""$\dot x = 2 x (1 - x)$, which ends at $1 / (1 + (1 / x - 1) e^{-2})$."""

    def forward(self, x: Tensor, t: Tensor, /) -> Tensor:
        return 2 * x * (1 - x)


def test_the_solver_error_is_the_distance_to_the_known_end() -> None:
    model = pl.Model(Logistic(), pl.AffinePath(pl.schedules.linear()), (2,), preset=module.Preset("dopri5", None))
    x0 = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    end, errors = 1 / (1 + (1 / x0 - 1) * math.exp(-2)), []
    for nfe in (1, 2, 4, 8, 16):
        known = (model.sample(x0=x0, nfe=nfe) - end).square().mean(1).sqrt().double()
        found = model.solver_error(x0=x0, nfe=nfe)
        torch.testing.assert_close(found, known, rtol=0.02, atol=1e-6)
        errors.append(float(found.mean()))
    assert all(later < 0.6 * earlier for earlier, later in pairwise(errors))
    assert float(model.solver_error(x0=x0).mean()) < 1e-5  # dopri5


def test_the_solver_error_takes_conditions_and_refuses_what_sample_does() -> None:
    kinds = ConditionTransform.fit("kind", ["a", "b"] * 40)
    net = pl.nets.MLP(2, 16, condition=kinds.width)
    model = pl.Model(net, pl.AffinePath(pl.schedules.linear()), (2,), condition=kinds)
    assert model.solver_error(5, nfe=3, generator=torch.Generator().manual_seed(0)).shape == (5,)
    with pytest.raises(ValueError, match="cond must hold condition"):
        model.solver_error(5, cond={})
    for call in (model.solver_error, model.sample):
        with pytest.raises(ValueError, match="nfe must be at least 1 call, got 0"):
            call(5, nfe=0)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        model.noise(0)


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
    assert told == [(i, 24) for i in range(1, 25)]


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
