"""Options from dataclasses by tyro, with its boxed errors folded to one line."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from pathline.train.recipe import Recipe
from pathline.wording import guess

Options = TypeVar("Options")


def parse(kind: type[Options], verb: str, argv: Sequence[str]) -> Options:
    """The options of a verb.

    Raises:
        ValueError: an unknown or misspelt option, or a value of the wrong type.
        SystemExit: after ``--help``.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=f"pathline {verb}", args=list(argv), config=(tyro.conf.OmitSubcommandPrefixes,))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(f"{_folded(said.getvalue(), kind)} (see pathline {verb} --help)") from stop


def check_seed(seed: int) -> None:
    """Raises ValueError where a seed is out of range."""
    Recipe(seed=seed).check()


def _folded(text: str, kind: Any) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    words = " ".join(re.sub(r"[│╭╮╰╯─]+|-{5,}", " ", plain).split())
    said = re.split(r"For full helptext|Argument helptext", words)[0].strip()
    if found := re.search(r"Unrecognized options: ([^\s,=]+)", said):
        return _unknown(found[1], kind)
    if found := re.search(r"Error parsing (--\S+):.*?(INT|FLOAT|float|int).*'(.*?)'", said):
        number = "a whole number" if found[2] in ("INT", "int") else "a number"
        return f"{found[1]} must be {number}, got {found[3]!r}"
    if found := re.search(r"Missing value for argument '(\S+)'", said):
        return f"{found[1]} needs a value"
    if found := re.search(r"Missing from [\w ]+: (.*)", said):
        missing = [item.split()[0] for item in found[1].split("(required)") if item.strip()]
        return f"{' and '.join(missing)} must be given"
    return said or "bad options"


def _unknown(name: str, kind: Any) -> str:
    if not name.startswith("-"):
        return f"{name!r} is one word too many"
    known = [f"--{field.name.strip('_').replace('_', '-')}" for field in dataclasses.fields(kind)]
    return f"no option {name}{guess(name, known)}"
