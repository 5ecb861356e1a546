"""Derivatives for callers inside `torch.inference_mode`, where nothing is recorded."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def recordable(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` outside inference mode, there as under ``torch.no_grad()``, on copies of tensors made inside it."""
    call: Callable[..., R] = function

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as outside:
            if torch.is_inference_mode_enabled():
                outside.enter_context(torch.inference_mode(False))
                outside.enter_context(torch.no_grad())
            return call(*map(_copied, args), **_copied(kwargs))

    return run


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copied(each) for name, each in value.items()}
    if not isinstance(value, Tensor) or not value.is_inference():
        return value
    one_time = value.ndim > 0 and value.stride(0) == 0 and len(value) > 0
    return value[:1].clone().expand_as(value) if one_time else value.clone()
