"""`pathline train`, `sample`, `score` and `evaluate` as a user meets them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pathline.cli import main

ROWS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of every kind of column and a conditional run on it."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    frame = {
        "length": rng.normal(3, 1, ROWS),
        "count": rng.integers(0, 9, ROWS),
        "fixed": np.full(ROWS, 7),
        "price": rng.integers(1, 900, ROWS),
        "kind": rng.choice(["a", "b"], ROWS),
    }
    pd.DataFrame(frame).to_csv(folder / "t.csv", index=False)
    words = ["train", str(folder / "t.csv"), "--out", str(folder / "run"), "--condition", "kind", "--positive", "price"]
    assert main([*words, "--steps", "20"]) == 0
    return folder


def test_samples_come_back_in_the_users_columns(folder: Path) -> None:
    words = ["sample", str(folder / "run"), "-n", "50", "--given", "kind=b", "--out", str(folder / "s.csv")]
    assert main([*words, "--seed", "1"]) == 0
    made = pd.read_csv(folder / "s.csv")
    assert list(made.columns) == ["length", "count", "fixed", "price", "kind"]
    assert (made.fixed == 7).all()
    assert (made.price >= 1).all()
    assert (made.kind == "b").all()
    assert made["count"].dtype.kind == "i"


def test_score_and_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.read_csv(folder / "t.csv")
    frame.loc[0, "fixed"] = 8
    frame.to_csv(folder / "off.csv", index=False)
    assert main(["score", str(folder / "run"), str(folder / "off.csv"), "--out", str(folder / "p.csv")]) == 0
    scores = pd.read_csv(folder / "p.csv").log_prob
    assert np.isneginf(scores[0])
    assert np.isfinite(scores[1:]).all()
    capsys.readouterr()
    assert main(["evaluate", str(folder / "run"), "--json"]) == 0
    assert {"w2", "c2st", "log_likelihood"} <= set(json.loads(capsys.readouterr().out))


def test_scores_have_their_errors_beside_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["score", str(folder / "run"), str(folder / "t.csv"), "--out", str(folder / "e.csv")]
    assert main(words) == 0
    exact, said = pd.read_csv(folder / "e.csv"), capsys.readouterr().out
    assert list(exact.columns) == ["log_prob", "error", "se"]
    assert ((exact.error > 0) & (exact.error < 0.1)).all()
    bars = f"solver error {exact.error.mean():.1e}, standard error {exact.se.mean():.1e} (means)"
    assert f"; {bars}; 384 model calls a row" in said  # 4 dequantisations
    assert main([*words, "--force", "--probes", "2", "--seed", "1"]) == 0
    rough = pd.read_csv(folder / "e.csv")
    off, expected = (rough.log_prob - exact.log_prob) ** 2, rough.se**2 + exact.se**2
    assert 0.6 < off.mean() / expected.mean() < 1.6
    assert main([*words, "--force", "--probes", "0"]) == 2
    assert "--probes must be at least 1, got 0" in capsys.readouterr().err


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        assert main(["train", "moons", "--out", str(tmp_path / name), "--steps", "10"]) == 0
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first == second
    assert (tmp_path / "a" / "flow.html").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "anulus", "--out", "x"], "annulus"),
        (["train", "gone.csv", "--out", "x"], "gone.csv"),
        (["train", "moons", "--out", "x", "--steps", "0"], "steps"),
        (["train", "moons", "--out", "x", "--stepz", "3"], "stepz"),
        (["train", "moons"], "--out"),
        (["sample", "nowhere", "-n", "3", "--out", "x.csv"], "nowhere"),
        (["trian"], "train"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert says in said
    assert not list(tmp_path.iterdir())


def test_text_columns_are_named_with_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pd.DataFrame({"a": [1.0, 2.0], "name": ["x", "y"]}).to_csv(tmp_path / "t.csv", index=False)
    assert main(["train", str(tmp_path / "t.csv"), "--out", str(tmp_path / "run")]) == 2
    assert "--drop name" in capsys.readouterr().err
