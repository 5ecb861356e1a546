"""A run's directory: what lies in it, who may write to it, and what it was trained on."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pathline.data.tables import read_table, restore
from pathline.files import replacing
from pathline.metrics import Measure
from pathline.model import FILE, Model, load
from pathline.train.config import Config
from pathline.train.dataset import Dataset, Split, open_dataset

KNOWN = (FILE, "metrics.json", "log.jsonl", "samples.png", "flow.html", "config.json", "state.safetensors")


@dataclass(frozen=True)
class Folder:
    """The directory of one run."""

    path: Path

    @property
    def state(self) -> Path:
        return self.path / "state.safetensors"

    def prepare(self, force: bool) -> None:
        """Makes the directory, or empties it of an earlier run's files under ``force``.

        Raises:
            ValueError: it is in use, holds anything and ``force`` is not given, or cannot be made.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path}: is a file; name a directory for --out")
        held = sorted(item.name for item in self.path.iterdir()) if self.path.exists() else []
        if held and not force:
            if "config.json" in held and FILE not in held:
                raise ValueError(
                    f"{self.path}: holds a run that was stopped; go on with `pathline train --resume {self.path}`, "
                    "or pass --force to start anew"
                )
            raise ValueError(f"{self.path}: exists and is not empty; pass --force to replace the run in it")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be made ({error.strerror}); choose another --out") from error

    def clear(self) -> None:
        """Removes an earlier run's files, and no others."""
        for name in KNOWN:
            (self.path / name).unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the directory's lock; one that a dead process left behind is taken over.

        Raises:
            ValueError: a live process holds it, or the directory cannot be written to.
        """
        lock = self.path / ".lock"
        try:
            owner = int(lock.read_text()) if lock.exists() else 0
        except ValueError:
            owner = 0
        if owner and owner != os.getpid() and _alive(owner):
            raise ValueError(f"{self.path}: process {owner} is training there; wait for it or choose another --out")
        with replacing(lock) as temporary:
            temporary.write_text(str(os.getpid()))
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)

    def write_json(self, name: str, values: Any) -> None:
        with replacing(self.path / name) as temporary:
            temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")

    def write_metrics(self, measures: Mapping[str, Measure]) -> None:
        self.write_json("metrics.json", {name: asdict(measure) for name, measure in measures.items()})

    def read_config(self) -> tuple[Config, str]:
        """The config of the run and the name or file of its data.

        Raises:
            ValueError: there is no run, or its config is not one.
        """
        file = self.path / "config.json"
        if not file.exists():
            raise ValueError(f"{self.path}: holds no run to resume")
        values = read_json(file)
        try:
            return Config.from_dict(values["config"]), str(values["data"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file}: is not the config of a run; start the run again") from error


def read_json(file: Path) -> Any:
    """The JSON in ``file``.

    Raises:
        ValueError: no such file, or no JSON in it.
    """
    try:
        return json.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}; check the path") from error
    except ValueError as error:
        raise ValueError(f"{file}: is not JSON ({error})") from error


def load_run(directory: str, device: str = "cpu") -> Model:
    """The model of a run; ``directory`` may also be the file itself.

    Raises:
        ValueError: there is none, with the way on where a run was stopped.
    """
    path = Path(directory)
    if not path.exists():
        raise ValueError(f"{path}: no such directory; make a run with `pathline train DATA --out {path}`")
    if path.is_dir() and not (path / FILE).exists():
        if (path / "config.json").exists():
            raise ValueError(f"{path}: the run there was stopped; finish it with `pathline train --resume {path}`")
        raise ValueError(f"{path}: holds no model; make one with `pathline train DATA --out DIR`")
    return load(path, device=device)


def dataset_of(model: Model) -> Dataset:
    """The data that a model was trained on, split as it was.

    Raises:
        ValueError: the file is gone or has changed.
    """
    about = model.about.get("data", {})
    source = about.get("toy") or about.get("file")
    if source is None:
        raise ValueError("the model does not say what it was trained on; pass rows as --data FILE")
    try:
        dataset = open_dataset(source, Config.from_dict(model.about["config"]))
    except ValueError as error:
        raise ValueError(f"{error}; the training data are needed unless you pass other rows as --data FILE") from error
    if dataset.about.get("fingerprint") != about.get("fingerprint"):
        raise ValueError(f"{source}: has changed since the model was trained; pass rows as --data FILE")
    return dataset


def read_rows(file: str, model: Model) -> Split:
    """The model's columns of a file: by name, or by position in an array.

    Raises:
        ValueError: columns are missing, or the file can't be used.
    """
    names = list(model.about.get("dtypes", {}))
    condition = model.condition.name if model.condition else None
    if Path(file).suffix in (".npy", ".npz"):
        table = read_table(file, condition=condition, min_rows=1)
        if len(table.columns) != len(names):
            raise ValueError(f"{file}: has {len(table.columns)} columns, the model has {len(names)}")
    else:
        table = read_table(file, columns=names, condition=condition, min_rows=1)
    values = table.frame[condition].to_numpy() if condition else None
    return Split(torch.from_numpy(table.rows), values)


def as_frame(model: Model, rows: Tensor, condition: np.ndarray | None) -> pd.DataFrame:
    """Rows in the user's units with their names, dtypes and condition."""
    frame = restore(rows.numpy(), model.about["dtypes"])
    if model.condition is not None and condition is not None:
        frame[model.condition.name] = condition
    return frame


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
