"""A bar on a terminal, for work that takes more than two seconds."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

DELAY = 2.0
"""Seconds before a bar shows."""


@contextmanager
def bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A callback that is told ``(done, steps)``."""
    with tqdm(desc=what, unit=unit, delay=DELAY, disable=not sys.stderr.isatty(), file=sys.stderr) as shown:

        def tell(done: int, steps: int) -> None:
            shown.total = steps
            shown.update(done - shown.n)

        yield tell
