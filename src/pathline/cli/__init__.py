"""The command line: one file a verb, and every error one line."""

import sys
from collections.abc import Callable, Sequence

from pathline.wording import guess

VERBS = {
    "train": "fit a flow to a file or a built-in toy",
    "sample": "draw rows from a trained model",
    "tune": "learn a solver for few model calls",
    "score": "log-density of every row of a file",
    "evaluate": "quality beside its noise floor",
    "view": "a page, film or picture of a trained run",
    "explore": "a page of the exact field, live: needs no model",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, 2 for bad input, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    except KeyboardInterrupt as stop:
        print(f"pathline: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    except (ValueError, TypeError, RuntimeError, OSError, ArithmeticError, MemoryError) as error:
        print(f"pathline: {_one_line(error)}", file=sys.stderr)
        return 2


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"pathline {version('pathline')}")
        return 0
    return _verb(words[0])(words[1:])


def _verb(name: str) -> Callable[[Sequence[str]], int]:
    if name == "train":
        from pathline.cli.train import run
    elif name == "sample":
        from pathline.cli.sample import run
    elif name == "tune":
        from pathline.cli.tune import run
    elif name == "score":
        from pathline.cli.score import run
    elif name == "evaluate":
        from pathline.cli.evaluate import run
    elif name == "view":
        from pathline.cli.view import run
    elif name == "explore":
        from pathline.cli.explore import run
    else:
        hint = guess(name, (*VERBS, "--version", "--help")) or f"; there are {', '.join(VERBS)}"
        raise ValueError(f"no command {name!r}{hint} (see pathline --help)")
    return run


def _usage() -> str:
    verbs = "\n".join(f"  pathline {name:<9} {what}" for name, what in VERBS.items())
    return f"usage: pathline COMMAND ...\n\n{verbs}\n  pathline --version\n\npathline COMMAND --help tells its options."


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'file'}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
