"""How messages show what a user wrote, and the check of a count that says so."""

import difflib
from collections.abc import Iterable
from numbers import Real

_LISTED = 20


def show(name: object) -> str:
    """The text as it is, or quoted where it could be misread."""
    text = str(name)
    plain = text.isprintable() and text == text.strip() != "" and "," not in text
    return text if plain else repr(text)


def listing(names: Iterable[object]) -> str:
    """Names in a row, the first 20 of many.

    >>> listing(["cut", "width, mm"])
    "cut, 'width, mm'"
    """
    shown = [show(name) for name in names]
    more = [f"... ({len(shown)} in all)"] if len(shown) > _LISTED else []
    return ", ".join(shown[:_LISTED] + more)


def guess(name: str, known: Iterable[str]) -> str:
    """A question after the nearest known name, or nothing.

    >>> guess("anulus", ["annulus", "moons"])
    '; did you mean annulus?'
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {show(close[0])}?" if close else ""


def whole(name: str, value: object, unit: str = "", least: int = 1) -> int:
    """The count that ``value`` is.

    Raises:
        ValueError: no whole number, or one below ``least``.

    >>> whole("nfe", 8.0, "call")
    8
    """
    if not isinstance(value, Real) or isinstance(value, bool) or float(value) % 1 != 0:
        raise ValueError(f"{name} must be a whole number{f' of {unit}s' if unit else ''}, got {value!r}")
    if float(value) < least:
        raise ValueError(f"{name} must be at least {least}{f' {unit}' if unit else ''}, got {value}")
    return int(float(value))
