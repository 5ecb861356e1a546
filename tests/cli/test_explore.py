"""``pathline explore``: the file it writes, and one line for whatever is wrong."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pathline.cli import main

HOSTILE = "<img src=x onerror=window.hacked=1>"


def sets_of(path: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "page.html"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "city": ["Rome", "Oslo"] * 2500,
            "price": draw.normal(300, 40, 5000),
            "size": draw.gamma(2.0, 10, 5000),
            "c": draw.normal(size=5000),
        }
    )
    path = tmp_path / "homes.csv"
    frame.to_csv(path, index=False)
    return path


def test_without_data_it_holds_the_toys(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--out", str(out)]) == 0
    assert "annulus" in capsys.readouterr().out
    assert out.stat().st_size < 1_000_000
    data = sets_of(out)
    assert data["start"] == "annulus"
    names = {entry["id"] for entry in data["sets"]}
    assert {"one-gaussian", "annulus", "moons", "checkerboard", "drawn"} <= names


def test_a_toy_s_name_starts_there(out: Path) -> None:
    assert main(["explore", "moons", "--out", str(out)]) == 0
    assert sets_of(out)["start"] == "moons"


def test_a_file_gives_its_first_two_columns_of_numbers(
    table: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explore", str(table), "--out", str(out)]) == 0
    assert "2,000 of 5,000 rows of the columns price and size" in capsys.readouterr().out
    data = sets_of(out)
    own = data["sets"][0]
    assert data["start"] == own["id"]
    assert own["columns"] == ["price", "size"]
    assert own["count"] == 2000
    assert "2,000 of 5,000 rows of homes.csv" in own["about"]
    assert own["shift"][0] == pytest.approx(300, abs=5)


def test_columns_are_chosen_by_name(table: Path, out: Path) -> None:
    assert main(["explore", str(table), "--columns", "c,price", "--out", str(out)]) == 0
    assert sets_of(out)["sets"][0]["columns"] == ["c", "price"]


def test_an_array_is_read(tmp_path: Path, out: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(50, 2)))
    assert main(["explore", str(tmp_path / "a.npy"), "--out", str(out)]) == 0
    assert sets_of(out)["sets"][0]["count"] == 50


def test_hostile_names_stay_text(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "x <img src=x onerror=window.hacked=1>.csv"
    pd.DataFrame({HOSTILE: [0.0, 1.0, 3.0], "b</script>": [1.0, 2.0, 4.0]}).to_csv(path, index=False)
    assert main(["explore", str(path), "--out", str(out)]) == 0
    text = out.read_text("utf-8")
    assert "<img" not in text
    assert text.count("</script>") == 2
    assert sets_of(out)["sets"][0]["columns"] == [HOSTILE, "b</script>"]


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["explore", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("pathline: ")
    assert said.err.count("\n") == 1
    return said.err


def test_an_output_that_exists_needs_force(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out.write_text("old")
    assert "--force" in refused(["--out", str(out)], capsys)
    assert out.read_text() == "old"
    assert main(["explore", "--out", str(out), "--force"]) == 0
    assert out.stat().st_size > 100_000


def test_bad_input_is_one_line(tmp_path: Path, table: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, text, same, holes = (tmp_path / name for name in ("one.csv", "text.csv", "same.csv", "holes.csv"))
    pd.DataFrame({"a": [1.0, 2.0, 3.0]}).to_csv(one, index=False)
    pd.DataFrame({"a": ["u", "v", "w"], "b": ["p", "q", "r"]}).to_csv(text, index=False)
    pd.DataFrame({"a": [1.0, 1.0, 1.0], "b": [1.0, 2.0, 3.0]}).to_csv(same, index=False)
    pd.DataFrame({"a": [1.0, np.nan, 1.0], "b": [1.0, 2.0, 3.0]}).to_csv(holes, index=False)
    np.save(tmp_path / "images.npy", np.zeros((5, 3, 4, 4)))
    to = ["--out", str(out)]
    assert "no such file" in refused([str(tmp_path / "none.csv"), *to], capsys)
    assert "did you mean annulus" in refused(["anulus", *to], capsys)
    assert "one column" in refused([str(one), *to], capsys)
    assert "not numbers" in refused([str(text), *to], capsys)
    assert "city (text)" in refused([str(table), "--columns", "city,price", *to], capsys)
    assert "'a' must vary" in refused([str(same), *to], capsys)
    assert "missing or infinite" in refused([str(holes), *to], capsys)
    assert "(3, 4, 4)" in refused([str(tmp_path / "images.npy"), *to], capsys)
    assert "two columns" in refused([str(table), "--columns", "price", *to], capsys)
    assert "two columns" in refused([str(table), "--columns", "price,size,c", *to], capsys)
    assert "no column" in refused([str(table), "--columns", "price,sise", *to], capsys)
    assert "needs a file" in refused(["annulus", "--columns", "x,y", *to], capsys)
    assert ".html" in refused(["--out", str(tmp_path / "page.txt")], capsys)
    assert "--out" in refused([], capsys)
    assert not out.exists()
