"""What a run survives: kills, full disks, other runs, and every kind of file."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import pathline as pl
from pathline.cli import main

STEPS = "600"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small file of three columns."""
    file = tmp_path_factory.mktemp("table") / "t.csv"
    rows = np.random.default_rng(0).normal(size=(60, 3)).round(4)
    pd.DataFrame(rows, columns=["a", "b", "c"]).to_csv(file, index=False)
    return str(file)


@pytest.fixture(scope="module")
def run(table: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", table, "--out", str(folder), "--steps", "20", "--threads", "1"]) == 0
    return folder


def started(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pathline", "train", *words, "--checkpoint-every", "0"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def stop(process: subprocess.Popen[str], log: Path, beyond: int, how: signal.Signals) -> str:
    """Sends a signal once the log tells of a step beyond a number; returns what was said on stderr."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        lines = log.read_text().splitlines() if log.exists() else []
        if len(lines) > 1 and json.loads(lines[-2])["step"] > beyond:
            break
        time.sleep(0.02)
    process.send_signal(how)
    return process.communicate(timeout=60)[1]


def test_a_stopped_and_a_killed_run_end_where_an_unharmed_one_does(table: str, tmp_path: Path) -> None:
    harmed, whole = tmp_path / "harmed", tmp_path / "whole"
    first = started(table, "--out", str(harmed), "--steps", STEPS, "--threads", "1")
    said = stop(first, harmed / "log.jsonl", 100, signal.SIGINT)
    assert first.returncode == 130, said
    assert said.splitlines()[-1].startswith("pathline: stopped; go on with `pathline train --resume")
    assert "Traceback" not in said
    second = started("--resume", str(harmed))
    stop(second, harmed / "log.jsonl", 250, signal.SIGKILL)
    assert second.returncode == -signal.SIGKILL
    assert not (harmed / "model.safetensors").exists()
    assert main(["train", "--resume", str(harmed)]) == 0
    assert main(["train", table, "--out", str(whole), "--steps", STEPS, "--threads", "1"]) == 0
    assert (harmed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    steps = [json.loads(line)["step"] for line in (harmed / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == int(STEPS)


def test_training_on_reaches_more_steps(table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own"
    assert main(["train", table, "--out", str(own), "--steps", "10", "--threads", "1"]) == 0
    assert main(["train", "--resume", str(own)]) == 2
    assert "has finished 10 steps; train on with --steps 20" in capsys.readouterr().err
    assert main(["train", "--resume", str(own), "--steps", "15"]) == 0
    assert pl.load(own).about["steps"] == 15


def test_a_full_disk_keeps_what_was_there(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.csv"
    out.write_text("before\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        code = main(["sample", str(run), "-n", "3000", "--out", str(out), "--force"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err.strip()
    assert code == 2
    assert "cannot be written" in said
    assert "\n" not in said
    assert out.read_text() == "before\n"
    assert [item.name for item in tmp_path.iterdir()] == ["x.csv"]


def test_one_run_at_a_time_in_a_directory(table: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = run / ".lock"
    lock.write_text(str(os.getppid()))
    assert main(["train", table, "--out", str(run), "--force", "--steps", "20"]) == 2
    assert f"process {os.getppid()} is training there" in capsys.readouterr().err
    gone = subprocess.Popen(["true"])
    gone.wait()
    lock.write_text(str(gone.pid))
    assert main(["train", table, "--out", str(run), "--force", "--steps", "20", "--threads", "1"]) == 0
    assert not lock.exists()


def test_a_used_directory_is_left_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "model.safetensors").read_bytes()
    assert main(["train", "annulus", "--out", str(run), "--steps", "5"]) == 2
    assert "--force" in capsys.readouterr().err
    assert (run / "model.safetensors").read_bytes() == before


def test_the_config_of_a_run_trains_the_same_model(table: str, run: Path, tmp_path: Path) -> None:
    words = ["--config", str(run / "config.json"), "--out", str(tmp_path / "again"), "--threads", "1"]
    assert main(["train", table, *words]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("text", "says"), [("{", "JSON"), ('{"widht": 3}', "widht"), ('{"depth": -1}', "depth")])
def test_a_foreign_config_is_refused(
    text: str, says: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.json").write_text(text)
    words = ["--config", str(tmp_path / "c.json"), "--out", str(tmp_path / "run")]
    assert main(["train", table, *words, "--steps", "5"]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "\n" not in said.strip()


def test_minutes_plan_the_steps(table: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["train", table, "--out", str(out), "--minutes", "0.01", "--threads", "1"]) == 0
    assert pl.load(out).about["steps"] >= 1
    assert json.loads((out / "config.json").read_text())["config"]["recipe"]["minutes"] == 0.01


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_device_is_named(table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", table, "--out", str(tmp_path / "run"), "--device", "cuda"]) == 2
    assert "device" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_given_source_points_are_pushed_in_order(run: Path, tmp_path: Path) -> None:
    x0 = np.random.default_rng(0).normal(size=(7, 3))
    np.save(tmp_path / "x0.npy", x0)
    out = tmp_path / "x1.csv"
    assert main(["sample", str(run), "--from", str(tmp_path / "x0.npy"), "--out", str(out)]) == 0
    expected = pl.load(run).sample(x0=torch.from_numpy(x0).float())
    assert np.allclose(pd.read_csv(out).to_numpy(), expected.numpy(), atol=1e-12)


@pytest.mark.parametrize("suffix", [".parquet", ".npy", ".npz"])
def test_every_format_trains_and_comes_back(suffix: str, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).normal(size=(60, 3)).round(3)
    file = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
        pd.DataFrame(rows, columns=["a", "b", "c"]).to_parquet(file)
    elif suffix == ".npy":
        np.save(file, rows)
    else:
        np.savez(file, a=rows[:, 0], b=rows[:, 1:])
    out = tmp_path / "run"
    assert main(["train", str(file), "--out", str(out), "--steps", "5", "--threads", "1"]) == 0
    made = tmp_path / "made.csv"
    assert main(["sample", str(out), "-n", "9", "--out", str(made)]) == 0
    names = {".parquet": ["a", "b", "c"], ".npy": ["x0", "x1", "x2"], ".npz": ["a", "b_0", "b_1"]}[suffix]
    assert list(pd.read_csv(made).columns) == names


def test_a_run_without_a_model_is_named(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(tmp_path), "-n", "3", "--out", str(tmp_path / "x.csv")]) == 2
    assert "no model" in capsys.readouterr().err
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:300])
    assert main(["sample", str(cut), "-n", "3", "--out", str(tmp_path / "x.csv")]) == 2
    assert "complete safetensors" in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()
