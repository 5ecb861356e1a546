"""Products of bytes, where the processor has them."""

import statistics
import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

PEAK = 127
"""The largest byte."""

FASTER = 3.0
"""How many times as fast as products of floats those of bytes have to be to be of use."""


def products(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Of int8 matrices, in int32."""
    if left.shape[1] == 1:  # which torch multiplies wrongly
        left, right = pad(left, (0, 1)), pad(right, (0, 0, 0, 1))
    return torch._int_mm(left, right, out=out)  # pyright: ignore[reportPrivateImportUsage]


@lru_cache
def exact() -> bool:
    """Whether products of bytes are there, and exact: on some processors, sums of two saturate."""
    ends = torch.full((64, 256), PEAK, dtype=torch.int8)
    try:
        return bool((products(ends, ends.T) == 256 * PEAK**2).all())
    except (AttributeError, NotImplementedError, RuntimeError):
        return False


@lru_cache
def fast() -> bool:
    """Whether products of bytes are exact, and much faster than those of floats; timed once in a process."""
    floats = torch.ones(256, 1024, dtype=torch.float32)
    bytes_ = floats.to(torch.int8)
    return exact() and _seconds(lambda: floats @ floats.T) > FASTER * _seconds(lambda: products(bytes_, bytes_.T))


def _seconds(run: Callable[[], object]) -> float:
    def once() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return statistics.median(once() for _ in range(9))
