"""Calls whose graph is not kept: the backward pass makes it again, one call at a time."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class Recompute:
    """Calls functions of one tensor so that only their input is kept for the backward pass.

    `torch.utils.checkpoint` repeats a call for every gradient taken inside it, of which a trace takes d. Here what
    a call saves is there until the call ends; in the backward pass it is made again when first asked for, and
    dropped when an earlier call is made again. A function that draws from torch's generator of x's device or of the
    CPU draws the same numbers again.

    Reference: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
    """

    def __init__(self) -> None:
        self.held: _Frame | None = None

    def __call__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return function(x)
        frame = _Frame(self, function, x)
        with saved_tensors_hooks(frame.pack, frame.unpack):
            y = function(x)
        frame.forget()
        return y


class _Frame:
    """One call: its input, how many tensors it saves, and while they are needed the tensors."""

    def __init__(self, owner: Recompute, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.owner, self.function, self.x = owner, function, x.detach()
        self.x.requires_grad_(x.requires_grad)
        self.saved, self.count = [], 0
        self.devices = [x.device] if x.device.type == "cuda" else []
        self.random = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in self.devices]

    def pack(self, tensor: Tensor) -> int:
        self.saved.append(tensor.detach())
        return len(self.saved) - 1

    def unpack(self, i: int) -> Tensor:
        if not self.saved:
            self._again()
        return self.saved[i]

    def forget(self) -> None:
        self.count, self.saved = len(self.saved), []

    def _again(self) -> None:
        if self.owner.held is not None:
            self.owner.held.saved = []
        self.owner.held = self
        with torch.random.fork_rng(self.devices), torch.enable_grad(), saved_tensors_hooks(self.pack, self.unpack):
            self._seed()
            self.function(self.x)
        if len(self.saved) != self.count:
            raise RuntimeError(
                f"the field saved {len(self.saved)} tensors when it was called again and {self.count} before: "
                "checkpoint needs a field that does the same work every time"
            )

    def _seed(self) -> None:
        own, others = self.random
        torch.set_rng_state(own)
        for device, state in zip(self.devices, others, strict=True):
            torch.cuda.set_rng_state(state, device)
