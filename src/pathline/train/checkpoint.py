"""The state of a run in one safetensors file: tensors by name, the rest as JSON. Nothing is pickled."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn, optim

from pathline.files import replacing
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
    metadata = {"step": step, "optimizer": numbers, **about}
    with replacing(path) as temporary:
        whole = {key: value.detach().contiguous().cpu().clone() for key, value in tensors.items()}
        save_file(whole, temporary, metadata={_KEY: json.dumps(metadata, sort_keys=True)})


def read_about(path: Path) -> dict[str, Any]:
    """The JSON part of a state, ``step`` among it.

    Raises:
        ValueError: no state there, or a file that is cut short or foreign.
    """
    return _open(path)[0]


def load_state(path: Path, net: nn.Module, optimizer: optim.Optimizer, ema: MovingAverage) -> int:
    """Puts a run back where it was and returns the number of finished steps."""
    about, tensors = _open(path)
    net.load_state_dict({key[4:]: value for key, value in tensors.items() if key.startswith("net.")})
    for i, average in enumerate(ema.average):
        average.copy_(tensors[f"ema.{i}"])
    slots: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in about["optimizer"].items()}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            slots.setdefault(int(index), {})[key] = value
    state = optimizer.state_dict()
    optimizer.load_state_dict({"state": slots, "param_groups": state["param_groups"]})
    return about["step"]


def _open(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.exists():
        raise ValueError(f"{path}: no state of a run there; nothing to resume")
    try:
        with safe_open(path, framework="pt") as handle:
            about = json.loads((handle.metadata() or {})[_KEY])
            return about, {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: is no complete state of a pathline run ({error}); start the run again") from error
