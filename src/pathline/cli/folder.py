"""A run's directory: what lies in it, who may write to it, and what it was trained on."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pathline.data.tables import Table, read_table, restore
from pathline.files import replacing
from pathline.metrics import Measure
from pathline.model import FILE, Model, load
from pathline.train.config import Config
from pathline.train.dataset import Dataset, Split, open_dataset
from pathline.transforms import Identity

LOCK = ".lock"
KNOWN = (FILE, "metrics.json", "log.jsonl", "samples.png", "flow.html", "config.json", "state.safetensors")


@dataclass(frozen=True)
class Plan:
    """What a run was started with: all that ``config.json`` holds.

    Attributes:
        config: every choice, data: the file or toy, fingerprint: of the file.
        device, threads: where it trains; other ones give other bits.
    """

    config: Config
    data: str
    fingerprint: str | None
    device: str
    threads: int


@dataclass(frozen=True)
class Folder:
    """The directory of one run."""

    path: Path

    @property
    def state(self) -> Path:
        return self.path / "state.safetensors"

    def prepare(self, force: bool) -> None:
        """Makes the directory, or sees that ``force`` may clear it.

        Raises:
            ValueError: it is in use, holds anything and ``force`` is not given, holds things but no run, or can't be
                made.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path}: is a file; name a directory for --out")
        held = sorted(item.name for item in self.path.iterdir()) if self.path.exists() else []
        held = [name for name in held if not name.startswith(".")]
        self.check_free()
        if held and not force:
            if "config.json" in held and FILE not in held:
                raise ValueError(
                    f"{self.path}: holds a run that was stopped; go on with `pathline train --resume {self.path}`, "
                    "or pass --force to start anew"
                )
            raise ValueError(f"{self.path}: exists and is not empty; pass --force to replace the run in it")
        if held and not self._holds_run():
            raise ValueError(f"{self.path}: holds {held[0]} and no run of pathline's to replace; choose another --out")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be made ({error.strerror}); choose another --out") from error

    def clear(self) -> None:
        """Removes an earlier run's files, and no others."""
        for name in KNOWN:
            for left in (self.path / name, *self.path.glob(f".{name}.*")):
                left.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the directory's lock; one that a dead process left behind is taken over.

        Raises:
            ValueError: a live process holds it, or the directory cannot be written to.
        """
        self.check_free()
        lock = self.path / LOCK
        with replacing(lock) as temporary:
            temporary.write_text(str(os.getpid()))
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)

    def write_plan(self, plan: Plan) -> None:
        self._write_json("config.json", {**vars(plan), "config": plan.config.to_dict()})

    def read_plan(self) -> Plan:
        """What the run was started with.

        Raises:
            ValueError: there is no run, or its config is not one.
        """
        file = self.path / "config.json"
        if not file.exists():
            raise ValueError(f"{self.path}: holds no run to resume; start one with `pathline train DATA --out DIR`")
        values = read_json(file)
        try:
            return Plan(**{**values, "config": Config.from_dict(values["config"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file}: is not the config of a run; start the run again") from error

    def write_metrics(self, measures: Mapping[str, Measure], verdict: str | None) -> None:
        said = {} if verdict is None else {"memorisation": verdict}
        self._write_json("metrics.json", {**plain(measures), **said})

    def measured_steps(self) -> int:
        """The steps of the run that ``metrics.json`` tells of, 0 where there is none."""
        try:
            return int(read_json(self.path / "metrics.json")["training_steps"]["value"])
        except (ValueError, TypeError, KeyError):
            return 0

    def _write_json(self, name: str, values: Any) -> None:
        with replacing(self.path / name) as temporary:
            temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")

    def check_free(self) -> None:
        """Raises ValueError where another process that lives is training there."""
        lock = self.path / LOCK
        try:
            owner = int(lock.read_text()) if lock.exists() else 0
        except ValueError:
            owner = 0
        if owner and owner != os.getpid() and _alive(owner):
            raise ValueError(
                f"{self.path}: process {owner} is training there; wait for it or name another directory "
                f"(if it is no training run, delete {lock})"
            )

    def _holds_run(self) -> bool:
        try:
            values = read_json(self.path / "config.json")
        except ValueError:
            return False
        return isinstance(values, dict) and {"config", "data"} <= set(values)


def plain(measures: Mapping[str, Measure]) -> dict[str, dict[str, Any]]:
    """Measures as JSON values; JSON has no infinity, so that what is not finite is null."""
    return {name: _plain(measure) for name, measure in measures.items()}


def _plain(measure: Measure) -> dict[str, Any]:
    numbers = {name: getattr(measure, name) for name in ("value", "floor", "se", "n")}
    found = {name: value if value is None or math.isfinite(value) else None for name, value in numbers.items()}
    return {**found, "parts": [_plain(part) for part in measure.parts]} if measure.parts else found


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
        Folder(path).check_free()
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


def columns_of(model: Model) -> dict[str, str]:
    """NumPy dtype by column; a model that was trained on bare tensors has the columns ``x0, x1, ...``."""
    known = model.about.get("dtypes")
    return known or {f"x{i}": "float32" for i in range(math.prod(model.shape))}


def row_shape(model: Model) -> tuple[int, ...] | None:
    """Shape of a row of the user's array, where it has more than one axis."""
    shape = model.about.get("shape") or model.shape
    return tuple(shape) if len(shape) > 1 else None


def read_rows(file: str, model: Model) -> Split:
    """The model's columns of a file: by name, or by position in an array.

    Raises:
        ValueError: columns are missing, or the file can't be used.
    """
    names = list(columns_of(model))
    condition = model.condition.name if model.condition else None
    try:
        table = read_columns(file, names, condition)
    except ValueError:
        if Path(file).suffix.lower() not in (".npy", ".npz"):
            raise
        table = read_columns(file, None, condition)
        if len(table.columns) != len(names):
            held = f"has {len(table.columns)} columns, the model has {len(names)}"
            raise ValueError(f"{file}: {held} ({', '.join(names[:20])}); give an array of these columns") from None
    values = table.frame[condition].to_numpy() if condition else None
    rows = torch.from_numpy(table.rows)
    return Split(rows.reshape(-1, *model.shape) if isinstance(model.transform, Identity) else rows, values)


def read_columns(file: str, names: Sequence[str] | None, condition: str | None = None) -> Table:
    """A table, for a command without the options --columns, --drop and --condition.

    Raises:
        ValueError: columns are missing, or the file can't be used.
    """
    try:
        return read_table(file, columns=names, condition=condition, min_rows=1)
    except ValueError as error:
        text = re.sub(r"--(columns|condition):? ", "", str(error))
        raise ValueError(re.sub(r", or leave the columns out: --drop .*", "", text, flags=re.DOTALL)) from error


def as_frame(model: Model, rows: Tensor, condition: np.ndarray | None) -> pd.DataFrame:
    """Rows in the user's units with their names, dtypes and condition."""
    frame = restore(rows.reshape(len(rows), -1).numpy(), columns_of(model))
    if model.condition is not None and condition is not None:
        frame[model.condition.name] = condition
    return frame


def check_out(out: Path, force: bool, suffixes: Sequence[str]) -> None:
    """Looks at the file to write before anything is computed.

    Raises:
        ValueError: its suffix is unknown, its folder is missing, or it exists and ``force`` is not given.
    """
    if out.suffix.lower() not in suffixes:
        raise ValueError(f"{out}: --out must end in one of {', '.join(suffixes)}, got {out.suffix!r}")
    if out.is_dir():
        raise ValueError(f"{out}: is a directory; name a file in it")
    if not out.parent.is_dir():
        raise ValueError(f"{out}: there is no directory {out.parent}; make it first")
    if out.exists() and not force:
        raise ValueError(f"{out}: exists; pass --force to replace it")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
