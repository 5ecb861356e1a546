"""Images as an array (n, h, w): the run's samples.png is a grid of pictures, beside the data."""

import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from pathline.cli import main

with tempfile.TemporaryDirectory() as folder:
    array, run, made = (str(Path(folder) / name) for name in ("digits.npy", "run", "made.npy"))
    np.save(array, load_digits().images.astype(np.uint8))
    assert main(["train", array, "--out", run, "--steps", "200"]) == 0
    main(["sample", run, "-n", "16", "--out", made])
    print("made", np.load(made).shape, np.load(made).dtype, "between", np.load(made).min(), "and", np.load(made).max())
