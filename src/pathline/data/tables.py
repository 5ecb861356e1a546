"""Tables on disk: a ``.csv``, ``.parquet``, ``.npy`` or ``.npz`` file as columns of numbers, and back.

Whatever is wrong with a file is one line that names it, the row or column, and the remedy. Rows are counted
from 1, without the header and without blank lines.
"""

import csv
import hashlib
import importlib.util
import io
import math
import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from pathline.files import replacing
from pathline.wording import guess, listing, show

_T = TypeVar("_T")

Rows = pd.DataFrame | np.ndarray


@dataclass(frozen=True, eq=False)
class Table:
    """A file's columns of numbers, and its condition if one was asked for.

    Attributes:
        frame: the features in order (booleans, integers or floats, all finite), then the condition.
        condition: name of the condition column.
        shape: a row's shape in an array of more than two axes, e.g. ``(3, 32, 32)``, if ``frame`` holds all
            of its entries in order; else ``None``.
        fingerprint: sha256 of the file's bytes, in hex.
    """

    frame: pd.DataFrame = field(repr=False)
    condition: str | None
    shape: tuple[int, ...] | None
    fingerprint: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the feature columns."""
        return tuple(name for name in self.frame.columns if name != self.condition)

    @property
    def rows(self) -> np.ndarray:
        """A copy of the features as float64, shape ``(n, D)``; booleans are 0 and 1."""
        return self.frame[list(self.columns)].to_numpy(np.float64, copy=True)

    @property
    def integers(self) -> tuple[bool, ...]:
        """Which features are whole numbers: integer or boolean columns, and floats all whole and below 2^24."""
        columns = (self.frame[name].to_numpy() for name in self.columns)
        return tuple(column.dtype.kind in "biu" or _whole(column) for column in columns)

    @property
    def dtypes(self) -> dict[str, str]:
        """NumPy dtype of each feature column, for `restore`."""
        return {name: str(self.frame[name].dtype) for name in self.columns}


def read_table(
    path: str | Path,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    condition: str | None = None,
    min_rows: int = 2,
) -> Table:
    """Reads a table of numbers.

    A ``.csv`` needs a header, commas and UTF-8; ``.parquet`` needs pyarrow. The columns of a ``.npy`` array
    ``(n,)``, ``(n, d)`` or ``(n, *shape)`` are called ``x0, x1, ...``, and so are those of a ``.npz`` file of
    one array. In a ``.npz`` file of several arrays of one length an array ``a`` of one axis is the column ``a``,
    one of more axes gives ``a_0, a_1, ...``. Nothing is unpickled.

    Args:
        path: the file; its suffix says the format.
        columns: the features to keep, in this order; ``None``: all.
        drop: columns to leave out.
        condition: a column of text, booleans or numbers that is kept as it is and is no feature.
        min_rows: the fewest rows to accept.

    Raises:
        ValueError: the file can't be read, a name is unknown, or a feature holds anything but finite numbers.
    """
    path = Path(path)
    _check_readable(path)
    frame, shapes = _READERS[_suffix(path, _READERS)](path)
    _check_duplicates(path, list(frame.columns))
    features = _features(path, list(frame.columns), columns, drop, condition)
    least = max(min_rows, 1)
    if len(frame) < least:
        raise _error(path, f"has too few rows of data ({len(frame)}); it needs at least {least} rows")
    kept = _numbers(path, frame, features)
    if condition is not None:
        kept[condition] = _condition(path, _series(frame, condition))
    with path.open("rb") as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
    shape = next((shape for names, shape in shapes if names == features), None)
    return Table(pd.DataFrame(kept), condition, shape, fingerprint)


def write_table(path: str | Path, rows: Rows, force: bool = False) -> None:
    """Writes a table as ``.csv``, ``.parquet`` or ``.npy``, by suffix; the file appears whole or not at all.

    An array ``(n, ...)`` keeps its shape in ``.npy`` and gets the columns ``x0, x1, ...`` elsewhere; a frame
    loses its index everywhere and its names in ``.npy``.

    Raises:
        ValueError: the suffix is unknown, the file exists and ``force`` is false, the folder is missing or
            can't be written to, or the format can't hold the rows (text in ``.npy``).
    """
    path = Path(path)
    if path.is_dir():
        raise _error(path, "is a folder; name a file in it")
    write = _WRITERS[_suffix(path, _WRITERS)]
    if path.exists() and not force:
        raise ValueError(f"{show(path)} exists; pass --force to replace it")
    if not path.parent.is_dir():
        raise _error(path, f"the folder {show(path.parent)} does not exist; make it first")
    with replacing(path) as temporary:
        write(path, rows, temporary)


def restore(rows: np.ndarray, dtypes: Mapping[str, str]) -> pd.DataFrame:
    """Gives the rows ``(n, D)`` the names and dtypes of `Table.dtypes`.

    Integers are rounded and kept within their type's range; a boolean is true from 1/2 on.

    >>> restore(np.array([[0.0, 300.0], [1.0, -2.0]]), {"ok": "bool", "n": "uint8"})
          ok    n
    0  False  255
    1   True    0

    Raises:
        ValueError: ``rows`` is not ``(n, len(dtypes))``.
    """
    if rows.ndim != 2 or rows.shape[1] != len(dtypes):
        raise ValueError(f"rows must have shape (n, {len(dtypes)}), one column per name, got {rows.shape}")
    columns = zip(dtypes.items(), rows.T, strict=True)
    return pd.DataFrame({name: _cast(values, np.dtype(dtype)) for (name, dtype), values in columns})


def split_names(text: str) -> tuple[str, ...]:
    """Column names from an option's text: commas separate, double quotes keep a comma within a name.

    >>> split_names('cut,"width, mm"')
    ('cut', 'width, mm')
    """
    return tuple(next(csv.reader(io.StringIO(text, newline="")), []))


def _whole(column: np.ndarray) -> bool:
    return bool(np.all(column == np.rint(column)) and np.abs(column).max() < 2**24)


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "b":
        return values >= 0.5
    if dtype.kind not in "iu":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), float(limits.min), np.nextafter(limits.max + 1.0, 0.0)).astype(dtype)


def _error(path: Path, message: str) -> ValueError:
    return ValueError(f"{show(path)}: {message}")


def _unreadable(path: Path, error: BaseException) -> ValueError:
    if "pickle" in str(error):
        what = "holds Python objects, which are not read, or is no NumPy file"
        return _error(path, f"{what}; save plain numbers, np.save(file, array.astype(float))")
    return _error(path, f"cannot be read as {path.suffix.lower()}: {_reason(error)}; write the file again")


def _decoded(path: Path, read: Callable[[], _T]) -> _T:
    """What ``read`` gives; damaged bytes make the libraries raise nearly anything."""
    try:
        return read()
    except Exception as error:
        raise _unreadable(path, error) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _option(option: str, names: Sequence[str]) -> str:
    """The option as a shell takes it, on one line whatever the names hold; `split_names` reads its text."""
    text = io.StringIO(newline="")
    csv.writer(text).writerow(names)
    value = text.getvalue().removesuffix("\r\n")
    if value.isprintable():
        return f"{option} {shlex.quote(value)}"
    escapes = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return f"{option} $'{value.translate(str.maketrans(escapes))}'"


def _suffix(path: Path, known: Iterable[str]) -> str:
    suffix = path.suffix.lower()
    if suffix not in known:
        raise _error(path, f"unknown suffix {suffix!r}; known are {', '.join(known)}")
    return suffix


def _check_readable(path: Path) -> None:
    if path.is_dir():
        raise _error(path, "is a folder; name a file in it")
    if not path.exists():
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise _error(path, f"no such file{guess(path.name, beside) or '; check its name and folder'}")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise _error(path, f"cannot be opened: {_reason(error)}") from error
    if empty:
        raise _error(path, "is empty; it needs at least 2 rows of data")


_Read = tuple[pd.DataFrame, list[tuple[list[str], tuple[int, ...]]]]
"""The file's columns, and for each array of more than two axes its columns and the shape of a row."""


def _read_csv(path: Path) -> _Read:
    with path.open("rb") as file:
        if b"\0" in file.read(4096):
            raise _error(path, "is not UTF-8 text; save it as CSV in UTF-8")
    try:
        first = pd.read_csv(path, header=None, nrows=1, index_col=False, dtype=str, keep_default_na=False)
        header = [str(name) for name in first.iloc[0]]
        _check_header(path, header)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(path, index_col=False, low_memory=False)
    except pd.errors.EmptyDataError:
        raise _error(path, "is empty; it needs a header and at least 2 rows of data") from None
    except UnicodeDecodeError as error:
        raise _error(path, f"line {_foreign_line(path)} is not UTF-8 text; save it as CSV in UTF-8") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise _ragged(path, error) from error
    frame.columns = [name or f"Unnamed: {i}" for i, name in enumerate(header)]
    return frame, []


def _check_header(path: Path, header: list[str]) -> None:
    mark = next((mark for mark in ";\t|" if mark in header[0]), None)
    if len(header) == 1 and mark:
        raise _error(path, f"has the one column {show(header[0])}; separate columns by ',', not {mark!r}")
    try:
        numbers = [float(name) for name in header]
    except ValueError:
        return
    counts = [numbers[0] + i for i in range(len(numbers))]
    if numbers != counts or (len(numbers) == 1 and numbers[0] != 0):
        raise _error(path, f"its first line holds numbers ({listing(header)}); put a line of names above it")


def _foreign_line(path: Path) -> int:
    with path.open("rb") as file:
        return next((i for i, line in enumerate(file, 1) if "\ufffd" in line.decode(errors="replace")), 1)


def _ragged(path: Path, error: Exception) -> ValueError:
    """Names the first row that is longer than the header (a short row reads as missing values)."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = (line for line in csv.reader(file) if line)
            width = len(next(lines))
            row, length = next((i, len(line)) for i, line in enumerate(lines, 1) if len(line) > width)
    except (csv.Error, UnicodeDecodeError, StopIteration):
        return _unreadable(path, error)
    return _error(path, f"row {row} has {length} values, the header {width} names; mend it (quote a comma)")


def _need_pyarrow(path: Path, verb: str) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise _error(path, f'{verb} .parquet needs pyarrow: pip install "pathline[parquet]"')


def _read_parquet(path: Path) -> _Read:
    _need_pyarrow(path, "reading")
    from pyarrow import parquet

    _check_duplicates(path, _decoded(path, lambda: parquet.read_schema(path).names))
    frame = _decoded(path, lambda: pd.read_parquet(path, engine="pyarrow"))
    frame = frame.reset_index([name for name in frame.index.names if name not in (None, *frame.columns)])
    frame.columns = [str(name) for name in frame.columns]
    return frame, []


def _read_arrays(path: Path) -> _Read:
    arrays = _load(path)
    alone = len(arrays) == 1
    for name, array in arrays.items():
        if array.ndim == 0 or array.dtype.kind not in ("biuf" if alone else "biufU"):
            what = "its array" if alone else f"its array {show(name)}"
            held = f"{what} has dtype {array.dtype} and shape {array.shape}"
            raise _error(path, f"{held}; save real numbers, with the rows along the first axis")
    lengths = {show(name): len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise _error(path, f"its arrays differ in length ({listed} rows); save arrays of one length")
    frames, shapes = [], []
    for name, array in arrays.items():
        names = _array_columns(name, array.shape, alone)
        flat = array.reshape(len(array), len(names)).astype(array.dtype.newbyteorder("="), copy=False)
        frames.append(pd.DataFrame(flat, columns=names))
        if array.ndim > 2:
            shapes.append((names, array.shape[1:]))
    return pd.concat(frames, axis=1), shapes


def _array_columns(name: str, shape: tuple[int, ...], alone: bool) -> list[str]:
    if len(shape) == 1 and not alone:
        return [name]
    prefix = "x" if alone else f"{name}_"
    return [f"{prefix}{i}" for i in range(math.prod(shape[1:]))]


def _load(path: Path) -> dict[str, np.ndarray]:
    def read() -> dict[str, np.ndarray]:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            alone = isinstance(loaded, np.ndarray)
            return {"array": loaded} if alone else {name: loaded[name] for name in loaded.files}

    arrays = _decoded(path, read)
    if not arrays or not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise _error(path, "holds no array, or other things beside; write it with np.save or np.savez")
    return arrays


_READERS: dict[str, Callable[[Path], _Read]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".npy": _read_arrays,
    ".npz": _read_arrays,
}


def _check_duplicates(path: Path, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise _error(path, f"several columns are called {listing(twice)}; give each column a name of its own")


def _features(
    path: Path, known: list[str], columns: Sequence[str] | None, drop: Sequence[str], condition: str | None
) -> list[str]:
    if not known:
        raise _error(path, "has no columns; it needs at least one column of numbers")
    conditions = () if condition is None else (condition,)
    for option, names in ("--columns", columns or ()), ("--drop", drop), ("--condition", conditions):
        for name in names:
            if name not in known:
                hint = guess(name, known)
                raise _error(path, f"{option}: no column {show(name)}{hint}; its columns are {listing(known)}")
    wanted = known if columns is None else dict.fromkeys(columns)
    features = [name for name in wanted if name not in {*drop, *conditions}]
    if not features:
        raise _error(path, f"no column is left as a feature; keep at least one of {listing(known)}")
    nameless = [name for name in features if name.startswith("Unnamed: ")]
    if nameless and columns is None:
        remedy = f"name it in the header, or leave it out: {_option('--drop', nameless)}"
        raise _error(path, f"{listing(nameless)}: a column without a name (an index?); {remedy}")
    return features


def _numbers(path: Path, frame: pd.DataFrame, features: list[str]) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    foreign: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in features:
        column = _series(frame, name)
        read = column if column.dtype.kind in "biuf" else pd.Series(pd.to_numeric(column, errors="coerce"))
        what = _foreign(column, read)
        if what:
            foreign[name] = what
            continue
        bad = np.flatnonzero(~np.isfinite(read.to_numpy(np.float64, na_value=np.nan)))
        if bad.size:
            missing[name] = f"{show(name)} ({bad.size} in all, the first in row {bad[0] + 1})"
        else:
            numbers[name] = _native(read)
    if foreign:
        some = len(foreign) < len(features)
        drop = f"give numbers, or leave the columns out: {_option('--drop', list(foreign))}"
        remedy = drop if some else "give at least one column of numbers"
        raise _error(path, f"not numbers: {_grouped(foreign)}; {remedy}")
    if missing:
        drop = f", or leave the columns out: {_option('--drop', list(missing))}" if numbers else ""
        listed = ", ".join(missing.values())
        raise _error(path, f"missing or infinite values: {listed}; fill in or delete these rows{drop}")
    return numbers


def _series(frame: pd.DataFrame, name: str) -> pd.Series:
    column = pd.Series(frame[name])
    categorical = isinstance(column.dtype, pd.CategoricalDtype)
    return pd.Series(np.asarray(column), name=name) if categorical else column


def _native(column: pd.Series) -> np.ndarray:
    dtype: Any = column.dtype
    return column.to_numpy(getattr(dtype, "numpy_dtype", dtype))


def _foreign(column: pd.Series, read: pd.Series) -> str:
    """What a column holds in place of numbers, where ``read`` are its numbers; '' if it holds numbers."""
    if read is column:
        return ""
    if column.dtype.kind in "Mm":
        return "dates"
    if column.dtype.kind == "c":
        return "complex"
    bad = np.flatnonzero(read.isna() & column.notna())
    if not bad.size:
        return ""
    first = column.iloc[bad[0]]
    if 2 * bad.size > column.notna().sum():
        return "text" if isinstance(first, str) else type(first).__name__
    return f"{str(first)[:40]!r} in row {bad[0] + 1}"


def _grouped(foreign: dict[str, str]) -> str:
    groups: dict[str, list[str]] = {}
    for name, what in foreign.items():
        groups.setdefault(what, []).append(show(name))
    return ", ".join(f"{', '.join(names)} ({what})" for what, names in groups.items())


def _condition(path: Path, column: pd.Series) -> Any:
    option = f"--condition {show(column.name)}"
    kind = column.dtype.kind
    if kind in "Mmc":
        what = "complex numbers" if kind == "c" else "dates"
        raise _error(path, f"{option} holds {what}; write them as text or real numbers")
    bad = np.flatnonzero(column.isna() | column.isin([np.inf, -np.inf]))
    if bad.size:
        listed = f"{bad.size} in all, the first in row {bad[0] + 1}; NA, null and None read as missing"
        raise _error(path, f"{option}: missing or infinite values ({listed}); fill in or delete these rows")
    return _native(column) if kind in "biuf" else column


def _frame(rows: Rows) -> pd.DataFrame:
    if isinstance(rows, pd.DataFrame):
        return rows
    flat = rows.reshape(len(rows), math.prod(rows.shape[1:]))
    return pd.DataFrame(flat, columns=[f"x{i}" for i in range(flat.shape[1])])


def _write_csv(path: Path, rows: Rows, temporary: Path) -> None:
    _frame(rows).to_csv(temporary, index=False)


def _write_parquet(path: Path, rows: Rows, temporary: Path) -> None:
    _need_pyarrow(path, "writing")
    _frame(rows).to_parquet(temporary, index=False, engine="pyarrow")


def _write_npy(path: Path, rows: Rows, temporary: Path) -> None:
    if isinstance(rows, pd.DataFrame):
        text = [name for name in rows.columns if rows[name].dtype.kind not in "biuf"]
        if text:
            raise _error(path, f".npy holds numbers alone, {listing(text)} does not; write .csv or .parquet")
        rows = rows.to_numpy(np.result_type(*rows.dtypes))
    with temporary.open("wb") as file:
        np.save(file, rows, allow_pickle=False)


_WRITERS: dict[str, Callable[[Path, Rows, Path], None]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".npy": _write_npy,
}
