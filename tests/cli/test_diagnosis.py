"""Floors, budget and memorisation as a run shows them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pathline.cli import main

LOSSES = ("floor", "loss", "excess", "r2")
DISTANCES = ("total", "sample", "network", "solver")


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def check(metrics: dict, kind: str) -> None:
    for name in LOSSES:
        measure = metrics[f"{name}_{kind}"]
        assert len(measure["parts"]) == 10
        assert measure["value"] == pytest.approx(np.mean([part["value"] for part in measure["parts"]]), abs=0.3)
    loss, floor, excess = (metrics[f"{name}_{kind}"]["value"] for name in ("loss", "floor", "excess"))
    assert loss == pytest.approx(floor + excess)
    assert metrics[f"loss_{kind}"]["floor"] == floor
    parts = [metrics[f"distance_{name}"]["value"] for name in DISTANCES]
    assert parts[0] == pytest.approx(sum(parts[1:]))


def test_a_stream_is_held_against_its_law(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "gaussian", "--out", tmp_path / "run", "--steps", 10)
    captured = capsys.readouterr()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    check(metrics, "law")
    floor = metrics["floor_law"]
    assert floor["value"] == pytest.approx(np.pi / 2, rel=0.01)  # of unit variance in the model's units
    assert f"floor {floor['value']:.4f}" in captured.err
    assert metrics["distance_total"]["value"] == pytest.approx(metrics["w2_sobol"]["value"], rel=1e-3)
    assert "memorisation" not in metrics
    assert "loss_training" not in metrics


@pytest.mark.parametrize("condition", [None, "kind", "age", "size"])
def test_rows_are_held_against_their_exact_field(
    condition: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(0, 1, (200, 2)), columns=["a", "b"])
    frame["kind"], frame["size"] = rng.choice(["x", "y"], 200), rng.normal(0, 1, 200)
    frame["age"] = rng.integers(20, 60, 200)
    keep = ["a", "b"] + ([condition] if condition else [])
    frame[keep].to_csv(tmp_path / "t.csv", index=False)
    given = ["--condition", condition] if condition else []
    run("train", tmp_path / "t.csv", "--out", tmp_path / "run", "--steps", 10, *given)
    assert (", floor" in capsys.readouterr().err) == (condition != "size")
    run("evaluate", tmp_path / "run", "--json")
    found = json.loads(capsys.readouterr().out)
    if condition == "size":
        assert "floor_training" not in found  # each row has its own
    else:
        check(found, "training")
        bounds = {None: (0.9, 1.6), "kind": (0.8, 1.5), "age": (0.3, 1.0)}[condition]  # all of 200, 100 or 5 rows
        assert bounds[0] < found["floor_training"]["value"] < bounds[1]
    assert "field at t = " in found["memorisation"]
    assert found["memorisation"].startswith("memorisation: no sign; ")
    assert found["loss_held_out"]["floor"] is None
    run("evaluate", tmp_path / "run")
    assert "\nmemorisation: no sign; " in capsys.readouterr().out
    run("evaluate", tmp_path / "run", "--data", tmp_path / "t.csv", "--json")
    other = json.loads(capsys.readouterr().out)
    assert "memorisation" not in other
    assert "distance_network" in other


def test_too_few_rows_to_split_have_no_verdict(tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.random.default_rng(0).normal(0, 1, (12, 2)))
    run("train", tmp_path / "few.npy", "--out", tmp_path / "run", "--steps", 10)
    assert "memorisation" not in json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_few_held_out_rows_have_a_wide_error_and_no_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "few.npy", np.random.default_rng(0).normal(0, 1, (60, 2)))
    run("train", tmp_path / "few.npy", "--out", tmp_path / "run", "--steps", 10)
    capsys.readouterr()
    run("evaluate", tmp_path / "run", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["loss_held_out"]["n"] == 6
    assert found["loss_held_out"]["se"] > 0.1
    assert not any(name.startswith("distance_") for name in found)
    assert {"w2", "loss_training"} <= set(found)
