"""Options from dataclasses by tyro, with its boxed errors folded to one line."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import TypeVar

import tyro

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
        raise ValueError(_folded(said.getvalue(), verb)) from stop


def _folded(text: str, verb: str) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    words = " ".join(re.sub(r"[│╭╮╰╯─]+", " ", plain).split())
    said = re.split(r"For full helptext|Argument helptext", words)[0]
    said = re.sub(r"^(Parsing error|Value error|Missing argument|Required options) ", "", said.strip())
    return f"{said or 'bad options'} (see pathline {verb} --help)"
