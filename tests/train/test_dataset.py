"""How a table is split, and what is said of it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pathline.train.config import Config
from pathline.train.dataset import open_dataset


@pytest.mark.parametrize(
    ("n", "story"),
    [
        (19, "19 fixed rows, too few to hold any out: measured on the same rows"),
        (20, "18 fixed rows (2 more are held out)"),
    ],
)
def test_tables_below_twenty_rows_are_not_split(n: int, story: str, tmp_path: Path):
    rows = np.random.default_rng(0).normal(size=(n, 2))
    pd.DataFrame(rows, columns=["a", "b"]).to_csv(tmp_path / "rows.csv", index=False)
    found = open_dataset(str(tmp_path / "rows.csv"), Config())
    assert found.story == story
