"""Units of the data: fitted maps between a user's rows and what a network sees.

Every transform is a frozen record of JSON values that reads back exactly. Log-determinants are in nats: a
log-density of network units plus ``log_abs_det`` is one in the user's units.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from pathline.wording import guess, listing, show

Kind = Literal["real", "integer", "decimal", "constant"]
Value = str | bool | int | float

_TINY = torch.finfo(torch.float64).tiny
_HUGE = torch.finfo(torch.float64).max / 2
_DETECTED = 2.0**24
_WHOLE = 2.0**40
_CATEGORIES = 20
_DECIMALS = 6
_WORDS = 1000
_QUANTILES = 1001


class _Record:
    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; `from_dict` makes an equal transform of them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The transform whose `to_dict` gave ``values``."""
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


@dataclass(frozen=True)
class Identity(_Record):
    """Rows of any shape ``(n, *d)`` as they are."""

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """``x`` and its log-determinant, zeros ``(n,)``."""
        return x, x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        """``z`` as it is."""
        return z


@dataclass(frozen=True)
class TableTransform(_Record):
    """Rows ``(n, D)`` in the user's units and ``(n, d)`` in network units, d the number of columns that vary.

    A column x becomes ``z = (y - shift) / scale``, of mean 0 and variance 1 over the rows of the fit, where

    - ``y = x`` for a real column and ``y = log x`` for a positive one;
    - ``y = x + u`` for an integer column, u uniform on [0, 1), and ``y = log(x - 1 + u)`` for a positive one,
      which therefore never comes back below 1. u keeps off 0 and 1 by 2^-44 of the column's magnitude, so that
      rounding never moves an integer;
    - a decimal column, one of numbers written with k decimals in which values repeat, counts steps of 10^-k: its
      ``10^k x`` is treated as an integer column is, and a positive one never comes back below one step;
    - a constant column has no part in z nor in the density.

    Densities are those of the varying columns in the user's units, integers and decimals dequantised. All work is in
    float64.

    Attributes:
        columns: names of the D columns.
        kinds: "real", "integer", "decimal" or "constant", by column.
        positive: whether a column is kept above zero.
        decimals: k of a decimal column, 0 of others.
        shift, scale: of y, by column; a constant column's value is its shift, with scale 1.
    """

    columns: tuple[str, ...]
    kinds: tuple[Kind, ...]
    positive: tuple[bool, ...]
    decimals: tuple[int, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def fit(
        cls,
        x: Tensor,
        columns: Sequence[str],
        positive: Sequence[str] = (),
        integer: Sequence[bool] | None = None,
    ) -> Self:
        """Fits the units of rows.

        Args:
            x: rows, shape ``(n, D)``.
            columns: names of the D columns.
            positive: columns that hold, and shall get, values above zero alone.
            integer: which columns are whole numbers, to be dequantised; one with a value beyond 2^40 is taken as
                real all the same. ``None``: those with whole numbers below 2^24 alone. Of the others, those are
                decimal whose values are multiples of 10^-k, k at most 6, and repeat: at most half as many as rows.

        Raises:
            ValueError: a value is not finite, not above zero in a positive column or not whole in an integer
                one; a name is unknown; no column varies.
        """
        x = _rows(x, columns)
        if len(x) < 2:
            raise ValueError(f"x must have at least 2 rows, got {len(x)}")
        for name in positive:
            if name not in columns:
                hint = guess(name, columns)
                raise ValueError(f"positive: no column {show(name)}{hint}; columns are {listing(columns)}")
        log = torch.tensor([name in positive for name in columns])
        _refuse((x <= 0) & log, x, columns, "a positive column needs values above 0")
        whole = _integers(x, columns, integer)
        constant = x.amax(0) == x.amin(0)
        if constant.all():
            raise ValueError(f"every column is constant ({listing(columns)}); give at least one that varies")
        decimals = [0 if held else _decimals(column) for held, column in zip(whole | constant, x.T, strict=True)]
        counted = whole | torch.tensor([k > 0 for k in decimals])
        center, spread = _standard(_in_steps(x, torch.tensor(decimals)), counted, log)
        beyond = ~constant & ~((spread > 0) & spread.isfinite())
        if beyond.any():
            name = columns[int(beyond.nonzero()[0])]
            raise ValueError(f"column {show(name)} spreads beyond float64; rescale it, or leave it out of positive")
        flags = zip(constant.tolist(), whole.tolist(), decimals, strict=True)
        return cls(
            columns=tuple(columns),
            kinds=tuple("constant" if c else "integer" if w else "decimal" if k else "real" for c, w, k in flags),
            positive=tuple(log.tolist()),
            decimals=tuple(decimals),
            shift=tuple(torch.where(constant, x[0], center).tolist()),
            scale=tuple(torch.where(constant, 1.0, spread).tolist()),
        )

    @property
    def dim(self) -> int:
        """d, the number of columns that vary."""
        return len(self.kinds) - self.kinds.count("constant")

    @property
    def dequantises(self) -> bool:
        """Whether a column is of integers or decimals, so that `forward` draws."""
        return not {"integer", "decimal"}.isdisjoint(self.kinds)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Network units of rows.

        Args:
            x: rows, shape ``(n, D)``.
            generator: draws the u of integer and decimal columns.

        Returns:
            z ``(n, d)`` and log|det dz/dx| ``(n,)`` in nats, float64. A row that the fit rules out (off a
            constant column, off the steps of an integer or decimal one, not above zero in a positive one) has a
            finite z and ``-inf``.

        Raises:
            ValueError: ``x`` is not ``(n, D)`` or not finite.
        """
        decimals = torch.tensor(self.decimals, device=x.device)
        x = _in_steps(_rows(x, self.columns), decimals)
        varying, whole, log = self._masks(x.device)
        shift, scale = self._units(x.device)
        y = x.clone()
        k = x[:, whole].floor()
        u = torch.rand(k.shape, generator=generator, dtype=torch.float64, device=x.device)
        margin = (2.0**-44 * (k.abs() + shift[whole].abs() + 1)).clamp(max=0.5)
        y[:, whole] = k - log[whole].double() + (margin + (1 - 2 * margin) * u)
        logs = y[:, log].clamp(min=_TINY).log()
        y[:, log] = logs
        off = (~varying & (x != shift)) | (whole & (x != x.floor())) | (log & (x <= 0))
        log_scale = scale.log().sum() - math.log(10) * decimals.sum()
        log_abs_det = torch.where(off.any(1), -torch.inf, -log_scale - logs.sum(1))
        return ((y - shift) / scale)[:, varying], log_abs_det

    def inverse(self, z: Tensor) -> Tensor:
        """Rows ``(n, D)``, float64, of network units ``(n, d)``.

        Integers and decimals are floored to their steps, constants restored. The rows of any z without NaN are
        finite: values are cut at half of the largest float64, positive ones also at the smallest normal one.

        Raises:
            ValueError: ``z`` is not ``(n, d)``.
        """
        if z.ndim != 2 or z.shape[1] != self.dim:
            raise ValueError(f"z must have shape (n, {self.dim}), got {tuple(z.shape)}")
        varying, whole, log = self._masks(z.device)
        shift, scale = self._units(z.device)
        x = shift.repeat(len(z), 1)
        x[:, varying] = (z.double() * scale[varying] + shift[varying]).clamp(-_HUGE, _HUGE)
        x[:, log] = x[:, log].clamp(math.log(_TINY), math.log(_HUGE)).exp() + whole[log].double()
        return torch.where(whole, x.floor(), x) / 10.0 ** torch.tensor(self.decimals, device=z.device)

    def snap(self, x: Tensor) -> Tensor:
        """Rows ``(n, D)`` with constants restored, integers and decimals floored to their steps, float64."""
        decimals = torch.tensor(self.decimals, device=x.device)
        varying, whole, _ = self._masks(x.device)
        x = _in_steps(_rows(x, self.columns), decimals)
        x = torch.where(varying, torch.where(whole, x.floor(), x), self._units(x.device)[0])
        return x / 10.0**decimals

    def _masks(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        varying = torch.tensor([kind != "constant" for kind in self.kinds], device=device)
        whole = torch.tensor([kind in ("integer", "decimal") for kind in self.kinds], device=device)
        return varying, whole, varying & torch.tensor(self.positive, device=device)

    def _units(self, device: torch.device) -> tuple[Tensor, Tensor]:
        units = torch.tensor([self.shift, self.scale], dtype=torch.float64, device=device)
        return units[0], units[1]


@dataclass(frozen=True)
class ConditionTransform(_Record):
    """One condition column and the network's tensor of it, ``(n, width)`` float32.

    Text, booleans and whole numbers of at most 20 distinct values are categories, one-hot in the order of
    ``values``; other numbers are standardised. No row of the data is kept.

    Attributes:
        name: the column.
        kind: "category" or "number".
        values, frequencies: the categories in order and the share of the rows that each has.
        quantiles: of a number column, at equal steps of probability from 0 to 1; at most 1001.
        integer: whether its numbers are whole.
        shift, scale: mean and standard deviation of a number column.
    """

    name: str
    kind: Literal["category", "number"]
    values: tuple[Value, ...] = ()
    frequencies: tuple[float, ...] = ()
    quantiles: tuple[float, ...] = ()
    integer: bool = False
    shift: float = 0.0
    scale: float = 1.0

    @classmethod
    def fit(cls, name: str, values: Sequence[Any] | np.ndarray) -> Self:
        """Fits one column, shape ``(n,)``.

        Raises:
            ValueError: a value is missing or infinite, or is no text, boolean or real number; the column mixes
                them, is empty, or has more than 1000 distinct texts.
        """
        column = _column(name, values)
        if not len(column):
            raise ValueError(f"condition {show(name)}: has no rows; give at least one")
        number = column.dtype.kind in "iuf"
        whole = number and bool((column == np.rint(column)).all()) and float(np.abs(column).max()) < 2.0**63
        distinct, counts = np.unique(column, return_counts=True)
        if not number and len(distinct) > _WORDS:
            what = f"has {len(distinct)} distinct texts, more than {_WORDS}"
            raise ValueError(f"condition {show(name)}: {what}; choose another column or merge its values")
        if not number or (whole and len(distinct) <= _CATEGORIES):
            known = distinct.astype(np.int64) if column.dtype.kind == "f" else distinct
            frequencies = tuple((counts / len(column)).tolist())
            return cls(name, "category", tuple(known.tolist()), frequencies, integer=whole)
        column = column.astype(np.float64)
        steps = np.linspace(0, 1, min(_QUANTILES, len(column) // 4 + 2))
        quantiles = tuple(np.quantile(column, steps).tolist())
        center, spread = (unit.item() for unit in _moments(torch.from_numpy(column)[:, None]))
        return cls(name, "number", (), (), quantiles, whole, center, spread or 1.0)

    @property
    def width(self) -> int:
        """Width of the tensor: the number of categories, or 1."""
        return len(self.values) if self.kind == "category" else 1

    def encode(self, values: Sequence[Any] | np.ndarray) -> Tensor:
        """The tensor ``(n, width)``, float32, of a column ``(n,)``.

        Raises:
            ValueError: a category is unknown, a number missing, infinite or text.
        """
        column = _column(self.name, values)
        if self.kind == "number":
            if column.dtype.kind == "O" and len(column):
                raise self._error(column[0], "row 1")
            return torch.from_numpy((column.astype(np.float64) - self.shift) / self.scale).float()[:, None]
        index = {value: i for i, value in enumerate(self.values)}
        found = [index.get(value, -1) for value in column.tolist()]
        if -1 in found:
            row = found.index(-1)
            raise self._error(column[row], f"row {row + 1}")
        return torch.nn.functional.one_hot(torch.tensor(found, dtype=torch.int64), self.width).float()

    def draw(self, n: int, generator: torch.Generator | None = None) -> np.ndarray:
        """``n`` values distributed as in training: by frequency, or by the inverse distribution function.

        Raises:
            ValueError: ``n`` is below 1.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if self.kind == "category":
            weights = torch.tensor(self.frequencies, dtype=torch.float64)
            rows = torch.multinomial(weights, n, replacement=True, generator=generator)
            text = isinstance(self.values[0], str)
            return np.array(self.values, dtype=object if text else None)[rows.numpy()]
        u = torch.rand(n, generator=generator, dtype=torch.float64).numpy()
        drawn = np.interp(u, np.linspace(0, 1, len(self.quantiles)), self.quantiles)
        return np.rint(drawn).astype(np.int64) if self.integer else drawn

    def parse(self, text: str) -> Value:
        """The value that a word on a command line means.

        >>> ConditionTransform.fit("ok", [True, False]).parse("0")
        False

        Raises:
            ValueError: no category is spelled so, or the text is no finite number.
        """
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if self.kind == "number" and math.isfinite(number):
            return int(number) if self.integer and number.is_integer() else number
        for value in self.values:
            if text == str(value) or (not isinstance(value, str) and number == value):
                return value
            if isinstance(value, bool) and text.lower() == str(value).lower():
                return value
        raise self._error(text)

    def _error(self, value: object, row: str = "") -> ValueError:
        where = f"condition {show(self.name)}: {row + ': ' if row else ''}"
        if self.kind == "number":
            low, high = self.quantiles[0], self.quantiles[-1]
            return ValueError(f"{where}{value!r} is no number; it was {low:g} to {high:g} in training")
        known = [str(value) for value in self.values]
        hint = guess(str(value), known)
        return ValueError(f"{where}no category {show(value)}{hint}; categories are {listing(known)}")


def _refuse(bad: Tensor, x: Tensor, columns: Sequence[str], rule: str) -> None:
    if bad.any():
        row, i = torch.nonzero(bad)[0].tolist()
        raise ValueError(f"column {show(columns[i])}, row {row + 1}: {x[row, i].item():g}; {rule}")


def _rows(x: Tensor, columns: Sequence[str]) -> Tensor:
    if x.ndim != 2 or x.shape[1] != len(columns):
        raise ValueError(f"x must have shape (n, {len(columns)}), one column per name, got {tuple(x.shape)}")
    x = x.double()
    _refuse(~x.isfinite(), x, columns, "values must be finite; fill in or delete the row")
    return x


def _integers(x: Tensor, columns: Sequence[str], integer: Sequence[bool] | None) -> Tensor:
    broken = x != x.round()
    largest = x.abs().amax(0)
    if integer is None:
        return ~broken.any(0) & (largest < _DETECTED)
    if len(integer) != len(columns):
        raise ValueError(f"integer must have one flag for each of {len(columns)} columns, got {len(integer)}")
    flags = torch.tensor(list(integer), dtype=torch.bool)
    _refuse(broken & flags, x, columns, "integer columns need whole numbers")
    return flags & (largest <= _WHOLE)


def _decimals(column: Tensor) -> int:
    """How many decimals the values of a column are written with, 0 where they do not repeat."""
    if 2 * len(column.unique()) > len(column):
        return 0
    for k in range(1, _DECIMALS + 1):
        steps = _in_steps(column, torch.tensor(k))
        if bool((steps == steps.round()).all()) and float(steps.abs().max()) < _DETECTED:
            return k
    return 0


def _in_steps(x: Tensor, decimals: Tensor) -> Tensor:
    """x in steps of 10^-k by column, made whole where it is a multiple but for rounding; as it is for k = 0."""
    if not bool(decimals.any()):
        return x
    steps = x * 10.0**decimals
    near = steps.round()
    rounding = 2.0**-50 * near.abs()
    return torch.where((decimals > 0) & ((steps - near).abs() <= rounding), near, steps)


def _standard(x: Tensor, whole: Tensor, log: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column's y; u is averaged over in closed form."""
    y = x.clone()
    variance = torch.zeros_like(x[0])
    y[:, log] = x[:, log].log()
    plain = whole & ~log
    y[:, plain] += 0.5
    variance[plain] = 1 / 12
    count = whole & log
    y[:, count], spread = _log_uniform(x[:, count] - 1)
    variance[count] = spread.mean(0)
    center, spread = _moments(y)
    return center, torch.hypot(spread, variance.sqrt())


def _log_uniform(m: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of log(m + u), u uniform on [0, 1), for m = 0, 1, 2, ...

    They are ``log m + (m + 1) a - 1`` and ``1 - m (m + 1) a^2`` with ``a = log(1 + 1/m)``.
    """
    low = m.clamp(min=1)
    a = torch.log1p(1 / low)
    mean = torch.where(m == 0, -1.0, low.log() + (m + 1) * a - 1)
    exact = torch.where(m == 0, 1.0, 1 - m * (m + 1) * a**2)
    return mean, torch.where(m < 1000, exact, 1 / (12 * (m + 0.5) ** 2))


def _moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of columns ``(n, d)``, at any magnitude and offset."""
    n = len(y)
    center = (y / n).sum(0)
    center = center + ((y - center) / n).sum(0)
    d = y - center
    top = d.abs().amax(0).clamp(min=_TINY)
    return center, top * (d / top).square().mean(0).sqrt()


def _column(name: str, values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """The values as booleans, integers, floats or (dtype object) text."""
    column = np.asarray(values) if hasattr(values, "dtype") else np.array(values, dtype=object)
    if column.ndim != 1:
        raise ValueError(f"condition {show(name)}: must have shape (n,), got {column.shape}")
    if column.dtype.kind in "UT":
        column = column.astype(object)
    if column.dtype.kind == "O":
        column = _typed(name, column)
    if column.dtype.kind not in "biufO":
        raise ValueError(f"condition {show(name)}: holds {column.dtype}; write it as text or real numbers")
    if column.dtype.kind == "f" and not np.isfinite(column).all():
        raise _missing(name, int(np.flatnonzero(~np.isfinite(column))[0]))
    return column


def _typed(name: str, column: np.ndarray) -> np.ndarray:
    types = {type(value) for value in column}
    absent = [t for t in types if t is type(None) or t.__name__ in ("NAType", "NaTType")]
    mixed = any(issubclass(t, str) for t in types)
    for row, value in enumerate(column if absent or mixed else ()):
        if type(value) in absent or value != value:
            raise _missing(name, row)
    if all(issubclass(t, str) for t in types):
        return column
    if all(issubclass(t, bool | np.bool_) for t in types):
        return column.astype(bool)
    if all(issubclass(t, int | np.integer) for t in types) and all(abs(value) < 2**63 for value in column):
        return column.astype(np.int64)
    if all(issubclass(t, Real | np.bool_) for t in types):
        return column.astype(np.float64)
    listed = ", ".join(sorted(t.__name__ for t in types))
    raise ValueError(f"condition {show(name)}: holds {listed}; write it all as text or all as real numbers")


def _missing(name: str, row: int) -> ValueError:
    return ValueError(f"condition {show(name)}: row {row + 1} is missing or infinite; fill it in or delete it")
