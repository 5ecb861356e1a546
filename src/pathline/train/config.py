"""Config: all that a run of the command line or of `FlowMatcher` is besides its data; JSON in the checkpoint."""

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pathline.model import Preset
from pathline.train.recipe import Recipe


@dataclass(frozen=True)
class Config:
    """The choices of a run.

    Attributes:
        recipe: steps, batch size, learning rate and the rest.
        preset: solver and model calls of sampling.
        width, depth: of the network; a width of ``None`` is chosen from the number of columns.
        columns: the columns to model, ``None``: all; drop: those to leave out.
        condition: the column that the model is conditional on.
        positive: columns to keep above zero.
    """

    recipe: Recipe = field(default_factory=Recipe)
    preset: Preset = field(default_factory=Preset)
    width: int | None = None
    depth: int = 4
    columns: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    condition: str | None = None
    positive: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `from_dict` makes an equal config of them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """The config whose `to_dict` gave ``values``; what is left out keeps its default.

        Raises:
            ValueError: an unknown name, or a value of the wrong type or out of range.
        """
        config: Config = _record(cls, values, "config")
        config.check()
        return config

    def check(self) -> None:
        """Raises ValueError where a value is out of its range, or the solver can't spend the model calls."""
        self.recipe.check()
        for name in ("width", "depth"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.preset.check()


def _record(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be an object of names and values, got {values!r}")
    known = {item.name: item for item in fields(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{where} has no {', '.join(unknown)}; it has {', '.join(known)}")
    return kind(**{name: _value(known[name], value, f"{where}.{name}") for name, value in values.items()})


def _value(item: dataclasses.Field[Any], value: Any, where: str) -> Any:
    for record in (Recipe, Preset):
        if item.default_factory is record:
            return _record(record, value, where)
    allowed: dict[Any, tuple[type, ...]] = {
        int: (int,),
        float: (int, float),
        int | None: (int, type(None)),
        float | None: (int, float, type(None)),
        str: (str,),
        str | None: (str, type(None)),
    }
    if item.type in allowed:
        if isinstance(value, bool) or not isinstance(value, allowed[item.type]):
            raise ValueError(f"{where} must be of type {item.type}, got {value!r}")
        return value
    if value is None and item.default is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{where} must be a list of column names, got {value!r}")
    return tuple(value)
