"""The state of a run in one safetensors file: tensors by name, the rest as JSON. Nothing is pickled."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn, optim

from pathline.files import read_tensors, write_tensors
from pathline.train.ema import MovingAverage

_KEY = "pathline_state"


def save_state(
    path: Path, step: int, about: dict[str, Any], net: nn.Module, optimizer: optim.Optimizer, ema: MovingAverage
) -> None:
    """Writes all that a run needs to go on after ``step`` finished steps."""
    tensors = {f"net.{key}": value for key, value in net.state_dict().items()}
    tensors |= {f"ema.{i}": value for i, value in enumerate(ema.average)}
    numbers: dict[str, dict[str, Any]] = {}
    for index, slots in optimizer.state_dict()["state"].items():
        for key, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    write_tensors(path, tensors, _KEY, {"step": step, "optimizer": numbers, **about})


def read_about(path: Path) -> dict[str, Any]:
    """The JSON part of a state, ``step`` among it.

    Raises:
        ValueError: no state there, or a file that is cut short or foreign.
    """
    return _open(path)[0]


def load_state(path: Path, net: nn.Module, optimizer: optim.Optimizer, ema: MovingAverage) -> int:
    """Puts a run back where it was and returns the number of finished steps.

    Raises:
        ValueError: no state there, a file that is cut short or foreign, or one of another network or optimiser.
    """
    about, tensors = _open(path)
    slots: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in about["optimizer"].items()}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            slots.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    try:
        net.load_state_dict({key[4:]: value for key, value in tensors.items() if key.startswith("net.")})
        for i, average in enumerate(ema.average):
            average.copy_(tensors[f"ema.{i}"])
        optimizer.load_state_dict({"state": slots, "param_groups": groups})
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: is of another network or optimiser ({reason}); start the run again") from error
    return about["step"]


def _open(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.exists():
        raise ValueError(f"{path}: no state of a run there; nothing to resume")
    try:
        return read_tensors(path, _KEY)
    except ValueError as error:
        raise ValueError(f"{error}; start the run again") from error
