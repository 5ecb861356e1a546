"""``pathline view``: the file it writes, and one line for whatever is wrong."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pathline.cli import main
from pathline.model import load
from pathline.viz import view

STEPS = ["--steps", "30", "--threads", "1", "--seed", "0"]


def data_of(path: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


def table(width: int, rows: int = 60, names: tuple[str, ...] = ()) -> pd.DataFrame:
    values = np.random.default_rng(width).normal(size=(rows, width)) * 3.0 + 10.123456
    return pd.DataFrame(values, columns=list(names or [f"c{i}" for i in range(width)]))


def trained(folder: Path, frame: pd.DataFrame | np.ndarray, *more: str) -> Path:
    file = folder / ("data.npy" if isinstance(frame, np.ndarray) else "data.csv")
    if isinstance(frame, np.ndarray):
        np.save(file, frame)
    else:
        frame.to_csv(file, index=False)
    assert main(["train", str(file), "--out", str(folder / "run"), *STEPS, *more]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("pair"), table(2))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("four"), table(4))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = np.random.default_rng(0)
    return trained(tmp_path_factory.mktemp("images"), draw.normal(size=(50, 6, 5)).astype("float32"))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err.strip()
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def test_a_run_of_two_columns(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "flow.html"
    assert main(["view", str(pair), "--out", str(out)]) == 0
    assert "holds rows of the training data" in capsys.readouterr().out
    assert out.stat().st_size < 1_000_000
    data = data_of(out)
    assert data["kind"] == "plane"
    assert len(data["curves"]["r2"]) == len(data["curves"]["times"]) == 20
    assert data["log"][-1][0] == 30
    assert {name for name, *_ in data["measures"]} >= {"w2", "log_likelihood"}
    assert dict(data["settings"])["steps"] == "30"
    assert data["memory"]["train"] == 54
    assert not re.search(r"https?://(?!www.w3.org/2000/svg)|@import|url\(", out.read_text())


def test_the_same_seed_gives_the_same_bytes(four: Path, tmp_path: Path) -> None:
    for suffix in ("html", "png", "gif"):
        for name in ("a", "b"):
            assert main(["view", str(four), "--out", str(tmp_path / f"{name}.{suffix}"), "--seed", "3"]) == 0
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_a_toy_a_column_four_columns_and_pictures(four: Path, images: Path, tmp_path: Path) -> None:
    one = trained(tmp_path, table(1))
    for run, kind in ((one, "line"), (four, "cloud"), (images, "pictures")):
        out = tmp_path / f"{kind}.html"
        assert main(["view", str(run), "--out", str(out)]) == 0
        data = data_of(out)
        assert data["kind"] == kind
        assert out.stat().st_size < 1_000_000
        assert data["curves"]["floor"]
    assert data_of(tmp_path / "pictures.html")["flow"]["shape"][1:] == [6, 5, 1]
    assert len(data_of(tmp_path / "cloud.html")["flow"]["axes"]) == 6


def test_a_toy_has_a_population_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred rows are told apart from t = 0.8 on: there the curves differ by 8 standard errors or more."""
    monkeypatch.setattr(view, "EXACT_ROWS", 100)
    run = tmp_path / "run"
    assert main(["train", "moons", "--out", str(run), *STEPS]) == 0
    assert main(["view", str(run), "--out", str(tmp_path / "a.html")]) == 0
    data = data_of(tmp_path / "a.html")
    curves = data["curves"]
    assert curves["toy"]
    assert np.all(np.less(curves["floor"], curves["above"])[16:])
    assert "fresh" in data["memory"]


@pytest.mark.parametrize("kind", ["pair", "four", "images"])
def test_no_data_leaves_every_row_out(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The arrays that are made of rows are absent, and no row's numbers occur."""
    run = request.getfixturevalue(kind)
    out = tmp_path / "a.html"
    assert main(["view", str(run), "--out", str(out), "--no-data"]) == 0
    text, data = out.read_text(), data_of(out)
    assert "holds no row of the data" in text
    field = data["field"] or {}
    assert not {"rows", "places", "error", "weight"} & set(field)
    assert data["flow"].get("nearest") is None
    source = run.parent / ("data.npy" if kind == "images" else "data.csv")
    rows = np.load(source) if kind == "images" else pd.read_csv(source).to_numpy()
    for value in rows.ravel():
        assert f"{value:.9f}"[:-2] not in text
    with_rows = tmp_path / "b.html"
    assert main(["view", str(run), "--out", str(with_rows)]) == 0
    assert len(with_rows.read_text()) > len(text)
    if kind == "pair":
        assert "rows" in data_of(with_rows)["field"]
        assert len(field["arrows"]) == len(data_of(with_rows)["field"]["arrows"]) / 2


def test_embedded_rows_are_rows_of_the_training(pair: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.html"
    assert main(["view", str(pair), "--out", str(out)]) == 0
    data = data_of(out)
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    codes = np.array([digits.index(c) for c in data["field"]["rows"]]).reshape(-1, 2)
    shares = ((64 * codes[:, 0] + codes[:, 1]) / 4095).reshape(-1, 2)
    a, b, c, d = data["flow"]["extent"]
    shown = np.array([a, c]) + shares * np.array([b - a, d - c])
    rows = pd.read_csv(pair.parent / "data.csv").to_numpy()
    away = np.abs(shown[:, None] - rows).max(2).min(1)
    assert len(shown) > 20
    assert away.max() < (b - a + d - c) / 4095


def test_films_and_strips(four: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in (four, images):
        assert main(["view", str(run), "--out", str(tmp_path / "a.gif"), "--force"]) == 0
        assert main(["view", str(run), "--out", str(tmp_path / "a.png"), "--force"]) == 0
        with Image.open(tmp_path / "a.gif") as film:
            count = getattr(film, "n_frames", 1)
            first = np.asarray(film.convert("L"), dtype=float)
            film.seek(count - 1)
            last = np.asarray(film.convert("L"), dtype=float)
        assert count > 20
        assert np.abs(first - last).max() > 50
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.width > 1000
    assert "no row of the data" in capsys.readouterr().out


def test_data_that_are_gone_leave_a_page_without_floors(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path, table(3))
    (tmp_path / "data.csv").unlink()
    capsys.readouterr()
    assert main(["view", str(run), "--out", str(tmp_path / "a.html")]) == 0
    assert "without the exact field and the floors" in said(capsys)
    data = data_of(tmp_path / "a.html")
    assert data["curves"] is None
    assert data["field"] is None


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=window.hacked=1></script>"
    run = trained(tmp_path, table(2, names=(hostile, "b")))
    assert main(["view", str(run), "--out", str(tmp_path / "a.html")]) == 0
    text = (tmp_path / "a.html").read_text()
    assert "<img" not in text
    assert text.count("</script>") == 2
    assert data_of(tmp_path / "a.html")["flow"]["columns"][0] == hostile


def test_a_model_with_a_condition(tmp_path: Path) -> None:
    frame = table(2).assign(kind=["<b>x</b>", "y"] * 30)
    run = trained(tmp_path, frame, "--condition", "kind")
    assert main(["view", str(run), "--out", str(tmp_path / "a.html")]) == 0
    data = data_of(tmp_path / "a.html")
    assert data["curves"]["r2"]
    assert data["field"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "--out", "{tmp}/a.pdf"], r"must end in one of .html, .gif, .png, got '.pdf'"),
        (["{run}", "--out", "{tmp}/there.html"], "exists; pass --force"),
        (["{run}", "--out", "{tmp}/nowhere/a.html"], "there is no directory"),
        (["{tmp}", "--out", "{tmp}/a.html"], "holds no model"),
        (["{tmp}/none", "--out", "{tmp}/a.html"], "no such directory"),
        (["{tmp}/there.html", "--out", "{tmp}/a.html"], "there.html"),
        (["{run}"], "--out must be given"),
        (["{run}", "--out", "{tmp}/a.html", "--nodata"], "no option --nodata"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], message: str, pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.html").write_text("old")
    capsys.readouterr()
    assert main(["view", *(word.format(run=pair, tmp=tmp_path) for word in words)]) == 2
    assert re.search(message, said(capsys))
    assert (tmp_path / "there.html").read_text() == "old"
    assert not (tmp_path / "a.html").exists()


def test_samples_that_are_not_finite(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load(pair)
    with torch.no_grad():
        for weight in model.field.parameters():
            weight.fill_(torch.nan)
    model.save(tmp_path / "model.safetensors")
    capsys.readouterr()
    assert main(["view", str(tmp_path), "--out", str(tmp_path / "a.html")]) == 2
    assert "not finite" in said(capsys)
    assert not (tmp_path / "a.html").exists()
