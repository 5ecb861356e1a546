"""What can be known of queries before they are answered."""

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore[reportMissingImports]

FAR = 1e6
"""Coordinates beyond it have squares in which differences between components drown."""


def is_far(x: Tensor) -> bool:
    """Whether a row is known to be far away."""
    return _seen(x) and bool((x.detach().abs() > FAR).any())


def is_untracked(x: Tensor) -> bool:
    """Whether nobody differentiates by ``x``, as far as a compiler lets it be known."""
    if torch.compiler.is_compiling():
        return False
    tracked = torch.is_grad_enabled() and x.requires_grad
    return not tracked and not is_functorch_wrapped_tensor(x)


def _seen(x: Tensor) -> bool:
    """Whether the numbers of ``x`` can be looked at without waiting for a device, a compiler or a transform."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not is_functorch_wrapped_tensor(x)
