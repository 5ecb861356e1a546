"""One browser for all tests of a module."""

from collections.abc import Iterator
from typing import Any

import pytest

from browser import chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started
